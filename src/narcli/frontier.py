"""Pictures of the decoding order, and of a run as its frontier crosses the grid.

A picture is a *board* (the token grid, one square a cell, one panel a time slice) coloured by
decoding step, and for a run the images beside it, or the frames of each time slice below its panel. Both
are maps of step numbers, one for each pixel, so that a frame is one table lookup and one ``where``; no loop
runs over cells. An image is a clip of one frame here, too.

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
SPACE = 12  # between those that stand one above the other
MAX_FRAMES = 200  # of an animation of the order; larger grids skip steps
MAX_IMAGES = 16  # of a run, shown side by side
MAX_CLIPS = 4  # likewise, each in a row of its own

Clip = Sequence[Image.Image]

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


def shown_samples(order: Order) -> int:
    """How many samples of a run the pictures below show."""
    return MAX_CLIPS if len(order.sizes) == 3 else MAX_IMAGES


def run_frames(
    order: Order,
    clips: Sequence[Clip],
    partials: Sequence[Sequence[Clip]] | None = None,
    *,
    holistic: bool = False,
) -> list[Image.Image]:
    """One frame a step: the board with the bright frontier, and the clips as far as they are decoded.

    Args:
        order: of a grid of one to three axes; cell (t, r, c) of (T, H, W) covers that block of the frames of
            slice t.
        clips: the final clips, all of one size and length; images are clips of one frame. The first
            ``shown_samples`` are shown.
        partials: None uncovers the final clips cell by cell; otherwise the clips decoded from the
            tokens known after each step, one list a step. Undecoded cells are empty in both.
        holistic: cells have no place in the frames, so that nothing is ever empty; needs ``partials``.

    Raises:
        ValueError: when there is no clip, sizes differ, or ``partials`` does not have one list a step.
    """
    scene = _Scene(order, clips, partials, holistic)
    canvas = _Canvas(scene.parts(0), foot=50, least=_text_width(caption(order, len(order.steps) - 1), 15))
    frames = []
    for s in range(len(order.steps)):
        for index, part in enumerate(scene.parts(s)):
            canvas.put(index, part)
        frames.append(canvas.image(order, s))
        scene.label(ImageDraw.Draw(frames[-1]), canvas.places[0])
    return frames


def frame_pixels(order: Order, samples: int, frames: int, size: tuple[int, int]) -> int:
    """Pixels of a frame of ``run_frames``, told without the run.

    Args:
        order: of the grid.
        samples: how many there are.
        frames: of each; 1 of pictures.
        size: (width, height) of each.
    """
    blank = [[Image.new("RGB", size)] * frames] * samples
    parts = _Scene(order, blank, None, False).parts(0)
    least = _text_width(caption(order, len(order.steps) - 1), 15)
    height, width, _ = _Canvas(parts, foot=50, least=least).pixels.shape
    return height * width


def filmstrip(
    order: Order,
    clips: Sequence[Clip],
    partials: Sequence[Sequence[Clip]] | None = None,
    columns: int = 6,
    *,
    holistic: bool = False,
) -> Image.Image:
    """The run in one still picture: evenly spaced steps from left to right, board and images of each.

    Those of a video, which are wide, stand two in a row. Arguments and errors are those of ``run_frames``;
    ``columns`` is the number of steps shown.
    """
    scene = _Scene(order, clips, partials, holistic, still=True)
    steps = len(order.steps)
    shown = [ceil((k + 1) * steps / columns) - 1 for k in range(columns)] if steps > columns else range(steps)
    across = 2 if scene.is_video else len(shown)
    rows = []
    for start in range(0, len(shown), across):
        in_row = shown[start : start + across]
        parts = [scene.column(s) for s in in_row]
        canvas = _Canvas(parts, foot=30, gap=2 * MARGIN if scene.is_video else 16)
        image = canvas.image()
        draw = ImageDraw.Draw(image)
        for s, (x, y), part in zip(in_row, canvas.places, parts, strict=True):
            place = (x + part.shape[1] // 2, image.height - MARGIN)
            draw.text(place, f"step {s + 1}/{steps}", TEXT, _font(14), anchor="ms")
            scene.label(draw, (x, y))
        rows.append(np.asarray(image))
    width = max(row.shape[1] for row in rows)
    return Image.fromarray(np.concatenate([_widen(row, width) for row in rows]))


# --- parts ---------------------------------------------------------------------------------------


class _Scene:
    """The board and the images of a run at any step; arguments as ``run_frames``.

    Of images the two stand side by side, or one above the other in a filmstrip (``still``). Of videos the
    panel of each time slice stands above its frames.
    """

    def __init__(
        self,
        order: Order,
        clips: Sequence[Clip],
        partials: Sequence[Sequence[Clip]] | None,
        holistic: bool,
        still: bool = False,
    ) -> None:
        if partials is not None and len(partials) != len(order.steps):
            raise ValueError(f"partials: {len(partials)} lists for {len(order.steps)} steps")
        if holistic and partials is None:
            raise ValueError("holistic tokens cannot be uncovered cell by cell")
        self.is_video, self.partials = len(order.sizes) == 3, partials
        if self.is_video:
            slices, *sides = order.sizes
            panel = 112 if still else 208
            room, largest = slices * (panel + 16), max(1, panel // max(sides))
            self.board = _Board(order, width=room, height=panel, largest=largest, across=slices)
            lefts = [left for left, _ in self.board.corners]
            width = self.board.cells.shape[1] - lefts[-1]
            self.mosaic = _Mosaic(order, clips, width, lefts, holistic)
        else:
            self.mosaic = _Mosaic(order, clips, 192 if still else None)
            width, height = self.mosaic.width if still else 3 * self.mosaic.height // 2, self.mosaic.height
            self.board = _Board(order, width=width, height=height, largest=height)
        self.final = self.mosaic.arrange(clips)

    def parts(self, s: int) -> list[Pixels]:
        """What stands side by side in the picture of step ``s``."""
        return [self.column(s)] if self.is_video else [self.board.at(s), self._images(s)]

    def column(self, s: int) -> Pixels:
        """The board above the images."""
        parts = [self.board.at(s), self._images(s)]
        width = max(part.shape[1] for part in parts)
        space = np.full((SPACE, width, 3), BACKGROUND, np.uint8)
        return np.concatenate([_widen(parts[0], width), space, _widen(parts[1], width)])

    def label(self, draw: ImageDraw.ImageDraw, place: tuple[int, int]) -> None:
        """Name the time slices of the column at ``place``."""
        self.board.draw_labels(draw, place, None)

    def _images(self, s: int) -> Pixels:
        shown = self.final if self.partials is None else self.mosaic.arrange(self.partials[s])
        return self.mosaic.at(s, shown)


class _Board:
    """The token grid as squares: panels of a time axis in near-square rows, each with its label.

    Args:
        order: of a grid of 1 to 3 axes.
        width, height: pixels it may take; exceeded only by grids with more cells than pixels.
        largest: the largest pitch (a cell and its gap), in pixels.
        across: panels in a row; None makes the rows near-square.
    """

    def __init__(
        self, order: Order, *, width: int, height: int, largest: int, across: int | None = None
    ) -> None:
        slices, self.rows, self.columns = (1, 1, *order.sizes)[-3:]
        self.across = across or ceil(sqrt(slices))
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
    """The frames of a run, and the step at which each of their pixels appears: a block for each time slice.

    Args:
        order: of the grid.
        clips: all of one size and length; only the first ``shown_samples`` are used.
        side: pixels of the longer side of a block, for one image enlarged by whole factors only; None is
            256 pixels and more.
        lefts: where the block of each time slice begins.
        holistic: all pixels appear at once.
    """

    def __init__(
        self,
        order: Order,
        clips: Sequence[Clip],
        side: int | None = None,
        lefts: Sequence[int] = (0,),
        holistic: bool = False,
    ) -> None:
        if not clips or len({(len(clip), image.size) for clip in clips for image in clip}) != 1:
            raise ValueError("clips of a run: at least one, all of one size and length")
        slices, rows, columns = (1, 1, *order.sizes)[-3:]
        samples, each = min(len(clips), shown_samples(order)), ceil(len(clips[0]) / slices)
        self.count = samples * each  # frames of a block
        self.across = each if each > 1 and samples > 1 else ceil(sqrt(self.count))
        self.down = ceil(self.count / self.across)
        self.gap = 0 if self.count == 1 else 6
        width, height = clips[0][0].size
        longest = ((side or (256 if self.count == 1 else 400)) + self.gap) // self.across - self.gap
        if self.count == 1 and side is None:
            longest = min(max(longest, max(width, height)), 384)
        scale = longest / max(width, height)
        scale = int(scale) if scale >= 1 else scale
        self.tile = (max(1, round(width * scale)), max(1, round(height * scale)))  # (width, height)
        block = self.across * (self.tile[0] + self.gap) - self.gap
        self.width = lefts[-1] + max(block, side or 0) if slices > 1 else block
        self.height = self.down * (self.tile[1] + self.gap) - self.gap
        grid: Map = np.zeros_like(order.step_of) if holistic else np.array(order.step_of)
        y = np.arange(self.tile[1]) * rows // self.tile[1]
        x = np.arange(self.tile[0]) * columns // self.tile[0]
        self.steps: Map = np.full((self.height, self.width), -1)  # -1 between images
        self.places: list[tuple[int, int, int, int]] = []  # (sample, frame, top, left) of each image
        indent = max(0, (side or 0) - block) // 2 if slices > 1 else 0
        for frame in range(len(clips[0])):
            t, within = divmod(frame, each)
            appears = grid.reshape(slices, rows, columns)[t, y[:, None], x]
            for sample in range(samples):
                down, along = divmod(sample * each + within, self.across)
                top = down * (self.tile[1] + self.gap)
                left = along * (self.tile[0] + self.gap) + lefts[t] + indent
                self.places.append((sample, frame, top, left))
                self.steps[top : top + self.tile[1], left : left + self.tile[0]] = appears
        checker = (np.arange(self.height)[:, None] // 8 + np.arange(self.width) // 8) % 2
        self.empty: Pixels = np.array(CHECKER, np.uint8)[checker]
        self.empty[self.steps < 0] = BACKGROUND

    def arrange(self, clips: Sequence[Clip]) -> Pixels:
        """The frames in their places, resized to their tiles."""
        whole: Pixels = np.full((self.height, self.width, 3), BACKGROUND, np.uint8)
        for sample, frame, top, left in self.places:
            tile = clips[sample][frame].convert("RGB")
            if tile.size != self.tile:
                tile = tile.resize(self.tile, Image.Resampling.LANCZOS)
            whole[top : top + self.tile[1], left : left + self.tile[0]] = np.asarray(tile)
        return whole

    def at(self, s: int, pixels: Pixels) -> Pixels:
        """``pixels`` (of ``arrange``) where decoded by step ``s``, empty elsewhere."""
        return np.where((self.steps <= s)[..., None], pixels, self.empty)


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


def _widen(part: Pixels, width: int) -> Pixels:
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
