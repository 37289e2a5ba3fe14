"""What --model means, and which model is used where none is named."""

import json
import os
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from narcli.checkpoints.folder import has_own_encoder, has_own_tokenizer
from narcli.cli import app
from narcli.errors import CheckpointError, NarError, UsageError
from narcli.hub import catalog, defaults, library
from narcli.hub import resolve as resolving
from narcli.hub.catalog import DEFAULT_KINDS, MODELS, Model
from narcli.hub.defaults import set_default
from narcli.hub.resolve import complete, default_model, resolve
from narcli.hub.sources import choose
from narcli.media.readers import read_metadata
from narcli.training.data import Pictures
from narcli.training.start import load_start

DATA = Path(__file__).parent / "data"
EMOJI_TOKENIZER = "be254bea3d4e146ae3ff865efad46f91b5045a607fc3a237b1da3c2b25becca3"
#: The one before, whose decoder is another.
EMOJI_TOKENIZER_BEFORE = "df960f0b7233b17c33310dca5e33f1d59150461d52d43f39fa78ea5c0fe832e3"


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module in (defaults, resolving):
        monkeypatch.setattr(module, "_settings_file", lambda: tmp_path / "config" / "models.json")
    for kind in DEFAULT_KINDS:
        monkeypatch.delenv(resolving.variable(kind), raising=False)
    return tmp_path / "config" / "models.json"


def refused(name, kind):
    with pytest.raises(UsageError) as caught:
        resolve(name, kind)
    return f"{caught.value.message} {caught.value.hint}"


def test_there_is_a_row_for_every_released_model():
    repos = {row.repo for row in MODELS.values() if row.repo}
    assert repos == {
        *(f"chenfeng1271/NAR-imagenet-256-{size}" for size in ("B", "L", "XXL")),
        *(f"yefly/NAR-imagenet-256-{size}" for size in ("M", "XL")),
        "yefly/NAR-XL-t2i-stage1",
        "yefly/NAR-XL-t2i-stage2",
        "chenfeng1271/NAR-ucf101-256-L",
        "chenfeng1271/NAR-ucf101-256-LP",
        "FoundationVision/LlamaGen",
        "FoundationVision/var",
        "peizesun/llamagen_t2i",
        "hywang66/LARP-L-long-tokenizer",
        "hywang66/LARP-L-long-AR",
        "hywang66/LARP-L-long-AR-FP",
        "Epiphqny/PAR",
        "google/flan-t5-xl",
    }
    for row in MODELS.values():
        assert row.name == row.name.lower() and row.kind in catalog._KINDS
        if row.repo and row.kind in DEFAULT_KINDS:
            assert row.grid and MODELS[row.tokenizer].kind == (
                "video-tokenizer" if row.kind == "video" else "image-tokenizer"
            )


def test_a_registry_name_goes_before_a_folder_of_that_name(tmp_path):
    (tmp_path / "nar-b-256").mkdir()
    assert resolve("NAR-B-256", "image") is MODELS["nar-b-256"]
    assert resolve("./nar-b-256", "image").path == Path("nar-b-256")


def test_repositories_and_files_in_them():
    model = resolve("someone/a.model", "image")
    assert (model.repo, model.file, model.kind) == ("someone/a.model", None, "image")
    model = resolve("someone/thing/sub/last.pt", "video")
    assert (model.repo, model.file, model.page) == (
        "someone/thing",
        "sub/last.pt",
        "https://huggingface.co/someone/thing",
    )


def test_the_repository_of_a_row_is_that_row():
    row = MODELS["nar-b-256"]
    for name in ("chenfeng1271/NAR-imagenet-256-B", "chenfeng1271/nar-imagenet-256-b/last_version.pt"):
        assert resolve(name, "image") == row
    named = resolve("yefly/NAR-imagenet-256-M/other.pt", "image")
    assert named == replace(MODELS["nar-m-256"], file="other.pt") and named.tokenizer == "vq16-c2i"
    assert resolve("chenfeng1271/NAR-imagenet-256-B/other.pt", "image").tokenizer is None
    assert "narcli video" in refused("chenfeng1271/NAR-ucf101-256-L", "image")


