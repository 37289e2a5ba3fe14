"""Comparison of decoding orders: the same classes or prompts, seeds and settings through several models."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import log
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..checkpoints.config import CONFIG, RESULT, read_config
from ..devices import release
from ..encoding import prompt_encoder
from ..errors import UsageError
from ..hub.sources import Files, choose
from ..kernels.program import Runner
from ..media.metadata import MAX_METADATA
from ..pipeline import Pipeline, load_files
from ..results import Result
from ..runs.plan import Host, classes_in
from ..runs.recipe import Recipe
from ..settings import SEEDS, Sample, SamplingSettings, plan_samples
from ..training.data import Pictures, load_pictures


@dataclass(frozen=True)
class Entrant:
    """One order and the model that runs it.

    Args:
        order: name of the order.
        model: name of the model.
        files: its files.
        training: its training record; empty if it has none.
    """

    order: str
    model: str
    files: Files
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """Measurements of one order.

    Args:
        order: name of the order.
        model: name of the model.
        passes: forward passes of the network.
        widest: cells of the largest pass.
        cells: cells in all.
        seconds: median seconds of tokens and pixels, by batch size.
        bits: mean bits of a drawn token under the guided distribution, without temperature and filters.
        likeliest: share of draws that are the likeliest token, in [0, 1].
        own_class: share of samples whose nearest reference picture is of their class; None if not measured.
        results: the samples.
        settings: settings that drew them.
    """

    order: str
    model: str
    passes: int
    widest: int
    cells: int
    seconds: dict[int, float]
    bits: float
    likeliest: float
    own_class: float | None
    results: tuple[Result, ...]
    settings: SamplingSettings

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        told = {name: getattr(self, name) for name in ("order", "model", "passes", "widest", "cells")}
        rates = {
            str(size): {"seconds": round(each, 4), "samples_per_second": round(size / each, 4)}
            for size, each in self.seconds.items()
        }
        told |= {"sampling": self.settings.document(), "batch_sizes": rates}
        told |= {"bits": round(self.bits, 4), "likeliest": round(self.likeliest, 4)}
        hashes = [result.metadata["tokens_sha256"] for result in self.results]
        own = {} if self.own_class is None else {"own_class": round(self.own_class, 4)}
        return told | own | {"tokens_sha256": hashes}


def enter(
    models: Sequence[str | Path], orders: Sequence[str], recipe: Recipe, host: Host | None = None
) -> list[Entrant]:
    """Choose a model for each order.

    Args:
        models: names, repositories, files or folders; an order takes the first that runs it.
        orders: names of orders; none is the order of each model.
        recipe: classes or prompts, device and dtype; its model and order are not used.
        host: callbacks for downloads.

    Raises:
        UsageError: an order that no model runs, or one named twice.
        NarError: a model that cannot be found or fetched.
    """
    from ..checkpoints.load import transformer_config

    host, known = host or Host(), []
    for name in models:
        source = choose(recipe.model_kind, name, recipe.tokenizer, None, recipe.text_encoder)
        files = source.fetch(offline=recipe.offline, progress=host.progress, approve=host.approve)
        path = files.model.path
        sizes = transformer_config(path, grid=files.model.model.grid)
        SamplingSettings(**recipe.sampling).check(sizes.fixed)
        beside = path / CONFIG if path.is_dir() else path.with_name(CONFIG)
        training = dict(read_config(beside).training) if beside.is_file() else {}
        called = path.parent.name if path.name == RESULT else files.model.model.name
        known.append((sizes, Entrant(sizes.order, called, files, training)))
    entrants = []
    for order in orders or [sizes.order for sizes, _ in known]:
        for sizes, entrant in known:
            try:
                sizes.decoded_in(order)
            except UsageError as error:
                refused = error
            else:
                entrants.append(replace(entrant, order=order))
                break
        else:
            if len(known) == 1:
                raise refused
            have = ", ".join(f"{entrant.model} {sizes.order}" for sizes, entrant in known)
            raise UsageError(
                f"No model decodes in the order {order}; there are {have}.", "Add a `model` of that order."
            )
    if len({entrant.order for entrant in entrants}) < len(entrants):
        names = ", ".join(entrant.order for entrant in entrants)
        raise UsageError(f"The orders are {names}: one is there twice.", "Give each order once.")
    return entrants


def difference(entrants: Sequence[Entrant]) -> str | None:
    """Say why the models were not trained alike; None if they were, or are one model."""
    first, *others = entrants
    for other in others:
        if other.files == first.files:
            continue
        for entrant in (first, other):
            if not entrant.training:
                return f"{entrant.model} has no record of its training"
        for key in sorted({*first.training, *other.training}):
            one, two = (entrant.training.get(key) for entrant in (first, other))
            if one != two:
                said = "" if isinstance(one, str) and len(one) == 64 else f" ({one} and {two})"
                return f"{first.model} and {other.model} differ in {key}{said}"
    return None


def reference_of(folder: Path, size: int, tell: Callable[[str], object]) -> Pictures:
    """Read labelled reference pictures.

    Raises:
        UsageError: pictures without labels, or clips.
        CheckpointError: a file that cannot be read.
    """
    pictures = load_pictures(folder, size, tell)
    if pictures.labels is None or pictures.frames:
        raise UsageError(
            f"The reference {str(folder)!r} has no labelled pictures.",
            "Give a folder of class folders, or one with images.npy and labels.npy.",
        )
    return pictures


def compare(
    entrants: Sequence[Entrant],
    recipe: Recipe,
    batch_sizes: Sequence[int] = (1, 8),
    repeats: int = 3,
    reference: Path | None = None,
    host: Host | None = None,
) -> Iterator[Outcome]:
    """Draw the samples of a recipe in each order, and time batches of each size.

    Args:
        entrants: from ``enter``.
        recipe: classes or prompts, first seed, samples of each, and sampling settings.
        batch_sizes: samples decoded together when timed.
        repeats: timed runs of each batch size, after one that is not counted; the median is taken.
        reference: labelled pictures, for the share of the own class; None measures none.
        host: callbacks.

    Yields:
        An ``Outcome`` for each order.

    Raises:
        NarError: of any kind.
    """
    host, pictures = host or Host(), None
    for entrant in entrants:
        where = recipe.text_device or recipe.device
        encoder = prompt_encoder(entrant.files, where, recipe.dtype, host.warn, host.note)
        if encoder is not None:
            encoder.encode(recipe.texts)
        pipeline = load_files(entrant.files, recipe.device, recipe.dtype, encoder, entrant.order)
        if reference is not None and pictures is None:
            pictures = reference_of(reference, pipeline.size[0], host.warn)
        settings = pipeline.settings(**recipe.sampling)
        samples = planned(recipe, pipeline)
        recipe = replace(recipe, seed=samples[0].seed)  # a drawn seed is drawn once
        results, bits, likeliest = _drawn(pipeline, samples, settings, max(batch_sizes))
        seconds = {}
        for size in batch_sizes:
            batch = [
                replace(samples[k % len(samples)], seed=(samples[0].seed + k) % SEEDS) for k in range(size)
            ]
            spent = [_seconds(pipeline, batch, settings) for _ in range(repeats + 1)]
            seconds[size] = statistics.median(spent[1:])
        own = _own_class(results, pictures) if pictures is not None else None
        order = pipeline.order
        yield Outcome(
            order.name, entrant.model, len(order.passes), order.widest, order.cells, seconds, bits, likeliest,
            own, results, settings,
        )  # fmt: skip
        device = pipeline.device
        del pipeline
        release(device)


def planned(recipe: Recipe, pipeline: Pipeline) -> list[Sample]:
    """Plan the samples of a recipe for a model."""
    table = pipeline.classes
    entries: list[Any] = list(recipe.texts) or [
        e for given in recipe.entries for e in classes_in(table, given)
    ]
    return plan_samples(entries, recipe.seed, recipe.num)


def document(
    outcomes: Sequence[Outcome], entrants: Sequence[Entrant], recipe: Recipe, dtype: str, device: str
) -> dict[str, Any]:
    """Return a comparison as JSON."""
    why = difference(entrants)
    samples = [{"entry": str(result.entry), "seed": result.seed} for result in outcomes[0].results]
    return {
        "narcli": __version__,
        "torch": torch.__version__,
        "device": device,
        "dtype": dtype,
        "sampling": recipe.sampling,
        "samples": samples,
        "trained_alike": why is None,
        **({"not_alike": why} if why else {}),
        "orders": [outcome.document() for outcome in outcomes],
    }


def unequal(outcomes: Sequence[Outcome]) -> str:
    """Name the settings in which the orders differ, ``cfg_scale 4.0 and 1.5``; "" where they are equal."""
    each = [asdict(outcome.settings) for outcome in outcomes]
    values = {name: list(dict.fromkeys(settings[name] for settings in each)) for name in each[0]}
    return ", ".join(f"{name} {' and '.join(map(str, v))}" for name, v in values.items() if len(v) > 1)


def brief(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a comparison without its samples if a picture's metadata do not hold them."""
    if len(json.dumps(document)) < MAX_METADATA - 1000:  # some are for the fields around it
        return dict(document)
    orders = [{name: each[name] for name in each if name != "tokens_sha256"} for each in document["orders"]]
    return {name: document[name] for name in document if name != "samples"} | {"orders": orders}


