"""``narcli visualize-order``: the decoding order in the terminal, as a picture, or as data."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from math import ceil
from typing import Annotated

import typer

from ..errors import UsageError
from ..order import NAR, Schedule, parse_grid
from ..order.sketches import DRAWN_NAMES
from ..runs.orders import document, shown, write_orders
from ..settings import check_seeds
from ..viz.style import EMPTY, FRONTIER, caption, facts, headline, label, plane_names, step_colors
from .console import Console, has_color, is_terminal
from .options import Json, Overwrite, Quiet, Theme

SECONDS = 3.0  # the longest animation in a terminal


def visualize_order(
    grid: Annotated[
        str, typer.Option("--grid", "-g", metavar="SIZES", help="Token grid, such as 16x16 or 4x16x16.")
    ] = "16x16",
    order: Annotated[
        list[str],
        typer.Option(
            metavar="NAME,NAME,...", help=f"Decoding orders, side by side: {DRAWN_NAMES}; may be repeated."
        ),
    ] = [NAR],  # noqa: B006 (Typer takes a list)
    seed: Annotated[int | None, typer.Option(help="Seed of mar, maskgit and sjd.", show_default="0")] = None,
    theme: Annotated[
        Theme | None, typer.Option(help="Colours; light is for papers.", show_default="dark")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write a .png, .gif, .mp4, .svg, .pdf, .html, .json or .csv.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show the decoding order of a token grid, or several side by side.

    The orders of maskgit and sjd depend on a model too: they are drawn from the seed, and called
    illustrative.
    """
    if output is None:
        for name, given in (("overwrite", overwrite), ("theme", theme)):
            if given:
                raise UsageError(f"`{name}` needs a file to write.", "Add `output=FILE`.")
    sizes = parse_grid(grid)
    check_seeds(seed, 1)
    orders = shown([name.strip() for names in order for name in names.split(",")], sizes, seed or 0)
    if seed is not None and not any(each.note for each in orders):
        raise UsageError("`seed` is for mar, maskgit and sjd.", "Drop it, or show one of them.")
    console = Console(quiet)
    path = None
    if output is not None:
        path = write_orders(orders, output, theme=theme.value if theme else "dark", overwrite=overwrite)
    if as_json:
        console.json(document(orders, with_cells=path is None) | ({"file": str(path)} if path else {}))
    elif path is not None:
        for each in orders:
            console.note(headline(each) if len(orders) == 1 else f"{label(each)}: {facts(each)}")
        console.result(path)
    elif len(orders) > 1:
        console.table([(each.name, facts(each), each.note) for each in orders])
    elif is_terminal(sys.stdout) and not quiet:
        animate(orders[0])
        console.result(headline(orders[0]))
    else:
        for line in plain_lines(orders[0]):
            console.result(line)


# --- text ----------------------------------------------------------------------------------------


def plain_lines(order: Schedule) -> Iterator[str]:
    """Lines of plain text: the step of each cell, then every step; neither where it is one after another."""
    yield headline(order)
    width = len(str(len(order.steps)))
    for index, name in enumerate([] if order.has_scales else plane_names(order)):
        yield f"\n{name}" if name else ""
        for row in _rows_of(order, index):
            yield " ".join(f"{s + 1:{width}}" for s in row)
    if order.name != "raster":
        yield ""
        for s in range(len(order.steps)):
            yield caption(order, s)


def _rows_of(order: Schedule, index: int) -> list[tuple[int, ...]]:
    """Steps of the cells of a panel, row by row."""
    rows, columns = order.planes[index]
    start = order.starts[index]
    return [order.step_of[start + y * columns : start + (y + 1) * columns] for y in range(rows)]


# --- a terminal ----------------------------------------------------------------------------------


def animate(order: Schedule) -> None:
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
    frame = ""
    try:
        # Hide the cursor, cut long lines off, make room, remember its first line: neither a lost piece of
        # output nor a narrower window can shift frames.
        sys.stdout.write("\x1b[?25l\x1b[?7l" + "\n" * height + f"\x1b[{height}A\x1b7")
        for s in [*range(0, steps - 1, stride), steps - 1]:
            lines = [*_draw(cells, s, steps, across, down, color), caption(order, s)]
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


