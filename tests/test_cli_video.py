"""`narcli video` as a person meets it: files that play, metadata, the frontier, refusals."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import narcli
from narcli.cli import app
from narcli.errors import NarError
from narcli.media import writers
from narcli.media.readers import read_metadata
from test_cli_image import ENVIRONMENT, MAIN, PROLOGUE, names

DATA = Path(__file__).with_name("data")
STEM = "nar-video_c2-flying_bat_s42"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(tiny_video):
    def invoke(*arguments, model=tiny_video):
        chosen = ["--model", str(model)] if model else []
        return CliRunner().invoke(app, ["video", *chosen, *map(str, arguments)])

    return invoke


@pytest.fixture(scope="module")
def pipe(tiny_video):
    return narcli.load(tiny_video, dtype="float32")


def probe(path):
    """What ffmpeg says of a file."""
    done = subprocess.run(
        [get_ffmpeg_exe(), "-hide_banner", "-i", path], capture_output=True, text=True, errors="replace"
    )
    return done.stderr


def frames_of(path, size):
    """The frames of a video as ffmpeg decodes them: uint8 (frames, H, W, 3)."""
    command = [get_ffmpeg_exe(), "-loglevel", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, size[1], size[0], 3)


# --- files ---------------------------------------------------------------------------------------


def test_a_clip_and_its_frontier_are_written_by_the_command_itself(tiny_video, here):
    arguments = ["video", "--model", tiny_video, "--class", 2, "--frames", 6, "--seed", 42]
    done = subprocess.run(
        [sys.executable, "-c", PROLOGUE + MAIN, *map(str, arguments)],
        capture_output=True, text=True, env=ENVIRONMENT, cwd=here,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{STEM}.mp4", f"{STEM}_frontier.gif"] == names(here)
    assert done.stderr.startswith("flying bat, seed 42: 8 steps instead of 32, ")
    with Image.open(f"{STEM}_frontier.gif") as animation:
        assert animation.n_frames == 8 + 1


def test_the_mp4_is_what_players_open(run, pipe):
    result = run(
        "--class",
        "flying bat",
        "--seed",
        42,
        "--fps",
        12.5,
        "--dtype",
        "float32",
        "-o",
        "a.mp4",
        "--frontier",
        "none",
    )
    assert result.exit_code == 0, result.stderr
    said = probe("a.mp4")
    stream = next(line for line in said.splitlines() if "Video:" in line)
    # Matrix, primaries and transfer: were they different, all three would be named.
    assert "h264 (High)" in stream and "yuv420p(tv, bt709, progressive)" in stream
    assert "256x256" in stream and "12.50 fps" in stream
    assert "Duration: 00:00:00.48" in said
    content = Path("a.mp4").read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")  # it plays before it is whole
    shown = frames_of("a.mp4", (256, 256))
    (clip,) = pipe.videos("flying bat", seed=42)
    assert len(shown) == len(clip.frames) == 6
    for frame, expected in zip(shown, clip.frames, strict=True):
        large = np.asarray(expected.resize((256, 256), Image.Resampling.LANCZOS))
        assert np.abs(frame.astype(int) - large).mean() < 8


def test_odd_sizes_are_padded_to_even_ones(run, monkeypatch):
    original = narcli.decoding.to_clips

    def cropped(*arguments):
        return [tuple(frame.crop((0, 0, 7, 5)) for frame in clip) for clip in original(*arguments)]

    monkeypatch.setattr(narcli.decoding, "to_clips", cropped)
    result = run("--class", 0, "--scale", 3, "-o", "a.mp4", "--frontier", "none")
    assert result.exit_code == 0, result.stderr
    assert " 22x16" in probe("a.mp4")
    shown = frames_of("a.mp4", (22, 16))
    assert np.abs(shown[:, :, 21].astype(int) - shown[:, :, 20]).mean() < 4


@pytest.mark.parametrize("kind", ["gif", "webp"])
@pytest.mark.parametrize("by_name", [True, False])
def test_animated_pictures(run, here, kind, by_name):
    how = ["-o", f"a.{kind}"] if by_name else ["--format", kind]
    result = run("--class", 2, "--seed", 42, "--fps", 5, "--scale", 2, "--frontier", "none", *how)
    assert result.exit_code == 0, result.stderr
    (file,) = here.iterdir()
    assert file.name == (f"a.{kind}" if by_name else f"{STEM}.{kind}")
    assert read_metadata(file)["fps"] == 5
    with Image.open(file) as animation:
        assert (animation.format, animation.n_frames, animation.size) == (kind.upper(), 6, (16, 16))
        animation.load()
        assert animation.info["duration"] == 200 and animation.info["loop"] == 0


def test_frames_are_a_folder_of_pictures_with_the_settings_inside(run, here, pipe):
    result = run("--class", 2, "--seed", 42, "--format", "frames", "--scale", 1, "--frontier", "none",
                 "--dtype", "float32")  # fmt: skip
    assert result.stdout.splitlines() == [STEM]
    assert names(here / STEM) == [f"{n:02}.png" for n in range(6)]
    (clip,) = pipe.videos(2, seed=42)
    for number, expected in enumerate(clip.frames):
        with Image.open(here / STEM / f"{number:02}.png") as frame:
            assert frame.tobytes() == expected.tobytes()
        about = read_metadata(here / STEM / f"{number:02}.png")
        assert about["frame"] == number and about["seed"] == 42 and "fps" not in about
    again = run("--class", 2, "--seed", 42, "--format", "frames", "--scale", 2, "--frontier", "none")
    assert again.stdout.splitlines() == [f"{STEM}_1"]


def test_a_folder_of_frames_is_overwritten_and_one_of_other_things_is_not(run, here):
    (here / "a").mkdir()
    (here / "a" / "letter.txt").write_text("dear")
    options = ["--class", 2, "--format", "frames", "--frontier", "none", "--overwrite", "--scale", 1]
    refused = run(*options, "-o", "b/../a{seed}", "--seed", 1)
    assert refused.exit_code == 0, refused.stderr
    (here / "a1" / "05.png").unlink()
    assert run(*options, "-o", "a{seed}", "--seed", 1).exit_code == 0
    assert len(names(here / "a1")) == 6
    (here / "a1" / "letter.txt").write_text("dear")
    refused = run(*options, "-o", "a{seed}", "--seed", 1)
    assert refused.exit_code == 1 and "holds other files than frames" in refused.stderr
    assert len(names(here / "a1")) == 7


def test_fewer_frames_are_the_first_ones_and_the_metadata_says_so(run):
    options = ["--class", 2, "--seed", 42, "--format", "frames", "--scale", 1, "--frontier", "none"]
    run(*options, "-o", "all")
    run(*options, "-o", "some", "--frames", 4)
    assert names(Path("some")) == [f"{n:02}.png" for n in range(4)]
    for name in names(Path("some")):
        with Image.open(Path("all", name)) as a, Image.open(Path("some", name)) as b:
            assert a.tobytes() == b.tobytes()
    about = read_metadata(Path("some/00.png"))
    assert (about["frames"], about["model_frames"]) == (4, 6)
    assert about["tokens_sha256"] == read_metadata(Path("all/00.png"))["tokens_sha256"]


def test_better_quality_takes_more_bytes(run):
    for kind in ("mp4", "webp"):
        for quality in (20, 95):
            run(
                "--class",
                2,
                "--seed",
                1,
                "--quality",
                quality,
                "-o",
                f"{quality}.{kind}",
                "--frontier",
                "none",
            )
        assert Path(f"20.{kind}").stat().st_size < 0.7 * Path(f"95.{kind}").stat().st_size
    assert read_metadata(Path("20.mp4"))["quality"] == 20


# --- metadata ------------------------------------------------------------------------------------


def test_the_comment_of_the_mp4_makes_the_clip_again(run, here, tiny_video):
    flags = ["--cfg-scale", 3.5, "--cfg-interval", 9, "--temperature", 0.75, "--top-k", 17, "--top-p", 0.875]
    result = run("--class", 2, "--seed", 5, *flags, "--dtype", "float32", "-o", "a.mp4", "--json")
    document = json.loads(result.stdout)
    assert document["files"] == ["a.mp4", "a_frontier.gif"]
    about = read_metadata(here / "a.mp4")
    command = [get_ffmpeg_exe(), "-loglevel", "error", "-i", "a.mp4", "-f", "ffmetadata", "-"]
    tags = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    in_comment = re.sub(r"\\(.)", r"\1", re.search(r"^comment=(.*)$", tags, re.MULTILINE)[1])
    assert json.loads(in_comment) == about
    assert about["kind"] == "video" and about["grid"] == [2, 4, 4] and about["steps"] == 8
    assert (about["fps"], about["frames"], about["scale"], about["filter"]) == (8, 6, 32, "lanczos")
    assert str(here) not in json.dumps(about) and str(tiny_video.parent) not in json.dumps(about)
    shared = {
        key: document[key]
        for key in document
        if key not in ("files", "samples", "seconds", "frontier", "contact_sheet")
    }
    (sample,) = document["samples"]
    assert about == shared | {key: value for key, value in sample.items() if key != "file"}

    pipe = narcli.load(tiny_video, dtype=about["dtype"])
    (again,) = pipe.videos(about["class"]["id"], seed=about["seed"], **about["sampling"])
    assert again.metadata["tokens_sha256"] == about["tokens_sha256"]


def test_several_clips_are_each_as_asked_for_alone_and_share_a_frontier(run, here):
    result = run("--class", "0,rain", "-n", 2, "--seed", 7, "--batch-size", 3, "-o", "many/")
    assert result.exit_code == 0, result.stderr
    assert len(names(here / "many")) == 5 and "4 clips, seeds 7 to 8" in result.stderr
    run("--class", "rain", "--seed", 8, "-o", "one.mp4", "--frontier", "none")
    (many,) = (here / "many").glob("*rain_s8.mp4")
    assert read_metadata(many)["tokens_sha256"] == read_metadata(here / "one.mp4")["tokens_sha256"]
    assert np.array_equal(frames_of(many, (256, 256)), frames_of("one.mp4", (256, 256)))


def test_the_models_own_settings_are_the_default(run, here, larp):
    run("--class", 2, "-o", "a.gif", "--frontier", "none")
    assert read_metadata(here / "a.gif")["sampling"]["cfg_scale"] == 1.25
    run("--class", 2, "-o", "b.gif", "--frontier", "none", "--tokenizer", larp[1], model=larp[0])
    assert read_metadata(here / "b.gif")["class"]["name"] == "Archery"


# --- the frontier --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gif", "mp4", "png"])
@pytest.mark.parametrize("mode", ["reveal", "decode"])
def test_the_frontier_comes_in_three_formats_and_two_modes(run, here, kind, mode):
    result = run("--class", 2, "-o", "a.gif", "--frontier", kind, "--frontier-mode", mode)
    assert result.exit_code == 0, result.stderr
    assert read_metadata(here / f"a_frontier.{kind}")["frontier"] == {"format": kind, "mode": mode}


def test_holistic_tokens_are_decoded_and_cannot_be_revealed(run, here, larp):
    model, tokenizer = larp
    common = ["--class", "Archery", "--tokenizer", tokenizer, "--seed", 1]
    result = run(*common, "-o", "a.mp4", model=model)
    assert result.exit_code == 0, result.stderr
    assert read_metadata(here / "a_frontier.gif")["frontier"]["mode"] == "decode"
    about = read_metadata(here / "a.mp4")
    assert about["tokenizer"]["file"] == "model.safetensors" and about["frames"] == 4
    before = names(here)
    result = run(*common, "--frontier-mode", "reveal", model=model)
    assert result.exit_code == 2 and "no token of this model has a place" in result.stderr
    assert names(here) == before


def test_larps_pixels_go_from_zero_to_one(larp):
    pipe = narcli.load(larp[0], tokenizer=larp[1], dtype="float32")
    (clip,) = pipe.videos(0, seed=0)
    with torch.no_grad():
        decoded = pipe.tokenizer.decode(clip.tokens[None])[0]
    for index, frame in enumerate(clip.frames):
        expected = (decoded[:, index].clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1)
        assert np.array_equal(np.asarray(frame), expected.numpy())


def test_not_known_tokens_are_the_average_code(larp):
    pipe = narcli.load(larp[0], tokenizer=larp[1], dtype="float32")
    book = load_file(DATA / "larp.safetensors")["bottleneck.regularizer.embedding.weight"]
    average = torch.nn.functional.normalize(book, dim=-1).mean(0).expand(1, 8, -1)
    with torch.no_grad():
        ((expected, *_),) = narcli.decoding.to_clips(pipe.tokenizer.decode_vectors(average), (0.0, 1.0))
    ((nothing_known, *_),) = pipe.decode(torch.full((1, 8), -1))
    assert nothing_known == expected


# --- refusals ------------------------------------------------------------------------------------

MISUSE = [
    ([], "No class or frames given", "--class"),
    (["--class", 4], "no class 4", "Nearest"),
    (["--class", "Archery"], "no class 'Archery'", None),
    (["--class", 2, "--frames", 0], "--frames is 0", None),
    (["--class", 2, "--frames", -3], "--frames is -3", None),
    (["--class", 2, "--fps", 0], "--fps is 0", None),
    (["--class", 2, "--fps", -1], "--fps is -1", None),
    (["--class", 2, "--fps", 0.01], "--fps is 0.01, expected a number from 0.1", None),
    (["--class", 2, "--fps", "nan"], "--fps is nan", None),
    (["--class", 2, "--fps", 60, "--format", "gif"], "--fps is 60, and .gif shows at most 50", "mp4"),
    (["--class", 2, "--fps", 5, "--format", "frames"], "--fps does not go with a folder of frames", "Drop"),
    (["--class", 2, "--quality", 101], "--quality is 101", None),
    (["--class", 2, "--quality", 50, "-o", "a.gif"], "--quality does not go with .gif", "Drop"),
    (["--class", 2, "-o", "a.avi"], "ends in '.avi'", ".mp4, .gif, .webp"),
    (["--class", 2, "-o", "a.gif", "--format", "mp4"], "ends in '.gif'", ".mp4"),
    (["--class", 2, "-o", "a.mp4", "--format", "frames"], "ends in '.mp4'", "without an ending"),
    (["--class", 2, "--scale", 0], "--scale is 0", None),
    (["--class", 2, "--frontier", "none", "--frontier-mode", "decode"], "--frontier-mode", "Drop one"),
]


@pytest.mark.parametrize(("arguments", "message", "hint"), MISUSE)
def test_misuse_exits_2_and_says_what_to_do(run, here, arguments, message, hint):
    result = run(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0].startswith("error: ") and message in lines[0]
    assert hint is None or hint in lines[1]
    assert len(lines) <= 3 and names(here) == []


def test_all_that_is_checked_is_checked_before_torch_is_imported(tiny_video, here):
    code = f"""
