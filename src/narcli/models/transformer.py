"""The next-neighbor autoregressive transformer (arXiv 2503.10696, sections 3.2 and 3.3).

One network for images and videos: a Llama-style trunk, and above it one dimension-oriented head for
each axis of the grid. Head ``k`` (right, down, back) reads the hidden state ``k`` layers above the trunk.

A cell's logits are the mean over the heads of its predecessors. Heads are linear, so the mean's weights
and guidance, which is linear too, are applied to the hidden states, before the projection to the
vocabulary: only as many rows are projected as cells are predicted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..order import Order, neighbor
from .plan import Cache, Plan, Rotary

NORM_EPS = 1e-5
#: Keeps the keys and values of n places and returns those that are seen, as ``Cache.store``.
Store = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a NAR transformer.

    Args:
        grid: (H, W) of an image's tokens or (T, H, W) of a video's.
        dim: model width D.
        layers: layers of the trunk; each head but the first adds one.
        heads: attention heads.
        vocab_size: codebook size V.
        ffn_dim: hidden size of the SwiGLU.
        condition: class ids or text features.
        num_classes: classes, the unconditional one not counted; 0 for text.
        condition_tokens: condition tokens C in front of the visual ones.
        caption_dim: width of the text features; 0 for classes.
        position: 2-D rotary, or one learned vector a position (videos).
        extra_tokens: rows of the token embedding beyond the codebook (a separator in some video models).
    """

    grid: tuple[int, ...]
    dim: int
    layers: int
    heads: int
    vocab_size: int
    ffn_dim: int
    condition: Literal["class", "text"] = "class"
    num_classes: int = 0
    condition_tokens: int = 1
    caption_dim: int = 0
    position: Literal["rotary", "absolute"] = "rotary"
    extra_tokens: int = 0

    @cached_property
    def order(self) -> Order:
        """Decoding order of the grid."""
        return neighbor(self.grid)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.heads

    @property
    def total_layers(self) -> int:
        """Trunk layers and those between the heads."""
        return self.layers + len(self.grid) - 1


