"""``narcli decode``: pictures and clips again from saved tokens.

As for ``narcli rerun``, what a file says is not trusted.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..allocator import keep_memory
from ..classes import ClassEntry
from ..errors import CheckpointError
from ..hub import catalog, resolve
from ..media.metadata import RUN, SAMPLE
from ..media.textfiles import expand
from ..order import format_grid
from ..prompts import Prompt
from ..rules import MAX_CELLS
from ..settings import Sample
from .console import Console, is_terminal
from .rerun import (
    About,
    build_run,
    collected,
    entry_of,
    find_part,
    looks_of,
    options_given,
    require,
    takes,
    warn_of_others,
)
from .run import Run

if TYPE_CHECKING:
    from ..decoding import TokenDecoder

#: Of ``narcli decode``: what is left to choose once the tokens are there.
_DECODING = (
    "tokenizer", "device", "dtype", "frames", "fps", "format", "quality", "scale", "frontier",
    "frontier_mode", "output", "no_metadata", "overwrite", "as_json", "quiet", "offline", "yes",
)  # fmt: skip
_AXES = {"image": 2, "video": 3}


@takes(_DECODING)
def decode(
    tokens: Annotated[
        list[Path], typer.Argument(metavar="TOKENS...", parser=expand, help="Files that --save-tokens wrote.")
    ],
    **given: Any,
) -> None:
    """Turn saved tokens into pictures or clips, without drawing them again.

    It needs the tokenizer only. Beside each it writes an animation of the decoding order.
    """
    from ..media.readers import read_metadata

    given, console = options_given(given), Console(given["quiet"])
    keep_memory()
    abouts = [read_metadata(path) for path in tokens]
    made: list[Path] = []
    decoders: dict[Any, tuple[TokenDecoder, dict[str, Any]]] = {}
    with collected(given, console) as documents:
        for path, about in zip(tokens, abouts, strict=True):
            run = _decode(path, about, given, console, decoders, made)
            made += run.files
            documents.append(run.document())
            sample, seconds = run.samples[0], run.seconds["total"]
            if not run.as_json:
                console.note(f"{sample.entry}, seed {sample.seed}: decoded in {seconds:.1f} s")


def _decode(
    path: Path,
    about: About,
    given: Mapping[str, Any],
    console: Console,
    decoders: dict[Any, tuple[TokenDecoder, dict[str, Any]]],
    reserved: Sequence[Path],
) -> Run:
    """Decode one file of tokens; ``decoders`` is the one that is loaded already."""
    import torch

    from .. import __version__
    from ..decoding import hash_tokens
    from ..media.readers import read_tokens
    from ..results import Result

    require(path, about, "kind", "narcli", "model", "tokenizer", "sampling", "grid", "steps", "seed")
    require(path, about, "tokens_sha256")
    grid, said = tuple(about["grid"]), entry_of(path, about)
    if len(grid) != _AXES[about["kind"]] or prod(grid) > MAX_CELLS:
        raise CheckpointError(
            f"{path} is of a {format_grid(grid)} grid, which no {about['kind']} has.",
            "Get the original file.",
        )
    array = read_tokens(path)
    tokens = torch.from_numpy(array.reshape(-1)).long()
    if array.shape != grid or hash_tokens(tokens) != about["tokens_sha256"]:
        raise CheckpointError(f"{path}: its tokens are not those of its hash.", "Get the original file.")
    run = build_run(about["kind"], looks_of(about, given) | {"classes": [said]}, given)
    if isinstance(said, Prompt):
        run.classes, run.prompts = None, [said]
    run.check()
    run.reserved = reserved
    entry = said if isinstance(said, Prompt) else _class(said)
    run.samples = [Sample(entry, about["seed"])]
    run.name_files(about["model"]["name"])

    name, commit = given.get("tokenizer"), None
    if name is None:
        name, commit = find_part(path, about, "tokenizer", f"{about['kind']}-tokenizer", given, console)
    key = (name, commit, grid)
    if key not in decoders:
        decoders.clear()  # one at a time
        decoders[key] = _load_decoder(name, commit, grid, run)
    decoder, source = decoders[key]
    warn_of_others(path, about, {"tokenizer": source}, given, console)
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < decoder.tokenizer.config.codebook_size:
        raise CheckpointError(
            f"{path} has tokens beyond the {decoder.tokenizer.config.codebook_size} of the tokenizer.",
            "They do not belong together; give the right --tokenizer.",
        )
    run.pipeline = decoder
    dtype = str(next(decoder.tokenizer.parameters()).dtype).removeprefix("torch.")
    by = {"narcli": __version__, "device": decoder.device.type, "dtype": dtype}
    told = {field.name: about[field.name] for field in RUN if field.name in about}
    for name in ("schema", "scale", "filter", "format", "frames", "model_frames", "fps", "quality"):
        told.pop(name, None)
    run.common = told | {"tokenizer": source, "decoded": by} | run.fit(grid, decoder.tokenizer.config)
    run.check_metadata()
    sample = {field.name: about[field.name] for field in SAMPLE if field.name in about}

    def results() -> Any:
        with run.timed("decode"):
            (clip,) = decoder.decode(tokens[None])
        yield [Result(clip, entry, about["seed"], tokens, sample)]

    run.finish(results())
    return run


def _load_decoder(
    name: str | Path, commit: str | None, grid: tuple[int, ...], run: Run
) -> tuple[TokenDecoder, dict[str, Any]]:
    """A tokenizer of that name, and what metadata says of it."""
    from ..checkpoints.load import remark
    from ..decoding import load_decoder
    from ..devices import choose_device, choose_dtype
    from ..hub.locate import check_disk, locate
    from ..hub.sources import Files
    from ..memory import check_decoding

    built_in = catalog.MODELS.get(str(name).lower())
    if built_in is not None and built_in.path is not None:  # a model whose folder has its tokenizer
        name = built_in.path
    known = resolve.resolve(name, f"{run.kind}-tokenizer")
    located = locate(known, revision=commit, offline=run.offline)
    check_disk([located])
    if located.missing and not run.yes:
        run.console.approve_download({known.name: located.missing})
    here = located.fetch(progress=not run.quiet and is_terminal(sys.stderr), tell=run.console.note)
    for note in filter(None, (here.note, remark(here.path))):
        run.console.warn(note)
    device = choose_device(run.device)
    check_decoding(here, grid, choose_dtype(run.dtype.value, device), device, run.about_files())
    with run.timed("load"):
        decoder = load_decoder(here.path, grid, run.device, run.dtype.value)
    return decoder, Files(here, here).about()["tokenizer"]


def _class(said: About) -> ClassEntry:
    return ClassEntry(said["label"], said["id"], said["name"], said.get("stands_for"))
