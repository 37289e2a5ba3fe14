"""How fast a model samples here: in next-neighbor and raster order, by the plain algorithm, and at best.

Time does not depend on the values of weights, so random ones of a model's size will do; they are written to
a file, which is loaded as a user's would be. Raster order is the same network, fed one cell a pass. The plain
algorithm is what the released code does, step by step: full-length caches under a mask, all heads for all
cells, nothing prepared.
"""

from __future__ import annotations

import copy
import math
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from . import __version__
from .allocator import give_back
from .checkpoints import Tokenizer, kind_of, save_model, transformer_config
from .devices import release
from .errors import NarError, UsageError
from .hub import Fetched, fetch
from .kernels import draw, prepare, prepare_tokenizer
from .kernels.native import NativeLinear, can_run
from .kernels.packed import PackedLinear, can_pack, multiply
from .memory import released_config, sizes_told
from .models.larp import LARPConfig, LARPTokenizer
from .models.plan import ROTARY_BASE
from .models.transformer import (
    NARTransformer,
    RMSNorm,
    TextCondition,
    TransformerConfig,
    hide_padding,
    rotate,
)
from .models.vq import VQConfig, VQTokenizer
from .order import NONE, Order, raster
from .pipeline import load_networks
from .registry import Model, resolve
from .sampling import draw_plain, generate, uniform_draws
from .settings import ORDERS, SamplingSettings
from .sources import Files, choose
from .style import BACKGROUND, EMPTY, FRONTIER, MUTED, TEXT, ramp


@dataclass(frozen=True)
class Limits:
    """What the machine does at most, measured: bytes/s read from memory, operations/s of a matrix product."""

    read: float
    products: float


@dataclass(frozen=True)
class Case:
    """Medians of one order and batch size, but the peak of its memory.

    Args:
        order: one of ``ORDERS``.
        batch_size: samples at once.
        passes: forward passes.
        prefill_seconds: until the first token is drawn.
        step_seconds: mean of the later steps.
        tokens_seconds: all steps.
        decode_seconds: tokens to pixels.
        limit_seconds: what the weights' bytes and the products cost at the machine's limits, over all passes.
        load_seconds: from the files to networks that are ready for the order, before all batch sizes.
        peak_bytes: most memory held while it ran, what is loaded included; None where that is not told.
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
        """Of a batch, end to end."""
        return self.tokens_seconds + self.decode_seconds

    def document(self, cases: Sequence[Case]) -> dict[str, Any]:
        """As JSON, with ratios to the other orders at the same batch size, of the tokens' time."""
        about = vars(self) | {
            "total_seconds": self.total_seconds,
            "samples_per_second": self.batch_size / self.total_seconds,
            "share_of_limit": self.limit_seconds / self.tokens_seconds,
        }
        for other in cases:
            if (
                other.batch_size == self.batch_size
                and other.order in ("raster", "plain")
                and other is not self
            ):
                about[f"times_{other.order}"] = other.tokens_seconds / self.tokens_seconds
        return {key: float(f"{value:.4g}") if type(value) is float else value for key, value in about.items()}


