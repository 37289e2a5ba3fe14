"""The next-neighbor autoregressive transformer (arXiv 2503.10696, sections 3.2 and 3.3).

One network for images and videos: a Llama-style trunk, and above it one dimension-oriented head for
each axis of the grid. Head ``k`` (right, down, back) reads the hidden state ``k`` layers above the trunk.

A cell's logits are the mean over the heads of its predecessors. Heads are linear, so the mean's weights
and guidance, which is linear too, are applied to the hidden states, before the projection to the
vocabulary: only as many rows are projected as cells are predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..order import Order

if TYPE_CHECKING:
    from .native import NativeLayers

#: Base of the rotary frequencies.
ROTARY_BASE = 10000.0
NORM_EPS = 1e-5


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
        return Order(self.grid)

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


class NARTransformer(nn.Module):
    """Condition and known tokens in, logits of the next frontier out.

    ``prefill`` and ``decode`` run one step each on a key/value cache in generation order;
    ``forward_train`` runs all steps at once with teacher forcing.
    """

    def __init__(self, config: TransformerConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.dropout = nn.Dropout(dropout)
        self.token_embedding = nn.Embedding(config.vocab_size + config.extra_tokens, config.dim)
        self.condition = ClassCondition(config) if config.condition == "class" else TextCondition(config)
        if config.position == "absolute":
            length = config.condition_tokens + config.order.cells
            self.position_embedding = nn.Parameter(torch.zeros(1, length, config.dim))
        self.layers = nn.ModuleList(Block(config, dropout) for _ in range(config.total_layers))
        self.heads = nn.ModuleDict({name: Head(config) for name in config.order.heads})
        #: All layers as one module, where ``packed`` made one of them.
        self.fused: NativeLayers | None = None
        #: All heads' projections side by side, likewise.
        self.outputs: nn.Module | None = None
        self.plan = Plan(config)

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
        """The heads from the trunk up."""
        return [cast(Head, self.heads[name]) for name in self.config.order.heads]

    @property
    def ordered_layers(self) -> list[Block]:
        """The layers from the bottom up."""
        return [cast(Block, layer) for layer in self.layers]

    def prefill(self, condition: Tensor, cache: Cache) -> Tensor:
        """Read the condition.

        Args:
            condition: (B, C, D), from ``self.condition``.
            cache: empty; holds the condition's keys and values afterwards.

        Returns:
            Hidden states for ``predict``, (B, C, heads, D).
        """
        length = condition.shape[1]
        x = condition
        if self.config.position == "absolute":
            x = x + self.position_embedding[:, :length].to(x.dtype)
        mask = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        if cache.padding is not None:
            mask = hide_padding(mask, cache.padding)
        return self._through(x, slice(0, length), cache, mask)

    def decode(self, tokens: Tensor, step: int, cache: Cache) -> Tensor:
        """Feed the tokens of one step.

        Args:
            tokens: (B, n) int64, the tokens that step ``step`` decoded, in the order of its cells.
            step: index of that step.
            cache: holds all before; the tokens' keys and values are appended.

        Returns:
            Hidden states for ``predict``, (B, n, heads, D).
        """
        x = self.token_embedding(tokens)  # (B, n, D)
        if self.config.position == "absolute":
            rows = self.plan.steps[step].cells.to(x.device) + self.config.condition_tokens
            x = x + self.position_embedding[:, rows]
        mask = None
        if cache.padding is not None:
            # (B, 1, 1, keys): the padding of the condition stays hidden, all else is seen.
            seen = F.pad(cache.padding, (0, cache.length - cache.padding.shape[1] + x.shape[1]))
            mask = ~seen[:, None, None]
        return self._through(x, slice(cache.length, cache.length + x.shape[1]), cache, mask)

    def predict(self, hidden: Tensor, step: int, scale: float = 1.0) -> Tensor:
        """Logits of the cells of a step.

        Args:
            hidden: (B, n, heads, D) as ``prefill`` (step 0) or ``decode`` of the step before returned them,
                or (2 B, ...), conditional rows first, for classifier-free guidance.
            step: the step to predict.
            scale: guidance scale; used when above 1.

        Returns:
            float32 (B, m, V), m cells in the order of the step.
        """
        plan = self.plan.steps[step]
        sources, weights = plan.sources.to(hidden.device), plan.weights.to(hidden.device)
        heads = torch.arange(sources.shape[1], device=hidden.device)
        chosen = hidden[:, sources, heads].float() * weights[..., None]  # (B, m, heads, D)
        if scale > 1:
            conditional, unconditional = chosen.chunk(2)
            chosen = unconditional + scale * (conditional - unconditional)
        chosen = chosen.to(hidden.dtype)
        if self.outputs is not None:
            return self.outputs(chosen.flatten(2)).float()
        logits = [head.output(chosen[:, :, k]).float() for k, head in enumerate(self.ordered_heads)]
        return sum(logits[1:], logits[0])

    def forward_train(self, condition: Tensor, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        """Teacher forcing: the logits of every cell given all cells of earlier steps.

        Args:
            condition: (B, C, D), from ``self.condition``.
            tokens: (B, N) int64 in raster order.
            padding: (B, C) bool, true where a condition token is padding; None without any.

        Returns:
            (B, N, V) in raster order.
        """
        plan = self.plan
        x = torch.cat([condition, self.token_embedding(tokens).to(condition.dtype)], 1)
        if self.config.position == "absolute":
            x = x + self.position_embedding
        mask = plan.train_mask.to(x.device)
        if padding is not None:
            mask = hide_padding(mask, F.pad(padding, (0, tokens.shape[1])))
        rotary = plan.train_rotary(x.device)
        x = self.dropout(x)
        states = []
        for index, layer in enumerate(self.ordered_layers):
            x = layer.forward_train(x, rotary, mask)
            if (head := index + 1 - self.config.layers) >= 0:
                normed = self.ordered_heads[head].norm(x)
                sources = plan.train_sources[:, head].to(x.device)
                weights = plan.train_weights[:, head, None].to(x.device, x.dtype)
                states.append(normed[:, sources] * weights)
        # One product for all heads: hidden states side by side times weights side by side.
        weight = torch.cat([head.output.weight for head in self.ordered_heads], 1)
        return F.linear(torch.cat(states, 2), weight)

    def _through(self, x: Tensor, places: slice, cache: Cache, mask: Tensor | None) -> Tensor:
        """(B, n, D) at places of the generation order through all layers -> every head's normalised input.

        That is (B, n, heads, D).
        """
        rotary = None
        if self.config.position == "rotary":
            rotary = (self.fused or self.ordered_layers[0]).rotary(self.plan, places, x.device)
        if self.fused is not None:
            hidden: Tensor = self.fused(x, rotary, cache.tensors, cache.length, mask)
            cache.length += x.shape[1]
            return hidden
        states = []
        for index, layer in enumerate(self.ordered_layers):
            x = layer.decode(x, rotary, cache, index, mask)
            if (head := index + 1 - self.config.layers) >= 0:
                states.append(self.ordered_heads[head].norm(x))
        cache.length += x.shape[1]
        return torch.stack(states, 2)


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

    def decode(
        self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, cache: Cache, layer: int, mask: Tensor | None
    ) -> Tensor:
        """(B, n, D) -> (B, n, D), appending to the cache of this layer."""
        qkv = self._qkv(x)
        qk = qkv[:, :, :2]
        if rotary is not None:
            qk = rotate(qk, *rotary)
        q, k, v = (part.transpose(1, 2) for part in (*qk.unbind(2), qkv[:, :, 2]))
        attended = F.scaled_dot_product_attention(q, *cache.append(layer, k, v), attn_mask=mask)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.ffn(self.ffn_norm(x))

    def forward_train(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, mask: Tensor) -> Tensor:
        """(B, C + N, D) -> the same, all positions at once."""
        qkv = self._qkv(x)
        qk, v = qkv[:, :, :2], qkv[:, :, 2].transpose(1, 2)
        if rotary is not None:
            qk = rotate(qk, *rotary)
        attended = attend_train(qk[:, :, 0].transpose(1, 2), qk[:, :, 1].transpose(1, 2), v, mask)
        x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.ffn(self.ffn_norm(x)))

    @staticmethod
    def rotary(plan: Plan, places: slice, device: torch.device) -> tuple[Tensor, Tensor]:
        """What ``decode`` takes of places in generation order, condition first: see ``rotate``."""
        cos, sin = plan.generation_rotary
        return cos[places].to(device), sin[places].to(device)

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


class Cache:
    """Keys and values of all layers in generation order, allocated once.

    Args:
        model: whose layers are cached.
        rows: batch rows, those for guidance included.
        padding: (rows, C) bool, true where a condition token is padding; None without any.
    """

    def __init__(self, model: NARTransformer, rows: int, padding: Tensor | None = None) -> None:
        c = model.config
        weight = model.token_embedding.weight
        # The tokens of the last step are never fed, so their keys are never needed.
        length = c.condition_tokens + c.order.cells - len(c.order.steps[-1])
        if model.fused is not None:
            self.tensors = model.fused.empty_cache(rows, length)
        else:
            shape = (c.total_layers, 2, rows, c.heads, length, c.head_dim)
            self.tensors = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        self.length = 0
        self.padding = padding if padding is not None and bool(padding.any()) else None

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store those of n cells, (B, heads, n, d); the layer's so far, (B, heads, all, d)."""
        end = self.length + keys.shape[2]
        stored = self.tensors[layer]
        stored[0, :, :, self.length : end] = keys
        stored[1, :, :, self.length : end] = values
        return stored[0, :, :, :end], stored[1, :, :, :end]

    def keep_rows(self, rows: int) -> None:
        """Go on with the first ``rows`` rows only."""
        self.tensors = self.tensors[:, :, :rows]
        if self.padding is not None:
            self.padding = self.padding[:rows]


