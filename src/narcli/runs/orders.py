"""Pictures and data of an order as files, which ``narcli rerun`` makes again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import UsageError
from ..order import Order, format_grid, order_rows
from ..viz.style import comparison

SUFFIXES = (".png", ".gif", ".mp4", ".svg", ".json", ".csv")
MAX_DRAWN, MAX_SIDE = 2**18, 2048  # cells in all, and along one side


def check_size(sizes: tuple[int, ...]) -> None:
    """Refuse grids that are too large to show.

    Raises:
        UsageError: the grid is too large; the message has the limit.
    """
    if prod(sizes) > MAX_DRAWN or max(sizes) > MAX_SIDE:
        raise UsageError(
            f"A {format_grid(sizes)} grid is too large to show.",
            f"Sizes go up to {MAX_SIDE}, with {MAX_DRAWN:,} cells in all.",
        )


def document(order: Order, *, with_cells: bool = True) -> dict[str, Any]:
    """Return the order as JSON; steps count from 1, cells and coordinates from 0."""
    facts = {
        "order": order.name,
        "grid": list(order.sizes),
        "steps": len(order.steps),
        "raster_steps": order.cells,
        "widest_step": order.widest,
    }
    return facts | ({"cells": order_rows(order)} if with_cells else {})


def default_name(order: Order) -> str:
    """Return the name of a file of an order, without its suffix: ``nar-order_16x16``."""
    return f"{order.name.replace(':', '-')}-order_{format_grid(order.sizes)}"


def write_order(order: Order, output: str, *, overwrite: bool, reserved: Iterable[Path] = ()) -> Path:
    """Write the order in the format that the suffix names."""
    from ..media import atomic, writers
    from ..media.names import resolve_outputs

    chosen = resolve_outputs(
        output,
        [{}],
        default=default_name(order),
        suffixes=SUFFIXES,
        overwrite=overwrite,
        reserved=reserved,
    )
    path = chosen.paths[0]
    suffix = path.suffix.lower()
    if suffix in (".json", ".csv"):
        text = _csv(order) if suffix == ".csv" else json.dumps(document(order)) + "\n"
        return atomic.write_atomic(path, text.encode(), overwrite=overwrite)

    from ..viz import board

    about = {
        "command": "visualize-order",
        "order": order.name,
        "grid": list(order.sizes),
        "narcli": __version__,
    }
    match suffix:
        case ".svg":
            return atomic.write_atomic(path, board.order_svg(order).encode(), overwrite=overwrite)
        case ".png":
            picture, words = board.order_image(order), comparison(order)
            return writers.write_png(path, picture, about, words, overwrite=overwrite)
        case ".gif":
            return writers.write_gif(path, board.order_frames(order), about, overwrite=overwrite)
        case _:
            frames = board.order_frames(order)
            return writers.write_mp4(path, frames, about, hold_seconds=2, overwrite=overwrite)


def _csv(order: Order) -> str:
    """Columns step, cell, the coordinates, and for each head the cell that it predicts from."""
    lines = [",".join(["step", "cell", *("t", "y", "x")[-len(order.sizes) :], *order.heads])]
    for row in order_rows(order):
        before = {p["head"]: p["cell"] for p in row["predecessors"]}
        cells = (row["step"], row["cell"], *row["coordinates"], *(before.get(h, "") for h in order.heads))
        lines.append(",".join(map(str, cells)))
    return "\n".join(lines) + "\n"
