"""Files side by side on a page; files are trusted as in ``repeat``.

A file without a record is run again, without writing anything beside the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..decoding import Decodes
from ..errors import CheckpointError, UsageError
from ..media.atomic import companion
from ..order import NAR, named
from ..pipeline import Pipeline, Progress
from ..records import Extent, Record, holds_record
from ..results import Result
from ..viz import viewer
from .budget import files_of
from .decode import Decoders, class_entry
from .events import Clock, Finished
from .filenames import RECORD, TOKENS, suffix_of
from .orders import alone, shown_of
from .pages import MAX_SAMPLES, shown
from .plan import Host
from .recipe import Recipe
from .repeat import Trust, compare, find_part, recipe_of, recorded
from .run import Loaded, Loader, run
from .subjects import entry_of, require

About = Mapping[str, Any]
_SETTINGS = ("cfg_scale", "cfg_interval", "temperature", "top_k", "top_p", "more_smooth")
#: Fields that change no token.
_PLACE = {"output", "overwrite", "offline", "record", "batch_size", "frontier"}


class Viewed:
    """Reader of files for one page, which keeps the last model.

    Args:
        trust: choices and permissions of the user.
        host: callbacks of the runs.
        record: extent of the records that are wanted.
    """

    def __init__(self, trust: Trust, host: Host, record: Extent = "cells") -> None:
        self._trust, self._host, self._record = trust, host, record
        self._loader, self._decoders = Loader(), Decoders()

    def read(self, path: Path, about: About) -> list[viewer.Shown]:
        """Prepare the samples of a file, at most ``MAX_SAMPLES``.

        A record in the file, or beside it, is used if it is of the same tokens. Otherwise the file is run
        again with a record.

        Args:
            path: picture, clip, tokens, record, page, JSON document, or picture of an order.
            about: its metadata, or one run of them.

        Raises:
            NarError: of any kind, as ``repeat.recipe_of``, ``decode.decode`` and ``run.run``.
        """
        if about.get("command") == "visualize-order":
            return alone(shown_of(path, about))
        record = self._record_of(path, about)
        return self._again(path, about) if record is None else self._decoded(path, about, record)

    def _record_of(self, path: Path, about: About) -> Record | None:
        """Find the record of a sample: the file itself, or one beside it."""
        if "tokens_sha256" not in about or "tokenizer" not in about or about["sampling"].get("more_smooth"):
            return None  # several samples, or tokens that do not decode to the picture
        if {"model", "order", *_SETTINGS} & set(self._trust.given):
            return None
        stem = path.with_name(path.name.removesuffix(TOKENS) + path.suffix * path.name.endswith(TOKENS))
        beside = path if path.suffix == ".safetensors" and holds_record(path) else companion(stem, RECORD)
        if not beside.is_file():
            return None
        record = Record.load(beside)
        other = record.metadata.get("tokens_sha256") != about["tokens_sha256"]
        lacks = self._record == "heads" and record.disagreement is None
        return None if other or lacks else record

    def _decoded(self, path: Path, about: About, record: Record) -> list[viewer.Shown]:
        """Decode the tokens of a record."""
        require(path, about, "kind", "model", "seed", "steps", "narcli")
        order = named(about.get("order", NAR), tuple(about["grid"]))
        viewer.check_size(order)
        subject = entry_of(about, path)
        given = self._trust.given
        name, commit = given.get("tokenizer"), None
        if name is None:
            name, commit = find_part(path, about, "tokenizer", f"{about['kind']}-tokenizer", self._trust)
        told = {
            key: about[key]
            for key in ("kind", "class", "prompt", "cleaned_prompt", "given_frames", "seed")
            if key in about
        }
        chosen = {key: given[key] for key in ("device", "dtype", "offline") if key in given}
        recipe = Recipe.from_json(told, str(path), frontier="none", **chosen)
        decoder, _ = self._decoders.load(
            str(name),
            commit,
            order,
            recipe,
            files_of(recipe, 1, suffix_of(recipe, None)),
            self._host,
            Clock(),
        )
        codes = decoder.tokenizer.config.codebook_size
        largest = max(int(record.tokens.max()), int(record.codes.max()))
        if largest >= codes:
            raise CheckpointError(
                f"{path} records the code {largest}, and the tokenizer has {codes}.",
                "They do not belong together; give the right `tokenizer`.",
            )
        tokens = torch.from_numpy(record.tokens.copy()).long()
        (clip,) = decoder.decode(tokens[None])
        entry = class_entry(subject) if isinstance(subject, dict) else subject
        result = Result(clip, entry, about["seed"], tokens, dict(about), record=record)
        return shown(decoder, [result], partials=_needs_partials(decoder))

    def _again(self, path: Path, about: About) -> list[viewer.Shown]:
        """Run a file again with a record; warn if its tokens come out otherwise."""
        recipe, before = recipe_of(path, about, self._trust), []
        if recipe.ranges:
            raise UsageError(f"{path} is the sheet of a sweep.", "View samples: draw one without `sweep`.")
        whole = len(recipe.texts or recipe.clips or recipe.entries) * recipe.num
        if not self._trust.given.keys() - _PLACE:
            before = recorded(path, about) if _has_hashes(about) else []
        with TemporaryDirectory(prefix="narcli-view-") as folder:
            results, pipeline, finished = _drawn(
                _only_first(recipe, folder, self._record), self._host, self._loader
            )
        if whole > len(results):
            self._host.warn(f"{path} is of {whole} samples; the page shows the first {len(results)}.")
        for verdict in compare(path, before[: len(results)], finished):
            if not verdict.equal:
                self._host.warn(f"{verdict.words} The page shows those of now.")
        return shown(pipeline, results, partials=_needs_partials(pipeline))


def _needs_partials(decoder: Decodes) -> bool:
    return decoder.tokenizer.config.holistic or decoder.order.has_scales


def _has_hashes(about: About) -> bool:
    samples: Iterable[About] = about.get("samples", [about])
    return "samples_sha256" in about or all("tokens_sha256" in sample for sample in samples)


def _only_first(recipe: Recipe, folder: str, record: Extent) -> Recipe:
    """Limit a recipe to the samples of a page, written to a folder that goes away."""
    num = min(recipe.num, MAX_SAMPLES)
    few = ceil(MAX_SAMPLES / num)
    return replace(
        recipe, num=num,
        classes=recipe.entries[:few], prompts=recipe.texts[:few], frames_from=recipe.clips[:few],
        frontier="none", frontier_mode=None, theme=None, sheet=False, labels=False, save_tokens=False,
        record=record, no_metadata=False, output=f"{folder}/", scale=1,
    )  # fmt: skip


def _drawn(recipe: Recipe, host: Host, loader: Loader) -> tuple[list[Result], Pipeline, Finished]:
    """Carry out a recipe, and return its first results, its model and its end."""
    results: list[Result] = []
    pipeline: Pipeline | None = None
    for event in run(recipe, host, loader=loader):
        match event:
            case Loaded():
                pipeline = event.pipeline
            case Progress():
                results += event.results
            case Finished():
                assert pipeline is not None
                viewer.check_size(pipeline.order)
                return results[:MAX_SAMPLES], pipeline, event
    raise AssertionError("a run ends with Finished")
