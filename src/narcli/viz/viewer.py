"""Page to step through runs and orders: one HTML file that works from disk, without a network.

The script and the style are ``viewer.js`` and ``viewer.css``. A content security policy allows these two and
pictures inside the page, nothing else. Texts of a run are data: the script shows them as text only.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from html import escape
from io import BytesIO
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import UsageError
from ..order import NONE, Feed, Order, Schedule, format_grid
from .frontier import filmstrip, shown_steps
from .orders import order_image
from .style import facts, hexadecimal, ramp

Clip = Sequence[Image.Image]

MAX_RUNS = 8  # on a page
MAX_CELLS = 2**14  # of a run, which every cell's data are written of
MAX_PARTIALS = 16  # pictures on the way of a run whose cells have no place
LOSSLESS = 100_000  # bytes; larger pictures are compressed with loss
STOPS = 9  # colours that the script interpolates
#: Identifiers of the elements that hold the data of the script, and the settings of narcli.
DATA, SETTINGS = "data", "narcli"
_HERE = Path(__file__).parent


@dataclass(frozen=True, eq=False)
class Tiles:
    """Small pictures of codes, on one sheet.

    Args:
        codes: the codes, in the order of their tiles.
        sheet: tiles row by row, ``columns`` in a row.
        columns: tiles in a row.
    """

    codes: Sequence[int]
    sheet: Image.Image
    columns: int


@dataclass(frozen=True, eq=False)
class Shown:
    """One run, or one order without a run, on a page.

    Args:
        order: decoding order; of a run an ``Order``.
        title: what it is of, in any words.
        facts: settings and results for people, by name.
        frames: the final picture, or frames of a clip; none of an order alone.
        partials: by step, the frames decoded from the tokens so far, where cells cannot be uncovered one by
            one; none uncovers ``frames``. They need the last step, and those of a filmstrip.
        record: arrays of a ``Record`` by name; none shows the order only.
        tiles: pictures of codes; one object may serve several runs.
    """

    order: Schedule
    title: str
    facts: Mapping[str, str] = field(default_factory=dict)
    frames: Clip = ()
    partials: Mapping[int, Clip] = field(default_factory=dict)
    record: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    tiles: Tiles | None = None


def partial_steps(order: Schedule) -> list[int]:
    """Steps whose pictures a page shows of runs that are not uncovered cell by cell."""
    steps = len(order.steps)
    spread = np.linspace(0, steps - 1, min(steps, MAX_PARTIALS)).round().astype(int).tolist()
    return sorted({*spread, *shown_steps(order, still=True)})


def check_size(order: Schedule) -> None:
    """Check that a page can show an order.

    Raises:
        UsageError: it has more than ``MAX_CELLS`` cells.
    """
    if order.cells > MAX_CELLS:
        raise UsageError(
            f"A page shows up to {MAX_CELLS:,} cells, and the grid {format_grid(order.sizes)} has "
            f"{order.cells:,}.",
            "Choose a smaller grid, or another format.",
        )


def page(runs: Sequence[Shown], metadata: str = "", theme: str | None = None) -> str:
    """Make the page.

    Args:
        runs: one to ``MAX_RUNS``, side by side.
        metadata: settings for ``narcli rerun`` and ``show``, JSON in ASCII; empty for none.
        theme: ``dark`` or ``light``; None follows the reader's system. The page has a button for it.

    Raises:
        UsageError: an order with too many cells.
        ValueError: no run, or too many.
    """
    if not 1 <= len(runs) <= MAX_RUNS:
        raise ValueError(f"{len(runs)} runs, expected 1 to {MAX_RUNS}")
    sheets: dict[int, Tiles] = {id(run.tiles): run.tiles for run in runs if run.tiles is not None}
    places = {key: index for index, key in enumerate(sheets)}
    data = {
        "ramp": [hexadecimal(ramp(k / (STOPS - 1))) for k in range(STOPS)],
        "tiles": [
            {
                "codes": list(tiles.codes),
                "columns": tiles.columns,
                "side": _side(tiles),
                "uri": _uri(tiles.sheet),
            }
            for tiles in sheets.values()
        ],
        "runs": [run_data(run) | {"tiles": places.get(id(run.tiles), -1)} for run in runs],
    }
    script, style = ((_HERE / name).read_text("utf-8") for name in ("viewer.js", "viewer.css"))
    allowed = f"script-src {_hash(script)}; style-src {_hash(style)}; img-src data:"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    title = escape(" · ".join(dict.fromkeys(run.title for run in runs))[:200])
    chosen = f' data-theme="{theme}"' if theme else ""
    settings = f'<script type="application/json" id="{SETTINGS}">{_quiet(metadata)}</script>\n'
    return (
        f'<!doctype html>\n<html lang="en"{chosen}>\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"{settings if metadata else ''}"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="dark light">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<main id="page"></main>\n<noscript>{_without_script(runs)}</noscript>\n'
        f'<script type="application/json" id="{DATA}">{_quiet(json.dumps(data, separators=(",", ":")))}'
        f"</script>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _quiet(text: str) -> str:
    """Escape JSON in ASCII for the inside of a script element: no markup can end or begin in it."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


