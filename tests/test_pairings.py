"""Files, orders and settings that do not go together: one sentence, an exit code, a next step."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from narcli.checkpoints.convert import convert
from narcli.cli import app
from narcli.media.readers import read_metadata
from narcli.models.vq import VQConfig, VQTokenizer
from narcli.order import MAX_SCALES, named, scales
from narcli.viz import frontier

DATA = Path(__file__).with_name("data")
RELEASED = {
    "llamagen": ("peers/llamagen_c2i.pt", "peers/llamagen_c2i.json"),
    "llamagen-text": ("peers/llamagen_t2i.pt", "peers/llamagen_t2i.json"),
    "par": ("peers/par_4x.pt", "peers/par_4x.json"),
    "nar": ("c2i.pt", "c2i.json"),
    "larp-ar": ("video-peers/larp_ar.safetensors", "video-peers/larp_ar.config.json"),
    "frames": ("video-peers/larp_ar_fp.safetensors", "video-peers/larp_ar_fp.config.json"),
    "larp": ("larp.safetensors", "larp.config.json"),
    "nar-frames": ("video-peers/nar_fp.pth", None),
    "var": ("var/var.pth", None),
    "var-vq": ("var/var_vae.pth", None),
}
QUIET = ["--frontier", "none", "--dtype", "float32", "--scale", 1]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A folder: the golden files in folders of their own, and narcli folders (``own-...``) made of them."""
    root = tmp_path_factory.mktemp("pairings")
    for name, (file, config) in RELEASED.items():
        (root / name).mkdir()
        shutil.copy(DATA / file, root / name)
        if config:
            shutil.copy(DATA / config, root / name / "config.json")
    torch.manual_seed(0)
    vq = VQTokenizer(VQConfig(32, (1, 1), 1, 32, codebook_size=64))
    (root / "vq").mkdir()
    torch.save({"model": vq.state_dict()}, root / "vq" / "vq.pt")
    for name, tokenizer in (("llamagen", "vq"), ("par", "vq"), ("nar", "vq"), ("var", "var-vq")):
        convert(root / name, root / f"own-{name}", tokenizer=root / tokenizer)
    for shard in ("model-00001-of-00002.pt", "consolidated.01.pt"):
        (root / shard[:5]).mkdir()
        shutil.copy(DATA / "peers/llamagen_c2i.pt", root / shard[:5] / shard)
    for label in "ab":
        (root / "pictures" / label).mkdir(parents=True)
        for shade in range(2):
            Image.new("RGB", (16, 16), (90 * shade, 20, 200)).save(root / f"pictures/{label}/{shade}.png")
    return root


@pytest.fixture(autouse=True)
def here(models, tmp_path, monkeypatch):
    """A folder in which the models have short names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for path in models.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def command(*words, code=0):
    """Stdout of a command, or the words of its error, which has at most two lines and a hint."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    if code == 0:
        return result.stdout
    lines = [line for line in result.stderr.splitlines() if not line.startswith("warning:")]
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[0].endswith("."), result.stderr
    assert lines[1].startswith("  ") and lines[1].strip(), result.stderr
    return " ".join(line.strip() for line in lines)


def image(model, tokenizer=None, *more, subject=("--class", 1)):
    parts = ["--model", model] + (["--tokenizer", tokenizer] if tokenizer else [])
    return "image", *parts, *subject, *QUIET, *more


def video(model, tokenizer, *more):
    return "video", "--model", model, "--tokenizer", tokenizer, "--class", 1, *QUIET, *more


def train(*more):
    return "train", "nar", "pictures", "-o", "run", "--size", 16, "--steps", 1, *more


def compare(*models, orders=None):
    words = [word for model in models for word in ("--model", model)] + ["--class", 1, "--repeats", 1]
    return "compare", *words, "--batch-sizes", 1, *(["--orders", orders] if orders else [])


