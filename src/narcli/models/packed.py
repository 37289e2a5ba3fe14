"""Layers rewritten for inference on a CPU: the same results up to rounding, sooner.

PyTorch lays out the weight of a linear layer anew at every call; for the 2 to 32 rows of a frontier that
costs more than the product. Packing does it once, with the operators that inductor's freezing emits; where
they are missing or fail a small trial, all layers stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .transformer import SwiGLU
from .vq import Upsample, VQTokenizer

#: Rows that the layout is tuned for: a guided frontier of 16 cells.
ROWS = 32


class PackedLinear(nn.Module):
    """``x @ weight.T`` with a weight that only oneDNN can read."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the weight's dtype; a row's result depends on no other row."""
        rows = x.flatten(0, -2)
        # For more rows (in bfloat16), and for a single one (in float32), oneDNN sums in another order, and
        # samples would depend on the batch.
        if 1 < len(rows) <= ROWS:
            return self._multiply(x)
        return torch.cat([self._multiply(part) for part in rows.split(ROWS)]).unflatten(0, x.shape[:-1])

    def _multiply(self, x: Tensor) -> Tensor:
        if len(x) == 1 and x.dim() == 2:
            return self._multiply(x.repeat(2, 1))[:1]
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")
        return out


class PackedSwiGLU(nn.Module):
    """A feed-forward whose gate and up projections are one product."""

    def __init__(self, plain: SwiGLU) -> None:
        super().__init__()
        self.gate_up = PackedLinear(torch.cat([plain.gate.weight, plain.up.weight]).detach())
        self.down = PackedLinear(plain.down.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> the same."""
        gate, up = self.gate_up(x).chunk(2, -1)
        out: Tensor = self.down(F.silu(gate) * up)
        return out


class TransposedUpsample(nn.Module):
    """Nearest upsampling and the 3x3 convolution after it as one transposed 4x4 convolution of stride 2.

    Two of the three taps along each axis fall on the same input pixel, so 4 of 9 products are enough.
    """

    def __init__(self, plain: Upsample) -> None:
        super().__init__()
        weight = plain.conv.weight.detach().float().transpose(0, 1)  # (in, out, 3, 3)
        # Row i of the new kernel is row 2 - i plus row 3 - i of the old one, where there are such.
        sums = torch.zeros(4, 3, device=weight.device)
        for i in range(4):
            sums[i, [k for k in (2 - i, 3 - i) if 0 <= k < 3]] = 1
        weight = (sums @ weight @ sums.T).to(plain.conv.weight.dtype)
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
        self.bias = plain.conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2 H, 2 W)."""
        return F.conv_transpose2d(x, self.weight, self.bias, stride=2, padding=1)


REWRITTEN: dict[type, Callable[[Any], nn.Module]] = {
    nn.Linear: lambda plain: PackedLinear(plain.weight.detach()),
    SwiGLU: PackedSwiGLU,
    Upsample: TransposedUpsample,
}


def pack(model: nn.Module) -> nn.Module:
    """Rewrite the layers of ``model`` that are worth it (no linear ones with a bias), where the machine can.

    The plain weights are let go one by one, so memory hardly grows. A packed model cannot be trained, saved
    or moved to another device.
    """
    for name, child in model.named_children():
        if type(child) not in REWRITTEN or getattr(child, "bias", None) is not None:
            pack(child)
            continue
        weight = next(child.parameters())
        if weight.device.type == "cpu" and can_pack(weight.dtype):
            setattr(model, name, REWRITTEN[type(child)](child))
    return model


def pack_tokenizer(tokenizer: nn.Module) -> None:
    """Prepare a tokenizer for decoding, in place: a convolutional decoder is packed, channels last.

    LARP stays as it is: all its positions go through at once, for which plain layers are as quick.
    """
    if isinstance(tokenizer, VQTokenizer):
        tokenizer.decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        pack(tokenizer.decoder)


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether packed layers of this dtype work here, tried on a small product."""
    if not torch.backends.mkldnn.is_available() or dtype not in (torch.float32, torch.bfloat16):
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 64, generator=generator).to(dtype)
    weight = torch.randn(32, 64, generator=generator).to(dtype)
    try:
        with torch.inference_mode():
            return torch.allclose(PackedLinear(weight)(x), F.linear(x, weight), rtol=0.05, atol=0.05)
    except (AttributeError, RuntimeError):
        return False
