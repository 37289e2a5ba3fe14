"""Decoding orders as data: which cells each pass of a network decodes, and from what.

An order is a list of passes. The network and the sampler execute passes and know no paradigm. The orders are
the generators below, which ``named`` makes by name: ``neighbor`` (NAR, arXiv 2503.10696 section 3.1),
``raster`` (LlamaGen), ``zipar`` (ZipAR, arXiv 2412.04062), ``regions`` (PAR, arXiv 2412.15119) and ``scales``
(VAR, arXiv 2404.02905). Pure Python, without tensors. ``schedule`` has what pictures show of an order, and
``sketches`` the orders of systems that narcli does not run.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import isqrt, prod
from typing import Any, NamedTuple

from ..errors import UsageError
from .schedule import NAR as NAR
from .schedule import Schedule as Schedule
from .schedule import checked
from .schedule import format_grid as format_grid
from .schedule import order_rows as order_rows
from .schedule import parse_grid as parse_grid

#: Names of the axis heads, counted from the last axis: W, H, T.
HEADS = ("right", "down", "back")
#: In a Feed: no cell, no position, no learned row. In a Source: the last condition token.
NONE = -1


class Feed(NamedTuple):
    """One place that a pass feeds to the network.

    Args:
        token: cell whose token is embedded; ``NONE`` for a learned row, or an input that the network makes.
        place: cell whose position it has; ``NONE`` for no position.
        slot: slot of its key and value, counted after the condition. A slot in use is overwritten.
        sees: number of leading slots that it attends to, besides the condition. Slots that nothing was
            written to count as keys and values of zero.
        learned: row of the learned embeddings, or ``NONE``.
    """

    token: int
    place: int
    slot: int
    sees: int
    learned: int = NONE


class Source(NamedTuple):
    """One term of a cell's logits.

    Args:
        feed: index among the feeds of the pass; ``NONE`` for the last condition token.
        head: axis head that reads the hidden state there, counted from the first.
        weight: share of the cell's logits; those of a cell add up to 1.
    """

    feed: int
    head: int
    weight: float


@dataclass(frozen=True)
class Pass:
    """One forward pass of the network.

    Args:
        cells: flat indices of the n cells that it decodes.
        sources: terms of the logits of each cell.
        feeds: places fed to the network; none in the first pass of most orders, which reads the condition.
        clock: number that ``cfg_interval`` is compared with.
        share: share of the guidance scale's excess over 1 that is used.
    """

    cells: tuple[int, ...]
    sources: tuple[tuple[Source, ...], ...]
    feeds: tuple[Feed, ...] = ()
    clock: int = 0
    share: float = 1.0


class Predecessor(NamedTuple):
    """``cell`` (flat index) predicts another cell along ``axis`` with the head named ``head``."""

    axis: int
    cell: int
    head: str


@dataclass(frozen=True)
class Order(Schedule):
    """A decoding order of a grid; ``Order(sizes)`` is NAR's own, as ``neighbor(sizes)``.

    Args:
        sizes, name, panels: as in ``Schedule``.
        heads: names of the axis heads that it reads, from the first.
        rule: generator of the passes; None is that of ``neighbor``.
        learned: number of learned embeddings that it feeds.

    Raises:
        UsageError: no axes, more than three, or a size below 1.
    """

    heads: tuple[str, ...] = ()
    rule: Callable[[], Iterator[Pass]] | None = field(default=None, compare=False, repr=False)
    learned: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "heads", self.heads or HEADS[: len(self.sizes)])

    @cached_property
    def passes(self) -> tuple[Pass, ...]:
        """All passes in order."""
        return tuple(self.rule() if self.rule is not None else _neighbor_passes(self.sizes))

    def _steps(self) -> tuple[tuple[int, ...], ...]:
        return tuple(step.cells for step in self.passes)

    @cached_property
    def slots(self) -> int:
        """Number of slots of keys and values, without those of the condition."""
        return 1 + max((feed.slot for step in self.passes for feed in step.feeds), default=NONE)

    @cached_property
    def is_scattered(self) -> bool:
        """True if passes do not fill the slots from the first to the last, so that some may be seen empty."""
        filled = 0
        for step in self.passes:
            if [feed.slot for feed in step.feeds] != list(range(filled, filled + len(step.feeds))):
                return True
            filled += len(step.feeds)
            if step.feeds and max(feed.sees for feed in step.feeds) != filled:
                return True
        return False

    def head_axis(self, head: str) -> int:
        """Axis along which a head predicts: ``right`` is the last one.

        Raises:
            ValueError: the order has no such head.
        """
        return len(self.sizes) - 1 - self.heads.index(head)

    def predecessors(self, cell: int) -> tuple[Predecessor, ...]:
        """Cells whose tokens predict ``cell``, by head; none if only the condition does."""
        index, place = self._found_at[cell]
        step = self.passes[index]
        result = []
        for source in step.sources[place]:
            token = step.feeds[source.feed].token if source.feed != NONE else NONE
            if token != NONE:
                head = self.heads[source.head]
                result.append(Predecessor(self.head_axis(head), token, head))
        return tuple(result)

    def origins(self, cell: int) -> list[dict[str, Any]] | None:
        """``predecessors`` as data."""
        return [{"cell": p.cell, "head": p.head} for p in self.predecessors(cell)]

    @cached_property
    def _found_at(self) -> dict[int, tuple[int, int]]:
        """(pass, index among its cells) of each cell."""
        return {
            cell: (index, place) for index, cells in enumerate(self.steps) for place, cell in enumerate(cells)
        }


# --- the orders ----------------------------------------------------------------------------------


def neighbor(sizes: tuple[int, ...]) -> Order:
    """NAR: each pass decodes all cells of one Manhattan distance from the first (section 3.1).

    A cell is predicted by its neighbors one step nearer to the corner, by the head of the axis between them.

    Args:
        sizes: one to three, each at least 1.

    Raises:
        UsageError: no axes, more than three, or a size below 1.
    """
    return Order(sizes)


def _neighbor_passes(sizes: tuple[int, ...]) -> Iterator[Pass]:
    heads = HEADS[: len(sizes)]
    steps: list[list[int]] = [[] for _ in range(sum(sizes) - len(sizes) + 1)]
    for cell, coordinates in enumerate(itertools.product(*map(range, sizes))):
        steps[sum(coordinates)].append(cell)
    yield Pass((0,), (tuple(Source(NONE, head, 1 / len(heads)) for head in range(len(heads))),))
    # Stride and size of the axis of each head, from the last axis on.
    axes = [(prod(sizes[axis + 1 :]), sizes[axis]) for axis in reversed(range(len(sizes)))]
    total = 0
    for before, cells in itertools.pairwise(steps):
        place = {cell: index for index, cell in enumerate(before)}
        sources = []
        for cell in cells:
            near = [(h, cell - stride) for h, (stride, size) in enumerate(axes) if cell // stride % size]
            sources.append(tuple(Source(place[other], head, 1 / len(near)) for head, other in near))
        slots = range(total, total + len(before))
        total += len(before)
        feeds = (Feed(cell, cell, slot, total) for cell, slot in zip(before, slots, strict=True))
        yield Pass(tuple(cells), tuple(sources), tuple(feeds), total)


def raster(sizes: tuple[int, ...]) -> Order:
    """LlamaGen and LARP-AR: one cell a pass, in raster order, each predicted from the one before.

    Raises:
        UsageError: as ``neighbor``.
    """

    def rule() -> Iterator[Pass]:
        yield Pass((0,), ((Source(NONE, 0, 1.0),),))
        for cell in range(1, prod(sizes)):
            # cfg_interval counts one token later than in NAR's code.
            yield Pass(
                (cell,), ((Source(0, 0, 1.0),),), (Feed(cell - 1, cell - 1, cell - 1, cell),), cell - 1
            )

    return Order(sizes, "raster", heads=HEADS[:1], rule=rule)


def zipar(sizes: tuple[int, ...], window: int) -> Order:
    """ZipAR: raster order in which a row begins when the row above has ``window`` tokens.

    A row's first cell is predicted at the last place of the row above. While the token of that place is
    missing, the newest token of two rows above is its substitute. A place attends to all places before it,
    also to empty ones.

    Args:
        sizes: (H, W).
        window: from 2 to W - 1.

    Raises:
        UsageError: the grid has not two axes, or the window is out of range.
    """
    if len(checked(sizes)) != 2 or sizes[1] < 3:
        raise UsageError(
            f"ZipAR does not decode the grid {format_grid(sizes)}.",
            "It takes two axes and at least 3 columns, such as 16x16.",
        )
    if not 2 <= window < sizes[1]:
        raise UsageError(
            f"ZipAR's window is {window} on the grid {format_grid(sizes)}, expected 2 to {sizes[1] - 1}.",
            "A window of the whole row or more is raster order.",
        )
    rows, columns = sizes

    def rule() -> Iterator[Pass]:
        yield Pass((0,), ((Source(NONE, 0, 1.0),),))
        known_below = 0  # tokens of all rows but the first
        for index in range(1, 2 * columns + (rows - 2) * window if rows > 1 else columns):
            cells, feeds, sources = [], [], []
            for row in range(rows):
                column = index - (columns + (row - 1) * window if row else 0)
                cell, end = row * columns + column, row * columns - 1
                if row and column == columns and cell < rows * columns:  # its token replaces the substitute
                    feeds.append(Feed(cell - 1, cell - 1, cell - 1, cell))
                if not 0 <= column < columns:
                    continue
                if column or row == 1:
                    feeds.append(Feed(cell - 1, cell - 1, cell - 1, cell))
                else:
                    newest = columns - 1 if row == 2 else (row - 2) * columns + min(2 * window, columns) - 1
                    feeds.append(Feed(newest, end, end, end + 1))
                cells.append(cell)
                sources.append((Source(len(feeds) - 1, 0, 1.0),))
            clock = known_below if index >= columns else index - 1
            yield Pass(tuple(cells), tuple(sources), tuple(feeds), clock)
            known_below += sum(cell >= columns for cell in cells)

    return Order(sizes, f"zipar:{window}", heads=HEADS[:1], rule=rule)


def regions(sizes: tuple[int, ...], count: int) -> Order:
    """PAR: the first cells of ``count`` regions one by one, then all regions together in raster order.

    Args:
        sizes: (H, W), both multiples of the square root of ``count``.
        count: a square, n.

    Raises:
        UsageError: the grid has not two axes, ``count`` is no square, or its root does not divide the sides.
    """
    side = isqrt(max(count, 0))
    if len(checked(sizes)) != 2 or count < 1 or side**2 != count or any(size % side for size in sizes):
        raise UsageError(
            f"The grid {format_grid(sizes)} cannot be cut into {count} regions.",
            "PAR takes 4, 9, 16 and other squares whose root divides both sides of a grid of two axes.",
        )
    height, width = sizes[0] // side, sizes[1] // side
    cells = [
        (a * height + i) * sizes[1] + b * width + j
        for i, j in itertools.product(range(height), range(width))
        for a, b in itertools.product(range(side), range(side))
    ]

    def rule() -> Iterator[Pass]:
        yield Pass(tuple(cells[:1]), ((Source(NONE, 0, 1.0),),))
        for t in range(1, count):
            feed = Feed(cells[t - 1], cells[t - 1], t - 1, t)
            yield Pass((cells[t],), ((Source(0, 0, 1.0),),), (feed,), t - 1)
        slot = count - 1
        for group, start in enumerate(range(count, len(cells), count)):
            end = slot + count
            if group:  # feeds the group before, in slots after the learned ones
                fed = [Feed(cell, cell, slot + k, end) for k, cell in enumerate(cells[start - count : start])]
            else:
                fed = [Feed(cells[count - 1], cells[count - 1], slot, end)]
                fed += [Feed(NONE, NONE, slot + 1 + k, end, k) for k in range(count - 1)]
            slot = end
            sources = tuple((Source(k, 0, 1.0),) for k in range(count))
            yield Pass(tuple(cells[start : start + count]), sources, tuple(fed), group * count)

    return Order(sizes, f"par:{count}", heads=HEADS[:1], rule=rule, learned=count - 1)


def scales(sides: tuple[int, ...]) -> Order:
    """VAR: each pass decodes a whole square grid, from the smallest to the finest.

    Cells are numbered scale by scale. The network makes the input of a place from the scales before, and the
    place predicts its own token. Guidance grows from none to all.

    Args:
        sides: of the grids, each at least 1.

    Raises:
        UsageError: no sides, or one below 1.
    """
    panels = tuple((side, side) for side in sides)
    checked((min(sides, default=0), max(sides, default=0)))

    def rule() -> Iterator[Pass]:
        total = 0
        for index, side in enumerate(sides):
            cells = tuple(range(total, total + side * side))
            total += side * side
            feeds = tuple(Feed(NONE, cell, cell, total) for cell in cells)
            share = index / (len(sides) - 1) if len(sides) > 1 else 0.0
            sources = tuple((Source(k, 0, 1.0),) for k in range(len(cells)))
            yield Pass(cells, sources, feeds, 0, share)

    name = "var" if SIDES.get(sides[-1]) == sides else f"var:{'-'.join(map(str, sides))}"
    return Order(panels[-1], name, panels, HEADS[:1], rule)


#: Sides of VAR's grids by the last of them, which the name ``var`` means.
SIDES = {16: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 32: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)}
MAX_SCALES = 32
#: Names of all orders, for messages.
NAMES = "nar, raster, zipar:8, par:4, var"
#: Pattern of the names.
NAME = f"nar|raster|var|(zipar|par):[0-9]{{1,6}}|var:[0-9]{{1,4}}(-[0-9]{{1,4}}){{0,{MAX_SCALES - 1}}}"


def parse_name(name: str) -> tuple[str, tuple[int, ...]]:
    """Parse ``"zipar:8"`` as ``("zipar", (8,))``; an order without numbers has none.

    Raises:
        UsageError: an unknown name.
    """
    if re.fullmatch(NAME, name, re.ASCII) is None:
        raise UsageError(f"There is no order {name[:40]!r}.", f"Choose one of {NAMES}.")
    kind, _, numbers = name.partition(":")
    return kind, tuple(map(int, numbers.split("-"))) if numbers else ()


def named(name: str, sizes: tuple[int, ...]) -> Order:
    """Make an order by its name.

    Args:
        name: ``nar``, ``raster``, ``zipar:W`` (window W), ``par:N`` (N regions), ``var``, or
            ``var:1-2-4`` with other sides than the released models'.
        sizes: of the grid; of ``var`` the last one.

    Raises:
        UsageError: an unknown name, or a grid that the order does not take.
    """
    kind, numbers = parse_name(name)
    if kind == "var":
        sides = numbers or SIDES.get(checked(sizes)[-1], (0,))
        if sizes != (max(sides),) * 2 or sides[-1] != max(sides):
            raise UsageError(
                f"{name} has no scales up to the grid {format_grid(sizes)}.",
                f"The last grids of var are {' and '.join(format_grid((side, side)) for side in SIDES)}; "
                "var:1-2-4 names other sides.",
            )
        return scales(sides)
    if kind == "zipar":
        return zipar(sizes, *numbers)
    return (
        regions(sizes, *numbers) if kind == "par" else raster(sizes) if kind == "raster" else neighbor(sizes)
    )
