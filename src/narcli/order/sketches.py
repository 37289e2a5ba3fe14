"""Orders of systems that narcli does not run, to draw beside its own: MAR, MaskGIT and SJD.

MAR's order is exact for its seed. Those of MaskGIT and SJD depend on a model too, and are illustrative: the
numbers of cells of MaskGIT's steps are its own, the cells are random; SJD's runs are random.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, floor, pi

from ..errors import UsageError
from . import NAMES, named
from .schedule import Schedule, checked, format_grid

#: Number of steps of the released settings, if the grid has as many cells.
MAR_STEPS = 64  # 256 in its published scores
MASKGIT_STEPS = (8, 12)  # up to 256 cells (pictures of 256 pixels), and above
#: Most tokens that SJD accepts in a step: 15 drafts and the one after them.
SJD_RUN = 16
#: Names of all orders that can be drawn, for messages.
DRAWN_NAMES = f"{NAMES}, mar, maskgit, sjd"
#: Pattern of the names of sketches.
SKETCH = "(mar|maskgit)(:[0-9]{1,6})?|sjd"
_TITLES = {"mar": "MAR", "maskgit": "MaskGIT", "sjd": "SJD"}


@dataclass(frozen=True)
class Sketch(Schedule):
    """An order that is drawn and cannot be executed.

    Args:
        sizes, name, panels: as in ``Schedule``.
        drawn: flat cell indices of each step.
        seed: seed of its random numbers.
        illustrative: true if the order of a run would depend on a model as well.
    """

    drawn: tuple[tuple[int, ...], ...] = ()
    seed: int = 0
    illustrative: bool = False

    def _steps(self) -> tuple[tuple[int, ...], ...]:
        return self.drawn

    @property
    def note(self) -> str:
        """``seed 0``, or ``illustrative, seed 0``."""
        return f"{'illustrative, ' * self.illustrative}seed {self.seed}"


def drawn(name: str, sizes: tuple[int, ...], seed: int = 0) -> Schedule:
    """Make any order by its name, for pictures.

    Args:
        name: as in ``named``; or ``mar`` or ``mar:T`` (T steps), ``maskgit`` or ``maskgit:T``, ``sjd``.
        sizes: of the grid.
        seed: of the orders that depend on one, from 0 to 2**32 - 1.

    Raises:
        UsageError: an unknown name, or a grid that the order does not take.
    """
    if re.fullmatch(SKETCH, name, re.ASCII) is None:
        if name.partition(":")[0] in _TITLES:
            raise UsageError(
                f"There is no order {name[:40]!r}.",
                "Give a number of steps, as in mar:64 or maskgit:8; sjd takes none.",
            )
        try:
            return named(name, sizes)
        except UsageError as error:
            error.hint = (error.hint or "").replace(NAMES, DRAWN_NAMES)
            raise
    kind, _, number = name.partition(":")
    if len(checked(sizes)) != 2:
        raise UsageError(
            f"{_TITLES[kind]} does not decode the grid {format_grid(sizes)}.",
            "It takes two axes, such as 16x16.",
        )
    cells = sizes[0] * sizes[1]
    if kind == "sjd":
        return Sketch(sizes, name, drawn=_random_runs(cells, seed), seed=seed, illustrative=True)
    default = MAR_STEPS if kind == "mar" else MASKGIT_STEPS[cells > 256]
    steps = int(number) if number else min(default, cells)
    if not 1 <= steps <= cells:
        raise UsageError(
            f"{name} decodes the grid {format_grid(sizes)} in {steps} steps, expected 1 to {cells}.",
            "Each step decodes at least one cell.",
        )
    return Sketch(
        sizes, name, drawn=_masked(permutation(cells, seed), steps), seed=seed, illustrative=kind != "mar"
    )


def permutation(cells: int, seed: int) -> list[int]:
    """MAR's random permutation of the cells, as numpy's global generator shuffles them after the seed."""
    import numpy as np

    order = np.arange(cells)
    np.random.RandomState(seed).shuffle(order)
    return order.tolist()


def masked_counts(cells: int, steps: int) -> list[int]:
    """Numbers of cells that the steps of a cosine schedule decode, at least one each.

    Args:
        cells: number of cells, N.
        steps: number of steps, from 1 to N.
    """
    left, counts = cells, []
    for k in range(1, steps):
        rest = max(1, min(left - 1, floor(cells * cos(pi / 2 * k / steps))))
        counts.append(left - rest)
        left = rest
    return [*counts, left]


def _masked(order: Sequence[int], steps: int) -> tuple[tuple[int, ...], ...]:
    """Decode a permutation from its end, as MAR does."""
    ends = itertools.accumulate(masked_counts(len(order), steps), lambda end, n: end - n, initial=len(order))
    return tuple(tuple(sorted(order[end:start])) for start, end in itertools.pairwise(ends))


def _random_runs(cells: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Cut raster order into runs of random length, as if half of the drafts were accepted."""
    import numpy as np

    lengths = np.random.RandomState(seed).geometric(0.5, cells).clip(1, SJD_RUN)
    ends = [0, *(end for end in np.cumsum(lengths).tolist() if end < cells), cells]
    return tuple(tuple(range(start, end)) for start, end in itertools.pairwise(ends))
