"""The transformer's layers and the draw of tokens in C++, for processors with AVX-512.

``native.cpp`` is compiled when narcli is installed, if there is a compiler; see ``hatch_build.py``. PyTorch's
operators are used without it, and in bfloat16 if the processor cannot multiply that format or has AMX.
"""

from __future__ import annotations

import ctypes
from functools import cache
from hashlib import sha256
from pathlib import Path
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..devices import dtype_name
from ..errors import CheckpointError
from ..media.textfiles import read_bytes
from ..models.blocks import TransformerConfig
from ..models.larp import Attention, LARPTokenizer
from ..models.plan import Cache, Rotary
from ..models.transformer import NARTransformer
from .packed import joined_outputs, pack

#: The library that ``hatch_build.py`` compiles, and its source.
LIBRARY = Path(__file__).with_name("libnative.so")
SOURCE = LIBRARY.with_name("native.cpp")
MAX_LIBRARY = 2**26  # bytes
#: Columns that lie side by side in a packed weight.
PANEL = 64


class _Layer(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("attention_norm", "ffn_norm", "qkv", "out", "gate_up", "down", "head_norm")
    ]


class _Step(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in ("batch", "fed", "past", "layers", "dim", "heads", "ffn")),
        *((name, ctypes.c_long) for name in ("outputs", "threads", "room", "cache_layer")),
        *((name, ctypes.c_void_p) for name in ("cache", "cos", "sin", "seen")),
        *((name, ctypes.c_long) for name in ("seen_batch", "seen_query", "known")),
        ("slots", ctypes.c_void_p),
    ]


def is_whole(path: Path) -> bool:
    """Tell whether a library is complete: it ends with the SHA-256 of all bytes before.

    The system would map a truncated one, and end the process at a missing page.
    """
    try:
        data = read_bytes(path, MAX_LIBRARY, "a compiled library")
    except CheckpointError:
        return False
    size = sha256().digest_size
    return len(data) > size and sha256(data[:-size]).digest() == data[-size:]


@cache
def library() -> ctypes.CDLL | None:
    """Load the compiled functions; None if missing or damaged, or if torch does not use AVX-512."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not is_whole(LIBRARY):
        return None
    pointer, long = ctypes.c_void_p, ctypes.c_long
    try:
        functions = ctypes.CDLL(str(LIBRARY))  # resolves to the OpenMP that torch has loaded
        functions.narcli_source.restype = ctypes.c_uint32
        if functions.narcli_source() != crc32(SOURCE.read_bytes()):
            return None  # the source was edited, or updated, after narcli was installed
        for name in ("float32", "bfloat16"):
            getattr(functions, f"narcli_forward_{name}").argtypes = [pointer] * 4
            getattr(functions, f"narcli_attend_{name}").argtypes = [*[long] * 4, pointer, pointer, long]
            getattr(functions, f"narcli_linear_{name}").argtypes = [*[long] * 3, *[pointer] * 3, long]
        functions.narcli_kth_largest.argtypes = [long, long, pointer, long, pointer, long]
        functions.narcli_draw.argtypes = [long, long, pointer, pointer, ctypes.c_float, long, pointer, long]
    except (OSError, AttributeError):
        return None
    return functions


def can_run(dtype: torch.dtype, device: torch.device) -> bool:
    """Tell whether the compiled functions work for weights of a dtype on a device."""
    if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16) or library() is None:
        return False
    return _works(dtype)


@cache
def _works(dtype: torch.dtype) -> bool:
    """Tell whether the processor fits, and a small product is right."""
    if dtype == torch.bfloat16 and (
        torch.cpu._is_amx_tile_supported() or not torch.cpu._is_avx512_bf16_supported()
    ):
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(7, 34, generator=generator), torch.randn(70, 34, generator=generator).to(dtype)
    return torch.allclose(NativeLinear(weight)(x), x @ weight.float().T, rtol=0.05, atol=0.05)


def can_fuse(c: TransformerConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Tell whether ``NativeTransformer`` fits a transformer: bfloat16 needs even widths."""
    return not c.head_dim % 2 and not c.ffn_dim % 2 and can_run(dtype, device)


