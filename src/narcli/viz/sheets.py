"""Pictures read as a viewer shows them, enlarged, and put on contact sheets."""

from __future__ import annotations

import warnings
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
from .board import _font, _text_width
from .style import BACKGROUND, TEXT

SMALL = 256  # pixels; smaller pictures are enlarged by default
GAP = 8  # pixels around and between the pictures of a sheet
MAX_PIXELS = 2**27  # of a picture file
#: Formats that are read, by Pillow's names; none that runs other programs.
FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF"),
    *("PPM", "TGA", "JPEG2000", "ICO", "QOI"),
)
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
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
    across = len(images) // rows
    if not rows / 3 <= across <= 3 * rows:
        across = ceil(sqrt(len(images)))
    width, height = (scale * side for side in images[0].size)
    down = ceil(len(images) / across)
    sheet = Image.new("RGB", (GAP + across * (width + GAP), GAP + down * (height + GAP)), BACKGROUND)
    for index, image in enumerate(images):
        y, x = divmod(index, across)
        sheet.paste(enlarge(image, scale), (GAP + x * (width + GAP), GAP + y * (height + GAP)))
    return sheet


def labelled_sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """Put rows of pictures on one sheet, each under its label, on a dark ground.

    Args:
        rows: label and pictures of each row; the pictures of a row are of one size.
    """
    head, size = 30, 16
    widths = [GAP + sum(image.width + GAP for image in images) for _, images in rows]
    width = max([*widths, *(_text_width(label, size) + 2 * GAP for label, _ in rows)])
    height = GAP + sum(head + images[0].height + GAP for _, images in rows)
    sheet, y = Image.new("RGB", (width, height), BACKGROUND), GAP
    draw = ImageDraw.Draw(sheet)
    for label, images in rows:
        draw.text((GAP, y + head // 2), label, TEXT, _font(size), anchor="lm")
        x, y = GAP, y + head
        for image in images:
            sheet.paste(image, (x, y))
            x += image.width + GAP
        y += images[0].height + GAP
    return sheet
