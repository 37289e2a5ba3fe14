"""An order as index tensors, and the keys and values that its passes keep.

A plan is made once for a network, an order and a device: nothing in the loop over passes computes a
coordinate or moves an index to the device. Tokens are numbered in generation order, so that those of a pass
lie side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ..order import NONE, Feed, Order

#: Base of the rotary frequencies.
ROTARY_BASE = 10000.0
#: Tables that rotate n positions, in the layout that the layers of a network take.
Rotary = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class PassPlan:
    """One pass as tensors.

    Args:
        cells: the m cells that it decodes, in generation order.
        sources: (m, heads) index, among the feeds, that each head reads for a cell.
        weights: (m, heads) float32 share of that head, 0 if unused.
        tokens: (n,) cells whose tokens are fed, in generation order; any cell for a learned row.
        learned: (n,) rows of the learned embeddings, ``NONE`` for tokens; None if only tokens are fed.
        positions: (n,) row of each in a table of positions, condition first.
        rotary: tables of these positions; None without rotary positions.
        slots: slots of keys and values, condition included: a slice, or (n,) indices of a scattered order.
        seen: leading slots that any fed place attends to, condition included.
        mask: (n, seen) bool, true for a visible slot; None if all places see all.
    """

    cells: slice
    sources: Tensor
    weights: Tensor
    tokens: Tensor
    learned: Tensor | None
    positions: Tensor
    rotary: Rotary | None
    slots: slice | Tensor
    seen: int
    mask: Tensor | None


class Plan:
    """An order as tensors.

    Args:
        order: the order.
        condition_tokens: C.
        axis_heads: axis heads of the network; the order may read fewer.
        head_dim: width of an attention head; 0 for a network without rotary positions.
        device: device of the tensors.
        layout: converts (cosine, sine), (n, head_dim / 2) each, to the layers' tables.
    """

    def __init__(
        self,
        order: Order,
        condition_tokens: int,
        axis_heads: int,
        head_dim: int,
        device: torch.device,
        layout: Callable[[Rotary], Rotary],
    ) -> None:
        self.order, self.condition_tokens, self.axis_heads = order, condition_tokens, axis_heads
        self.head_dim, self.device, self.layout = head_dim, device, layout

    @property
    def length(self) -> int:
        """Slots of keys and values, condition included."""
        return self.condition_tokens + self.order.slots

    @cached_property
    @torch.inference_mode(False)
    def axes(self) -> Tensor:
        """Indices of the axis heads, (heads,) int64."""
        return self._to(torch.arange(self.axis_heads))

    @cached_property
    def condition_rotary(self) -> Rotary | None:
        """Tables of the condition, whose cosine and sine are zero; None without rotary positions."""
        return self._tables([NONE] * self.condition_tokens)

    @cached_property
    @torch.inference_mode(False)  # a network may be trained after it has sampled
    def passes(self) -> list[PassPlan]:
        """Tensors of each pass."""
        plans, first, done = [], self.condition_tokens, 0
        generated = {cell: index for index, cell in enumerate(self.order.generation)} | {NONE: 0}
        for step in self.order.passes:
            sources = torch.zeros(len(step.cells), self.axis_heads, dtype=torch.int64)
            weights = torch.zeros(len(step.cells), self.axis_heads)
            for row, terms in enumerate(step.sources):
                for source in terms:
                    sources[row, source.head] = first - 1 if source.feed == NONE else source.feed
                    weights[row, source.head] = source.weight
            places = [feed.place for feed in step.feeds]
            slots = [first + feed.slot for feed in step.feeds]
            sees = [first + feed.sees for feed in step.feeds]
            seen = max(sees, default=first)
            plans.append(
                PassPlan(
                    slice(done, done + len(step.cells)),
                    self._to(sources),
                    self._to(weights),
                    *self._fed([feed._replace(token=generated[feed.token]) for feed in step.feeds]),
                    self._to(torch.tensor(places, dtype=torch.int64) + first),
                    self._tables(places),
                    self._to(torch.tensor(slots))
                    if self.order.is_scattered
                    else slice(min(slots, default=first), max(slots, default=first - 1) + 1),
                    seen,
                    self._to(torch.arange(seen) < torch.tensor(sees)[:, None])
                    if min(sees, default=seen) < seen
                    else None,
                )
            )
            done += len(step.cells)
        return plans

    @cached_property
    @torch.inference_mode(False)
    def train(self) -> TrainPlan:
        """Tensors of all passes at once, for teacher forcing.

        Raises:
            ValueError: the order feeds a slot twice, which is impossible in one pass.
        """
        first, feeds = self.condition_tokens, [feed for step in self.order.passes for feed in step.feeds]
        if len({feed.slot for feed in feeds}) < len(feeds):
            raise ValueError(f"the order {self.order.name} cannot be trained with teacher forcing")
        sources = torch.zeros(self.order.cells, self.axis_heads, dtype=torch.int64)
        weights = torch.zeros(self.order.cells, self.axis_heads)
        fed = first
        for step in self.order.passes:
            for cell, terms in zip(step.cells, step.sources, strict=True):
                for source in terms:
                    sources[cell, source.head] = first - 1 if source.feed == NONE else fed + source.feed
                    weights[cell, source.head] = source.weight
            fed += len(step.feeds)
        slots = torch.tensor([*range(-first, 0), *(feed.slot for feed in feeds)])
        sees = torch.tensor([*range(1 - first, 1), *(feed.sees for feed in feeds)])
        places = [feed.place for feed in feeds]
        cos_sin = self._angles([NONE] * first + places)
        return TrainPlan(
            *self._fed(feeds),
            self._to(torch.tensor(places, dtype=torch.int64) + first),
            None if cos_sin is None else (self._to(cos_sin[0]), self._to(cos_sin[1])),
            self._to(slots[None] < sees[:, None]),
            self._to(sources),
            self._to(weights),
        )

    def _fed(self, feeds: Sequence[Feed]) -> tuple[Tensor, Tensor | None]:
        """Cells whose tokens are fed, and the learned rows among them: (n,) int64 each."""
        tokens = torch.tensor([feed.token for feed in feeds], dtype=torch.int64)
        learned = torch.tensor([feed.learned for feed in feeds], dtype=torch.int64)
        fed_learned = any(feed.learned != NONE for feed in feeds)
        return self._to(tokens), self._to(learned) if fed_learned else None

    def _tables(self, places: list[int]) -> Rotary | None:
        angles = self._angles(places)
        if angles is None:
            return None
        cos, sin = self.layout(angles)
        return self._to(cos), self._to(sin)

    def _angles(self, places: list[int]) -> Rotary | None:
        """(cosine, sine) of each interleaved pair at the places; zero for no position."""
        if not self.head_dim:
            return None
        half = self.head_dim // 2
        frequencies = ROTARY_BASE ** (-2 * torch.arange(half // 2).float() / half)
        columns = self.order.sizes[-1]
        index = torch.tensor(places, dtype=torch.int64)
        h, w = (part.float()[:, None] * frequencies for part in (index // columns, index % columns))
        angles, placed = torch.cat([h, w], 1), (index != NONE)[:, None]
        return angles.cos() * placed, angles.sin() * placed

    def _to(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)


@dataclass(frozen=True)
class TrainPlan:
    """All passes as one sequence: the C condition tokens, then the F places that the passes feed.

    Args:
        tokens: (F,) cells whose tokens are fed.
        learned: (F,) rows of the learned embeddings, as in PassPlan.
        positions: (F,) row of each in a table of positions, condition first.
        rotary: (C + F, head_dim / 2) cosine and sine; None without rotary positions.
        mask: (C + F, C + F) bool, true where the row may see the column (section 3.2).
        sources: (N, heads), raster order: index in the sequence that each head reads for a cell.
        weights: (N, heads), as in PassPlan.
    """

    tokens: Tensor
    learned: Tensor | None
    positions: Tensor
    rotary: Rotary | None
    mask: Tensor
    sources: Tensor
    weights: Tensor


class Cache:
    """Keys and values of all layers, allocated once.

    Args:
        tensors: (layers, k, rows, ...), in the layout of the layers.
        padding: (rows, C) bool, true where a condition token is padding; None without any.
    """

    def __init__(self, tensors: Tensor, padding: Tensor | None = None) -> None:
        self.tensors, self.padding = tensors, padding

    def store(
        self, layer: int, keys: Tensor, values: Tensor, slots: slice | Tensor, seen: int
    ) -> tuple[Tensor, Tensor]:
        """Store (B, heads, n, d) at slots; return the leading ``seen`` slots, two of (B, heads, seen, d)."""
        stored = self.tensors[layer]
        stored[0, :, :, slots] = keys
        stored[1, :, :, slots] = values
        return stored[0, :, :, :seen], stored[1, :, :, :seen]

    def keep_rows(self, rows: int) -> None:
        """Drop all rows but the first ``rows``."""
        self.tensors = self.tensors[:, :, :rows]
        if self.padding is not None:
            self.padding = self.padding[:rows]

    def visible(self, mask: Tensor | None, seen: int) -> Tensor | None:
        """Visibility mask of a pass for attention, with padding hidden.

        Args:
            mask: (n, seen) bool of a pass, or None for all.
            seen: slots.

        Returns:
            (n, seen); (B, 1, n or 1, seen) with padding; None if all is visible.
        """
        if self.padding is None:
            return mask
        shown = ~F.pad(self.padding, (0, seen - self.padding.shape[1]))[:, None, None]
        return shown if mask is None else shown & mask


class FoldedCache(Cache):
    """Keys and values where one slot stands for a condition whose keys are all zero.

    Such tokens have the score 0 for every query. So ``n`` of them that are not padding count as one with the
    score ``log(n)`` and the mean of their values, and attention needs no mask. Keys are wider than queries by
    ``WIDER`` numbers, which are zero but in that slot; queries are padded with ones.

    Args:
        tensors: (layers, 2, rows, heads, slots, head_dim + WIDER), zero; slot 0 is that of the condition.
        padding: (rows, C) bool, true where a condition token is padding.
    """

    WIDER = 8  # two are needed; fast kernels take whole eights

    def __init__(self, tensors: Tensor, padding: Tensor) -> None:
        super().__init__(tensors)
        shown = ~padding[:, None, :, None]
        self._counts = shown.sum(2, keepdim=True).float().clamp(min=1e-30)  # (rows, 1, 1, 1)
        self._shares = shown / self._counts

    def store(
        self, layer: int, keys: Tensor, values: Tensor, slots: slice | Tensor, seen: int
    ) -> tuple[Tensor, Tensor]:
        """Store as ``Cache.store``; those of the condition, at slots from 0 on, are returned as they are."""
        stored, width = self.tensors[layer], keys.shape[-1]
        if isinstance(slots, slice) and slots.start == 0:
            score = self._counts[..., 0].log() * width**0.5
            stored[0, :, :, :1, width] = score
            # What is lost in rounding to few digits.
            stored[0, :, :, :1, width + 1] = score - stored[0, :, :, :1, width].float()
            stored[1, :, :, :1, :width] = (values.float() * self._shares).sum(2, keepdim=True)
            return keys, values
        stored[0, :, :, slots, :width] = keys
        stored[1, :, :, slots, :width] = values
        return stored[0, :, :, :seen], stored[1, :, :, :seen]