def cache_shape(c: TransformerConfig, rows: int, length: int) -> tuple[int, ...]:
    """Shape of keys and values of ``length`` positions, rows on the axis that ``Cache.keep_rows`` cuts.

    For each head the panels of keys come before those of values.
    """
    return c.total_layers, 1, rows, c.heads, whole_panels(length), c.head_dim + whole_panels(c.head_dim)


def whole_panels(columns: int) -> int:
    """Round a number of columns up to whole panels."""
    return -(-columns // PANEL) * PANEL


def panels(weight: Tensor) -> Tensor:
    """Pack (out, in) as (panels, in, 64), in bfloat16 with pairs of ``in``; missing rows are zero."""
    unit = 2 if weight.dtype == torch.bfloat16 else 1
    padded = F.pad(weight, (0, 0, 0, -len(weight) % PANEL))
    return padded.unflatten(1, (-1, unit)).unflatten(0, (-1, PANEL)).transpose(1, 2).contiguous()


def half_panels(weight: Tensor) -> Tensor:
    """Pack (out, in) as (panels, 32, in); missing rows are zero."""
    return F.pad(weight, (0, 0, 0, -len(weight) % (PANEL // 2))).unflatten(0, (-1, PANEL // 2))


class NativeLinear(nn.Module):
    """``x @ weight.T`` in float32, with inputs rounded to the weight's dtype; even widths in bfloat16."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape = weight.shape
        self.weight = panels(weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> float32 (..., out); a row's result depends on no other row."""
        x, (columns, inner) = x.float().contiguous(), self.shape
        out = x.new_empty(*x.shape[:-1], columns)
        pointers = (tensor.data_ptr() for tensor in (x, self.weight, out))
        sizes = x.shape[:-1].numel(), inner, columns
        _call(f"narcli_linear_{dtype_name(self.weight.dtype)}", *sizes, *pointers, torch.get_num_threads())
        return out


class NativeTransformer(NARTransformer):
    """A transformer whose layers, and the norms of its heads, are the compiled functions.

    It takes over the weights of a plain one, one by one, so memory hardly grows. Values between layers are
    float32.
    """

    def __init__(self, plain: NARTransformer) -> None:
        super().__init__(plain.config, parts=plain)
        pack(self.condition)
        c = self.config
        self.dtype = self.token_embedding.weight.dtype
        self.tensors: list[Tensor] = []
        self.records = (_Layer * c.total_layers)()
        for index, record in enumerate(self.records):
            layer = self.ordered_layers[index]
            gate_up = [half_panels(part.weight.detach()) for part in (layer.ffn.gate, layer.ffn.up)]
            parts = {
                "attention_norm": layer.attention_norm.weight.detach().float().contiguous(),
                "ffn_norm": layer.ffn_norm.weight.detach().float().contiguous(),
                "qkv": panels(layer.qkv.weight.detach()),
                "out": panels(layer.out.weight.detach()),
                "gate_up": panels(torch.cat(gate_up, 1).flatten(0, 1)),
                "down": panels(layer.ffn.down.weight.detach()),
            }
            if index + 1 >= c.layers:
                head = self.ordered_heads[index + 1 - c.layers]
                parts["head_norm"] = head.norm.weight.detach().float().contiguous()
            for name, tensor in parts.items():
                setattr(record, name, tensor.data_ptr())
            self.tensors += parts.values()  # the C++ records point to them
            self.layers[index] = nn.Identity()
        self.outputs = NativeLinear(joined_outputs(self))
        self.train(plain.training)

    def empty_cache(self, rows: int, length: int) -> Tensor:
        """Allocate keys and values of ``length`` slots: (layers, 1, rows, ...)."""
        return torch.empty(cache_shape(self.config, rows, length), dtype=self.dtype)

    def layout(self, tables: Rotary) -> Rotary:
        """Lay out the cosine of each number of a head, and its partner's sine: two of (n, head_dim)."""
        cos, sin = (table.repeat_interleave(2, 1) for table in tables)
        sin[:, ::2].neg_()
        return cos, sin

    def through(
        self,
        x: Tensor,
        rotary: Rotary | None,
        cache: Cache,
        slots: slice | Tensor,
        seen: int,
        mask: Tensor | None,
    ) -> Tensor:
        """Run all layers as the plain network does, in float32."""
        c, (batch, fed, dim) = self.config, x.shape
        x = x.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        states = x.new_empty(batch, fed, len(self.heads), dim)
        first = slots.start if isinstance(slots, slice) else 0
        step = _Step(batch, fed, first, c.total_layers, dim, c.heads, c.ffn_dim)
        step.known = seen
        if not isinstance(slots, slice):
            step.slots = slots.data_ptr()
        step.outputs, step.threads, tensors = states.shape[2], torch.get_num_threads(), cache.tensors
        step.room, step.cache_layer, step.cache = tensors.shape[4], tensors.stride(0), tensors.data_ptr()
        if rotary is not None:
            step.cos, step.sin = (table.data_ptr() for table in rotary)
        if mask is not None:
            shown = mask.contiguous().expand(batch, 1, fed, seen)
            step.seen, step.seen_batch, step.seen_query = shown.data_ptr(), shown.stride(0), shown.stride(2)
        pointers = x.data_ptr(), states.data_ptr()
        _call(f"narcli_forward_{dtype_name(self.dtype)}", ctypes.byref(step), self.records, *pointers)
        return states

    def project(self, chosen: Tensor) -> Tensor:
        """Project as the plain network does, but sum the heads before rounding."""
        logits: Tensor = self.outputs(chosen.flatten(2))
        return logits


class NativeAttention(nn.Module):
    """LARP's self-attention, by the compiled function; a sample depends on no other."""

    def __init__(self, plain: Attention) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = plain.heads, plain.qkv, plain.proj

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each sample: (B, n, D) -> (B, n, D)."""
        attended: Tensor = self.proj(attend(self.qkv(x), self.heads))
        return attended


def compile_attention(tokenizer: LARPTokenizer) -> None:
    """Replace a tokenizer's attention by the compiled function, in place, if it works here."""
    weight = next(tokenizer.parameters())
    if not can_run(weight.dtype, weight.device):
        return
    for block in tokenizer.modules():
        attention = getattr(block, "attn", None)
        if isinstance(attention, Attention) and not attention.qkv.in_features // attention.heads % 2:
            block.attn = NativeAttention(attention)


def attend(qkv: Tensor, heads: int) -> Tensor:
    """Self-attention by heads of an even width; ``can_run`` must hold.

    Args:
        qkv: queries, keys and values, (B, n, 3 D).
        heads: number of heads, which share D.

    Returns:
        (B, n, D). A sample depends on no other.
    """
    qkv, (batch, n, columns) = qkv.contiguous(), qkv.shape
    out = qkv.new_empty(batch, n, columns // 3)
    sizes, pointers = (batch, n, heads, columns // 3 // heads), (qkv.data_ptr(), out.data_ptr())
    _call(f"narcli_attend_{dtype_name(qkv.dtype)}", *sizes, *pointers, torch.get_num_threads())
    return out


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_k: int) -> Tensor:
    """Draw tokens, as ``sampling.draw``; ``can_run`` must hold.

    Args:
        logits: float32 (B, n, V).
        uniform: (B, n).
        temperature: above 0.
        top_k: 0 keeps all.

    Returns:
        (B, n) int64; -1 where the logits are not numbers or infinite.
    """
    logits, uniform = logits.contiguous(), uniform.float().contiguous()
    tokens = torch.empty(uniform.shape, dtype=torch.int64)
    kept = min(top_k, logits.shape[-1])
    pointers = logits.data_ptr(), uniform.data_ptr(), temperature, kept, tokens.data_ptr()
    _call("narcli_draw", uniform.numel(), logits.shape[-1], *pointers, torch.get_num_threads())
    return tokens


def kth_largest(values: Tensor, k: int) -> Tensor:
    """Find the k-th largest value of each row, as ``sampling.kth_largest``; ``can_run`` must hold.

    Args:
        values: float32 (R, V), no NaN.
        k: 1 to V.

    Returns:
        (R, 1) float32.
    """
    values, (rows, columns) = values.contiguous(), values.shape
    out = values.new_empty(rows, 1)
    _call("narcli_kth_largest", rows, columns, values.data_ptr(), k, out.data_ptr(), torch.get_num_threads())
    return out


def _call(function: str, *arguments: object) -> None:
    if getattr(library(), function)(*arguments):
        raise MemoryError(f"{function}: not enough memory")
