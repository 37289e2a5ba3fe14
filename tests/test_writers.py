"""Atomic writes, pictures and videos as they should be, and metadata that comes back."""

import errno
import json
import os
import re
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from narcli.errors import CheckpointError, NarError
from narcli.media import writers
from narcli.media.atomic import write_atomic
from narcli.media.metadata import MAX_METADATA
from narcli.media.readers import read_metadata
from narcli.media.writers import write_frames, write_gif, write_mp4, write_png, write_webp

#: Child processes find the package as this one does.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(writers.__file__).parents[1])}
DOG = {"class": 207, "class_name": "golden retriever", "seed": 42, "model": "emoji"}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- atomic writes -------------------------------------------------------------------------------


def test_a_file_is_written_whole_with_ordinary_permissions(here):
    assert write_atomic(Path("new/folder/x.bin"), b"hello") == Path("new/folder/x.bin")
    assert Path("new/folder/x.bin").read_bytes() == b"hello"
    umask = os.umask(0)
    os.umask(umask)
    assert Path("new/folder/x.bin").stat().st_mode & 0o777 == 0o666 & ~umask
    assert len(list(Path("new/folder").iterdir())) == 1


@pytest.mark.parametrize("links", [True, False])
def test_a_name_taken_meanwhile_is_not_overwritten(links, monkeypatch):
    if not links:  # FAT and some network drives

        def link(a, b):
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", link)
    Path("x.bin").write_bytes(b"theirs")
    assert write_atomic(Path("x.bin"), b"ours") == Path("x_1.bin")
    assert (Path("x.bin").read_bytes(), Path("x_1.bin").read_bytes()) == (b"theirs", b"ours")
    assert write_atomic(Path("x.bin"), b"ours", overwrite=True) == Path("x.bin")
    assert sorted(p.name for p in Path().iterdir()) == ["x.bin", "x_1.bin"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_an_interrupted_write_leaves_nothing_and_keeps_the_old_file(here, interruption):
    Path("x.bin").write_bytes(b"old")

    def fill(path):
        path.write_bytes(b"half")
        raise interruption

    with pytest.raises(interruption):
        write_atomic(Path("x.bin"), fill, overwrite=True)
    assert [p.name for p in here.iterdir()] == ["x.bin"]
    assert Path("x.bin").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "read-only"),
        (errno.EFBIG, "larger than allowed"),
        (errno.EIO, "input/output error"),
    ],
)
def test_a_failed_write_says_what_happened_where_and_what_to_do(here, number, words):
    def fill(path):
        raise OSError(number, os.strerror(number))

    with pytest.raises(NarError, match=f"Could not write x.bin: .*{words}") as raised:
        write_atomic(Path("x.bin"), fill)
    assert raised.value.exit_code == 1
    assert raised.value.hint
    assert list(here.iterdir()) == []


def test_impossible_places_are_errors_for_a_person():
    Path("file").write_text("")
    Path("folder.png").mkdir()
    with pytest.raises(NarError, match="a part of the path is a file"):
        write_atomic(Path("file/x.png"), b"")
    with pytest.raises(NarError, match="that is a folder"):
        write_atomic(Path("folder.png"), b"", overwrite=True)
    with pytest.raises(NarError, match="name is too long"):
        write_atomic(Path("x" * 300), b"")
    with pytest.raises(NarError, match="Could not write /proc"):
        write_atomic(Path("/proc/narcli.png"), b"")


def in_child(code, limit):
    """Run ``code`` where no file may grow beyond ``limit`` bytes."""
    imports = "from narcli.media.atomic import *\nfrom narcli.media.writers import *"
    program = f"from pathlib import Path\nfrom PIL import Image\n{imports}\n{code}"
    return subprocess.run(
        [sys.executable, "-c", program],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "code", ["write_atomic(Path('x.bin'), bytes(50_000))", "write_mp4(Path('x.mp4'), NOISE)"]
)
def test_a_full_disk_leaves_nothing_behind(here, code):
    code = code.replace("NOISE", "[Image.effect_noise((256, 256), 90) for _ in range(8)]")
    result = in_child(code, 10_000)
    assert "NarError: Could not write x." in result.stderr
    assert "larger than allowed" in result.stderr
    assert list(here.iterdir()) == []


# --- metadata ------------------------------------------------------------------------------------

ABOUT = {
    "command": "image",
    "seed": 42,
    "prompt": 'Zoë 🐶 "x"; \\ = # \n \0 \udc80 end',
    "cfg": 1.5,
    "none": None,
}
picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))


@pytest.mark.parametrize("suffix", ["png", "gif", "webp", "mp4"])
def test_metadata_comes_back(suffix):
    path = Path(f"x.{suffix}")
    if suffix == "png":
        write_png(path, picture, ABOUT, "a dog, seed 42 \0")
    elif suffix == "gif":
        write_gif(path, [picture, picture.rotate(90)], ABOUT)
    elif suffix == "webp":
        write_webp(path, [picture, picture.rotate(90)], ABOUT)
    else:  # an argument of a command line holds no NUL, JSON escapes it
        write_mp4(path, [picture.resize((32, 32))] * 3, ABOUT)
    assert read_metadata(path) == {"schema": "narcli.run/1"} | ABOUT


