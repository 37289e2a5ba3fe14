"""Attention for inference: PyTorch's fused kernel, or two products where that one is slow."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

#: Scores of one sample in a step below which it is the fused kernel: a product of a new size costs some 2 ms
#: once, which smaller ones do not win back in a run.
FEW = 200_000
#: Scores that are held at once, if a head has no more.
SCORES = 2**23


def attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot product attention.

    Args:
        q: (B, heads, n, d).
        keys, values: (B, heads, m, d).
        mask: true where a key is seen: (n, m), (B, 1, n, m) or (B, 1, 1, m); None where all are.

    Returns:
        (B, heads, n, d). A row depends on no other row.
    """
    shape, n, m = q.shape, q.shape[2], keys.shape[2]
    few = shape[1] * n * m < FEW  # of one sample, as results must not depend on how many there are
    if few or torch.is_grad_enabled() or q.device.type != "cpu" or not attends_by_products(q.dtype):
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    q, keys, values = q.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1)
    hidden = None if mask is None else (~mask).expand(*shape[:2], n, m).flatten(0, 1)
    most = max(1, SCORES // (n * m))
    parts = [slice(first, first + most) for first in range(0, len(q), most)]
    found = [by_products(q[p], keys[p], values[p], None if hidden is None else hidden[p]) for p in parts]
    return (found[0] if len(found) == 1 else torch.cat(found)).unflatten(0, shape[:2])


def by_products(q: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None = None) -> Tensor:
    """The same of (heads, n, d) and (heads, m, d); ``hidden``, (heads, n, m), says what is not seen."""
    empty = q.new_empty(()).expand(len(q), q.shape[1], keys.shape[1])
    # As they are in a cache, with room after each head, PyTorch would copy them across, which takes longer.
    across = keys.contiguous().transpose(1, 2)
    scores = torch.baddbmm(empty, q, across, beta=0, alpha=q.shape[2] ** -0.5)
    if hidden is not None:
        scores.masked_fill_(hidden, -torch.inf)
    return torch.bmm(scores.softmax(-1, dtype=torch.float32).to(q.dtype), values)


@cache
def attends_by_products(dtype: torch.dtype) -> bool:
    """Whether two products, and a softmax between them, are used here.

    They are in bfloat16 without AMX, where they take less than half of the fused kernel's time. Scores are
    then rounded to bfloat16. A product must not depend on how many are made at once, which is tried.
    """
    if dtype != torch.bfloat16 or not torch.cpu._is_avx512_bf16_supported():
        return False
    if torch.cpu._is_amx_tile_supported():
        return False
    generator = torch.Generator().manual_seed(0)
    for n, m in ((1, 2), (2, 237), (16, 137), (136, 601), (32, 1101)):
        q, keys, values = (torch.randn(24, rows, 64, generator=generator).to(dtype) for rows in (n, m, m))
        expected = by_products(q, keys, values)
        for heads in (1, 2, 3, 12):
            if not torch.equal(by_products(q[:heads], keys[:heads], values[:heads]), expected[:heads]):
                return False
    return True
