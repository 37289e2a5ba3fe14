"""Check on one graphics card, in five minutes, whether narcli is right there, and measure how fast it is.

    python benchmarks/gpu_check.py --make-reference reference.safetensors   # on a CPU, beforehand
    python benchmarks/gpu_check.py --reference reference.safetensors
    python benchmarks/gpu_check.py --device cpu --smoke

Without a reference the CPU of the same machine makes it first. Prints one JSON document with a verdict;
messages go to stderr. Exit code 0 if no check failed, else 1. It needs torch 2.11, numpy, Pillow, safetensors
and this repository; nothing is downloaded, and the large models have random weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT / "src") not in sys.path:
    sys.path.insert(0, str(ROOT / "src"))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

WEIGHTS = ROOT / "src" / "narcli" / "weights"
#: Samples of each entry of the reference: in all, and of those the ones that a smoke test takes.
ENTRIES = {"class": (16, 2), "text": (4, 1), "video": (2, 1), "plain": (64, 8)}
KINDS = {"class": "image", "text": "text", "video": "video", "plain": "image"}
FOLDERS = {"class": "emoji", "text": "emoji-text", "video": "emoji-video", "plain": "emoji"}
WITH_LOGITS = 2  # samples of an entry whose logits are compared
BUDGET = 300  # seconds; measurements that would begin later are left out
LARGE = {"nar-b-256": 2.0, "nar-l-256": 2.0, "nar-xxl-256": 2.0, "nar-l-ucf101": 1.25}  # guidance
BATCHES = (1, 16, 64, 256)


class FailedError(Exception):
    """A check did not hold."""


def require(holds: bool, words: str) -> None:
    if not holds:
        raise FailedError(words)


@dataclass
class Context:
    """Where the checks run, and what they compare with."""

    device: torch.device
    smoke: bool
    reference: dict[str, Tensor]
    began: float = field(default_factory=time.perf_counter)

    @property
    def has_card(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        if self.has_card:
            torch.cuda.synchronize(self.device)

    def watch(self, mode: str) -> None:
        """Say what waiting for the card means: ``default`` or ``error``."""
        if self.has_card:
            torch.cuda.set_sync_debug_mode(mode)

    def timed(self, work: Callable[[], object]) -> float:
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began


# --- models and walks -----------------------------------------------------------------------------


def built_in(entry: str, device: torch.device, dtype: torch.dtype, plain: bool = False) -> Any:
    """A pipeline of a built-in model; ``plain`` leaves the transformer as it is, as an oracle."""
    from narcli.checkpoints.load import load_tokenizer, load_transformer
    from narcli.classes import load_table
    from narcli.kernels import prepare, prepare_tokenizer
    from narcli.pipeline import Pipeline
    from narcli.settings import SamplingSettings

    folder = WEIGHTS / FOLDERS[entry]
    about = json.loads((folder / "config.json").read_text())
    kind: Any = KINDS[entry]
    model = load_transformer(folder, kind=kind, dtype=dtype, device=device)
    where = folder if "tokenizer" in about and entry != "text" else WEIGHTS / "emoji"
    tokenizer = load_tokenizer(where, dtype=dtype, device=device)
    model = model if plain else prepare(model)
    prepare_tokenizer(tokenizer)
    table = load_table(about.get("classes", []))
    return Pipeline(model, tokenizer, table, SamplingSettings(**about["defaults"]))


def large(name: str, ctx: Context, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A pipeline of the sizes of a released model, with random weights made on the device."""
    from narcli.checkpoints.load import build
    from narcli.classes import load_table
    from narcli.hub.catalog import MODELS
    from narcli.hub.sizes import networks_of
    from narcli.kernels import prepare, prepare_tokenizer
    from narcli.pipeline import Pipeline
    from narcli.settings import SamplingSettings

    row = MODELS[name]
    sizes, parts = networks_of(row), []
    assert sizes.transformer is not None and sizes.tokenizer is not None
    for config in (sizes.transformer, sizes.tokenizer):
        network: Any = build(config)  # type: ignore[call-overload]
        network = network.to(dtype).to_empty(device=ctx.device).eval()
        # A generator of its own: a capture that failed may keep the card's from drawing.
        generator = torch.Generator(ctx.device).manual_seed(0)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_(std=0.02, generator=generator)
        parts.append(network.requires_grad_(False))
    model = prepare(parts[0])
    prepare_tokenizer(parts[1])
    return Pipeline(model, parts[1], load_table(row.classes or []), SamplingSettings(cfg_scale=LARGE[name]))


