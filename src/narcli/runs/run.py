"""Execution of a recipe: find, load, sample, decode, write. Torch is imported once the files are found."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from ..encoding import all_cached, encode_samples, prompt_encoder
from ..hub.sources import Files
from ..outpaint import encode
from ..settings import Sample, SamplingSettings
from ..settings.keep import Init
from ..settings.sweeps import points_of
from .events import Clock, Finished, FrontierDecoded, Written
from .plan import Host, plan
from .recipe import Recipe
from .sinks import Sinks

if TYPE_CHECKING:
    from ..pipeline import Pipeline, Progress
    from ..records import Extent
    from .budget import Budget

#: Threads that write files while a card draws the next batch.
WRITERS = 8


@dataclass(frozen=True)
class Loaded:
    """Event: the model is loaded.

    Args:
        pipeline: the model.
        samples: samples to draw; of a sweep those of each point in turn.
        batch_size: samples decoded together.
    """

    pipeline: Pipeline
    samples: Sequence[Sample]
    batch_size: int


if TYPE_CHECKING:
    from ..records import Extent

    Event = Loaded | Progress | Written | FrontierDecoded | Finished


def budget(recipe: Recipe, host: Host | None = None, *, reserved: Sequence[Path] = ()) -> Budget:
    """Estimate what a run would download, need and write; arguments and errors are those of ``plan``.

    The budget's ``check`` raises if disk or memory is too small.
    """
    planned = plan(recipe, host, reserved=reserved, estimate=True)
    from .budget import Budget

    made = Budget(planned)
    made.check_fit()
    return made


def writers(device: str) -> int:
    """Return the threads that write files beside a type of device; a CPU draws with all of its own."""
    return 0 if device == "cpu" else min(WRITERS, os.cpu_count() or 1)


class Loader:
    """Loader of models that keeps the last one for the next run."""

    def __init__(self) -> None:
        self._key: object = None
        self._pipeline: Pipeline | None = None

    def load(self, files: Files, recipe: Recipe, clock: Clock, host: Host) -> Pipeline:
        """Encode the prompts, then load the model.

        Raises:
            NarError: as ``pipeline.load``.
        """
        with clock.timed("import"):
            from ..pipeline import load_files
        dtype = recipe.text_dtype or recipe.dtype
        encoder = prompt_encoder(files, recipe.text_device or recipe.device, dtype, host.warn, host.note)
        key = (files.model, files.tokenizer, recipe.device, recipe.dtype, recipe.order)
        # A text encoder that has to run takes as much memory as a model.
        encode = files.encoder is not None and not all_cached(files.encoder, recipe.texts, dtype)
        kept = self._pipeline if key == self._key and not encode else None
        self._key = self._pipeline = None
        if encoder is not None:
            with clock.timed("encode"):
                encoder.encode(recipe.texts)
        with clock.timed("load"):
            if kept is None:
                pipeline = load_files(files, recipe.device, recipe.dtype, encoder, recipe.order)
            elif encoder is not None:
                pipeline = replace(
                    kept, encoder=encoder, source={**kept.source, "text_encoder": encoder.source}
                )
            else:
                pipeline = kept
        self._key, self._pipeline = key, pipeline
        return pipeline


def run(
    recipe: Recipe,
    host: Host | None = None,
    *,
    loader: Loader | None = None,
    reserved: Sequence[Path] = (),
) -> Generator[Event, None, None]:
    """Carry out a recipe and yield its events.

    Args:
        recipe: everything that the run is asked for.
        host: callbacks of the run.
        loader: shared by several runs, to keep the model of the last one.
        reserved: paths that must not be taken.

    Yields:
        ``Loaded`` first, ``Progress`` for each step, ``Written`` for each file, and ``Finished`` last.
        ``FrontierDecoded`` comes for each decoded step of the frontier.

    Raises:
        NarError: of any kind; files written before are whole.
    """
    host, loader, clock = host or Host(), loader or Loader(), Clock()
    planned = plan(recipe, host, reserved=reserved)
    with clock.timed("import"):
        from ..checkpoints.load import remark
        from .budget import Budget
    spending = Budget(planned)
    spending.check_fit()
    spending.check()
    files = planned.found.fetch(progress=host.progress, approve=host.approve, tell=host.note)
    notes = [note for part in (files.model, files.tokenizer) for note in (part.note, remark(part.path))]
    for note in dict.fromkeys(notes):
        if note:
            host.warn(note)
    if not spending.networks.runs:  # a repository that says its sizes only now
        spending = Budget(planned)
        spending.check()
    pipeline = loader.load(files, recipe, clock, host)
    if planned.samples is None:
        planned = planned.named(pipeline.classes, reserved)
    assert planned.samples is not None and planned.outputs is not None
    samples = planned.samples
    if recipe.clips:
        with clock.timed("encode"):
            samples = encode_samples(samples, pipeline.tokenizer, pipeline.model.config)
    init = None
    if recipe.init is not None:
        with clock.timed("encode"):
            init = encode(recipe.init, recipe.keeping, pipeline.tokenizer, pipeline.order, host.note)
    points = [pipeline.settings(**recipe.sampling, **point) for point in points_of(recipe.ranges)]
    batch_size, fixed = spending.batch_size or 1, recipe.reproducible
    if fixed and pipeline.device.type == "cpu":
        host.note("On a CPU samples never depend on their batch: filler rows only take time.")
    drawn = list(samples) * len(points)
    common = pipeline.metadata(points[0], init, batch_size if fixed else None)
    sinks = Sinks(recipe, pipeline, drawn, planned.outputs, common, clock, writers(pipeline.device.type))
    yield Loaded(pipeline, drawn, batch_size)
    spent = dict(clock.seconds)
    drawing = _draw(pipeline, samples, points, batch_size, host.note, init, recipe.recorded, fixed)
    with closing(drawing) as steps, closing(sinks):
        try:
            for progress in steps:
                for phase, more in progress.seconds.items():
                    clock.seconds[phase] = spent.get(phase, 0.0) + more
                yield progress
                yield from sinks.write_all(progress.results)
            yield from sinks.written()
        except GeneratorExit:
            raise
        except BaseException:  # a signal too
            yield from sinks.stopped()
            raise
    yield from sinks.write_companions()
    yield sinks.finished()


def _draw(
    pipeline: Pipeline,
    samples: Sequence[Sample],
    points: Sequence[SamplingSettings],
    batch_size: int,
    tell: Callable[[str], object],
    init: Init | None,
    record: Extent,
    fixed: bool,
) -> Generator[Progress, None, None]:
    """Draw the same samples with each of several settings, and count their batches and seconds as one run."""
    batch, seconds = 0, dict[str, float]()
    for left in range(len(points), 0, -1):
        start, spent = batch, seconds
        with closing(
            pipeline.run(samples, points[-left], batch_size, tell, init, record, fixed=fixed)
        ) as steps:
            for progress in steps:
                batches = progress.batches
                seconds = {phase: spent.get(phase, 0.0) + more for phase, more in progress.seconds.items()}
                batch, total = start + progress.batch, start + batches * left
                yield replace(progress, batch=batch, batches=total, seconds=seconds)
        batch = start + batches
        if not fixed:
            batch_size = ceil(len(samples) / batches)  # one that memory holds