def test_released_files_have_the_settings_of_the_released_scripts(tmp_path, tiny):
    shutil.copy(DATA / "c2i.pt", tmp_path / "last.pt")
    released = {"cfg_scale": 4.0, "top_k": 2000}
    assert resolve("./last.pt", "image").defaults == released
    assert complete(resolve("someone/else", "image"), tmp_path / "last.pt").defaults == released
    shutil.copy(DATA / "c2i.json", tmp_path / "config.json")
    assert resolve(tmp_path, "image").defaults == released
    assert resolve(tiny, "image").defaults == {"cfg_scale": 1.5, "top_k": 50}
    assert resolve(tiny / "model.safetensors", "image").defaults == {"cfg_scale": 1.5, "top_k": 50}
    assert resolve(tiny / "model.safetensors", "image").classes == "emoji"


def test_local_files(tmp_path):
    (tmp_path / "runs").mkdir()
    shutil.copy(DATA / "c2i.pt", tmp_path / "runs" / "last.pt")
    model = resolve("runs/last.pt", "image")  # also looks like a repository
    assert (model.name, model.path, model.repo) == ("last", Path("runs/last.pt"), None)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("nar-b", "image", "nar-b-256"),
        ("emojis", "image", "Did you mean emoji"),
        ("./none.pt", "image", "no file or folder"),
        ("none.safetensors", "image", "no file or folder"),
        ("runs/none.pt", "image", "no file or folder"),
        ("a/../b", "image", "no model"),
        ("", "image", "narcli models list"),
        ("x" * 500, "image", "no model"),
        ("https://huggingface.co/a/b", "image", "no model"),
        ("nar-xl-t2i-256", "image", "narcli image --prompt"),
        ("nar-l-ucf101", "text", "narcli video"),
        ("vq16-c2i", "image", "`tokenizer`"),
        ("nar-b-256", "image-tokenizer", "not an image tokenizer"),
    ],
)
def test_what_is_not_meant_is_explained(name, kind, expected):
    assert expected in refused(name, kind)