def test_large_metadata_survives_every_container_and_huge_is_refused():
    large = {"prompt": "é" * 15_000}
    write_png(Path("x.png"), picture, large, "")
    write_gif(Path("x.gif"), [picture] * 2, large)
    write_webp(Path("x.webp"), [picture] * 2, large)
    write_mp4(Path("x.mp4"), [picture.resize((32, 32))], large)
    assert all(
        read_metadata(Path(f"x.{s}"))["prompt"] == large["prompt"] for s in ("png", "gif", "webp", "mp4")
    )
    with pytest.raises(NarError, match="settings of this run take"):
        write_png(Path("y.png"), picture, {"prompt": "x" * MAX_METADATA}, "")


def test_a_png_keeps_its_pixels_and_holds_text_for_people():
    write_png(Path("x.png"), picture, ABOUT, "golden retriever, seed 42")
    with Image.open("x.png") as image:
        assert np.array_equal(np.asarray(image), np.asarray(picture))
        assert image.text["parameters"] == "golden retriever, seed 42"
        assert json.loads(image.text["narcli"])["schema"] == "narcli.run/1"


def test_a_compressed_chunk_is_read_too():
    text = zlib.compress(json.dumps({"schema": "narcli.run/1", "seed": 7}).encode())
    body = b"iTXt" + b"narcli\0\1\0\0\0" + text
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    picture.save("plain.png")
    data = Path("plain.png").read_bytes()
    Path("x.png").write_bytes(data[:33] + chunk + data[33:])
    assert read_metadata(Path("x.png"))["seed"] == 7


@pytest.mark.parametrize("suffix", ["png", "gif", "webp"])
def test_a_picture_of_somebody_else_is_refused(suffix):
    picture.save(f"x.{suffix}")
    with pytest.raises(CheckpointError, match="holds no settings of narcli") as raised:
        read_metadata(Path(f"x.{suffix}"))
    assert raised.value.exit_code == 4


@pytest.mark.parametrize("content", [b"", b"hello", b"<html>", bytes(100), b"\x89PNG\r\n\x1a\n"])
def test_other_files_are_refused(content):
    Path("x").write_bytes(content)
    with pytest.raises(CheckpointError):
        read_metadata(Path("x"))
    with pytest.raises(CheckpointError, match="no such file"):
        read_metadata(Path("missing.png"))
    with pytest.raises(CheckpointError, match="Could not read"):
        read_metadata(Path())


def test_damaged_or_newer_settings_are_refused(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(writers, "SCHEMA", "narcli.run/2")
        write_png(Path("newer.png"), picture, {}, "")
    with pytest.raises(CheckpointError, match="has settings of schema"):
        read_metadata(Path("newer.png"))
    for text in ("[" * 50_000, "[]", "{", '{"schema": 3}', "null"):
        monkeypatch.setattr(writers, "encode_metadata", lambda metadata, text=text: text)
        write_png(Path("bad.png"), picture, {}, "", overwrite=True)
        with pytest.raises(CheckpointError, match="settings inside bad"):
            read_metadata(Path("bad.png"))


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("intact")
    write_png(folder / "x.png", picture, ABOUT, "")
    write_gif(folder / "x.gif", [picture, picture.rotate(90)], ABOUT)
    write_webp(folder / "x.webp", [picture, picture.rotate(90)], ABOUT)
    write_mp4(folder / "x.mp4", [picture.resize((32, 32))] * 3, ABOUT)
    return {suffix: (folder / f"x.{suffix}").read_bytes() for suffix in ("png", "gif", "webp", "mp4")}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from(["png", "gif", "webp", "mp4"]))
def test_any_damage_is_either_harmless_or_a_checkpoint_error(intact, tmp_path, data, suffix):
    content = bytearray(intact[suffix])
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert isinstance(read_metadata(path), dict)
    except CheckpointError as error:
        assert error.message


# --- clips ---------------------------------------------------------------------------------------


def test_the_quality_of_a_video_is_its_rate_factor():
    sizes = []
    for quality in (0, 50, 100):
        path = write_mp4(Path(f"{quality}.mp4"), [shades(k) for k in range(6)], quality=quality)
        sizes.append(path.stat().st_size)
    assert sizes == sorted(sizes) and sizes[0] * 2 < sizes[2]
    assert "h264 (High)" in probe("100.mp4")  # the profile of lossless video plays in few places