TEXT = ("--prompt", "a dog")
BENCH = ("--repeats", 1, "--batch-sizes", 1)
WRONG = {
    # Orders.
    "PAR with zipar": (2, image("par", "vq", "--order", "zipar:2"), "zipar:2, .* in the order par:4"),
    "PAR with raster": (2, image("par", "vq", "--order", "raster"), "Give --order par:4"),
    "LlamaGen with par": (2, image("llamagen", "vq", "--order", "par:4"), "in the order raster"),
    "LlamaGen with par of no square": (2, image("llamagen", "vq", "--order", "par:5"), "order raster"),
    "LlamaGen with nar": (2, image("own-llamagen", None, "--order", "nar"), "in the order raster"),
    "NAR with zipar": (2, image("nar", "vq", "--order", "zipar:8"), "zipar:8, .* in the order nar"),
    "released NAR with zipar": (2, image("nar-b-256", None, "--order", "zipar:8", "--dry-run"), "order nar"),
    "built-in NAR with zipar": (2, ("image", "--class", "dog", "--order", "zipar:8"), "in the order nar"),
    "window too large": (2, image("llamagen", "vq", "--order", "zipar:8"), "is 8 .* 8x8, expected 2 to 7"),
    "window too small": (2, image("llamagen", "vq", "--order", "zipar:1"), "is 1 .* expected 2 to 7"),
    "released window": (2, image("llamagen-b-256", None, "--order", "zipar:16", "--dry-run"), "2 to 15"),
    "no order": (2, image("llamagen", "vq", "--order", "diagonal"), "no order 'diagonal'. Choose one of nar"),
    "no window": (2, image("llamagen", "vq", "--order", "zipar"), "no order 'zipar'"),
    "VAR with nar": (2, image("var", "var-vq", "--order", "nar"), "Give --order var:1-2-3-4"),
    "VAR with zipar": (2, image("var-d16", None, "--order", "zipar:2", "--dry-run"), "scale by scale"),
    # Settings.
    "VAR with an interval": (2, image("var", "var-vq", "--cfg-interval", 3), "--cfg-interval is 3, but"),
    "released VAR with an interval": (
        2, image("var-d16", None, "--cfg-interval", 3, "--dry-run"), "--cfg-interval is 3, but"
    ),
    "LlamaGen smoothed": (2, image("llamagen", "vq", "--more-smooth"), "--more-smooth is True, but"),
    "NAR smoothed": (2, ("image", "--class", "dog", "--more-smooth"), "--more-smooth is True, but"),
    # Model and tokenizer.
    "VAR with VQ": (4, image("var", "vq"), "scales of VAR, and the tokenizer vq/?.* grids without scales"),
    "LlamaGen with VAR's": (4, image("llamagen", "var-vq"), "tokenizer var-vq.* is for the scales of VAR"),
    "NAR with VAR's": (4, image("nar", "var-vq"), "is for the scales of VAR. They do not belong together"),
    "released, before the download": (
        4, image("llamagen-b-256", "var-vq16", "--dry-run"), "var-vq16 is for the scales of VAR"
    ),
    "released VAR, before the download": (
        4, image("var-d16", "vq16-c2i", "--dry-run"), "vq16-c2i is for grids without scales"
    ),
    "VAR without tokenizer": (2, image("var"), "does not bring its tokenizer. Add --tokenizer.* var-vq16"),
    "VAR's tokenizer as model": (4, image("var-vq", "var-vq"), "multi-scale .* Give it as --tokenizer"),
    "VAR's tokenizer as model alone": (4, image("var-vq/var_vae.pth"), "Give it as --tokenizer"),
    "VAR as tokenizer": (4, image("var", "var/var.pth"), "a VAR model, not a tokenizer. Give it as --model"),
    "released tokenizer as model": (2, image("var-vq16"), "an image tokenizer.* Give it as --tokenizer"),
    # Kinds.
    "NAR's frame prediction": (4, video("nar-frames", "larp"), "of frame prediction.*larp-ar-k600"),
    "NAR's frame prediction converted": (4, ("models", "convert", "nar-frames", "-o", "x"), "larp-ar-k600"),
    "LARP-AR for images": (4, image("larp-ar", "larp"), "videos of classes.* Use `narcli video --class`"),
    "LlamaGen for videos": (4, video("llamagen", "larp"), "images of classes.* Use `narcli image --class`"),
    "VAR for videos": (4, video("var", "larp"), "Use `narcli image --class`"),
    "video in a dry run": (4, video("llamagen", "larp", "--dry-run"), "Use `narcli image --class`"),
    "goes on, with a class": (4, video("frames", "larp"), "Use `narcli video --frames-from`"),
    "text with a class": (4, image("llamagen-text", "vq"), "from text;.* Use `narcli image --prompt`"),
    "classes with a prompt": (4, image("llamagen", "vq", subject=TEXT), "Use `narcli image --class`"),
    "VAR with a prompt": (2, image("own-var", subject=TEXT), "Use `narcli image --class`"),
    "released text with a class": (2, image("llamagen-xl-t2i-256"), "Use `narcli image --prompt`"),
    "released classes with a prompt": (2, image("var-d16", subject=TEXT), "Use `narcli image --class`"),
    "released video as image": (2, image("larp-ar-ucf101"), "Use `narcli video --class`"),
    # Shards.
    "one shard of two": (4, image("model", "vq"), "one shard of a model in 2, number 1. .* without shards"),
    "one rank": (4, image("conso/consolidated.01.pt", "vq"), "one shard of a model, of one rank"),
    # Training.
    "training from VAR": (4, train("--start", "own-var"), "own-var is a VAR model"),
    "training with VAR's tokenizer": (2, train("--tokenizer", "var-vq"), "multi-scale tokenizer"),
    "training zipar": (2, train("--tokenizer", "vq", "--order", "zipar:4"), "is zipar:4.*Train raster"),
    "training var": (2, train("--tokenizer", "vq", "--order", "var"), "--order is var, expected nar, raster"),
    "training par of no square": (2, train("--tokenizer", "vq", "--order", "par:5"), "cut into 5 regions"),
    "training no order": (2, train("--tokenizer", "vq", "--order", "spiral"), "no order 'spiral'"),
    # Comparison and measurement.
    "compared in an order of no model": (
        2, compare("own-llamagen", "own-par", orders="raster,nar"), "order nar; .* Add a --model"
    ),
    "compared in another order": (2, compare("own-llamagen", orders="nar"), "in the order raster"),
    "compared with itself": (2, compare("own-llamagen", orders="raster,raster"), "Give each order once"),
    "compared, window": (2, compare("own-llamagen", orders="raster,zipar:9"), "expected 2 to 7"),
    "compared, no order": (2, compare("own-llamagen", orders="raster,spiral"), "no order 'spiral'"),
    "compared, smoothed": (2, (*compare("own-var", "own-nar"), "--more-smooth"), "--more-smooth is True"),
    "bench of VAR in raster": (2, ("bench", "--model", "var-d16", "--orders", "raster"), "Measure var"),
    "bench of VAR, plain": (2, ("bench", "--model", "var-d16", "--orders", "plain"), "Measure var"),
    "bench of LlamaGen in var": (2, ("bench", "--model", "own-llamagen", "--orders", "var"), "order raster"),
    "bench, window": (2, ("bench", "--model", "own-llamagen", "--orders", "zipar:9"), "expected 2 to 7"),
    "shown, sides": (2, ("visualize-order", "-g", "4x4", "--order", "var"), "var:1-2-4 names other sides"),
}  # fmt: skip


