"""`narcli models` and `narcli classes`."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from narcli import registry
from narcli.cli import app

DATA = Path(__file__).parent / "data"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_settings_file", lambda: tmp_path / "config" / "models.json")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for kind in registry.DEFAULT_KINDS:
        monkeypatch.delenv(registry.variable(kind), raising=False)
    return tmp_path


def run(*arguments, code=0):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def cache(tmp_path, repo, file, data, commit="a" * 40):
    """Put a file where the Hub's client keeps it."""
    folder = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    path = folder / "snapshots" / commit / file
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return path


# --- models --------------------------------------------------------------------------------------


def test_the_list_says_what_there_is_and_what_it_takes(here):
    path = cache(here, "FoundationVision/LlamaGen", "vq_ds16_c2i.pt", (DATA / "vq.pt").read_bytes())
    text = run("models", "list")
    rows = {line.split()[0]: line for line in text.splitlines() if line}
    assert "522 MB" in rows["nar-b-256"] and "to fetch" in rows["nar-b-256"]
    assert "yes" in rows["vq16-c2i"] and "1 MB" in rows["vq16-c2i"]
    assert rows["emoji"].startswith("emoji *") and "MIT" in rows["emoji"]
    assert "default text model: none is built in" in text and "\x1b" not in text

    said = json.loads(run("models", "list", "--json"))
    assert said["defaults"] == {"image": "emoji", "text": None, "video": None}
    models = {row["name"]: row for row in said["models"]}
    assert models.keys() == registry.MODELS.keys()
    row = models["vq16-c2i"]
    assert (row["on_disk"], row["path"], row["bytes_to_fetch"]) == (True, str(path), 0)
    assert row["bytes"] == path.stat().st_size and row["commit"] == "a" * 40
    assert models["nar-b-256"]["bytes_to_fetch"] == 522_000_000 and not models["nar-b-256"]["on_disk"]


def test_a_damaged_model_does_not_hide_the_others(here):
    folder = cache(here, "hywang66/LARP-L-long-tokenizer", "model.safetensors", b"x").parent
    (folder / "config.json").write_text("{")
    assert "not valid JSON" in run("models", "list")


def test_defaults_are_shown_chosen_and_forgotten(monkeypatch):
    assert json.loads(run("models", "default", "--json")) == {"image": "emoji", "text": None, "video": None}
    assert run("models", "default", "video", "nar-l-ucf101").split() == ["video", "nar-l-ucf101"]
    assert "nar-l-ucf101" in run("models", "default", "video")
    assert "nar-l-ucf101 *" in run("models", "list")
    assert "none is built in" in run("models", "default", "video", "none")
    monkeypatch.setenv("NARCLI_IMAGE_MODEL", "nar-l-256")
    result = CliRunner().invoke(app, ["models", "default", "image", "nar-b-256"])
    assert "NARCLI_IMAGE_MODEL=nar-l-256" in result.stderr and "nar-l-256" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["image", "nar-b"], "nar-b-256"),
        (["image", "nar-l-ucf101"], "model of videos"),
        (["audio"], "The kinds are image, text, video"),
        (["audio", "emoji"], "The kinds are image, text, video"),
    ],
)
def test_unusable_defaults_are_usage_errors(arguments, expected):
    assert expected in run("models", "default", *arguments, code=2)


def test_conversion_makes_a_folder_that_loads(here):
    shutil.copy(DATA / "c2i.pt", "c2i.pt")
    options = ["--config", DATA / "c2i.json", "--dtype", "bfloat16", "--tokenizer", DATA / "vq.pt"]
    assert run("models", "convert", "c2i.pt", "-o", "out", *options) == "out\n"
    assert {str(t.dtype) for t in load_file("out/model.safetensors").values()} == {"torch.bfloat16"}
    said = json.loads(Path("out/config.json").read_text())
    assert said["transformer"]["grid"] == [4, 4] and said["tokenizer"]["codebook_size"] == 96
    assert "already" in run("models", "convert", "c2i.pt", "-o", "out", code=2)
    again = run("models", "convert", "out", "-o", "out2", "--json")
    assert json.loads(again)["files"].keys() == {p.name for p in Path("out").iterdir()}


def test_conversion_refuses_what_is_no_model_and_leaves_nothing():
    Path("page.pt").write_text("<!doctype html>")
    assert "web page" in run("models", "convert", "page.pt", "-o", "out", code=4)
    assert "not a tokenizer" in run(
        "models", "convert", DATA / "c2i.pt", "-o", "out", "--tokenizer", DATA / "c2i.pt", code=4
    )
    assert {p.name for p in Path().iterdir()} == {"page.pt"}


# --- classes -------------------------------------------------------------------------------------


def test_the_built_in_models_classes_are_listed_with_the_ids_that_lead_to_them():
    lines = run("classes").splitlines()
    assert any("🐕 dog" in line and "151-" in line for line in lines)
    said = json.loads(run("classes", "--json"))
    assert (said["model"], said["table"]) == ("emoji", "emoji") and len(said["classes"]) == len(lines)
    dog = next(row for row in said["classes"] if row["name"] == "dog")
    assert 207 in dog["ids"] and dog["emoji"] == "🐕"


def test_search_shows_what_stands_for_what():
    assert "207  golden retriever → 🐕 dog" in run("classes", "search", "golden").splitlines()
    said = json.loads(run("classes", "search", "golden", "--json"))["classes"]
    assert {row["stands_for"] for row in said if 207 in row["ids"]} == {"golden retriever"}
    assert "Did you mean" in run("classes", "search", "retreiver", code=2)


def test_classes_of_other_models(here, tiny):
    assert run("classes", "search", "crane", "--model", "nar-b-256").splitlines() == [
        "134  crane",
        "517  crane",
    ]
    assert "YoYo" in run("classes", "--model", "nar-l-ucf101")
    assert "🐕 dog" in run("classes", "--model", tiny)
    shutil.copy(DATA / "c2i.pt", "c2i.pt")
    assert run("classes", "--model", "c2i.pt").splitlines()[9] == "9  class 9"


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["search"], 2, "no word"),
        (["dog"], 2, "narcli classes search dog"),
        (["--model", "nar-xl-t2i-256"], 2, "takes a prompt"),
        (["--model", "vq16-c2i"], 2, "is a tokenizer"),
        (["--model", "some/body"], 1, "known once"),
        (["--model", "nonsense"], 2, "There is no model"),
    ],
)
def test_models_without_known_classes(arguments, code, expected):
    assert expected in run("classes", *arguments, code=code)