import contextlib, io
for arguments in {[[str(a) for a in arguments] for arguments, _, _ in MISUSE]!r}:
    sys.argv[1:] = ["video", "--model", {str(tiny_video)!r}, *arguments]
    with contextlib.redirect_stderr(io.StringIO()):
        assert main() == 2, arguments
    assert not {{"torch", "numpy", "PIL", "huggingface_hub"}} & set(sys.modules), arguments
"""
    done = subprocess.run([sys.executable, "-c", PROLOGUE + code], capture_output=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dry", [False, True])
def test_more_frames_than_the_model_makes_are_refused_with_the_reason(run, here, dry):
    result = run("--class", 2, "--frames", 7, *["--dry-run"] * dry)
    assert result.exit_code == 2 and names(here) == []
    first, second = result.stderr.splitlines()
    assert first == "error: --frames is 7, but the model makes clips of 6 frames."
    assert "cannot go on" in second and "at most 6" in second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--frames", "17"], "clips of 16 frames"),
        (["--frontier-mode", "reveal"], "--frontier-mode is reveal"),
    ],
)
def test_what_no_released_model_can_do_is_refused_before_its_download(hub, options, message):
    hub.repos["chenfeng1271/NAR-ucf101-256-L"] = {"model.pth": b"x"}
    hub.repos["hywang66/LARP-L-long-tokenizer"] = {"config.json": b"{}", "model.safetensors": b"x"}
    stderr = hub.narcli("video", "--model", "nar-l-ucf101", "--class", "5", *options, "--yes", code=2)
    assert message in stderr
    assert not [path for _, path, _ in hub.requests if "/resolve/" in path]


@pytest.mark.parametrize(
    ("command", "model", "code", "message"),
    [
        ("video", "emoji", 2, "narcli image"),
        ("video", "c2i.pt", 4, "makes images of classes"),
        ("image", "tiny_video", 2, "narcli video"),
        ("image", "c2v.pth", 4, "makes videos"),
        ("image", "nar-lp-ucf101", 2, "narcli video"),
    ],
)
def test_a_model_of_the_other_kind_is_refused(
    run, here, tiny_video, golden, larp, command, model, code, message
):
    (here / "models").mkdir()
    if model.startswith("c2"):
        sizes = json.loads((DATA / model).with_suffix(".json").read_text())
        (here / "models" / "config.json").write_text(json.dumps({k: sizes[k] for k in ("grid", "n_head")}))
        chosen = here / "models" / model
        chosen.write_bytes((DATA / model).read_bytes())
        tokenizer = ["--tokenizer", str(larp[1] if command == "video" else golden[1])]
    else:
        chosen, tokenizer = (tiny_video if model == "tiny_video" else model), []
    for named in (tokenizer, []):  # also before a tokenizer is asked for
        more = ["--frames", "16"] if command == "video" else ["--frontier-mode", "reveal"]
        result = CliRunner().invoke(app, [command, "--model", str(chosen), "--class", "1", *named, *more])
        assert (result.exit_code, result.stdout) == (code, ""), result.stderr
        assert message in result.stderr and len(result.stderr.splitlines()) <= 3
    assert names(here) == ["models"]


def test_tokenizers_that_do_not_fit_are_refused(run, here, tiny_video, larp, tmp_path_factory):
    result = run("--class", 2, "--tokenizer", larp[1], "--frames", 16)
    assert result.exit_code == 4 and "is for clips of 8 tokens" in result.stderr
    folder = tmp_path_factory.mktemp("wide")
    said = json.loads((larp[1] / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | {"frame_num": 8}))
    (folder / "model.safetensors").write_bytes((larp[1] / "model.safetensors").read_bytes())
    result = run("--class", 2, "--tokenizer", folder, model=larp[0])
    assert result.exit_code == 4 and "8 frames of 16 pixels are 16 patches" in result.stderr
    result = CliRunner().invoke(
        app, ["image", "--model", str(tiny_video), "--class", "1", "--tokenizer", str(larp[1])]
    )
    assert result.exit_code == 2 and names(here) == []


def test_a_holistic_tokenizer_of_another_number_of_tokens_is_refused(larp, tmp_path):
    from conftest import small_transformer
    from narcli.checkpoints.save import save_model

    model = save_model(
        tmp_path / "m", transformer=small_transformer((2, 2, 3), 101, vocab_size=64), classes="ucf101"
    )
    with pytest.raises(
        NarError, match=r"grids of 2x2x3 tokens, and the tokenizer .* is for clips of 8 tokens"
    ):
        narcli.load(model, tokenizer=larp[1])


# --- what fails ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mp4", "gif", "webp"])
@pytest.mark.parametrize("own", [True, False], ids=["narcli's error", "another error"])
def test_frames_are_kept_where_encoding_fails(run, here, monkeypatch, kind, own):
    def fail(path, *_, **__):
        if not own:
            raise RuntimeError("ffmpeg failed (no reason).")
        raise NarError(f"Could not write {path}: ffmpeg failed (no reason).", "Write a .gif instead.")

    monkeypatch.setattr(writers, f"write_{kind}", fail)
    result = run("--class", 2, "-o", f"a.{kind}", "--frames", 5, "--frontier", "none")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"error: Could not write a.{kind}: ffmpeg failed (no reason).",
        "  The frames are kept in a_frames." + " Write a .gif instead." * own,
    ]
    assert result.stdout.splitlines() == ["a_frames"] == names(here)
    assert names(here / "a_frames") == [f"{n:02}.png" for n in range(5)]


def test_an_ffmpeg_that_fails_leaves_frames_and_no_half_video(run, here, monkeypatch, tmp_path_factory):
    broken = tmp_path_factory.mktemp("bin") / "ffmpeg"
    broken.write_text("#!/bin/sh\necho 'no encoder today' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(broken))
    result = run("--class", 2, "-o", "a.mp4")
    assert result.exit_code == 1 and "ffmpeg failed (no encoder today)" in result.stderr
    assert names(here) == ["a_frames"]
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(broken.with_name("none")))
    result = run("--class", 2, "-o", "b.mp4", "--frontier", "none")
    assert result.exit_code == 1 and "Could not write b.mp4: ffmpeg cannot be started" in result.stderr
    assert "IMAGEIO_FFMPEG_EXE" in result.stderr and names(here) == ["a_frames", "b_frames"]


def test_interrupted_frames_leave_no_folder(here, monkeypatch):
    def frames():
        yield Image.new("RGB", (4, 4))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writers.write_frames(here / "a", frames(), {}, "")
    assert names(here) == []


def test_a_training_checkpoint_with_easydicts_makes_clips(run, here, larp, tmp_path_factory):
    """The released container (EasyDict, numpy, ["model"]["sd"]), with LARP's codes for its 32 cells."""
    folder = tmp_path_factory.mktemp("c2v")
    (folder / "c2v.pth").write_bytes((DATA / "c2v.pth").read_bytes())
    sizes = json.loads((DATA / "c2v.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: sizes[key] for key in ("grid", "n_head")}))
    said = json.loads((larp[1] / "config.json").read_text()) | {"bottleneck_token_num": 32}
    tensors = load_file(larp[1] / "model.safetensors")
    for name, axis in (("encoder_latent_query_embed", 0), ("decoder_latent_pe", 1)):
        tensors[name] = torch.cat([tensors[name]] * 4, axis)
    (folder / "larp").mkdir()
    (folder / "larp" / "config.json").write_text(json.dumps(said))
    save_file(tensors, folder / "larp" / "model.safetensors")
    common = ["--class", "3", "--tokenizer", folder / "larp", "--temperature", 0, "--dtype", "float32"]
    result = run(*common, "-o", "a.mp4", "--frontier", "none", model=folder / "c2v.pth")
    assert result.exit_code == 0, result.stderr
    about = read_metadata(here / "a.mp4")
    assert about["sampling"]["cfg_scale"] == 1.25 and about["frames"] == 4
    expected = load_file(DATA / "c2v.expected.safetensors")
    pipe = narcli.load(folder / "c2v.pth", kind="video", tokenizer=folder / "larp", dtype="float32")
    results = pipe.videos(expected["class_ids"].tolist(), seed=0, temperature=0, cfg_scale=1)
    assert torch.equal(torch.stack([r.tokens for r in results]), expected["tokens.cfg1"])
