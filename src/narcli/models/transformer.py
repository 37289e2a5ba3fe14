"""The autoregressive transformer of NAR (arXiv 2503.10696, sections 3.2 and 3.3), LlamaGen, PAR and LARP.

One network for images and videos: a Llama-style trunk, and above it the heads of its order. NAR has one
dimension-oriented head for each axis of the grid, the others have one in all. Head ``k`` (right, down, back)
reads the hidden state ``k`` layers above the trunk.

A cell's logits are the mean over the heads of its predecessors. Heads are linear, so the mean's weights
and guidance, which is linear too, are applied to the hidden states, before the projection to the
vocabulary: only as many rows are projected as cells are predicted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..order import NONE, Order
from .blocks import (
    Block,
    ClassCondition,
    FrameCondition,
    Head,
    TextCondition,
    TransformerConfig,
    hide_padding,
)
from .network import Network
from .plan import Cache, FoldedCache, Plan, Rotary


@dataclass
class State:
    """State of a batch between passes.

    Args:
        plan: tensors of the order.
        cache: keys and values of all places fed so far.
        samples: B; there are 2 B rows, conditional ones first, while guidance may be needed.
        hidden: every axis head's normalised input at the last feeds, (rows, n, heads, D).
    """

    plan: Plan
    cache: Cache
    samples: int
    hidden: Tensor

    @property
    def rows(self) -> int:
        """Rows of the batch, including those for guidance."""
        return self.cache.tensors.shape[2]


class NARTransformer(Network):
    """Condition and known tokens in, logits of the next cells out, in any order of one grid.

    ``start``, ``feed`` and ``predict`` execute an order pass by pass; ``forward_train`` runs all passes at
    once with teacher forcing. ``kernels.prepare`` makes faster networks of the same interface, which replace
    ``through``, ``project``, ``empty_cache`` and ``layout``.
    """

    config: TransformerConfig
    condition: ClassCondition | TextCondition | FrameCondition

    def __init__(
        self, config: TransformerConfig, dropout: float = 0.0, parts: NARTransformer | None = None
    ) -> None:
        """Make a network from new parts, or from those of another network of the same sizes."""
        super().__init__()
        self.config = config
        self._plans: dict[tuple[Order, torch.device, int], Plan] = {}
        if parts is not None:
            for name, part in [*parts.named_children(), *parts.named_parameters(recurse=False)]:
                setattr(self, name, part)
            return
        self.dropout = nn.Dropout(dropout)
        self.token_embedding = nn.Embedding(config.vocab_size + config.extra_tokens, config.dim)
        self.condition = self._condition()
        order = config.decoding_order
        if config.position == "absolute":
            self.position_embedding = nn.Parameter(torch.zeros(1, config.positions, config.dim))
        if order.learned:
            self.learned_embedding = nn.Embedding(order.learned, config.dim)
        self.layers = nn.ModuleList(Block(config, dropout) for _ in range(config.total_layers))
        self.heads = nn.ModuleDict({name: Head(config) for name in order.heads})

    def _condition(self) -> ClassCondition | TextCondition | FrameCondition:
        match self.config.condition:
            case "class":
                return ClassCondition(self.config)
            case "text":
                return TextCondition(self.config)
            case _:
                return FrameCondition(self.token_embedding)

    def init_weights(self, std: float = 0.02) -> None:
        """Initialise weights for training as the released code does: normal, axis heads zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
        for head in self.ordered_heads:
            nn.init.zeros_(head.output.weight)
        if self.config.position == "absolute":
            nn.init.normal_(self.position_embedding, std=std)

    @property
    def ordered_heads(self) -> list[Head]:
        """The axis heads from the trunk up."""
        return [cast(Head, head) for head in self.heads.values()]

    @property
    def ordered_layers(self) -> list[Block]:
        """The layers from the bottom up."""
        return [cast(Block, layer) for layer in self.layers]

    def plan(self, order: Order | None = None, padded: bool = False) -> Plan:
        """Return the tensors of an order, made once; a padded condition may be folded into one slot."""
        c, device = self.config, self.token_embedding.weight.device
        key = order or c.decoding_order, device, 1 if padded and self.folds else c.condition_tokens
        if key not in self._plans:
            rotary = c.head_dim if c.position == "rotary" else 0
            self._plans[key] = Plan(key[0], key[2], len(self.heads), rotary, device, self.layout)
        return self._plans[key]

    @property
    def folds(self) -> bool:
        """True if passes attend to a padded condition as to one slot, without a mask.

        Its keys are zero, since rotary tables of the condition are. On a CPU 2 to 5 % are gained.
        """
        return self.config.position == "rotary" and self.token_embedding.weight.device.type != "cpu"

    def start(
        self,
        condition: Tensor,
        samples: int,
        padding: Tensor | None = None,
        order: Order | None = None,
    ) -> State:
        """Read the condition.

        Args:
            condition: (rows, C, D), from ``self.condition``; B rows, or 2 B with guidance, conditional ones
                first.
            samples: B.
            padding: (rows, C) bool, true where a condition token is padding; None without any.
            order: of the same grid; None is the network's own.

        Returns:
            The state from which ``predict`` reads the first pass.
        """
        plan, (rows, length, _) = self.plan(order, padding is not None), condition.shape
        cache: Cache
        if padding is not None and self.folds:
            *sizes, width = self.config.cache_shape(rows, plan.length)
            cache = FoldedCache(condition.new_zeros(*sizes, width + FoldedCache.WIDER), padding)
        else:
            cache = Cache(self.empty_cache(rows, plan.length), padding)
        if plan.order.is_scattered:
            cache.tensors.zero_()
        x = condition
        if self.config.position == "absolute":
            x = x + self.position_embedding[:, :length].to(x.dtype)
        mask = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        if padding is not None:
            mask = hide_padding(mask, padding)
        rotary = self.plan(order).condition_rotary
        hidden = self.through(x, rotary, cache, slice(0, length), length, mask)
        return State(plan, cache, samples, hidden[:, -plan.condition_tokens :])

    def feed(self, state: State, index: int, tokens: Tensor) -> None:
        """Feed the places of a pass to the network.

        Args:
            state: of the batch; its cache and hidden states are updated.
            index: of the pass.
            tokens: (B, N) int64 in generation order; cells that the pass feeds must be drawn.
        """
        step = state.plan.passes[index]
        x = self._embed(tokens, step.tokens, step.learned)  # (B, n, D)
        x = x.repeat(state.rows // state.samples, 1, 1)
        if self.config.position == "absolute":
            x = x + self.position_embedding[:, step.positions]
        mask = state.cache.visible(step.mask, step.seen)
        state.hidden = self.through(x, step.rotary, state.cache, step.slots, step.seen, mask)

    def _embed(self, tokens: Tensor, cells: Tensor, learned: Tensor | None) -> Tensor:
        """Embed the tokens (B, N) of n cells, and learned rows in place of some: (B, n, D)."""
        x: Tensor = self.token_embedding(tokens[:, cells])
        if learned is None:
            return x
        rows = self.learned_embedding(learned.clamp(min=0)).to(x.dtype)
        return torch.where((learned == NONE)[:, None], x, rows)

    def predict(self, state: State, index: int, scale: float | Tensor = 1.0) -> Tensor:
        """Compute the logits of a pass's cells from the last feeds.

        Args:
            state: of the batch.
            index: of the pass.
            scale: guidance scale, as in ``Network.predict``.

        Returns:
            float32 (B, m, V), m cells in the order of the pass.
        """
        return self.project(self._chosen(state, index, scale, state.plan.passes[index].weights))

    def predict_heads(self, state: State, index: int, scale: float = 1.0) -> Tensor:
        """Compute the logits of each axis head alone; arguments as ``predict``.

        Returns:
            float32 (B, m, heads, V). ``predict`` is their mean by the weights of the cell, up to rounding.
        """
        weights = state.plan.passes[index].weights
        chosen = self._chosen(state, index, scale, torch.ones_like(weights))
        ones = torch.eye(weights.shape[1], dtype=chosen.dtype, device=chosen.device)
        return torch.stack([self.project(chosen * one[:, None]) for one in ones], 2)

    def _chosen(self, state: State, index: int, scale: float | Tensor, weights: Tensor) -> Tensor:
        """Take guided hidden states that predict cells, times weights (m, heads): (B, m, heads, D)."""
        step = state.plan.passes[index]
        guided = isinstance(scale, Tensor) or scale > 1
        hidden = state.hidden if guided else state.hidden[: state.samples]
        axes = state.plan.axes
        chosen = hidden[:, step.sources, axes].float() * weights[..., None]  # (rows, m, heads, D)
        if guided:
            conditional, unconditional = chosen.chunk(2)
            chosen = unconditional + scale * (conditional - unconditional)
        return chosen.to(hidden.dtype)

    def forward_train(
        self, condition: Tensor, tokens: Tensor, padding: Tensor | None = None, order: Order | None = None
    ) -> Tensor:
        """Compute the logits of every cell given all cells of earlier passes (teacher forcing).

        Args:
            condition: (B, C, D), from ``self.condition``.
            tokens: (B, N) int64 in raster order.
            padding: (B, C) bool, true where a condition token is padding; None without any.
            order: of the same grid; None is the network's own.

        Returns:
            (B, N, V) in raster order.

        Raises:
            ValueError: the order feeds a slot twice, so it cannot be trained.
        """
        plan = self.plan(order).train
        fed = self._embed(tokens, plan.tokens, plan.learned)
        x = torch.cat([condition, fed.to(condition.dtype)], 1)
        if self.config.position == "absolute":
            first = condition.shape[1]
            x = x + torch.cat(
                [self.position_embedding[:, :first], self.position_embedding[:, plan.positions]], 1
            )
        mask = plan.mask
        if padding is not None:
            mask = hide_padding(mask, F.pad(padding, (0, len(plan.tokens))))
        x = self.dropout(x)
        states = []
        for index, layer in enumerate(self.ordered_layers):
            x = layer.forward_train(x, plan.rotary, mask)
            if (head := index + 1 - self.config.layers) >= 0:
                normed = self.ordered_heads[head].norm(x)
                states.append(normed[:, plan.sources[:, head]] * plan.weights[:, head, None].to(x.dtype))
        # One product for all heads: joined hidden states times joined weights.
        weight = torch.cat([head.output.weight for head in self.ordered_heads], 1)
        return F.linear(torch.cat(states, 2), weight)

    # --- what faster networks replace -------------------------------------------------------------

    def empty_cache(self, rows: int, length: int) -> Tensor:
        """Room for the keys and values of ``length`` slots: (layers, k, rows, ...)."""
        weight, shape = self.token_embedding.weight, self.config.cache_shape(rows, length)
        return torch.empty(shape, dtype=weight.dtype, device=weight.device)

    def layout(self, tables: Rotary) -> Rotary:
        """Convert tables of (n, head_dim / 2) to the form of ``through``."""
        return tables

    def through(
        self,
        x: Tensor,
        rotary: Rotary | None,
        cache: Cache,
        slots: slice | Tensor,
        seen: int,
        mask: Tensor | None,
    ) -> Tensor:
        """Run all layers.

        Args:
            x: (rows, n, D).
            rotary: tables of these places, from ``layout``.
            cache: stores keys and values of these places.
            slots: their slots in it.
            seen: leading slots that are attended to.
            mask: true for a visible slot: (n, seen), (rows, 1, n, seen) or (rows, 1, 1, seen); None for
                all.

        Returns:
            Every axis head's normalised input: (rows, n, heads, D).
        """
        states = []
        for index, layer in enumerate(self.ordered_layers):
            x = layer.decode(x, rotary, partial(cache.store, index, slots=slots, seen=seen), mask)
            if (head := index + 1 - self.config.layers) >= 0:
                states.append(self.ordered_heads[head].norm(x))
        return torch.stack(states, 2)

    def project(self, chosen: Tensor) -> Tensor:
        """Sum the logits of weighted hidden states: (B, m, heads, D) -> float32 (B, m, V)."""
        logits = [head.output(chosen[:, :, k]).float() for k, head in enumerate(self.ordered_heads)]
        return sum(logits[1:], logits[0])