# --- data of the script --------------------------------------------------------------------------


def run_data(run: Shown) -> dict[str, Any]:
    """Return a run as JSON: texts, the order, pictures, and the record."""
    order = run.order
    check_size(order)
    data: dict[str, Any] = {
        "title": run.title,
        "facts": dict(run.facts),
        "extent": facts(order),
        **order_data(order),
    }
    if run.frames:
        width, height = run.frames[0].size
        steps = sorted(run.partials) or [NONE]
        data["picture"] = {
            "width": width,
            "height": height,
            "frames": len(run.frames),
            "columns": _columns(len(run.frames)),
            "steps": steps,
            "uris": [
                _uri(_sheet(run.partials.get(step, run.frames)), LOSSLESS // len(steps)) for step in steps
            ],
        }
    if run.record:
        data["record"] = {name: _numbers(array) for name, array in run.record.items()}
    return data


def order_data(order: Schedule) -> dict[str, Any]:
    """Return an order as JSON.

    Keys: ``order`` (name), ``sizes``, ``planes``, ``scales``, ``heads``, ``steps`` (number), ``raster``
    (passes of raster order), ``pass`` (of each cell), and those of ``sources_data``.
    """
    return {
        "order": order.name,
        "sizes": list(order.sizes),
        "planes": [list(plane) for plane in order.planes],
        "scales": order.has_scales,
        "heads": list(order.heads) if isinstance(order, Order) else [],
        "steps": len(order.steps),
        "raster": prod(order.sizes),
        "pass": list(order.step_of),
        **(
            sources_data(order)
            if isinstance(order, Order)
            else {"from": [[]] * order.cells, "unseen": {}, "holes": {}}
        ),
    }


def sources_data(order: Order) -> dict[str, Any]:
    """Return as JSON what each cell is predicted from.

    Keys: ``from`` (of each cell its sources: token, head, place, learned row), and, by cell, ``unseen``
    (cells of earlier passes that it does not see) and ``holes`` (empty places that it attends to), both as
    ranges ``[first, end]`` of cells.
    """
    sources: list[list[list[int]]] = [[] for _ in range(order.cells)]
    unseen: dict[int, list[list[int]]] = {}
    holes: dict[int, list[list[int]]] = {}
    place_of = {feed.slot: feed.place for step in order.passes for feed in step.feeds}
    written, content = np.full(order.slots, False), np.full(order.slots, NONE)
    decoded = np.full(order.cells, False)
    for step in order.passes:
        for feed in step.feeds:
            written[feed.slot], content[feed.slot] = True, feed.token
        for cell, terms in zip(step.cells, step.sources, strict=True):
            last: Feed | None = None
            for source in terms:
                last = step.feeds[source.feed] if source.feed != NONE else None
                token, place, learned = (
                    (NONE,) * 3 if last is None else (last.token, last.place, last.learned)
                )
                sources[cell].append([token, source.head, place, learned])
            # Sources of a cell see the same, in all orders.
            if last is None or (last.token == last.learned == NONE):  # the condition, or all scales before
                continue
            seen, tokens = np.full(order.cells, False), content[: last.sees]
            seen[tokens[tokens >= 0]] = True
            if ranges := _ranges(np.flatnonzero(decoded & ~seen).tolist()):
                unseen[cell] = ranges
            empty = [place_of.get(slot, slot) for slot in np.flatnonzero(~written[: last.sees]).tolist()]
            if empty:
                holes[cell] = _ranges(empty)
        decoded[list(step.cells)] = True
    return {"from": sources, "unseen": unseen, "holes": holes}


def _ranges(cells: Sequence[int]) -> list[list[int]]:
    """Join ascending numbers to ranges ``[first, end]``, the end not included."""
    ranges: list[list[int]] = []
    for cell in cells:
        if ranges and ranges[-1][1] == cell:
            ranges[-1][1] += 1
        else:
            ranges.append([cell, cell + 1])
    return ranges


def _numbers(array: npt.NDArray[Any]) -> list[Any]:
    """Return numbers as lists, fractions with four digits, NaN as null."""
    if array.ndim > 1:
        return [_numbers(row) for row in array]
    if array.dtype.kind != "f":
        return [int(number) for number in array]
    return [None if np.isnan(number) else _short(float(number)) for number in array]


def _short(number: float) -> float | int:
    short = float(f"{number:.4g}")
    return int(short) if short.is_integer() else short


# --- pictures ------------------------------------------------------------------------------------


def _columns(frames: int) -> int:
    """Frames in a row of a sheet."""
    return min(frames, 8)


def _sheet(frames: Clip) -> Image.Image:
    """Put frames of one size on a sheet, row by row."""
    if len(frames) == 1:
        return frames[0].convert("RGB")
    (width, height), columns = frames[0].size, _columns(len(frames))
    sheet = Image.new("RGB", (columns * width, ceil(len(frames) / columns) * height))
    for index, frame in enumerate(frames):
        sheet.paste(frame, (index % columns * width, index // columns * height))
    return sheet


def _side(tiles: Tiles) -> int:
    return tiles.sheet.width // tiles.columns


def _uri(image: Image.Image, most: int = LOSSLESS) -> str:
    """Encode a picture as a data URI: WebP, without loss if that takes at most ``most`` bytes."""
    image.convert("RGB").save(buffer := BytesIO(), "WEBP", lossless=True, quality=80)
    if buffer.tell() > most:
        image.convert("RGB").save(buffer := BytesIO(), "WEBP", quality=88, method=6)
    return f"data:image/webp;base64,{b64encode(buffer.getvalue()).decode()}"


def _without_script(runs: Sequence[Shown]) -> str:
    """Show each run as a filmstrip, or its order as a picture."""
    parts = []
    for run in runs:
        if run.frames:
            shown = shown_steps(run.order, still=True)
            partials = [[run.partials[step]] for step in shown] if run.partials else None
            picture = filmstrip(run.order, [run.frames], partials, holistic=bool(run.partials))
        else:
            picture = order_image(run.order)
        words = f"{run.title}: {facts(run.order)}"
        parts.append(f'<h1>{escape(words)}</h1>\n<img alt="{escape(words)}" src="{_strip(picture)}">')
    return "\n".join(parts)


def _strip(picture: Image.Image) -> str:
    picture.save(buffer := BytesIO(), "WEBP", quality=75, method=6)
    return f"data:image/webp;base64,{b64encode(buffer.getvalue()).decode()}"