def walk(pipe: Any, inputs: tuple[Any, ...], runner: Any = None, **more: Any) -> Iterator[Any]:
    """Steps of a batch, (condition, seeds, settings, padding), by a runner or by the device's own."""
    from narcli.devices import computing
    from narcli.kernels.graphs import choose_runner

    runner = runner or choose_runner(pipe.device)
    with computing(pipe.device, pipe.model.weight_dtype), torch.inference_mode():
        yield from runner.generate(pipe.model, *inputs, **more)


def tokens_of(pipe: Any, steps: Iterator[Any], rows: int) -> Tensor:
    tokens = torch.full((rows, pipe.order.cells), -1)
    for step in steps:
        tokens[:, list(step.cells)] = step.tokens.cpu()
    return tokens


def inputs_of(entry: str, pipe: Any, count: int, device: torch.device) -> tuple[Any, ...]:
    """Condition, seeds, settings and padding of the first samples of an entry; the same on every machine."""
    c, padding = pipe.model.config, None
    if entry == "text":
        generator = torch.Generator().manual_seed(0)
        total = ENTRIES[entry][0]
        condition = torch.randn(total, c.condition_tokens, c.caption_dim, generator=generator)
        lengths = torch.arange(total) * 7 % 20 + 3
        padding = torch.arange(c.condition_tokens) < (c.condition_tokens - lengths)[:, None]
        condition = condition.masked_fill(padding[..., None], 0)[:count].to(device, pipe.model.weight_dtype)
        padding = padding[:count].to(device)
    else:
        condition = (torch.arange(count) * 37 % c.num_classes).to(device)
    guided = pipe.defaults if entry == "plain" else replace(pipe.defaults, cfg_scale=2.0)
    return condition, list(range(count)), guided, padding


def plain_steps(pipe: Any, inputs: tuple[Any, ...], **more: Any) -> Iterator[Any]:
    """Steps with logits, pass by pass, whatever the device's runner."""
    from narcli.devices import computing
    from narcli.sampling import generate

    with computing(pipe.device, pipe.model.weight_dtype):
        yield from generate(pipe.model, *inputs, **more)


def make_reference(smoke: bool) -> dict[str, Tensor]:
    """Tokens and logits of the built-in models by plain networks in float32 on the CPU."""
    made, cpu = {}, torch.device("cpu")
    for entry, (most, few) in ENTRIES.items():
        count = few if smoke else most
        pipe = built_in(entry, cpu, torch.float32, plain=True)
        steps = []
        for step in plain_steps(pipe, inputs_of(entry, pipe, count, cpu)):
            logits = step.logits[:WITH_LOGITS].clone() if entry != "plain" else step.logits[:0].clone()
            steps.append(replace(step, logits=logits, tokens=step.tokens.cpu()))
        made[f"{entry}.tokens"] = tokens_of(pipe, iter(steps), count)
        if entry != "plain":
            made[f"{entry}.logits"] = torch.cat([step.logits for step in steps], 1)
    return made


# --- checks that any device passes ----------------------------------------------------------------


def products(ctx: Context) -> dict[str, Any]:
    """Float32 products and convolutions are not rounded to TF32."""
    import torch.nn.functional as F

    from narcli.devices import computing

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    x, w = torch.randn(2, 32, 24, 24, generator=generator), torch.randn(32, 32, 3, 3, generator=generator)
    errors = {}
    with computing(ctx.device, torch.float32):
        for name, work, given in (("product", torch.matmul, (a, b)), ("convolution", F.conv2d, (x, w))):
            exact = work(*(part.double() for part in given))
            here = work(*(part.to(ctx.device) for part in given)).cpu().double()
            errors[name] = float((here - exact).abs().max() / exact.abs().max())
    require(max(errors.values()) < 1e-5, f"Float32 is rounded: {errors}.")
    return {"relative_error": errors}


