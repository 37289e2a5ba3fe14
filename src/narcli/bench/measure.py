"""Time a model on this machine: in one or several orders, by the plain algorithm, and the limit.

Time does not depend on the values of weights, so random ones of a model's size suffice. Each order has a
network of its own: trunk and width are the model's, the heads are the order's.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from ..decoding import load_networks
from ..devices import computing, release
from ..hub.sources import Files
from ..kernels import prepare, prepare_tokenizer
from ..kernels.graphs import choose_runner
from ..kernels.program import Runner
from ..models.network import Network
from ..models.tokenizer import Tokenizer
from ..models.transformer import NARTransformer
from ..sampling import in_raster_order
from ..settings import DECODED_TOGETHER, PLAIN, SamplingSettings
from .machine import Limits, Stopwatch, device_of, forget_peak, limit, peak_bytes, synchronize
from .plain import generate_plain


@dataclass(frozen=True)
class Case:
    """Medians of one order and batch size; of memory the peak.

    Args:
        order: name of an order, or ``plain``.
        batch_size: samples at once.
        passes: forward passes.
        prefill_seconds: until the first token is drawn.
        step_seconds: mean of the later steps.
        tokens_seconds: all steps.
        decode_seconds: tokens to pixels.
        limit_seconds: cost of reading weights or of products at the machine's limits, over all passes.
        load_seconds: from the files to networks ready for the order; the same for all batch sizes.
        peak_bytes: most memory held during the case, networks included; None where it is not reported.
    """

    order: str
    batch_size: int
    passes: int
    prefill_seconds: float
    step_seconds: float
    tokens_seconds: float
    decode_seconds: float
    limit_seconds: float
    load_seconds: float
    peak_bytes: int | None

    @property
    def total_seconds(self) -> float:
        """Seconds of a batch, tokens and decoding."""
        return self.tokens_seconds + self.decode_seconds

    def document(self, cases: Sequence[Case]) -> dict[str, Any]:
        """The case as JSON, with the tokens' time of other orders as a multiple of this one's."""
        fields = vars(self) | {
            "total_seconds": self.total_seconds,
            "samples_per_second": self.batch_size / self.total_seconds,
            "share_of_limit": self.limit_seconds / self.tokens_seconds,
        }
        for other in cases:
            if other.batch_size == self.batch_size and other.order in ("raster", PLAIN) and other is not self:
                fields[f"times_{other.order}"] = other.tokens_seconds / self.tokens_seconds
        return {
            key: float(f"{value:.4g}") if type(value) is float else value for key, value in fields.items()
        }


def measure(
    files: Mapping[str, Files],
    batch_sizes: Sequence[int],
    settings: SamplingSettings,
    device: torch.device,
    dtype: torch.dtype,
    limits: Limits,
    repeats: int,
    advance: Callable[[], None] = lambda: None,
) -> list[Case]:
    """Time loading, then every order at every batch size, in rounds.

    The first round is not timed; it measures the memory. Each round loads networks anew, one after the
    other: so only the networks of a case are in memory. The first case after loading runs once untimed,
    since only it would meet cold memory. On a card each case runs twice untimed: graphs are recorded then.

    Args:
        files: files of each order's networks, as ``weights.model_files`` returns them.
        batch_sizes: each at least 1, each once.
        settings: of sampling.
        device: where it runs.
        dtype: of the weights.
        limits: of this machine in that dtype.
        repeats: counted rounds.
        advance: called after each run.
    """
    one = 1 if device.type == "cpu" else DECODED_TOGETHER
    keys = [(order, size) for size in batch_sizes for order in files]
    times: dict[tuple[str, int], list[tuple[list[float], float]]] = {key: [] for key in keys}
    loads: dict[str, list[float]] = {order: [] for order in files}
    watched: dict[tuple[str, int], tuple[int | None, float]] = {}
    for repeat in range(repeats + 1):
        for order in files:
            began = perf_counter()
            model, tokenizer = load_ready(files[order], device, dtype, order)
            loads[order] += [perf_counter() - began] * bool(repeat)
            with computing(device, dtype):
                for size in batch_sizes:
                    how = (None, None) if order == PLAIN else (choose_runner(device), one)
                    case = model, tokenizer, size, settings, *how
                    if not repeat:
                        forget_peak(device)
                    for _ in range(2 if device.type == "cuda" else repeat > 0 and size == batch_sizes[0]):
                        _run(*case)
                    timed = _run(*case)
                    if repeat:
                        times[order, size].append(timed)
                    else:
                        watched[order, size] = peak_bytes(device), limit(model, size, settings, limits)
                    advance()
            del model, tokenizer, how, case
            release(device)
    cases = []
    for (order, size), samples in times.items():
        steps = [statistics.median(seconds) for seconds in zip(*(steps for steps, _ in samples), strict=True)]
        peak, least = watched[order, size]
        cases.append(
            Case(
                order, size, len(steps), steps[0], statistics.mean(steps[1:] or [0.0]),
                statistics.median(sum(steps) for steps, _ in samples),
                statistics.median(decode for _, decode in samples),
                least, statistics.median(loads[order]), peak,
            )
        )  # fmt: skip
    return cases


def load_ready(
    files: Files, device: torch.device, dtype: torch.dtype, order: str
) -> tuple[Network, Tokenizer]:
    """Load both networks, packed for an order as in a run, or those of ``plain`` copied into memory."""
    networks = load_networks(files, device, dtype, None if order == PLAIN else order)
    if order == PLAIN:
        networks = copy.deepcopy(networks)  # the first pass should not read the file
    else:
        networks = prepare(networks[0]), networks[1]
        prepare_tokenizer(networks[1])
    synchronize(device)
    return networks


@torch.inference_mode()
def _run(
    model: Network,
    tokenizer: Tokenizer,
    size: int,
    settings: SamplingSettings,
    runner: Runner | None,
    decoded_at_once: int | None,
) -> tuple[list[float], float]:
    """Run one batch; return the seconds of each pass, and of decoding.

    Args:
        model: the transformer.
        tokenizer: decodes the tokens.
        size: samples of the batch.
        settings: of sampling.
        runner: runs the passes; None runs the plain algorithm.
        decoded_at_once: samples decoded together; None is all.
    """
    c, device = model.config, device_of(model)
    condition = torch.zeros(size, dtype=torch.int64, device=device)
    if c.condition == "text":
        condition = torch.randn(size, c.condition_tokens, c.caption_dim).to(device, model.weight_dtype)
    elif c.condition == "frames":
        condition = torch.zeros(size, c.condition_tokens - 1, dtype=torch.int64, device=device)
    watch, drawn = Stopwatch(device), list[torch.Tensor]()
    walk: Iterator[Any]
    if runner is None:
        assert isinstance(model, NARTransformer)
        walk = generate_plain(model, condition, range(size), settings)
    else:
        walk = runner.generate(model, condition, range(size), settings)
    for step in walk:
        drawn.append(step.tokens)
        watch.lap()
    tokens = in_raster_order(c.decoding_order, drawn).to(device)
    for part in tokens.split(decoded_at_once or size):
        tokenizer.decode(part, c.grid)
    watch.lap()
    *steps, decoding = watch.seconds()
    return steps, decoding
