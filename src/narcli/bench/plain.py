"""The released algorithm as it is written: the reference of fast paths, in tests and in the bench."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.blocks import TransformerConfig, hide_padding, rotate
from ..models.plan import ROTARY_BASE
from ..models.transformer import NARTransformer
from ..order import NONE
from ..sampling import draw_plain, uniform_draws
from ..settings import SamplingSettings


@dataclass(frozen=True)
class PlainStep:
    """Cells, tokens and logits of a pass, as in ``sampling.Step``."""

    cells: tuple[int, ...]
    tokens: Tensor
    logits: Tensor


@torch.inference_mode()
def generate_plain(
    model: NARTransformer,
    condition: Tensor,
    seeds: Sequence[int],
    settings: SamplingSettings,
    padding: Tensor | None = None,
) -> Iterator[PlainStep]:
    """Sample by the released algorithm as it is written; in float32 the tokens are those of ``generate``.

    It keeps full-length caches in raster order under a mask, and computes all heads for all places. The
    predictors of a cell come from ``Order.predecessors``, not from a plan. Arguments are those of
    ``generate``; the model must not be prepared.
    """
    c, order, first = model.config, model.config.decoding_order, model.config.condition_tokens
    device, dtype = condition.device, model.token_embedding.weight.dtype
    rows = model.condition(condition)
    guided = settings.guided(0)
    if guided:
        rows = torch.cat([rows, model.condition.unconditional(condition)])
    step_of = torch.tensor([*range(-first, 0), *order.step_of], device=device)
    hidden = torch.zeros(len(rows), len(step_of), dtype=torch.bool, device=device)
    if padding is not None:
        hidden[:, :first] = padding.repeat(len(rows) // len(padding), 1)
    mask = hide_padding(step_of[:, None] >= step_of[None, :], hidden)
    rotary = raster_rotary(c, device) if c.position == "rotary" else None
    cache = torch.zeros(
        (c.total_layers, 2, len(rows), c.heads, len(step_of), c.head_dim), dtype=dtype, device=device
    )
    draws = uniform_draws(seeds, order.cells).to(device)
    positions, x = torch.arange(first, device=device), rows
    place, done = {NONE: first - 1}, 0  # of each cell among the last feeds
    for cells in order.steps:
        if c.position == "absolute":
            x = x + model.position_embedding[:, positions].to(x.dtype)
        outputs = []
        for number, layer in enumerate(model.ordered_layers):
            qkv = layer.qkv(layer.attention_norm(x)).unflatten(-1, (3, c.heads, c.head_dim))
            qk, v = qkv[:, :, :2], qkv[:, :, 2]
            if rotary is not None:
                qk = rotate(qk, rotary[0][positions], rotary[1][positions])
            cache[number, 0][:, :, positions] = qk[:, :, 1].transpose(1, 2)
            cache[number, 1][:, :, positions] = v.transpose(1, 2)
            attended = F.scaled_dot_product_attention(
                qk[:, :, 0].transpose(1, 2),
                cache[number, 0],
                cache[number, 1],
                attn_mask=mask[:, :, positions],
            )
            x = x + layer.out(attended.transpose(1, 2).flatten(2))
            x = x + layer.ffn(layer.ffn_norm(x))
            if (k := number + 1 - c.layers) >= 0:
                head = model.ordered_heads[k]
                outputs.append(head.output(head.norm(x)).float())
        by_head = dict(zip(order.heads, outputs, strict=True))
        each = []
        for cell in cells:
            near = [(p.head, p.cell) for p in order.predecessors(cell)] or [(h, NONE) for h in order.heads]
            each.append(torch.stack([by_head[name][:, place[other]] for name, other in near]).mean(0))
        logits = torch.stack(each, 1)
        if guided:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + settings.cfg_scale * (conditional - unconditional)
            if not settings.guided(done):
                logits = conditional
        tokens = draw_plain(logits, draws[:, list(cells)], settings)
        done += len(cells)
        yield PlainStep(cells, tokens, logits)
        place = {cell: index for index, cell in enumerate(cells)}
        positions = torch.tensor(cells, device=device) + first
        x = model.token_embedding(tokens.repeat(2, 1) if guided else tokens)


def raster_rotary(c: TransformerConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of condition and cells in raster order: two tensors (C + N, head_dim / 2)."""
    half = c.head_dim // 2
    frequencies = ROTARY_BASE ** (-2 * torch.arange(half // 2, device=device) / half)
    rows, columns = (torch.arange(size, device=device).float() for size in c.grid)
    h, w = torch.meshgrid(rows, columns, indexing="ij")
    angles = torch.cat([axis.reshape(-1, 1) * frequencies for axis in (h, w)], 1)
    first = (0, 0, c.condition_tokens, 0)
    return F.pad(angles.cos(), first), F.pad(angles.sin(), first)
