"""Sizes and parts of the transformer (arXiv 2503.10696, sections 3.2 and 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..order import NAR, Order, named, parse_name
from .attention import attend
from .network import Weights
from .plan import Rotary

NORM_EPS = 1e-5
#: Kinds of models: images of classes, images from text, videos of classes, videos that go on from frames.
Kind = Literal["image", "text", "video", "frames"]
#: Keeps the keys and values of n places and returns those that are seen, as ``Cache.store``.
Store = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a transformer of any order but VAR's.

    Args:
        grid: (H, W) of an image's tokens or (T, H, W) of a video's.
        dim: model width D.
        layers: layers of the trunk; each axis head but the first adds one.
        heads: attention heads.
        vocab_size: codebook size V.
        ffn_dim: hidden size of the SwiGLU.
        condition: class ids, text features, or the codes of given frames.
        num_classes: classes without the unconditional one; 0 for other conditions.
        condition_tokens: condition tokens C in front of the visual ones.
        caption_dim: width of the text features; 0 for other conditions.
        position: 2-D rotary, or one learned vector a position (videos).
        extra_tokens: rows of the token embedding beyond the codebook (a separator in some video models).
        order: name of the order that it decodes in, as in ``order.named``.
    """

    unguided: ClassVar[float] = 1.0
    fixed: ClassVar[Mapping[str, float]] = {"more_smooth": False}

    grid: tuple[int, ...]
    dim: int
    layers: int
    heads: int
    vocab_size: int
    ffn_dim: int
    condition: Literal["class", "text", "frames"] = "class"
    num_classes: int = 0
    condition_tokens: int = 1
    caption_dim: int = 0
    position: Literal["rotary", "absolute"] = "rotary"
    extra_tokens: int = 0
    order: str = NAR

    @property
    def kind(self) -> Kind:
        """Kind of a model of these sizes."""
        if self.condition != "class":
            return self.condition
        return "video" if len(self.grid) == 3 else "image"

    @cached_property
    def decoding_order(self) -> Order:
        """Order of the grid, as data."""
        return named(self.order, self.grid)

    def decoded_in(self, order: str | None) -> TransformerConfig:
        """Return the sizes with another order, which the network can run as it is; None keeps its own.

        Raises:
            UsageError: the network cannot, or the grid does not have the order.
        """
        if order in (None, self.order):
            return self
        kind, _ = parse_name(order)
        if self.order != "raster" or kind != "zipar":
            raise UsageError(
                f"`order` is {order}, and this model decodes in the order {self.order}.",
                f"Give `order={self.order}`. Raster models, such as llamagen-b-256, take zipar:W too.",
            )
        named(order, self.grid)
        return replace(self, order=order)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.heads

    @property
    def total_layers(self) -> int:
        """Trunk layers and those between the heads."""
        return self.layers + len(self.decoding_order.heads) - 1

    @property
    def positions(self) -> int:
        """Rows of a learned table of positions: NAR's has one for the last cell, which is never fed."""
        return self.condition_tokens + self.decoding_order.cells - (self.order != NAR)

    @property
    def slots(self) -> int:
        """Places whose keys and values are kept, those of the condition included."""
        return self.condition_tokens + self.decoding_order.slots

    @property
    def weights(self) -> Weights:
        """Weights by use."""
        block, heads = 4 * self.dim**2 + 3 * self.dim * self.ffn_dim, len(self.decoding_order.heads)
        return Weights(self.total_layers, self.dim, block, heads * self.dim * self.vocab_size)

    def cache_shape(self, rows: int, length: int) -> tuple[int, ...]:
        """Return the shape of the keys and values of ``length`` places."""
        return self.total_layers, 2, rows, self.heads, length, self.head_dim

    @property
    def activations(self) -> int:
        """Numbers that a row of the largest pass holds at once, in float32, the logits not counted."""
        return max(self.decoding_order.widest, self.condition_tokens) * (8 * self.dim + 3 * self.ffn_dim)