def _drawn(
    pipeline: Pipeline, samples: Sequence[Sample], settings: SamplingSettings, batch_size: int
) -> tuple[tuple[Result, ...], float, float]:
    """Return the samples, the mean bits of a token, and the share of the likeliest."""
    results: list[Result] = []
    bits = hits = 0.0
    count = 0
    for progress in replace(pipeline, runner=Runner()).run(samples, settings, batch_size):
        logits, tokens = progress.step.logits, progress.step.tokens
        assert logits is not None
        chosen = logits.log_softmax(-1).gather(-1, tokens[..., None])
        bits -= float(chosen.sum()) / log(2)
        hits += float((logits.argmax(-1) == tokens).sum())
        count += tokens.numel()
        results += progress.results
    return tuple(results), bits / count, hits / count


def _seconds(pipeline: Pipeline, batch: Sequence[Sample], settings: SamplingSettings) -> float:
    """Seconds of tokens and pixels of one batch."""
    seconds: Mapping[str, float] = {}
    for progress in pipeline.run(batch, settings, len(batch)):
        seconds = progress.seconds
    return seconds["sample"] + seconds["decode"]


def _own_class(results: Sequence[Result], reference: Pictures) -> float:
    """Share of samples whose nearest reference picture, by mean square of pixels, is of their class."""
    import numpy as np

    assert reference.labels is not None
    known = torch.from_numpy(np.array(reference.images)).flatten(1).float()
    squares, hits = known.square().sum(1), 0
    for result in results:
        pixels = torch.from_numpy(np.array(result.frames[0])).flatten().float()
        nearest = int((squares - 2 * (known @ pixels)).argmin())
        hits += int(reference.labels[nearest]) == getattr(result.entry, "label", -1)
    return hits / len(results)
