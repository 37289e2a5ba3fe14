"""Colours and captions of pictures and terminal output: a dark set, and a light one for papers.

The ramp runs from indigo to mint at even steps of lightness and hue in OKLCH, so that equal steps of
the decoding order look equally far apart; the frontier is the only warm colour.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod

from ..order import NAR, Schedule, format_grid

RGB = tuple[int, int, int]

BACKGROUND: RGB = (15, 18, 24)
EMPTY: RGB = (30, 35, 45)  # a cell not yet decoded
CHECKER: tuple[RGB, RGB] = ((23, 27, 35), (31, 36, 46))  # where an image is not yet decoded
TEXT: RGB = (230, 233, 239)
MUTED: RGB = (139, 147, 163)
FRONTIER: RGB = (255, 209, 102)
GIVEN: RGB = (164, 171, 184)  # a cell whose token was given


@dataclass(frozen=True)
class Theme:
    """Colours of a picture besides the ramp; as the constants, which are those of the dark one."""

    background: RGB = BACKGROUND
    empty: RGB = EMPTY
    checker: tuple[RGB, RGB] = CHECKER
    text: RGB = TEXT
    muted: RGB = MUTED
    frontier: RGB = FRONTIER
    given: RGB = GIVEN


DARK = Theme()
LIGHT = Theme(
    background=(255, 255, 255),
    empty=(236, 238, 243),
    checker=((240, 242, 246), (229, 232, 238)),
    text=(24, 28, 38),
    muted=(94, 102, 118),
    frontier=(240, 122, 16),
    given=(124, 132, 148),
)
#: Themes by name; the first is the default.
THEMES = {"dark": DARK, "light": LIGHT}

_RAMP = ("562c8b", "4f46a3", "4060b6", "2679c2", "0092c8", "00a9c8", "04bfc5", "4bd2be", "7be2b8")
_STOPS: list[RGB] = [(int(h[:2], 16), int(h[2:4], 16), int(h[4:], 16)) for h in _RAMP]


def ramp(position: float) -> RGB:
    """Colour of a position, from 0 (the first step) to 1 (the last)."""
    place = min(max(position, 0.0), 1.0) * (len(_STOPS) - 1)
    stop = min(int(place), len(_STOPS) - 2)
    (r, g, b), (r2, g2, b2), part = _STOPS[stop], _STOPS[stop + 1], place - stop
    return round(r + (r2 - r) * part), round(g + (g2 - g) * part), round(b + (b2 - b) * part)


def step_colors(steps: int) -> list[RGB]:
    """A colour for each of ``steps`` decoding steps."""
    return [ramp(s / max(steps - 1, 1)) for s in range(steps)]


def luminance(color: RGB) -> float:
    """Approximate perceived brightness, 0..1."""
    return (0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]) / 255


def ink(color: RGB) -> RGB:
    """Colour of text on a colour: the one of more contrast."""
    return BACKGROUND if luminance(color) > 0.4 else TEXT


def hexadecimal(color: RGB) -> str:
    """Format ``(255, 209, 102)`` as ``"#ffd166"``."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def label(order: Schedule) -> str:
    """Name of an order, with its note: ``mar (seed 0)``."""
    return f"{order.name} ({order.note})" if order.note else order.name


def title(order: Schedule) -> str:
    """Title such as ``16x16 decoding order``, with the name of the order if it is not NAR's."""
    return f"{format_grid(order.sizes)} decoding order" + ("" if order.name == NAR else f", {label(order)}")


def headline(order: Schedule) -> str:
    """``comparison`` after the grid, and after the name of the order if it is not NAR's."""
    name = "" if order.name == NAR else f", {label(order)}"
    return f"{format_grid(order.sizes)} grid{name}: {comparison(order)}"


def comparison(order: Schedule) -> str:
    """Sentence such as ``31 steps instead of 256 in raster order, up to 16 cells in parallel``."""
    steps = _count(len(order.steps), "step")
    if order.name == "raster":
        return f"{steps}, one cell at a time"
    return (
        f"{steps} instead of {prod(order.sizes)} in raster order, "
        f"up to {_count(order.widest, 'cell')} in parallel"
        + (f", {order.cells} in all" if order.has_scales else "")
    )


def facts(order: Schedule) -> str:
    """Few words on an order beside others: ``31 passes, up to 16 cells``."""
    passes = _count(len(order.steps), "pass", "passes")
    cells = "one cell each" if order.widest == 1 else f"up to {order.widest} cells"
    return f"{passes}, {cells}" + (f", {order.cells} in all" if order.has_scales else "")


def caption(order: Schedule, s: int, given: Collection[int] = ()) -> str:
    """Caption of step ``s`` (from 0), such as ``step 12/31 · 12 cells in parallel · 78/256 done``.

    Cells whose tokens are ``given`` are done from the beginning; a step of these alone is called given.
    """
    step, reached = f"step {s + 1}/{len(order.steps)}", f"{done(order, s, given)}/{order.cells} done"
    drawn = sum(cell not in given for cell in order.steps[s])
    if not drawn:
        return f"{step} · given · {reached}"
    if order.name == "raster":
        return f"{step} · one cell at a time"
    cells = f"{format_grid(order.panels[s])} cells" if order.has_scales else _count(drawn, "cell")
    return f"{step} · {cells} in parallel · {reached}"


def done(order: Schedule, s: int, given: Collection[int] = ()) -> int:
    """Count the cells that are done after step ``s``, those ``given`` from the beginning included."""
    return order.done[s] + sum(order.step_of[cell] > s for cell in given)


def race_caption(order: Schedule, s: int) -> str:
    """Caption of an order beside others after pass ``s`` (from 0), or once it is done."""
    s = min(s, len(order.steps) - 1)
    return f"pass {s + 1}/{len(order.steps)} · {order.done[s]}/{order.cells} done"


def plane_names(order: Schedule) -> list[str]:
    """Name of each plane: ``t = 0`` of slices of time, ``1x1`` of scales, empty if it is alone."""
    if order.has_scales:
        return list(map(format_grid, order.panels))
    return [f"t = {t}" for t in range(len(order.planes))] if len(order.planes) > 1 else [""]


def _count(number: int, noun: str, several: str = "") -> str:
    return f"{number} {noun if number == 1 else several or f'{noun}s'}"