def ffn_dim(dim: int, multiple_of: int = 256) -> int:
    """Hidden size of the released models' SwiGLU: two thirds of 4 D, rounded up."""
    return -(-int(2 * 4 * dim / 3) // multiple_of) * multiple_of


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
        """Run n places: (B, n, D) -> (B, n, D), attending to the keys and values of ``store``."""
        qkv = self._qkv(x)
        qk = qkv[:, :, :2]
        if rotary is not None:
            qk = rotate(qk, *rotary)
        q, k, v = (part.transpose(1, 2) for part in (*qk.unbind(2), qkv[:, :, 2]))
        keys, values = store(k, v)
        if (wider := keys.shape[-1] - self.head_dim) > 0:  # of a ``FoldedCache``
            q = F.pad(q, (0, wider), value=1.0)
        scale = self.head_dim**-0.5
        attended = attend(q, keys, values, mask, scale)
        x = x + self.out(attended[..., : self.head_dim].transpose(1, 2).flatten(2))
        return x + self.ffn(self.ffn_norm(x))

    def forward_train(self, x: Tensor, rotary: Rotary | None, mask: Tensor) -> Tensor:
        """Run all positions at once: (B, C + N, D) -> (B, C + N, D)."""
        qkv = self._qkv(x)
        qk, v = qkv[:, :, :2], qkv[:, :, 2].transpose(1, 2)
        if rotary is not None:
            qk = rotate(qk, *rotary)
        attended = attend_train(qk[:, :, 0].transpose(1, 2), qk[:, :, 1].transpose(1, 2), v, mask)
        x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.ffn(self.ffn_norm(x)))

    def _qkv(self, x: Tensor) -> Tensor:
        """Project (B, n, D) to queries, keys and values without positions: (B, n, 3, heads, head_dim)."""
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
        """Apply the feed-forward: (..., D) -> (..., D)."""
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class RMSNorm(nn.Module):
    """Root mean square normalisation, computed in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis: (..., D) -> (..., D)."""
        # Encoder features are bfloat16 under autocast, and torch warns of mixed formats.
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
        """Embed class ids: (B,) int64 -> (B, 1, D)."""
        embedded: Tensor = self.embedding(class_ids)
        return embedded[:, None]

    def unconditional(self, class_ids: Tensor) -> Tensor:
        """Unconditional counterpart of (B,) class ids for guidance: (B, 1, D)."""
        return self(torch.full_like(class_ids, self.num_classes))


class TextCondition(nn.Module):
    """Text features through a small MLP; a stored array stands for 'no text'."""

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(c.caption_dim, c.dim, bias=False)
        self.fc2 = nn.Linear(c.dim, c.dim, bias=False)
        self.uncond_embedding = nn.Parameter(torch.zeros(c.condition_tokens, c.caption_dim))

    def forward(self, features: Tensor) -> Tensor:
        """Project features: (B, C, caption_dim), left-padded -> (B, C, D)."""
        projected: Tensor = self.fc2(F.gelu(self.fc1(features), approximate="tanh"))
        return projected

    def unconditional(self, features: Tensor) -> Tensor:
        """Unconditional counterpart of (B, C, caption_dim) features for guidance: (B, C, D)."""
        return self(self.uncond_embedding.expand_as(features).to(features.dtype))


class FrameCondition(nn.Module):
    """Codes of given frames and a separator, by the embedding of the network's own tokens (LARP)."""

    def __init__(self, tokens: nn.Embedding) -> None:
        super().__init__()
        self._tokens = (tokens,)  # not a part of this module: the network saves it once

    def forward(self, codes: Tensor) -> Tensor:
        """Embed codes: (B, N) int64 -> (B, N + 1, D); the separator is the last row of the embedding."""
        (tokens,) = self._tokens
        embedded: Tensor = tokens(F.pad(codes, (0, 1), value=tokens.num_embeddings - 1))
        return embedded

    def unconditional(self, codes: Tensor) -> Tensor:
        """Raise UsageError: these models have no input for guidance."""
        raise UsageError("`cfg_scale` above 1 needs an input without condition, which this model lacks.")


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs of (B, n, 2, heads, head_dim) by tables of (n, head_dim / 2)."""
    cos, sin = cos[:, None, None], sin[:, None, None]
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


def attend_train(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attend over all positions: (B, heads, L, head_dim), mask (L, L) or (B, 1, L, L); shape as ``q``."""
    if q.device.type != "cpu":
        return attend(q, k, v, mask)
    # On a CPU the backward pass of the fused kernel takes twice the time of plain products.
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return scores.masked_fill(~mask, -torch.inf).softmax(-1).to(v.dtype) @ v


def hide_padding(mask: Tensor, padding: Tensor) -> Tensor:
    """Hide padding (B, L) in a mask (L, L): (B, 1, L, L); each position still sees itself."""
    diagonal = torch.eye(len(mask), dtype=torch.bool, device=mask.device)
    return ((mask & ~padding[:, None]) | diagonal)[:, None]
