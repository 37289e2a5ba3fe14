"""``narcli rerun``: files made again from their metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import NarError, UsageError
from ..media.metadata import runs_of
from ..media.schema import SCHEMA
from ..media.textfiles import expand
from ..runs import repeat
from ..runs.orders import about_orders, default_name, shown_of, write_orders
from ..runs.orders import document as order_document
from ..runs.subjects import require
from . import rows
from .image import prompts_of
from .report import Session

if TYPE_CHECKING:
    from ..runs.events import Finished
    from ..runs.recipe import Recipe
    from ..runs.repeat import Recorded, Trust

About = Mapping[str, Any]
_SAMPLES = (
    "classes",
    "prompt",
    "prompt_file",
    "frames_from",
    "init",
    "num",
    "seed",
    "sweep",
)  # options that make other samples
_ORDER = {"output", "theme", "overwrite", "as_json", "quiet"}  # options of a picture of an order
_FILES = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE...", parser=expand, help="PNG, MP4, GIF, WebP, tokens, or a --json document."
    ),
]
_VERIFY = Annotated[
    bool,
    typer.Option("--verify", help="Also compare the tokens with the file's; exit code 1 if they differ."),
]


@rows.takes(rows.ROWS, ("files", _FILES, ...), ("verify", _VERIFY, False), optional=True)
def rerun(files: list[Path], verify: bool, **chosen: Any) -> None:
    """Make files again from their metadata.

    Options of narcli image and narcli video override the file. Existing files stay without --overwrite:
    a number is added to the new name.
    """
    from ..media.readers import read_metadata

    session = Session.of(chosen)
    given = [name for name, value in chosen.items() if rows.is_given(value)]
    if verify and session.dry_run:
        raise UsageError("`verify` compares tokens, and `dry_run` draws none.", "Drop one of them.")
    if verify and (named := [name for name in _SAMPLES if name in given]):
        raise UsageError(f"`verify` compares the same samples; `{named[0]}` makes others.", "Drop one.")
    abouts = [(path, about) for path in files for about in runs_of(read_metadata(path))]
    prompts = prompts_of(chosen, session.console)
    trust = rows.trust_of(chosen, session.console, prompts)
    recipes = [_recipe(path, about, trust, given) for path, about in abouts]
    repeat.check_many(files, recipes, trust)
    recorded = [repeat.recorded(path, about) if verify else [] for path, about in abouts]
    from ..runs.run import Loader

    loader, verdicts = Loader(), []
    with session.collected():
        for (path, about), recipe, before in zip(abouts, recipes, recorded, strict=True):
            if recipe is None:
                _draw_order(path, about, chosen, session)
            elif session.dry_run:
                session.budget(recipe)
            else:
                run = session.make(recipe, loader)
                repeat.warn_of_others(path, about, run.common, trust)
                session.tell(run)
                verdicts += _verify(path, before, run, session)
    if not all(verdicts):
        raise NarError(
            f"The tokens of {verdicts.count(False)} of {len(verdicts)} samples are not those of the files.",
            "Another processor, number format, model, release or compilation may round otherwise; "
            "`narcli show FILE` says what made it.",
        )


def _recipe(path: Path, about: About, trust: Trust, given: Sequence[str]) -> Recipe | None:
    """Make the recipe of a file, overridden by options; None for a file of ``visualize-order``."""
    if about.get("command") == "visualize-order":
        shown_of(path, about)
        if other := [name for name in given if name not in _ORDER]:
            raise UsageError(f"{path} shows an order, to which `{other[0]}` does not apply.", "Drop it.")
        return None
    if "command" not in about:
        require(path, about, "kind")
        names = {row.name for row in rows.of(about["kind"])}
        if other := [name for name in given if name not in names]:
            raise UsageError(f"`{other[0]}` is not for {about['kind']}s.", "Drop it.")
    return repeat.recipe_of(path, about, trust)


def _verify(path: Path, before: Sequence[Recorded], run: Finished, session: Session) -> list[bool]:
    """Compare the tokens of each sample with those of the file, and report the cells that differ."""
    console = session.console
    if before and (more := len(run.documents) - len(before)):
        console.warn(f"{path} holds no hash of {more} of its {len(run.documents)} samples: not compared.")
    verdicts = list(repeat.compare(path, before, run))
    for index, verdict in enumerate(verdicts):
        (console.note if verdict.equal else console.warn)(verdict.words)
        if session.as_json:
            sample = session.documents[-1]["samples"][index]
            result = {"equal": verdict.equal, "different_cells": verdict.cells}
            session.documents[-1]["samples"][index] = {**sample, "verified": result}
    return [verdict.equal for verdict in verdicts]


def _draw_order(path: Path, about: About, chosen: Mapping[str, Any], session: Session) -> None:
    """Write a picture of ``visualize-order`` again."""
    orders, theme = shown_of(path, about), about.get("theme", "dark")
    if chosen["theme"] is not None:
        theme = chosen["theme"].value
    name = f"{default_name(orders)}{path.suffix.lower()}"
    output = chosen["output"] or name
    if output.endswith("/") or expand(output).is_dir():
        output = f"{output.rstrip('/')}/{name}"
    made = write_orders(
        orders,
        output,
        theme=theme,
        overwrite=chosen["overwrite"],
        reserved=session.files,
    )
    session.files.append(made)
    if not session.as_json:
        session.console.result(made)
    about = {"schema": SCHEMA, **about_orders(orders, theme)}
    session.documents.append(about | order_document(orders, with_cells=False) | {"file": str(made)})