Square = tuple[int, int]  # the first and the last step of the cells that it stands for
Cells = list[list[Square | None]]  # None between panels, and below those that are lower than others


def _layout(order: Schedule, columns: int, lines: int, color: bool) -> tuple[Cells, tuple[int, int], int]:
    """Fit the panels: their squares, (columns a square, squares a line), and cells along a square's side."""
    every = 1
    while True:
        sides = [(ceil(rows / every), ceil(width / every)) for rows, width in order.planes]
        for across, down in ((2, 1), (1, 2)) if color else ((2, 1), (1, 1)):
            bands = _bands([width for _, width in sides], columns // across)
            widest = max(sum(sides[index][1] + 1 for index in band) - 1 for band in bands)
            height = sum(max(sides[index][0] for index in band) + 1 for band in bands) - 1
            fits = widest * across <= columns and ceil(height / down) <= lines
            if fits or max(map(max, sides)) == 1:
                return _cells(order, bands, every), (across, down), every
        every += 1


def _bands(widths: Sequence[int], room: int) -> list[list[int]]:
    """Put panels side by side while the room lasts: the indices of those in each band."""
    bands: list[list[int]] = []
    used = room
    for index, width in enumerate(widths):
        if not bands or used + 1 + width > room:
            bands.append([])
            used = -1
        bands[-1].append(index)
        used += 1 + width
    return bands


def _cells(order: Schedule, bands: Sequence[Sequence[int]], every: int) -> Cells:
    result: Cells = []
    for band in bands:
        if result:
            result.append([])
        parts = [_squares(order, index, every) for index in band]
        for y in range(max(map(len, parts))):
            line: list[Square | None] = []
            for part in parts:
                blank = [None] * len(part[0])
                line += ([None] if line else []) + (part[y] if y < len(part) else blank)
            result.append(line)
    return result


def _squares(order: Schedule, index: int, every: int) -> Cells:
    """Join the cells of a panel to squares of ``every`` cells a side."""
    rows = _rows_of(order, index)
    result: Cells = []
    for top in range(0, len(rows), every):
        band = rows[top : top + every]
        pieces = ([row[x : x + every] for row in band] for x in range(0, len(band[0]), every))
        result.append([(min(map(min, piece)), max(map(max, piece))) for piece in pieces])
    return result


def _draw(cells: Cells, s: int, steps: int, across: int, down: int, color: bool) -> Iterator[str]:
    """The lines of step ``s``; a square belongs to the frontier from its first step to its last."""
    if not color:
        for row in cells:
            marks = (" " if n is None else "." if n[0] > s else "#" if n[1] >= s else "+" for n in row)
            yield "".join(mark * across for mark in marks)
        return
    colors, empty, frontier = _palette(steps)

    def paint(square: Square | None, ground: int) -> str:
        if square is None:
            return f"\x1b[{ground + 1}m"
        first, last = square
        color = empty if first > s else frontier if last >= s else colors[first]
        return f"\x1b[{ground};{color}m"

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


#: Ramp, empty and frontier of terminals with 256 colours: the nearest would not grow lighter evenly.
RAMP_256, EMPTY_256, FRONTIER_256 = (54, 55, 56, 26, 32, 38, 43, 79, 115), 235, 221


def _palette(steps: int) -> tuple[list[str], str, str]:
    """Colour codes of each step, of empty cells and of the frontier, as the terminal takes them."""
    if os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit"):
        true = [f"2;{r};{g};{b}" for r, g, b in (*step_colors(steps), EMPTY, FRONTIER)]
        return true[:-2], true[-2], true[-1]
    ramp = [f"5;{RAMP_256[s * len(RAMP_256) // steps]}" for s in range(steps)]
    return ramp, f"5;{EMPTY_256}", f"5;{FRONTIER_256}"
