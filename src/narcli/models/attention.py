"""Attention of all networks: PyTorch's, except where a device computes it wrongly.

On Apple's devices PyTorch before 2.12 gives wrong results for permuted inputs, and for few queries (its
issues 163597, 169222 and 181133). There inputs are made contiguous. One attention of each number format is
compared with the CPU's; if it still differs, plain products take its place.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

#: Types of devices whose attention is compared with the CPU's.
CHECKED = ("mps",)
#: First release of torch that takes permuted inputs on these devices.
MENDED = (2, 12)
#: (queries, keys) of the comparison: few queries and many, keys that fill no block of 32.
SHAPES = ((1, 39), (7, 70), (16, 255))
#: Largest difference from the CPU, of values around 1.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Attend to keys and values.

    Args:
        q: (B, heads, n, head_dim).
        k, v: (B, heads, L, head_dim).
        mask: bool, true for a visible key, broadcast to (B, heads, n, L); None if all are visible.
        scale: factor of the products; None is head_dim^-0.5.

    Returns:
        Shape as ``q``.
    """
    if q.device.type in CHECKED:
        if not is_right(q.device.type, q.dtype):
            return products(q, k, v, mask, scale)
        if _release() < MENDED:
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def products(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Attend as ``attend``, by plain products; a row that sees nothing is 0."""
    scores = (q @ k.transpose(-1, -2)).float() * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1).nan_to_num().to(v.dtype) @ v


@cache
def is_right(device: str, dtype: torch.dtype) -> bool:
    """Compare the attention of a type of device with the CPU's plain products; warn once if it differs."""
    if device not in CHECKED:
        return True
    generator = torch.Generator().manual_seed(0)
    for queries, keys in SHAPES:
        q, k, v = (torch.randn(2, 2, n, 64, generator=generator) for n in (queries, keys, keys))
        for mask in (None, torch.rand(queries, keys, generator=generator) < 0.7):
            here = None if mask is None else mask.to(device)
            parts = [part.to(device, dtype) for part in (q, k, v)]
            made = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=here)
            wanted = products(q, k, v, mask)
            if not torch.allclose(made.cpu().float(), wanted, rtol=0, atol=TOLERANCE.get(dtype, 5e-2)):
                warnings.warn(
                    f"PyTorch {torch.__version__} computes attention wrongly on {device} in "
                    f"{str(dtype).removeprefix('torch.')}; plain products take its place.",
                    stacklevel=2,
                )
                return False
    return True


def _release() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split(".")[:2])