def ffn_dim(dim: int, multiple_of: int = 256) -> int:
    """Hidden size of the released models' SwiGLU: two thirds of 4 D, rounded up."""
    return -(-int(2 * 4 * dim / 3) // multiple_of) * multiple_of


@dataclass
class State:
    """What a batch keeps from pass to pass.

    Args:
        plan: the order that is executed.
        cache: keys and values of all places fed so far.
        samples: B; there are 2 B rows, conditional ones first, while guidance may be needed.
        hidden: every axis head's normalised input at the places fed last, (rows, n, heads, D).
    """

    plan: Plan
    cache: Cache
    samples: int
    hidden: Tensor

    @property
    def rows(self) -> int:
        """Rows of the batch, those for guidance included."""
        return self.cache.tensors.shape[2]


class NARTransformer(nn.Module):
    """Condition and known tokens in, logits of the next cells out, in any order of one grid.

    ``start``, ``feed`` and ``predict`` execute an order pass by pass; ``forward_train`` runs all passes at
    once with teacher forcing. ``kernels.prepare`` makes faster networks of the same face, which replace
    ``through``, ``project``, ``empty_cache`` and ``layout``.
    """

    def __init__(
        self, config: TransformerConfig, dropout: float = 0.0, parts: NARTransformer | None = None
    ) -> None:
        """Make a network of new parts, or of those of another one of the same sizes."""
        super().__init__()
        self.config = config
        self._plans: dict[tuple[Order, torch.device], Plan] = {}
        if parts is not None:
            for name, part in [*parts.named_children(), *parts.named_parameters(recurse=False)]:
                setattr(self, name, part)
            return
        self.dropout = nn.Dropout(dropout)
        self.token_embedding = nn.Embedding(config.vocab_size + config.extra_tokens, config.dim)
        self.condition = ClassCondition(config) if config.condition == "class" else TextCondition(config)
        if config.position == "absolute":
            length = config.condition_tokens + config.order.cells
            self.position_embedding = nn.Parameter(torch.zeros(1, length, config.dim))
        self.layers = nn.ModuleList(Block(config, dropout) for _ in range(config.total_layers))
        self.heads = nn.ModuleDict({name: Head(config) for name in config.order.heads})

    def init_weights(self, std: float = 0.02) -> None:
        """Fresh weights for training: normal, heads zero, as the released code does."""
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

    def plan(self, order: Order | None = None) -> Plan:
        """The tensors of an order, made once; None is the order that the network was trained in."""
        c, device = self.config, self.token_embedding.weight.device
        order = order or c.order
        if (order, device) not in self._plans:
            rotary = c.head_dim if c.position == "rotary" else 0
            self._plans[order, device] = Plan(
                order, c.condition_tokens, len(self.heads), rotary, device, self.layout
            )
        return self._plans[order, device]

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
        plan, (rows, length, _) = self.plan(order), condition.shape
        cache = Cache(self.empty_cache(rows, plan.length), padding)
        if plan.order.has_holes:
            cache.tensors.zero_()
        x = condition
        if self.config.position == "absolute":
            x = x + self.position_embedding[:, :length].to(x.dtype)
        mask = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        if cache.padding is not None:
            mask = hide_padding(mask, cache.padding)
        hidden = self.through(x, plan.condition_rotary, cache, slice(0, length), length, mask)
        return State(plan, cache, samples, hidden)

    def feed(self, state: State, index: int, tokens: Tensor) -> None:
        """Feed what a pass feeds.

        Args:
            state: of the batch; its cache and hidden states go on.
            index: of the pass.
            tokens: (B, N) int64 in raster order, known where the pass reads them.
        """
        step = state.plan.passes[index]
        x = self.token_embedding(
            tokens[:, step.tokens].repeat(state.rows // state.samples, 1)
        )  # (rows, n, D)
        if self.config.position == "absolute":
            x = x + self.position_embedding[:, step.positions]
        mask = state.cache.visible(step.mask, step.seen)
        state.hidden = self.through(x, step.rotary, state.cache, step.slots, step.seen, mask)

    def predict(self, state: State, index: int, scale: float = 1.0) -> Tensor:
        """Logits of the cells of a pass, from what was fed last.

        Args:
            state: of the batch.
            index: of the pass.
            scale: guidance scale; used when above 1, which takes 2 B rows.

        Returns:
            float32 (B, m, V), m cells in the order of the pass.
        """
        step = state.plan.passes[index]
        heads = torch.arange(step.sources.shape[1], device=state.hidden.device)
        hidden = state.hidden if scale > 1 else state.hidden[: state.samples]
        chosen = hidden[:, step.sources, heads].float() * step.weights[..., None]  # (rows, m, heads, D)
        if scale > 1:
            conditional, unconditional = chosen.chunk(2)
            chosen = unconditional + scale * (conditional - unconditional)
        return self.project(chosen.to(hidden.dtype))

    def forward_train(
        self, condition: Tensor, tokens: Tensor, padding: Tensor | None = None, order: Order | None = None
    ) -> Tensor:
        """Teacher forcing: the logits of every cell given all cells of earlier passes.

        Args:
            condition: (B, C, D), from ``self.condition``.
            tokens: (B, N) int64 in raster order.
            padding: (B, C) bool, true where a condition token is padding; None without any.
            order: of the same grid; None is the network's own.

        Returns:
            (B, N, V) in raster order.

        Raises:
            ValueError: the order cannot be trained so.
        """
        plan = self.plan(order).train
        x = torch.cat([condition, self.token_embedding(tokens[:, plan.tokens]).to(condition.dtype)], 1)
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
        # One product for all heads: hidden states side by side times weights side by side.
        weight = torch.cat([head.output.weight for head in self.ordered_heads], 1)
        return F.linear(torch.cat(states, 2), weight)

    # --- what faster networks replace -------------------------------------------------------------

    def empty_cache(self, rows: int, length: int) -> Tensor:
        """Room for the keys and values of ``length`` slots: (layers, k, rows, ...)."""
        c, weight = self.config, self.token_embedding.weight
        shape = (c.total_layers, 2, rows, c.heads, length, c.head_dim)
        return torch.empty(shape, dtype=weight.dtype, device=weight.device)

    def layout(self, tables: Rotary) -> Rotary:
        """Tables of (n, head_dim / 2) as ``through`` takes them."""
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
            cache: keeps the keys and values of these places.
            slots: where it keeps them.
            seen: leading slots that are attended to.
            mask: true where a slot is seen: (n, seen), (rows, 1, n, seen) or (rows, 1, 1, seen); None for
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
        """Weighted hidden states (B, m, heads, D) -> the sum of the heads' logits, float32 (B, m, V)."""
        logits = [head.output(chosen[:, :, k]).float() for k, head in enumerate(self.ordered_heads)]
        return sum(logits[1:], logits[0])


class Block(nn.Module):
    """Pre-norm attention and SwiGLU, no biases."""

    def __init__(self, c: TransformerConfig, dropout: float) -> None:
        super().__init__()
        self.head_dim = c.head_dim
        self.attention_norm = RMSNorm(c.dim)
        self.qkv = nn.Linear(c.dim, 3 * c.dim, bias=False)
        self.out = nn.Linear(c.dim, c.dim, bias=False)
        self.ffn_norm = RMSNorm(c.dim)
        self.ffn = SwiGLU(c.dim, c.ffn_dim)
        self.dropout = nn.Dropout(dropout)

    def decode(self, x: Tensor, rotary: Rotary | None, store: Store, mask: Tensor | None) -> Tensor:
        """(B, n, D) -> (B, n, D), attending to what ``store`` keeps of this layer."""
        qkv = self._qkv(x)
        qk = qkv[:, :, :2]
        if rotary is not None:
            qk = rotate(qk, *rotary)
        q, k, v = (part.transpose(1, 2) for part in (*qk.unbind(2), qkv[:, :, 2]))
        attended = F.scaled_dot_product_attention(q, *store(k, v), attn_mask=mask)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.ffn(self.ffn_norm(x))

    def forward_train(self, x: Tensor, rotary: Rotary | None, mask: Tensor) -> Tensor:
        """(B, C + N, D) -> the same, all positions at once."""
        qkv = self._qkv(x)
        qk, v = qkv[:, :, :2], qkv[:, :, 2].transpose(1, 2)
        if rotary is not None:
            qk = rotate(qk, *rotary)
        attended = attend_train(qk[:, :, 0].transpose(1, 2), qk[:, :, 1].transpose(1, 2), v, mask)
        x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.ffn(self.ffn_norm(x)))

    def _qkv(self, x: Tensor) -> Tensor:
        """(B, n, D) -> queries, keys and values without positions: (B, n, 3, heads, head_dim)."""
        qkv: Tensor = self.qkv(self.attention_norm(x))
        return qkv.unflatten(-1, (3, -1, self.head_dim))


class SwiGLU(nn.Module):
    """Gated feed-forward, no biases."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> the same."""
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class RMSNorm(nn.Module):
    """Root mean square normalisation, computed in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> the same."""
        # Features of an encoder are bfloat16 under autocast, and torch warns of mixed formats.
        return F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, NORM_EPS)