def attention(ctx: Context) -> dict[str, Any]:
    """Attention equals plain products, for few and permuted queries, with and without a mask."""
    from narcli.devices import computing
    from narcli.models.attention import attend
    from narcli.models.attention import products as plain

    generator, worst = torch.Generator().manual_seed(0), {}
    for dtype, most in ((torch.float32, 1e-4), (torch.bfloat16, 5e-2)):
        difference = 0.0
        for queries, keys in ((1, 39), (7, 70), (16, 255), (120, 120)):
            q, k, v = (torch.randn(2, n, 4, 64, generator=generator) for n in (queries, keys, keys))
            q, k, v = (part.to(dtype).transpose(1, 2) for part in (q, k, v))
            for mask in (None, torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)):
                wanted = plain(q.float(), k.float(), v.float(), mask)
                here = None if mask is None else mask.to(ctx.device)
                parts = (torch.empty_like(part, device=ctx.device).copy_(part) for part in (q, k, v))
                with computing(ctx.device, dtype):
                    made = attend(*parts, here)
                difference = max(difference, float((made.cpu().float() - wanted).abs().max()))
        worst[str(dtype)[6:]] = difference
        require(difference < most, f"Attention in {dtype} differs by {difference}.")
    return {"difference": worst}


def logits(ctx: Context) -> dict[str, Any]:
    """Float32 logits, given the reference's tokens, are within 2e-3 of the CPU's."""
    worst = {}
    for entry in ("class", "text", "video"):
        pipe = built_in(entry, ctx.device, torch.float32)
        wanted = ctx.reference[f"{entry}.logits"]
        count = min(len(wanted), 1 if ctx.smoke else WITH_LOGITS)
        given = ctx.reference[f"{entry}.tokens"][:count].to(ctx.device)
        steps = plain_steps(pipe, inputs_of(entry, pipe, count, ctx.device), given=given)
        made = torch.cat([step.logits.cpu() for step in steps], 1)
        worst[entry] = float((made - wanted[:count]).abs().max())
        require(worst[entry] <= 2e-3, f"Logits of {entry} differ by {worst[entry]}.")
    return {"difference": worst}


def share_equal(ctx: Context, entry: str, dtype: torch.dtype) -> float:
    wanted = ctx.reference[f"{entry}.tokens"]
    wanted = wanted[: ENTRIES[entry][1]] if ctx.smoke else wanted
    from narcli.kernels.graphs import choose_runner

    pipe, runner = built_in(entry, ctx.device, dtype), choose_runner(ctx.device)
    inputs, shares = inputs_of(entry, pipe, len(wanted), ctx.device), []
    for _ in range(3 if ctx.has_card else 1):  # pass by pass, while graphs are recorded, by their replay
        made = tokens_of(pipe, walk(pipe, inputs, runner), len(wanted))
        shares.append(float((made == wanted).float().mean()))
    return min(shares)


def tokens_float32(ctx: Context) -> dict[str, Any]:
    """Of freely drawn tokens in float32 at least 99.5 % are the CPU's."""
    shares = {entry: share_equal(ctx, entry, torch.float32) for entry in ("class", "text", "video")}
    require(min(shares.values()) >= 0.995, f"Shares of equal tokens: {shares}.")
    return {"equal": shares}


def tokens_bfloat16(ctx: Context) -> dict[str, Any]:
    """Of freely drawn tokens of emoji in bfloat16 at least 95 % are those of float32 on the CPU.

    One other token changes what follows, so that few samples scatter: a smoke test asks for 85 %.
    """
    share = share_equal(ctx, "plain", torch.bfloat16)
    require(share >= (0.85 if ctx.smoke else 0.95), f"Only {share:.1%} of the tokens are equal.")
    return {"equal": share}


