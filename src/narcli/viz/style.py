"""Colours and captions shared by narcli's pictures and terminal output: one dark, restrained set.

The ramp runs from indigo to mint at even steps of lightness and hue in OKLCH, so that equal steps of
the decoding order look equally far apart; the frontier is the only warm colour.
"""

from __future__ import annotations

from math import prod

from ..order import NAR, Order, format_grid

RGB = tuple[int, int, int]

BACKGROUND: RGB = (15, 18, 24)
EMPTY: RGB = (30, 35, 45)  # a cell not yet decoded
CHECKER: tuple[RGB, RGB] = ((23, 27, 35), (31, 36, 46))  # where an image is not yet decoded
TEXT: RGB = (230, 233, 239)
MUTED: RGB = (139, 147, 163)
FRONTIER: RGB = (255, 209, 102)

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
    """Approximate perceived brightness, 0..1; text on the colour is dark above about 0.55."""
    return (0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]) / 255


def hexadecimal(color: RGB) -> str:
    """Format ``(255, 209, 102)`` as ``"#ffd166"``."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def title(order: Order) -> str:
    """Title such as ``16x16 decoding order``, with the name of the order if it is not NAR's."""
    return f"{format_grid(order.sizes)} decoding order" + ("" if order.name == NAR else f", {order.name}")


def headline(order: Order) -> str:
    """``comparison`` after the grid, and after the name of the order if it is not NAR's."""
    name = "" if order.name == NAR else f", {order.name}"
    return f"{format_grid(order.sizes)} grid{name}: {comparison(order)}"


def comparison(order: Order) -> str:
    """Sentence such as ``31 steps instead of 256 in raster order, up to 16 cells in parallel``."""
    steps = _count(len(order.steps), "step")
    if order.name == "raster":
        return f"{steps}, one cell at a time"
    return (
        f"{steps} instead of {prod(order.sizes)} in raster order, "
        f"up to {_count(order.widest, 'cell')} in parallel"
        + (f", {order.cells} in all" if order.has_scales else "")
    )


def caption(order: Order, s: int) -> str:
    """Caption of step ``s`` (from 0), such as ``step 12/31 · 12 cells in parallel · 78/256 done``."""
    step, done = f"step {s + 1}/{len(order.steps)}", sum(map(len, order.steps[: s + 1]))
    if order.name == "raster":
        return f"{step} · one cell at a time"
    cells = (
        f"{format_grid(order.panels[s])} cells" if order.has_scales else _count(len(order.steps[s]), "cell")
    )
    return f"{step} · {cells} in parallel · {done}/{order.cells} done"


def plane_names(order: Order) -> list[str]:
    """Name of each plane: ``t = 0`` of slices of time, ``1x1`` of scales, empty if it is alone."""
    if order.has_scales:
        return list(map(format_grid, order.panels))
    return [f"t = {t}" for t in range(len(order.planes))] if len(order.planes) > 1 else [""]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
