"""Files that say how they were made: shown, made again, decoded again, and not believed too much."""

import contextlib
import copy
import gc
import inspect
import io
import json
import os
import pty
import random
import shutil
import struct
import subprocess
import sys
import time
import weakref
import zlib
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from conftest import small_transformer
from hub_server import COMMIT
from narcli import decoding, pipeline
from narcli.checkpoints.load import load_tokenizer
from narcli.checkpoints.save import save_model
from narcli.classes import load_table
from narcli.cli import app
from narcli.cli.image import image
from narcli.cli.rerun import rerun
from narcli.cli.video import video
from narcli.errors import CheckpointError, NarError, UsageError
from narcli.hub.catalog import MODELS
from narcli.hub.locate import fetch
from narcli.kernels import program
from narcli.media import readers, writers
from narcli.media.metadata import check_fields, lines, pack_tokens, unpack_tokens
from narcli.media.readers import read_metadata
from narcli.media.schema import FIELDS, RUN, SAMPLE
from narcli.media.writers import write_png
from narcli.runs.decode import Decoders, decode
from narcli.runs.filenames import format_of
from narcli.runs.repeat import Trust, check_many, recipe_of, recorded
from test_cli_image import ENVIRONMENT, PROLOGUE, names

#: What a run is told of this machine, and of where its files go: nothing that a file says.
PLACE = {
    *("output", "overwrite", "as_json", "quiet", "offline", "yes", "batch_size", "text_device", "dry_run"),
    *("save_tokens", "record", "no_metadata"),
}
ZEROS = sha256(bytes(4 * 16)).hexdigest()  # of the tokens of a 4x4 grid
picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("narcli.encoding.cache_folder", lambda: tmp_path / "prompts")
    return tmp_path / "here"


