"""Pictures of an order, and the canvas that frontiers are drawn on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from html import escape
from itertools import pairwise
from math import ceil, sqrt

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ..order import Order
from .style import (
    BACKGROUND,
    EMPTY,
    FRONTIER,
    MUTED,
    RGB,
    TEXT,
    caption,
    comparison,
    hexadecimal,
    luminance,
    plane_names,
    step_colors,
    title,
)

Pixels = npt.NDArray[np.uint8]  # (height, width, 3)


Map = npt.NDArray[np.int64]  # (height, width)


MARGIN = 24  # pixels around and between the parts of a picture


SPACE = 12  # pixels between parts that stand one above the other


MAX_FRAMES = 200  # of an animation of the order; larger grids skip steps


def order_image(order: Order) -> Image.Image:
    """Draw the step of each cell as a colour, with its number if it fits."""
    board = _Board(order, width=960, height=960, largest=40)
    colors = step_colors(len(order.steps))
    canvas = _Canvas([board.pixels(colors)], head=54, foot=40, least=_text_width(comparison(order), 14))
    image = canvas.image()
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, MARGIN - 5), title(order), TEXT, _font(22))
    draw.text((MARGIN, MARGIN + 26), comparison(order), MUTED, _font(14))
    board.draw_labels(draw, canvas.places[0], colors)
    _draw_legend(image, draw, colors)
    return image


def order_frames(order: Order) -> list[Image.Image]:
    """Draw the board at each step, the frontier bright; at most ``MAX_FRAMES``, with the last step."""
    steps = len(order.steps)
    board = _Board(order, width=800 if order.has_scales else 480, height=480, largest=26)
    canvas = _Canvas(
        [board.pixels([EMPTY] * steps)], foot=50, least=_text_width(caption(order, steps - 1), 15)
    )
    frames = []
    for s in spread_steps(order, MAX_FRAMES):
        canvas.put(0, board.at(s))
        frames.append(canvas.image(order, s))
        board.draw_labels(ImageDraw.Draw(frames[-1]), canvas.places[0], None)
    return frames


def spread_steps(order: Order, most: int) -> list[int]:
    """Choose at most ``most`` evenly spaced steps, the first and the last among them; all if they are few."""
    steps = len(order.steps)
    chosen: list[int] = np.unique(np.linspace(0, steps - 1, min(steps, most)).round().astype(int)).tolist()
    return chosen


def order_svg(order: Order) -> str:
    """Draw the order as SVG; hovering over a cell shows its step and predecessors."""
    board = _Board(order, width=960, height=960, largest=40)
    colors = list(map(hexadecimal, step_colors(len(order.steps))))
    dark = [luminance(color) > 0.5 for color in step_colors(len(order.steps))]
    height, width = board.cells.shape
    side = board.pitch - board.gap
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {max(width, 480) + 2 * MARGIN} '
        f'{height + 54 + 2 * MARGIN}" font-family="system-ui, sans-serif">',
        f"<title>{title(order)}: {escape(comparison(order))}</title>",
        f'<rect width="100%" height="100%" fill="{hexadecimal(BACKGROUND)}"/>',
        f'<text x="{MARGIN}" y="{MARGIN + 16}" font-size="22" fill="{hexadecimal(TEXT)}">'
        f"{title(order)}</text>",
        f'<text x="{MARGIN}" y="{MARGIN + 38}" font-size="14" fill="{hexadecimal(MUTED)}">'
        f"{escape(comparison(order))}</text>",
        f'<g transform="translate({MARGIN} {MARGIN + 54})" text-anchor="middle" '
        f'font-size="{round(side * 0.42, 1)}">',
    ]
    for x, y, label in board.labels:
        parts.append(
            f'<text x="{x}" y="{y - 7}" font-size="13" text-anchor="start" fill="{hexadecimal(MUTED)}">'
            f"{label}</text>"
        )
    for cell, s in enumerate(order.step_of):
        x, y, across, down = board.box(cell)
        parts.append(
            f'<rect x="{x}" y="{y}" width="{across}" height="{down}" fill="{colors[s]}">'
            f"<title>step {s + 1}, cell {cell}, predicted from {_origin(order, cell)}</title></rect>"
        )
        if board.numbered:
            parts.append(
                f'<text x="{x + side / 2}" y="{round(y + side * 0.65, 1)}" pointer-events="none" '
                f'fill="{hexadecimal(BACKGROUND if dark[s] else TEXT)}">{s + 1}</text>'
            )
    return "\n".join([*parts, "</g>", "</svg>", ""])


def _origin(order: Order, cell: int) -> str:
    """Name the inputs that predict a cell, and the axis of each if there is a head for each."""
    before = order.predecessors(cell)
    if before:
        named = len(order.heads) == len(order.sizes)
        return ", ".join(f"{p.cell} ({p.head})" if named else str(p.cell) for p in before)
    if order.step_of[cell] == 0:
        return "nothing"
    return "the smaller grids" if order.has_scales else "a learned token"


class _Board:
    """The token grid as squares: panels in near-square rows, each with its label.

    All panels take equal room: scales, two rows of them, have smaller cells the finer they are.

    Args:
        order: of a grid of 1 to 3 axes.
        width, height: pixels it may take; exceeded only by grids with more cells than pixels.
        largest: the largest pitch (a cell and its gap), in pixels.
        across: panels in a row; None makes the rows near-square.
    """

    def __init__(
        self, order: Order, *, width: int, height: int, largest: int, across: int | None = None
    ) -> None:
        panels = order.planes
        rows, columns = panels[-1]
        across = across or ceil(len(panels) / 2 if order.has_scales else sqrt(len(panels)))
        down = ceil(len(panels) / across)
        room = (width // across // columns, height // down // rows)
        self.order = order
        self.pitch = max(1, min(largest, *room))  # of the last panel
        least = 4 if order.has_scales else 5  # pixels of a pitch that has a gap
        self.gap = _gap(self.pitch, least)
        label, between = (22, 16) if len(panels) > 1 else (0, 0)
        high, wide = rows * self.pitch - self.gap, columns * self.pitch - self.gap  # of each panel
        size = (down * (high + label + between) - between, across * (wide + between) - between)
        self.cells: Map = np.full(size, -1)  # the cell at each pixel, -1 in gaps
        self.labels: list[tuple[int, int, str]] = []
        self.corners: list[tuple[int, int]] = []
        self.spans: list[tuple[list[tuple[int, int]], list[tuple[int, int]]]] = []  # (x, y) of each panel
        for index, (panel, name) in enumerate(zip(panels, plane_names(order), strict=True)):
            top = index // across * (high + label + between) + label
            left = index % across * (wide + between)
            gap = _gap((wide + self.gap) / panel[1], least)
            spans = _spans(panel[1], wide, gap), _spans(panel[0], high, gap)
            x, y = _indices(spans[0], wide), _indices(spans[1], high)[:, None]
            inside = np.where((x < 0) | (y < 0), -1, order.starts[index] + y * panel[1] + x)
            self.cells[top : top + high, left : left + wide] = inside
            self.corners.append((left, top))
            self.spans.append(spans)
            if name:
                self.labels.append((left, top, name))
        self.steps: Map = np.array([*order.step_of, -1])[self.cells]  # index -1, a gap, has step -1
        self.count = len(order.steps)
        self.colors = np.array([*step_colors(self.count), BACKGROUND], np.uint8)
        self.numbered = not order.has_scales and self.pitch >= (24 if self.count > 99 else 18)

    def box(self, cell: int) -> tuple[int, int, int, int]:
        """Left, top, width and height of a cell in pixels."""
        panel, inside = self.order.plane_of(cell)
        (left, top), (columns, rows) = self.corners[panel], self.spans[panel]
        (x, width), (y, height) = columns[inside % len(columns)], rows[inside // len(columns)]
        return left + x, top + y, width, height

    def pixels(self, colors: Sequence[RGB]) -> Pixels:
        """Paint every cell in the colour of its step: (height, width, 3)."""
        return np.array([*colors, BACKGROUND], np.uint8)[self.steps]

    def at(self, s: int) -> Pixels:
        """Paint step ``s``: decoded cells coloured, the frontier bright, the rest empty."""
        colors = self.colors.copy()
        colors[s : self.count] = EMPTY
        colors[s] = FRONTIER
        pixels: Pixels = colors[self.steps]
        return pixels

    def draw_labels(
        self, draw: ImageDraw.ImageDraw, place: tuple[int, int], colors: Sequence[RGB] | None
    ) -> None:
        """Write the names of the panels and, given the colours of the steps, each cell's step."""
        for x, y, label in self.labels:
            draw.text((place[0] + x, place[1] + y - 7), label, MUTED, _font(13), anchor="ls")
        if colors is None or not self.numbered:
            return
        share = 0.4 if self.count < 1000 else 0.35
        font = _font(max(9, round((self.pitch - self.gap) * share)))
        for cell, s in enumerate(self.order.step_of):
            x, y, width, height = self.box(cell)
            ink = BACKGROUND if luminance(colors[s]) > 0.5 else TEXT
            middle = (place[0] + x + width / 2, place[1] + y + height / 2)
            draw.text(middle, str(s + 1), ink, font, anchor="mm")


