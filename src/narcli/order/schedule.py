"""Schedules: the step at which each cell of a grid is decoded, which is all that pictures show."""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from ..errors import UsageError

#: Name of NAR's order.
NAR = "nar"
AXES = 3  # of a grid, at most


@dataclass(frozen=True)
class Schedule:
    """The cells that each step decodes, as pictures and tables show them.

    ``Order`` is one that the sampler executes; ``sketches.Sketch`` is one that is only drawn.

    Args:
        sizes: grid sizes, one to three axes: ``(16, 16)`` = (H, W), ``(4, 16, 16)`` = (T, H, W).
        name: name with its parameters, such as ``nar`` or ``zipar:8``.
        panels: grids that pictures of the order show side by side; cells are numbered through all of them.

    Raises:
        UsageError: no axes, more than three, or a size below 1.
    """

    sizes: tuple[int, ...]
    name: str = NAR
    panels: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        checked(self.sizes)
        object.__setattr__(self, "panels", self.panels or (self.sizes,))

    def _steps(self) -> tuple[tuple[int, ...], ...]:
        raise NotImplementedError

    @cached_property
    def steps(self) -> tuple[tuple[int, ...], ...]:
        """Flat cell indices that each pass decodes."""
        return self._steps()

    @property
    def note(self) -> str:
        """Words on how the steps were chosen; empty if the name says it all."""
        return ""

    @property
    def cells(self) -> int:
        """Number of cells of all panels."""
        return sum(map(prod, self.panels))

    @property
    def has_scales(self) -> bool:
        """True if the panels are scales of one picture, so that each pass changes all of it."""
        return len(self.panels) > 1

    @cached_property
    def planes(self) -> tuple[tuple[int, ...], ...]:
        """(rows, columns) of each rectangle that pictures show: the scales, or else the slices of time."""
        slices, *plane = (1, 1, *self.sizes)[-3:]
        return self.panels if self.has_scales else (tuple(plane),) * slices

    @cached_property
    def step_of(self) -> tuple[int, ...]:
        """The pass that decodes each cell, by flat index."""
        steps = [-1] * self.cells
        for index, cells in enumerate(self.steps):
            for cell in cells:
                steps[cell] = index
        return tuple(steps)

    @cached_property
    def done(self) -> tuple[int, ...]:
        """Number of cells decoded after each pass."""
        return tuple(itertools.accumulate(map(len, self.steps)))

    @cached_property
    def generation(self) -> tuple[int, ...]:
        """All flat cell indices in the order in which they are decoded."""
        return tuple(itertools.chain.from_iterable(self.steps))

    @cached_property
    def widest(self) -> int:
        """Number of cells of the largest step."""
        return max(map(len, self.steps))

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """Distance in flat indices between neighbors along each axis."""
        return tuple(prod(self.sizes[axis + 1 :]) for axis in range(len(self.sizes)))

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Flat index of the first cell of each plane."""
        return tuple(itertools.accumulate(map(prod, self.planes[:-1]), initial=0))

    def plane_of(self, cell: int) -> tuple[int, int]:
        """(index of its plane, flat index in the plane) of a cell."""
        index = bisect_right(self.starts, cell) - 1
        return index, cell - self.starts[index]

    def coordinates(self, cell: int) -> tuple[int, ...]:
        """Coordinates of a flat index: in the grid, or in its own panel if the order has scales.

        Raises:
            IndexError: the cell is outside the grid.
        """
        if not 0 <= cell < self.cells:
            raise IndexError(f"cell {cell} is outside the grid {format_grid(self.sizes)}")
        if self.has_scales:
            plane, inside = self.plane_of(cell)
            return divmod(inside, self.planes[plane][1])
        return tuple(cell // stride % size for stride, size in zip(self.strides, self.sizes, strict=True))

    def origins(self, cell: int) -> list[dict[str, Any]] | None:
        """Cells that predict a cell, each with ``cell`` and ``head``; None if no model is known."""
        return None


def order_rows(order: Schedule) -> list[dict[str, Any]]:
    """List the order as data: one row a cell, in decoding order.

    Keys: ``step`` (from 1, as people see it), ``cell`` and ``coordinates`` (from 0), ``predecessors``
    (each with ``cell`` and ``head``) if they are known; ``panel`` (from 0) too if the order has scales.
    """
    rows = []
    for s, cells in enumerate(order.steps):
        for cell in cells:
            before = order.origins(cell)
            rows.append(
                {
                    "step": s + 1,
                    "cell": cell,
                    **({"panel": order.plane_of(cell)[0]} if order.has_scales else {}),
                    "coordinates": list(order.coordinates(cell)),
                    **({"predecessors": before} if before is not None else {}),
                }
            )
    return rows


# --- grids as text -------------------------------------------------------------------------------


def checked(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sizes of a grid.

    Raises:
        UsageError: no axes, more than three, or a size below 1.
    """
    if not 1 <= len(sizes) <= AXES or any(size < 1 for size in sizes):
        raise UsageError(
            f"The grid {format_grid(sizes)!r} has no decoding order.",
            "Give one to three sizes of at least 1, such as 16x16 or 4x16x16.",
        )
    return sizes


def format_grid(sizes: tuple[int, ...]) -> str:
    """Format ``(4, 16, 16)`` as ``"4x16x16"``."""
    return "x".join(map(str, sizes))


def parse_grid(text: str) -> tuple[int, ...]:
    """Parse ``"4x16x16"`` as ``(4, 16, 16)``.

    Raises:
        UsageError: the text is not one to three whole numbers of at least 1 joined by ``x``.
    """
    parts = text.lower().replace("×", "x").split("x")
    if not 1 <= len(parts) <= AXES or not all(re.fullmatch("0{0,9}[1-9][0-9]{0,8}", p) for p in parts):
        raise UsageError(
            f"{text[:40]!r} is not a grid.",
            "Give one to three sizes of at least 1 joined by x, such as 16x16 or 4x16x16.",
        )
    return tuple(map(int, parts))
