"""Pictures of one order, or of several side by side, at equal passes: PNG, SVG, PDF and animations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, sqrt

from PIL import Image, ImageDraw

from ..order import Schedule, format_grid
from .board import MARGIN, _Board, _Canvas, spread
from .style import DARK, RGB, Theme, caption, comparison, facts, race_caption, title
from .vector import Box, Drawing, Words, paint, text_width, to_pdf, to_svg, write

MAX_FRAMES = 256  # of an animation of orders, besides the last: all of raster order of 16x16
IN_ROW = 4  # orders that stand on one line; more make a near-square
SIDE, SIDE_MOVING = 300, 252  # pixels of a board among several, and in an animation
HEAD, BAR, BETWEEN = 50, 4, 28  # pixels above a board, of its bar, and between orders


def order_image(*orders: Schedule, theme: Theme = DARK) -> Image.Image:
    """Draw the step of each cell as a colour, with its number if it fits."""
    sheet = _sheet_of(orders, theme)
    image = paint(sheet.drawing)
    for board, place in sheet.parts:
        image.paste(Image.fromarray(board.at(board.count)), place)
        write(ImageDraw.Draw(image), [*board.names(place), *board.numbers(place)])
    return image


def order_drawing(*orders: Schedule, theme: Theme = DARK) -> Drawing:
    """Draw what ``order_image`` shows as rectangles and words; a tip tells what predicts a cell."""
    sheet = _sheet_of(orders, theme)
    for board, place in sheet.parts:
        sheet.drawing.boxes += board.boxes(place)
        sheet.drawing.words += [*board.names(place), *board.numbers(place)]
    return sheet.drawing


def order_svg(*orders: Schedule, theme: Theme = DARK) -> str:
    """Draw orders as SVG; hovering over a cell shows its step and predecessors."""
    return to_svg(order_drawing(*orders, theme=theme))


def order_pdf(*orders: Schedule, theme: Theme = DARK) -> bytes:
    """Draw orders as a PDF of one page, which is as large as the drawing."""
    return to_pdf(order_drawing(*orders, theme=theme))


def order_frames(*orders: Schedule, theme: Theme = DARK) -> list[Image.Image]:
    """Draw the boards after each pass, what it decodes bright; and at last without anything bright.

    Several orders are shown after equally many passes. There are at most ``MAX_FRAMES`` and the last.
    """
    most = max(len(order.steps) for order in orders)
    steps = [*spread(most, MAX_FRAMES), most]
    if len(orders) == 1:
        return list(_one(orders[0], theme, steps))
    return list(_Sheet(orders, theme, SIDE_MOVING).frames(steps))


def _one(order: Schedule, theme: Theme, steps: Sequence[int]) -> Iterator[Image.Image]:
    """Frames of one order."""
    board = _Board(order, theme, width=800 if order.has_scales else 480, height=480, largest=26)
    least = text_width(caption(order, len(order.steps) - 1), 15)
    canvas = _Canvas([board.at(0)], theme, foot=50, least=least)
    for s in steps:
        canvas.put(0, board.at(s))
        frame = canvas.image(order, s)
        write(ImageDraw.Draw(frame), board.names(canvas.places[0]))
        yield frame


def _sheet_of(orders: Sequence[Schedule], theme: Theme) -> _Single | _Sheet:
    return _Single(orders[0], theme) if len(orders) == 1 else _Sheet(orders, theme, SIDE).finished()


class _Single:
    """One order with a title, and a legend of its colours."""

    def __init__(self, order: Schedule, theme: Theme) -> None:
        board = _Board(order, theme, width=960, height=960, largest=40)
        width = max(board.size[0], text_width(title(order), 22), text_width(comparison(order), 14), 260)
        top = MARGIN + 54
        foot = top + board.size[1] + 40
        self.parts = [(board, (MARGIN, top))]
        self.drawing = Drawing(width + 2 * MARGIN, foot + MARGIN, title(order), theme.background)
        self.drawing.words = [
            Words(MARGIN, MARGIN + 16, title(order), 22, theme.text),
            Words(MARGIN, MARGIN + 39, comparison(order), 14, theme.muted),
            Words(MARGIN, foot - 2, "step 1", 13, theme.muted),
        ]
        left = MARGIN + text_width("step 1", 13) + 10
        self.drawing.boxes = _ramp(left, foot - 11, 160, 8, board.shades)
        self.drawing.words.append(Words(left + 170, foot - 2, str(board.count), 13, theme.muted))


class _Sheet:
    """Several orders: a board each, below its name, above a bar whose length is its number of passes."""

    def __init__(self, orders: Sequence[Schedule], theme: Theme, side: int) -> None:
        self.theme = theme
        self.boards = [
            _Board(
                order, theme, width=side, height=side, largest=40,
                across=ceil(sqrt(len(order.planes))),
            )
            for order in orders
        ]  # fmt: skip
        self.most = max(board.count for board in self.boards)
        words = f"Decoding orders of a {format_grid(orders[0].sizes)} grid"
        self.width = max(
            *(board.size[0] for board in self.boards),
            *(text_width(f"{order.name}   ", 17) + text_width(order.note, 13) for order in orders),
            *(text_width(facts(order), 13) for order in orders),
            *(text_width(race_caption(order, len(order.steps)), 13) for order in orders),
        )
        height = HEAD + max(board.size[1] for board in self.boards) + 10 + BAR
        across = len(orders) if len(orders) <= IN_ROW else ceil(sqrt(len(orders)))
        down = ceil(len(orders) / across)
        whole = max(across * (self.width + BETWEEN) - BETWEEN, text_width(words, 20))
        top = MARGIN + 40
        self.drawing = Drawing(
            whole + 2 * MARGIN,
            top + down * (height + BETWEEN) - BETWEEN + MARGIN,
            words,
            theme.background,
            words=[Words(MARGIN, MARGIN + 16, words, 20, theme.text)],
        )
        self.corners = [
            (MARGIN + k % across * (self.width + BETWEEN), top + k // across * (height + BETWEEN))
            for k in range(len(orders))
        ]
        self.bars = [y + height - BAR for _, y in self.corners]
        self.parts = [(board, (x, y + HEAD)) for board, (x, y) in zip(self.boards, self.corners, strict=True)]
        for order, (x, y), bar in zip(orders, self.corners, self.bars, strict=True):
            self.drawing.boxes.append(Box(x, bar, self.width, BAR, theme.empty))
            after = x + text_width(f"{order.name}  ", 17)
            self.drawing.words.append(Words(x, y + 16, order.name, 17, theme.text))
            if order.note:
                self.drawing.words.append(Words(after, y + 16, order.note, 13, theme.muted))

    def finished(self) -> _Sheet:
        """Add what a still picture says of each order: facts, and a bar of its colours."""
        for board, (x, y), bar in zip(self.boards, self.corners, self.bars, strict=True):
            self.drawing.words.append(Words(x, y + 37, facts(board.order), 13, self.theme.muted))
            self.drawing.boxes += _ramp(x, bar, self._length(board.count), BAR, board.shades)
        return self

    def _length(self, passes: int) -> int:
        """Pixels of a bar of so many passes."""
        return max(1, round(self.width * passes / self.most))

    def frames(self, steps: Sequence[int]) -> Iterator[Image.Image]:
        """Frames after each of ``steps`` passes, from 0; an order that is done is not bright."""
        ground = paint(self.drawing)
        for s in steps:
            frame = ground.copy()
            draw = ImageDraw.Draw(frame)
            for (board, place), (x, y), bar in zip(self.parts, self.corners, self.bars, strict=True):
                frame.paste(Image.fromarray(board.at(s)), place)
                write(draw, board.names(place))
                write(draw, [Words(x, y + 37, race_caption(board.order, s), 13, self.theme.muted)])
                color = self.theme.frontier if s < board.count else self.theme.muted
                end = x + self._length(min(s + 1, board.count)) - 1
                draw.rectangle((x, bar, end, bar + BAR - 1), color)
            yield frame


def _ramp(x: int, y: int, width: int, height: int, colors: Sequence[RGB]) -> list[Box]:
    """A strip of all colours, in whole pixels."""
    count = min(len(colors), width)
    edges = [k * width // count for k in range(count + 1)]
    return [
        Box(x + edges[k], y, edges[k + 1] - edges[k], height, colors[k * len(colors) // count])
        for k in range(count)
    ]
