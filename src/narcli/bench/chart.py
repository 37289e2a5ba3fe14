"""A chart of seconds by batch size."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from ..viz.style import BACKGROUND, EMPTY, FRONTIER, MUTED, TEXT, ramp
from .measure import Case


def chart(cases: Sequence[Case], title: str, size: tuple[int, int] = (900, 560)) -> Image.Image:
    """Draw seconds an image against batch size: a line for each order, both scales logarithmic."""
    picture = Image.new("RGB", size, BACKGROUND)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default
    left, top, right, bottom = 90, 90, size[0] - 130, size[1] - 70
    each = [case.total_seconds / case.batch_size for case in cases]
    ticks = [digit * 10.0**exponent for exponent in range(-6, 7) for digit in (1, 2, 5)]
    low = max(tick for tick in ticks if tick <= min(each))
    high = min(tick for tick in ticks if tick > max(each))
    batches = sorted({case.batch_size for case in cases})
    spread = math.log(batches[-1] / batches[0]) or 1.0

    def place(batch_size: int, seconds: float) -> tuple[float, float]:
        x = left + (right - left) * math.log(batch_size / batches[0]) / spread
        return x, bottom - (bottom - top) * math.log(seconds / low) / math.log(high / low)

    pen.text((left, 24), title, TEXT, font(20))
    pen.text((left, 54), "seconds an image, tokens and decoding, by samples at once", MUTED, font(14))
    for seconds in (tick for tick in ticks if low <= tick <= high):
        y = place(batches[0], seconds)[1]
        pen.line((left, y, right, y), EMPTY)
        pen.text((left - 10, y), f"{seconds:g} s", MUTED, font(13), anchor="rm")
    for batch in batches:
        pen.text((place(batch, low)[0], bottom + 12), str(batch), MUTED, font(13), anchor="mt")
    ends = []
    orders = list(dict.fromkeys(case.order for case in cases))
    shades = [FRONTIER, *(ramp(1 - (k + 1) / len(orders)) for k in range(len(orders) - 1))]
    for name, color in zip(orders, shades, strict=True):
        line = [
            place(case.batch_size, case.total_seconds / case.batch_size)
            for case in cases
            if case.order == name
        ]
        for x, y in line:
            pen.ellipse((x - 5, y - 5, x + 5, y + 5), color)
        if line:
            pen.line(line, color, 3)
            ends.append((line[-1][1], name, color))
    lowest = -math.inf
    for y, name, color in sorted(ends):
        lowest = max(y, lowest + 18)  # keeps the names of lines that end close together apart
        pen.text((right + 14, lowest), name, color, font(15), anchor="lm")
    return picture
