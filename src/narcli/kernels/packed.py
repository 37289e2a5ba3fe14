"""Layers rewritten for inference on a CPU, with the same results up to rounding.

Weights are laid out ahead for oneDNN. PyTorch does so at every call, which for the 2 to 32 rows of a frontier
costs more than the product. Packing uses the operators that inductor's freezing emits. If they are missing or
fail a small trial, layers stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import takewhile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..devices import memory_format
from ..models.blocks import Block, Head, Store, SwiGLU
from ..models.multiscale import MultiscaleTokenizer
from ..models.plan import Rotary
from ..models.transformer import NARTransformer
from ..models.vq import Upsample, VQTokenizer

#: Rows that the layout is made for; it works for any number.
ROWS = 32


class PackedLinear(nn.Module):
    """``x @ weight.T + bias`` with a weight that only oneDNN can read."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.bias = bias
        self.shape, self.dtype = weight.shape, weight.dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the weight's dtype; a row's result depends on no other row."""
        count = x.shape[:-1].numel()
        most = count if count <= SAME_KERNEL else most_rows(*self.shape, self.dtype)
        if count <= most and count == padded_count(count, self.dtype):
            return self._moved(multiply(x, self.weight))
        products = []
        for part in x.flatten(0, -2).split(most):
            padded = part.new_empty(padded_count(len(part), self.dtype), part.shape[1])
            padded[: len(part)] = part  # the other rows are ignored
            products.append(multiply(padded, self.weight)[: len(part)])
        product = products[0] if len(products) == 1 else torch.cat(products)
        return self._moved(product.unflatten(0, x.shape[:-1]))

    def _moved(self, product: Tensor) -> Tensor:
        return product if self.bias is None else product + self.bias


def multiply(rows: Tensor, packed: Tensor) -> Tensor:
    """Multiply (..., in) by a packed weight (out, in): (..., out)."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], "")
    return out


# How oneDNN sums a row depends on the number of rows, and samples must not depend on their batch: all
# products have a number of rows for which the sums are the same.


#: Products of two to this many rows are summed in the same order; larger ones may use another kernel.
SAME_KERNEL = 32
#: Numbers of rows that are tried in float32, where products are slow.
FLOAT32_COUNTS = (64, 96, 128, 192, 256, 384, 512)


