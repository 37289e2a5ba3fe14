"""The token grid as a board of squares, and the canvas that frontiers are drawn on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from math import ceil, sqrt

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ..order import Order, Schedule
from .style import DARK, RGB, Theme, caption, done, ink, plane_names, step_colors
from .vector import Box, Words, fitted, text_width, write

Pixels = npt.NDArray[np.uint8]  # (height, width, 3)
Map = npt.NDArray[np.int64]  # (height, width)

MARGIN = 24  # pixels around and between the parts of a picture
SPACE = 12  # pixels between parts that stand one above the other
TITLE = 30  # pixels of a title's line


def spread(count: int, most: int) -> list[int]:
    """Choose at most ``most`` evenly spaced numbers below ``count``, with the first and the last."""
    chosen: list[int] = np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()
    return chosen


class _Board:
    """The token grid as squares: panels in near-square rows, each with its label.

    All panels take equal room: scales, two rows of them, have smaller cells the finer they are.

    Args:
        order: of a grid of 1 to 3 axes.
        theme: its colours.
        width, height: pixels it may take; exceeded only by grids with more cells than pixels.
        largest: the largest pitch (a cell and its gap), in pixels.
        across: panels in a row; None makes the rows near-square.
        given: flat indices of cells whose tokens were given.
    """

    def __init__(
        self,
        order: Schedule,
        theme: Theme = DARK,
        *,
        width: int,
        height: int,
        largest: int,
        across: int | None = None,
        given: Collection[int] = (),
    ) -> None:
        panels = order.planes
        rows, columns = panels[-1]
        across = across or ceil(len(panels) / 2 if order.has_scales else sqrt(len(panels)))
        down = ceil(len(panels) / across)
        room = (width // across // columns, height // down // rows)
        self.order, self.theme = order, theme
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
        self.given = np.isin(self.cells, list(given))  # at each pixel
        self.count = len(order.steps)
        self.shades = step_colors(self.count)
        self.colors = np.array([*self.shades, theme.background], np.uint8)
        self.numbered = not order.has_scales and self.pitch >= (24 if self.count > 99 else 18)

    def box(self, cell: int) -> tuple[int, int, int, int]:
        """Left, top, width and height of a cell in pixels."""
        panel, inside = self.order.plane_of(cell)
        (left, top), (columns, rows) = self.corners[panel], self.spans[panel]
        (x, width), (y, height) = columns[inside % len(columns)], rows[inside // len(columns)]
        return left + x, top + y, width, height

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.cells.shape[1], self.cells.shape[0]

    def at(self, s: int) -> Pixels:
        """Paint step ``s``: decoded cells coloured, the frontier bright, given ones gray, others empty.

        After the last step all cells are coloured, and none is bright.
        """
        colors = self.colors.copy()
        colors[s : self.count] = self.theme.empty
        if s < self.count:
            colors[s] = self.theme.frontier
        pixels: Pixels = colors[self.steps]
        pixels[self.given] = self.theme.given
        return pixels

    def names(self, place: tuple[int, int]) -> list[Words]:
        """Names of the panels, for a board whose upper left corner is at ``place``."""
        return [
            Words(place[0] + x, place[1] + y - 7, name, 13, self.theme.muted) for x, y, name in self.labels
        ]

    def numbers(self, place: tuple[int, int]) -> list[Words]:
        """The step of each cell, from 1, if the cells have room."""
        if not self.numbered:
            return []
        size = max(9, round((self.pitch - self.gap) * (0.4 if self.count < 1000 else 0.35)))
        words = []
        for cell, s in enumerate(self.order.step_of):
            x, y, width, height = self.box(cell)
            middle, baseline = place[0] + x + width / 2, place[1] + y + height / 2 + 0.36 * size
            words.append(Words(middle, baseline, str(s + 1), size, ink(self.shades[s]), True))
        return words

    def boxes(self, place: tuple[int, int]) -> list[Box]:
        """A rectangle for each cell in the colour of its step; its tip tells step and predecessors."""
        return [
            Box(place[0] + x, place[1] + y, width, height, self.shades[s], _tip(self.order, cell))
            for cell, s in enumerate(self.order.step_of)
            for x, y, width, height in [self.box(cell)]
        ]


def _tip(order: Schedule, cell: int) -> str:
    """Words on a cell: its step and the inputs that predict it, with the axis of each if heads differ."""
    step = f"step {order.step_of[cell] + 1}, cell {cell}"
    if not isinstance(order, Order):
        return step
    before = order.predecessors(cell)
    if before:
        named = len(order.heads) == len(order.sizes)
        origin = ", ".join(f"{p.cell} ({p.head})" if named else str(p.cell) for p in before)
    elif order.step_of[cell] == 0:
        origin = "nothing"
    else:
        origin = "the smaller grids" if order.has_scales else "a learned token"
    return f"{step}, predicted from {origin}"


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
        theme: colours.
        title: texts above, the first cut to the width; none takes no room.
        foot: pixels kept free below.
        gap: pixels between parts.
        least: the least width, without margins.
        right: pixels kept free at the right of the title.
    """

    def __init__(
        self,
        parts: Sequence[Pixels],
        theme: Theme = DARK,
        *,
        title: Sequence[str] = (),
        foot: int = 0,
        gap: int = MARGIN,
        least: int = 0,
        right: int = 0,
    ) -> None:
        height = max(part.shape[0] for part in parts)
        width = max(least, sum(part.shape[1] for part in parts) + gap * (len(parts) - 1))
        head = TITLE if title else 0
        self.theme = theme
        self.pixels: Pixels = np.full(
            (height + head + foot + 2 * MARGIN, width + 2 * MARGIN, 3), theme.background, np.uint8
        )
        self.title = (
            [Words(MARGIN, MARGIN + 12, fitted(title, 17, width - right), 17, theme.text)] if title else []
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

    def image(self, order: Schedule | None = None, s: int = 0, given: Collection[int] = ()) -> Image.Image:
        """Copy the canvas to an image; with an order, add caption, legend and progress of step ``s``.

        After the last step the progress is not bright.
        """
        image, theme = Image.fromarray(self.pixels), self.theme
        draw = ImageDraw.Draw(image)
        write(draw, self.title)
        if order is not None:
            over = s >= len(order.steps)
            last = min(s, len(order.steps) - 1)
            left, right, bottom = MARGIN, image.width - MARGIN - 1, image.height - MARGIN
            write(draw, [Words(left, bottom - 14, caption(order, last, given), 15, theme.text)])
            draw_given(draw, (right - given_width(given), bottom - 20), given, theme)
            draw.rectangle((left, bottom - 2, right, bottom), theme.empty)
            end = left + round((right - left) * done(order, last, given) / order.cells)
            draw.rectangle((left, bottom - 2, end, bottom), theme.muted if over else theme.frontier)
        return image


def given_width(given: Collection[int]) -> int:
    """Pixels of the legend of given cells; 0 without any."""
    return 18 + text_width(f"{len(given)} given", 13) if given else 0


def draw_given(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], given: Collection[int], theme: Theme
) -> None:
    """Draw the legend of given cells, their shade and number, from the middle of its left edge."""
    x, y = place
    if given:
        draw.rectangle((x, y - 5, x + 10, y + 5), theme.given)
        write(draw, [Words(x + 18, y + 5, f"{len(given)} given", 13, theme.muted)])


def _widen(part: Pixels, width: int, background: RGB) -> Pixels:
    """Widen a part to ``width`` pixels with background; leave a wider one."""
    extra = max(0, width - part.shape[1])
    wide: Pixels = np.full((part.shape[0], part.shape[1] + extra, 3), background, np.uint8)
    wide[:, extra // 2 : extra // 2 + part.shape[1]] = part
    return wide
