"""The decoding frontier crossing the samples of a run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import ceil, sqrt

import numpy as np
from PIL import Image, ImageDraw

from ..order import Schedule
from .board import MARGIN, SPACE, Map, Pixels, _Board, _Canvas, _widen, draw_given, given_width, spread
from .style import DARK, Theme, caption
from .vector import Words, text_width, write

MAX_IMAGES = 16  # samples of a run shown side by side


MAX_CLIPS = 4  # clips of a run shown, a row each


MAX_FRAMES = 100  # of an animation of a run, besides the last; longer orders skip steps


COLUMNS = 6  # steps of a filmstrip


Clip = Sequence[Image.Image]


def shown_samples(order: Schedule) -> int:
    """Number of samples of a run that these pictures show."""
    return MAX_CLIPS if len(order.sizes) == 3 else MAX_IMAGES


def shown_steps(order: Schedule, *, still: bool) -> list[int]:
    """Evenly spaced steps, the first and the last among them, that an animation or a ``still`` shows."""
    return spread(len(order.steps), COLUMNS if still else MAX_FRAMES)


def run_frames(
    order: Schedule,
    clips: Sequence[Clip],
    partials: Sequence[Sequence[Clip]] | None = None,
    *,
    holistic: bool = False,
    given: Collection[int] = (),
    title: Sequence[str] = (),
    theme: Theme = DARK,
) -> list[Image.Image]:
    """Draw a frame for each of ``shown_steps``: board, bright frontier, and the clips as far as decoded.

    One more shows the finished clips, and nothing bright.

    Args:
        order: of a grid of one to three axes; cell (t, r, c) of (T, H, W) covers that block of the frames of
            slice t.
        clips: the final clips, all of one size and length; images are clips of one frame. The first
            ``shown_samples`` are shown.
        partials: None uncovers the final clips cell by cell; otherwise the clips decoded from the
            tokens known after each of ``shown_steps``, one list a step. Undecoded cells are empty in both.
        holistic: true if cells have no place in the frames. Then nothing is ever empty, as with an order
            that has scales; both need ``partials``.
        given: flat indices of cells whose tokens were given. They have a shade of their own.
        title: texts above, such as class, seed and model; the first is cut to the width.
        theme: colours.

    Raises:
        ValueError: no clip, different sizes, or ``partials`` without one list a step.
    """
    given = frozenset(given)
    scene = _Scene(order, clips, partials, holistic, theme, given=given)
    canvas = scene.canvas(title)
    frames = []
    for s in [*scene.shown, len(order.steps)]:
        for index, part in enumerate(scene.parts(s)):
            canvas.put(index, part)
        frames.append(canvas.image(order, s, given))
        scene.label(ImageDraw.Draw(frames[-1]), canvas.places[0])
    return frames


def frame_pixels(order: Schedule, samples: int, frames: int, size: tuple[int, int]) -> int:
    """Number of pixels of a frame of ``run_frames`` with a title, known without the run.

    Args:
        order: of the grid.
        samples: number of samples.
        frames: frames of each; 1 for pictures.
        size: (width, height) of each frame.
    """
    blank = [[Image.new("RGB", size)] * frames] * samples
    scene = _Scene(order, blank, [blank] * len(shown_steps(order, still=False)), False)
    height, width, _ = scene.canvas(["x"]).pixels.shape
    return height * width


def filmstrip(
    order: Schedule,
    clips: Sequence[Clip],
    partials: Sequence[Sequence[Clip]] | None = None,
    *,
    holistic: bool = False,
    given: Collection[int] = (),
    title: Sequence[str] = (),
    theme: Theme = DARK,
) -> Image.Image:
    """Draw a run in one still picture: evenly spaced steps from left to right, board and images of each.

    Steps of a video are wide and stand two in a row. Arguments and errors are those of ``run_frames``.
    """
    given = frozenset(given)
    scene = _Scene(order, clips, partials, holistic, theme, still=True, given=given)
    steps, shown = len(order.steps), scene.shown
    across = 2 if scene.is_video else len(shown)
    rows = []
    for start in range(0, len(shown), across):
        in_row = shown[start : start + across]
        parts = [scene.column(s) for s in in_row]
        gap = 2 * MARGIN if len(order.planes) > 1 else 16
        head = () if start else title or [""] * bool(given)  # the legend stands beside the title
        least = given_width(given)
        canvas = _Canvas(parts, theme, title=head, foot=30, gap=gap, right=0 if start else least)
        image = canvas.image()
        draw = ImageDraw.Draw(image)
        if not start:
            draw_given(draw, (image.width - MARGIN - least, MARGIN + 6), given, theme)
        for s, (x, y), part in zip(in_row, canvas.places, parts, strict=True):
            place = (x + part.shape[1] // 2, image.height - MARGIN)
            write(draw, [Words(*place, f"step {s + 1}/{steps}", 14, theme.text, True)])
            scene.label(draw, (x, y))
        rows.append(np.asarray(image))
    width = max(row.shape[1] for row in rows)
    return Image.fromarray(np.concatenate([_widen(row, width, theme.background) for row in rows]))


class _Scene:
    """The board and the images of a run at any step; arguments as ``run_frames``.

    Board and images stand side by side, or one above the other in a filmstrip (``still``). For videos the
    panel of each time slice stands above its frames.
    """

    def __init__(
        self,
        order: Schedule,
        clips: Sequence[Clip],
        partials: Sequence[Sequence[Clip]] | None,
        holistic: bool,
        theme: Theme = DARK,
        still: bool = False,
        given: Collection[int] = (),
    ) -> None:
        self.order, self.theme, self.given = order, theme, given
        self.shown = shown_steps(order, still=still)
        if partials is not None and len(partials) != len(self.shown):
            raise ValueError(f"partials: {len(partials)} lists for {len(self.shown)} steps")
        holistic = holistic or order.has_scales
        if holistic and partials is None:
            raise ValueError("cells without a place in the frames cannot be uncovered one by one")
        self.is_video = len(order.sizes) == 3
        self.partials = None if partials is None else dict(zip(self.shown, partials, strict=True))
        if self.is_video:
            slices, *sides = order.sizes
            panel = 112 if still else 208
            room, largest = slices * (panel + 16), max(1, panel // max(sides))
            self.board = _Board(
                order, theme, width=room, height=panel, largest=largest, across=slices, given=given
            )
            lefts = [left for left, _ in self.board.corners]
            width = self.board.cells.shape[1] - lefts[-1]
            self.mosaic = _Mosaic(order, clips, theme, width, lefts, holistic, given)
        else:
            side = 224 if order.has_scales else 192  # the scales take as much
            self.mosaic = _Mosaic(
                order, clips, theme, side if still else None, holistic=holistic, given=given
            )
            height = self.mosaic.height
            width = self.mosaic.width if still else height * (4 if order.has_scales else 3) // 2
            self.board = _Board(order, theme, width=width, height=height, largest=height, given=given)
        self.final = self.mosaic.arrange(clips)

    def canvas(self, title: Sequence[str]) -> _Canvas:
        """Canvas of the parts, with room for the caption of a step."""
        legend = given_width(self.given)
        least = text_width(caption(self.order, len(self.order.steps) - 1), 15) + (legend and legend + SPACE)
        return _Canvas(self.parts(0), self.theme, title=title, foot=50, least=least)

    def parts(self, s: int) -> list[Pixels]:
        """Parts of the picture of step ``s``, from left to right; of the finished one after the last."""
        return [self.column(s)] if self.is_video else [self.board.at(s), self._images(s)]

    def column(self, s: int) -> Pixels:
        """Stack the board above the images for step ``s``."""
        parts = [self.board.at(s), self._images(s)]
        width = max(part.shape[1] for part in parts)
        ground = self.theme.background
        space = np.full((SPACE, width, 3), ground, np.uint8)
        return np.concatenate([_widen(parts[0], width, ground), space, _widen(parts[1], width, ground)])

    def label(self, draw: ImageDraw.ImageDraw, place: tuple[int, int]) -> None:
        """Name the panels of the board or column at ``place``."""
        write(draw, self.board.names(place))

    def _images(self, s: int) -> Pixels:
        partial = (self.partials or {}).get(s)  # none for the finished clips
        shown = self.final if partial is None else self.mosaic.arrange(partial)
        return self.mosaic.at(s, shown)


class _Mosaic:
    """The frames of a run, and the step at which each of their pixels appears: a block for each time slice.

    Args:
        order: of the grid.
        clips: all of one size and length; only the first ``shown_samples`` are used.
        theme: colours.
        side: pixels of the longer side of a block; None is 256 pixels and more. Pictures are enlarged by
            whole factors, frames of videos to the full side.
        lefts: left pixel of the block of each time slice.
        holistic: all pixels appear at once.
        given: cells whose pixels are there from the beginning.
    """

    def __init__(
        self,
        order: Schedule,
        clips: Sequence[Clip],
        theme: Theme = DARK,
        side: int | None = None,
        lefts: Sequence[int] = (0,),
        holistic: bool = False,
        given: Collection[int] = (),
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
        if scale >= 1 and len(order.sizes) < 3:
            scale = int(scale)
        self.tile = (max(1, round(width * scale)), max(1, round(height * scale)))  # (width, height)
        block = self.across * (self.tile[0] + self.gap) - self.gap
        self.width = lefts[-1] + max(block, side or 0) if slices > 1 else block
        self.height = self.down * (self.tile[1] + self.gap) - self.gap
        grid: Map = np.zeros(order.sizes, int) if holistic else np.array(order.step_of)
        grid.reshape(-1)[list(given)] = 0
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
        self.empty: Pixels = np.array(theme.checker, np.uint8)[checker]
        self.background = theme.background
        self.empty[self.steps < 0] = self.background

    def arrange(self, clips: Sequence[Clip]) -> Pixels:
        """Place the frames, resized to their tiles: (height, width, 3)."""
        whole: Pixels = np.full((self.height, self.width, 3), self.background, np.uint8)
        for sample, frame, top, left in self.places:
            tile = clips[sample][frame].convert("RGB")
            if tile.size != self.tile:
                tile = tile.resize(self.tile, Image.Resampling.LANCZOS)
            whole[top : top + self.tile[1], left : left + self.tile[0]] = np.asarray(tile)
        return whole

    def at(self, s: int, pixels: Pixels) -> Pixels:
        """Mask the result of ``arrange``: pixels decoded by step ``s``, empty elsewhere."""
        return np.where((self.steps <= s)[..., None], pixels, self.empty)
