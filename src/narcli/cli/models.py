"""``narcli models``: list, fetch, show, check, remove and convert models; choose the defaults."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..checkpoints import conversions
from ..errors import CheckpointError, UsageError
from ..hub import defaults, library, resolve
from ..media.textfiles import expand
from . import options
from .console import Console, bytes_text, is_terminal
from .options import Json, Overwrite
from .report import steps_text

app = typer.Typer(help="Fetch, show, check, remove and convert models.", no_args_is_help=True)


Names = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="Names of `narcli models list`, or repositories.")
]


class Stored(str, Enum):
    """Number formats of a file."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """Show the known models: their size, license, whether they are on disk, and the defaults."""
    console, chosen = Console(), resolve.defaults()
    rows = [_row(entry, chosen) for entry in library.list_models()]
    folder, copies = conversions.cache_folder(), conversions.held()
    if as_json:
        converted = {"folder": str(folder), "bytes": copies}
        console.json({"models": rows, "converted": converted, "defaults": chosen})
        return
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
    console.table(lines, ("NAME", "KIND", "SIZE", "ON DISK", "LICENSE", "NOTE"))
    console.result("")
    for kind, name in chosen.items():
        console.result(f"default {kind} model: {name}")
    if copies:
        console.result(f"converted copies: {bytes_text(copies)} in {folder}")


@app.command()
def default(
    kind: Annotated[str | None, typer.Argument(help="image, text or video.")] = None,
    name: Annotated[
        str | None, typer.Argument(help="Model to use from now on; 'none' resets the choice.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the default models, or choose one."""
    console = Console()
    if kind is not None and name is not None:
        defaults.set_default(kind, None if name == "none" else name, console.warn)
    chosen = resolve.defaults()
    if kind is not None:
        resolve.check_kind(kind)
        chosen = {kind: chosen[kind]}
    if as_json:
        console.json(chosen)
    else:
        console.table(chosen.items())
    if kind is not None and name is not None and (by := resolve.from_environment(kind)):
        console.warn(f"{resolve.variable(kind)}={by} is set, and goes before this choice.")