@pytest.mark.parametrize(("code", "words", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_go_together_is_refused_in_a_sentence(code, words, message):

    said = command(*words, code=code)
    assert re.search(message, said), said
    assert not list(Path().glob("*.png"))


def test_smoothing_is_no_option_of_videos():
    result = CliRunner().invoke(app, ["video", "--class", "1", "--more-smooth"])
    assert result.exit_code == 2 and "No such option" in result.stderr


# --- runs that go through --------------------------------------------------------------------------

RUNS = {
    "raster": ("own-llamagen", None),
    "zipar:3": ("own-llamagen", "zipar:3"),
    "par:4": ("own-par", None),
    "var:1-2-3-4": ("own-var", None),
}


@pytest.mark.parametrize(("order", "model", "given"), [(name, *run) for name, run in RUNS.items()], ids=RUNS)
def test_a_run_is_shown_rehearsed_repeated_and_decoded(order, model, given):
    words = image(model, None, *(["--order", given] if given else []), "--seed", 3)
    rehearsed = json.loads(command(*words, "--dry-run", "--json"))
    command(*words, "--save-tokens", "-o", "a.png")
    about = read_metadata(Path("a.png"))
    assert about["order"] == order and about["steps"] == rehearsed["steps"]
    assert ("CFG scale: 1.5 (VAR's, from 0)," in Image.open("a.png").text["parameters"]) == (
        model == "own-var"
    )
    assert rehearsed["cells"] == named(order, tuple(about["grid"])).cells
    command("rerun", "a.png", "--model", model, "--verify", "-o", "b.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    command("decode", "a_tokens.safetensors", "--tokenizer", model, "--dtype", "float32", "-o", "c.png",
            "--frontier-mode", "decode")  # fmt: skip
    assert Image.open("c.png").tobytes() == Image.open("a.png").tobytes()
    assert Path("c_frontier.gif").exists()
    shown = json.loads(command("models", "show", model, "--json"))
    assert json.loads(command("models", "verify", model, "--json"))["ok"] and shown["name"] == model


def test_a_smoothed_picture_is_made_again_and_its_tokens_are_not_decoded():
    command(*image("own-var", None, "--more-smooth", "--seed", 3, "--save-tokens", "-o", "a.png"))
    command(*image("own-var", None, "--seed", 3, "-o", "plain.png"))
    assert read_metadata(Path("a.png"))["sampling"]["more_smooth"] is True
    assert Image.open("a.png").tobytes() != Image.open("plain.png").tobytes()
    command("rerun", "a.png", "--model", "own-var", "--verify", "-o", "b.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    command("rerun", "plain.png", "--model", "own-var", "--more-smooth", "-o", "c.png")
    assert Image.open("c.png").tobytes() == Image.open("a.png").tobytes()
    assert "--more-smooth" in command("decode", "a_tokens.safetensors", "--tokenizer", "own-var", code=2)


def test_the_frontier_of_a_smoothed_picture_shows_the_mixtures(monkeypatch):
    seen, draw = [], frontier.run_frames

    def run_frames(order, clips, partials, **options):
        seen.extend(clips[0].tobytes() for (clips,) in partials)
        return draw(order, clips, partials, **options)

    monkeypatch.setattr(frontier, "run_frames", run_frames)
    words = "--model", "own-var", "--class", 1, "--dtype", "float32", "--scale", 1, "--seed", 3
    command("image", *words, "--more-smooth", "-o", "a.png")
    assert len(seen) == 4 and seen[-1] == Image.open("a.png").tobytes() and Path("a_frontier.gif").exists()


KINDS = {
    "vq": "image-tokenizer",
    "var-vq/var_vae.pth": "image-tokenizer",
    "larp": "video-tokenizer",
    "llamagen": "image",
    "llamagen-text": "text",
    "larp-ar/larp_ar.safetensors": "video",
    "frames": "frames",
    "var": "image",
    "own-var/tokenizer.safetensors": "image-tokenizer",
}


@pytest.mark.parametrize("name", KINDS)
def test_a_released_file_is_shown_and_verified_as_what_it_is(name):
    shown = json.loads(command("models", "show", name, "--json"))
    assert shown["kind"] == KINDS[name] and sum(shown["parameters"].values()) > 1000
    checked = json.loads(command("models", "verify", name, "--json"))
    assert checked["ok"] and [part["error"] for part in checked["models"]] == [None]


def test_a_cut_tokenizer_is_damaged():
    Path("cut.pt").write_bytes(Path("vq/vq.pt").read_bytes()[:-200])
    result = CliRunner().invoke(app, ["models", "verify", "cut.pt"])
    assert result.exit_code == 4 and "Damaged: cut." in result.stderr


def test_steps_are_compared_with_raster_order_where_they_are_fewer():
    for model, words in (("own-llamagen", "64, at most 1"), ("own-var", "4 instead of 16, at most 16")):
        assert words in command("models", "show", model)
        words = words.split(",")[0]
        assert re.search(f"steps +{words}\n", command(*image(model, None, "--seed", 3, "--dry-run")))
        result = CliRunner().invoke(app, [*map(str, image(model, None, "--seed", 3, "-o", "a.png"))])
        assert f"seed 3: {words.replace(' ', ' steps ', 1) if ' ' in words else words + ' steps'}, " in (
            result.stderr
        )


def test_tokens_are_decoded_by_a_tokenizer_of_their_family_only():
    for model in ("own-llamagen", "own-var"):
        command(*image(model, None, "--seed", 3, "--save-tokens", "-o", f"{model}.png"))
    for tokens, tokenizer, words in (
        ("own-var", "vq", "scales of VAR, and the tokenizer"),
        ("own-llamagen", "own-var", "is for the scales of VAR"),
    ):
        message = command("decode", f"{tokens}_tokens.safetensors", "--tokenizer", tokenizer, code=4)
        assert words in message


def test_a_file_of_another_order_is_not_equal():
    command(*image("own-var", None, "--seed", 3, "-o", "a.png"))
    result = CliRunner().invoke(app, ["rerun", "a.png", "--model", "own-nar", "--verify", "-o", "b.png"])
    assert result.exit_code == 1 and "its order is var:1-2-3-4, and here nar." in result.stderr


def test_a_zipar_picture_is_made_again_by_raster_models_only():
    command(*image("own-llamagen", None, "--order", "zipar:3", "--seed", 3, "-o", "a.png"))
    said = command("rerun", "a.png", "--model", "own-nar", code=2)
    assert "--order is zipar:3" in said and "Give --order nar" in said
    command("rerun", "a.png", "--model", "own-nar", "--order", "nar", "-o", "b.png")
    assert read_metadata(Path("b.png"))["order"] == "nar"


def test_var_and_nar_are_compared_and_not_as_trained_alike():
    words = (*compare("own-var", "own-nar", orders="var,nar"), "--seed", 1, "--dtype", "float32", "--json")
    about = json.loads(command(*words))
    assert [each["order"] for each in about["orders"]] == ["var:1-2-3-4", "nar"]
    assert not about["trained_alike"] and "record of its training" in about["not_alike"]


def test_var_is_measured_in_its_own_order():
    out = command("bench", "--model", "own-var", "--orders", "var", *BENCH, "--json")
    assert json.loads(out)["cases"][0]["passes"] == 4


# --- sides of scales in the name of an order -------------------------------------------------------


def test_other_sides_than_the_released_are_in_the_name():
    assert scales((1, 2, 3, 4)).name == "var:1-2-3-4"
    assert named("var", (16, 16)).name == "var" and named("var", (16, 16)) == scales(
        (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    )
    assert named("var:1-2-4", (4, 4)).panels == ((1, 1), (2, 2), (4, 4))


@pytest.mark.parametrize(
    "name", ["var:", "var:1-", "var:-1", "var:1,2", "var:12345", "var:" + "1-" * MAX_SCALES + "1"]
)
def test_names_of_no_sides_are_refused(name):
    said = command("visualize-order", "-g", "1x1", "--order", name, code=2)
    assert "There is no order" in said


@pytest.mark.parametrize("sides", ["1-3-2", "0-2", "1-2", "5"])
def test_sides_that_do_not_end_in_the_grid_are_refused(sides):
    said = command("visualize-order", "-g", "4x4", "--order", f"var:{sides}", code=2)
    assert "has no scales up to the grid 4x4" in said


def test_many_large_scales_are_not_drawn():
    name = "var:" + "-".join(["500"] * MAX_SCALES)
    assert "too large to show" in command("visualize-order", "-g", "500x500", "--order", name, code=2)
    Path("a.json").write_text(
        json.dumps(
            {"schema": "narcli.run/1", "command": "visualize-order", "order": name, "grid": [500, 500]}
        )
    )
    assert "too large to show" in command("rerun", "a.json", code=2)