@contextmanager
def model_files(row: Model, tokenizer: str | None, dtype: torch.dtype) -> Iterator[Files]:
    """The files of what is measured, while the block lasts; with random weights where ``row`` is not here.

    Args:
        row: a released model, or one with a path: a file in the released format is of the kind that it holds.
        tokenizer: what goes with a file; None is the folder's own.
        dtype: of random weights.

    Raises:
        UsageError: a model whose size is not known, or no tokenizer.
        CheckpointError: a file that cannot be used, or two that do not belong together.
        NarError: the disk cannot hold the random weights.
    """
    if row.path is not None:
        kind = kind_of(transformer_config(row.path, grid=row.grid))
        source = choose(kind, row.path, tokenizer)
        model = fetch(source.model, offline=True)
        yield Files(model, fetch(source.tokenizer, offline=True) if source.tokenizer else model)
        return
    if tokenizer is not None:
        raise UsageError(
            f"--tokenizer is given, and {row.name} is measured with random weights.", "Leave it out."
        )
    with tempfile.TemporaryDirectory(prefix="narcli-bench-", ignore_cleanup_errors=True) as place:
        decoder: Tokenizer = LARPTokenizer(LARPConfig()) if row.kind == "video" else VQTokenizer(VQConfig())
        decoder.to(dtype)
        parts: list[nn.Module] = [random_model(row, dtype, torch.device("meta")), decoder]
        needed = sum(tensor.nbytes for part in parts for tensor in part.state_dict().values())
        free = shutil.disk_usage(place).free
        if needed > free:
            numbers = str(dtype).removeprefix("torch.")
            raise NarError(
                f"Random weights of {row.name} take {needed / 1e9:,.2f} GB in {numbers}, "
                f"and the disk of {Path(place).parent} has {free / 1e9:,.2f} GB free.",
                "Free some space, set TMPDIR to a folder on another disk, or measure a smaller model.",
            )
        network = random_model(row, dtype, torch.device("cpu"))
        folder = save_model(
            Path(place) / row.name, transformer=network, tokenizer=decoder, defaults=row.defaults
        )
        del network, decoder
        model = Fetched(resolve(folder, row.kind), folder)
        yield Files(model, model)


def random_model(row: Model, dtype: torch.dtype, device: torch.device) -> NARTransformer:
    """A transformer of a released model's size with random weights.

    Raises:
        UsageError: the row is not one of a released transformer.
    """
    config = released_config(row)
    if config is None:
        raise UsageError(
            f"The size of {row.name} is not known.", "Give a file or a folder, or a released model."
        )
    with torch.device("meta"):
        model = NARTransformer(config)
    model = model.to(dtype).to_empty(device=device)
    model.init_weights()
    for module in model.modules():
        if isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, TextCondition):
            nn.init.normal_(module.uncond_embedding)
    for head in model.ordered_heads:
        nn.init.normal_(head.output.weight, std=0.02)
    return model.eval()


def measure(
    files: Files,
    orders: Sequence[str],
    batch_sizes: Sequence[int],
    settings: SamplingSettings,
    device: torch.device,
    dtype: torch.dtype,
    limits: Limits,
    repeats: int,
    advance: Callable[[], None] = lambda: None,
) -> list[Case]:
    """Time loading, and every order at every batch size in turns, first in a round that does not count.

    In that round the memory is watched. Networks are loaded anew in each round, packed for next-neighbor and
    raster order and after that as they are for the plain one, so that a case has only its own beside it. The
    first case after loading runs once before it is timed: it would be the only one with cold memory.

    Args:
        files: of the network and its tokenizer.
        orders: of ``ORDERS``, each once.
        batch_sizes: each at least 1, each once.
        settings: of sampling.
        device: where it runs.
        dtype: of the weights.
        limits: of this machine in that dtype.
        repeats: counted rounds.
        advance: called after each run.
    """
    one = 1 if device.type == "cpu" else None
    keys = [(order, size) for size in batch_sizes for order in orders]
    times: dict[tuple[str, int], list[tuple[list[float], float]]] = {key: [] for key in keys}
    loads: dict[bool, list[float]] = {False: [], True: []}
    watched: dict[tuple[str, int], tuple[int | None, float]] = {}
    for repeat in range(repeats + 1):
        for plain in (False, True):
            mine = [(order, size) for order, size in keys if (order == "plain") == plain]
            if not mine:
                continue
            began = perf_counter()
            model, tokenizer = load_ready(files, device, dtype, plain)
            loads[plain] += [perf_counter() - began] * bool(repeat)
            together = None if plain else one
            for order, size in mine:
                walk = raster(model.config.grid) if order == "raster" else model.config.order
                case = model, None if plain else walk, tokenizer, size, settings, together
                if not repeat:
                    forget_peak(device)
                elif (order, size) == mine[0]:
                    _run(*case)
                timed = _run(*case)
                if repeat:
                    times[order, size].append(timed)
                else:
                    watched[order, size] = peak_bytes(device), limit(model, walk, size, settings, limits)
                advance()
            del model, tokenizer, case
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
                least, statistics.median(loads[order == "plain"]), peak,
            )
        )  # fmt: skip
    return cases


