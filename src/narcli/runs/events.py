"""Events of a run, and the clock of its phases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..media.schema import SCHEMA
from ..settings import Sample
from .recipe import Recipe
from .sheets import about_sheet

if TYPE_CHECKING:
    from ..order import Order

PHASES = ("import", "load", "sample", "decode", "write")


class Clock:
    """Clock of the phases of a run, in seconds."""

    def __init__(self) -> None:
        self.began = perf_counter()
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time of the block to a phase."""
        began = perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + perf_counter() - began

    def total(self) -> dict[str, float]:
        """Return the seconds of each phase, and the ``total`` since the clock was made."""
        return self.seconds | {"total": perf_counter() - self.began}


@dataclass(frozen=True)
class Written:
    """Event: a file, or a folder of frames, is written."""

    path: Path


@dataclass(frozen=True)
class FrontierDecoded:
    """Event: the frontier's samples are decoded from the tokens known after a step.

    Args:
        steps: number of decoded steps in all.
    """

    steps: int


@dataclass(frozen=True)
class Finished:
    """Event: the run is over.

    Args:
        recipe: its recipe.
        samples: its samples, in the order of their files; of a sweep those of each point in turn.
        files: paths that were written, folders of frames included.
        common: metadata of all files.
        frontier: metadata of the frontier; empty without one.
        documents: metadata of each sample, with its ``file``; of a sweep instead with its ``sampling``.
        order: decoding order of the tokens.
        seconds: time of each phase, and the ``total``.
    """

    recipe: Recipe
    samples: Sequence[Sample]
    files: Sequence[Path]
    common: Mapping[str, Any]
    frontier: Mapping[str, Any]
    documents: Sequence[Mapping[str, Any]]
    order: Order
    seconds: Mapping[str, float]

    def document(self) -> dict[str, Any]:
        """Return the run as JSON, as ``--json`` prints it."""
        return {
            "schema": SCHEMA,
            "files": [str(path) for path in self.files],
            **self.common,
            **self.frontier,
            "samples": list(self.documents),
            "seconds": {phase: round(value, 3) for phase, value in self.seconds.items()},
            **about_sheet(self.recipe),
        }
