"""Linear layers with weights laid out ahead for oneDNN, for inference on a CPU.

PyTorch lays a weight out anew at every call; for the 2 to 32 rows of a frontier that costs more than the
product. Packing does it once. The operators are those that inductor's freezing emits; where
they are missing or fail a small trial, the plain layers stay.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


def pack(model: nn.Module) -> nn.Module:
    """Replace the (bias-free) linear layers of ``model`` by packed ones, in place, where the machine can.

    The plain weights are let go one by one, so memory hardly grows. A packed model cannot be trained, saved
    or moved to another device.
    """
    for name, child in model.named_children():
        if not isinstance(child, nn.Linear):
            pack(child)
        elif child.weight.device.type == "cpu" and can_pack(child.weight.dtype):
            setattr(model, name, PackedLinear(child.weight.detach()))
    return model


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
