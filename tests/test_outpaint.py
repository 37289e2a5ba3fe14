"""Pictures and clips that go on: `--init`, what is kept of it, and what the metadata and pictures say."""

import json
import os
import shutil
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import narcli
from conftest import DATA, command, small_transformer
from narcli import Recipe, devices, outpaint
from narcli.checkpoints.load import load_tokenizer
from narcli.cli import app
from narcli.errors import CheckpointError, UsageError
from narcli.kernels import draw, native, prepare
from narcli.media.inits import about_init, init_of, read_cells, write_cells
from narcli.media.metadata import unpack_tokens
from narcli.media.readers import read_metadata
from narcli.media.writers import write_frames, write_gif, write_mp4
from narcli.order import named
from narcli.sampling import SamplingSettings, draw_plain, sample, uniform_draws
from narcli.settings.keep import Init, Keep
from narcli.viz.frontier import filmstrip, run_frames
from narcli.viz.style import FRONTIER, GIVEN, caption

QUIET = ["--frontier", "none", "--dtype", "float32", "--scale", 1]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shade(size=(8, 8), number=0):
    """A picture that differs from place to place, and from those of other numbers."""
    y, x = np.mgrid[: size[1], : size[0]]
    across, down = 255 // max(1, size[0] - 1), 255 // max(1, size[1] - 1)
    return Image.fromarray(np.stack([x * across, y * down, x * 0 + 40 * number], -1).astype(np.uint8))


def codes_of(model, picture):
    """Tokens of a picture of the model's size, by the tokenizer alone."""
    pixels = torch.from_numpy(np.asarray(picture, np.float32)).movedim(-1, 0)[None] / 255 * 2 - 1
    return load_tokenizer(model).encode(pixels)[0]


def init_in(path):
    """Cells and tokens of the given picture that a file records."""
    init = init_of(read_metadata(Path(path))["init"], path)
    return init.cells, init.tokens


def tokens_in(path, cells=16):
    about = read_metadata(Path(path))
    return torch.tensor(unpack_tokens(path, about, cells))


def test_a_picture_is_encoded_with_the_settings_of_a_card(tiny, monkeypatch):
    entered = []

    @contextmanager
    def computing(device, dtype):
        entered.append((device.type, dtype))
        yield

    monkeypatch.setattr(devices, "computing", computing)
    outpaint.encode(shade(), Keep(keep=0.5), load_tokenizer(tiny), named("nar", (4, 4)))
    assert entered == [("cpu", torch.float32)]


# --- sampling ------------------------------------------------------------------------------------


def network(order, grid=(4, 5)):
    return small_transformer(grid, 3, order=order).eval()


def by_hand(model, order, label, seed, settings, known):
    """Draw each cell that is not known, pass by pass, from a run of the plain network without a cache."""
    context, uniform = known.clamp(min=0)[None].clone(), uniform_draws([seed], order.cells)
    rows = model.condition(torch.tensor([label]))
    for index, step in enumerate(order.passes):
        # Later cells hold wrong tokens, which nothing may depend on.
        seen = torch.full_like(context, 7)
        before = [cell for earlier in order.passes[:index] for cell in earlier.cells]
        seen[:, before] = context[:, before]
        if order.name.startswith("zipar"):  # feeds places twice: no pass over all of it at once
            state = model.start(rows, 1, None, order)
            for earlier in range(index + 1):
                if order.passes[earlier].feeds:
                    model.feed(state, earlier, seen[:, order.generation])
            logits = model.predict(state, index)
        else:
            logits = model.forward_train(rows, seen, order=order)[:, list(step.cells)]
            if settings.cfg_scale > 1:
                free = model.condition.unconditional(torch.tensor([label]))
                without = model.forward_train(free, seen, order=order)[:, list(step.cells)]
                logits = without + settings.cfg_scale * (logits - without)
        cells = list(step.cells)
        drawn = draw_plain(logits.float(), uniform[:, cells], settings)
        context[:, cells] = torch.where(known[cells] < 0, drawn, known[cells])
    return context[0]


CHOICES = [
    ("nar", 1.0, Keep(keep=0.4)),
    ("nar", 2.5, Keep(keep_cells=["0-1,0-4", "3,3-4"])),
    ("raster", 1.0, Keep(keep=0.4)),
    ("raster", 2.5, Keep(keep_cells="1-2,1-3")),
    ("zipar:2", 1.0, Keep(keep=0.3)),
    ("zipar:2", 1.0, Keep(keep_cells="0-3,2-4")),
    ("par:4", 1.0, Keep(keep_cells="0-1,0-3")),
    ("par:4", 2.5, Keep(keep=0.5)),
]