@cache
def padded_count(rows: int, dtype: torch.dtype) -> int:
    """Number of rows that a product of ``rows`` rows is padded to.

    A single row may be summed in another order. In bfloat16 more than ``SAME_KERNEL`` rows become a multiple
    of 16, so that few numbers have to be tried. With AMX there are at least 48: the kernel for many rows
    takes hardly longer for 48 rows than the one for few takes for 8.
    """
    if dtype == torch.float32:
        return max(rows, 2)
    if torch.cpu._is_amx_tile_supported():
        rows = max(rows, 48)
    return max(rows, 2) if rows <= SAME_KERNEL else -(-rows // 16) * 16


@cache
def most_rows(out: int, columns: int, dtype: torch.dtype) -> int:
    """Most rows of a product with a weight (out, columns) that are summed as in one of few rows.

    From some number of rows on long sums are cut in pieces. That number depends on the build of torch, so
    some are tried here; a test tries others.
    """
    least = padded_count(SAME_KERNEL, dtype)
    counts = FLOAT32_COUNTS if dtype == torch.float32 else range(least + 16, 193, 16)
    top = -(-counts[-1] // least) * least
    generator = torch.Generator().manual_seed(0)
    # Terms of a sum cancel in pairs; the remaining rounding errors show the order of additions.
    places = torch.randperm(columns, generator=generator)
    half = torch.randn(least, -(-columns // 2), generator=generator)
    x = torch.cat([half, half], 1)[:, places].to(dtype).repeat(top // least, 1)  # every row at several places
    half = torch.randn(64, half.shape[1], generator=generator)
    weight = torch.cat([half, -half], 1)[:, places].to(dtype).repeat(-(-out // 64), 1)[:out]
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    expected = multiply(x[:least], packed).repeat(top // least, 1)
    same = takewhile(lambda n: torch.equal(multiply(x[:n], packed), expected[:n]), counts)
    return max(same, default=least)


class PackedSwiGLU(nn.Module):
    """A feed-forward whose gate and up projections are one product."""

    def __init__(self, plain: SwiGLU) -> None:
        super().__init__()
        self.gate_up = PackedLinear(torch.cat([plain.gate.weight, plain.up.weight]).detach())
        self.down = PackedLinear(plain.down.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Apply the feed-forward: (..., D) -> (..., D)."""
        gate, up = self.gate_up(x).chunk(2, -1)
        out: Tensor = self.down(F.silu(gate) * up)
        return out


class PackedBlock(nn.Module):
    """A block whose positions take fewer and longer operations.

    In a plain block the pairs that a position rotates stand side by side. Here the first halves of all heads
    come first, then the second ones. Queries and keys have the same order, so their products do not change.
    Heads have an even width.
    """

    def __init__(self, plain: Block) -> None:
        super().__init__()
        self.head_dim = plain.head_dim
        weight = plain.qkv.weight.detach()
        qk, v = weight.tensor_split([2 * len(weight) // 3])
        pairs = qk.unflatten(0, (2, -1, self.head_dim // 2, 2))  # q or k, head, pair, half
        self.qkv = PackedLinear(torch.cat([pairs.permute(0, 3, 1, 2, 4).flatten(0, 3), v]))
        self.out = PackedLinear(plain.out.weight.detach())
        self.ffn = PackedSwiGLU(plain.ffn)
        self.attention_norm, self.ffn_norm = plain.attention_norm, plain.ffn_norm

    def decode(self, x: Tensor, rotary: Rotary | None, store: Store, mask: Tensor | None) -> Tensor:
        """Run the block as ``Block.decode``, with tables of ``halves``."""
        qk, v = self.qkv(self.attention_norm(x)).split([2 * x.shape[2], x.shape[2]], -1)
        qk = qk.unflatten(-1, (2, 2, -1))  # (B, n, q or k, half, D / 2)
        if rotary is not None:
            qk = rotate_halves(qk, *rotary)
        qk = qk.unflatten(-1, (-1, self.head_dim // 2)).permute(2, 0, 4, 1, 3, 5)
        q, k = qk.to(v.dtype, memory_format=torch.contiguous_format).flatten(-2)  # (B, heads, n, head_dim)
        v = v.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        attended = F.scaled_dot_product_attention(q, *store(k, v), attn_mask=mask)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.ffn(self.ffn_norm(x))


def halves(tables: Rotary, heads: int) -> Rotary:
    """Make tables for ``rotate_halves``: cosine (n, 1, 1, D / 2), signed sine (n, 1, 2, D / 2)."""
    cos, sin = (table.repeat(1, heads)[:, None, None] for table in tables)
    return cos, torch.cat([-sin, sin], 2)


def rotate_halves(qk: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, n, 2, 2, D / 2), first and second halves of pairs, by the tables: float32, same shape."""
    x = qk.float()
    partners = x.flip(-2)
    # Each operation rounds by itself: fused ones differ at the ends of vectors, so between batches.
    return (x * cos).add_(partners.mul_(sin))


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
    nn.Linear: lambda plain: PackedLinear(
        plain.weight.detach(), None if plain.bias is None else plain.bias.detach()
    ),
    Block: PackedBlock,
    SwiGLU: PackedSwiGLU,
    Upsample: TransposedUpsample,
}


def pack(module: nn.Module) -> None:
    """Rewrite layers inside ``module`` that gain from it, if the machine can.

    Blocks with an odd head width stay. Plain weights are freed one by one, so memory hardly grows.
    """
    for name, child in module.named_children():
        if isinstance(child, Head):
            continue  # its projection is joined with those of the other heads
        if not can_rewrite(child):
            pack(child)
            continue
        weight = next(child.parameters())
        if weight.device.type == "cpu" and can_pack(weight.dtype):
            setattr(module, name, REWRITTEN[type(child)](child))


def can_rewrite(layer: nn.Module) -> bool:
    """Tell whether a layer has a packed form."""
    if isinstance(layer, Block) and layer.head_dim % 2:
        return False
    return type(layer) in REWRITTEN


def pack_decoder(tokenizer: VQTokenizer | MultiscaleTokenizer) -> None:
    """Pack the decoder of a convolutional tokenizer in the device's memory format, in place."""
    decoder: Any = tokenizer.decoder  # releases of torch differ in how they annotate ``to``
    decoder.to(memory_format=memory_format(next(decoder.parameters()).device))
    pack(decoder)


class PackedTransformer(NARTransformer):
    """A transformer of packed layers, which takes over the weights of a plain one."""

    def __init__(self, plain: NARTransformer) -> None:
        super().__init__(plain.config, parts=plain)
        pack(self)
        self.outputs = PackedLinear(joined_outputs(self))

    def layout(self, tables: Rotary) -> Rotary:
        """Lay out tables for ``rotate_halves`` if blocks are packed, else as in the plain network."""
        packed = isinstance(self.layers[0], PackedBlock)
        return halves(tables, self.config.heads) if packed else tables

    def project(self, chosen: Tensor) -> Tensor:
        """Project as the plain network does, but sum the heads before rounding."""
        logits: Tensor = self.outputs(chosen.flatten(2))
        return logits.float()


def joined_outputs(network: NARTransformer) -> Tensor:
    """Take the projections of all axis heads out of the network, side by side: (V, heads D)."""
    weight = torch.cat([head.output.weight.detach() for head in network.ordered_heads], 1)
    for head in network.ordered_heads:
        del head.output
    return weight


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Tell, by a small product, whether packed layers of this dtype work here."""
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
