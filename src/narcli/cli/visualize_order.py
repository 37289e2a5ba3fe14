"""``narcli visualize-order``: the decoding order in the terminal, as a picture, or as data."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from math import ceil
from typing import Annotated

import typer

from ..errors import UsageError
from ..order import NAMES, NAR, Order, format_grid, named, parse_grid
from ..runs.orders import check_size, document, write_order
from ..viz.style import EMPTY, FRONTIER, RGB, caption, comparison, step_colors
from .console import Console, has_color, is_terminal
from .options import Json, Overwrite, Quiet

SECONDS = 3.0  # the longest animation in a terminal


def visualize_order(
    grid: Annotated[
        str, typer.Option("--grid", "-g", metavar="SIZES", help="Token grid, such as 16x16 or 4x16x16.")
    ] = "16x16",
    order: Annotated[str, typer.Option(metavar="NAME", help=f"Decoding order: {NAMES}.")] = NAR,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write a .png, .gif, .mp4, .svg, .json or .csv."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show the order in which a token grid is decoded."""
    if overwrite and output is None:
        raise UsageError("--overwrite needs a file to write.", "Add --output FILE.")
    sizes = parse_grid(grid)
    check_size(sizes)
    shown = named(order, sizes)
    console = Console(quiet)
    path = None if output is None else write_order(shown, output, overwrite=overwrite)
    if as_json:
        console.json(document(shown, with_cells=path is None) | ({"file": str(path)} if path else {}))
    elif path is not None:
        console.note(f"{format_grid(sizes)} grid: {comparison(shown)}")
        console.result(path)
    elif is_terminal(sys.stdout) and not quiet:
        animate(shown)
        console.result(f"{format_grid(sizes)} grid: {comparison(shown)}")
    else:
        for line in plain_lines(shown):
            console.result(line)


# --- text ----------------------------------------------------------------------------------------


def plain_lines(order: Order) -> Iterator[str]:
    """Lines of plain text: the step of each cell, then every step."""
    yield f"{format_grid(order.sizes)} grid: {comparison(order)}"
    slices, rows, columns = (1, 1, *order.sizes)[-3:]
    width = len(str(len(order.steps)))
    for t in range(slices):
        yield f"\nt = {t}" if slices > 1 else ""
        for row in range(t * rows, (t + 1) * rows):
            yield " ".join(f"{s + 1:{width}}" for s in order.step_of[row * columns : (row + 1) * columns])
    yield ""
    for s in range(len(order.steps)):
        yield caption(order, s)


# --- a terminal ----------------------------------------------------------------------------------


def animate(order: Order) -> None:
    """Draw each step over the one before; a large grid is shown at a whole fraction.

    A terminal that is too small even for that gets no animation.
    """
    size = shutil.get_terminal_size()
    color = has_color(sys.stdout)
    cells, (across, down), every = _layout(order, size.columns - 1, size.lines - 4, color)
    height = ceil(len(cells) / down) + 1
    if height >= size.lines or max(map(len, cells)) * across >= size.columns:
        return
    if every > 1:
        print(f"Each square stands for {every if len(order.sizes) == 1 else f'{every}x{every}'} cells.")
    steps = len(order.steps)
    stride = max(1, steps // 150)
    spread = (every - 1) * min(len(order.sizes), 2)  # steps between the first and last cell of a square
    frame = ""
    try:
        # Hide the cursor, cut long lines off, make room, remember its first line: neither a lost piece of
        # output nor a narrower window can shift frames.
        sys.stdout.write("\x1b[?25l\x1b[?7l" + "\n" * height + f"\x1b[{height}A\x1b7")
        for s in [*range(0, steps - 1, stride), steps - 1]:
            lines = [*_draw(cells, s, spread, steps, across, down, color), caption(order, s)]
            lines[-1] = lines[-1][: size.columns - 1]
            frame = "\x1b8" + "".join(f"{line}\x1b[K\n" for line in lines)
            sys.stdout.write(frame)
            sys.stdout.flush()
            time.sleep(min(0.08, SECONDS / steps * stride))
    except KeyboardInterrupt:
        sys.stdout.write(frame)  # the terminal drops frames that it has not shown yet
        raise
    finally:
        sys.stdout.write("\x1b[?7h\x1b[?25h")
        sys.stdout.flush()


Cells = list[list[int | None]]  # rows of step numbers, None between the panels of a time axis


def _layout(order: Order, columns: int, lines: int, color: bool) -> tuple[Cells, tuple[int, int], int]:
    """Fit the grid: its cells, (columns a cell, cells a line), and the side of a square drawn as one cell."""
    slices, rows, width = (1, 1, *order.sizes)[-3:]
    every = 1
    while True:
        small_rows, small_width = ceil(rows / every), ceil(width / every)
        for across, down in ((2, 1), (1, 2)) if color else ((2, 1), (1, 1)):
            panels = max(1, min(slices, (columns // across + 1) // (small_width + 1)))  # in one row
            height = ceil(slices / panels) * (small_rows + 1) - 1
            fits = small_width * across <= columns and ceil(height / down) <= lines
            if fits or (small_rows, small_width) == (1, 1):
                return _cells(order, panels, every), (across, down), every
        every += 1


def _cells(order: Order, panels: int, every: int) -> Cells:
    slices, rows, width = (1, 1, *order.sizes)[-3:]
    result: Cells = []
    for first in range(0, slices, panels):
        if first:
            result.append([])
        for row in range(0, rows, every):
            line: list[int | None] = []
            for t in range(first, min(first + panels, slices)):
                start = (t * rows + row) * width
                line += ([None] if line else []) + list(order.step_of[start : start + width : every])
            result.append(line)
    return result


def _draw(
    cells: Cells, s: int, spread: int, steps: int, across: int, down: int, color: bool
) -> Iterator[str]:
    """The lines of step ``s``; a square belongs to the frontier for ``spread`` more steps than a cell."""
    if not color:
        for row in cells:
            marks = (" " if n is None else "." if n > s else "#" if n + spread >= s else "+" for n in row)
            yield "".join(mark * across for mark in marks)
        return
    colors = step_colors(steps)

    def paint(step: int | None, ground: int) -> str:
        if step is None:
            return f"\x1b[{ground + 1}m"
        return _color_code(EMPTY if step > s else FRONTIER if step + spread >= s else colors[step], ground)

    for top in range(0, len(cells), down):
        row, below = cells[top], cells[top + 1] if down == 2 and top + 1 < len(cells) else []
        line, last = "", ""
        for k in range(max(len(row), len(below))):
            high, low = (part[k] if k < len(part) else None for part in (row, below))
            if down == 1:
                code, text = paint(high, 48), "  "
            elif high is not None:
                code, text = paint(high, 38) + paint(low, 48), "▀"
            else:
                code, text = "\x1b[49m" + paint(low, 38), " " if low is None else "▄"
            line += text if code == last else code + text
            last = code
        yield line + "\x1b[0m"


def _color_code(color: RGB, ground: int) -> str:
    """Set the foreground (38) or background (48), in the nearest of 256 colours where that is the limit."""
    if os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit"):
        return f"\x1b[{ground};2;{color[0]};{color[1]};{color[2]}m"
    r, g, b = (0 if c < 48 else 1 if c < 115 else (c - 35) // 40 for c in color)
    gray = max(color) - min(color) < 20
    index = 232 + min(23, max(0, (color[0] - 3) // 10)) if gray else 16 + 36 * r + 6 * g + b
    return f"\x1b[{ground};5;{index}m"
