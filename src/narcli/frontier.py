"""Pictures of the decoding order, and of a run as its frontier crosses the grid.

A picture is a *board* (the token grid, one square a cell, one panel a time slice) coloured by
decoding step, and for a run the images beside it. Both are maps of step numbers, one for each pixel,
so that a frame is one table lookup and one ``where``; no loop runs over cells.

In everything a person sees steps count from 1; cells are flat row-major indices from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from html import escape
from math import ceil, sqrt

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from .order import Order, format_grid
from .style import (
    BACKGROUND,
    CHECKER,
    EMPTY,
    FRONTIER,
    MUTED,
    RGB,
    TEXT,
    caption,
    comparison,
    hexadecimal,
    luminance,
    step_colors,
)

Pixels = npt.NDArray[np.uint8]  # (height, width, 3)
Map = npt.NDArray[np.int64]  # (height, width)

MARGIN = 24  # pixels around and between the parts of a picture
MAX_FRAMES = 200  # of an animation of the order; larger grids skip steps
MAX_IMAGES = 16  # of a run, shown side by side

# --- of an order ---------------------------------------------------------------------------------


def order_image(order: Order) -> Image.Image:
    """The step of each cell as a colour, with its number where it fits."""
    board = _Board(order, width=960, height=960, largest=40)
    colors = step_colors(len(order.steps))
    canvas = _Canvas([board.pixels(colors)], head=54, foot=40, least=_text_width(comparison(order), 14))
    image = canvas.image()
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, MARGIN - 5), f"{format_grid(order.sizes)} decoding order", TEXT, _font(22))
    draw.text((MARGIN, MARGIN + 26), comparison(order), MUTED, _font(14))
    board.draw_labels(draw, canvas.places[0], colors)
    _draw_legend(image, draw, colors)
    return image


def order_frames(order: Order) -> list[Image.Image]:
    """The board at each step, the frontier bright; at most ``MAX_FRAMES``, always with the last step."""
    steps = len(order.steps)
    shown = np.unique(np.linspace(0, steps - 1, min(steps, MAX_FRAMES)).round().astype(int)).tolist()
    board = _Board(order, width=480, height=480, largest=26)
    canvas = _Canvas(
        [board.pixels([EMPTY] * steps)], foot=50, least=_text_width(caption(order, steps - 1), 15)
    )
    frames = []
    for s in shown:
        canvas.put(0, board.at(s))
        frames.append(canvas.image(order, s))
        board.draw_labels(ImageDraw.Draw(frames[-1]), canvas.places[0], None)
    return frames


def order_svg(order: Order) -> str:
    """The order as a scalable drawing; hovering over a cell names its step and its predecessors."""
    board = _Board(order, width=960, height=960, largest=40)
    colors = list(map(hexadecimal, step_colors(len(order.steps))))
    dark = [luminance(color) > 0.5 for color in step_colors(len(order.steps))]
    height, width = board.cells.shape
    side = board.pitch - board.gap
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {max(width, 480) + 2 * MARGIN} '
        f'{height + 54 + 2 * MARGIN}" font-family="system-ui, sans-serif">',
        f"<title>{format_grid(order.sizes)} decoding order: {escape(comparison(order))}</title>",
        f'<rect width="100%" height="100%" fill="{hexadecimal(BACKGROUND)}"/>',
        f'<text x="{MARGIN}" y="{MARGIN + 16}" font-size="22" fill="{hexadecimal(TEXT)}">'
        f"{format_grid(order.sizes)} decoding order</text>",
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
        x, y = board.corner(cell)
        before = ", ".join(f"{p.cell} ({p.head})" for p in order.predecessors(cell)) or "nothing"
        parts.append(
            f'<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="{colors[s]}">'
            f"<title>step {s + 1}, cell {cell}, predicted from {before}</title></rect>"
        )
        if board.numbered:
            parts.append(
                f'<text x="{x + side / 2}" y="{round(y + side * 0.65, 1)}" pointer-events="none" '
                f'fill="{hexadecimal(BACKGROUND if dark[s] else TEXT)}">{s + 1}</text>'
            )
    return "\n".join([*parts, "</g>", "</svg>", ""])


# --- of a run ------------------------------------------------------------------------------------


def run_frames(
    order: Order,
    images: Sequence[Image.Image],
    partials: Sequence[Sequence[Image.Image]] | None = None,
) -> list[Image.Image]:
    """One frame a step: the board with the bright frontier, and the images as far as they are decoded.

    Args:
        order: of a grid of one or two axes; cell (r, c) of (H, W) covers that block of each image.
        images: the final images, all of one size; the first ``MAX_IMAGES`` are shown.
        partials: None uncovers the final images cell by cell; otherwise the images decoded from the
            tokens known after each step, one list a step. Undecoded cells are empty in both.

    Raises:
        ValueError: when there is no image, sizes differ, the grid has a time axis, or ``partials`` does
            not have one list a step.
    """
    mosaic = _Mosaic(order, images)
    if partials is not None and len(partials) != len(order.steps):
        raise ValueError(f"partials: {len(partials)} lists for {len(order.steps)} steps")
    board = _Board(order, width=3 * mosaic.height // 2, height=mosaic.height, largest=mosaic.height)
    canvas = _Canvas([board.pixels([EMPTY] * len(order.steps)), mosaic.empty], foot=50)
    final = mosaic.arrange(images)
    frames = []
    for s in range(len(order.steps)):
        canvas.put(0, board.at(s))
        canvas.put(1, mosaic.at(s, final if partials is None else mosaic.arrange(partials[s])))
        frames.append(canvas.image(order, s))
    return frames


def filmstrip(
    order: Order,
    images: Sequence[Image.Image],
    partials: Sequence[Sequence[Image.Image]] | None = None,
    columns: int = 6,
) -> Image.Image:
    """The run in one still picture: evenly spaced steps from left to right, board above image.

    Arguments and errors are those of ``run_frames``; ``columns`` is the number of steps shown.
    """
    mosaic = _Mosaic(order, images, side=192)
    if partials is not None and len(partials) != len(order.steps):
        raise ValueError(f"partials: {len(partials)} lists for {len(order.steps)} steps")
    steps = len(order.steps)
    shown = [ceil((k + 1) * steps / columns) - 1 for k in range(columns)] if steps > columns else range(steps)
    board = _Board(order, width=mosaic.width, height=mosaic.height, largest=mosaic.height)
    final = mosaic.arrange(images)
    columns_shown = []
    for s in shown:
        above = _center(board.at(s), mosaic.width)
        below = _center(
            mosaic.at(s, final if partials is None else mosaic.arrange(partials[s])), above.shape[1]
        )
        space = np.full((16, above.shape[1], 3), BACKGROUND, np.uint8)
        columns_shown.append(np.concatenate([above, space, below]))
    canvas = _Canvas(columns_shown, foot=30, gap=16)
    image = canvas.image()
    draw = ImageDraw.Draw(image)
    for s, (x, _), column in zip(shown, canvas.places, columns_shown, strict=True):
        place = (x + column.shape[1] // 2, image.height - MARGIN)
        draw.text(place, f"step {s + 1}/{steps}", TEXT, _font(14), anchor="ms")
    return image


# --- parts ---------------------------------------------------------------------------------------


class _Board:
    """The token grid as squares: panels of a time axis in near-square rows, each with its label.

    Args:
        order: of a grid of 1 to 3 axes.
        width, height: pixels it may take; exceeded only by grids with more cells than pixels.
        largest: the largest pitch (a cell and its gap), in pixels.
    """

    def __init__(self, order: Order, *, width: int, height: int, largest: int) -> None:
        slices, self.rows, self.columns = (1, 1, *order.sizes)[-3:]
        self.across = ceil(sqrt(slices))
        down = ceil(slices / self.across)
        room = (width // self.across // self.columns, height // down // self.rows)
        self.pitch = max(1, min(largest, *room))
        self.gap = 2 if self.pitch >= 12 else 1 if self.pitch >= 5 else 0
        label, between = (22, 16) if slices > 1 else (0, 0)
        panel = (self.rows * self.pitch - self.gap, self.columns * self.pitch - self.gap)
        self.step_of: Map = np.array([*order.step_of, -1])  # index -1, a gap, has step -1
        self.labels: list[tuple[int, int, str]] = []
        size = (down * (panel[0] + label + between) - between, self.across * (panel[1] + between) - between)
        self.cells: Map = np.full(size, -1)  # the cell at each pixel, -1 in gaps
        inside_y, y = (
            np.arange(panel[0]) % self.pitch < self.pitch - self.gap,
            np.arange(panel[0]) // self.pitch,
        )
        inside_x, x = (
            np.arange(panel[1]) % self.pitch < self.pitch - self.gap,
            np.arange(panel[1]) // self.pitch,
        )
        flat = np.where(inside_y[:, None] & inside_x, y[:, None] * self.columns + x, -1)
        self.corners: list[tuple[int, int]] = []
        for t in range(slices):
            top = t // self.across * (panel[0] + label + between) + label
            left = t % self.across * (panel[1] + between)
            offset = t * self.rows * self.columns
            self.cells[top : top + panel[0], left : left + panel[1]] = np.where(flat < 0, -1, flat + offset)
            self.corners.append((left, top))
            if slices > 1:
                self.labels.append((left, top, f"t = {t}"))
        self.steps: Map = self.step_of[self.cells]
        self.count = len(order.steps)
        self.colors = step_colors(self.count)
        self.numbered = self.pitch >= (24 if self.count > 99 else 18)

    def corner(self, cell: int) -> tuple[int, int]:
        """Upper left pixel of a cell, (x, y)."""
        t, rest = divmod(cell, self.rows * self.columns)
        left, top = self.corners[t]
        return left + rest % self.columns * self.pitch, top + rest // self.columns * self.pitch

    def pixels(self, colors: Sequence[RGB]) -> Pixels:
        """Every cell in the colour of its step."""
        return np.array([*colors, BACKGROUND], np.uint8)[self.steps]

    def at(self, s: int) -> Pixels:
        """The state during step ``s``: decoded cells coloured, the frontier bright, the rest empty."""
        return self.pixels([*self.colors[:s], FRONTIER, *[EMPTY] * (self.count - s - 1)])

    def draw_labels(
        self, draw: ImageDraw.ImageDraw, place: tuple[int, int], colors: Sequence[RGB] | None
    ) -> None:
        """Write the names of the panels and, given the colours of the steps, each cell's step."""
        for x, y, label in self.labels:
            draw.text((place[0] + x, place[1] + y - 7), label, MUTED, _font(13), anchor="ls")
        if colors is None or not self.numbered:
            return
        side = self.pitch - self.gap
        font = _font(max(9, round(side * 0.4)))
        for cell, s in enumerate(self.step_of[:-1].tolist()):
            x, y = self.corner(cell)
            ink = BACKGROUND if luminance(colors[s]) > 0.5 else TEXT
            middle = (place[0] + x + side / 2, place[1] + y + side / 2)
            draw.text(middle, str(s + 1), ink, font, anchor="mm")


