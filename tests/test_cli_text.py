"""`narcli image --prompt` as a person meets it: files, names, metadata, refusals, downloads."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import narcli
from hub_server import HubServer
from narcli import decoding, encoding
from narcli.checkpoints.text_encoder import T5Encoder
from narcli.cli import app, console
from narcli.cli.console import LARGE, Console
from narcli.errors import NarError, UsageError
from narcli.hub import catalog, resolve
from narcli.media.readers import read_metadata

MAIN = "import sys; sys.argv[0] = 'narcli'; from narcli.cli import main; sys.exit(main())"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(encoding, "cache_folder", lambda: tmp_path / "prompts")
    return tmp_path / "here"


@pytest.fixture
def run(tiny_text):
    def invoke(*arguments, model=tiny_text, typed=None):
        chosen = ["--model", str(model)] if model else []
        return CliRunner().invoke(app, ["image", *chosen, *map(str, arguments)], input=typed)

    return invoke


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_prompt_makes_a_picture_that_says_what_it_is_of(run, here, tiny_text):
    result = run("--prompt", "A red   apple", "--seed", 42)
    assert result.exit_code == 0, result.stderr
    stem = "nar-image_a-red-apple_s42"
    assert result.stdout.splitlines() == [f"{stem}.png", f"{stem}_frontier.gif"] == names(here)
    assert result.stderr.startswith("A red apple, seed 42: 7 steps instead of 16, ")
    about = read_metadata(here / f"{stem}.png")
    assert (about["prompt"], about["cleaned_prompt"]) == ("A red   apple", "a red apple")
    assert about["kind"] == "image" and about["sampling"]["cfg_scale"] == 2.5
    assert about["text_encoder"]["dtype"] == "bfloat16" and str(tiny_text) not in json.dumps(about)
    with Image.open(f"{stem}.png") as picture:
        assert picture.text["parameters"].startswith("A red apple\nSteps: 7, Seed: 42, CFG scale: 2.5")
    frontier = read_metadata(here / f"{stem}_frontier.gif")
    assert frontier["prompts"] == [{"prompt": "A red   apple", "cleaned_prompt": "a red apple"}]
    pipe = narcli.load(tiny_text)
    (again,) = pipe.images(prompts=about["prompt"], seed=about["seed"], **about["sampling"])
    assert again.metadata["tokens_sha256"] == about["tokens_sha256"]


def test_the_built_in_model_draws_what_the_words_say(run, here, tmp_path, monkeypatch):
    monkeypatch.setattr(resolve, "_settings_file", lambda: tmp_path / "models.json")
    monkeypatch.delenv("NARCLI_TEXT_MODEL", raising=False)
    wanted = {"a red apple": 0, "a blue square": 2}  # and the channel that is largest then
    arguments = [word for prompt in wanted for word in ("--prompt", prompt)]
    result = run(*arguments, "--seed", 0, "--frontier", "none", "--offline", model=None)
    assert result.exit_code == 0, result.stderr
    for prompt, channel in wanted.items():
        path = here / f"nar-image_{prompt.replace(' ', '-')}_s0.png"
        about = read_metadata(path)
        assert about["model"]["name"] == "emoji-text" and about["prompt"] == prompt
        with Image.open(path) as picture:
            colours = np.array(picture.convert("RGB"), int).reshape(-1, 3)
        drawn = colours[colours.min(1) < 200]  # not the white around
        assert len(drawn) > len(colours) / 5
        others = np.delete(drawn, channel, 1).max(1)
        assert np.median(drawn[:, channel] - others) > 40


def test_many_prompts_are_one_run(run, here):
    (here / "list.csv").write_text("id,Prompt\n1,two dogs\n2,A red apple!\n")
    arguments = ("--prompt", "a red apple", "--prompt", "-", "--prompt-file", "list.csv", "-n", 2)
    result = run(*arguments, "--seed", 1, "--grid", "--json", "--batch-size", 3, typed="cat\n")
    document = json.loads(result.stdout)
    assert [(sample["cleaned_prompt"], sample["seed"]) for sample in document["samples"]] == [
        (prompt, seed) for prompt in ("a red apple", "cat", "two dogs", "a red apple!") for seed in (1, 2)
    ]
    files = [Path(sample["file"]).stem for sample in document["samples"]]
    assert files == [
        *("nar-image_a-red-apple_s1", "nar-image_a-red-apple_s2", "nar-image_cat_s1", "nar-image_cat_s2"),
        *("nar-image_two-dogs_s1", "nar-image_two-dogs_s2"),
        *("nar-image_a-red-apple_s1_1", "nar-image_a-red-apple_s2_1"),
    ]
    assert set(document["seconds"]) == {"import", "load", "encode", "sample", "decode", "write", "total"}
    assert document["seconds"]["encode"] > 0
    sheet = read_metadata(here / "nar-image_a-red-apple_s1_grid.png")
    assert len(sheet["prompts"]) == sheet["prompts_in_all"] == 4


def test_names_may_hold_the_prompt(run, here):
    run("--prompt", "a red apple", "--seed", 1, "-o", "{prompt}/{seed}.png", "--frontier", "none")
    assert (here / "a-red-apple" / "1.png").exists()


def test_what_is_cut_is_shown(run):
    result = run("--prompt", "a red apple on a wooden table", "--frontier", "none", "-q")
    assert result.exit_code == 0
    cut = "The prompt 'a red apple on a wooden table' is longer than the model takes"
    assert result.stderr == f"warning: {cut}; dropped: 'table'\n"
    assert read_metadata(Path(result.stdout.strip()))["dropped"] == "table"


def test_a_list_of_prompts_that_is_too_long_for_the_metadata_is_counted(run, here, monkeypatch):
    monkeypatch.setattr("narcli.runs.sinks.MAX_SUBJECTS", 120)
    run("--prompt", "one", "--prompt", "two", "--prompt", "three", "-o", "a.png")
    about = read_metadata(here / "a_frontier.gif")
    assert [each["prompt"] for each in about["prompts"]] == ["one", "two"] and about["prompts_in_all"] == 3


MISUSE = [
    (["--prompt", "a", "--class", 207], "exclude each other"),
    (["--prompt", ""], "empty"),
    (["--prompt", "a\x07"], "U+0007"),
    (["--prompt", "猫"], "Nothing is left"),
    (["--prompt-file", "none.txt"], "no file none.txt"),
    (["--class", 207, "--text-device", "cpu"], "--text-device goes with --prompt"),
    (["--class", 207, "--text-encoder", "x"], "--text-encoder goes with --prompt"),
    (["--prompt", "a", "--text-device", "gpu"], "no device 'gpu'"),
    (["--prompt", "a", "--text-encoder", "flan-t5-x"], "no model 'flan-t5-x'"),
    (["--prompt", "a", "--text-encoder", "vq16-t2i"], "not a text encoder"),
    (["--prompt", "a", "-o", "{class}.png"], "no field {class}"),
]


@pytest.mark.parametrize(("arguments", "message"), MISUSE)
def test_misuse_exits_2_before_anything_heavy(run, here, arguments, message, monkeypatch):
    monkeypatch.setattr("narcli.hub.sources.Source.fetch", lambda *_, **__: pytest.fail("too late"))
    result = run(*arguments)
    assert (result.exit_code, result.stdout, names(here)) == (2, "", [])
    assert message in result.stderr


def test_models_of_another_kind_are_refused(run, tiny, monkeypatch, tmp_path):
    result = run("--prompt", "a", model=tiny)
    assert result.exit_code == 2 and "narcli image --class" in result.stderr
    result = run("--class", 207)
    assert result.exit_code == 2 and "narcli image --prompt" in result.stderr
    monkeypatch.setattr(resolve, "_settings_file", lambda: tmp_path / "models.json")
    monkeypatch.setenv("NARCLI_TEXT_MODEL", str(tiny))  # the flag decides which default is taken
    result = run("--prompt", "a", model=None)
    assert result.exit_code == 2 and "tiny is a model of images from classes" in result.stderr


def test_the_encoder_is_gone_before_the_model_is_loaded(run, monkeypatch):
    events = []
    encode, load = T5Encoder.encode_all, decoding.load_transformer
    monkeypatch.setattr(T5Encoder, "encode_all", lambda *a: events.append("encode") or encode(*a))
    monkeypatch.setattr(decoding, "load_transformer", lambda *a, **k: events.append("load") or load(*a, **k))
    run("--prompt", "a", "--prompt", "b", "--frontier", "none")
    assert events == ["encode", "load"]


# --- downloads -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("YES\n", 0), ("n\n", 1), ("", 1)])
def test_a_person_is_asked_before_a_large_download(monkeypatch, capsys, answer, code):
    import io

    monkeypatch.setattr(console, "is_terminal", lambda stream: True)
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    sizes = {"nar-xl-t2i-256": 3_300_000_000, "flan-t5-xl": 11_400_000_000}
    try:
        Console(quiet=True).approve_download(sizes)
        assert code == 0
    except NarError as error:
        assert (error.exit_code, error.message) == (code, "Nothing was downloaded.")
    said = "14.7 GB to download (nar-xl-t2i-256 3.3 GB, flan-t5-xl 11.4 GB). Go on? [y/N] "
    assert capsys.readouterr().err == said


def test_nobody_is_asked_without_a_terminal_or_for_little(capsys):
    Console().approve_download({"vq16-t2i": LARGE - 1})
    Console().approve_download({})
    with pytest.raises(UsageError, match=r"There are 11\.4 GB to download for flan-t5-xl\.") as caught:
        Console().approve_download({"flan-t5-xl": 11_400_000_000})
    assert caught.value.hint == "Add --yes to allow it." and caught.value.exit_code == 2
    assert capsys.readouterr().err == ""


def test_an_encoder_of_the_hub_is_fetched_with_consent_and_once(tiny_text, here, tmp_path, monkeypatch):
    encoder = {file.name: file.read_bytes() for file in (tiny_text / "text_encoder").iterdir()}
    plain = shutil.copytree(tiny_text, tmp_path / "plain", ignore=shutil.ignore_patterns("text_encoder"))
    hub = HubServer({"me/encoder": encoder | {"flax_model.msgpack": b"x", "README.md": b"x"}})
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))} | {
        "PYTHONPATH": str(Path(narcli.__file__).parents[1]),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": hub.url,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "NO_PROXY": "*",
    }

    def image(*arguments, code=MAIN):
        command = [sys.executable, "-c", code, "image", "--model", plain, "--text-encoder", "me/encoder"]
        command += ["--prompt", "a red apple", "--seed", "1", "--json", "--frontier", "none", *arguments]
        return subprocess.run(
            list(map(str, command)), capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL
        )

    small = MAIN.replace("sys.exit", "import narcli.cli.console as c; c.LARGE = 100; sys.exit")
    try:
        refused = image(code=small)
        assert refused.returncode == 2 and "to download for me/encoder" in refused.stderr
        assert "--yes" in refused.stderr and not any("resolve" in path for _, path, _ in hub.requests)
        first = image("--yes", code=small)
        assert first.returncode == 0, first.stderr
        fetched = {path.rsplit("/", 1)[1] for _, path, _ in hub.requests if "resolve" in path}
        assert fetched == set(encoder)
        shutil.rmtree(next((tmp_path / "hf").rglob("blobs")))  # encoded already: not needed any more
        shutil.rmtree(next((tmp_path / "hf").rglob("snapshots")))
        hub.requests.clear()
        no_encoder = "import sys; sys.modules['transformers'] = None\n" + small
        second = image(code=no_encoder)
        assert second.returncode == 0, second.stderr
        assert [path for _, path, _ in hub.requests] == ["/api/models/me/encoder/revision/main"]
    finally:
        hub.close()
    one, two = (json.loads(done.stdout)["samples"][0] for done in (first, second))
    assert one["tokens_sha256"] == two["tokens_sha256"]
    about = read_metadata(here / one["file"])["text_encoder"]
    assert about == {"name": "me/encoder", "repo": "me/encoder", "commit": hub.commit, "dtype": "bfloat16"}


def test_parts_of_an_encoder_are_fetched_whole():
    from narcli.errors import HubError
    from narcli.hub.selection import choose

    model = catalog.MODELS["flan-t5-xl"]
    parts = [f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    pickles = ["pytorch_model.bin.index.json", *(f"pytorch_model-0000{k}-of-00002.bin" for k in (1, 2))]
    small = ["config.json", "tokenizer_config.json", "tokenizer.json"]
    others = [
        "spiece.model",
        "tf_model-00001-of-00002.h5",
        "flax_model.msgpack",
        "README.md",
        "generation_config.json",
    ]
    whole = [*small, "model.safetensors.index.json", *parts, *pickles, *others]
    assert choose(model, whole) == [*small, "model.safetensors.index.json", *parts]
    assert choose(model, [name for name in whole if name != parts[1]]) == [*small, *pickles]
    assert choose(model, ["config.json", "model.safetensors"]) == ["config.json", "model.safetensors"]
    names = ["config.json", "tokenizer.json", "model.safetensors", "names.txt", "names.safetensors"]
    names = [f"names/{name}" for name in names]
    beside = ["names/model.py", "names/more/names.txt", "others/names.txt"]
    assert choose(model, [*whole, *names[:-1], *beside]) == choose(model, whole)
    assert choose(model, [*whole, *names, *beside]) == [
        *choose(model, whole)[:3],
        *names,
        *choose(model, whole)[3:],
    ]
    with pytest.raises(HubError, match="no whole weights"):
        choose(model, [*small, parts[0], "model.safetensors.index.json"])


def test_a_narcli_folder_of_the_hub_brings_its_encoder():
    from narcli.hub.catalog import Model
    from narcli.hub.selection import choose

    files = ["config.json", "model.safetensors", "tokenizer.safetensors", "text_encoder/config.json"]
    files += ["text_encoder/model.safetensors", "text_encoder/tokenizer_config.json", "README.md"]
    chosen = choose(Model("x", "text", "me/x"), files)
    assert set(chosen) == set(files) - {"README.md"} and chosen[-1] == "model.safetensors"