@dataclass(frozen=True)
class StepPlan:
    """One step of the order as index tensors.

    Args:
        cells: (n,) flat indices of the cells that the step decodes.
        sources: (n, heads) for each cell and head the place, among the tokens fed last, of the predecessor.
        weights: (n, heads) 1 / number of predecessors, 0 where the head has none.
    """

    cells: Tensor
    sources: Tensor
    weights: Tensor


class Plan:
    """The order as tensors, made once: nothing below computes a coordinate."""

    def __init__(self, config: TransformerConfig) -> None:
        self.config = config

    @cached_property
    def steps(self) -> list[StepPlan]:
        """One entry a step."""
        order, heads = self.config.order, len(self.config.order.heads)
        corner = torch.full((1, heads), self.config.condition_tokens - 1)
        plans = [StepPlan(torch.tensor(order.steps[0]), corner, torch.full((1, heads), 1 / heads))]
        for before, cells in zip(order.steps, order.steps[1:], strict=False):
            place = {cell: index for index, cell in enumerate(before)}
            plans.append(StepPlan(torch.tensor(cells), *self._sources(cells, place)))
        return plans

    @cached_property
    def train_sources(self) -> Tensor:
        """(N, heads), raster order: the place of each predecessor in the training sequence."""
        return self._train[0]

    @cached_property
    def train_weights(self) -> Tensor:
        """(N, heads), as in StepPlan."""
        return self._train[1]

    @cached_property
    def _train(self) -> tuple[Tensor, Tensor]:
        c = self.config
        place = {cell: c.condition_tokens + cell for cell in range(c.order.cells)}
        sources, weights = self._sources(range(c.order.cells), place)
        sources[0], weights[0] = c.condition_tokens - 1, 1 / len(c.order.heads)
        return sources, weights

    @cached_property
    def train_mask(self) -> Tensor:
        """(C + N, C + N) bool, true where the row may see the column: the proximity mask of section 3.2."""
        c = self.config.condition_tokens
        step = torch.tensor([*range(-c, 0), *self.config.order.step_of])
        return step[:, None] >= step[None, :]

    def _sources(self, cells: Sequence[int], place: dict[int, int]) -> tuple[Tensor, Tensor]:
        order = self.config.order
        sources = torch.zeros(len(cells), len(order.heads), dtype=torch.int64)
        weights = torch.zeros(len(cells), len(order.heads))
        for row, cell in enumerate(cells):
            predecessors = order.predecessors(cell)
            for predecessor in predecessors:
                head = order.heads.index(predecessor.head)
                sources[row, head] = place[predecessor.cell]
                weights[row, head] = 1 / len(predecessors)
        return sources, weights

    @cached_property
    def _angles(self) -> Tensor:
        """(N, head_dim / 2) angle of each interleaved pair, in raster order."""
        half = self.config.head_dim // 2
        frequencies = ROTARY_BASE ** (-2 * torch.arange(half // 2).float() / half)
        rows, columns = self.config.grid
        h = torch.arange(rows).repeat_interleave(columns).float()
        w = torch.arange(columns).repeat(rows).float()
        return torch.cat([h[:, None] * frequencies, w[:, None] * frequencies], 1)

    @cached_property
    def generation_rotary(self) -> tuple[Tensor, Tensor]:
        """Tables for ``rotate``, generation order, condition first: twice (C + N, head_dim / 2)."""
        return self._tables(self._angles[torch.tensor(self.config.order.generation)])

    @cached_property
    def _raster_table(self) -> tuple[Tensor, Tensor]:
        """The same in raster order."""
        return self._tables(self._angles)

    def _tables(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        first = (0, 0, self.config.condition_tokens, 0)
        return F.pad(angles.cos(), first), F.pad(angles.sin(), first)

    def train_rotary(self, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Tables of condition and cells in raster order; None without rotary."""
        if self.config.position != "rotary":
            return None
        cos, sin = self._raster_table
        return cos.to(device), sin.to(device)


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
