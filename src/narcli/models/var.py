"""VAR: next-scale prediction (arXiv 2404.02905, sections 3.2 and 3.3).

A transformer with adaptive layer normalisation. One pass decodes all tokens of a scale, each at its own
place. The network sees no token: the input of a scale is made of the sum of all scales before, which the
tokenizer enlarges and refines. So the network needs its tokenizer to run; ``use`` gives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import log
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..order import Order, scales
from .attention import attend
from .blocks import ClassCondition, Kind, Store
from .multiscale import MultiscaleTokenizer, area_down
from .network import Network, Weights
from .plan import Cache, Plan

NORM_EPS = 1e-6
#: Largest logarithm of a learned temperature of attention; training may exceed it.
MOST = log(100)


@dataclass(frozen=True)
class VARConfig:
    """Sizes of a VAR transformer.

    Args:
        grid: (P, P), the last scale.
        sides: of the square scales, from the smallest; the last one is P.
        dim: model width D.
        layers: blocks.
        heads: attention heads.
        vocab_size: codebook size V.
        code_dim: width z of a code.
        num_classes: classes without the unconditional one.
        shared_modulation: one layer makes the modulation of all blocks, and each adds its own constants.
        normalised_attention: queries and keys are normalised, with a learned temperature a head.
    """

    unguided: ClassVar[float] = 0.0
    fixed: ClassVar[Mapping[str, float]] = {"cfg_interval": -1}
    kind: ClassVar[Kind] = "image"
    condition: ClassVar[Literal["class"]] = "class"
    condition_tokens: ClassVar[int] = 0
    caption_dim: ClassVar[int] = 0

    grid: tuple[int, ...]
    sides: tuple[int, ...]
    dim: int
    layers: int
    heads: int
    vocab_size: int
    code_dim: int
    num_classes: int
    shared_modulation: bool = False
    normalised_attention: bool = True

    @cached_property
    def decoding_order(self) -> Order:
        """Scale by scale, from the smallest."""
        return scales(self.sides)

    @property
    def order(self) -> str:
        """Name of the order: ``var``, or with the sides if these are not the released ones."""
        return self.decoding_order.name

    def decoded_in(self, order: str | None) -> VARConfig:
        """Return the sizes unchanged.

        Raises:
            UsageError: an order other than its own.
        """
        if order not in (None, "var", self.order):
            message = f"`order` is {order}, and this model decodes scale by scale, in the order {self.order}."
            raise UsageError(message, f"Give `order={self.order}`.")
        return self

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.heads

    @property
    def slots(self) -> int:
        """Places whose keys and values are kept."""
        return self.decoding_order.slots

    @property
    def weights(self) -> Weights:
        """Weights by use; the modulation is computed once."""
        modulated = 6 * (1 if self.shared_modulation else self.layers) + 2
        return Weights(
            self.layers, self.dim, 12 * self.dim**2, self.dim * self.vocab_size, modulated * self.dim**2
        )

    def cache_shape(self, rows: int, length: int) -> tuple[int, ...]:
        """Return the shape of the keys and values of ``length`` places."""
        return self.layers, 2, rows, self.heads, length, self.head_dim

    @property
    def activations(self) -> int:
        """Numbers that a row of the last scale holds at once, in float32, the logits not counted."""
        return (16 * self.decoding_order.widest + 6 * self.layers + 2) * self.dim


@dataclass
class State:
    """State of a batch between passes.

    Args:
        plan: tensors of the order.
        cache: keys and values of all places fed so far.
        samples: B; there are 2 B rows, conditional ones first, while guidance may be needed.
        first: (rows, 1, D), the embedded condition.
        modulation: of each block, gains, scales and shifts of its two halves: (rows, 1, 6, D).
        final: scale and shift before the head, (rows, 1, 2, D).
        total: float32 (B, z, P, P), sum of the enlarged scales.
        added: number of scales in it.
        hidden: (rows, n, D), what the head projects, at the last feeds.
    """

    plan: Plan
    cache: Cache
    samples: int
    first: Tensor
    modulation: list[Tensor]
    final: Tensor
    total: Tensor
    added: int = 0
    hidden: Tensor | None = None

    @property
    def rows(self) -> int:
        """Rows of the batch, including those for guidance."""
        return self.cache.tensors.shape[2]


class VARTransformer(Network):
    """Class ids and the codes of all scales so far in, logits of the next scale out."""

    config: VARConfig

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        self.config = c = config
        self.condition = ClassCondition(c)  # type: ignore[arg-type]  # it reads two sizes
        self.start_position = nn.Parameter(torch.zeros(1, c.sides[0] ** 2, c.dim))
        self.position = nn.Parameter(torch.zeros(1, c.decoding_order.cells, c.dim))
        self.scale_embedding = nn.Embedding(len(c.sides), c.dim)
        self.word_embedding = nn.Linear(c.code_dim, c.dim)
        if c.shared_modulation:
            self.modulation = nn.Linear(c.dim, 6 * c.dim)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.head = Head(c)
        self._tokenizer: tuple[MultiscaleTokenizer, ...] = ()  # in a tuple it is no part of the network
        self._plans: dict[torch.device, Plan] = {}

    def use(self, tokenizer: MultiscaleTokenizer) -> None:
        """Take the codes and convolutions of a tokenizer, and tell it the scales.

        Raises:
            ValueError: its codes have another width.
        """
        if tokenizer.config.z_channels != self.config.code_dim:
            raise ValueError(f"codes of {self.config.code_dim} numbers")
        self._tokenizer, tokenizer.sides = (tokenizer,), self.config.sides

    @property
    def ordered_blocks(self) -> list[Block]:
        """The blocks from the bottom up."""
        return [cast(Block, block) for block in self.blocks]

    def plan(self, order: Order | None = None, padded: bool = False) -> Plan:
        """Return the tensors of the order, made once; class ids have no padding.

        Raises:
            UsageError: an order that is not the network's own.
        """
        own, device = self.config.decoding_order, self.position.device
        if order not in (None, own):
            raise UsageError(
                f"A model of scales has one order, not {order.name}." if order else "",
                "Leave the order out.",
            )
        if device not in self._plans:
            self._plans[device] = Plan(own, 0, 1, 0, device, lambda tables: tables)
        return self._plans[device]

    def start(
        self,
        condition: Tensor,
        samples: int,
        padding: Tensor | None = None,
        order: Order | None = None,
    ) -> State:
        """Make the modulation of all blocks from the condition; nothing is fed yet.

        Args:
            condition: (rows, 1, D), from ``self.condition``; B rows, or 2 B with guidance, conditional ones
                first.
            samples: B.
            padding: None; class ids have none.
            order: None, or the network's own.
        """
        c, plan, rows, weight = self.config, self.plan(order), len(condition), self.position
        room = torch.empty(c.cache_shape(rows, plan.length), dtype=weight.dtype, device=weight.device)
        modulation, final = self._modulation(condition)
        total = torch.zeros(samples, c.code_dim, *c.grid, device=weight.device)
        return State(plan, Cache(room), samples, condition, modulation, final, total)

    def feed(self, state: State, index: int, tokens: Tensor) -> None:
        """Feed the places of a scale to the network.

        Args:
            state: of the batch; its sum, cache and hidden states are updated.
            index: of the scale.
            tokens: (B, N) int64; those of the scale before must be drawn, unless ``mix`` added it.
        """
        if state.added < index:
            self._add(state, index - 1, self._codes.quantize(tokens[:, state.plan.passes[index - 1].cells]))
        step, rows = state.plan.passes[index], state.rows
        if index == 0:
            x = state.first[:rows] + self.start_position
        else:
            seen = area_down(state.total, self.config.sides[index]).flatten(2).transpose(1, 2)
            x = self._embed(seen).repeat(rows // state.samples, 1, 1)
        x = x + self.position[:, step.positions] + self.scale_embedding.weight[index]
        for layer, block in enumerate(self.ordered_blocks):
            store = partial(state.cache.store, layer, slots=step.slots, seen=step.seen)
            x = block(x, state.modulation[layer][:rows], store)
        state.hidden = modulated(x, *state.final[:rows].unbind(2))

    def predict(self, state: State, index: int, scale: float | Tensor = 1.0) -> Tensor:
        """Compute the logits of a scale, the one that was fed last.

        Args:
            state: of the batch.
            index: of the scale.
            scale: guidance scale, as in ``Network.predict``.

        Returns:
            float32 (B, n, V).
        """
        assert state.hidden is not None
        hidden = state.hidden[: state.samples]
        if isinstance(scale, Tensor) or scale > 1:  # the head is linear, so that guidance may come before it
            conditional, unconditional = state.hidden.float().chunk(2)
            hidden = (unconditional + scale * (conditional - unconditional)).to(hidden.dtype)
        return self.head.output(hidden).float()

    def mix(self, state: State, index: int, mixture: Tensor) -> Tensor:
        """Add mixtures of codes to the sum, instead of the tokens of a scale (``more_smooth``).

        Args:
            state: of the batch.
            index: of the scale.
            mixture: float32 (B, n, V), shares of the codes of each cell.

        Returns:
            (B, P * P, z), the sum of all scales so far.
        """
        every = torch.arange(self.config.vocab_size, device=mixture.device)
        codes = self._codes.quantize(every)
        self._add(state, index, torch.cat([own @ codes for own in alone(mixture)]))
        return state.total.flatten(2).transpose(1, 2)

    def forward_train(
        self, condition: Tensor, tokens: Tensor, padding: Tensor | None = None, order: Order | None = None
    ) -> Tensor:
        """Compute the logits of every cell given all cells of smaller scales (teacher forcing).

        Args:
            condition: (B, 1, D), from ``self.condition``.
            tokens: (B, N) int64 of all scales.
            padding: None; class ids have none.
            order: None, or the network's own.

        Returns:
            (B, N, V).
        """
        plan, sides = self.plan(order), self.config.sides
        modulation, final = self._modulation(condition)
        inputs = self._embed(self.train_inputs(tokens))
        x = torch.cat([condition + self.start_position, inputs], 1)
        level = torch.repeat_interleave(
            self.scale_embedding.weight, torch.tensor([side * side for side in sides], device=x.device), 0
        )
        x = x + self.position + level
        for block, own in zip(self.ordered_blocks, modulation, strict=True):
            x = block(x, own, lambda keys, values: (keys, values), plan.train.mask)
        return self.head.output(modulated(x, *final.unbind(2)))

    @torch.no_grad()
    def train_inputs(self, tokens: Tensor) -> Tensor:
        """Compute what is fed of all scales but the first, given tokens (B, N): (B, N - first, z)."""
        sides = self.config.sides
        total, inputs = torch.zeros(1, device=tokens.device), []
        for index, cells in enumerate(self.plan().order.steps[:-1]):
            vectors = self._codes.quantize(tokens[:, cells[0] : cells[-1] + 1])
            total = total + self._codes.quantize.enlarge(vectors, index, sides)
            inputs.append(area_down(total, sides[index + 1]).flatten(2).transpose(1, 2))
        return torch.cat(inputs, 1)

    @property
    def _codes(self) -> MultiscaleTokenizer:
        if not self._tokenizer:
            raise RuntimeError("a model of scales runs with its tokenizer only: call its method use first")
        return self._tokenizer[0]

    def _add(self, state: State, index: int, vectors: Tensor) -> None:
        state.total = state.total + self._codes.quantize.enlarge(vectors, index, self.config.sides)
        state.added = index + 1

    def _embed(self, vectors: Tensor) -> Tensor:
        embedded: Tensor = self.word_embedding(vectors.to(self.position.dtype))
        return embedded

    def _modulation(self, condition: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the modulation of each block, (rows, 1, 6, D), and that of the head, (rows, 1, 2, D)."""
        active = torch.cat([F.silu(row) for row in alone(condition)])
        shared = self.modulation(active).unflatten(-1, (6, -1)) if self.config.shared_modulation else None
        each = [
            block.modulation(active).unflatten(-1, (6, -1)) if shared is None else shared + block.constants
            for block in self.ordered_blocks
        ]
        return each, self.head.modulation(active).unflatten(-1, (2, -1))