def load_ready(
    files: Files, device: torch.device, dtype: torch.dtype, plain: bool
) -> tuple[NARTransformer, Tokenizer]:
    """Networks that are ready: packed as in a run, or as they are, in memory of their own."""
    networks = load_networks(files, device, dtype)
    if plain:
        networks = copy.deepcopy(networks)  # the first pass should not read the file
    else:
        networks = prepare(networks[0]), networks[1]
        prepare_tokenizer(networks[1])
    synchronize(device)
    return networks


@torch.inference_mode()
def _run(
    model: NARTransformer,
    order: Order | None,
    tokenizer: Tokenizer,
    size: int,
    settings: SamplingSettings,
    decoded_at_once: int | None,
) -> tuple[list[float], float]:
    """Seconds of each pass, and of decoding (on a CPU the pipeline decodes one sample at a time).

    Without an order it is the plain algorithm.
    """
    c, device = model.config, device_of(model)
    condition = torch.zeros(size, dtype=torch.int64, device=device)
    if c.condition == "text":
        condition = torch.randn(size, c.condition_tokens, c.caption_dim).to(model.token_embedding.weight)
    steps, tokens = [], torch.zeros(size, c.order.cells, dtype=torch.int64, device=device)
    began = perf_counter()
    asked = model, condition, range(size), settings
    walk: Iterator[Any] = generate(*asked, order=order, draw=draw) if order else generate_plain(*asked)
    for step in walk:
        tokens[:, list(step.cells)] = step.tokens
        synchronize(device)
        now = perf_counter()
        steps.append(now - began)
        began = now
    for part in tokens.split(decoded_at_once or size):
        tokenizer.decode(part, c.grid)
    synchronize(device)
    return steps, perf_counter() - began


@dataclass(frozen=True)
class PlainStep:
    """The part of ``sampling.Step`` that counts here."""

    cells: tuple[int, ...]
    tokens: Tensor
    logits: Tensor


