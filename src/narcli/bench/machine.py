"""The machine: its limits, its name, the memory that a process holds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..allocator import give_back
from ..devices import computing, dtype_name
from ..kernels.native import NativeLinear, can_run
from ..kernels.packed import PackedLinear, can_pack, multiply
from ..limits import sizes_told
from ..models.network import Network
from ..settings import SamplingSettings

#: Side of the products and float32 numbers of the reads that measure limits: more than caches hold. A card
#: takes 4 GB and larger products, as the time of small ones is that of starting them.
SIZES = {"cpu": (2048, 2**26), "cuda": (8192, 2**30)}


@dataclass(frozen=True)
class Limits:
    """Measured peaks of the machine: bytes/s read from memory, operations/s of a matrix product."""

    read: float
    products: float


def machine(device: torch.device, dtype: torch.dtype, limits: Limits) -> dict[str, Any]:
    """Describe the machine as JSON: device, dtype, threads, versions and limits."""
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": dtype_name(dtype),
        "threads": torch.get_num_threads(),
        "narcli": __version__,
        "torch": torch.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "read_gb_per_s": round(limits.read / 1e9, 1),
        "matrix_gflops": round(limits.products / 1e9),
    }
    if device.type == "cpu":
        facts["capability"] = torch.backends.cpu.get_cpu_capability()
        facts["compiled"] = can_run(dtype, device)
    return facts


def measure_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """Measure the best of a few large reads and products; on a CPU also products of narcli's layers."""
    side, numbers = SIZES["cuda" if device.type == "cuda" else "cpu"]
    memory = torch.ones(numbers, device=device)
    square = torch.randn(side, side, device=device).to(dtype)

    def best(work: Callable[[], Tensor]) -> float:
        with computing(device, dtype):
            return min(seconds_of(work, device) for _ in range(7))

    seconds = best(lambda: square @ square)
    if device.type == "cpu" and can_pack(dtype):  # another library may make those
        weight = PackedLinear(square).weight
        seconds = min(seconds, best(lambda: multiply(square, weight)))
    if can_run(dtype, device):
        linear = NativeLinear(square)
        seconds = min(seconds, best(lambda: linear(square)))
    return Limits(memory.numel() * 4 / best(memory.sum), 2 * side**3 / seconds)


class Stopwatch:
    """Times what a device does between laps.

    A card is not waited for: it marks the laps by its own clock, since launching from Python takes longer
    than a small product.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks = [self._mark()]

    def lap(self) -> None:
        """End a lap."""
        self._marks.append(self._mark())

    def seconds(self) -> list[float]:
        """Wait for the device, and return the seconds of each lap."""
        if self.device.type == "cuda":
            self._marks[-1].synchronize()
            return [before.elapsed_time(after) / 1e3 for before, after in pairwise(self._marks)]
        return [after - before for before, after in pairwise(self._marks)]

    def _mark(self) -> Any:
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):  # events belong to the current device
                event = torch.cuda.Event(enable_timing=True)
                event.record()
            return event
        synchronize(self.device)
        return perf_counter()


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Time some work."""
    watch = Stopwatch(device)
    work()
    watch.lap()
    return watch.seconds()[0]


def limit(model: Network, batch_size: int, settings: SamplingSettings, limits: Limits) -> float:
    """Least seconds for the tokens: for each pass the longer of reading weights and computing."""
    c, itemsize, most = model.config, model.weight_dtype.itemsize, 2 * batch_size
    w = c.weights
    seconds = max(w.once * itemsize / limits.read, 2 * most * w.once / limits.products)
    for index, step in enumerate(c.decoding_order.passes):
        guided = settings.scale(step.clock, step.share, c.unguided) > 1
        rows = most if guided else batch_size
        fed, keys = len(step.feeds), c.condition_tokens + max((feed.sees for feed in step.feeds), default=0)
        if not index:
            fed += c.condition_tokens
        attention = 4 * w.dim * fed * keys
        operations = (
            rows * w.layers * (2 * fed * w.layer + attention) + 2 * batch_size * len(step.cells) * w.head
        )
        seconds += max((w.layers * w.layer + w.head) * itemsize / limits.read, operations / limits.products)
    return seconds


def device_of(model: Network) -> torch.device:
    """Device of a model's parameters."""
    return next(model.parameters()).device


def synchronize(device: torch.device) -> None:
    """Wait until a graphics card has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def forget_peak(device: torch.device) -> str:
    """Reset ``peak_bytes``; return ``case``, or ``process`` where the system cannot reset it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return "case"
    give_back()  # memory that earlier cases freed
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak to the present size
    except OSError:
        return "process"
    return "case"


def peak_bytes(device: torch.device) -> int | None:
    """Peak memory of the graphics card, else of this process; None where the system does not report it.

    Resident pages of mapped files count too.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, KeyError):
        return sizes_told(Path("/proc/self/status"))["VmHWM"]
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
