"""Pictures and data of an order as files, which ``narcli rerun`` makes again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import UsageError
from ..order import Order, format_grid, named, order_rows
from ..viz.style import comparison

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".gif", ".mp4", ".svg", ".json", ".csv")
MAX_DRAWN, MAX_SIDE = 2**18, 2048  # cells in all, and along one side
SCALE_SECONDS = 0.4  # that an animation shows each of a few scales


def shown(name: str, sizes: tuple[int, ...]) -> Order:
    """Make an order to show, as ``order.named``.

    Raises:
        UsageError: the grid is too large, and the message has the limit; or as ``order.named``.
    """
    order = named(name, sizes)
    if order.cells > MAX_DRAWN or max(sizes) > MAX_SIDE:
        raise UsageError(
            f"A {format_grid(sizes)} grid is too large to show.",
            f"Sizes go up to {MAX_SIDE}, with {MAX_DRAWN:,} cells in all.",
        )
    return order


def document(order: Order, *, with_cells: bool = True) -> dict[str, Any]:
    """Return the order as JSON; steps count from 1, cells and coordinates from 0."""
    facts = {
        "order": order.name,
        "grid": list(order.sizes),
        **({"panels": list(map(list, order.panels))} if order.has_scales else {}),
        "steps": len(order.steps),
        "raster_steps": prod(order.sizes),
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
        case _:
            return write_animation(path, order, board.order_frames(order), about, overwrite=overwrite)


def write_animation(
    path: Path,
    order: Order,
    frames: Sequence[Image.Image],
    about: Mapping[str, Any] | None,
    *,
    overwrite: bool,
) -> Path:
    """Write frames of an order as the suffix says, GIF or MP4; scales change slower, as they are few."""
    from ..media.writers import write_gif, write_mp4

    if path.suffix.lower() == ".gif":
        seconds = SCALE_SECONDS if order.has_scales else 0.09
        return write_gif(path, frames, about, frame_seconds=seconds, overwrite=overwrite)
    fps = 1 / SCALE_SECONDS if order.has_scales else 12
    return write_mp4(path, frames, about, fps=fps, hold_seconds=2, overwrite=overwrite)


def _csv(order: Order) -> str:
    """Columns step, cell, panel (of scales), coordinates, and for each head the cell it predicts from."""
    panel = ["panel"] * order.has_scales
    lines = [",".join(["step", "cell", *panel, *("t", "y", "x")[-len(order.sizes) :], *order.heads])]
    for row in order_rows(order):
        before = {p["head"]: p["cell"] for p in row["predecessors"]}
        facts = [row[key] for key in ("step", "cell", *panel)]
        cells = (*facts, *row["coordinates"], *(before.get(h, "") for h in order.heads))
        lines.append(",".join(map(str, cells)))
    return "\n".join(lines) + "\n"