def reproducible(ctx: Context) -> dict[str, Any]:
    """With a fixed number of rows a sample is the same alone and at any place among others."""
    dtype = torch.bfloat16 if ctx.has_card else torch.float32
    pipe = built_in("class", ctx.device, dtype)
    rows = 4 if ctx.smoke else 16
    names = [pipe.classes.entry(label).id for label in range(rows - 1)]
    together = pipe.images(names, seed=5, cfg_scale=2.0, batch_size=rows, reproducible=True)
    for index in (0, rows // 2, rows - 2):
        (alone,) = pipe.images(names[index], seed=5, cfg_scale=2.0, batch_size=rows, reproducible=True)
        require(
            torch.equal(alone.tokens, together[index].tokens) and alone.frames == together[index].frames,
            f"Sample {index} of {rows} rows is another one alone.",
        )
    return {"rows": rows, "metadata": together[0].metadata["reproducible"]}


def bad_weights(ctx: Context) -> dict[str, Any]:
    """NaN weights are refused, and the device works on."""
    from narcli.errors import CheckpointError

    pipe = built_in("class", ctx.device, torch.float32, plain=True)
    inputs = inputs_of("class", pipe, 1, ctx.device)
    before = tokens_of(pipe, walk(pipe, inputs), 1)
    weight = pipe.model.ordered_heads[0].output.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
    try:
        tokens_of(pipe, walk(pipe, inputs), 1)
    except CheckpointError:
        pass
    else:
        raise FailedError("Tokens were drawn with NaN weights.")
    with torch.no_grad():
        weight.copy_(kept)
    require(torch.equal(tokens_of(pipe, walk(pipe, inputs), 1), before), "The tokens afterwards are others.")
    return {}


def halving(ctx: Context) -> dict[str, Any]:
    """A batch that memory does not hold is halved, and all samples come."""
    told: list[str] = []
    if ctx.has_card:
        return _halving_on_card(ctx, told)
    pipe = built_in("class", ctx.device, torch.float32)
    name = pipe.classes.entry(0).id
    expected = pipe.images(name, seed=1, num=2, batch_size=1)
    whole = pipe.model.feed

    def feed(state: Any, index: int, tokens: Tensor) -> None:
        if state.samples > 1 and index > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        whole(state, index, tokens)

    pipe.model.feed = feed
    samples = _samples(pipe, 2)
    results = [r for p in pipe.run(samples, pipe.defaults, 2, told.append) for r in p.results]
    same = [torch.equal(a.tokens, b.tokens) for a, b in zip(results, expected, strict=True)]
    require(bool(told) and all(same), f"{len(results)} samples came, after: {told}.")
    return {"notes": told}


def _samples(pipe: Any, count: int) -> Any:
    from narcli.settings import plan_samples

    return plan_samples([pipe.classes.entry(0)], 1, count)


# --- checks that need a card ----------------------------------------------------------------------


def _halving_on_card(ctx: Context, told: list[str]) -> dict[str, Any]:
    from narcli.hub.sizes import Networks
    from narcli.memory import estimate

    pipe, rows = large("nar-b-256", ctx), 64 if ctx.smoke else 256
    networks = Networks(pipe.model.config, pipe.tokenizer.config)
    need = estimate(networks, torch.bfloat16, rows // 4, device="cuda")
    total = torch.cuda.get_device_properties(ctx.device).total_memory
    room = torch.cuda.memory_allocated(ctx.device) + 1.3 * max(need.sampling, need.decoding)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, room / total), ctx.device)
    try:
        samples = _samples(pipe, rows)
        results = [r for p in pipe.run(samples, pipe.defaults, rows, told.append) for r in p.results]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, ctx.device)
    require(bool(told) and len(results) == rows, f"{len(results)} samples came, after: {told}.")
    return {"notes": told}


def first_picture(ctx: Context) -> dict[str, Any]:
    """The first picture of NAR-B comes within 2 s of loading."""
    pipe = large("nar-b-256", ctx)
    name = pipe.classes.entry(0).id
    seconds = ctx.timed(lambda: pipe.images(name, seed=0))
    second = ctx.timed(lambda: pipe.images(name, seed=1))
    require(seconds <= 2, f"It took {seconds:.2f} s.")
    return {"first_seconds": seconds, "second_seconds": second}