@torch.inference_mode()
def generate_plain(
    model: NARTransformer,
    condition: Tensor,
    seeds: Sequence[int],
    settings: SamplingSettings,
    padding: Tensor | None = None,
) -> Iterator[PlainStep]:
    """The released algorithm as it is written: the same tokens as ``generate`` in float32, later.

    Full-length caches in raster order under a mask, all heads for all places, nothing prepared. What each
    cell is predicted from comes from ``Order.predecessors``, not from a plan. Arguments are those of
    ``generate``; the model must not be prepared.
    """
    c, order, first = model.config, model.config.order, model.config.condition_tokens
    device, dtype = condition.device, model.token_embedding.weight.dtype
    rows = model.condition(condition)
    guided = settings.guided(0)
    if guided:
        rows = torch.cat([rows, model.condition.unconditional(condition)])
    step_of = torch.tensor([*range(-first, 0), *order.step_of], device=device)
    hidden = torch.zeros(len(rows), len(step_of), dtype=torch.bool, device=device)
    if padding is not None:
        hidden[:, :first] = padding.repeat(len(rows) // len(padding), 1)
    mask = hide_padding(step_of[:, None] >= step_of[None, :], hidden)
    rotary = raster_rotary(c, device) if c.position == "rotary" else None
    cache = torch.zeros(
        (c.total_layers, 2, len(rows), c.heads, len(step_of), c.head_dim), dtype=dtype, device=device
    )
    draws = uniform_draws(seeds, order.cells).to(device)
    positions, x = torch.arange(first, device=device), rows
    place, done = {NONE: first - 1}, 0  # of each cell, among what was fed last
    for cells in order.steps:
        if c.position == "absolute":
            x = x + model.position_embedding[:, positions].to(x.dtype)
        outputs = []
        for number, layer in enumerate(model.ordered_layers):
            qkv = layer.qkv(layer.attention_norm(x)).unflatten(-1, (3, c.heads, c.head_dim))
            qk, v = qkv[:, :, :2], qkv[:, :, 2]
            if rotary is not None:
                qk = rotate(qk, rotary[0][positions], rotary[1][positions])
            cache[number, 0][:, :, positions] = qk[:, :, 1].transpose(1, 2)
            cache[number, 1][:, :, positions] = v.transpose(1, 2)
            attended = F.scaled_dot_product_attention(
                qk[:, :, 0].transpose(1, 2),
                cache[number, 0],
                cache[number, 1],
                attn_mask=mask[:, :, positions],
            )
            x = x + layer.out(attended.transpose(1, 2).flatten(2))
            x = x + layer.ffn(layer.ffn_norm(x))
            if (k := number + 1 - c.layers) >= 0:
                head = model.ordered_heads[k]
                outputs.append(head.output(head.norm(x)).float())
        by_head = dict(zip(order.heads, outputs, strict=True))
        each = []
        for cell in cells:
            near = [(p.head, p.cell) for p in order.predecessors(cell)] or [(h, NONE) for h in order.heads]
            each.append(torch.stack([by_head[name][:, place[other]] for name, other in near]).mean(0))
        logits = torch.stack(each, 1)
        if guided:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + settings.cfg_scale * (conditional - unconditional)
            if not settings.guided(done):
                logits = conditional
        tokens = draw_plain(logits, draws[:, list(cells)], settings)
        done += len(cells)
        yield PlainStep(cells, tokens, logits)
        place = {cell: index for index, cell in enumerate(cells)}
        positions = torch.tensor(cells, device=device) + first
        x = model.token_embedding(tokens.repeat(2, 1) if guided else tokens)


def raster_rotary(c: TransformerConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each pair of condition and cells in raster order, twice (C + N, head_dim / 2)."""
    half = c.head_dim // 2
    frequencies = ROTARY_BASE ** (-2 * torch.arange(half // 2, device=device) / half)
    rows, columns = (torch.arange(size, device=device).float() for size in c.grid)
    h, w = torch.meshgrid(rows, columns, indexing="ij")
    angles = torch.cat([axis.reshape(-1, 1) * frequencies for axis in (h, w)], 1)
    first = (0, 0, c.condition_tokens, 0)
    return F.pad(angles.cos(), first), F.pad(angles.sin(), first)


# --- the machine ---------------------------------------------------------------------------------


def machine(device: torch.device, dtype: torch.dtype, limits: Limits) -> dict[str, Any]:
    """What figures are worth nothing without."""
    about: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "narcli": __version__,
        "torch": torch.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "read_gb_per_s": round(limits.read / 1e9, 1),
        "matrix_gflops": round(limits.products / 1e9),
    }
    if device.type == "cpu":
        about["capability"] = torch.backends.cpu.get_cpu_capability()
        about["compiled"] = can_run(dtype, device)
    return about


def measure_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """The best of a few large reads and products, on a CPU also of products as narcli's layers make them."""
    memory = torch.ones(2**26, device=device)  # 256 MB, more than caches hold
    square = torch.randn(2048, 2048, device=device).to(dtype)

    def best(work: Callable[[], Tensor]) -> float:
        seconds = []
        for _ in range(7):
            began = perf_counter()
            work()
            synchronize(device)
            seconds.append(perf_counter() - began)
        return min(seconds)

    seconds = best(lambda: square @ square)
    if device.type == "cpu" and can_pack(dtype):  # another library may make those
        weight = PackedLinear(square).weight
        seconds = min(seconds, best(lambda: multiply(square, weight)))
    if can_run(dtype, device):
        linear = NativeLinear(square)
        seconds = min(seconds, best(lambda: linear(square)))
    return Limits(memory.numel() * 4 / best(memory.sum), 2 * 2048**3 / seconds)


def limit(
    model: NARTransformer, order: Order, batch_size: int, settings: SamplingSettings, limits: Limits
) -> float:
    """Seconds that the machine's limits leave for the tokens: for each pass, reading or computing."""
    c, itemsize = model.config, model.token_embedding.weight.element_size()
    block = 4 * c.dim**2 + 3 * c.dim * c.ffn_dim
    head = len(model.heads) * c.dim * c.vocab_size
    seconds, fed, known = 0.0, c.condition_tokens, 0
    for cells in order.steps:
        rows = batch_size * (2 if settings.guided(known) else 1)
        keys = c.condition_tokens + known
        attention = 4 * c.dim * fed * keys
        operations = (
            rows * c.total_layers * (2 * fed * block + attention) + 2 * batch_size * len(cells) * head
        )
        read = (c.total_layers * block + head) * itemsize
        seconds += max(read / limits.read, operations / limits.products)
        fed, known = len(cells), known + len(cells)
    return seconds


def device_of(model: NARTransformer) -> torch.device:
    """Where a model is."""
    return model.token_embedding.weight.device


def synchronize(device: torch.device) -> None:
    """Wait for what was asked of a graphics card."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def forget_peak(device: torch.device) -> str:
    """Let ``peak_bytes`` begin anew, where the system can: ``case``; else ``process``, it goes on."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return "case"
    give_back()  # what earlier cases freed
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak is what is held now
    except OSError:
        return "process"
    return "case"


def peak_bytes(device: torch.device) -> int | None:
    """Most memory that the graphics card, or else this process, has held; None where that is not told.

    Of a process the pages of mapped files count too, as far as they are in memory.
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


# --- the chart -----------------------------------------------------------------------------------


def chart(cases: Sequence[Case], title: str, size: tuple[int, int] = (900, 560)) -> Image.Image:
    """Seconds an image against batch size, a line for each order, both scales logarithmic."""
    picture = Image.new("RGB", size, BACKGROUND)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default
    left, top, right, bottom = 90, 90, size[0] - 130, size[1] - 70
    each = [case.total_seconds / case.batch_size for case in cases]
    ticks = [digit * 10.0**exponent for exponent in range(-6, 7) for digit in (1, 2, 5)]
    low = max(tick for tick in ticks if tick <= min(each))
    high = min(tick for tick in ticks if tick > max(each))
    batches = sorted({case.batch_size for case in cases})
    spread = math.log(batches[-1] / batches[0]) or 1.0

    def place(batch_size: int, seconds: float) -> tuple[float, float]:
        x = left + (right - left) * math.log(batch_size / batches[0]) / spread
        return x, bottom - (bottom - top) * math.log(seconds / low) / math.log(high / low)

    pen.text((left, 24), title, TEXT, font(20))
    pen.text((left, 54), "seconds an image, tokens and decoding, by samples at once", MUTED, font(14))
    for seconds in (tick for tick in ticks if low <= tick <= high):
        y = place(batches[0], seconds)[1]
        pen.line((left, y, right, y), EMPTY)
        pen.text((left - 10, y), f"{seconds:g} s", MUTED, font(13), anchor="rm")
    for batch in batches:
        pen.text((place(batch, low)[0], bottom + 12), str(batch), MUTED, font(13), anchor="mt")
    ends = []
    for name, color in zip(ORDERS, (FRONTIER, ramp(0.6), ramp(0.25)), strict=True):
        line = [
            place(case.batch_size, case.total_seconds / case.batch_size)
            for case in cases
            if case.order == name
        ]
        for x, y in line:
            pen.ellipse((x - 5, y - 5, x + 5, y + 5), color)
        if line:
            pen.line(line, color, 3)
            ends.append((line[-1][1], name, color))
    lowest = -math.inf
    for y, name, color in sorted(ends):
        lowest = max(y, lowest + 18)  # names of lines that end close together do not overlap
        pen.text((right + 14, lowest), name, color, font(15), anchor="lm")
    return picture