class Head(nn.Module):
    """A dimension-oriented head: predicts the neighbor along one axis."""

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(c.dim)
        self.output = nn.Linear(c.dim, c.vocab_size, bias=False)


class ClassCondition(nn.Module):
    """Class ids as one condition token; the last row stands for 'no class'."""

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.num_classes = c.num_classes
        self.embedding = nn.Embedding(c.num_classes + 1, c.dim)

    def forward(self, class_ids: Tensor) -> Tensor:
        """(B,) int64 -> (B, 1, D)."""
        embedded: Tensor = self.embedding(class_ids)
        return embedded[:, None]

    def unconditional(self, class_ids: Tensor) -> Tensor:
        """What guidance compares (B,) class ids with: (B, 1, D)."""
        return self(torch.full_like(class_ids, self.num_classes))


class TextCondition(nn.Module):
    """Text features through a small MLP; a stored array stands for 'no text'."""

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(c.caption_dim, c.dim, bias=False)
        self.fc2 = nn.Linear(c.dim, c.dim, bias=False)
        self.uncond_embedding = nn.Parameter(torch.zeros(c.condition_tokens, c.caption_dim))

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, caption_dim), left-padded -> (B, C, D)."""
        projected: Tensor = self.fc2(F.gelu(self.fc1(features), approximate="tanh"))
        return projected

    def unconditional(self, features: Tensor) -> Tensor:
        """What guidance compares (B, C, caption_dim) features with: (B, C, D)."""
        return self(self.uncond_embedding.expand_as(features).to(features.dtype))


# Positions: interleaved pairs are rotated; the condition's tables are zero, not angle zero.


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs of (B, n, 2, heads, head_dim) by tables of (n, head_dim / 2)."""
    cos, sin = cos[:, None, None], sin[:, None, None]
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


def attend_train(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention over all positions, (B, heads, L, head_dim) -> the same; mask (L, L) or (B, 1, L, L)."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # On a CPU the backward pass of the fused kernel takes twice the time of plain products.
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return scores.masked_fill(~mask, -torch.inf).softmax(-1).to(v.dtype) @ v


def hide_padding(mask: Tensor, padding: Tensor) -> Tensor:
    """(L, L) and (B, L) -> (B, 1, L, L): nobody sees padding, but each position sees itself."""
    diagonal = torch.eye(len(mask), dtype=torch.bool, device=mask.device)
    return ((mask & ~padding[:, None]) | diagonal)[:, None]
