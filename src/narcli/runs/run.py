"""Carry out a recipe: find, load, sample, decode, write. Imports torch only once the files are found."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..allocator import keep_memory
from ..classes import ClassEntry, ClassTable, load_table
from ..encoding import all_cached
from ..hub.sources import Files, Found, choose
from ..media.names import Outputs
from ..prompts import Prompt
from ..settings import Sample, plan_samples
from .looks import name_files
from .recipe import Entry, Recipe
from .sinks import Clock, Finished, Revealed, Sinks, Written

if TYPE_CHECKING:
    from ..pipeline import Pipeline, Progress
    from .budget import Budget


@dataclass(frozen=True)
class Host:
    """Whom a run asks and tells while it works; as it is, for Python: it asks nobody and warns.

    Args:
        note: told what is good to know.
        warn: told what a person should know.
        approve: told, before a download, the bytes of each model; raises to stop it.
        progress: show bars of downloads on stderr.
    """

    note: Callable[[str], None] = lambda text: None
    warn: Callable[[str], None] = warnings.warn
    approve: Callable[[Mapping[str, int]], None] = lambda sizes: None
    progress: bool = False


@dataclass(frozen=True)
class Loaded:
    """A model is ready.

    Args:
        pipeline: the model.
        samples: that will be drawn.
        batch_size: of them that are decoded together.
    """

    pipeline: Pipeline
    samples: Sequence[Sample]
    batch_size: int


if TYPE_CHECKING:
    Event = Loaded | Progress | Written | Revealed | Finished


@dataclass(frozen=True)
class Plan:
    """A run whose files are found.

    Args:
        recipe: of the run.
        found: the model's files, here or at the Hub.
        samples: None where only the model itself knows its classes.
        outputs: a file for each sample, likewise.
    """

    recipe: Recipe
    found: Found
    samples: Sequence[Sample] | None
    outputs: Outputs | None

    def named(self, table: ClassTable, reserved: Sequence[Path]) -> Plan:
        """Choose the samples, and a file for each.

        Raises:
            UsageError: no such class, or a name that cannot be.
        """
        samples, outputs = _name(self.recipe, table, self.found.model.model.name, reserved)
        return replace(self, samples=samples, outputs=outputs)


def plan(
    recipe: Recipe, host: Host | None = None, *, reserved: Sequence[Path] = (), estimate: bool = False
) -> Plan:
    """Find the files of a run; nothing is downloaded or loaded.

    Args:
        recipe: all that is asked for.
        host: whom to ask and tell.
        reserved: names of files that are not to be taken.
        estimate: sizes are enough, as ``hub.locate`` has it.

    Raises:
        NarError: of any kind.
    """
    host = host or Host()
    kind = recipe.model_kind
    source = choose(kind, recipe.model, recipe.tokenizer, recipe.revision, recipe.text_encoder)
    source = replace(source, pins=recipe.pins)
    table = load_table([]) if recipe.prompts else source.table
    named: tuple[Any, Any] = (None, None)
    if table is not None:  # a wrong class is told before the network is asked
        named = _name(recipe, table, source.model.name, reserved)
    found = source.locate(
        offline=recipe.offline,
        estimate=estimate,
        approve=host.approve,
        known=lambda encoder: all_cached(encoder, recipe.texts, recipe.text_dtype or recipe.dtype),
    )
    made = Plan(recipe, found, *named)
    here = found.model.copy
    if table is None and here is not None and here.model.classes:
        made = made.named(load_table(here.model.classes), reserved)
    return made


def budget(recipe: Recipe, host: Host | None = None, *, reserved: Sequence[Path] = ()) -> Budget:
    """Say what a run would download, take and write; arguments and errors are those of ``plan``.

    The budget's ``check`` refuses what disk or memory cannot hold.
    """
    planned = plan(recipe, host, reserved=reserved, estimate=True)
    keep_memory()
    from .budget import Budget

    made = Budget(planned)
    made.check_fit()
    return made


class Loader:
    """Loads models, and keeps the last one for a run that needs the same."""

    def __init__(self) -> None:
        self._key: object = None
        self._pipeline: Pipeline | None = None

    def load(self, files: Files, recipe: Recipe, clock: Clock, host: Host) -> Pipeline:
        """Load a model, its prompts encoded before it takes its memory.

        Raises:
            NarError: of any kind.
        """
        with clock.timed("import"):
            from ..pipeline import load_files, prompt_encoder
        dtype = recipe.text_dtype or recipe.dtype
        encoder = prompt_encoder(files, recipe.text_device or recipe.device, dtype, host.warn)
        key = (files.model, files.tokenizer, recipe.device, recipe.dtype)
        # A text encoder that has to run takes as much memory as a model.
        encode = files.encoder is not None and not all_cached(files.encoder, recipe.texts, dtype)
        kept = self._pipeline if key == self._key and not encode else None
        self._key = self._pipeline = None
        if encoder is not None:
            with clock.timed("encode"):
                encoder.encode(recipe.texts)
        with clock.timed("load"):
            if kept is None:
                pipeline = load_files(files, recipe.device, recipe.dtype, encoder)
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
    """Carry out a recipe, and yield what happens.

    ``Loaded`` comes first, then a ``Progress`` for each step and ``Written`` for each file; ``Finished``
    comes last.

    Args:
        recipe: all that is asked for.
        host: whom to ask and tell.
        loader: of several runs, that keeps the model of the last one.
        reserved: names of files that are not to be taken.

    Raises:
        NarError: of any kind; what is written by then is whole.
    """
    host, loader, clock = host or Host(), loader or Loader(), Clock()
    planned = plan(recipe, host, reserved=reserved)
    with clock.timed("import"):
        keep_memory()
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
    settings = pipeline.settings(**recipe.sampling)
    common = pipeline.metadata(settings)
    sinks = Sinks(recipe, pipeline, planned.samples, planned.outputs, common, clock)
    batch_size = spending.batch_size or 1
    yield Loaded(pipeline, planned.samples, batch_size)
    spent = dict(clock.seconds)
    with closing(pipeline.run(planned.samples, settings, batch_size, host.note)) as steps:
        for progress in steps:
            clock.seconds |= {phase: spent.get(phase, 0.0) + more for phase, more in progress.seconds.items()}
            yield progress
            yield from sinks.write_all(progress.results)
    yield from sinks.write_companions()
    yield sinks.finished()


def _name(
    recipe: Recipe, table: ClassTable, model: str, reserved: Sequence[Path]
) -> tuple[list[Sample], Outputs]:
    entries: Sequence[ClassEntry | Prompt] = recipe.texts
    if recipe.entries:
        entries = [entry for given in recipe.entries for entry in _classes(table, given)]
    samples = plan_samples(entries, recipe.seed, recipe.num)
    return samples, name_files(recipe, samples, model, reserved)


def _classes(table: ClassTable, given: Entry) -> list[ClassEntry]:
    """Classes as typed, by id, or one from metadata.

    One that was asked for by its own name stands for nothing else.
    """
    if isinstance(given, str):
        return table.parse_classes(given)
    if isinstance(given, int):
        return [table.by_id(given)]
    label = given.get("label", len(table))
    if "stands_for" not in given and label < len(table) and table.entry(label).id == given["id"]:
        return [table.entry(label)]
    return [table.by_id(given["id"])]
