"""Plan of a run: its samples, the names of its files, and where the model's files are. No torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..classes import ClassEntry, ClassTable, load_table
from ..encoding import all_cached, read_given
from ..hub.sources import Found, choose
from ..media.names import Outputs
from ..outpaint import check_source
from ..settings import GivenFrames, Sample, Subject, plan_samples
from ..settings.sweeps import check_sweep
from .filenames import name_files
from .recipe import Entry, Recipe


@dataclass(frozen=True)
class Host:
    """Callbacks of a run. The defaults suit Python: notes are dropped, downloads are approved.

    Args:
        note: called with each note.
        warn: called with each warning.
        approve: called before a download with the bytes of each model; raises to stop it.
        progress: show download bars on stderr.
    """

    note: Callable[[str], None] = lambda text: None
    warn: Callable[[str], None] = warnings.warn
    approve: Callable[[Mapping[str, int]], None] = lambda sizes: None
    progress: bool = False


@dataclass(frozen=True)
class Plan:
    """Run whose model files are found.

    Args:
        recipe: its recipe.
        found: the model's files, on disk or at the Hub.
        samples: its samples, of a sweep those of one point; None if only the loaded model tells its classes.
        outputs: a file for each sample, or one for a sweep; None without ``samples``.
    """

    recipe: Recipe
    found: Found
    samples: Sequence[Sample] | None
    outputs: Outputs | None

    def named(self, table: ClassTable, reserved: Sequence[Path]) -> Plan:
        """Choose the samples, and a file for each.

        Raises:
            UsageError: an unknown class, or an impossible name.
        """
        samples, outputs = _name(self.recipe, table, self.found.model.model.name, reserved)
        return replace(self, samples=samples, outputs=outputs)


def plan(
    recipe: Recipe, host: Host | None = None, *, reserved: Sequence[Path] = (), estimate: bool = False
) -> Plan:
    """Find the files of a run; nothing is downloaded or loaded.

    Args:
        recipe: everything that the run is asked for.
        host: callbacks of the run.
        reserved: paths that must not be taken.
        estimate: sizes are enough, as in ``hub.locate``.

    Raises:
        NarError: a model that cannot be found, an unknown class, an unusable clip or output.
    """
    host = host or Host()
    kind = recipe.model_kind
    source = choose(kind, recipe.model, recipe.tokenizer, recipe.revision, recipe.text_encoder)
    source = replace(source, pins=recipe.pins)
    if recipe.init is not None:
        check_source(recipe.init, recipe.keeping, recipe.kind == "video", host.note)
    table = load_table([]) if recipe.prompts or recipe.clips else source.table
    named: tuple[Any, Any] = (None, None)
    if table is not None:  # a wrong class or clip is reported before the network is used
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


def _name(
    recipe: Recipe, table: ClassTable, model: str, reserved: Sequence[Path]
) -> tuple[list[Sample], Outputs]:
    clips = [clip if isinstance(clip, GivenFrames) else read_given(clip) for clip in recipe.clips]
    entries: Sequence[Subject] = recipe.texts or clips
    if recipe.entries:
        entries = [entry for given in recipe.entries for entry in classes_in(table, given)]
    samples = plan_samples(entries, recipe.seed, recipe.num)
    check_sweep(recipe.ranges, len(samples))
    return samples, name_files(recipe, samples, model, reserved)


def classes_in(table: ClassTable, given: Entry) -> list[ClassEntry]:
    """Look up classes as typed, by id, or by metadata.

    A class that was asked for by its own name has no ``stands_for``.
    """
    if isinstance(given, str):
        return table.parse_classes(given)
    if isinstance(given, int):
        return [table.by_id(given)]
    label = given.get("label", len(table))
    if "stands_for" not in given and label < len(table) and table.entry(label).id == given["id"]:
        return [table.entry(label)]
    return [table.by_id(given["id"])]
