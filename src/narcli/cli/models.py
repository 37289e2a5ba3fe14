"""``narcli models``: what there is, what is used by default, and conversion to narcli's own format."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import registry
from ..errors import NarError
from .console import Console, bytes_text
from .options import Json, Overwrite

app = typer.Typer(help="List models, choose the defaults, convert files.", no_args_is_help=True)


class Stored(str, Enum):
    """Number formats of a file."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """Show the known models: their size, license, whether they are on disk, and the defaults."""
    console, chosen = Console(), registry.defaults()
    rows = [_row(model, chosen) for model in registry.MODELS.values()]
    if as_json:
        console.json({"models": rows, "defaults": chosen})
        return
    titles = ("NAME", "KIND", "SIZE", "ON DISK", "LICENSE", "NOTE")
    lines = [
        (
            row["name"] + " *" * row["default"],
            row["kind"],
            "not known" if row["bytes"] is None else bytes_text(row["bytes"]),
            "yes" if row["on_disk"] else "missing" if row["repo"] is None else "to fetch",
            row["license"] or "see its page",
            row["note"],
        )
        for row in rows
    ]
    for line in _columns([titles, *lines]):
        console.result(line)
    console.result("")
    for kind, name in chosen.items():
        console.result(f"default {kind} model: {name or _none(kind)}")


@app.command()
def default(
    kind: Annotated[str | None, typer.Argument(help="image, text or video.")] = None,
    name: Annotated[
        str | None, typer.Argument(help="The model to use from now on; 'none' forgets the choice.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the default models, or choose one."""
    if kind is not None and name is not None:
        registry.set_default(kind, None if name == "none" else name)
    chosen = registry.defaults()
    if kind is not None:
        registry.check_kind(kind)
        chosen = {kind: chosen[kind]}
    console = Console()
    if as_json:
        console.json(chosen)
    else:
        for line in _columns([(each, model or _none(each)) for each, model in chosen.items()]):
            console.result(line)
    if kind is not None and name is not None and (by := registry.from_environment(kind)):
        console.warn(f"{registry.variable(kind)}={by} is set, and goes before this choice.")


@app.command()
def convert(
    file: Annotated[
        Path, typer.Argument(help="A released transformer or tokenizer (.pt, .pth, .safetensors).")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="The folder to make.")],
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The tokenizer to put beside the transformer.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A config.json, if not the one beside the file.")
    ] = None,
    dtype: Annotated[
        Stored | None, typer.Option(help="Number format to store.", show_default="as it is")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Turn a released file into a narcli folder, checked on the way."""
    import torch

    from .. import checkpoints

    folder = checkpoints.convert(
        file,
        output,
        tokenizer=tokenizer,
        config=config,
        dtype=getattr(torch, dtype.value) if dtype else None,
        overwrite=overwrite,
    )
    if as_json:
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        Console().json({"folder": str(folder), "files": files})
    else:
        Console().result(folder)


def _row(model: registry.Model, chosen: dict[str, str | None]) -> dict[str, Any]:
    from ..hub import cached

    note = model.note
    try:
        found = cached(model)
    except NarError as error:  # one damaged model must not hide the others
        found, note = None, error.message
    held = _held(found.path) if found else None
    return {
        "name": model.name,
        "kind": model.kind,
        "repo": model.repo,
        "file": model.file,
        "page": model.page,
        "license": model.license,
        "on_disk": found is not None,
        "path": str(found.path) if found else None,
        "commit": found.commit if found else None,
        "bytes": held if held is not None else model.size,
        "bytes_to_fetch": 0 if found or model.repo is None else model.size,
        "tokenizer": model.tokenizer,
        "text_encoder": model.text_encoder,
        "default": chosen.get(model.kind) == model.name,
        "note": note,
    }


def _held(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())


def _none(kind: str) -> str:
    return f"none is built in; choose one with `narcli models default {kind} NAME`"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
