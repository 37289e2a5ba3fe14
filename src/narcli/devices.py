"""Devices and number formats of models, and errors about a shortage of memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .errors import MemoryLimitError, UsageError, is_shortage

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """Choose a device by name; ``auto`` is the first present of cuda, mps and cpu.

    Raises:
        UsageError: unknown, or not present here.
    """
    present = ["cpu"]
    if torch.backends.mps.is_available():
        present.insert(0, "mps")
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    present = ["cuda"] * (cards > 0) + [f"cuda:{k}" for k in range(cards) if cards > 1] + present
    if name == "auto":
        return torch.device(present[0])
    if name not in present and not (name == "cuda:0" and cards == 1):
        raise UsageError(f"There is no device {name[:40]!r} here.", f"Choose auto or {' or '.join(present)}.")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Choose a number format by name; ``auto`` is bfloat16 if the device computes with it, else float32.

    Raises:
        UsageError: not one of ``DTYPES``.
    """
    if name == "auto":
        return torch.bfloat16 if _has_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise UsageError(f"There is no dtype {name[:40]!r}.", f"Choose auto or {' or '.join(DTYPES)}.")
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a number format, as in ``DTYPES``."""
    return str(dtype).removeprefix("torch.")


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":  # the probes of processors differ between releases of torch
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, probe, bool)() for probe in probes)
    return False


def release(device: torch.device) -> None:
    """Free unused memory of a device, also that held by caught errors."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


@contextmanager
def memory_guard(hint: str) -> Iterator[None]:
    """Context that turns every error about a shortage of memory into one kind.

    Raises:
        MemoryLimitError: in place of torch's or Python's own.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        raise MemoryLimitError("There is not enough memory for this run.", hint) from error
