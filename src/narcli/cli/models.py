"""``narcli models``: what there is, fetched, shown, checked, removed; the defaults; narcli's own format."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..checkpoints import conversions
from ..errors import CheckpointError, HubError, NarError, UsageError
from ..hub import catalog, defaults, resolve
from ..media.textfiles import expand
from . import options
from .console import Console, bytes_text, is_terminal
from .options import Json, Overwrite

if TYPE_CHECKING:
    pass
from ..hub.library import _check_files, _companions, _held, _list_files, _on_disk

app = typer.Typer(help="Fetch models, look at them, check, remove and convert them.", no_args_is_help=True)


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
    rows = [_row(model, chosen) for model in catalog.MODELS.values()]
    folder, copies = conversions.cache_folder(), conversions.held()
    if as_json:
        converted = {"folder": str(folder), "bytes": copies}
        console.json({"models": rows, "converted": converted, "defaults": chosen})
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
        console.result(f"default {kind} model: {name}")
    if copies:
        console.result(f"converted copies: {bytes_text(copies)} in {folder}")


@app.command()
def default(
    kind: Annotated[str | None, typer.Argument(help="image, text or video.")] = None,
    name: Annotated[
        str | None, typer.Argument(help="The model to use from now on; 'none' forgets the choice.")
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
        for line in _columns(list(chosen.items())):
            console.result(line)
    if kind is not None and name is not None and (by := resolve.from_environment(kind)):
        console.warn(f"{resolve.variable(kind)}={by} is set, and goes before this choice.")


@app.command()
def convert(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            parser=expand,
            help="A released transformer or tokenizer (.pt, .pth, .safetensors).",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", parser=expand, help="The folder to make.")
    ],
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="FILE", parser=expand, help="The tokenizer to put beside the transformer."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", parser=expand, help="A config.json, if not the one beside the file."),
    ] = None,
    dtype: Annotated[
        Stored | None, typer.Option(help="Number format to store.", show_default="as it is")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Turn a released file into a narcli folder, checked on the way."""
    import torch

    from ..checkpoints import convert as checkpoints
    from ..checkpoints.load import remark

    console = Console()
    folder = checkpoints.convert(
        file,
        output,
        tokenizer=tokenizer,
        config=config,
        dtype=getattr(torch, dtype.value) if dtype else None,
        overwrite=overwrite,
    )
    for source in (file, tokenizer):
        if source and (used := remark(source)):
            console.warn(used)
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

    What is there already is checked too, and downloaded again where it is damaged.
    """
    from ..hub import locate

    console = Console(quiet)
    models = [resolve.resolve(name, None) for name in names]
    pinned = {model.name for model in models}
    if revision is not None and (len(pinned) > 1 or models[0].repo is None):
        raise UsageError(
            f"--revision is {revision[:60]!r}, and goes with one model of the Hub.", "Pull it by itself."
        )
    wanted = {part.name: part for model in models for part in (model, *_companions(model))}
    parts = [
        locate.locate(part, revision=revision if part.name in pinned else None, check=True)
        for part in wanted.values()
    ]
    locate.check_disk(parts)
    rows = []
    for part in parts:
        progress = not quiet and is_terminal(sys.stderr)
        found = part.fetch(progress=progress, check=True, tell=console.note)
        if found.note:
            console.warn(found.note)
        files = _check_files(found)
        if damaged := [file for file in files if not file["ok"]]:
            raise CheckpointError(
                f"{damaged[0]['path']} is damaged, and the Hub could not be asked for it.",
                "Try again when it can be reached.",
            )
        rows.append(
            {
                "name": found.model.name,
                "repo": found.model.repo,
                "commit": found.commit,
                "path": str(found.path),
                "downloaded": found.downloaded,
                "files": files,
            }
        )
        if not as_json:
            console.result(found.path)
            total = bytes_text(sum(file["bytes"] for file in files))
            got = f"{bytes_text(found.downloaded)} downloaded" if found.downloaded else "nothing to download"
            console.note(f"{found.model.name}: {total}, {got}, {_compared(files)}")
    if as_json:
        console.json({"models": rows})


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A name, repository, file or folder.")],
    revision: options.Revision = None,
    offline: options.Offline = False,
    as_json: Json = False,
) -> None:
    """Show what a model is: parameters, files, license, decoding steps, and the memory it takes.

    The Hub is asked only for a model that is not on this machine.
    """
    from ..hub import locate, selection

    console = Console()
    model = resolve.resolve(name, None)
    if revision is not None and model.repo is None:
        raise UsageError(f"--revision is for models of the Hub; {model.name} is on this machine.")
    found, located, note = selection.cached(model, revision), None, ""
    if found is None:
        try:
            located = locate.locate(model, revision=revision, offline=offline)
            found = located.here
        except HubError as error:
            if model.name not in catalog.MODELS:
                raise
            note = error.message
    import torch

    from .. import memory
    from ..checkpoints.load import remark
    from ..hub import sizes

    about = _row(found.model if found else model, resolve.defaults(), revision)
    networks = sizes.networks_of(found or located or model)
    if found is not None and (used := remark(found.path)):
        about["note"] = f"{about['note']}; {used}" if about["note"] else used
    estimates, suffix = {}, ".mp4" if about["kind"] == "video" else ".png"
    if networks.runs:
        for dtype in Stored:
            one, eight = (
                memory.estimate(
                    networks,
                    getattr(torch, dtype.value),
                    size,
                    files=memory.Files(size, suffix, frontier="gif"),
                ).document()
                for size in (1, 8)
            )
            estimates[dtype.value] = {"batch_size_1": one, "batch_size_8": eight}
    order = networks.transformer.order if networks.transformer else None
    if found is not None:
        files = [{key: file[key] for key in ("path", "bytes")} for file in _list_files(found)]
    else:
        files = [{"path": file.name, "bytes": file.size} for file in located.files] if located else []
    about |= {
        "on_disk": found is not None,
        "revision": revision or ("main" if model.repo else None),
        "commit": found.commit if found else located.commit if located else None,
        "license": model.license or (located.license if located else None),
        "bytes_to_fetch": 0 if found else located.missing if located else about["bytes_to_fetch"],
        "path": str(found.path) if found else None,
        "parameters": networks.parameters or None,
        "files": files,
        "steps": len(order.steps) if order else None,
        "cells": order.cells if order else None,
        "largest_frontier": order.widest if order else None,
        "defaults": dict((found.model if found else model).defaults),
        "memory": estimates or None,
    }
    if note:
        console.warn(note)
    if as_json:
        console.json(about)
        return
    size = bytes_text(sum(file["bytes"] or 0 for file in files)) if files else None
    rows = {
        "name": f"{about['name']} ({MAKES[about['kind']]})",
        "note": about["note"],
        "repository": about["page"],
        "revision": about["commit"] and f"{about['revision']}, commit {about['commit']}",
        "license": about["license"] or ("see its page" if about["page"] else "not stated"),
        "on disk": about["path"] or (f"no; {size} to fetch" if size else "no"),
        "tokenizer": about["tokenizer"],
        "text encoder": about["text_encoder"],
        "parameters": ", ".join(f"{part} {_count(n)}" for part, n in networks.parameters.items()),
        "steps": order
        and f"{len(order.steps)} instead of {order.cells}, at most {order.widest} tokens in one",
        "memory": "; ".join(
            f"{dtype} {bytes_text(sizes['batch_size_1']['total'])}, "
            f"in batches of 8 {bytes_text(sizes['batch_size_8']['total'])}"
            for dtype, sizes in estimates.items()
        ),
    }
    for line in _columns([(title, str(value)) for title, value in rows.items() if value]):
        console.result(line)
    for file in files:
        told = "size not told" if file["bytes"] is None else bytes_text(file["bytes"])
        console.result(f"  {Path(file['path']).name if found else file['path']}  {told}")


@app.command()
def verify(
    name: Annotated[
        str | None,
        typer.Argument(help="A name, repository, file or folder; if not given, all on disk, every revision."),
    ] = None,
    revision: options.Revision = None,
    as_json: Json = False,
) -> None:
    """Check models on disk: the hashes of their files, and that every tensor is there and fits.

    Nothing is downloaded. The exit code is 4 where something is damaged; `narcli models pull` mends it.
    Converted copies go, and are made anew by the next run.
    """
    from ..hub import selection
    from ..hub.check import check_model

    console = Console()
    others, incomplete = list[str](), list[str]()
    if name is not None:
        model = resolve.resolve(name, None)
        chosen = [(model, revision), *((part, None) for part in _companions(model))]
    elif revision is not None:
        raise UsageError("--revision goes with the name of a model.", "Name one.")
    else:
        chosen, others, incomplete = _on_disk()
    rows, broken = [], list[tuple[catalog.Model, str | None]]()
    for index, (model, wanted) in enumerate(chosen):
        error, files, path, commit = None, [], None, None
        try:
            found = selection.cached(model, wanted)
            if found is None:
                if name is not None and index == 0:
                    raise HubError(
                        f"{model.name} is not on this machine.", f"Fetch it: narcli models pull {name}"
                    )
                continue
            path, commit, files = str(found.path), found.commit, _check_files(found)
            conversions.forget(conversions.copies(found.path))  # which are compared with nothing
            if damaged := [file["path"] for file in files if not file["ok"]]:
                error = f"{damaged[0]} is not what was downloaded: its hash differs."
            else:
                check_model(found.model, found.path)
        except CheckpointError as problem:
            error = problem.message
        rows.append({
            "name": model.name, "path": path, "commit": commit, "ok": error is None, "files": files,
            "error": error,
        })  # fmt: skip
        pinned = wanted not in (None, "main")
        if error is not None:
            broken.append((model, wanted if pinned else None))
        if not as_json:
            size = bytes_text(sum(file["bytes"] for file in files))
            which = f"{model.name} at {wanted}" if pinned else model.name
            console.result(f"{which}: {error or f'whole, {size}, {_compared(files)}'}")
    if as_json:
        console.json({"models": rows, "others": others, "incomplete": incomplete, "ok": not broken})
    else:
        if incomplete:
            console.note(f"Without weights, as an interrupted download leaves it: {', '.join(incomplete)}.")
        if others:
            console.note(f"Not checked, for narcli does not read them: {', '.join(others)}.")
    if broken:
        model, wanted = broken[0]
        hint = f"Fetch again: narcli models pull {model.name}" + (f" --revision {wanted}" if wanted else "")
        if model.repo is None:
            hint = (
                "Install narcli again." if model.name in catalog.MODELS else "Get it again, or make it anew."
            )
        elif name is None and model.name not in catalog.MODELS and model.kind != "image":
            # pull would take it for an image model.
            hint = f"Remove it, to fetch it again: narcli models rm {model.name}"
        raise CheckpointError(f"Damaged: {', '.join(dict.fromkeys(m.name for m, _ in broken))}.", hint)


@app.command("rm")
def remove(
    names: Names,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    as_json: Json = False,
) -> None:
    """Remove downloaded models, all their revisions, with what only they use.

    Repositories go as a whole; one that something else on disk needs stays.
    """
    from ..hub import cache

    console = Console()
    models = [resolve.resolve(name, None) for name in names]
    for model in models:
        if model.repo is None:
            raise UsageError(
                f"{model.name} is {'built in' if model.name in catalog.MODELS else 'a file of yours'}; "
                "only downloads are removed.",
                "`narcli models list` shows what was downloaded.",
            )
        if not cache.is_cached(model):
            raise UsageError(f"{model.name} is not on this machine.", "`narcli models list` shows what is.")
    companions = [part for model in models for part in _companions(model)]
    going = {model.repo: model for model in models}
    staying = [row for row in catalog.MODELS.values() if row.repo not in going and cache.is_cached(row)]
    whole = {model.repo for model, name in zip(models, names, strict=True) if name == model.repo}

    def needed_by(model: catalog.Model) -> list[str]:
        """What stays and needs the model's repository: models that run with it, other weights in it."""
        users = [row.name for row in staying if model.repo in [part.repo for part in _companions(row)]]
        files = {part.file for part in (*models, *companions) if part.repo == model.repo}
        others = set() if None in files or model.repo in whole else cache.weights_of(model) - files
        return users or [f"{model.repo}/{file}" for file in sorted(others)]

    for model in models:
        if users := needed_by(model):
            raise UsageError(
                f"{model.repo} goes as a whole, and {', '.join(users)} on this machine "
                f"{'needs' if len(users) == 1 else 'need'} it.",
                f"Remove {'that' if len(users) == 1 else 'those'} first, or too.",
            )
    kept: dict[str, list[str]] = {}
    for part in companions:
        if part.repo in going or not cache.is_cached(part):
            continue
        if users := needed_by(part):
            kept[part.name] = users
        else:
            going[part.repo] = part
    what = ", ".join(f"{part.name} {bytes_text(cache.held(part))}" for part in going.values())
    if not yes:
        if not console.can_ask:
            raise UsageError(f"This would remove {what}.", "Add --yes to allow it.")
        console.confirm(f"This removes {what}.", "Nothing was removed.")
    freed: dict[str, int] = {}
    try:
        for part in going.values():
            freed[part.name] = cache.remove(part)
    finally:  # what is gone is told also where the next one could not be removed
        total = sum(freed.values())
        if as_json:
            console.json({"freed": total, "removed": freed, "kept": kept})
        else:
            for removed, size in freed.items():
                console.result(f"removed {removed}, {bytes_text(size)}")
            for part_name, users in kept.items():
                console.result(f"kept {part_name} for {', '.join(users)}")
            console.result(f"freed {bytes_text(total)}")
    if as_json:
        return
    for kind, chosen in resolve.defaults().items():
        if chosen in freed:
            console.warn(f"{chosen} is still the default {kind} model; `narcli models default` changes it.")


MAKES = {
    "image": "images of classes",
    "text": "images from text",
    "video": "videos of classes",
    "image-tokenizer": "image tokenizer",
    "video-tokenizer": "video tokenizer",
    "text-encoder": "text encoder",
}


def _compared(files: Sequence[dict[str, Any]]) -> str:
    """What was compared with the hashes of the download; files that were not downloaded have none."""
    known = sum(file["expected"] is not None for file in files)
    if known in (0, len(files)):
        return "hashes checked" if known else "no hashes to compare with"
    return f"hashes checked of {known} of {len(files)} files"


def _count(number: int) -> str:
    """``130551552`` -> ``131 M``."""
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.{int(number < 1e7)}f} M"


def _row(model: catalog.Model, chosen: dict[str, str], revision: str | None = None) -> dict[str, Any]:
    from ..hub.selection import cached

    note = model.note
    try:
        found = cached(model, revision)
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
        "bytes_converted": conversions.held(conversions.copies(found.path)) if found else 0,
        "bytes_to_fetch": 0 if found or model.repo is None else model.size,
        "tokenizer": model.tokenizer,
        "text_encoder": model.text_encoder,
        "default": chosen.get(model.kind) == model.name,
        "note": note,
    }


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
