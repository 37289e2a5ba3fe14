"""``narcli classes``: the classes of a model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..classes import ClassTable, load_table, table_for
from ..errors import NarError, UsageError
from ..hub import catalog, resolve
from .console import Console
from .options import Json, Model

#: Kinds of models without classes, and their subject in words.
_TAKES = {"text": "takes a prompt", "frames": "goes on from frames"}


def classes(
    action: Annotated[str | None, typer.Argument(metavar="[search]", help="Search instead of list.")] = None,
    word: Annotated[
        str | None, typer.Argument(metavar="[WORD]", help="Part of a name or synonym, or an emoji.")
    ] = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """List the classes of a model, or search them."""
    if action not in (None, "search"):
        raise UsageError(f"{action!r} is not something to do here.", f"Try: narcli classes search {action}")
    if action and not word:
        raise UsageError("There is no word to search for.", "For example: narcli classes search dog")
    console, name = Console(), model or resolve.default_model("image")
    if model is None:
        resolve.resolve_default("image", None)  # an error names the source of the choice
    table = table_of(name)
    rows = _search(table, word) if word else _all(table)
    if as_json:
        console.json({"model": name, "table": table.name or None, "classes": rows})
        return
    if not rows:
        raise UsageError(f"No class of {name} has {word!r} in its name.", table.similar(word or ""))
    width = max(len(_ids(row)) for row in rows)
    for row in rows:
        console.result(f"{_ids(row):{width}}  {_describe(row)}")


def table_of(name: str) -> ClassTable:
    """Return the classes of a model without fetching it.

    Raises:
        UsageError: no such model, or one that takes no classes.
        NarError: a repository whose classes are unknown before it is fetched.
    """
    from ..hub.selection import cached

    row = catalog.MODELS.get(name.lower())
    if row is not None and row.classes is not None:
        return load_table(row.classes)
    model = resolve.resolve(name, None)
    found = cached(model)
    model = found.model if found else model
    if model.kind not in ("image", "video"):
        what = _TAKES.get(model.kind, "is a tokenizer")
        raise UsageError(f"{model.name} has no classes: it {what}.", "Name another one with --model.")
    if model.classes is not None:
        return load_table(model.classes)
    if found is None:
        raise NarError(f"The classes of {model.name} are known once it is on this machine.")
    from ..checkpoints.load import transformer_config

    sizes = transformer_config(found.path, grid=model.grid)
    if sizes.condition in _TAKES:
        what = _TAKES[sizes.condition]
        raise UsageError(f"{model.name} has no classes: it {what}.", "Name another one with --model.")
    return table_for(sizes.num_classes, "video" if len(sizes.grid) == 3 else "image")


def _all(table: ClassTable) -> list[dict[str, Any]]:
    return [
        {"label": label, "ids": list(row.ids), "name": row.names[0]}
        | ({"emoji": row.emoji} if row.emoji else {})
        | ({"synonyms": list(row.names[1:])} if row.names[1:] else {})
        for label, row in enumerate(table.rows)
    ]


def _search(table: ClassTable, word: str) -> list[dict[str, Any]]:
    return [
        {"label": entry.label, "ids": [entry.id], "name": entry.name}
        | ({"emoji": entry.emoji} if entry.emoji else {})
        | ({"stands_for": entry.stands_for} if entry.stands_for else {})
        for entry in table.search(word)
    ]


def _describe(row: dict[str, Any]) -> str:
    name = f"{row['emoji']} {row['name']}" if "emoji" in row else row["name"]
    return f"{row['stands_for']} → {name}" if "stands_for" in row else name


def _ids(row: dict[str, Any]) -> str:
    """Format ``[0, 389, 391, 392, 393]`` as ``"0,389,391-393"``."""
    parts: list[list[int]] = []
    for id in row["ids"]:
        if parts and id == parts[-1][-1] + 1:
            parts[-1].append(id)
        else:
            parts.append([id])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
