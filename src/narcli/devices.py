"""Devices and number formats of models, and errors about a shortage of memory."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .errors import MemoryLimitError, UsageError, is_shortage

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


#: Attention of cards, best first. cuDNN's is left out: it plans for each new shape, and each pass has one.
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
#: Devices that run convolutional decoders channels last. Group normalisation on CUDA returns contiguous
#: tensors, so that channels last costs two transposes a norm; `benchmarks/gpu_check.py` times both.
CHANNELS_LAST = ("cpu",)


def choose_device(name: str = "auto") -> torch.device:
    """Choose a device by name; ``auto`` is the first present of cuda, mps and cpu.

    Under torchrun ``auto`` and ``cuda`` are the card of the process's ``LOCAL_RANK``.

    Raises:
        UsageError: unknown, or not present here; a rank without a card.
    """
    present = ["cpu"]
    if torch.backends.mps.is_available():
        present.insert(0, "mps")
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    present = ["cuda"] * (cards > 0) + [f"cuda:{k}" for k in range(cards) if cards > 1] + present
    if cards and name in ("auto", "cuda") and "WORLD_SIZE" in os.environ and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", _card_of_rank(os.environ["LOCAL_RANK"], cards))
    if name == "auto":
        return torch.device(present[0])
    if name not in present and not (name == "cuda:0" and cards == 1):
        raise UsageError(f"There is no device {name[:40]!r} here.", f"Choose auto or {' or '.join(present)}.")
    return torch.device(name)


def _card_of_rank(rank: str, cards: int) -> int:
    if not (rank.isascii() and rank.isdigit() and int(rank) < cards):
        there = "is one card" if cards == 1 else f"are {cards} cards"
        raise UsageError(
            f"LOCAL_RANK is {rank[:40]!r}, and there {there} here; expected 0 to {cards - 1}.",
            f"Start {cards} processes here at most, or choose the card: `device=cuda:0`.",
        )
    return int(rank)


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
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":  # the probes of processors differ between releases of torch
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, probe, bool)() for probe in probes)
    return False


def memory_format(device: torch.device) -> torch.memory_format:
    """Return the memory format in which a convolutional decoder runs on a device."""
    return torch.channels_last if device.type in CHANNELS_LAST else torch.contiguous_format


@contextmanager
def computing(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Context of sampling and decoding on a card; nothing on other devices.

    It pins the kernels of attention, and in float32 it turns TF32 off, in products and convolutions. These
    settings are of the whole process; the earlier ones come back at the end.
    """
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn  # mypy does not see ``conv``
    backends = (torch.backends.cuda.matmul, cudnn.conv)
    before = [each.fp32_precision for each in backends]
    try:
        if dtype == torch.float32:
            for each in backends:
                each.fp32_precision = "ieee"
        with sdpa_kernel(ATTENTION, set_priority=True):
            yield
    finally:
        for each, precision in zip(backends, before, strict=True):
            each.fp32_precision = precision


def about_card(device: torch.device) -> dict[str, str]:
    """Return what rounding on a card depends on, as metadata; nothing on other devices."""
    if device.type != "cuda":
        return {}
    cudnn = torch.backends.cudnn.version()
    versions = {"cuda": torch.version.cuda, "cudnn": None if cudnn is None else str(cudnn)}
    known = {name: version for name, version in versions.items() if version is not None}
    return {"card": torch.cuda.get_device_name(device), **known}


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