def _gap(pitch: float, least: int) -> int:
    """Pixels between cells of a pitch; none below the ``least`` one."""
    return 2 if pitch >= 12 else 1 if pitch >= least else 0


def _spans(count: int, length: int, gap: int) -> list[tuple[int, int]]:
    """Cut ``length`` pixels into cells with gaps: (first pixel, number of pixels) of each."""
    edges = [k * (length + gap) // count for k in range(count + 1)]
    return [(start, end - start - gap) for start, end in pairwise(edges)]


def _indices(spans: Sequence[tuple[int, int]], length: int) -> Map:
    """Index of the span at each pixel; -1 in gaps."""
    indices: Map = np.full(length, -1)
    for index, (start, size) in enumerate(spans):
        indices[start : start + size] = index
    return indices


class _Canvas:
    """Parts side by side on the background, on one line, with room for text.

    Args:
        parts: pictures from left to right; ``put`` replaces them by others of the same size.
        head, foot: pixels kept free above and below.
        gap: pixels between parts.
        least: the least width, without margins.
    """

    def __init__(
        self, parts: Sequence[Pixels], *, head: int = 0, foot: int = 0, gap: int = MARGIN, least: int = 0
    ) -> None:
        height = max(part.shape[0] for part in parts)
        width = sum(part.shape[1] for part in parts) + gap * (len(parts) - 1)
        least = max(width, least)
        self.pixels: Pixels = np.full(
            (height + head + foot + 2 * MARGIN, least + 2 * MARGIN, 3), BACKGROUND, np.uint8
        )
        self.places: list[tuple[int, int]] = []  # (x, y)
        x = MARGIN
        for index, part in enumerate(parts):
            self.places.append((x, MARGIN + head + (height - part.shape[0]) // 2))
            self.put(index, part)
            x += part.shape[1] + gap

    def put(self, index: int, part: Pixels) -> None:
        x, y = self.places[index]
        self.pixels[y : y + part.shape[0], x : x + part.shape[1]] = part

    def image(self, order: Order | None = None, s: int = 0) -> Image.Image:
        """Copy the canvas to an image; with an order, add caption and progress of step ``s``."""
        image = Image.fromarray(self.pixels)
        if order is not None:
            draw = ImageDraw.Draw(image)
            left, right, bottom = MARGIN, image.width - MARGIN - 1, image.height - MARGIN
            draw.text((left, bottom - 14), caption(order, s), TEXT, _font(15), anchor="ls")
            draw.rectangle((left, bottom - 2, right, bottom), EMPTY)
            done = sum(map(len, order.steps[: s + 1])) / order.cells
            draw.rectangle((left, bottom - 2, left + round((right - left) * done), bottom), FRONTIER)
        return image


def _draw_legend(image: Image.Image, draw: ImageDraw.ImageDraw, colors: Sequence[RGB]) -> None:
    """Draw ``step 1 [ramp] 31`` in the lower left corner."""
    y, font = image.height - MARGIN - 6, _font(13)
    draw.text((MARGIN, y), "step 1", MUTED, font, anchor="lm")
    left = MARGIN + _text_width("step 1", 13) + 10
    bar = np.array([colors[k * len(colors) // 160] for k in range(160)], np.uint8)
    image.paste(Image.fromarray(np.repeat(bar[None], 8, axis=0)), (left, y - 4))
    draw.text((left + 170, y), str(len(colors)), MUTED, font, anchor="lm")


def _widen(part: Pixels, width: int) -> Pixels:
    """Widen a part to ``width`` pixels with background; leave a wider one."""
    extra = max(0, width - part.shape[1])
    wide: Pixels = np.full((part.shape[0], part.shape[1] + extra, 3), BACKGROUND, np.uint8)
    wide[:, extra // 2 : extra // 2 + part.shape[1]] = part
    return wide


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _text_width(text: str, size: int) -> int:
    return ceil(_font(size).getlength(text))