class Block(nn.Module):
    """Attention and a feed-forward of width 4 D, both modulated by the condition."""

    def __init__(self, c: VARConfig) -> None:
        super().__init__()
        self.heads = c.heads
        self.scale = 1.0 if c.normalised_attention else 0.25 * c.head_dim**-0.5
        self.qkv = nn.Linear(c.dim, 3 * c.dim, bias=False)  # keys have no bias
        self.q_bias = nn.Parameter(torch.zeros(c.dim))
        self.v_bias = nn.Parameter(torch.zeros(c.dim))
        if c.normalised_attention:
            self.temperature = nn.Parameter(torch.zeros(1, c.heads, 1, 1))
        self.out = nn.Linear(c.dim, c.dim)
        self.fc1 = nn.Linear(c.dim, 4 * c.dim)
        self.fc2 = nn.Linear(4 * c.dim, c.dim)
        if c.shared_modulation:
            self.constants = nn.Parameter(torch.zeros(1, 1, 6, c.dim))
        else:
            self.modulation = nn.Linear(c.dim, 6 * c.dim)

    def forward(self, x: Tensor, modulation: Tensor, store: Store, mask: Tensor | None = None) -> Tensor:
        """Run n places: (rows, n, D) -> (rows, n, D).

        Args:
            x: the places.
            modulation: (rows, 1, 6, D): two gains, two scales, two shifts.
            store: keeps keys and values, and returns those that are attended to.
            mask: (n, seen) bool, true for a visible place; None if all see all.
        """
        gain1, gain2, scale1, scale2, shift1, shift2 = modulation.unbind(2)
        x = x + gain1 * self.out(self._attend(modulated(x, scale1, shift1), store, mask))
        hidden = self.fc1(modulated(x, scale2, shift2))
        return x + gain2 * self.fc2(torch.cat([F.gelu(row, approximate="tanh") for row in alone(hidden)]))

    def _attend(self, x: Tensor, store: Store, mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        parts = (q + self.q_bias, k, v + self.v_bias)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        if hasattr(self, "temperature"):
            q = F.normalize(q.float(), dim=-1) * self.temperature.float().clamp(max=MOST).exp()
            q, k = q.to(v.dtype), F.normalize(k.float(), dim=-1).to(v.dtype)
        return attend(q, *store(k, v), mask, self.scale).transpose(1, 2).flatten(2)


class Head(nn.Module):
    """Modulated projection to the vocabulary."""

    def __init__(self, c: VARConfig) -> None:
        super().__init__()
        self.modulation = nn.Linear(c.dim, 2 * c.dim)
        self.output = nn.Linear(c.dim, c.vocab_size)


def alone(rows: Tensor) -> Sequence[Tensor]:
    """Split a batch into its rows on a CPU, where torch may round a row by the size of its batch."""
    return rows.split(1) if rows.device.type == "cpu" else [rows]


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalise places and modulate them: x (rows, n, D), scale and shift (rows, 1, D)."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift
