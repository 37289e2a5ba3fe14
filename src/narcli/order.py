"""Decoding order of next-neighbor autoregression (arXiv 2503.10696, section 3.1).

A cell's distance is the sum of its coordinates (Manhattan distance from the all-zero corner);
step ``s`` decodes every cell of distance ``s`` at once. Each cell of a later step is predicted by
its predecessors, the neighbors one step nearer to the corner, one for each axis along which it is
not on the border. Pure Python: nothing here knows of tensors.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from .errors import UsageError

#: Names of the dimension-oriented heads, counted from the last axis: W, H, T.
HEADS = ("right", "down", "back")


@dataclass(frozen=True)
class Predecessor:
    """``cell`` (flat index) predicts its neighbor along ``axis`` with the head named ``head``."""

    axis: int
    cell: int
    head: str


@dataclass(frozen=True)
class Order:
    """The decoding order of a grid.

    Args:
        sizes: grid sizes, one to three axes, e.g. ``(16, 16)`` = (H, W) or ``(4, 16, 16)`` = (T, H, W).

    Raises:
        UsageError: when there are no axes, more than three, or a size below 1.
    """

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.sizes) <= len(HEADS) or any(size < 1 for size in self.sizes):
            raise UsageError(
                f"The grid {format_grid(self.sizes)!r} has no decoding order.",
                "Give one to three sizes of at least 1, such as 16x16 or 4x16x16.",
            )

    @property
    def cells(self) -> int:
        """Number of cells, which is also the number of steps of raster order."""
        return prod(self.sizes)

    @cached_property
    def steps(self) -> tuple[tuple[int, ...], ...]:
        """Flat (row-major) cell indices of each step, ascending within a step."""
        steps: list[list[int]] = [[] for _ in range(sum(self.sizes) - len(self.sizes) + 1)]
        for cell, coordinates in enumerate(itertools.product(*map(range, self.sizes))):
            steps[sum(coordinates)].append(cell)
        return tuple(map(tuple, steps))

    @cached_property
    def step_of(self) -> tuple[int, ...]:
        """The step at which each cell is decoded, in raster order."""
        return tuple(map(sum, itertools.product(*map(range, self.sizes))))

    @cached_property
    def generation(self) -> tuple[int, ...]:
        """All flat cell indices in the order in which they are decoded."""
        return tuple(itertools.chain.from_iterable(self.steps))

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """Distance in flat indices between neighbors along each axis."""
        return tuple(prod(self.sizes[axis + 1 :]) for axis in range(len(self.sizes)))

    @property
    def widest(self) -> int:
        """Number of cells of the largest step."""
        return max(map(len, self.steps))

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that the grid needs: right, then down, then back in time."""
        return HEADS[: len(self.sizes)]

    def coordinates(self, cell: int) -> tuple[int, ...]:
        """Coordinates of a flat index.

        Raises:
            IndexError: when the cell is outside the grid.
        """
        if not 0 <= cell < self.cells:
            raise IndexError(f"cell {cell} is outside the grid {format_grid(self.sizes)}")
        return tuple(cell // stride % size for stride, size in zip(self.strides, self.sizes, strict=True))

    def head_axis(self, head: str) -> int:
        """The axis along which ``head`` predicts: ``right`` is the last one.

        Raises:
            ValueError: when the grid has no such head.
        """
        return len(self.sizes) - 1 - self.heads.index(head)

    def predecessors(self, cell: int) -> tuple[Predecessor, ...]:
        """The neighbors that predict ``cell``, in the order of ``heads``; none for the corner."""
        coordinates = self.coordinates(cell)
        axes = ((self.head_axis(head), head) for head in self.heads)
        return tuple(
            Predecessor(axis, cell - self.strides[axis], head) for axis, head in axes if coordinates[axis] > 0
        )


def order_rows(order: Order) -> list[dict[str, Any]]:
    """The order as data: one row a cell, in decoding order.

    Keys: ``step`` (from 1, as people see it), ``cell`` and ``coordinates`` (from 0), ``predecessors``
    (each with ``cell`` and ``head``).
    """
    return [
        {
            "step": s + 1,
            "cell": cell,
            "coordinates": list(order.coordinates(cell)),
            "predecessors": [{"cell": p.cell, "head": p.head} for p in order.predecessors(cell)],
        }
        for s, cells in enumerate(order.steps)
        for cell in cells
    ]


def format_grid(sizes: tuple[int, ...]) -> str:
    """``(4, 16, 16)`` -> ``"4x16x16"``."""
    return "x".join(map(str, sizes))


def parse_grid(text: str) -> tuple[int, ...]:
    """``"4x16x16"`` -> ``(4, 16, 16)``.

    Raises:
        UsageError: when the text is not one to three whole numbers of at least 1 joined by ``x``.
    """
    parts = text.lower().replace("×", "x").split("x")
    if not 1 <= len(parts) <= len(HEADS) or not all(re.fullmatch("0{0,9}[1-9][0-9]{0,8}", p) for p in parts):
        raise UsageError(
            f"{text[:40]!r} is not a grid.",
            "Give one to three sizes of at least 1 joined by x, such as 16x16 or 4x16x16.",
        )
    return tuple(map(int, parts))