def test_a_folder_says_what_it_is(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    said = {
        "format": "narcli.model/1",
        "kind": "image",
        "transformer": {"grid": [4, 4]},
        "classes": ["a", "b"],
        "defaults": {"cfg_scale": 2.5},
    }
    (folder / "config.json").write_text(json.dumps(said))
    model = resolve(folder, "image")
    assert (model.name, model.grid, model.classes) == ("mine", (4, 4), ("a", "b"))
    assert model.defaults == {"cfg_scale": 2.5} and model.tokenizer is None
    assert "images from classes" in refused(folder, "video")
    (folder / "tokenizer.safetensors").touch()
    assert resolve(folder, "image-tokenizer").kind == "image-tokenizer"
    assert "not a video tokenizer" in refused(folder, "video-tokenizer")
    (folder / "config.json").write_text(json.dumps(said | {"kind": "video"}))
    assert resolve(folder, "video").kind == "video" and resolve(folder, None).kind == "video"
    assert resolve(folder, "video-tokenizer").kind == "video-tokenizer"
    assert "not an image tokenizer" in refused(folder, "image-tokenizer")
    (folder / "config.json").write_text(json.dumps(said))
    assert complete(Model("x", "image", "a/b", tokenizer="vq16-c2i"), folder).tokenizer is None
    assert has_own_tokenizer(folder / "model.safetensors")


def test_the_built_in_models_are_the_defaults_of_their_kinds():
    assert resolving.defaults() == {"image": "emoji", "text": "emoji-text", "video": "emoji-video"}


def test_a_default_is_remembered_and_the_environment_goes_before_it(monkeypatch, settings):
    set_default("image", "NAR-B-256")
    set_default("video", "nar-lp-ucf101")
    assert resolving.defaults() == {"image": "nar-b-256", "text": "emoji-text", "video": "nar-lp-ucf101"}
    monkeypatch.setenv("NARCLI_IMAGE_MODEL", "nar-l-256")
    assert default_model("image") == "nar-l-256"
    monkeypatch.setenv("NARCLI_IMAGE_MODEL", "")
    set_default("image", None)
    assert default_model("image") == "emoji"
    assert json.loads(settings.read_text()) == {"video": "nar-lp-ucf101"}


def test_a_local_default_is_kept_as_a_whole_path(tmp_path, tiny, monkeypatch):
    shutil.copytree(tiny, tmp_path / "mine")
    set_default("image", "mine")
    monkeypatch.chdir("/")
    assert default_model("image") == str((tmp_path / "mine").resolve())


def test_a_default_without_a_tokenizer_is_refused_and_one_that_is_not_here_is_told(tmp_path, settings):
    shutil.copy(DATA / "c2i.pt", tmp_path / "last.pt")
    with pytest.raises(UsageError, match="last does not bring its tokenizer"):
        set_default("image", "last.pt")
    assert not settings.exists()
    (tmp_path / "runs" / "model").mkdir(parents=True)
    said = []
    set_default("image", "runs/modle", said.append)
    assert said == [
        "No file or folder runs/modle here; taken for a repository of the Hub. Did you mean runs/model?"
    ]
    set_default("image", "nar-b-256", said.append)
    assert len(said) == 1


@pytest.mark.parametrize("fault", ["tokenizer", "classes"])
def test_a_default_with_a_damaged_vocabulary_or_other_classes_is_refused(
    fault, tmp_path, tiny, tiny_text, settings
):
    kind, model = ("text", tiny_text) if fault == "tokenizer" else ("image", tiny)
    shutil.copytree(model, tmp_path / "mine")
    if fault == "tokenizer":
        encoder = tmp_path / "mine" / "text_encoder"
        (encoder / "tokenizer_config.json").unlink()
        (encoder / "tokenizer.json").write_text("{}")
    else:
        said = json.loads((tmp_path / "mine" / "config.json").read_text())
        (tmp_path / "mine" / "config.json").write_text(json.dumps(said | {"classes": ["a", "b"]}))
    with pytest.raises(CheckpointError, match=r"cannot be loaded|its list of names has 2"):
        set_default(kind, "mine")
    assert not settings.exists()


def test_only_usable_defaults_are_remembered(settings):
    for kind, name in (("image", "nope"), ("image", "nar-l-ucf101"), ("audio", "emoji")):
        with pytest.raises(UsageError):
            set_default(kind, name)
    assert not settings.exists()


def test_a_default_that_cannot_work_is_refused_when_it_is_set(tmp_path, tiny, tiny_text, larp, settings):
    (tmp_path / "empty").mkdir()
    shutil.copytree(tiny, tmp_path / "cut")
    (tmp_path / "cut" / "tokenizer.safetensors").write_bytes(b"x")
    (tmp_path / "file.pt").write_bytes(b"no model")
    os.mkfifo(tmp_path / "pipe.pt")
    shutil.copytree(tiny, tmp_path / "piped")
    (tmp_path / "piped" / "tokenizer.safetensors").unlink()
    os.mkfifo(tmp_path / "piped" / "tokenizer.safetensors")
    damaged = [tmp_path / name for name in ("empty", "cut", "file.pt", "pipe.pt", "piped")]
    for path in (*damaged, tiny_text / "text_encoder", larp[1], DATA / "vq.pt", DATA / "t2i.pt"):
        with pytest.raises(CheckpointError) as caught:
            set_default("image", str(path))
        assert caught.value.exit_code == 4
    assert not settings.exists()
    set_default("image", str(tiny))
    assert default_model("image") == str(tiny)


def test_a_default_that_is_gone_is_called_the_default(tmp_path, tiny, settings):
    shutil.copytree(tiny, tmp_path / "mine")
    set_default("image", str(tmp_path / "mine"))
    shutil.rmtree(tmp_path / "mine")
    with pytest.raises(UsageError, match=r"no file or folder .*mine.* It is the default image model"):
        choose("image")


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"image": 3}', b"\xff"])
def test_damaged_settings_are_an_error_that_names_the_file(settings, content):
    settings.parent.mkdir()
    settings.write_bytes(content)
    with pytest.raises(NarError, match=r"models\.json") as caught:
        default_model("image")
    assert "remove it" in caught.value.hint


