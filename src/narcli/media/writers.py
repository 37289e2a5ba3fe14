"""Writers of pictures, clips and tokens, with their settings inside the file.

The settings (the fields of ``narcli.media.metadata``) are an iTXt chunk ``narcli`` in PNG, the comment in GIF
and MP4, the EXIF description in WebP, an entry ``narcli`` in safetensors. Pillow and ffmpeg are imported only
when something is written.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterable, Mapping
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..errors import NarError
from .metadata import DESCRIPTION, MAX_METADATA, ordered
from .schema import SCHEMA

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image
from .atomic import OLD, PART, explain, write_atomic

Metadata = Mapping[str, Any]


def encode_metadata(metadata: Metadata) -> str:
    """Encode metadata as versioned JSON in ASCII, so that any text survives any container.

    Raises:
        NarError: it is larger than ``MAX_METADATA``.
    """
    text = json.dumps({"schema": SCHEMA, **ordered(metadata)}, allow_nan=False)
    if len(text) > MAX_METADATA:
        raise NarError(
            f"The settings of this run take {len(text):,} bytes; a file holds {MAX_METADATA:,}.",
            "Shorten the prompt, ask for fewer at once, or add `no_metadata`.",
        )
    return text


def write_png(
    path: Path,
    image: Image.Image,
    metadata: Metadata | None = None,
    parameters: str = "",
    *,
    overwrite: bool = False,
) -> Path:
    """Write a PNG with its settings inside, if any, and a short text for people under ``parameters``."""
    from io import BytesIO

    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if metadata is not None:
        info.add_itxt("narcli", encode_metadata(metadata))
    if parameters:
        info.add_itxt("parameters", parameters.replace("\0", "").encode("utf-8", "replace").decode())
    image.save(buffer := BytesIO(), "PNG", pnginfo=info)
    return write_atomic(path, buffer.getvalue(), overwrite=overwrite)


def write_gif(
    path: Path,
    frames: Iterable[Image.Image],
    metadata: Metadata | None = None,
    *,
    frame_seconds: float = 0.09,
    hold_seconds: float = 2.0,
    overwrite: bool = False,
) -> Path:
    """Write an animation that loops for ever and holds its last frame; all frames of one size.

    The metadata is the comment.
    """
    from io import BytesIO

    from .gif import palette_frames

    palette, (first, *rest) = palette_frames(list(frames))
    milliseconds = [round(frame_seconds * 100) * 10] * (1 + len(rest))  # GIF counts hundredths
    milliseconds[-1] = round(hold_seconds * 100) * 10 or milliseconds[-1]
    comment = encode_metadata(metadata).encode() if metadata is not None else b""
    first.save(
        buffer := BytesIO(),
        "GIF",
        save_all=True,
        append_images=rest,
        duration=milliseconds,
        loop=0,
        palette=palette,  # one for the whole file
        transparency=255,  # with optimize, unchanged pixels are not written again
        optimize=True,
        comment=comment,
    )
    return write_atomic(path, buffer.getvalue(), overwrite=overwrite)


def write_mp4(
    path: Path,
    frames: Iterable[Image.Image],
    metadata: Metadata | None = None,
    *,
    fps: float = 12,
    quality: int = 68,
    hold_seconds: float = 0.0,
    overwrite: bool = False,
) -> Path:
    """Write an H.264 video that plays everywhere: yuv420p, limited range, bt709, index first.

    An odd width or height gets one more row or column of the edge's colour; nothing is resized.

    Args:
        path: the name wanted.
        frames: RGB pictures of one size.
        metadata: goes into the ``comment`` tag.
        fps: frames per second.
        quality: 0 to 100, which are the rate factors (CRF) 51 to 1 of x264; a factor of 0 would be
            lossless, in a profile that few players know.
        hold_seconds: how much longer the last frame stays.
        overwrite: replace an existing file.

    Raises:
        NarError: ffmpeg cannot be started, or fails; the message has its last lines.
    """
    from tempfile import TemporaryFile

    import numpy as np

    from .ffmpeg import start

    frames = list(frames)
    width, height = frames[0].size
    pad = ((0, height % 2), (0, width % 2), (0, 0))
    comment = encode_metadata(metadata) if metadata is not None else ""
    colours = "setparams=color_primaries=bt709:color_trc=bt709"  # the options alone are not enough
    options = f"""-f rawvideo -pix_fmt rgb24 -s {width + width % 2}x{height + height % 2} -r {fps} -i -
        -vf scale=out_color_matrix=bt709:out_range=tv,format=yuv420p,{colours}
        -c:v libx264 -preset medium -crf {max(1, round((100 - quality) * 0.51))} -threads 2
        -colorspace bt709 -color_primaries bt709 -color_trc bt709 -color_range tv
        -movflags +faststart -f mp4""".split()

    def encode(target: Path) -> None:
        arguments = [*options, "-metadata", f"comment={comment}", str(target.absolute())]
        with TemporaryFile() as messages:  # a pipe would have to be drained meanwhile
            process = start(
                arguments,
                f"Could not write {path}",
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=messages,
            )
            assert process.stdin is not None
            try:
                with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
                    for frame in chain(frames, [frames[-1]] * round(hold_seconds * fps)):
                        pipe.write(np.pad(np.asarray(frame.convert("RGB")), pad, mode="edge").tobytes())
                process.wait()
            finally:
                process.kill()
                process.wait()
            if process.returncode:
                messages.seek(0)
                words = messages.read().decode(errors="replace").strip()
                _raise_for_ffmpeg(path, process.returncode, words)

    return write_atomic(path, encode, overwrite=overwrite)


def _raise_for_ffmpeg(path: Path, code: int, words: str) -> None:
    if "No space left" in words:
        raise OSError(errno.ENOSPC, words)
    if code == -getattr(signal, "SIGXFSZ", 0) or "File too large" in words:
        raise OSError(errno.EFBIG, words)
    last = words.splitlines()[-1][:200] if words else f"exit status {code}"
    raise NarError(f"Could not write {path}: ffmpeg failed ({last}).", "Write a .gif instead.")


def write_webp(
    path: Path,
    frames: Iterable[Image.Image],
    metadata: Metadata | None = None,
    *,
    fps: float = 12,
    quality: int = 80,
    overwrite: bool = False,
) -> Path:
    """Write an animated WebP that loops for ever; all frames of one size.

    ``quality`` goes from 0 to 100. The metadata is the description of the picture in EXIF.
    """
    from io import BytesIO

    from PIL import Image

    first, *rest = frames
    exif = Image.Exif()
    if metadata is not None:
        exif[DESCRIPTION] = encode_metadata(metadata)
    first.save(
        buffer := BytesIO(),
        "WEBP",
        save_all=True,
        append_images=rest,
        duration=round(1000 / fps),
        loop=0,
        quality=quality,
        method=4,
        exif=exif,
    )
    return write_atomic(path, buffer.getvalue(), overwrite=overwrite)


def write_frames(
    folder: Path,
    frames: Iterable[Image.Image],
    metadata: Metadata | None,
    parameters: str = "",
    *,
    overwrite: bool = False,
) -> Path:
    """Write each frame as a PNG, ``00.png`` and so on, into a folder: complete or not at all.

    Args:
        folder: the desired name; ``_1`` is added if it is taken by then.
        frames: RGB pictures.
        metadata: goes into each PNG, with ``frame``, its number from 0; None for none.
        parameters: a short text for people in each PNG.
        overwrite: replace a folder that holds nothing but numbered PNGs.

    Raises:
        NarError: the folder cannot be written, or it holds other files.
    """
    if overwrite:
        check_frames(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=PART[0], suffix=PART[1], dir=folder.parent) as made:
            new = Path(made) / "new"
            for number, frame in enumerate(frames):
                fields = None if metadata is None else {**metadata, "frame": number}
                write_png(new / f"{number:02}.png", frame, fields, parameters)
            if overwrite and folder.exists():
                (Path(made) / OLD).mkdir()
                folder.rename(Path(made) / OLD / folder.name)
            for number in count():
                target = folder.with_name(f"{folder.name}_{number}") if number else folder
                if not os.path.lexists(target):
                    return new.rename(target)
    except OSError as error:
        raise explain(folder, error) from error
    raise AssertionError("unreachable")


def check_frames(folder: Path) -> None:
    """Raise unless a folder is missing or holds only numbered PNGs.

    Raises:
        NarError: it holds other files, or is no folder.
    """
    if os.path.lexists(folder) and not (
        folder.is_dir() and all(re.fullmatch(r"[0-9]+\.png", file.name) for file in folder.iterdir())
    ):
        raise NarError(f"{folder} holds other files than frames.", "Choose another `output`.")


def write_tokens(
    path: Path, tokens: npt.NDArray[np.int32], metadata: Metadata, *, overwrite: bool = False
) -> Path:
    """Write the tokens of a sample, int32 in the shape of their grid, with its settings (safetensors)."""
    return write_arrays(path, {"tokens": tokens}, metadata, overwrite=overwrite)


def write_arrays(
    path: Path, arrays: Mapping[str, npt.NDArray[Any]], metadata: Metadata, *, overwrite: bool = False
) -> Path:
    """Write arrays of a sample by name, with its settings (safetensors)."""
    import numpy as np
    from safetensors.numpy import save

    data = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    made = save(data, {"narcli": encode_metadata(metadata)})
    return write_atomic(path, made, overwrite=overwrite)