@app.command()
def convert(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            parser=expand,
            help="Released transformer or tokenizer (.pt, .pth, .safetensors).",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", parser=expand, help="Folder to write.")
    ],
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="FILE", parser=expand, help="Tokenizer to put beside the transformer."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", parser=expand, help="config.json to use instead of the one beside the file."
        ),
    ] = None,
    dtype: Annotated[
        Stored | None, typer.Option(help="Number format to store.", show_default="as it is")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Convert a released file to a folder of narcli's format, and check it."""
    console = Console()
    folder = library.convert(
        file,
        output,
        tokenizer=tokenizer,
        config=config,
        dtype=dtype.value if dtype else None,
        overwrite=overwrite,
        warn=console.warn,
    )
    if as_json:
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        console.json({"folder": str(folder), "files": files})
    else:
        console.result(folder)


@app.command()
def pull(
    names: Names,
    revision: options.Revision = None,
    as_json: Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Download models, with their tokenizers and text encoders, and check their hashes.

    Files on disk are checked too, and downloaded again if damaged.
    """
    console = Console(quiet)
    progress = not quiet and is_terminal(sys.stderr)
    rows = []
    for part in library.pull(
        names, revision=revision, progress=progress, tell=console.note, warn=console.warn
    ):
        found, files = part.found, part.files
        assert found is not None
        rows.append(
            {
                "name": part.model.name,
                "repo": part.model.repo,
                "commit": found.commit,
                "path": str(found.path),
                "downloaded": found.downloaded,
                "files": [_file(file) for file in files],
            }
        )
        if not as_json:
            console.result(found.path)
            got = f"{bytes_text(found.downloaded)} downloaded" if found.downloaded else "nothing to download"
            console.note(f"{part.model.name}: {_size(files)}, {got}, {_compared(files)}")
    if as_json:
        console.json({"models": rows})


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name, repository, file or folder.")],
    revision: options.Revision = None,
    offline: options.Offline = False,
    as_json: Json = False,
) -> None:
    """Show a model: its parameters, files, license, decoding steps and memory.

    The Hub is asked only for a model that is not on this machine.
    """
    console = Console()
    model = library.describe(name, revision=revision, offline=offline)
    order, parameters, files = model.order, model.networks.parameters, model.files
    memory = _memory(model)
    if model.warning:
        console.warn(model.warning)
    if as_json:
        sizes = {
            "revision": model.revision,
            "parameters": parameters or None,
            "files": [{"path": file.name, "bytes": file.size} for file in files],
            "steps": len(order.steps) if order else None,
            "cells": order.cells if order else None,
            "largest_frontier": order.widest if order else None,
            "defaults": dict(model.model.defaults),
            "memory": memory or None,
        }
        console.json(_row(model, resolve.defaults()) | sizes)
        return
    row, size = model.model, bytes_text(sum(file.size or 0 for file in files)) if files else None
    rows = {
        "name": f"{row.name} ({MAKES[row.kind]})",
        "note": model.note,
        "repository": row.page,
        "revision": model.commit and f"{model.revision}, commit {model.commit}",
        "license": model.license or ("see its page" if row.page else "not stated"),
        "on disk": model.found.path if model.found else f"no; {size} to fetch" if size else "no",
        "tokenizer": row.tokenizer,
        "text encoder": row.text_encoder,
        "parameters": ", ".join(f"{part} {_count(n)}" for part, n in parameters.items()),
        "steps": order and f"{steps_text(order)}, at most {order.widest} tokens in one",
        "memory": "; ".join(
            f"{dtype} {bytes_text(sizes['batch_size_1']['total'])}, "
            f"in batches of 8 {bytes_text(sizes['batch_size_8']['total'])}"
            for dtype, sizes in memory.items()
        ),
    }
    width = max(len(title) for title, value in rows.items() if value)
    for title, value in rows.items():
        if value:
            console.result(f"{title:<{width}}  {value}")
    for file in files:
        told = "size not told" if file.size is None else bytes_text(file.size)
        console.result(f"  {Path(file.name).name if model.found else file.name}  {told}")


@app.command()
def verify(
    name: Annotated[
        str | None,
        typer.Argument(help="Name, repository, file or folder; all on disk, in every revision, if omitted."),
    ] = None,
    revision: options.Revision = None,
    as_json: Json = False,
) -> None:
    """Check models on disk: the hashes of their files, and that every tensor is there and fits.

    Nothing is downloaded. The exit code is 4 if something is damaged; `narcli models pull` repairs it.
    Converted copies are removed; the next run makes them anew.
    """
    console = Console()
    chosen = library.inventory(name, revision)
    rows, broken = list[dict[str, Any]](), list[library.Checked]()
    for part in library.verify(chosen):
        rows.append(
            {
                "name": part.model.name,
                "path": str(part.found.path) if part.found else None,
                "commit": part.found.commit if part.found else None,
                "ok": part.error is None,
                "files": [_file(file) for file in part.files],
                "error": part.error,
            }
        )
        if part.error is not None:
            broken.append(part)
        if not as_json:
            which = f"{part.model.name} at {part.revision}" if part.revision else part.model.name
            whole = f"whole, {_size(part.files)}, {_compared(part.files)}"
            console.result(f"{which}: {part.error or whole}")
    if as_json:
        lists = {"others": chosen.others, "incomplete": chosen.incomplete}
        console.json({"models": rows, **lists, "ok": not broken})
    else:
        if names := ", ".join(chosen.incomplete):
            console.note(f"Without weights, as an interrupted download leaves it: {names}.")
        if names := ", ".join(chosen.others):
            console.note(f"Not checked, for narcli does not read them: {names}.")
    if broken:
        names = ", ".join(dict.fromkeys(part.model.name for part in broken))
        raise CheckpointError(f"Damaged: {names}.", broken[0].remedy)


@app.command("rm")
def remove(
    names: Names,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    as_json: Json = False,
) -> None:
    """Remove downloaded models in all revisions, with the parts that only they use.

    A repository is removed as a whole, unless another model on disk needs it.
    """
    console = Console()
    removal = library.plan_removal(names)
    what = ", ".join(f"{model.name} {bytes_text(size)}" for model, size in removal.models)
    if not yes:
        if not console.can_ask:
            raise UsageError(f"This would remove {what}.", "Add --yes to allow it.")
        console.confirm(f"This removes {what}.", "Nothing was removed.")
    freed: dict[str, int] = {}
    try:
        for model, size in library.remove(removal):
            freed[model.name] = size
    finally:  # what is gone is told also where the next one could not be removed
        total = sum(freed.values())
        if as_json:
            console.json({"freed": total, "removed": freed, "kept": removal.kept})
        else:
            for name, size in freed.items():
                console.result(f"removed {name}, {bytes_text(size)}")
            for name, users in removal.kept.items():
                console.result(f"kept {name} for {', '.join(users)}")
            console.result(f"freed {bytes_text(total)}")
    if as_json:
        return
    for kind, name in resolve.defaults().items():
        if name in freed:
            console.warn(f"{name} is still the default {kind} model; `narcli models default` changes it.")


MAKES = {
    "image": "images of classes",
    "text": "images from text",
    "video": "videos of classes",
    "frames": "videos that go on from frames",
    "image-tokenizer": "image tokenizer",
    "video-tokenizer": "video tokenizer",
    "text-encoder": "text encoder",
}


def _row(entry: library.Entry, chosen: dict[str, str]) -> dict[str, Any]:
    """Return a model as JSON."""
    model = entry.model
    return {
        "name": model.name,
        "kind": model.kind,
        "repo": model.repo,
        "file": model.file,
        "page": model.page,
        "license": entry.license,
        "on_disk": entry.found is not None,
        "path": str(entry.found.path) if entry.found else None,
        "commit": entry.commit,
        "bytes": entry.bytes,
        "bytes_converted": entry.bytes_converted,
        "bytes_to_fetch": entry.bytes_to_fetch,
        "tokenizer": model.tokenizer,
        "text_encoder": model.text_encoder,
        "default": chosen.get(model.kind) == model.name,
        "note": entry.note,
    }


def _file(file: library.CheckedFile) -> dict[str, Any]:
    """Return a file as JSON."""
    return {"path": str(file.path)} | {key: getattr(file, key) for key in ("bytes", "hash", "expected", "ok")}


def _memory(model: library.Description) -> dict[str, dict[str, dict[str, int]]]:
    """Estimate the memory of runs by number format and batch size; {} where sizes are not known."""
    from .. import memory
    from ..devices import DTYPES

    if not model.networks.runs:
        return {}
    kind = model.model.kind
    suffix = ".mp4" if kind in ("video", "frames") else ".png"

    def needed(dtype: Stored, size: int) -> dict[str, int]:
        files = memory.Files(size, suffix, frontier="gif")
        numbers, guided = DTYPES[dtype.value], kind != "frames"
        return memory.estimate(model.networks, numbers, size, guided=guided, files=files).document()

    return {dtype.value: {f"batch_size_{n}": needed(dtype, n) for n in (1, 8)} for dtype in Stored}


def _size(files: Sequence[library.CheckedFile]) -> str:
    """Return the size of files in words."""
    return bytes_text(sum(file.bytes for file in files))


def _compared(files: Sequence[library.CheckedFile]) -> str:
    """Tell which files were compared with the hashes of the download."""
    known = sum(file.expected is not None for file in files)
    if known in (0, len(files)):
        return "hashes checked" if known else "no hashes to compare with"
    return f"hashes checked of {known} of {len(files)} files"


def _count(number: int) -> str:
    """Format ``130551552`` as ``131 M``."""
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.{int(number < 1e7)}f} M"
