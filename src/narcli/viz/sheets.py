"""Pictures read as a viewer shows them, enlarged, and put on contact sheets."""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageDraw, ImageOps, UnidentifiedImageError

from ..errors import CheckpointError, NarError, first_line
from ..media.textfiles import expand, open_regular, unreadable
from .style import BACKGROUND, MUTED, RGB, TEXT
from .vector import font as _font
from .vector import text_width as _text_width

SMALL = 256  # pixels; smaller pictures are enlarged by default
GAP = 8  # pixels around and between the pictures of a sheet
HEAD, LINE = 30, 18  # pixels of a title and of a label's line
SIZE, SMALL_SIZE = 16, 13  # of their letters
TITLE, LEAST = 640, 160  # pixels for a title, and for the labels of small pictures, at most
LONGEST = 1000  # letters of a label that are looked at
MAX_PIXELS = 2**27  # of a picture file
#: Formats that are read, by Pillow's names; none that runs other programs.
FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF"),
    *("PPM", "TGA", "JPEG2000", "ICO", "QOI"),
)
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
#: Picture and the lines above it.
Labelled = tuple[Image.Image, Sequence[str]]
#: Formats whose frames belong to one picture: layers, sizes, or previews.
STILL = ("MPO", "ICO")


def suffixes() -> set[str]:
    """File endings that ``read_picture`` reads, in lower case."""
    return {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}


def read_picture(path: Path, tell: Callable[[str], object] = warnings.warn) -> Image.Image:
    """Read a picture as a viewer shows it; see ``as_shown``.

    Args:
        path: a file of one of ``FORMATS``.
        tell: called with a sentence about further frames or pages, which are not read.

    Returns:
        An RGB picture of 8 bits.

    Raises:
        CheckpointError: no such file, no picture, a damaged one, or more than ``MAX_PIXELS`` pixels.
    """
    (shown,), frames = _read(expand(path), 1)
    if frames > 1:
        tell(f"{path} has {frames} frames or pages: the first is read.")
    return shown


def read_pictures(path: Path, most: int) -> list[Image.Image]:
    """Read the first frames or pages of a picture file, each as ``read_picture`` does.

    Returns:
        At most ``most`` RGB pictures; none if the file is of no format of pictures.

    Raises:
        CheckpointError: as ``read_picture``, but for a file of another format.
    """
    try:
        return _read(path, most)[0]
    except CheckpointError as error:
        if isinstance(error.__cause__, UnidentifiedImageError):
            return []
        raise


