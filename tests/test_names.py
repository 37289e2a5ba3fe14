"""Prompts that are read as the nearest name that a model knows."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import narcli
from narcli import encoding
from narcli.checkpoints.names import Names
from narcli.checkpoints.text_encoder import T5Encoder, check_encoder
from narcli.cli import app
from narcli.errors import CheckpointError
from narcli.hub.sources import choose
from narcli.media.readers import read_metadata
from narcli.training.words import word_encoder, word_pieces

NAMES = ("red apple", "pizza", "hot dog")
WORDS = ["red", "apple", "pizza", "slice", "of", "hot", "dog", "##s", *"abcdefghijklmnopqrstuvwxyz"]


def make_names():
    """Names whose vectors are those of their own readings."""
    torch.manual_seed(0)
    tokenizer, kept = word_pieces(["red apple", "slice of pizza", "hot dogs"], WORDS)
    encoder = word_encoder(tokenizer, torch.randn(len(kept), 96), 64, 1)
    encoder.model.eval()
    made = Names(encoder.model, tokenizer, torch.eye(64), torch.zeros(64), torch.zeros(3, 64), NAMES)
    with torch.inference_mode():
        states = [
            encoder.model(input_ids=torch.tensor([tokenizer(name).input_ids])).last_hidden_state[0].mean(0)
            for name in NAMES
        ]
        made.vectors.copy_(torch.nn.functional.normalize(torch.stack(states), dim=1))
    return made


@pytest.fixture
def named(tiny_text, tmp_path, monkeypatch):
    """A model of text whose prompts are read as names."""
    monkeypatch.setattr(encoding, "cache_folder", lambda: tmp_path / "prompts")
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(tiny_text, tmp_path / "named")
    make_names().save(folder / "text_encoder" / "names")
    return folder


def test_a_prompt_is_read_as_the_nearest_name(named):
    encoder = T5Encoder.load(named / "text_encoder", torch.float32)
    plain = T5Encoder(encoder.model, encoder.tokenizer)
    for prompt, name in (
        ("a slice of pizza", "pizza"),
        ("two hot dogs", "hot dog"),
        ("red apple", "red apple"),
    ):
        made = encoder.encode(prompt, 24)
        assert (made.drawn_as, made.dropped) == (name, "")
        assert torch.equal(made.features, plain.encode(name, 24).features)
    assert plain.encode("pizza", 24).drawn_as == ""


def test_a_name_is_itself_whatever_the_encoder_finds():
    names = make_names()
    names.vectors[:] = names.vectors[[2, 2, 1]]  # a pizza looks like a hot dog
    assert [names.nearest(name)[0] for name in NAMES] == list(NAMES)
    assert names.nearest("a pizza")[0] == "hot dog"


def test_the_direction_of_a_vector_counts():
    names = make_names()
    names.vectors[2] *= 100
    assert names.nearest("a slice of pizza")[0] == "pizza"


def test_the_end_of_a_long_prompt_is_dropped():
    name, dropped = make_names().nearest("pizza " * 39 + "hot dog")
    assert name == "pizza" and dropped == "hot dog"


def test_pictures_files_and_notes_tell_the_name(named):
    pipe = narcli.load(named, kind="text", dtype="float32")
    asked = {"seed": 3, "temperature": 0.5}
    (made,) = pipe.images(prompts="A slice of pizza!", **asked)
    (other,) = pipe.images(prompts="pizza", **asked)
    assert torch.equal(made.tokens, other.tokens)
    assert made.metadata["prompt"] == "A slice of pizza!" and made.metadata["drawn_as"] == "pizza"
    words = [
        "image",
        "--model",
        str(named),
        "--prompt",
        "a slice of pizza",
        "--prompt",
        "hot dog",
        "--frontier",
        "none",
    ]
    note = "The prompt 'a slice of pizza' is drawn as 'pizza', the nearest name that is known."
    for more in ([], ["--overwrite"]):  # encoded, and from the cache
        run = CliRunner().invoke(app, [*words, "--seed", "3", *more])
        assert run.exit_code == 0 and run.stderr.count("is drawn as") == 1 and note in run.stderr
        first, second = map(Path, run.stdout.split())
        assert read_metadata(first)["drawn_as"] == "pizza" and read_metadata(second)["drawn_as"] == "hot dog"
    run = CliRunner().invoke(app, [*words, "--quiet", "--overwrite"])
    assert run.exit_code == 0 and not run.stderr
    run = CliRunner().invoke(app, ["rerun", str(first), "--model", str(named), "--dry-run"])
    assert run.exit_code == 0 and "differs" not in run.stderr


def test_names_of_an_encoder_of_the_hub_are_fetched_with_it(named, hub):
    encoder = named / "text_encoder"
    files = {path.relative_to(encoder).as_posix(): path for path in encoder.rglob("*") if path.is_file()}
    hub.repos["me/encoder"] = {name: path.read_bytes() for name, path in files.items()}
    shutil.move(encoder, "elsewhere")
    asked = ["--text-encoder", "me/encoder", "--prompt", "a slice of pizza", "--frontier", "none"]
    hub.narcli("image", "--model", named, *asked, "-o", "pizza.png")
    assert read_metadata(Path("pizza.png"))["drawn_as"] == "pizza"
    fetched = {
        path.split("/resolve/")[1].split("/", 1)[1] for _, path, _ in hub.requests if "/resolve/" in path
    }
    assert fetched == set(files) and "names/names.txt" in fetched
    assert "me/encoder: whole" in hub.narcli("models", "verify", "me/encoder")
    damaged = next((hub.cache / "models--me--encoder").rglob("names.txt"))
    damaged.write_text(damaged.read_text().replace("pizza", "pasta"))
    said = hub.narcli("models", "verify", "me/encoder", code=4)
    assert "Damaged: me/encoder." in said


def test_models_keep_their_names(named, tmp_path):
    found = choose("text", named).fetch(offline=True).encoder.identity
    words = ["models", "convert", str(named), "--output"]
    for more in (["half", "--dtype", "bfloat16"], ["whole"]):
        run = CliRunner().invoke(app, [*words, *more])
        assert run.exit_code == 0, run.stderr
    run = CliRunner().invoke(app, ["models", "convert", "half", "--output", "again"])
    vectors = "text_encoder/names/names.safetensors"
    stored = [load_file(Path(name) / vectors)["vectors"].dtype for name in ("half", "whole", "again")]
    assert stored == [torch.bfloat16, torch.float32, torch.bfloat16]
    modes = {path.stat().st_mode for path in Path("half").rglob("*") if path.is_file()}
    assert len(modes) == 1 and Path("half/text_encoder/names").stat().st_mode == Path("half").stat().st_mode
    names = T5Encoder.load(Path("half") / "text_encoder").names
    assert names.names == NAMES and names.nearest("a slice of pizza")[0] == "pizza"
    shutil.rmtree(named / "text_encoder" / "names")
    assert choose("text", named).fetch(offline=True).encoder.identity != found


@pytest.mark.parametrize("captions", [NAMES, ("red apple", "pizza", "a blue car")])
def test_a_model_trained_on_keeps_names_that_name_all_captions(named, tiny, tmp_path, captions):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    np.save(pictures / "images.npy", np.zeros((3, 8, 8, 3), np.uint8))
    (pictures / "captions.tsv").write_text("\n".join(captions) + "\n")
    words = ["train", "text", str(pictures), "--output", "run", "--start", str(named), "--steps", "1"]
    run = CliRunner().invoke(app, words)
    assert run.exit_code == 0, run.stderr
    kept = captions == NAMES
    assert (T5Encoder.load(Path("run/model/text_encoder")).names is not None) == kept
    assert ("'a blue car' is no name of the encoder" in run.stderr) != kept


def tensors(size, value):
    shapes = {"look.weight": (size, 64), "look.bias": (size,), "vectors": (3, size)}
    return {name: torch.full(shape, value) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("names.txt", None, "names.txt"),
        ("names.txt", "", "has no name"),
        ("names.txt", "red apple\n\npizza\n", "has no name, or a line"),
        ("names.txt", "red apple\npizza\n", "vectors of 2 names and a projection of 64"),
        ("names.safetensors", None, "names.safetensors"),
        ("names.safetensors", {"vectors": torch.zeros(3, 64)}, "vectors of 3 names"),
        ("names.safetensors", {"vectors": torch.tensor(1.0)}, "vectors of 3 names"),
        ("names.safetensors", tensors(0, 0.0), "vectors of 3 names"),
        ("names.safetensors", tensors(64, torch.nan), "not finite"),
        ("names.safetensors", {**tensors(64, 1.0), "look.bias": torch.tensor(1.0)}, "vectors of 3 names"),
        ("model.safetensors", None, "has no model.safetensors"),
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("config.json", "{}", "expected a T5"),
    ],
)
def test_names_that_cannot_be_used_are_refused(named, file, content, words):
    path = named / "text_encoder" / "names" / file
    path.unlink()
    if isinstance(content, dict):
        save_file(content, path)
    elif content is not None:
        path.write_text(content)
    with pytest.raises(CheckpointError, match=words):
        check_encoder(named / "text_encoder")
    run = CliRunner().invoke(app, ["image", "--model", str(named), "--prompt", "pizza"])
    assert run.exit_code == 4 and words in run.stderr.replace("\n", " ")
    run = CliRunner().invoke(app, ["models", "verify", str(named), "--json"])
    assert run.exit_code == 4 and words in run.stdout.replace("\\n", " ") + run.stderr.replace("\n", " ")