def test_a_built_in_model_that_is_missing_is_said_to_be(monkeypatch, tmp_path):
    row = Model("gone", "image", path=tmp_path / "gone")
    monkeypatch.setitem(catalog.MODELS, "gone", row)
    with pytest.raises(NarError, match="not part of this installation"):
        resolve("gone", "image")


@pytest.mark.parametrize(
    ("name", "kind"), [("emoji", "image"), ("emoji-text", "text"), ("emoji-video", "video")]
)
def test_a_built_in_model_is_complete(name, kind):
    model = resolve(name, kind)
    assert model.classes == (None if kind == "text" else name)
    assert model.tokenizer == ("emoji" if kind == "text" else None)
    assert has_own_tokenizer(model.path) == (kind != "text")
    assert has_own_encoder(model.path) == (kind == "text")
    assert json.loads((model.path / "config.json").read_text())["name"] == name


def test_a_built_in_model_stands_for_its_tokenizer():
    folder = MODELS["emoji-text"].path
    for name in ("emoji", "emoji-text", "Emoji-Text", folder, folder / "model.safetensors"):
        tokenizer = resolve(name, "image-tokenizer")
        assert (tokenizer.name, tokenizer.path) == ("emoji", MODELS["emoji"].path), name
    assert "not a video tokenizer" in refused("emoji-text", "video-tokenizer")
    assert "not a text encoder" in refused("emoji-text", "text-encoder")
    for model in ("emoji-text", folder, folder / "model.safetensors"):
        files = choose("text", model).fetch(offline=True).about()
        assert files["tokenizer"]["name"] == "emoji" and files["tokenizer"]["sha256"] == EMOJI_TOKENIZER


def test_a_copy_of_a_built_in_model_lacks_a_tokenizer(tmp_path):
    shutil.copytree(MODELS["emoji-text"].path, tmp_path / "mine")
    with pytest.raises(UsageError, match="mine does not bring its tokenizer"):
        choose("text", tmp_path / "mine").fetch(offline=True)
    shutil.copy(MODELS["emoji"].path / "tokenizer.safetensors", tmp_path / "mine")
    assert choose("text", tmp_path / "mine").tokenizer is None


@pytest.mark.parametrize("tokenizer", [[], ["--tokenizer", "emoji-text"], ["--tokenizer", "emoji"]], ids=str)
def test_tokens_of_the_text_model_are_decoded_by_the_tokenizer_that_it_shares(tokenizer):
    before = DATA / "emoji-text-before.safetensors"
    then = read_metadata(before)["tokenizer"]
    assert (then["name"], then["sha256"]) == ("emoji-text", EMOJI_TOKENIZER_BEFORE)
    words = ["decode", str(before), "--frontier", "none", "--dtype", "float32", "-o", "a.png", *tokenizer]
    result = CliRunner().invoke(app, words)
    said = f"warning: The tokenizer emoji is not the one that made {before}: its sha256 differs."
    assert result.exit_code == 0 and (said in result.stderr) is not bool(tokenizer), result.stderr
    now = read_metadata(Path("a.png"))["tokenizer"]
    size = (MODELS["emoji"].path / "tokenizer.safetensors").stat().st_size
    assert now == then | {"name": "emoji", "size": size, "sha256": EMOJI_TOKENIZER}


