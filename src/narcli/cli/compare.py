"""``narcli compare``: the same classes or prompts and seeds in several decoding orders."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..allocator import keep_memory
from ..errors import UsageError
from ..hub.resolve import default_model, resolve
from ..media.textfiles import expand
from ..order import NAMES, parse_name
from ..runs.recipe import Recipe
from . import options, rows
from .image import prompts_of
from .report import Session

if TYPE_CHECKING:
    from ..bench.compare import Outcome

ACROSS = 16  # pictures of a row of the sheet
_LEFT_OUT = {
    *("model", "revision", "order", "batch_size", "frontier", "frontier_mode", "grid", "frames_from"),
    "reproducible",
    *("save_tokens", "no_metadata", "scale", "dry_run", "sweep", "labels", "theme", "record"),
    *("init", "keep", "keep_mask", "keep_cells", "fit"),
}
Models = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="MODEL", help="Name, Hub repository, file or folder; may be repeated."),
]
Orders = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,NAME,...",
        help=f"Orders to compare: {NAMES}; each runs the first model that has it.",
        show_default="the models'",
    ),
]
BatchSizes = Annotated[str, typer.Option(metavar="N,N,...", help="Samples decoded together when timed.")]
Repeats = Annotated[int, typer.Option(min=1, help="Timed runs of each; medians are shown.")]
Reference = Annotated[
    Path | None,
    typer.Option(
        metavar="DATA",
        parser=expand,
        help="Labelled pictures: tell the share of samples whose nearest one is of their class.",
    ),
]


@rows.takes(
    [row for row in rows.of("image") if row.name not in _LEFT_OUT],
    ("models", Models, None),
    ("orders", Orders, None),
    ("batch_sizes", BatchSizes, "1,8"),
    ("repeats", Repeats, 3),
    ("reference", Reference, None),
)
def compare(
    models: list[str] | None,
    orders: str | None,
    batch_sizes: str,
    repeats: int,
    reference: Path | None,
    **chosen: Any,
) -> None:
    """Compare decoding orders: one table, one labelled contact sheet.

    Quality is compared only between models that were trained alike, as `narcli train nar` records it.
    """
    from ..media.names import resolve_outputs
    from ..media.writers import write_png

    sizes = sorted(set(options.whole_numbers(batch_sizes, "--batch-sizes", "1,8")))
    names = [name.strip() for name in orders.split(",")] if orders is not None else []
    for name in names:
        parse_name(name)
    session = Session.of(chosen)
    prompts = prompts_of(chosen, session.console)
    if prompts and reference is not None:
        raise UsageError("`reference` tells classes of pictures, and prompts have none.", "Leave it out.")
    wanted: Sequence[str] = models or [default_model("text" if prompts else "image")]
    kind: Any = "video" if resolve(wanted[0], None).kind == "video" else "image"
    recipe = Recipe(kind=kind, prompts=prompts, **rows.fields_of(chosen) | {"output": None})
    path = resolve_outputs(
        chosen["output"], [{}], default="narcli-compare", overwrite=chosen["overwrite"]
    ).paths[0]
    keep_memory()
    from ..bench import compare as bench
    from ..devices import choose_device, choose_dtype, dtype_name, memory_guard
    from ..viz.sheets import labelled_sheet

    device = choose_device(recipe.device)
    dtype = dtype_name(choose_dtype(recipe.dtype, device))
    entrants = bench.enter(wanted, names, recipe, session.host)
    why = bench.difference(entrants)
    if why is not None and reference is not None:
        session.console.warn(f"The models were not trained alike ({why}): their quality is not compared.")
        reference = None
    outcomes = []
    with (
        memory_guard("Try smaller --batch-sizes, a smaller model or --dtype bfloat16."),
        session.console.progress("comparing", len(entrants)) as advance,
    ):
        for outcome in bench.compare(entrants, recipe, sizes, repeats, reference, session.host):
            outcomes.append(outcome)
            advance()
    document = bench.document(outcomes, entrants, recipe, dtype, device.type)
    pictures = [[(each.middle, ()) for each in outcome.results] for outcome in outcomes]
    labelled = [
        (label(outcome) if start == 0 else "", row[start : start + ACROSS])
        for outcome, row in zip(outcomes, pictures, strict=True)
        for start in range(0, len(row), ACROSS)
    ]
    about = {"command": "compare", "narcli": document["narcli"], "measured": bench.brief(document)}
    if not session.as_json:
        show(outcomes)
        if why is not None:
            session.console.note(f"Not trained alike: {why}.")
        if settings := bench.unequal(outcomes):
            session.console.note(f"Drawn under each model's own settings: {settings}.")
    try:
        made = write_png(path, labelled_sheet(labelled), about, overwrite=chosen["overwrite"])
        document["file"] = str(made)
        if not session.as_json:
            session.console.result(made)
    finally:  # figures are printed even if the sheet cannot be written
        if session.as_json:
            session.console.json(document)


def label(outcome: Outcome) -> str:
    """Return the words above a row of the sheet."""
    seconds = next(iter(outcome.seconds.values()))
    return f"{outcome.order}, {outcome.model}: {outcome.passes} passes, {seconds:.2f} s"


def show(outcomes: Sequence[Outcome]) -> None:
    """Print the comparison as a table on stdout."""
    from rich.console import Console as Terminal
    from rich.table import Table

    sizes = list(outcomes[0].seconds)
    columns = ["order", "model", "passes", "widest"]
    columns += [title for size in sizes for title in (f"s at {size}", f"samples/s at {size}")]
    columns += ["bits/token", "likeliest"]
    if outcomes[0].own_class is not None:
        columns.append("own class")
    table = Table(*columns, box=None, pad_edge=False)
    for index, column in enumerate(table.columns):
        column.justify, column.no_wrap = "left" if index < 2 else "right", True
    for each in outcomes:
        times = [
            text
            for size in sizes
            for text in (f"{each.seconds[size]:.3f}", f"{size / each.seconds[size]:.2f}")
        ]
        own = [] if each.own_class is None else [f"{each.own_class:.0%}"]
        table.add_row(
            each.order, each.model, str(each.passes), str(each.widest), *times, f"{each.bits:.2f}",
            f"{each.likeliest:.0%}", *own,
        )  # fmt: skip
    Terminal(file=sys.stdout, width=150).print(table)
