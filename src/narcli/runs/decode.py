"""Decoding of saved tokens with a tokenizer alone; files are trusted as in ``repeat``."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import __version__, memory
from ..checkpoints.load import remark
from ..classes import ClassEntry
from ..decoding import TokenDecoder, hash_tokens, load_decoder
from ..devices import choose_device, choose_dtype, dtype_name
from ..errors import CheckpointError, UsageError
from ..hub import resolve
from ..hub.locate import check_disk, locate
from ..hub.sources import Files
from ..media.readers import read_tokens
from ..media.schema import RUN, SAMPLE
from ..order import NAR, Order, format_grid, named
from ..results import Result
from ..rules import MAX_CELLS
from ..settings import Sample
from .budget import files_of
from .events import Clock, Finished, FrontierDecoded, Written
from .filenames import name_files, suffix_of
from .plan import Host
from .recipe import Recipe
from .recipe_json import LOOKS
from .repeat import Trust, find_part, warn_of_others
from .sinks import Sinks
from .subjects import entry_of, require

_AXES = {"image": 2, "video": 3}
#: Metadata that decoding writes anew.
_NEW = ("schema", "filter", "format", "model_frames", *LOOKS)


class Decoders:
    """Loader of tokenizers that keeps the last one for the next file."""

    def __init__(self) -> None:
        self._key: object = None
        self._loaded: tuple[TokenDecoder, dict[str, Any]] | None = None

    def load(
        self,
        name: str,
        commit: str | None,
        order: Order,
        recipe: Recipe,
        files: memory.Files,
        host: Host,
        clock: Clock,
    ) -> tuple[TokenDecoder, dict[str, Any]]:
        """Load a tokenizer for tokens of an order; return it with its metadata.

        Raises:
            NarError: a tokenizer that cannot be found, fetched, held or used.
        """
        key = (name, commit, order, recipe.device, recipe.dtype)
        if self._loaded is not None and self._key == key:
            return self._loaded
        self._loaded = None  # one at a time
        row = resolve.resolve(name, f"{recipe.kind}-tokenizer")
        located = locate(row, revision=commit, offline=recipe.offline)
        check_disk([located])
        if located.missing:
            host.approve({row.name: located.missing})
        here = located.fetch(progress=host.progress, tell=host.note)
        for note in filter(None, (here.note, remark(here.path))):
            host.warn(note)
        device = choose_device(recipe.device)
        memory.check_decoding(here, order, choose_dtype(recipe.dtype, device), device, files)
        with clock.timed("load"):
            decoder = load_decoder(here.path, order.sizes, recipe.device, recipe.dtype, order.name)
        self._key, self._loaded = key, (decoder, Files(here, here).about()["tokenizer"])
        return self._loaded


def decode(
    path: Path,
    about: Mapping[str, Any],
    trust: Trust,
    host: Host | None = None,
    *,
    decoders: Decoders | None = None,
    reserved: Sequence[Path] = (),
) -> Generator[Written | FrontierDecoded | Finished, None, None]:
    """Decode saved tokens to a picture or clip; yield its events, ``Finished`` last.

    Args:
        path: file of tokens that ``save_tokens`` wrote.
        about: its metadata, as ``media.readers.read_metadata`` returns them.
        trust: choices and permissions of the user.
        host: callbacks of the run.
        decoders: shared by several files, to keep the tokenizer of the last one.
        reserved: paths that must not be taken.

    Yields:
        ``Written`` for each file, ``FrontierDecoded`` for each decoded step of the frontier, ``Finished``.

    Raises:
        CheckpointError: tokens that differ from their hash, or belong to another tokenizer.
        NarError: of any kind, as ``repeat.recipe_of`` and ``run.run``.
    """
    host, decoders, clock = host or Host(), decoders or Decoders(), Clock()
    require(path, about, "kind", "narcli", "model", "tokenizer", "sampling", "grid", "steps", "seed")
    require(path, about, "tokens_sha256")
    grid, subject = tuple(about["grid"]), entry_of(about, path)
    order = named(about.get("order", NAR), grid)
    if len(grid) != _AXES[about["kind"]] or order.cells > MAX_CELLS:
        raise CheckpointError(
            f"{path} is of a {format_grid(grid)} grid, which no {about['kind']} has.",
            "Get the original file.",
        )
    array = read_tokens(path)
    tokens = torch.from_numpy(array.reshape(-1)).long()
    if about["sampling"].get("more_smooth"):
        raise UsageError(
            f"{path} was made with `more_smooth`, and its tokens alone do not decode to the picture.",
            "Make the picture again from its class, seed and model.",
        )
    shape = grid if len(order.panels) == 1 else (order.cells,)
    if array.shape != shape or hash_tokens(tokens) != about["tokens_sha256"]:
        raise CheckpointError(f"{path}: its tokens are not those of its hash.", "Get the original file.")
    recipe = _recipe(path, about, trust)
    entry = class_entry(subject) if isinstance(subject, dict) else subject
    samples = [Sample(entry, about["seed"])]
    outputs = name_files(recipe, samples, about["model"]["name"], reserved)

    name, commit = recipe.tokenizer, None
    if name is None:
        name, commit = find_part(path, about, "tokenizer", f"{about['kind']}-tokenizer", trust)
    files = files_of(recipe, 1, suffix_of(recipe, outputs))
    decoder, source = decoders.load(str(name), commit, order, recipe, files, host, clock)
    warn_of_others(path, about, {"tokenizer": source}, trust)
    codes = decoder.tokenizer.config.codebook_size
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < codes:
        raise CheckpointError(
            f"{path} has tokens beyond the {codes} of the tokenizer.",
            "They do not belong together; give the right `tokenizer`.",
        )
    dtype = dtype_name(next(decoder.tokenizer.parameters()).dtype)
    by = {"narcli": __version__, "device": decoder.device.type, "dtype": dtype}
    kept = {field.name: about[field.name] for field in RUN if field.name in about and field.name not in _NEW}
    sinks = Sinks(recipe, decoder, samples, outputs, kept | {"tokenizer": source, "decoded": by}, clock)
    own = {field.name: about[field.name] for field in SAMPLE if field.name in about}
    with clock.timed("decode"):
        (clip,) = decoder.decode(tokens[None])
    yield from sinks.write_all([Result(clip, entry, about["seed"], tokens, own)])
    yield from sinks.write_companions()
    yield sinks.finished()


def _recipe(path: Path, about: Mapping[str, Any], trust: Trust) -> Recipe:
    """Make a recipe of the fields that say how the sample is written."""
    looks = (*LOOKS, "format", "kind", "class", "prompt", "cleaned_prompt", "given_frames", "seed")
    told = {name: about[name] for name in looks if name in about}
    return Recipe.from_json(told, str(path), **({"frontier": "gif"} | dict(trust.given)))


def class_entry(about: Mapping[str, Any]) -> ClassEntry:
    """Return the class of metadata."""
    return ClassEntry(about["label"], about["id"], about["name"], about.get("stands_for"))