def test_a_name_for_frames_that_was_taken_meanwhile_is_not_overwritten(here):
    (here / "a").mkdir()
    assert write_frames(Path("a"), [picture] * 2, ABOUT, "") == Path("a_1")
    assert sorted(file.name for file in (here / "a_1").iterdir()) == ["00.png", "01.png"]
    assert write_frames(Path("a_1"), [picture], ABOUT, "", overwrite=True) == Path("a_1")
    assert [file.name for file in (here / "a_1").iterdir()] == ["00.png"]
    assert sorted(file.name for file in here.iterdir()) == ["a", "a_1"]
    (here / "b").write_text("a file")
    with pytest.raises(NarError, match="holds other files than frames"):
        write_frames(Path("b"), [picture], ABOUT, "", overwrite=True)
    with pytest.raises(NarError, match="a part of the path is a file"):
        write_frames(Path("b/c"), [picture], ABOUT, "")


# --- animations ----------------------------------------------------------------------------------


def shades(k, size=(96, 64)):
    y, x = np.mgrid[: size[1], : size[0]]
    pixels = np.stack([x * 2, y * 3, (x + y + 20 * k) % 256], axis=2).astype(np.uint8)
    pixels[:, :40] = (15, 18, 24)  # even areas
    pixels[: 10 * k, :30] = (255, 209, 102)
    return Image.fromarray(pixels)


def gif_frames(path):
    with Image.open(path) as gif:
        for k in range(gif.n_frames):
            gif.seek(k)
            yield np.asarray(gif.convert("RGB")).astype(int), gif.info["duration"]


def test_a_gif_of_few_colours_is_exact_loops_and_holds_its_last_frame():
    frames = [Image.new("RGB", (20, 10), color) for color in [(15, 18, 24), (30, 35, 45), (255, 209, 102)]]
    write_gif(Path("x.gif"), frames, frame_seconds=0.09, hold_seconds=2)
    shown = list(gif_frames("x.gif"))
    assert [duration for _, duration in shown] == [90, 90, 2000]
    assert all(np.array_equal(a, np.asarray(b)) for (a, _), b in zip(shown, frames, strict=True))
    with Image.open("x.gif") as gif:
        assert gif.info["loop"] == 0


def test_a_gif_of_many_colours_keeps_even_areas_exact_and_the_rest_close():
    frames = [shades(k) for k in range(6)]
    assert len(np.unique(np.concatenate([np.asarray(f).reshape(-1, 3) for f in frames]), axis=0)) > 5000
    write_gif(Path("x.gif"), frames)
    for (got, _), frame in zip(gif_frames("x.gif"), frames, strict=True):
        wanted = np.asarray(frame).astype(int)
        assert np.array_equal(got[:, :30], wanted[:, :30])
        assert np.abs(got - wanted).mean() < 10


def test_pixels_that_do_not_change_do_not_flicker():
    still = np.asarray(shades(3)).copy()
    moving = still.copy()
    moving[:, :40] = 200
    write_gif(Path("x.gif"), [Image.fromarray(still), Image.fromarray(moving)])
    (a, _), (b, _) = gif_frames("x.gif")
    assert np.array_equal(a[:, 40:], b[:, 40:])
    assert np.all(b[:, :40] == 200)


def probe(path):
    from imageio_ffmpeg import get_ffmpeg_exe

    return subprocess.run(
        [get_ffmpeg_exe(), "-i", str(path)], capture_output=True, text=True, check=False
    ).stderr


def test_a_video_plays_everywhere_and_odd_sizes_are_padded_not_resized():
    frame = Image.new("RGB", (63, 41), (200, 60, 40))
    write_mp4(Path("x.mp4"), [frame] * 5, {"seed": 1}, fps=10, hold_seconds=0.5)
    words = probe("x.mp4")
    assert re.search(r"Video: h264 \(High\).*yuv420p\(tv, bt709, progressive\)", words)
    assert "64x42" in words and "10 fps" in words and "00:00:01.00" in words
    data = Path("x.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")

    from imageio_ffmpeg import read_frames

    frames = read_frames("x.mp4")
    size = next(frames)["size"]
    pixels = np.frombuffer(next(frames), np.uint8).reshape(size[1], size[0], 3)
    assert np.abs(pixels.astype(int) - (200, 60, 40)).max() <= 6, "colours survive, also in the padding"


def test_an_interrupted_video_leaves_nothing_behind(here):
    class Interrupting:
        size = (64, 64)

        def convert(self, mode):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_mp4(Path("x.mp4"), [Interrupting()])
    assert list(here.iterdir()) == []


def test_a_failing_ffmpeg_is_reported_with_its_last_words(here, monkeypatch):
    import imageio_ffmpeg

    Path("ffmpeg").write_text("#!/bin/sh\necho no such encoder >&2\nexit 1\n")
    Path("ffmpeg").chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(here / "ffmpeg"))
    with pytest.raises(NarError, match="no such encoder"):
        write_mp4(Path("x.mp4"), [picture])
    assert [p.name for p in here.iterdir()] == ["ffmpeg"]


def test_importing_writers_is_cheap():
    heavy = "{'torch', 'numpy', 'PIL', 'imageio_ffmpeg'}"
    code = f"import sys, narcli.media.writers; print({heavy} & set(sys.modules))"
    assert (
        subprocess.check_output([sys.executable, "-c", code], text=True, env=ENVIRONMENT).strip() == "set()"
    )