def test_a_run_of_the_text_model_from_before_is_made_again_with_the_weights_of_now():
    before = str(DATA / "emoji-text-before.safetensors")
    result = CliRunner().invoke(app, ["rerun", before, "--frontier", "none", "--json", "-o", "b.png"])
    assert result.exit_code == 0, result.stderr
    for part in ("model emoji-text", "tokenizer emoji", "text encoder emoji-text"):
        assert f"The {part} is not the one that made {before}" in result.stderr
    made = json.loads(result.stdout)["runs"][0]
    assert (made["tokenizer"]["name"], made["tokenizer"]["sha256"]) == ("emoji", EMOJI_TOKENIZER)
    again = CliRunner().invoke(app, ["rerun", "b.png", "--dry-run", "--json"])
    assert again.exit_code == 0 and "differs" not in again.stderr, again.stderr


@pytest.mark.parametrize("command", ["show", "verify", "pull"])
def test_the_text_model_is_shown_and_checked_with_its_tokenizer(command):
    result = CliRunner().invoke(app, ["models", command, "emoji-text", "--json"])
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    if command == "show":
        assert said["tokenizer"] == "emoji" and said["on_disk"] and "tokenizer" in said["parameters"]
        assert said["memory"]["float32"]["batch_size_1"]["decoding"] > 0
    else:
        assert [row["name"] for row in said["models"]] == ["emoji-text", "emoji"]


def test_the_text_model_is_converted_and_trained_on_with_its_tokenizer(tmp_path):
    folder = MODELS["emoji-text"].path
    made = library.convert(folder, tmp_path / "copy")
    assert sha256((made / "tokenizer.safetensors").read_bytes()).hexdigest() == EMOJI_TOKENIZER
    pictures = Pictures(np.zeros((1, 128, 128, 3), np.uint8), None)
    model, tokenizer, known = load_start(folder, ["text"], pictures, tmp_path)
    assert tokenizer.config.codebook_size == model.config.vocab_size and known.kind == "text"


def test_smaller_models_are_told_from_the_largest_to_the_built_in_one():
    large = MODELS["nar-xl-t2i-512"]
    assert catalog.smaller_models(large, lambda row: True) == ["nar-xl-t2i-256", "emoji-text"]
    images = catalog.smaller_models(MODELS["nar-xl-256"], lambda row: row.name != "nar-l-256")
    assert images == ["nar-xxl-256", "nar-m-256", "nar-b-256", "emoji"]


def test_the_settings_are_in_the_users_config_folder(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = resolving._settings_file()
    assert path.name == "models.json" and "narcli" in str(path)
    assert os.name == "nt" or tmp_path in path.parents or path.is_relative_to(Path.home())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("emjoi", "emoji"),
        ("emoji ", "emoji"),
        ("emoji/", "emoji"),
        ("nar-b-265", "nar-b-256"),
        ("./runs/nar/modle", "runs/nar/model"),
        ("RUNS\\nar\\model", "runs/nar/model"),
        ("./Runs/nar/model/", "runs/nar/model"),
        ("~/runs/nra/model", "runs/nar/model"),
    ],
)
def test_a_name_that_is_nowhere_is_offered_the_nearest_name_or_path(name, expected, tmp_path, monkeypatch):
    (tmp_path / "runs" / "nar" / "model").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    said = refused(name, "image")
    assert "Did you mean" in said and expected in said


@pytest.mark.parametrize("name", ["foo", "./foo", "emoji-video"])
def test_an_unusable_default_says_who_chose_it(name, settings, monkeypatch):
    monkeypatch.setenv("NARCLI_IMAGE_MODEL", name)
    with pytest.raises(UsageError, match="NARCLI_IMAGE_MODEL names it"):
        resolving.resolve_default("image", "image")
    monkeypatch.delenv("NARCLI_IMAGE_MODEL")
    resolving._settings_file().parent.mkdir(parents=True, exist_ok=True)
    resolving._settings_file().write_text(json.dumps({"image": name}))
    with pytest.raises(UsageError, match=r"default image model in .*models\.json"):
        resolving.resolve_default("image", "image")


def test_an_unknown_kind_is_offered_the_nearest():
    with pytest.raises(UsageError) as caught:
        default_model("vidoe")
    assert "Did you mean video?" in caught.value.hint
