"""The program ffmpeg: started for writers, and readers of clips."""

from __future__ import annotations

import errno
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, NarError, first_line, is_shortage
from .textfiles import check_regular

if TYPE_CHECKING:
    from PIL import Image

#: Containers that are read; none that names other files, as playlists do.
CONTAINERS = "mov,matroska,avi,mpeg,mpegts,ogg,flv,asf"
MAX_PIXELS = 2**25  # of a frame; 8K has fewer
MAX_SECONDS = 120  # a hostile file may keep ffmpeg busy


def start(arguments: list[str], failure: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start ffmpeg; ``options`` are those of ``Popen``.

    Args:
        arguments: of the program.
        failure: begin of the message if it cannot be started, such as ``Could not write a.mp4``.
        options: of ``subprocess.Popen``.

    Raises:
        NarError: ffmpeg cannot be started.
    """
    from imageio_ffmpeg import get_ffmpeg_exe

    try:
        return subprocess.Popen(
            [get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-nostdin", "-y", *arguments],
            start_new_session=True,  # narcli handles Ctrl-C itself
            **options,
        )
    except (OSError, RuntimeError) as error:  # RuntimeError: imageio-ffmpeg finds no ffmpeg
        if is_shortage(error) or getattr(error, "errno", None) in (errno.EAGAIN, errno.EMFILE):
            raise
        raise NarError(
            f"{failure}: ffmpeg cannot be started ({first_line(error)}).",
            "Install imageio-ffmpeg again, or let IMAGEIO_FFMPEG_EXE name one that runs; a .gif needs none.",
        ) from error


def read_clip(path: Path, most: int) -> list[Image.Image]:
    """Read the first frames of a video.

    Args:
        path: a file of one of ``CONTAINERS``.
        most: frames to read at most.

    Returns:
        RGB pictures, at least one.

    Raises:
        CheckpointError: no such file, no video, a damaged one, or frames of more than ``MAX_PIXELS`` pixels.
        NarError: ffmpeg cannot be started.
    """
    from PIL import Image

    check_regular(path)
    arguments = f"""-xerror -max_pixels {MAX_PIXELS} -format_whitelist {CONTAINERS} -protocol_whitelist file
        -i file:PATH -map 0:v:0 -frames:v {most} -fps_mode passthrough
        -f image2pipe -c:v ppm -pix_fmt rgb24 -""".split()
    arguments[arguments.index("file:PATH")] = f"file:{path.absolute()}"
    pipe = subprocess.PIPE
    process = start(arguments, f"Could not read {path}", stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    try:
        data, messages = process.communicate(timeout=MAX_SECONDS)
        words = messages.decode(errors="replace").strip()
    except subprocess.TimeoutExpired:
        data, words = b"", f"ffmpeg took more than {MAX_SECONDS} seconds"
    finally:
        process.kill()
        process.wait()
    frames: list[Image.Image] = []
    position = 0
    while header := re.compile(rb"P6\s(\d+)\s(\d+)\s255\s").match(data, position):
        size = int(header[1]), int(header[2])
        position = header.end() + 3 * size[0] * size[1]
        frames.append(Image.frombytes("RGB", size, data[header.end() : position]))
    if process.returncode or not frames:
        reason = re.sub(r"^(\[[^]]*\] *)*", "", words.splitlines()[0])[:120] if words else "it has no frames"
        if re.search("whitelist|Invalid data", words):
            reason = "it is damaged, or of no format that narcli reads"
        raise CheckpointError(
            f"{path} cannot be read as a clip: {reason.rstrip('.')}.",
            "Give a video such as .mp4, an animation such as .gif, or a folder of pictures.",
        )
    return frames