#: Settings that run different operators.
VARIANTS: dict[str, dict[str, float]] = {
    "guided": {"cfg_scale": 2.0},
    "interval": {"cfg_scale": 2.0, "cfg_interval": 100},
    "top_k": {"cfg_scale": 2.0, "top_k": 50},
    "top_p": {"top_p": 0.9},
    "greedy": {"temperature": 0.0},
}


@dataclass
class Small:
    """A network of random weights that stands for a pipeline."""

    model: Any
    device: torch.device

    @property
    def order(self) -> Any:
        return self.model.config.decoding_order


def small(order: str, ctx: Context) -> Small:
    """A network of some order that no built-in model has."""
    from narcli.models.blocks import TransformerConfig
    from narcli.models.multiscale import MultiscaleConfig, MultiscaleTokenizer
    from narcli.models.transformer import NARTransformer
    from narcli.models.var import VARConfig, VARTransformer

    torch.manual_seed(0)
    parts: list[Any] = []
    if order == "var":
        model: Any = VARTransformer(VARConfig((4, 4), (1, 2, 4), 128, 2, 2, 64, 32, 7))
        parts.append(MultiscaleTokenizer(MultiscaleConfig(32, (1, 1), 1, 32, 64)))
        model.use(parts[0])
    else:
        model = NARTransformer(TransformerConfig((8, 8), 128, 2, 2, 64, 256, num_classes=7, order=order))
    for part in (model, *parts):
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        part.to(ctx.device).eval().requires_grad_(False)
    return Small(model, ctx.device)