@pytest.mark.parametrize("layers", ["plain", "packed", "native"])
@pytest.mark.parametrize(("name", "scale", "keep"), CHOICES)
def test_the_other_cells_are_those_of_a_slow_run_by_hand(name, scale, keep, layers, monkeypatch):
    grid = (4, 4) if name.startswith("par") else (4, 5)
    order = named(name, grid)
    model = network("raster" if name.startswith("zipar") else name, grid)
    model.config = model.config.decoded_in(name)
    cells = outpaint.kept_cells(keep, order)
    known = torch.full((order.cells,), -1)
    known[list(cells)] = torch.randint(96, (len(cells),), generator=torch.Generator().manual_seed(3))
    settings = SamplingSettings(scale, temperature=0.9, top_k=30)
    seeds, labels = [5, 6, 7], [0, 2, 1]
    with torch.inference_mode():
        slow = torch.stack([
            by_hand(model, order, label, seed, settings, known)
            for label, seed in zip(labels, seeds, strict=True)
        ])  # fmt: skip
    if layers != "native":
        monkeypatch.setattr(native, "library", lambda: None)
    if layers != "plain":
        model = prepare(model)
    given = known.expand(3, -1)
    drawer = draw_plain if layers == "plain" else draw
    fast = sample(model, torch.tensor(labels), seeds, settings, None, given, draw=drawer)
    assert torch.equal(fast[:, list(cells)], known[list(cells)].expand(3, -1))
    assert torch.equal(fast, slow)
    free = sample(model, torch.tensor(labels), seeds, settings, draw=drawer)
    assert not torch.equal(fast, free)


@pytest.mark.parametrize("name", ["nar", "raster", "zipar:2", "par:4"])
def test_keeping_what_the_model_drew_changes_nothing(name):
    grid = (4, 4)
    model = network("raster" if name.startswith("zipar") else name, grid)
    model.config = model.config.decoded_in(name)
    settings = SamplingSettings(2.0, temperature=0.9)
    free = sample(model, torch.tensor([1, 2]), [3, 4], settings)
    for keep in (Keep(keep=0.3), Keep(keep_cells="2-3,1-2"), Keep(keep=1)):
        given = torch.full_like(free, -1)
        cells = list(outpaint.kept_cells(keep, named(name, grid)))
        given[:, cells] = free[:, cells]
        assert torch.equal(sample(model, torch.tensor([1, 2]), [3, 4], settings, None, given), free)


# --- choice of the cells ---------------------------------------------------------------------------


@given(st.sampled_from(["nar", "raster", "zipar:2", "par:4"]), st.floats(0.01, 1))
def test_whole_passes_are_kept_from_the_first_on_and_no_more_than_needed(name, share):
    order = named(name, (4, 6))
    kept = set(outpaint.kept_cells(Keep(keep=share), order))
    passes = max(order.step_of[cell] for cell in kept) + 1
    assert kept == {cell for step in order.steps[:passes] for cell in step}
    assert len(kept) >= share * 24 - 1e-6
    assert len(kept) - len(order.steps[passes - 1]) < share * 24


@pytest.mark.parametrize(
    ("share", "count"), [("40%", 105), (0.4, 105), ("0.4", 105), ("100%", 256), ("1%", 3)]
)
def test_shares_are_numbers_or_per_cent(share, count):
    assert len(outpaint.kept_cells(Keep(keep=share), named("nar", (16, 16)))) == count


@pytest.mark.parametrize("share", ["0", "0%", "101%", "1.01", "-5%", "40", "nan", "inf", "many", "", "%"])
def test_shares_out_of_range_are_refused(share, tiny):
    message = command(
        "image", "--model", tiny, "--class", "dog", "--init", "a.png", f"--keep={share}", code=2
    )
    assert f"--keep is {share}, expected a share above 0 and at most 1, such as 40% or 0.4" in message


def test_rectangles_are_ranges_of_rows_and_columns():
    order = named("nar", (4, 6))
    keep = Keep(keep_cells=["0-1, 2 - 3", "3,5"])
    assert outpaint.kept_cells(keep, order) == (2, 3, 8, 9, 23)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a", "expected rows and columns from 0, such as 0-3,0-15"),
        ("3-1,0", "expected rows and columns"),
        ("1,", "expected rows and columns"),
        ("0-4,0", "the grid of this model is 4x4"),
        ("0", "Give ranges within 0-3, 0-3"),
        ("0,0,0", "the grid of this model is 4x4"),
    ],
)
def test_wrong_rectangles_are_refused(text, words, tiny):
    shade().save("a.png")
    wrong = ["--init", "a.png", "--keep-cells", text]
    message = " ".join(command("image", "--model", tiny, "--class", "dog", *wrong, code=2).split())
    assert words in message and "--keep-cells" in message


