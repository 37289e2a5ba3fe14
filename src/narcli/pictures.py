"""What is done to finished pictures: enlarging, contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt

from PIL import Image

from .style import BACKGROUND

SMALL = 256  # pixels; pictures below this are enlarged unless told otherwise
GAP = 8  # pixels around and between the pictures of a sheet


def auto_scale(size: tuple[int, int]) -> int:
    """The smallest whole factor that brings the longer side to ``SMALL`` pixels."""
    return max(1, ceil(SMALL / max(size)))


def enlarge(image: Image.Image, scale: int) -> Image.Image:
    """A picture ``scale`` times as wide and high, with a Lanczos filter."""
    if scale == 1:
        return image
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS)


def contact_sheet(images: Sequence[Image.Image], rows: int = 1, scale: int = 1) -> Image.Image:
    """All pictures on one sheet, from left to right and top to bottom, on a dark ground.

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