@pytest.fixture
def run(tiny, tiny_video, tiny_text, monkeypatch):
    """The command; the small models are the person's defaults."""
    for kind, model in (("IMAGE", tiny), ("VIDEO", tiny_video), ("TEXT", tiny_text)):
        monkeypatch.setenv(f"NARCLI_{kind}_MODEL", str(model))

    def invoke(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return invoke


def write(path, about):
    """A PNG of 4x4 pixels that says so."""
    info = PngInfo()
    info.add_itxt("narcli", about if isinstance(about, str) else json.dumps(about))
    picture.save(path, pnginfo=info)
    return path


# --- one schema ----------------------------------------------------------------------------------


def test_every_option_is_in_the_metadata_or_of_the_place_of_the_run():
    recorded = {option for field in FIELDS.values() for option in field.options}
    options = {*inspect.signature(image).parameters, *inspect.signature(video).parameters}
    assert recorded | PLACE == options and not recorded & PLACE
    assert options == set(inspect.signature(rerun).parameters) - {"files", "verify"}


@pytest.mark.parametrize("name", [field.name for field in FIELDS.values() if field.name != "measured"])
@pytest.mark.parametrize("value", [None, -1, 10**40, "\x1b[2J", ["x"], {"x": {}}, float("inf")])
def test_a_field_of_the_wrong_kind_is_refused(name, value, here):
    write(here / "a.png", json.dumps({"schema": "narcli.run/1"} | {name: value}))
    texts = ("command", "narcli", "torch", "prompt", "cleaned_prompt", "drawn_as", "dropped")  # any
    if (name in texts and isinstance(value, str)) or (name == "files" and value == ["x"]):
        assert read_metadata(here / "a.png")[name] == value
        return
    with pytest.raises(CheckpointError) as caught:
        read_metadata(here / "a.png")
    assert len(caught.value.message) < 500


def test_tokens_are_packed_in_as_few_bytes_as_they_need():
    for tokens in ([0, 65535, 7], [0, 65536]):
        sha = decoding.hash_tokens(pipeline.torch.tensor(tokens))
        about = {"tokens": pack_tokens(tokens), "tokens_sha256": sha}
        assert unpack_tokens(Path("x"), about, len(tokens)) == tuple(tokens)
        for lie in ({"tokens": pack_tokens([1, *tokens[1:]])}, {"tokens": "AA"}, {"tokens_sha256": "0" * 64}):
            with pytest.raises(CheckpointError, match="not those of its hash"):
                unpack_tokens(Path("x"), about | lie, len(tokens))


# --- file -> rerun -> file -----------------------------------------------------------------------

SAMPLING = "--cfg-scale 3.5 --cfg-interval 9 --temperature 0.75 --top-k 17 --top-p 0.875 --seed 77"
IMAGE = f"image --class 281 {SAMPLING} --dtype float32 --scale 3 --frontier none".split()
TEXT = f"image --prompt A-Red~apple {SAMPLING} --dtype float32 --scale 3 --frontier none".split()
VIDEO = f"video --class 2 {SAMPLING} --dtype float32 --scale 3 --frames 4 --frontier none".split()
CASES = [
    (IMAGE, "a.png", {}),
    (TEXT, "a.png", {}),
    ([*VIDEO, "--fps", "12.5", "--quality", "55"], "a.mp4", {"fps": 12.5, "quality": 55}),
    ([*VIDEO, "--fps", "12"], "a.gif", {"fps": 12.5}),
    ([*VIDEO, "--fps", "12", "--quality", "55"], "a.webp", {"fps": 1000 / 83, "quality": 55}),
    ([*VIDEO, "--format", "frames"], "a", {}),
]


@pytest.mark.parametrize(("words", "name", "more"), CASES)
def test_every_setting_goes_through_file_rerun_and_file(run, here, words, name, more):
    first = run(*(word.replace("~", " ") for word in words), "-o", name)
    assert first.exit_code == 0, first.stderr
    about = read_metadata(here / name)
    settings = {"cfg_scale": 3.5, "cfg_interval": 9, "temperature": 0.75, "top_k": 17, "top_p": 0.875}
    expected = {"sampling": settings, "seed": 77, "dtype": "float32", "scale": 3} | more
    assert {key: about[key] for key in expected} == expected
    assert about.get("frames") == (4 if "video" in words else None)
    (here / "again").mkdir()
    again = run("rerun", name, "--verify", "-o", f"again/{name}")
    assert again.exit_code == 0, again.stderr
    assert "the tokens are equal" in again.stderr and names(here / "again") == [name]
    files = ["00.png", "03.png"] if name == "a" else [""]
    for file in files:
        assert (here / name / file).read_bytes() == (here / "again" / name / file).read_bytes()


def test_what_shows_several_samples_and_the_document_make_all_of_them_again(run, here):
    made = run("image", "--class", "207,282", "-n", 2, "--seed", 5, "--grid", "--frontier", "png",
               "--frontier-mode", "decode", "--scale", 1, "--json")  # fmt: skip
    (here / "run.json").write_text(made.stdout)
    files = json.loads(made.stdout)["files"]
    stem = files[0].removesuffix(".png")
    for source, ending in (("run.json", None), (files[-2], "grid"), (files[-1], "frontier")):
        again = run("rerun", source, "--verify", "-o", "again/")
        assert again.exit_code == 0, again.stderr
        assert again.stderr.count("the tokens are equal") == 4 and "dog" in again.stderr
        left = [name for name in sorted(files) if ending is None or f"_{ending}." not in name]
        assert names(here / "again") == left
        for name in left:
            assert (here / name).read_bytes() == (here / "again" / name).read_bytes()
            (here / "again" / name).unlink()
    assert stem == "nar-image_c207-golden_retriever_s5"


def test_a_class_that_was_asked_for_by_its_own_name_keeps_it(run, here):
    run("image", "--class", "cat", "--seed", 5, "--frontier", "none")
    assert run("rerun", "nar-image_c281-cat_s5.png").stdout == "nar-image_c281-cat_s5_1.png\n"
    assert (here / "nar-image_c281-cat_s5.png").read_bytes() == (
        here / "nar-image_c281-cat_s5_1.png"
    ).read_bytes()


def test_prompts_of_a_run_come_back_too(run, here):
    made = run("image", "--prompt", "A red apple", "--prompt", "a red apple", "--seed", 5, "--json")
    (here / "run.json").write_text(made.stdout)
    again = run("rerun", "run.json", "nar-image_a-red-apple_s5_frontier.gif", "--verify", "-o", "again/")
    assert again.exit_code == 0, again.stderr
    assert again.stderr.count("the tokens are equal") == 4


def test_files_made_before_prompts_were_cleaned_as_now_give_the_same_tokens(run, here, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr("narcli.prompts.clean", str.lower)
        made = run("image", "--prompt", "Cat, 猫 R.V.", "--prompt", "猫 IMG_1.jpg", "--seed", 5, "--json")
    (here / "run.json").write_text(made.stdout)
    files = ["run.json", "nar-image_cat-猫-r-v_s5.png", "nar-image_cat-猫-r-v_s5_frontier.gif"]
    again = run("rerun", *files, "--verify", "-o", "again/", "--json")
    assert again.exit_code == 0, again.stderr
    cleaned = [[s["cleaned_prompt"] for s in each["samples"]] for each in json.loads(again.stdout)["runs"]]
    assert cleaned == [["cat, 猫 r.v.", "猫 img_1.jpg"], ["cat, 猫 r.v."], ["cat, 猫 r.v.", "猫 img_1.jpg"]]


OVERRIDES = [
    (["--class", "207"], lambda about: about["class"]["id"] == 207),
    (["--seed", "3"], lambda about: about["seed"] == 3),
    (["--top-k", "0"], lambda about: about["sampling"]["top_k"] == 0),
    (["--temperature", "0"], lambda about: about["sampling"]["temperature"] == 0),
    (["--scale", "2"], lambda about: about["scale"] == 2),
    (["--dtype", "bfloat16"], lambda about: about["dtype"] == "bfloat16"),
]


@pytest.mark.parametrize(("words", "holds"), OVERRIDES)
def test_an_option_that_is_given_goes_before_what_the_file_says(run, here, words, holds):
    run(*IMAGE, "-o", "a.png")
    before = (here / "a.png").read_bytes()
    result = run("rerun", "a.png", *words, "-o", "b.png")
    assert result.exit_code == 0, result.stderr
    about, old = read_metadata(here / "b.png"), read_metadata(here / "a.png")
    assert holds(about) and not holds(old)
    assert (
        len({name for name in ("class", "seed", "sampling", "scale", "dtype") if about[name] != old[name]})
        == 1
    )
    assert (here / "a.png").read_bytes() == before


def test_a_clip_may_take_another_format(run, here):
    run(*VIDEO, "--quality", 40, "-o", "a.mp4")
    for words, name in ((["-o", "b.gif"], "b.gif"), (["-o", "c", "--format", "frames"], "c")):
        result = run("rerun", "a.mp4", *words, "--verify")
        assert result.exit_code == 0, result.stderr
        assert "quality" not in read_metadata(here / name)


def test_the_source_is_not_overwritten_unless_asked_nor_are_the_files_of_one_rerun(run, here):
    for seed in (1, 2):
        run("image", "--class", "cat", "--seed", seed, "--frontier", "none", "-o", f"{seed}.png")
    before = (here / "1.png").read_bytes()
    assert run("rerun", "1.png", "-o", "1.png").stdout == "1_1.png\n"
    result = run("rerun", "1.png", "2.png", "-o", "x.png", "--overwrite")
    assert result.stdout.splitlines() == ["x.png", "x_1.png"]
    assert (here / "1.png").read_bytes() == before == (here / "x.png").read_bytes()
    assert run("rerun", "2.png", "-o", "1.png", "--overwrite").stdout == "1.png\n"
    assert (here / "1.png").read_bytes() == (here / "2.png").read_bytes()


def test_the_order_is_made_again(run, here):
    run("visualize-order", "--grid", "3x5", "-o", "a.gif")
    result = run("rerun", "a.gif")
    assert result.stdout == "nar-order_3x5.gif\n", result.stderr
    assert (here / "a.gif").read_bytes() == (here / "nar-order_3x5.gif").read_bytes()
    refused = run("rerun", "a.gif", "--seed", 1)
    assert refused.exit_code == 2 and "--seed" in refused.stderr
    several = run("rerun", "a.gif", "a.gif", "--overwrite")
    assert several.stdout.splitlines() == ["nar-order_3x5.gif", "nar-order_3x5_1.gif"]
    write(here / "large.png", {"schema": "narcli.run/1", "command": "visualize-order", "grid": [4096, 1]})
    assert "too large to show" in run("rerun", "large.png").stderr


def test_json_is_one_document_about_all_reruns(run, here):
    for seed in (1, 2):
        run("image", "--class", "cat", "--seed", seed, "--frontier", "none", "-o", f"{seed}.png")
    document = json.loads(run("rerun", "1.png", "2.png", "--verify", "--json").stdout)
    assert [one["samples"][0]["verified"] for one in document["runs"]] == [
        {"equal": True, "different_cells": []}
    ] * 2


def test_the_json_of_a_rerun_is_shown_and_rerun_and_printed_after_a_failure(run, here):
    for seed in (1, 2):
        run("image", "--class", "cat", "--seed", seed, "--frontier", "none", "-o", f"{seed}.png")
    about = read_metadata(here / "1.png")
    write(here / "lie.png", about | {"class": about["class"] | {"id": 10**9}})
    result = run("rerun", "1.png", "2.png", "lie.png", "--json", "-o", "out/")
    assert result.exit_code == 2 and "There is no class" in result.stderr
    (here / "runs.json").write_text(result.stdout)
    assert len(json.loads(result.stdout)["runs"]) == 2
    assert "run 2: " in run("show", "runs.json").stdout
    again = run("rerun", "runs.json", "--verify", "-o", "again/")
    assert again.exit_code == 0 and again.stderr.count("the tokens are equal") == 2
    for run_inside in ({"seed": "x"}, {"runs": []}):
        (here / "lie.json").write_text(json.dumps({"schema": "narcli.run/1", "runs": [run_inside]}))
        assert run("show", "lie.json").exit_code == 4


def test_a_dry_run_of_several_files_names_each_file_once(run, here):
    run("image", "--class", "cat", "--seed", 1, "--frontier", "none", "-o", "a.png")
    runs = json.loads(run("rerun", "a.png", "a.png", "--dry-run", "--json", "-o", "x.png").stdout)["runs"]
    assert [one["files"] for one in runs] == [["x.png"], ["x_1.png"]]
    assert run("image", "--class", "cat", "--dry-run").exit_code == 0 and names(here) == ["a.png"]


def test_one_model_is_in_memory_at_a_time_and_serves_again(run, here, monkeypatch):
    original, loaded = pipeline.load_files, []

    def load(*arguments):
        gc.collect()
        assert not any(known() for known in loaded)
        result = original(*arguments)
        loaded.append(weakref.ref(result.model))
        return result

    for seed, words in enumerate(
        (["--class", "cat"], ["--class", "207"], ["--prompt", "a"], ["--prompt", "b"])
    ):
        run("image", *words, "--seed", seed, "--frontier", "none", "-o", f"{seed}.png")
    monkeypatch.setattr(pipeline, "load_files", load)
    result = run("rerun", "0.png", "1.png", "2.png", "3.png", "0.png", "--verify", "-o", "out/", "--json")
    assert result.exit_code == 0, result.stderr
    assert len(loaded) == 3
    began = time.perf_counter()
    result = run("rerun", "0.png", "1.png", "--json", "-o", "timed/")
    seconds = [one["seconds"]["total"] for one in json.loads(result.stdout)["runs"]]
    assert sum(seconds) <= time.perf_counter() - began


# --- verification --------------------------------------------------------------------------------


def test_which_cells_differ_is_said_and_exits_1(run, here):
    run(*IMAGE, "-o", "a.png")
    about = read_metadata(here / "a.png")
    tokens = list(unpack_tokens(Path(), about, 16))
    tokens[3], tokens[9] = 95 - tokens[3], 95 - tokens[9]
    about |= {"tokens": pack_tokens(tokens)}
    about["tokens_sha256"] = decoding.hash_tokens(pipeline.torch.tensor(tokens))
    write(here / "b.png", about)
    result = run("rerun", "b.png", "--verify")
    assert result.exit_code == 1
    assert "warning: b.png: 2 of 16 tokens differ, from step 4 on: cells 3, 9." in result.stderr
    assert "error: The tokens of 1 of 1 samples are not those of the files." in result.stderr
    del about["tokens"]
    write(here / "b.png", about)
    assert "it holds their hash only" in run("rerun", "b.png", "--verify").stderr
    del about["tokens_sha256"]
    write(here / "b.png", about)
    result = run("rerun", "b.png", "--verify")
    assert result.exit_code == 4 and "no hash" in result.stderr


def test_samples_without_a_hash_are_said_and_hashes_without_a_sample_refused(run, here):
    run("image", "--class", "cat", "-n", 3, "--seed", 1, "--grid", "--frontier", "none", "-o", "a.png")
    about = read_metadata(here / "a_grid.png")
    hashes = about["samples_sha256"]
    write(here / "less.png", about | {"samples_sha256": hashes[:2]})
    result = run("rerun", "less.png", "--verify")
    assert result.exit_code == 0 and result.stderr.count("the tokens are equal") == 2
    assert "less.png holds no hash of 1 of its 3 samples: not compared." in result.stderr
    write(here / "more.png", about | {"samples_sha256": [*hashes, hashes[0]]})
    result = run("rerun", "more.png", "--verify")
    assert result.exit_code == 4 and "hashes of more samples" in result.stderr


def test_tokens_of_another_grid_differ(run, here, tiny, tmp_path):
    run(*IMAGE, "-o", "a.png")
    other = save_model(
        tmp_path / "wide",
        transformer=small_transformer((2, 6), len(load_table("emoji"))),
        tokenizer=load_tokenizer(tiny),
        classes="emoji",
    )
    result = run("rerun", "a.png", "--verify", "--model", other)
    assert result.exit_code == 1 and "a.png: its grid is 4x4, and here 2x6." in result.stderr


def test_verify_is_of_the_same_samples(run, here):
    refused = run("rerun", "a.png", "--verify", "--dry-run")
    assert refused.exit_code == 2 and "--dry-run draws none" in refused.stderr
    write(here / "a.png", {"schema": "narcli.run/1"})
    result = run("rerun", "a.png", "--verify", "--seed", 1)
    assert result.exit_code == 2 and "--seed makes others" in result.stderr


# --- files that are not believed -----------------------------------------------------------------


@pytest.fixture
def about(run, here):
    run(*IMAGE, "-o", "honest.png")
    return read_metadata(here / "honest.png")


KNOWN = {"name": "nar-b-256", "repo": "chenfeng1271/NAR-imagenet-256-B", "commit": "0" * 40}
LIES = [
    ({"model": {"name": "../../secret"}}, 2, "on its maker's disk"),
    ({"model": {"name": "/etc/passwd", "repo": "evil/model"}}, 4, "not of the repository"),
    ({"model": {"name": "evil/model", "repo": "../.."}}, 4, "expected an object with a name"),
    ({"model": {"name": "evil/model", "repo": "evil/model", "commit": "main"}}, 4, "expected an object"),
    ({"model": {"name": "evil/model", "repo": "evil/model", "commit": "0" * 40}}, 2, "If you trust it"),
    ({"model": {"name": "emoji", "repo": "evil/model", "commit": "0" * 40}}, 4, "not of the repository"),
    ({"tokenizer": {"name": "evil/x", "repo": "evil/x"}}, 2, "--tokenizer evil/x"),
    ({"model": KNOWN}, 2, f"commit {'0' * 40} of chenfeng1271/NAR-imagenet-256-B, which is not on"),
    ({"class": {"id": 10**9, "name": "x", "label": 0}}, 2, "There is no class"),
    ({"kind": "text"}, 4, "expected 'image' or 'video'"),
    ({"sampling": {"cfg_scale": 1}}, 4, "expected the sampling settings"),
    (
        {"sampling": dict.fromkeys(("cfg_scale", "cfg_interval", "temperature", "top_k", "top_p"), True)},
        4,
        "",
    ),
    ({"seed": None}, 4, "expected a whole number"),
    ({"dtype": "int8"}, 4, "dtype"),
    ({"scale": 10**9}, 4, "scale"),
    ({"class": None, "prompts": [], "seed": 1}, 4, ""),
    ({"num": 100_000}, 2, "Add --yes"),
    ({"samples": []}, 4, "not those of one run"),
    ({"samples": [{"seed": 1}]}, 4, "does not say its class"),
    ({"prompt": "-"}, 4, "Nothing is left"),
    ({"prompt": "a\x07b"}, 4, "control character"),
    ({"command": "rm -rf \x1b[2J"}, 2, "not of a run"),
]


@pytest.mark.parametrize(("lie", "code", "message"), LIES)
def test_lies_are_refused_before_anything_is_done(run, here, about, lie, code, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: pytest.fail("asked the Hub"))
    write(here / "lie.png", about | lie)
    before = names(here)
    result = run("rerun", "lie.png")
    assert result.exit_code == code, result.output
    assert message in result.stderr and len(result.stderr.splitlines()) <= 3
    assert "\x1b" not in result.output and names(here) == before


def on_a_terminal(hub, answers, *arguments):
    """The real command, and a person who types that: its exit code, and what the terminal shows."""
    leader, follower = pty.openpty()
    os.write(leader, answers.encode())
    terminal = {"TERM": "xterm", "NO_COLOR": "1"}
    process = hub.start(*arguments, "--quiet", environment=terminal, stdin=follower, stderr=follower)
    os.close(follower)
    process.communicate(timeout=240)
    shown = b""
    with contextlib.suppress(OSError):  # the end, as Linux tells it
        while piece := os.read(leader, 65536):
            shown += piece
    os.close(leader)
    return process.returncode, shown.decode()


def test_a_person_is_asked_before_a_file_brings_another_commit(hub, online, tiny, about, tmp_path):
    row, tokenizer = MODELS["nar-m-256"], MODELS["vq16-c2i"]
    folder = save_model(tmp_path / "m", transformer=small_transformer((4, 4), 1000), classes="imagenet1k")
    hub.repos[row.repo] = {path.name: path.read_bytes() for path in folder.iterdir()}
    torch.save({"model": load_tokenizer(tiny).state_dict()}, packed := io.BytesIO())
    hub.repos[tokenizer.repo] = {tokenizer.file: packed.getvalue()}
    old, hub.commit = hub.commit, "d" * 40
    for one in (row, tokenizer):
        fetch(one)  # another commit than the file's is here
    hub.commit = old
    about["model"] = {"name": row.name, "repo": row.repo, "commit": old}
    about["tokenizer"] = {"name": tokenizer.name, "repo": tokenizer.repo, "commit": old}
    write(tmp_path / "a.png", about)
    hub.requests.clear()
    code, shown = on_a_terminal(hub, "n\n", "rerun", "a.png", "-o", "b.png")
    question = f"a.png was made with commit {old} of {row.repo}, which is not on this machine. Go on? [y/N]"
    assert code == 1 and question in shown and "Nothing was downloaded." in shown
    assert hub.requests == [] and not (tmp_path / "b.png").exists()
    code, shown = on_a_terminal(hub, "y\ny\n", "rerun", "a.png", "-o", "b.png")
    assert code == 0 and shown.count("Go on?") == 2, shown
    assert question in shown and question.replace(row.repo, tokenizer.repo) in shown
    made = read_metadata(tmp_path / "b.png")
    assert made["model"]["commit"] == made["tokenizer"]["commit"] == old
    assert made["class"]["id"] == about["class"]["id"] and made["seed"] == about["seed"]


def test_a_file_keeps_the_commit_of_its_text_encoder(run, here, online, tiny_text):
    encoder = {path.name: path.read_bytes() for path in (tiny_text / "text_encoder").iterdir()}
    model = {path.name: path.read_bytes() for path in tiny_text.iterdir() if path.is_file()}
    online.repos = {"me/text": model, "google/flan-t5-xl": encoder}
    words = ("image", "--model", "me/text", "--prompt", "a", "--seed", 1, "--frontier", "none", "-o")

    def said(*arguments):
        result = run(*arguments)
        assert result.exit_code == 0, result.output
        return result

    old = online.commit
    (pulled,) = json.loads(said("models", "pull", "flan-t5-xl", "--revision", old, "--json").stdout)["models"]
    assert pulled["commit"] == old and pulled["downloaded"] == sum(map(len, encoder.values()))
    said(*words, "a.png")
    online.commit = "d" * 40
    weights = here / "other.safetensors"
    weights.write_bytes(encoder["model.safetensors"])
    save_file({name: -value for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    encoder["model.safetensors"] = weights.read_bytes()
    said(*words, "b.png")
    about, other = (read_metadata(here / name) for name in ("a.png", "b.png"))
    assert [one["text_encoder"]["commit"] for one in (about, other)] == [old, "d" * 40]
    assert about["tokens_sha256"] != other["tokens_sha256"]
    for options, commit in (((), "d" * 40), (("--revision", old), old)):
        shown = json.loads(said("models", "show", "flan-t5-xl", *options, "--json").stdout)
        assert shown["on_disk"] and shown["commit"] == commit and commit in shown["path"]
    online.requests.clear()
    assert "the tokens are equal" in said("rerun", "a.png", "--verify", "-o", "c.png").stderr
    assert read_metadata(here / "c.png")["text_encoder"] == about["text_encoder"]
    assert online.requests == []


def test_many_samples_are_asked_for_by_a_person(run, here, about):
    assert recipe_of(here, about, Trust({"num": 5000})).num == 5000
    assert recipe_of(here, about | {"num": 5000}, Trust(yes=True)).num == 5000
    with pytest.raises(UsageError, match="asks for 5,000 samples for each"):
        recipe_of(here, about | {"num": 5000}, Trust({"classes": "cat"}))


@pytest.mark.parametrize("name", ["kind", "model", "sampling", "seed", "class", "dtype"])
def test_what_is_missing_is_named(run, here, about, name):
    del about[name]
    write(here / "lie.png", about)
    result = run("rerun", "lie.png")
    assert result.exit_code == 4 and f"does not say its {name}" in result.stderr


def test_files_of_output_are_never_those_that_a_file_names(run, here, about):
    document = {key: value for key, value in about.items() if key in {field.name for field in RUN}}
    sample = {key: value for key, value in about.items() if key in {field.name for field in SAMPLE}}
    document |= {"files": [str(here.parent / "owned.png")], "samples": [sample | {"file": "../../owned.png"}]}
    document["samples"][0]["class"] = about["class"] | {
        "name": "../../../owned",
        "stands_for": "\x1b]0;x\x07",
    }
    (here / "lie.json").write_text(json.dumps(document))
    before = {*here.parent.rglob("*")}
    result = run("rerun", "lie.json")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "nar-image_c281-tabby_s77.png\n"
    assert {*here.parent.rglob("*")} - before == {here / "nar-image_c281-tabby_s77.png"}


@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_no_name_in_a_file_is_a_path(run, here, tiny, about, part):
    for folder in ("me/tiny", "etc/x"):
        shutil.copytree(tiny, here / folder)
    names = {"me/tiny": (2, "a file or folder"), "me/tiny/../../etc/x": (4, "tampered")}
    for name, (code, message) in names.items():
        write(here / "a.png", about | {part: {"name": name, "repo": "me/tiny"}})
        result = run("rerun", "a.png")
        assert result.exit_code == code and message in result.stderr
        save_file(
            {"tokens": np.zeros((4, 4), np.int32)},
            "a.safetensors",
            {
                "narcli": json.dumps(
                    about | {"tokenizer": {"name": name, "repo": "me/tiny"}, "tokens_sha256": ZEROS}
                )
            },
        )
        result = run("decode", "a.safetensors")
        assert result.exit_code == code and message in result.stderr


def test_another_model_of_the_same_name_is_said(run, here, about):
    about["model"]["sha256"] = "0" * 64
    write(here / "a.png", about)
    result = run("rerun", "a.png")
    assert "warning: The model tiny is not the one that made a.png: its sha256 differs." in result.stderr


def test_text_of_others_does_not_reach_the_terminal_raw(run, here):
    evil = "\x1b]0;owned\x07\x9b2J\u202egnp.exe\nerror: forged"
    about = {
        "schema": "narcli.run/1",
        "narcli": evil,
        "class": {"id": 1, "name": evil, "label": 1},
        evil: evil,
    }
    about["samples"] = [{"seed": 1, "file": evil}]
    write(here / "a.png", about)
    for words in (["show", "a.png"], ["show", "a.png", "--json"], ["rerun", "a.png"]):
        result = run(*words)
        assert not set("\x1b\x07\x9b\u202e") & set(result.output)
        assert not any(line.startswith("error: forged") for line in result.output.splitlines())
    assert json.loads(run("show", "a.png", "--json").stdout) == about


# --- files that lie about their size -------------------------------------------------------------


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_bombs_and_endless_files_are_refused_quickly(here):
    picture.save("plain.png")
    picture.save("plain.gif")
    picture.save("plain.webp")
    png, gif, webp = ((here / f"plain.{kind}").read_bytes() for kind in ("png", "gif", "webp"))
    bomb = zlib.compress(b'{"schema": "narcli.run/1", "prompt": "' + b"x" * 30_000_000)
    files = {
        "bomb.png": png[:33] + chunk(b"iTXt", b"narcli\0\1\0\0\0" + bomb[:190_000]) + png[33:],
        "zTXt.png": png[:33] + chunk(b"zTXt", b"narcli\0\0" + bomb) + png[33:],
        "chunks.png": png[:33] + chunk(b"teXt", b"") * 300_000 + png[33:],
        "lying.png": png[:33] + b"\xff\xff\xff\xffiTXtnarcli",
        "comments.gif": gif[:13] + b"!\xfe\x01x\0" * 300_000 + gif[13:],
        "endless.gif": gif[:10]
        + b"\0"
        + gif[11:13]
        + b"!\xfe"
        + (b"\xff" + b"narcli.run/" * 24)[:256] * 9999,
        "canvas.webp": webp[:12] + b"VP8X\x0a\0\0\0\x02\0\0\0\xff\x3f\0\xff\x3f\0" + webp[12:],
        "boxes.mp4": b"\0\0\0\x08ftyp" * 300_000,
        "lying.mp4": b"\0\0\0\x08ftyp\0\0\0\1moov" + b"\xff" * 8,
        "lying.safetensors": b"\xff\xff\xff\x7f\0\0\0\0" + b'{"__metadata__":{"narcli":"',
        "deep.json": b'{"schema": "narcli.run/1", "x": ' + b"[" * 100_000,
        "number.json": b'{"schema": "narcli.run/1", "seed": ' + b"9" * 100_000 + b"}",
        "nan.json": b'{"schema": "narcli.run/1", "fps": NaN}',
        "large.json": b'{"schema": "narcli.run/1", "x": "' + b"x" * readers.MAX_DOCUMENT + b'"}',
    }
    for name, content in files.items():
        (here / name).write_bytes(content)
        began = time.process_time()
        with pytest.raises(CheckpointError):
            read_metadata(here / name)
        assert time.process_time() - began < 3, name


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_not_waited_for(here):
    os.mkfifo("pipe")
    with pytest.raises(CheckpointError, match="is not a file"):
        read_metadata(here / "pipe")


# --- tokens --------------------------------------------------------------------------------------


def test_a_run_and_a_decoding_say_which_of_two_models_in_a_file_is_used(run, tiny, here):
    tensors = load_tokenizer(tiny).state_dict()
    torch.save({"model": tensors, "ema": tensors}, "both.pt")
    for words in ([*IMAGE, "--save-tokens"], ["decode", "a_tokens.safetensors", "--overwrite"]):
        made = run(*(word.replace("~", " ") for word in words), "--tokenizer", "both.pt", "-o", "a.png")
        assert made.exit_code == 0, made.stderr
        assert made.stderr.count("both.pt holds 'model' and 'ema'; 'model' is used") == 1


@pytest.mark.parametrize(("words", "name"), [(IMAGE, "a.png"), (TEXT, "a.png"), (VIDEO, "a.mp4")])
def test_tokens_become_the_same_picture_without_the_transformer(run, here, words, name, monkeypatch):
    made = run(*(word.replace("~", " ") for word in words), "--save-tokens", "-o", name)
    assert made.exit_code == 0, made.stderr
    assert made.stdout.splitlines() == [name, "a_tokens.safetensors"]
    about = read_metadata(here / "a_tokens.safetensors")
    assert about == read_metadata(here / name)
    tokens = load_file("a_tokens.safetensors")["tokens"]
    assert tokens.dtype == np.int32 and list(tokens.shape) == about["grid"]
    monkeypatch.setattr(decoding, "load_transformer", lambda *_, **__: pytest.fail("loaded a transformer"))
    again = run("decode", "a_tokens.safetensors", "--dtype", "float32", "-o", f"b{name[1:]}")
    assert again.exit_code == 0, again.stderr
    assert again.stdout.splitlines() == [f"b{name[1:]}", "b_frontier.gif"]
    told = read_metadata(here / f"b{name[1:]}")
    assert told.pop("decoded")["dtype"] == "float32" and told == about
    if name == "a.png":
        with Image.open("a.png") as one, Image.open("b.png") as other:
            assert one.tobytes() == other.tobytes()
    monkeypatch.undo()


def test_several_tokens_are_decoded_as_wished_and_rerun(run, here):
    run("image", "--class", "cat,tiger", "--seed", 1, "--save-tokens", "--frontier", "none")
    tokens = sorted(path.name for path in here.glob("*_tokens.safetensors"))
    assert len(tokens) == 2
    result = run("decode", *tokens, "--scale", 2, "--frontier-mode", "decode", "-o", "out/", "--json")
    assert result.exit_code == 0, result.stderr
    documents = json.loads(result.stdout)["runs"]
    assert sorted(file for one in documents for file in one["files"]) == [
        f"out/{name}" for name in names(here / "out")
    ]
    assert len(names(here / "out")) == 4
    assert run("rerun", *(here / "out").iterdir(), "--verify", "-o", "again/").exit_code == 0
    assert run("rerun", tokens[0], "--verify").exit_code == 0


def test_tokens_that_are_not_what_they_say_are_refused(run, here, monkeypatch):
    run(*IMAGE, "--save-tokens", "-o", "a.png")
    about = read_metadata(here / "a_tokens.safetensors")
    tokens = load_file("a_tokens.safetensors")["tokens"]

    def refused(array, without=None, code=4, dtype="auto", frontier="gif", **said):
        lie = {name: value for name, value in (about | said).items() if name != without}
        save_file({"tokens": array}, "x.safetensors", {"narcli": json.dumps(lie)})
        result = run("decode", "x.safetensors", "--dtype", dtype, "--frontier", frontier)
        assert result.exit_code == code, result.output
        return result.stderr

    def sha(array):
        return decoding.hash_tokens(pipeline.torch.from_numpy(array.reshape(-1)))

    assert "not those of its hash" in refused(tokens + 1)
    assert "not those of its hash" in refused(tokens[:2])
    assert "of the format F32, expected" in refused(tokens.astype(np.float32))
    for wrong in (tokens + 90, tokens - 90):
        assert "beyond the 96" in refused(wrong, tokens_sha256=sha(wrong))
    assert "does not say its narcli" in refused(tokens, "narcli")
    for other in (
        {"classes": [1]},
        {"samples": [{"seed": 1, "class": about["class"]}]},
        {"prompts": [{"prompt": "a"}]},
    ):
        assert "does not say its class" in refused(tokens, "class", **other)
    assert "of a 16 grid" in refused(tokens.reshape(16), grid=[16])
    assert "of a 4x2x2 grid" in refused(tokens.reshape(4, 2, 2), grid=[4, 2, 2])
    large = np.zeros((512, 512), np.int32)
    assert "of a 512x512 grid" in refused(large, grid=[512, 512], tokens_sha256=sha(large))
    monkeypatch.setattr("narcli.memory.available", lambda device: 3 * 10**8)
    monkeypatch.setattr("narcli.memory.base", lambda: 22 * 10**7)
    large = large[:256, :256].copy()
    lie = {"code": 5, "grid": [256, 256], "tokens_sha256": sha(large)}
    for dtype, needed in (("float32", 0.6), ("bfloat16", 0.4)):
        assert f"needs about {needed} GB" in refused(large, dtype=dtype, frontier="none", **lie)
    monkeypatch.setattr("narcli.memory.available", lambda device: 45 * 10**7)
    assert "--frontier none (0.4 GB)" in refused(large, dtype="bfloat16", **lie)  # 100 frames take more
    save_file({"weights": tokens}, "x.safetensors", {"narcli": json.dumps(about)})
    assert run("decode", "x.safetensors").exit_code == 4
    assert run("decode", "a.png").exit_code == 4
    assert run("decode", "a_tokens.safetensors", "--model", "emoji").exit_code == 2


# --- without metadata ----------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "name"), [(case[0], case[1]) for case in CASES])
def test_files_may_say_nothing(run, here, words, name):
    words = [word for word in words if word != "none"]
    words.remove("--frontier")
    result = run(*(word.replace("~", " ") for word in words), "-o", name, "--no-metadata")
    assert result.exit_code == 0, result.stderr
    for path in (here / name, here / "a_frontier.gif"):
        with pytest.raises(CheckpointError, match="holds no settings"):
            read_metadata(path)
    content = (here / name / "00.png" if name == "a" else here / name).read_bytes()
    assert b"narcli" not in content and b"sampling" not in content
    refused = run(*words, "--no-metadata", "--save-tokens")
    assert refused.exit_code == 2 and "exclude each other" in refused.stderr


# --- what is found before the work, and what is kept after a failure ------------------------------


@pytest.fixture
def no_sampling(monkeypatch):
    def generate(*_, **__):
        raise RuntimeError("sampled")

    for module in (pipeline, program):
        monkeypatch.setattr(module, "generate", generate)


def test_prompts_that_no_file_could_hold_are_refused_at_once(run, here, no_sampling):
    result = run("image", "--prompt", "\N{DOG FACE}" * 3000)
    assert result.exit_code == 2 and "36,002 bytes of a file's metadata" in result.stderr
    assert names(here) == []


def test_lists_that_no_file_could_hold_are_refused_before_sampling(run, here, no_sampling):
    many = ",".join(["1000"] * 25_000)
    result = run("image", "--class", many, "--frontier", "none", "--grid")
    assert result.exit_code == 1 and "settings of this run take" in result.stderr and names(here) == []


def test_folders_in_the_way_are_refused_before_sampling(run, here, no_sampling):
    (here / "a").mkdir()
    (here / "a" / "letter.txt").write_text("dear")
    (here / "b1.png").mkdir()
    frames = run(
        "video", "--class", 2, "--format", "frames", "--overwrite", "--seed", 1, "-o", "{class}/../a{seed}"
    )
    assert "sampled" in str(frames.exception)  # a1 is free
    (here / "a").rename("a1")
    frames = run("video", "--class", 2, "--format", "frames", "--overwrite", "--seed", 1, "-o", "a{seed}")
    assert frames.exit_code == 1 and "holds other files than frames" in frames.stderr
    file = run("image", "--class", 2, "--overwrite", "--seed", 1, "-o", "b{seed}.png")
    assert file.exit_code == 2 and "b1.png is a folder" in file.stderr


def test_a_clip_that_fails_does_not_take_the_others_of_its_batch_with_it(run, here, monkeypatch):
    original = writers.write_gif

    def fail(path, *arguments, **options):
        if path.name == "1.gif":
            raise NarError("Could not write 1.gif: no reason.")
        return original(path, *arguments, **options)

    monkeypatch.setattr(writers, "write_gif", fail)
    result = run("video", "--class", 2, "-n", 3, "--seed", 1, "-o", "{seed}.gif", "--frontier", "none")
    assert result.exit_code == 1 and "Could not write 1.gif" in result.stderr
    assert result.stdout.splitlines() == ["1_frames", "2.gif", "3.gif"] == names(here)
    assert read_metadata(here / "3.gif")["seed"] == 3


@pytest.mark.parametrize(
    ("suffix", "fps", "shown"),
    [(".gif", 8, 100 / 12), (".gif", 50, 50), (".gif", 0.1, 0.1), (".webp", 240, 200), (".mp4", 12.3, 12.3)],
)
def test_the_pace_that_is_said_is_the_one_that_is_shown(suffix, fps, shown):
    shown_fps = format_of(suffix).shown_fps
    assert shown_fps(fps) == pytest.approx(shown)
    assert shown_fps(shown_fps(fps)) == shown_fps(fps)


# --- for people ----------------------------------------------------------------------------------


def test_showing_needs_no_heavy_import(here):
    write_png(here / "a.png", picture, {"kind": "image", "seed": 42})
    code = """
sys.argv[1:] = ['show', 'a.png']
code = main()
assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", PROLOGUE + code + "sys.exit(code)"],
        capture_output=True, text=True, env=ENVIRONMENT, cwd=here, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["schema: narcli.run/1", "kind: image", "seed: 42"]


def test_the_built_in_model_is_found_by_its_name_alone(here):
    for words in (
        ["image", "--class", "207", "--seed", "1", "-o", "a.png", "--save-tokens"],
        ["rerun", "a.png", "--verify"],
        ["decode", "a_tokens.safetensors", "-o", "b.png"],
        ["show", "b.png"],
    ):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.stderr


def test_mutated_settings_are_read_or_refused_in_a_sentence(run, here, about, monkeypatch):
    """Any value in any place: all that comes out is a NarError."""
    monkeypatch.setattr("narcli.hub.selection.cached", lambda *_: None)
    chance, values = (
        random.Random(0),
        [None, True, -1, 10**20, 1.5, "", "\x1b[2J", "../..", [], {}, [None], [[]]],
    )
    run(*IMAGE, "--save-tokens", "-o", "a.png")
    trust = Trust({"overwrite": True, "output": "x.png", "frontier": "none"})
    tokens, decoders = here / "a_tokens.safetensors", Decoders()
    for _ in range(500):
        lie = copy.deepcopy(chance.choice((about, {**about, "samples": [about]})))
        node = lie
        while isinstance(node[key := chance.choice(list(node))], dict) and chance.random() < 0.7:
            node = node[key]
        if chance.random() < 0.3:
            del node[key]
        else:
            node[key if chance.random() < 0.7 else chance.choice(list(FIELDS))] = chance.choice(values)
        with contextlib.suppress(NarError):
            check_fields(here, lie)
            assert all(lines(lie))
            with contextlib.suppress(NarError):
                recipe_of(here, lie, trust)
                recorded(here, lie)
            list(decode(tokens, lie, trust, decoders=decoders))


def test_what_is_of_the_hub_is_used_from_this_machine_and_never_fetched_for_a_file(hub, tiny, tmp_path):
    files = {file.name: file.read_bytes() for file in tiny.iterdir()}
    hub.repos["me/vq"] = files
    hub.repos["me/tiny"] = {name: data for name, data in files.items() if "tokenizer" not in name}
    parts = ("--model", "me/tiny", "--tokenizer", "me/vq")
    hub.narcli("image", *parts, "--class", 207, "-o", "a.png", "--save-tokens", "--frontier", "none")
    about = read_metadata(tmp_path / "a.png")
    assert about["model"]["commit"] == about["tokenizer"]["commit"] == COMMIT
    for part in ("model", "tokenizer"):
        del about[part]["commit"]
    write(tmp_path / "b.png", about)
    asked, hub.commit = len(hub.requests), "b" * 40  # there are new ones
    hub.narcli("rerun", "a.png", "b.png", "--verify")
    hub.narcli("decode", "a_tokens.safetensors", "--frontier", "none", "-o", "c.png")
    shutil.rmtree(hub.cache / "models--me--vq")
    refused = hub.narcli("rerun", "a.png", code=2) + hub.narcli("decode", "a_tokens.safetensors", code=2)
    assert refused.count("--tokenizer me/vq") == 2
    shutil.rmtree(hub.cache)
    refused = hub.narcli("rerun", "a.png", code=2)
    assert "the model me/tiny of the Hub, which narcli does not know" in refused
    assert f"--model me/tiny --revision {COMMIT}" in refused
    assert len(hub.requests) == asked


def test_an_option_of_zero_is_given(run, here):
    run(*IMAGE, "-o", "a.png")
    refused = run("rerun", "a.png", "--verify", "--seed", "0")
    assert refused.exit_code == 2 and "--seed makes others" in refused.stderr
    assert run("rerun", "a.png", "--quality", "0").exit_code == 2
    run("visualize-order", "-o", "order.png")
    assert run("rerun", "order.png", "--temperature", "0").exit_code == 2


@pytest.mark.parametrize(
    ("shares", "typed", "refused"),
    [
        ([600, 600], {}, True),  # of one document or of several files
        ([500, 500], {}, False),
        ([1] * 1001, {}, True),
        ([600, 600], {"yes": True}, False),
        ([600, 600], {"num": 1}, False),
        ([1, 1], {"num": 600}, True),
        ([1], {"num": 5000}, False),
        ([300], {"classes": "1,2,3,4"}, True),
        ([300], {"classes": "1,2,3"}, False),
        ([300], {"classes": ["1,2", "3,4"]}, True),
        ([300], {"classes": "1,2,3,4", "num": 300}, False),
    ],
)
def test_the_limit_of_samples_counts_all_runs_and_files_together(run, here, about, shares, typed, refused):
    trust = Trust({name: value for name, value in typed.items() if name != "yes"}, "yes" in typed)

    def plan():
        recipes = [recipe_of(here, about | {"num": share}, trust) for share in shares]
        check_many([here], recipes, trust)

    if refused:
        with pytest.raises(UsageError, match="asks for"):
            plan()
    else:
        plan()


def test_a_document_of_several_runs_is_refused_as_a_whole(run, here, about):
    several = {"schema": "narcli.run/1", "runs": [about | {"num": 600}, about | {"num": 600}]}
    (here / "all.json").write_text(json.dumps(several))
    result = run("rerun", "all.json", "--dry-run")
    assert result.exit_code == 2 and "all.json asks for 1,200 samples" in result.stderr
    assert run("rerun", "all.json", "--dry-run", "--yes", "-o", "x/").exit_code == 0
    for name in ("a.json", "b.json"):
        (here / name).write_text(json.dumps({"schema": "narcli.run/1"} | about | {"num": 600}))
    assert "The 2 files ask for 1,200 samples" in run("rerun", "a.json", "b.json", "--dry-run").stderr