class _Mosaic:
    """The images of a run in near-square rows, and the step at which each of their pixels appears.

    Args:
        order: of a grid of one or two axes.
        images: all of one size; only the first ``MAX_IMAGES`` are used.
        side: pixels of the longer side of the whole, for one image enlarged by whole factors only.
    """

    def __init__(self, order: Order, images: Sequence[Image.Image], side: int | None = None) -> None:
        if not images or len({image.size for image in images}) > 1:
            raise ValueError("images of a run: at least one, all of one size")
        if len(order.sizes) > 2:
            raise ValueError(f"a grid with a time axis ({format_grid(order.sizes)}) has no single image")
        self.count = min(len(images), MAX_IMAGES)
        self.across = ceil(sqrt(self.count))
        self.down = ceil(self.count / self.across)
        self.gap = 0 if self.count == 1 else 6
        width, height = images[0].size
        longest = ((side or (256 if self.count == 1 else 400)) + self.gap) // self.across - self.gap
        if self.count == 1 and side is None:
            longest = min(max(longest, max(width, height)), 384)
        scale = longest / max(width, height)
        scale = int(scale) if scale >= 1 else scale
        self.tile = (max(1, round(width * scale)), max(1, round(height * scale)))  # (width, height)
        self.width = self.across * (self.tile[0] + self.gap) - self.gap
        self.height = self.down * (self.tile[1] + self.gap) - self.gap
        rows, columns = (1, *order.sizes)[-2:]
        grid: Map = np.array(order.step_of).reshape(rows, columns)
        y = np.arange(self.tile[1]) * rows // self.tile[1]
        x = np.arange(self.tile[0]) * columns // self.tile[0]
        self.steps: Map = np.full((self.height, self.width), -1)  # -1 between images
        for top, left in self._corners():
            self.steps[top : top + self.tile[1], left : left + self.tile[0]] = grid[y[:, None], x]
        checker = (np.arange(self.height)[:, None] // 8 + np.arange(self.width) // 8) % 2
        self.empty: Pixels = np.array(CHECKER, np.uint8)[checker]
        self.empty[self._outside()] = BACKGROUND

    def arrange(self, images: Sequence[Image.Image]) -> Pixels:
        """Images side by side, resized to their tiles."""
        whole: Pixels = np.full((self.height, self.width, 3), BACKGROUND, np.uint8)
        for (top, left), image in zip(self._corners(), images, strict=False):
            tile = image.convert("RGB")
            if tile.size != self.tile:
                tile = tile.resize(self.tile, Image.Resampling.LANCZOS)
            whole[top : top + self.tile[1], left : left + self.tile[0]] = np.asarray(tile)
        return whole

    def at(self, s: int, pixels: Pixels) -> Pixels:
        """``pixels`` (of ``arrange``) where decoded by step ``s``, empty elsewhere."""
        return np.where((self.steps <= s)[..., None], pixels, self.empty)

    def _corners(self) -> list[tuple[int, int]]:
        height, width = self.tile[1] + self.gap, self.tile[0] + self.gap
        return [(k // self.across * height, k % self.across * width) for k in range(self.count)]

    def _outside(self) -> npt.NDArray[np.bool_]:
        return self.steps < 0


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
        """A copy as an image; given an order, with the caption and progress of step ``s``."""
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
    """``step 1 [ramp] 31`` in the lower left corner."""
    y, font = image.height - MARGIN - 6, _font(13)
    draw.text((MARGIN, y), "step 1", MUTED, font, anchor="lm")
    left = MARGIN + _text_width("step 1", 13) + 10
    bar = np.array([colors[k * len(colors) // 160] for k in range(160)], np.uint8)
    image.paste(Image.fromarray(np.repeat(bar[None], 8, axis=0)), (left, y - 4))
    draw.text((left + 170, y), str(len(colors)), MUTED, font, anchor="lm")


def _center(part: Pixels, width: int) -> Pixels:
    """Widen a part to ``width`` pixels with background; a wider one stays as it is."""
    extra = max(0, width - part.shape[1])
    wide: Pixels = np.full((part.shape[0], part.shape[1] + extra, 3), BACKGROUND, np.uint8)
    wide[:, extra // 2 : extra // 2 + part.shape[1]] = part
    return wide


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _text_width(text: str, size: int) -> int:
    return ceil(_font(size).getlength(text))
