"""Pictures and data of orders as files, which ``narcli rerun`` makes again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import UsageError
from ..order import NAR, Order, Schedule, format_grid, order_rows
from ..order.sketches import Sketch, drawn
from ..viz.style import THEMES, comparison, title
from .subjects import require

if TYPE_CHECKING:
    from PIL import Image

    from ..viz.viewer import Shown

SUFFIXES = (".png", ".gif", ".mp4", ".svg", ".pdf", ".html", ".json", ".csv")
MAX_DRAWN, MAX_SIDE = 2**18, 2048  # cells in all, and along one side
MAX_ORDERS = 16  # side by side
#: Steps of an order that an animation shows slowly, and seconds of each; scales are always slow.
FEW, SLOW_SECONDS = 12, 0.4

Schedules = Sequence[Schedule]


def shown(names: Sequence[str], sizes: tuple[int, ...], seed: int = 0) -> list[Schedule]:
    """Make orders to show side by side, as ``sketches.drawn``.

    Raises:
        UsageError: no order, too many, one twice, or a grid that is too large or that an order does not take.
    """
    if twice := [name for k, name in enumerate(names) if name in names[:k]]:
        raise UsageError(f"The order {twice[0]!r} is given twice.", "Give each order once.")
    if not 1 <= len(names) <= MAX_ORDERS:
        raise UsageError(f"There are {len(names)} orders, expected 1 to {MAX_ORDERS}.", "Name fewer.")
    cells = 0
    if prod(sizes) > MAX_DRAWN or max(sizes, default=0) > MAX_SIDE:
        raise _too_large(sizes)
    orders = []
    for name in names:
        orders.append(drawn(name, sizes, seed))
        cells += orders[-1].cells
        if cells > MAX_DRAWN:
            raise _too_large(sizes)
    return orders


def _too_large(sizes: tuple[int, ...]) -> UsageError:
    return UsageError(
        f"A {format_grid(sizes)} grid is too large to show.",
        f"Sizes go up to {MAX_SIDE}, with {MAX_DRAWN:,} cells of all orders.",
    )


def shown_of(path: Path, about: Mapping[str, Any]) -> list[Schedule]:
    """Make the orders that a file of ``visualize-order`` shows.

    Raises:
        CheckpointError: it does not say its grid.
        UsageError: as ``shown``.
    """
    require(path, about, "grid")
    names = about.get("orders", [about.get("order", NAR)])
    return shown(names, tuple(about["grid"]), about.get("seed", 0))


def document(orders: Schedules, *, with_cells: bool = True) -> dict[str, Any]:
    """Return orders as JSON; steps count from 1, cells and coordinates from 0."""
    each = [_document(order, with_cells=with_cells) for order in orders]
    if len(each) == 1:
        return each[0]
    names, seeds = [order.name for order in orders], {o.seed for o in orders if isinstance(o, Sketch)}
    seed = {"seed": min(seeds)} if seeds else {}
    return {"orders": names, "grid": list(orders[0].sizes), **seed, "schedules": each}


def _document(order: Schedule, *, with_cells: bool) -> dict[str, Any]:
    facts = {
        "order": order.name,
        "grid": list(order.sizes),
        **({"panels": list(map(list, order.panels))} if order.has_scales else {}),
        **({"seed": order.seed, "illustrative": order.illustrative} if isinstance(order, Sketch) else {}),
        "steps": len(order.steps),
        "raster_steps": prod(order.sizes),
        "widest_step": order.widest,
    }
    return facts | ({"cells": order_rows(order)} if with_cells else {})


def default_name(orders: Schedules) -> str:
    """Return the name of a file of orders, without its suffix: ``nar-order_16x16``, ``orders_16x16``."""
    name = f"{orders[0].name.replace(':', '-')}-order" if len(orders) == 1 else "orders"
    return f"{name}_{format_grid(orders[0].sizes)}"


def about_orders(orders: Schedules, theme: str) -> dict[str, Any]:
    """Return the metadata of a picture of orders."""
    told = document(orders, with_cells=False)
    return {
        "command": "visualize-order",
        **{name: told[name] for name in ("order", "orders", "grid", "seed") if name in told},
        **({"theme": theme} if theme != "dark" else {}),
        "narcli": __version__,
    }


def write_orders(
    orders: Schedules, output: str, *, theme: str = "dark", overwrite: bool, reserved: Iterable[Path] = ()
) -> Path:
    """Write orders in the format that the suffix names: one picture, or one document, of all.

    Raises:
        UsageError: a CSV file of several orders, or as ``resolve_outputs``.
    """
    from ..media import atomic, writers
    from ..media.names import resolve_outputs

    chosen = resolve_outputs(
        output,
        [{}],
        default=default_name(orders),
        suffixes=SUFFIXES,
        overwrite=overwrite,
        reserved=reserved,
    )
    path = chosen.paths[0]
    suffix = path.suffix.lower()
    if suffix == ".csv" and len(orders) > 1:
        raise UsageError(
            f"`output={output!r}` is a table of one order, and {len(orders)} are given.",
            "Write a .json, or one order.",
        )
    if suffix in (".json", ".csv"):
        text = _csv(orders[0]) if suffix == ".csv" else json.dumps(document(orders)) + "\n"
        return atomic.write_atomic(path, text.encode(), overwrite=overwrite)

    from ..viz import orders as pictures

    about, colors = about_orders(orders, theme), THEMES[theme]
    match suffix:
        case ".svg":
            drawing = pictures.order_svg(*orders, theme=colors).encode()
            return atomic.write_atomic(path, drawing, overwrite=overwrite)
        case ".pdf":
            return atomic.write_atomic(path, pictures.order_pdf(*orders, theme=colors), overwrite=overwrite)
        case ".html":
            from ..viz.viewer import page

            text = page(alone(orders), writers.encode_metadata(about), None if theme == "dark" else theme)
            return atomic.write_atomic(path, text.encode(), overwrite=overwrite)
        case ".png":
            picture = pictures.order_image(*orders, theme=colors)
            words = "; ".join(
                comparison(order) if len(orders) == 1 else f"{order.name}: {comparison(order)}"
                for order in orders
            )
            return writers.write_png(path, picture, about, words, overwrite=overwrite)
        case _:
            frames = pictures.order_frames(*orders, theme=colors)
            return write_animation(path, orders, frames, about, overwrite=overwrite)


def alone(orders: Schedules) -> list[Shown]:
    """Prepare orders without a run for a page.

    Raises:
        UsageError: one has too many cells for a page, or there are too many.
    """
    from ..viz import viewer

    if len(orders) > viewer.MAX_RUNS:
        raise UsageError(
            f"A page shows up to {viewer.MAX_RUNS} orders, and {len(orders)} are given.", "Name fewer."
        )
    for order in orders:
        viewer.check_size(order)
    return [viewer.Shown(order, title(order)) for order in orders]


def write_animation(
    path: Path,
    orders: Schedules,
    frames: Sequence[Image.Image],
    about: Mapping[str, Any] | None,
    *,
    overwrite: bool,
) -> Path:
    """Write frames of orders as the suffix says, GIF or MP4; a few steps are shown slowly."""
    from ..media.writers import write_gif, write_mp4

    slow = all(order.has_scales or len(order.steps) <= FEW for order in orders)
    if path.suffix.lower() == ".gif":
        seconds = SLOW_SECONDS if slow else 0.09
        return write_gif(path, frames, about, frame_seconds=seconds, overwrite=overwrite)
    fps = 1 / SLOW_SECONDS if slow else 12
    return write_mp4(path, frames, about, fps=fps, hold_seconds=2, overwrite=overwrite)


def _csv(order: Schedule) -> str:
    """Columns step, cell, panel (of scales), coordinates, and for each head the cell it predicts from."""
    panel, heads = ["panel"] * order.has_scales, order.heads if isinstance(order, Order) else ()
    lines = [",".join(["step", "cell", *panel, *("t", "y", "x")[-len(order.sizes) :], *heads])]
    for row in order_rows(order):
        before = {p["head"]: p["cell"] for p in row.get("predecessors", ())}
        facts = [row[key] for key in ("step", "cell", *panel)]
        cells = (*facts, *row["coordinates"], *(before.get(h, "") for h in heads))
        lines.append(",".join(map(str, cells)))
    return "\n".join(lines) + "\n"
