"""The transformer's layers and the draw of tokens in C++, for processors with AVX-512.

``native.cpp`` is compiled when narcli is installed, where there is a compiler; see ``hatch_build.py``. Where
it is missing, and in bfloat16 where the processor cannot multiply that or has AMX, PyTorch's operators serve.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .transformer import NARTransformer

#: What ``hatch_build.py`` compiles.
LIBRARY = Path(__file__).with_name("libnative.so")
#: What it is compiled from; not there in a wheel.
SOURCE = LIBRARY.with_name("native.cpp")
#: Columns that lie side by side in a packed weight.
PANEL = 64


class _Layer(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("attention_norm", "ffn_norm", "qkv", "out", "gate_up", "down", "head_norm", "cache")
    ]


class _Step(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in ("batch", "fed", "past", "layers", "dim", "heads")),
        *((name, ctypes.c_long) for name in ("ffn", "room")),
        *((name, ctypes.c_void_p) for name in ("cos", "sin", "seen")),
        *((name, ctypes.c_long) for name in ("seen_batch", "seen_query", "outputs")),
        ("threads", ctypes.c_int),
    ]


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions; None where there are none, or the processor or torch is not what they need."""
    if not LIBRARY.exists() or not torch.cpu._is_avx512_supported():
        return None
    try:
        found = ctypes.CDLL(str(LIBRARY))  # finds the OpenMP that torch has loaded
    except OSError:
        return None
    found.narcli_source.restype = ctypes.c_uint32
    if SOURCE.exists() and found.narcli_source() != crc32(SOURCE.read_bytes()):
        return None  # it was edited, or updated, after narcli was installed
    pointer, long, threads = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    for name in ("float32", "bfloat16"):
        getattr(found, f"narcli_forward_{name}").argtypes = [pointer] * 4
        getattr(found, f"narcli_linear_{name}").argtypes = [*[long] * 3, *[pointer] * 3, threads]
    found.narcli_draw.argtypes = [long, long, pointer, pointer, ctypes.c_float, long, pointer, threads]
    return found


def can_run(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether layers whose weights have a dtype, on a device, are run by the library."""
    if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16) or library() is None:
        return False
    if dtype == torch.float32:
        return True
    return torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()


def _call(function: str, *arguments: object) -> None:
    if getattr(library(), function)(*arguments):
        raise MemoryError(f"{function}: not enough memory")


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def panels(weight: Tensor) -> Tensor:
    """(out, in) -> (panels, in, 64), in bfloat16 two of ``in`` side by side; what is missing is zero."""
    unit = 2 if weight.dtype == torch.bfloat16 else 1
    out, columns = weight.shape
    padded = F.pad(weight, (0, -columns % unit, 0, -out % PANEL))
    return padded.unflatten(1, (-1, unit)).unflatten(0, (-1, PANEL)).transpose(1, 2).contiguous()


def whole_panels(columns: int) -> int:
    """Columns, rounded up to those of whole panels."""
    return -(-columns // PANEL) * PANEL


class NativeLinear(nn.Module):
    """``x @ weight.T``, in float32 but for the products."""

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
        _call(f"narcli_linear_{_named(self.weight.dtype)}", *sizes, *pointers, torch.get_num_threads())
        return out


class NativeLayers(nn.Module):
    """All layers of a transformer, and the norms of its heads.

    The plain layers are let go one by one, so memory hardly grows. What goes from layer to layer is float32.
    """

    def __init__(self, model: NARTransformer) -> None:
        super().__init__()
        c = self.config = model.config
        self.dtype = model.token_embedding.weight.dtype
        self.tensors: list[Tensor] = []
        self.records = (_Layer * c.total_layers)()
        for index, record in enumerate(self.records):
            layer = model.ordered_layers[index]
            gate_up = [halves(part.weight.detach()) for part in (layer.ffn.gate, layer.ffn.up)]
            parts = {
                "attention_norm": layer.attention_norm.weight.detach().float().contiguous(),
                "ffn_norm": layer.ffn_norm.weight.detach().float().contiguous(),
                "qkv": panels(layer.qkv.weight.detach()),
                "out": panels(layer.out.weight.detach()),
                "gate_up": panels(torch.cat(gate_up, 1).flatten(0, 1)),
                "down": panels(layer.ffn.down.weight.detach()),
            }
            if index + 1 >= c.layers:
                head = model.ordered_heads[index + 1 - c.layers]
                parts["head_norm"] = head.norm.weight.detach().float().contiguous()
            for name, tensor in parts.items():
                setattr(record, name, tensor.data_ptr())
            self.tensors += parts.values()
            model.layers[index] = nn.Identity()
        model.layers = nn.ModuleList()

    def empty_cache(self, rows: int, length: int) -> Tensor:
        """Room for the keys and values of ``length`` positions: (layers, 1, rows, ...)."""
        c = self.config
        width = c.head_dim + -(-c.head_dim // PANEL) * PANEL
        return torch.empty(
            c.total_layers, 1, rows, c.heads, -(-length // PANEL) * PANEL, width, dtype=self.dtype
        )

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, tensors: Tensor, past: int, mask: Tensor | None
    ) -> Tensor:
        """Feed n positions.

        Args:
            x: (B, n, D).
            rotary: tables of these positions, as of ``Block.rotary``.
            tensors: from ``empty_cache``; the positions' keys and values are stored.
            past: positions that it holds already.
            mask: true where a key is seen: (n, m), (B, 1, n, m) or (B, 1, 1, m); None where all are.

        Returns:
            Every head's normalised input: float32 (B, n, heads, D).
        """
        c, (batch, fed, dim) = self.config, x.shape
        x = x.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        states = x.new_empty(batch, fed, len(c.order.heads), dim)
        step = _Step(batch, fed, past, c.total_layers, dim, c.heads, c.ffn_dim, tensors.shape[4])
        step.outputs, step.threads = states.shape[2], torch.get_num_threads()
        if rotary is not None:
            cos, sin = (table.repeat_interleave(2, 1) for table in rotary)
            sin[:, ::2].neg_()
            step.cos, step.sin = cos.data_ptr(), sin.data_ptr()
        if mask is not None:
            seen = mask.contiguous().expand(batch, 1, fed, past + fed)
            step.seen, step.seen_batch, step.seen_query = seen.data_ptr(), seen.stride(0), seen.stride(2)
        for record, tensor in zip(self.records, tensors, strict=True):
            record.cache = tensor.data_ptr()
        pointers = x.data_ptr(), states.data_ptr()
        _call(f"narcli_forward_{_named(self.dtype)}", ctypes.byref(step), self.records, *pointers)
        return states


def halves(weight: Tensor) -> Tensor:
    """(out, in) -> (panels, 32, in): half of what a panel holds; what is missing is zero."""
    return F.pad(weight, (0, 0, 0, -len(weight) % (PANEL // 2))).unflatten(0, (-1, PANEL // 2))


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_k: int) -> Tensor:
    """Draw tokens, as ``sampling.draw``; the library must be there.

    Args:
        logits: float32 (B, n, V).
        uniform: float32 (B, n).
        temperature: above 0.
        top_k: 0 keeps all.

    Returns:
        (B, n) int64.
    """
    logits, uniform = logits.contiguous(), uniform.contiguous()
    tokens = torch.empty(uniform.shape, dtype=torch.int64)
    pointers = logits.data_ptr(), uniform.data_ptr(), temperature, top_k, tokens.data_ptr()
    _call("narcli_draw", uniform.numel(), logits.shape[-1], *pointers, torch.get_num_threads())
    return tokens