@given(st.sets(st.integers(0, 2**16 - 1), min_size=1, max_size=60))
def test_cells_survive_their_ranges(cells):
    assert read_cells(write_cells(sorted(cells)), "x") == tuple(sorted(cells))


def test_ranges_of_a_hostile_file_are_refused():
    for text in ("5-3", "3,3", "3-5,4", "0-999999"):
        with pytest.raises(CheckpointError, match="not ascending"):
            read_cells(text, "x")


# --- pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "cells"),
    [
        (["--keep", "40%"], (0, 1, 2, 3, 4, 5, 6, 8, 9, 12)),
        (["--keep-cells", "2-3,1-2"], (9, 10, 13, 14)),
        (["--keep-mask", "mask.png"], (0, 4, 8, 12)),
        ([], (0, 1, 2, 3, 4, 5, 6, 8, 9, 12)),
    ],
)
def test_kept_cells_are_the_pictures_and_the_rest_is_drawn_after_them(words, cells, tiny):
    picture = shade()
    picture.save("photo.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :3] = 255  # half of the second column of cells: not for the most part
    Image.fromarray(mask).save("mask.png")
    options = ["--model", tiny, "--class", "dog", "--seed", 3, "--cfg-scale", 2, *QUIET]
    command("image", *options, "--init", "photo.png", *words, "-o", "a.png")
    codes, tokens = codes_of(tiny, picture), tokens_in("a.png")
    assert init_in("a.png") == (cells, tuple(codes[list(cells)].tolist()))
    assert torch.equal(tokens[list(cells)], codes[list(cells)])
    pipe = narcli.load(tiny, dtype="float32")
    known = torch.full((1, 16), -1)
    known[0, list(cells)] = codes[list(cells)]
    settings, label = pipe.settings(cfg_scale=2.0), pipe.classes.lookup("dog").label
    expected = sample(pipe.model, torch.tensor([label]), [3], settings, None, known, draw=draw)
    assert torch.equal(tokens, expected[0])
    command("image", *options, "-o", "free.png")
    assert "init" not in read_metadata(Path("free.png"))
    assert not torch.equal(tokens_in("free.png"), tokens)


def test_prompts_go_on_from_pictures_too(tiny_text):
    shade().save("photo.png")
    command("image", "--model", tiny_text, "--prompt", "a red apple", "--seed", 1, "--init", "photo.png",
            "--keep", "40%", *QUIET, "-o", "a.png")  # fmt: skip
    cells, _ = init_in("a.png")
    assert torch.equal(tokens_in("a.png")[list(cells)], codes_of(tiny_text, shade())[list(cells)])
    Path("photo.png").unlink()
    command("rerun", "a.png", "--model", tiny_text, "--verify", "-o", "b.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_files_of_released_models_take_pictures(golden):
    model, tokenizer = golden
    shade((64, 48)).save("photo.png")
    command("image", "--model", model, "--tokenizer", tokenizer, "--class", 1, "--seed", 1, "--init",
            "photo.png", *QUIET, "-o", "a.png")  # fmt: skip
    about = read_metadata(Path("a.png"))
    cells, tokens = init_in("a.png")
    drawn = tokens_in("a.png", int(np.prod(about["grid"])))
    assert tuple(drawn[list(cells)].tolist()) == tokens


def test_every_class_and_seed_goes_on_from_the_picture(tiny):
    shade().save("photo.png")
    out = command("image", "--model", tiny, "--class", "dog,cat", "-n", 2, "--seed", 1, "--init", "photo.png",
                  "--keep", "0.3", "--grid", "--json", "--dtype", "float32", "-o", "made/")  # fmt: skip
    document = json.loads(out)
    cells = list(read_cells(document["init"]["cells"], "x"))
    codes = codes_of(tiny, shade())
    made = [torch.tensor(unpack_tokens("x", each, 16)) for each in document["samples"]]
    assert len(made) == 4 and all(torch.equal(each[cells], codes[cells]) for each in made)
    assert len({tuple(each.tolist()) for each in made}) == 4
    assert document["init"]["sha256"] == sha256(Path("photo.png").read_bytes()).hexdigest()
    assert (document["init"]["source"], document["init"]["grid"]) == ("photo.png", [4, 4])
    Path("photo.png").unlink()
    Path("run.json").write_text(out)
    (frontier,) = Path("made").glob("*_frontier.gif")
    (sheet,) = Path("made").glob("*_grid.png")
    for number, file in enumerate((frontier, sheet, "run.json")):
        command("rerun", file, "--model", tiny, "--verify", "-o", f"again{number}/")


def test_rerun_keeps_the_tokens_and_takes_other_classes_seeds_and_pictures(tiny):
    shade().save("photo.png")
    options = ["--model", tiny, *QUIET]
    command("image", "--class", "dog", "--seed", 1, "--init", "photo.png", *options, "-o", "a.png")
    Path("photo.png").unlink()
    command("rerun", "a.png", "--model", tiny, "--class", "cat", "-o", "b.png")
    assert init_in("b.png") == init_in("a.png")
    assert not torch.equal(tokens_in("a.png"), tokens_in("b.png"))
    message = command("rerun", "a.png", "--model", tiny, "--keep", "20%", code=2)
    assert "only the kept tokens of photo.png are here" in message and "--init" in message
    shade(number=3).save("other.png")
    command("rerun", "a.png", "--model", tiny, "--init", "other.png", "--keep", "20%", "-o", "c.png")
    assert len(init_in("c.png")[0]) < len(init_in("a.png")[0])
    verify = ["rerun", "a.png", "--model", tiny, "--init", "other.png", "--verify"]
    assert "--init makes others" in command(*verify, code=2)
    command("image", "--class", "dog", "--seed", 1, *options, "-o", "free.png")
    assert "--keep goes with --init" in command("rerun", "free.png", "--model", tiny, "--keep", "1%", code=2)
    command("rerun", "free.png", "--model", tiny, "--init", "other.png", "-o", "d.png")
    assert read_metadata(Path("d.png"))["init"]["source"] == "other.png"


def test_decoded_tokens_keep_what_was_given_and_show_it(tiny):
    shade().save("photo.png")
    command("image", "--model", tiny, "--class", "dog", "--seed", 1, "--init", "photo.png", "--save-tokens",
            "--dtype", "float32", "-o", "a.png")  # fmt: skip
    command("decode", "a_tokens.safetensors", "--tokenizer", tiny, "--dtype", "float32", "-o", "b.png")
    assert init_in("b.png") == init_in("a.png")
    with Image.open("a_frontier.gif") as one, Image.open("b_frontier.gif") as other:
        assert (
            one.n_frames == other.n_frames and one.convert("RGB").tobytes() == other.convert("RGB").tobytes()
        )


def test_a_file_of_another_grid_or_with_damaged_tokens_is_refused(tiny, golden):
    shade().save("photo.png")
    text = command("image", "--model", tiny, "--class", "dog", "--seed", 1, "--init", "photo.png", "--json",
                   *QUIET, "-o", "a.png")  # fmt: skip
    document = json.loads(text)
    for change, code, words in (
        ({"grid": [2, 8]}, 4, "are not of this model"),
        ({"cells": "0-3,9-15"}, 4, "its tokens are not those of its hash"),
        ({"cells": "3-0"}, 4, "not ascending"),
        ({"tokens_sha256": "0" * 64}, 4, "its tokens are not those of its hash"),
        ({"cells": "all"}, 4, "init"),
        ({"source": 3}, 4, "init"),
    ):
        Path("a.json").write_text(json.dumps(document | {"init": document["init"] | change}))
        assert words in command("rerun", "a.json", "--model", tiny, code=code), change
    Path("a.json").write_text(json.dumps(document | {"init": "/etc/passwd"}))
    assert "init" in command("rerun", "a.json", "--model", tiny, code=4)
    without = {name: value for name, value in document["init"].items() if name != "tokens"}
    Path("a.json").write_text(json.dumps(document | {"init": without}))
    assert "only their hash is recorded" in command("rerun", "a.json", "--model", tiny, code=4)


# --- odd pictures ----------------------------------------------------------------------------------


def odd_pictures(folder):
    """Pictures that a viewer shows as ``shade()``, or nearly, in many forms: name -> picture as shown."""
    picture = shade()
    gray = picture.convert("L")
    exact = {}

    def keep(name, shown, image, **options):
        image.save(folder / name, **options)
        exact[name] = shown

    clear = picture.convert("RGBA")
    clear.putalpha(Image.fromarray(np.repeat(np.uint8([[255] * 4 + [0] * 4]), 8, 0)))
    seen = Image.new("RGB", (8, 8), "white")
    seen.paste(picture.crop((0, 0, 4, 8)), (0, 0))
    keep("alpha.png", seen, clear)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    keep("turned.png", picture.rotate(-90), picture, exif=exif)
    keep("gray.png", gray.convert("RGB"), gray)
    deep = np.asarray(gray, np.uint16) * 257
    keep("deep.png", gray.convert("RGB"), Image.fromarray(deep))
    keep("palette.png", picture.convert("P").convert("RGB"), picture.convert("P"))
    keep("one.png", gray.convert("1").convert("RGB"), gray.convert("1"))
    cmyk = picture.convert("CMYK")
    keep("cmyk.tif", cmyk.convert("RGB"), cmyk)
    keep("moving.gif", None, picture, save_all=True, append_images=[shade(number=4)])
    keep("lossy.jpg", None, picture)
    keep("wide.png", picture.resize((64, 8)).crop((28, 0, 36, 8)), picture.resize((64, 8)))
    keep("dot.png", Image.new("RGB", (8, 8), (9, 200, 30)), Image.new("RGB", (1, 1), (9, 200, 30)))
    keep("thin.png", Image.new("RGB", (8, 8), (9, 200, 30)), Image.new("RGB", (1, 3000), (9, 200, 30)))
    return exact


def test_odd_pictures_are_read_as_a_viewer_shows_them(tiny, here):
    shown = odd_pictures(here)
    Path("link.png").symlink_to("gray.png")
    shown["link.png"] = shown["gray.png"]
    for name, picture in shown.items():
        words = ["image", "--model", tiny, "--class", "dog", "--seed", 1, "--init", name, "--keep", "100%"]
        result = CliRunner().invoke(app, [str(word) for word in [*words, *QUIET, "-o", f"{name}.out.png"]])
        assert result.exit_code == 0, (name, result.output)
        assert ("has 2 frames" in result.stderr) == (name == "moving.gif"), result.stderr
        tokens = tokens_in(f"{name}.out.png")
        if picture is not None:
            assert torch.equal(tokens, codes_of(tiny, picture)), name


def test_files_that_are_no_pictures_are_refused_in_a_sentence(tiny, here):
    Path("folder").mkdir()
    Path("words.png").write_text("hello")
    Path("empty.png").touch()
    shade((400, 300)).save("whole.png")
    content = Path("whole.png").read_bytes()
    Path("cut.png").write_bytes(content[: len(content) // 2])
    os.mkfifo("pipe.png")
    Path("zero.png").symlink_to("/dev/zero")
    Path("dangling.png").symlink_to("nowhere")
    header = b"\x00\x00\x00\rIHDR" + (60000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    Path("huge.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + header
        + crc32(header[4:]).to_bytes(4, "big")
        + bytes(4)
        + b"IDAT"
        + crc32(b"IDAT").to_bytes(4, "big")
    )
    write_mp4(here / "clip.mp4", [shade((16, 16))] * 2)
    for name, words in {
        "missing.png": "Could not read missing.png: no such file",
        "folder": "folder is a folder, expected a file",
        "words.png": "words.png cannot be read as a picture",
        "empty.png": "it is empty (0 bytes)",
        "cut.png": "cut.png cannot be read as a picture",
        "pipe.png": "pipe.png is a named pipe (FIFO), expected a file",
        "zero.png": "zero.png is a device, expected a file",
        "dangling.png": "Could not read dangling.png: no such file",
        "huge.png": "huge.png has more than",
        "clip.mp4": "clip.mp4 cannot be read as a picture",
    }.items():
        for options in (["--init", name], ["--init", "whole.png", "--keep-mask", name]):
            message = command("image", "--model", tiny, "--class", "dog", *options, code=4)
            assert words in " ".join(message.split()), (name, message)
    assert [path.name for path in here.glob("nar-image*")] == []


def test_other_shapes_are_cropped_or_padded(tiny):
    wide = shade((16, 8))
    wide.save("wide.png")
    options = ["--model", tiny, "--class", "dog", "--seed", 1, "--init", "wide.png", "--keep", "1", *QUIET]
    command("image", *options, "-o", "a.png")
    assert torch.equal(tokens_in("a.png"), codes_of(tiny, wide.crop((4, 0, 12, 8))))
    command("image", *options, "--fit", "pad", "-o", "b.png")
    padded = Image.new("RGB", (8, 8), "white")
    padded.paste(wide.resize((8, 4), Image.Resampling.LANCZOS), (0, 2))
    assert torch.equal(tokens_in("b.png"), codes_of(tiny, padded))


# --- masks -----------------------------------------------------------------------------------------


def mask(cells, side, level=255):
    """A mask of ``side`` pixels a cell of a 4x4 grid."""
    levels = np.zeros((4, 4), np.uint8)
    levels.reshape(-1)[list(cells)] = level
    return Image.fromarray(levels.repeat(side, 0).repeat(side, 1))


@pytest.mark.parametrize("side", [1, 2, 5, 50])
def test_a_mask_of_another_size_is_stretched_over_the_picture(side, tiny):
    shade().save("photo.png")
    cells = (1, 2, 7, 8, 15)
    mask(cells, side, level=130).save("mask.png")
    words = ["image", "--model", tiny, "--class", "dog", "--seed", 1, "--init", "photo.png", "--keep-mask",
             "mask.png", *QUIET, "-o", "a.png"]  # fmt: skip
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    told = f"The mask is {4 * side}x{4 * side} pixels and the picture 8x8: it is stretched over the picture."
    assert (told in " ".join(result.stderr.split())) == (side != 2)
    assert init_in("a.png")[0] == cells


def test_a_mask_is_cropped_and_padded_with_its_picture(tiny):
    pipe = narcli.load(tiny, dtype="float32")
    wide = np.zeros((8, 16), np.uint8)
    wide[:, 4:8] = 255  # the left half of what is left of the picture

    def kept(**options):
        (made,) = pipe.images("dog", 0, init=shade((16, 8)), keep_mask=wide, **options)
        return read_cells(made.metadata["init"]["cells"], "x")

    assert kept() == (0, 1, 4, 5, 8, 9, 12, 13)
    assert kept(fit="pad") == (5, 9)  # the margins above and below are dark


def test_a_mask_that_keeps_nothing_is_refused(tiny):
    shade().save("photo.png")
    Image.new("L", (8, 8), 127).save("mask.png")
    options = ["--init", "photo.png", "--keep-mask", "mask.png"]
    message = command("image", "--model", tiny, "--class", "dog", *options, code=2)
    assert "--keep-mask keeps no cell" in message


# --- clips -----------------------------------------------------------------------------------------


def test_first_frames_of_a_clip_are_kept(tiny_video, here):
    frames = [shade(number=number) for number in range(6)]
    write_frames(here / "clip", frames, None)
    options = ["--model", tiny_video, "--class", 1, "--seed", 2, "--init", "clip", *QUIET]
    codes = load_tokenizer(tiny_video).encode(
        torch.from_numpy(np.stack(frames)).movedim(-1, 0)[None] / 255 * 2 - 1
    )[0]
    for words, cells in (
        (["--keep-frames", 3], range(16)),
        ([], range(16)),
        (["--keep-frames", 6], range(32)),
        (["--keep-cells", "1,0-3,0"], (16, 20, 24, 28)),
    ):
        command("video", *options, *words, "-o", "a.gif", "--overwrite")
        assert init_in("a.gif") == (tuple(cells), tuple(codes[list(cells)].tolist()))
        assert torch.equal(tokens_in("a.gif", 32)[list(cells)], codes[list(cells)])
    command("video", *options, "--keep", "40%", "-o", "b.gif")
    assert 0.4 * 32 <= len(init_in("b.gif")[0]) < 32
    assert "sha256" not in read_metadata(Path("b.gif"))["init"]  # a folder has none
    shutil.rmtree("clip")
    command("rerun", "b.gif", "--model", tiny_video, "--verify", "-o", "c.gif")
    assert Path("b.gif").read_bytes() == Path("c.gif").read_bytes()


def test_clips_are_read_from_videos_and_animations(tiny_video, here):
    frames = [shade((32, 24), number) for number in range(9)]
    write_gif(here / "clip.gif", frames)
    write_mp4(here / "clip.mp4", frames)
    for name in ("clip.gif", "clip.mp4"):
        command("video", "--model", tiny_video, "--class", 1, "--seed", 2, "--init", name, "--keep-frames", 3,
                *QUIET, "-o", f"{name}.webp")  # fmt: skip
        about = read_metadata(Path(f"{name}.webp"))["init"]
        assert (about["source"], about["cells"]) == (name, "0-15")
        assert about["sha256"] == sha256(Path(name).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--keep-frames", 2], "--keep-frames is 2, but a token of this model covers 3 frames of its 6"),
        (["--keep-frames", 9], "Give a multiple of 3, at most 6"),
        (["--keep-frames", 0], "--keep-frames is 0, expected 1 or more"),
        (["--keep-frames", 6], "--keep-frames is 6, and the clip has 4"),
        (["--keep-frames", 3, "--keep", "40%"], "--keep and --keep-frames exclude each other"),
        (["--keep-cells", "0-3,0-3"], "the grid of this model is 2x4x4"),
    ],
)
def test_frames_that_cannot_be_kept_are_refused(words, message, tiny_video, here):
    write_frames(here / "clip", [shade(number=number) for number in range(4)], None)
    found = command("video", "--model", tiny_video, "--class", 1, "--init", "clip", *words, code=2)
    assert message in " ".join(found.split())


def test_holistic_tokens_are_kept_as_a_share_only(larp, here):
    model, tokenizer = larp
    write_frames(here / "clip", [shade((16, 16), number) for number in range(4)], None)
    options = [
        "--model",
        model,
        "--tokenizer",
        tokenizer,
        "--class",
        1,
        "--seed",
        1,
        "--init",
        "clip",
        *QUIET,
    ]
    for words in ([], ["--keep-frames", 2], ["--keep-mask", "clip/00.png"]):
        message = command("video", *options, *words, code=2)
        assert "No token of this model has a place in the frames" in message and "--keep" in message
    command("video", *options, "--keep", "50%", "-o", "a.gif")
    pixels = torch.from_numpy(np.stack([shade((16, 16), n) for n in range(4)])).movedim(-1, 0)[None] / 255
    codes = load_tokenizer(tokenizer).encode(pixels)[0]
    cells, tokens = init_in("a.gif")
    assert len(cells) == 4 and tokens == tuple(codes[list(cells)].tolist())
    assert torch.equal(tokens_in("a.gif", 8)[list(cells)], codes[list(cells)])


# --- what does not go together -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--keep", "40%"], "--keep goes with --init"),
        (["--fit", "pad"], "--fit goes with --init"),
        (["--keep-mask", "a.png"], "--keep-mask goes with --init"),
        (["--init", "a.png", "--keep", "40%", "--keep-mask", "b.png"], "--keep and --keep-mask exclude"),
        (["--init", "a.png", "--keep-cells", "0,0", "--keep-mask", "b.png"], "exclude each other"),
        (["--init", "a.png", "--keep-frames", 4], "No such option"),
        (["--init", "a.png", "--fit", "stretch"], "stretch"),
    ],
)
def test_wrong_combinations_are_refused_before_anything_is_read(words, message, tiny):
    found = command("image", "--model", tiny, "--class", "dog", *words, code=2)
    assert message.lower() in " ".join(found.split()).lower()


def test_a_model_of_scales_refuses_pictures(here):
    shade().save("photo.png")
    model, tokenizer = DATA / "var" / "var.pth", DATA / "var" / "var_vae.pth"
    options = ["--model", model, "--tokenizer", tokenizer, "--class", 1, "--init", "photo.png"]
    for words in ([], ["--dry-run"]):
        message = command("image", *options, *words, code=2)
        assert "--init keeps cells of one grid, and this model draws scales" in " ".join(message.split())
    with pytest.raises(UsageError, match="draws scales"):
        narcli.load(model, tokenizer=tokenizer, dtype="float32").images(1, init=shade())


def test_a_dry_run_reads_the_picture_and_refuses_a_broken_one(tiny, here):
    shade().save("photo.png")
    options = ["image", "--model", tiny, "--class", "dog", "--seed", 1, "--dry-run", "--json"]
    about = json.loads(command(*options, "--init", "photo.png"))
    assert about["files"][0].endswith(".png")
    command(*options, "--init", "photo.png", "--keep-cells", "9,9", code=2)
    command(*options, "--init", "nowhere.png", code=4)
    assert [path.name for path in here.iterdir()] == ["photo.png"]


def test_frames_from_and_init_exclude_each_other():
    with pytest.raises(UsageError, match="`init` and `frames_from` exclude each other"):
        Recipe(kind="video", frames_from="a.mp4", init="b.mp4")
    with pytest.raises(UsageError, match="`keep_frames` is not for images"):
        Recipe(classes=1, init="a.png", keep_frames=4)


# --- Python and JSON ---------------------------------------------------------------------------------


def test_python_takes_files_pictures_and_arrays(tiny):
    shade().save("photo.png")
    pipe = narcli.load(tiny, dtype="float32")
    pictures = (
        Path("photo.png"),
        "photo.png",
        shade(),
        np.asarray(shade()),
        torch.tensor(np.asarray(shade())),
    )
    made = [pipe.images("dog", seed=1, init=init, keep=0.4)[0] for init in pictures]
    assert all(torch.equal(each.tokens, made[0].tokens) for each in made)
    assert [each.metadata["init"]["source"] for each in made] == ["photo.png"] * 2 + ["a picture"] * 3
    made[2].save("a.png")
    command("rerun", "a.png", "--model", tiny, "--verify", "-o", "b.png")
    steps = list(pipe.steps("dog", seed=1, init=shade(), keep_cells="0-3,0-1", top_k=3))
    assert len(steps) == 7 and steps[-1].results[0].metadata["sampling"]["top_k"] == 3
    assert len(read_cells(steps[-1].results[0].metadata["init"]["cells"], "x")) == 8


@pytest.mark.parametrize(
    "wrong", [np.zeros((8, 8, 3)), np.zeros((8, 8, 2), np.uint8), np.zeros((0, 8, 3), np.uint8), [1], 7]
)
def test_arrays_that_are_no_pictures_are_refused(wrong, tiny):
    pipe = narcli.load(tiny, dtype="float32")
    with pytest.raises(UsageError, match="`init` is an array of the shape"):
        pipe.images("dog", init=wrong)


def test_python_refuses_what_does_not_go_together(tiny, tiny_video):
    pipe = narcli.load(tiny, dtype="float32")
    shade((300, 300)).save("cut.png")
    Path("cut.png").write_bytes(Path("cut.png").read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="`init` cannot be read as a picture"):
        pipe.images("dog", init=Image.open("cut.png"))
    with pytest.raises(UsageError, match="`keep` goes with `init`"):
        pipe.images("dog", keep=0.4)
    clips = narcli.load(tiny_video, dtype="float32")
    (clip,) = clips.videos(1, seed=0, init=[shade(number=n) for n in range(6)], keep_frames=3)
    assert clip.metadata["init"]["cells"] == "0-15"
    with pytest.raises(UsageError, match="holds no frames"):
        clips.videos(1, init=[])


def test_recipes_survive_json():
    kept = Init("photo.png", "0" * 64, grid=(4, 4), cells=(0, 1, 5), tokens=(3, 70_000, 1))
    for init, keep in (
        ("photo.png", {"keep": "40%", "fit": "pad"}),
        (Path("photo.png"), {"keep_cells": "0-3,0-1"}),
        ("photo.png", {"keep_mask": Path("mask.png")}),
        (kept, {}),
    ):
        recipe = Recipe(classes=1, init=init, seed=3, **keep)
        assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    assert init_of(json.loads(json.dumps(about_init(kept))), "x") == kept
    assert Recipe(classes=1, init="a.png", keep="40%").keep == 0.4


# --- pictures of the frontier ------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(4, 4), (2, 4, 4)])
def test_given_cells_have_a_shade_of_their_own_and_are_there_from_the_beginning(sizes):
    order = named("nar", sizes)
    given = frozenset({0, 1, 4, 15})
    clip = [Image.new("RGB", (32, 32), (255, 0, 0))] * (2 if len(sizes) == 3 else 1)
    frames = [np.asarray(frame) for frame in run_frames(order, [clip], given=given)]
    plain = [np.asarray(frame) for frame in run_frames(order, [clip])]

    def count(frame, color):
        return int((frame == color).all(-1).sum())

    shades = {count(frame, GIVEN) for frame in frames}
    assert len(shades) == 1 and min(shades) > 0 and count(plain[0], GIVEN) == 0
    # Steps 1 and 2 draw nothing: no bright cell, and all given pixels are shown.
    assert count(frames[0], FRONTIER) < count(plain[0], FRONTIER)
    assert count(frames[0], (255, 0, 0)) == pytest.approx(4 * count(plain[0], (255, 0, 0)), rel=0.03)
    assert count(frames[-1], (255, 0, 0)) == count(plain[-1], (255, 0, 0))
    strip = np.asarray(filmstrip(order, [clip], given=given))
    assert count(strip, GIVEN) > 0


def test_captions_count_given_cells_as_done():
    order = named("nar", (4, 4))
    assert caption(order, 0, {0, 1, 4}) == "step 1/7 · given · 3/16 done"
    assert caption(order, 2, {0, 1, 4, 8, 15}) == "step 3/7 · 2 cells in parallel · 7/16 done"
    assert caption(order, 2) == "step 3/7 · 3 cells in parallel · 6/16 done"


def test_partial_pictures_hold_given_tokens_from_the_beginning(tiny):
    pipe = narcli.load(tiny, dtype="float32")
    tokens = torch.arange(16)
    (first,) = next(pipe.partials([tokens], given=[5, 6]))
    known = torch.full((1, 16), -1)
    known[0, [0, 5, 6]] = tokens[[0, 5, 6]]
    (expected,) = pipe.decode(known)
    assert first[0].tobytes() == expected[0].tobytes()