def _condition(pipe: Any, rows: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Some condition and its padding."""
    c, generator = pipe.model.config, torch.Generator().manual_seed(seed)
    if c.condition != "text":
        return torch.randint(c.num_classes, (rows,), generator=generator).to(device), None
    features = torch.randn(rows, c.condition_tokens, c.caption_dim, generator=generator)
    lengths = torch.randint(3, c.condition_tokens + 1, (rows, 1), generator=generator)
    padding = torch.arange(c.condition_tokens) < c.condition_tokens - lengths
    features = features.masked_fill(padding[..., None], 0)
    return features.to(device, pipe.model.weight_dtype), padding.to(device)


def graphs(ctx: Context) -> dict[str, Any]:
    """Replayed graphs draw the same tokens as passes that run one by one, in every order."""
    from narcli.kernels.graphs import Graphs
    from narcli.kernels.program import Eager
    from narcli.settings import SamplingSettings

    notes: list[str] = []
    cases = [(small(order, ctx), 2, "guided") for order in ("nar", "raster", "zipar:4", "par:4", "var")]
    if not ctx.smoke:
        pipe = built_in("class", ctx.device, torch.bfloat16)
        cases += [(pipe, rows, name) for rows in (1, 3, 16) for name in VARIANTS]
        cases += [(built_in(entry, ctx.device, torch.bfloat16), 3, "guided") for entry in ("text", "video")]
    for pipe, rows, name in cases:
        runner, settings = Graphs(ctx.device), SamplingSettings(**VARIANTS[name])  # type: ignore[arg-type]
        for batch in range(4):  # pass by pass, recorded, replayed twice
            condition, padding = _condition(pipe, rows, batch, ctx.device)
            given = condition, [batch * rows + k for k in range(rows)], settings, padding
            made = tokens_of(pipe, walk(pipe, given, runner, tell=notes.append), rows)
            wanted = tokens_of(pipe, walk(pipe, given, Eager()), rows)
            where = f"{pipe.order.name}, {pipe.model.config.condition}, {name}, batch {batch} of {rows}"
            require(torch.equal(made, wanted), f"{where} differs; {notes}.")
    require(not notes, f"Graphs were given up: {notes}.")
    return {"cases": len(cases)}


def synchronisation(ctx: Context) -> dict[str, Any]:
    """No step waits for the device."""
    from narcli.devices import computing
    from narcli.kernels.program import Batch, StepProgram

    steps = 0
    for entry in ("class", "text", "video"):
        pipe = built_in(entry, ctx.device, torch.bfloat16)
        condition, padding = _condition(pipe, 4, 0, ctx.device)
        batch = Batch(condition, range(4), pipe.defaults, padding, None, pipe.order)
        program = StepProgram(pipe.model, 4, batch.structure(pipe.model), pipe.order)
        with computing(ctx.device, torch.bfloat16), torch.inference_mode():
            for mode in ("default", "error"):  # first without: libraries load
                program.load(batch)
                ctx.watch(mode)
                try:
                    for index in range(len(program.passes)):
                        program.step(index)
                finally:
                    ctx.watch("default")
                program.refuse_bad()
        steps += len(program.passes)
    return {"steps": steps}


def profile(ctx: Context) -> dict[str, Any]:
    """Kernels of a step, and the kernels of attention, which are not cuDNN's."""
    from torch.profiler import ProfilerActivity

    from narcli.kernels.program import Eager

    pipe = large("nar-b-256", ctx)
    inputs = _large_inputs(pipe, 16, ctx)
    for _ in walk(pipe, inputs, Eager()):
        pass
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in walk(pipe, inputs, Eager()):
            pass
        ctx.wait()
    cuda = torch.autograd.DeviceType.CUDA
    kernels = [event.name for event in seen.events() or () if event.device_type == cuda]
    kinds = ("flash", "fmha", "efficient", "cudnn")
    attending = sorted({name[:100] for name in kernels if any(kind in name.lower() for kind in kinds)})
    require(bool(kernels), "The profiler saw no kernels.")
    require(not any("cudnn" in name.lower() for name in attending), f"cuDNN attends: {attending}.")
    require(any("flash" in name.lower() for name in attending), f"Flash does not attend: {attending}.")
    return {"kernels_a_step": round(len(kernels) / len(pipe.order.steps), 1), "attention": attending[:6]}


def _large_inputs(pipe: Any, rows: int, ctx: Context) -> tuple[Any, ...]:
    return torch.arange(rows, device=ctx.device) % 101, list(range(rows)), pipe.defaults, None


def times(ctx: Context) -> dict[str, Any]:
    """Tokens, decoding and memory of the released sizes by batch; nothing is required of times."""
    from narcli.bench.machine import forget_peak, measure_limits
    from narcli.devices import release
    from narcli.hub.sizes import Networks
    from narcli.kernels.graphs import choose_runner
    from narcli.limits import available
    from narcli.memory import ROOM, estimate

    limits = measure_limits(ctx.device, torch.bfloat16)
    rows: list[dict[str, Any]] = []
    for name in list(LARGE)[: 1 if ctx.smoke else None]:
        if time.perf_counter() - ctx.began > 0.8 * BUDGET:
            rows.append({"model": name, "left_out": "out of time"})
            continue
        pipe = large(name, ctx)
        networks = Networks(pipe.model.config, pipe.tokenizer.config)
        for size in BATCHES[: 2 if ctx.smoke else None]:
            told = estimate(networks, torch.bfloat16, size, device="cuda")
            if told.total > ROOM * (available(ctx.device) or 0):
                rows.append({"model": name, "batch": size, "left_out": "out of memory"})
                continue
            runner, inputs, tokens = choose_runner(ctx.device), _large_inputs(pipe, size, ctx), []
            forget_peak(ctx.device)
            # The first batch runs pass by pass, the second records graphs, the others replay them.
            for _ in range(4):
                tokens.append(ctx.timed(partial(deque, walk(pipe, inputs, runner), 0)))
            drawn = torch.zeros(size, pipe.order.cells, dtype=torch.int64)
            decode = min(ctx.timed(partial(pipe.decode, drawn)) for _ in range(2))
            peak = torch.cuda.max_memory_allocated(ctx.device)
            rows.append(
                {
                    "model": name, "batch": size, "first_ms": round(tokens[0] * 1e3, 1),
                    "tokens_ms": round(min(tokens) * 1e3, 1), "decode_ms": round(decode * 1e3, 1),
                    "tokens_per_s": round(size / min(tokens), 1),
                    "samples_per_s": round(size / (min(tokens) + decode), 1),
                    "peak_gb": round(peak / 1e9, 2), "estimated_gb": round(told.total / 1e9, 2),
                }
            )  # fmt: skip
        pipe = runner = None
        release(ctx.device)
    short = [row for row in rows if row.get("peak_gb", 0) > 1.1 * row.get("estimated_gb", 0) + 0.1]
    figures = {
        "read_gb_per_s": round(limits.read / 1e9),
        "matrix_tflops": round(limits.products / 1e12),
        "rows": rows,
    }
    if short:
        raise FailedError(f"More memory than estimated: {short}; all: {json.dumps(figures)}")
    return figures


def decoder(ctx: Context) -> dict[str, Any]:
    """Time of VQ-16's decoder in both memory formats; ``devices.CHANNELS_LAST`` should name the better."""
    from narcli.devices import computing

    pipe = large("nar-b-256", ctx)
    tokens = torch.zeros(16, pipe.order.cells, dtype=torch.int64, device=ctx.device)
    vectors, made = pipe.tokenizer.embed(tokens, pipe.grid), {}
    for name in ("contiguous_format", "channels_last"):
        pipe.tokenizer.decoder.to(memory_format=getattr(torch, name))
        with computing(ctx.device, torch.bfloat16), torch.inference_mode():
            work = partial(pipe.tokenizer.decode_vectors, vectors, pipe.grid)
            made[name] = round(min(ctx.timed(work) for _ in range(5)) * 1e3, 2)
    return {"ms": made}


#: Checks in order, and whether they need a card. The first picture comes before libraries are warm.
CHECKS: tuple[tuple[Callable[[Context], dict[str, Any]], bool], ...] = (
    (first_picture, True),
    (products, False),
    (attention, False),
    (logits, False),
    (tokens_float32, False),
    (tokens_bfloat16, False),
    (reproducible, False),
    (graphs, True),
    (synchronisation, True),
    (profile, True),
    (decoder, True),
    (times, True),
    (halving, False),
    (bad_weights, False),  # last: on a card that fails it, nothing works afterwards
)


def run(ctx: Context) -> list[dict[str, Any]]:
    """Run all checks; one that fails does not stop the others."""
    done = []
    for check, needs_card in CHECKS:
        name = check.__name__
        about: dict[str, Any] = {"name": name}
        began = time.perf_counter()
        if needs_card and not ctx.has_card:
            about["status"] = "needs a card"
        else:
            try:
                about |= {"status": "passed"} | check(ctx)
            except Exception as error:
                words = str(error) if isinstance(error, FailedError) else traceback.format_exc(limit=-3)
                about |= {"status": "failed", "why": words[-4000:]}
        about["seconds"] = round(time.perf_counter() - began, 2)
        print(f"{name}: {about['status']} ({about['seconds']} s)", file=sys.stderr, flush=True)
        done.append(about)
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--make-reference", type=Path, metavar="FILE", help="write the reference, and end")
    parser.add_argument("--reference", type=Path, metavar="FILE", help="what --make-reference wrote")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 ... mps or cpu")
    parser.add_argument("--smoke", action="store_true", help="few samples: whether the script runs")
    given = parser.parse_args()
    from safetensors.torch import load_file, save_file

    from narcli import __version__
    from narcli.devices import about_card, choose_device
    from narcli.errors import NarError

    if given.make_reference:
        save_file(make_reference(given.smoke), given.make_reference)
        return 0
    began = time.perf_counter()
    try:
        device = choose_device(given.device)
    except NarError as error:
        parser.error(str(error))
    reference = load_file(given.reference) if given.reference else make_reference(given.smoke)
    checks = run(Context(device, given.smoke, reference))
    verdict = "fail" if any(check["status"] == "failed" for check in checks) else "pass"
    document = {
        "verdict": verdict,
        "device": device.type,
        **about_card(device),
        "narcli": __version__,
        "torch": torch.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "smoke": given.smoke,
        "reference": "a file" if given.reference else "this machine's CPU",
        "seconds": round(time.perf_counter() - began, 1),
        "checks": checks,
    }
    print(json.dumps(document, indent=1))
    return verdict == "fail"


if __name__ == "__main__":
    raise SystemExit(main())