def _read(path: Path, most: int) -> tuple[list[Image.Image], int]:
    """Read at most ``most`` frames of a file; return them and the number of all."""
    Image.init()
    shown = []
    try:
        with open_regular(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about metadata and sizes
            with Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                frames = 1 if opened.format in STILL else getattr(opened, "n_frames", 1)
                for number in range(min(frames, most)):
                    opened.seek(number)
                    shown.append(as_shown(opened))
    except (NarError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise CheckpointError(
            f"{path} has more than {MAX_PIXELS:,} pixels.", "Make it smaller, or leave it out."
        ) from None
    except Exception as error:  # damaged pictures raise anything
        if isinstance(error, OSError) and error.errno:
            raise unreadable(path, error) from None
        reason = "it is of no format that narcli reads" if isinstance(error, UnidentifiedImageError) else None
        if not path.stat().st_size:
            reason = "it is empty (0 bytes)"
        raise CheckpointError(
            f"{path} cannot be read as a picture: {reason or first_line(error)}.",
            "Replace it, or leave it out.",
        ) from error
    return shown, frames


def fit(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Scale and crop a picture to its middle of a size in pixels."""
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)


def as_shown(image: Image.Image) -> Image.Image:
    """Convert a picture of any mode of Pillow to what a viewer shows: upright, sRGB, transparency on white.

    White of whole numbers above 8 bits is 65535, or 2**31 - 1 if one exceeds that. In a TIFF file below 32
    bits it is the largest number of its bits. White of floats is the first of 1, 255 and 65535 that none
    exceeds.
    """
    image.load()
    profile, info = image.info.get("icc_profile"), image.info
    tags = getattr(image, "tag_v2", {})
    with suppress(Exception):  # viewers ignore broken EXIF data too
        image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_8_bits(image, info.get("transparency"), tags)
    elif image.mode in ("P", "PA", "RGBa"):
        image = image.convert("RGBA")
    elif image.mode == "La":
        image = image.convert("LA")
    alpha = None
    if image.mode in ("LA", "RGBA") or "transparency" in image.info:
        alpha = image.convert("RGBA").getchannel("A")
        image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    shown = _to_srgb(image, profile)
    if alpha is None:
        return shown
    shown.putalpha(alpha)
    canvas = Image.new("RGBA", shown.size, "white")
    canvas.alpha_composite(shown)
    return canvas.convert("RGB")


def _to_8_bits(image: Image.Image, transparent: object, tags: Mapping[int, Any]) -> Image.Image:
    """Convert a picture of one channel above 8 bits to L, or to LA if a level is ``transparent``.

    ``tags`` are those of a TIFF file, or empty: Pillow neither scales its levels nor inverts them.
    """
    levels = np.asarray(image)
    bits, signed = tags.get(_BITS, (0,))[0], tags.get(_SAMPLE_FORMAT, (1,))[0] == 2
    tops = [1, 255, 65535] if image.mode == "F" else [65535, 2**31 - 1]
    if image.mode == "I" and bits == 32 and not signed:
        levels, tops = levels.view(np.uint32), [65535, 2**32 - 1]
    elif image.mode != "F" and 0 < bits < 32:
        tops = [2 ** (bits - signed) - 1]
    levels = levels.astype(np.float64)
    most = np.nanmax(levels, where=np.isfinite(levels), initial=0)
    top = next((top for top in tops if most <= top), tops[-1])
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero
        levels = top - levels
    gray = Image.fromarray((np.nan_to_num(levels).clip(0, top) * (255 / top)).round().astype(np.uint8))
    if isinstance(transparent, int):
        gray.putalpha(Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8)))
    return gray


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert to sRGB by the embedded colour profile, if it is usable."""
    if image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("RGB")
    if profile or image.mode == "LAB":
        with suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError):
            source = ImageCms.ImageCmsProfile(BytesIO(profile)) if profile else ImageCms.createProfile("LAB")
            converted = ImageCms.profileToProfile(
                image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
            if converted is not None:
                return converted
    return image.convert("RGB")


def auto_scale(size: tuple[int, int]) -> int:
    """Smallest whole factor that brings the longer side to ``SMALL`` pixels."""
    return max(1, ceil(SMALL / max(size)))


def enlarge(image: Image.Image, scale: int) -> Image.Image:
    """Enlarge a picture ``scale`` times with a Lanczos filter."""
    if scale == 1:
        return image
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS)


def contact_sheet(images: Sequence[Image.Image], rows: int = 1, scale: int = 1) -> Image.Image:
    """Put all pictures on one sheet, from left to right and top to bottom, on a dark ground.

    Args:
        images: at least one, all of one size.
        rows: groups of equal length, such as classes, that start a row each unless that makes the sheet
            much longer one way than the other.
        scale: factor by which each is enlarged, one at a time.
    """
    columns = columns_of(len(images), rows)
    width, height = (scale * side for side in images[0].size)
    down = ceil(len(images) / columns)
    sheet = Image.new("RGB", (GAP + columns * (width + GAP), GAP + down * (height + GAP)), BACKGROUND)
    for index, image in enumerate(images):
        y, x = divmod(index, columns)
        sheet.paste(enlarge(image, scale), (GAP + x * (width + GAP), GAP + y * (height + GAP)))
    return sheet


def columns_of(count: int, rows: int) -> int:
    """Return the columns of a contact sheet of ``count`` pictures in ``rows`` groups of equal length."""
    columns = count // rows
    return columns if rows / 3 <= columns <= 3 * rows else ceil(sqrt(count))


def labelled_sheet(rows: Sequence[tuple[str, Sequence[Labelled]]], scale: int = 1) -> Image.Image:
    """Put rows of pictures on one sheet, with labels, on a dark ground.

    Labels are shortened to their place; line breaks and control characters in them are drawn as spaces.

    Args:
        rows: title above each row, which may be empty, and its pictures, each with the lines above it. The
            pictures of a row are of one size. A row without pictures is a heading.
        scale: factor by which each is enlarged, one at a time.
    """
    labels = {line for _, pictures in rows for _, lines in pictures for line in lines}
    least = min(max((_text_width(_plain(label), SMALL_SIZE) for label in labels), default=0), LEAST)
    widths = [max([scale * image.width for image, _ in pictures] + [least]) for _, pictures in rows]
    feet = [max((LINE * len(lines) for _, lines in pictures), default=0) for _, pictures in rows]
    titles = [GAP + min(_text_width(_plain(title), SIZE), TITLE) for title, _ in rows]
    across = [(each + GAP) * len(pictures) for each, (_, pictures) in zip(widths, rows, strict=True)]
    width = GAP + max(*titles, *across)
    heights = [
        HEAD * bool(title) + (lines + scale * pictures[0][0].height + GAP if pictures else 0)
        for lines, (title, pictures) in zip(feet, rows, strict=True)
    ]
    sheet, y = Image.new("RGB", (width, GAP + sum(heights)), BACKGROUND), GAP
    for (title, pictures), each, lines, height in zip(rows, widths, feet, heights, strict=True):
        if title:
            sheet.paste(_line(title, width - 2 * GAP, HEAD, SIZE, TEXT), (GAP, y))
        x, top = GAP, y + HEAD * bool(title)
        for image, texts in pictures:
            for index, text in enumerate(texts):
                sheet.paste(_line(text, each, LINE, SMALL_SIZE, MUTED), (x, top + index * LINE))
            sheet.paste(enlarge(image, scale), (x, top + lines))
            x += each + GAP
        y += height
    return sheet


def labelled_pixels(width: int, height: int) -> int:
    """Return the most pixels that a picture of a size takes on a sheet, with a title and two lines."""
    return (max(width, LEAST) + GAP) * (HEAD + 2 * LINE + height + GAP)


def _line(text: str, width: int, height: int, size: int, color: RGB) -> Image.Image:
    """Draw a line of text in a box of its own, so that no letter reaches a picture."""
    box = Image.new("RGB", (width, height), BACKGROUND)
    ImageDraw.Draw(box).text((0, height // 2), shorten(text, width, size), color, _font(size), anchor="lm")
    return box


def shorten(text: str, width: int, size: int) -> str:
    """Make one line of a text, and cut it with dots where it is wider than ``width`` pixels."""
    line = _plain(text)
    if len(text) <= LONGEST and _text_width(line, size) <= width:
        return line
    kept = bisect_right(range(len(line)), width, key=lambda n: _text_width(f"{line[:n]}...", size)) - 1
    return f"{line[: max(kept, 0)].rstrip()}..."


def _plain(text: str) -> str:
    """Replace line breaks, control characters and marks of direction by spaces, in the first ``LONGEST``."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[:LONGEST]).split())
