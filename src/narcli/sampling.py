"""Sampling: guidance, filters, random draws and the generation loop over the order.

The settings and their order of application are those of the released code: guidance, temperature,
top-k, top-p, draw. The uniform numbers come from the sample's own seed, so a sample does not depend on
its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .errors import CheckpointError
from .models.network import Network, State
from .order import Order
from .settings import SamplingSettings as SamplingSettings

#: Logits float32 (B, n, V), uniform numbers (B, n) and settings in, tokens (B, n) int64 out.
Draw = Callable[[Tensor, Tensor, SamplingSettings], Tensor]


@dataclass(frozen=True)
class Step:
    """Result of one decoding step.

    Args:
        index: the step, from 0.
        cells: flat indices of its n cells, ascending.
        tokens: (B, n) int64.
        logits: float32 (B, n, V) after guidance, before temperature and filters; None where the step ran as a
            part of a program, which keeps none.
        done: tokens of one sample decoded so far, this step's included.
        vectors: with ``more_smooth``, (B, N, C) for ``Tokenizer.decode_vectors``, since the tokens alone do
            not decode to the picture; else None.
        heads: with ``heads``, float32 (B, n, H, V), the logits of each axis head alone, after guidance; those
            of a head that does not predict a cell mean nothing. Else None.
    """

    index: int
    cells: tuple[int, ...]
    tokens: Tensor
    logits: Tensor | None
    done: int
    vectors: Tensor | None = None
    heads: Tensor | None = None

    def first(self, samples: int | None) -> Step:
        """Return the step of the first samples; None keeps all."""
        if samples is None:
            return self
        parts = ("tokens", "logits", "vectors", "heads")
        there = {name: getattr(self, name) for name in parts if getattr(self, name) is not None}
        return replace(self, **{name: part[:samples] for name, part in there.items()})

    def __repr__(self) -> str:
        return f"<Step {self.index}: {len(self.cells)} cells of {len(self.tokens)} samples>"


@torch.inference_mode()
def generate(
    model: Network,
    condition: Tensor,
    seeds: Sequence[int],
    settings: SamplingSettings,
    padding: Tensor | None = None,
    given: Tensor | None = None,
    *,
    order: Order | None = None,
    draw: Draw | None = None,
    noise: Tensor | None = None,
    heads: bool = False,
) -> Iterator[Step]:
    """Decode a batch, one pass at a time.

    Args:
        model: in evaluation mode.
        condition: (B,) int64 class ids, (B, C, caption_dim) left-padded text features, or (B, C - 1) int64
            codes of given frames.
        seeds: B seeds, one a sample.
        settings: how tokens are drawn.
        padding: (B, C) bool, true where a text feature is padding; None without any.
        given: (B, N) int64 tokens in raster order that replace drawn ones, -1 to draw; None draws all. The
            logits of a step are still the network's.
        order: order of the model's grid; None is the order that it was trained in.
        draw: function that draws the tokens; None is ``draw_plain``.
        noise: (B, N, V) Gumbel noise of ``more_smooth``; None draws it from the seeds.
        heads: also compute the logits of each axis head, which takes a projection each.

    Yields:
        A Step for each pass of the order.

    Raises:
        UsageError: a setting that the model does not have.
    """
    settings.check(model.config.fixed)
    order, draw = order or model.config.decoding_order, draw or draw_plain
    passes, plan, device = order.passes, model.plan(order), condition.device
    # All in generation order, so that those of a pass lie side by side.
    draws = uniform_draws(seeds, order.cells)[:, order.generation].to(device)
    context = torch.zeros(len(seeds), order.cells, dtype=torch.int64, device=device)
    given = None if given is None else given[:, order.generation].to(device)
    noise = None if noise is None else noise[:, order.generation].to(device)
    scales, last = guidance(settings, order, model.config.unguided)
    padding = None if padding is None or not padding.any() else padding
    state = start(model, condition, last >= 0, padding, order)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds] if settings.more_smooth else []
    vectors = None
    for index, (step, scale) in enumerate(zip(passes, scales, strict=True)):
        if step.feeds:
            if index > last:
                state.cache.keep_rows(len(seeds))
            model.feed(state, index, context)
        logits = model.predict(state, index, scale)
        cells = plan.passes[index].cells
        tokens = draw(logits, draws[:, cells], settings)
        if given is not None:
            tokens = torch.where(given[:, cells] < 0, tokens, given[:, cells])
        context[:, cells] = tokens
        if settings.more_smooth:
            own = noise[:, cells] if noise is not None else gumbel_noise(generators, *logits.shape[1:])
            mixture = smooth(logits, own.to(device), step.share, settings)
            vectors = model.mix(state, index, mixture)
        apart = model.predict_heads(state, index, scale) if heads else None
        yield Step(index, step.cells, tokens, logits, cells.stop, vectors, apart)


def guidance(settings: SamplingSettings, order: Order, unguided: float) -> tuple[list[float], int]:
    """Return the guidance scale of each pass, and the last pass whose scale is above 1; -1 if none is."""
    scales = [settings.scale(step.clock, step.share, unguided) for step in order.passes]
    return scales, max((index for index, scale in enumerate(scales) if scale > 1), default=-1)


def start(model: Network, condition: Tensor, guided: bool, padding: Tensor | None, order: Order) -> State:
    """Read the condition of a batch; with guidance also that of the unconditional rows.

    Args:
        condition, padding: as in ``generate``.
        guided: whether a pass needs unconditional rows.
        order: of the model's grid.
    """
    # One by one on a CPU: torch splits GELU over threads and rounds differently at the ends of a part.
    parts = condition.split(1) if condition.device.type == "cpu" else [condition]
    rows = torch.cat([model.condition(one) for one in parts])
    if guided:
        unconditional = model.condition.unconditional(condition[:1])
        rows = torch.cat([rows, unconditional.expand_as(rows)])
        padding = None if padding is None else padding.repeat(2, 1)
    return model.start(rows, len(condition), padding, order)


def sample(
    model: Network,
    condition: Tensor,
    seeds: Sequence[int],
    settings: SamplingSettings,
    padding: Tensor | None = None,
    given: Tensor | None = None,
    *,
    order: Order | None = None,
    draw: Draw | None = None,
) -> Tensor:
    """Sample all tokens of a batch, (B, N) int64 in raster order; arguments as in ``generate``."""
    steps = generate(model, condition, seeds, settings, padding, given, order=order, draw=draw)
    return in_raster_order(order or model.config.decoding_order, [step.tokens for step in steps])


def in_raster_order(
    order: Order, parts: Sequence[Tensor], passes: int | None = None, samples: int | None = None
) -> Tensor:
    """Bring the tokens of the first passes to the CPU, with -1 for all other cells.

    Args:
        order: the order.
        parts: (B, n) int64 of each pass.
        passes: number of passes; None takes all parts.
        samples: number of samples, the first ones; None takes all.

    Returns:
        (B, N) int64, or as many rows as ``samples``.
    """
    known = torch.cat(tuple(parts[:passes]), 1)[:samples].cpu()
    tokens = torch.full((len(known), order.cells), -1)
    tokens[:, order.generation[: known.shape[1]]] = known
    return tokens


def uniform_draws(seeds: Sequence[int], cells: int) -> Tensor:
    """Draw a number in [0, 1) for each sample and cell: float32 (B, cells), equal on every device."""
    return torch.stack([torch.rand(cells, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def gumbel_noise(generators: Sequence[torch.Generator], cells: int, codes: int) -> Tensor:
    """Draw Gumbel noise for each sample, cell and code: float32 (B, cells, V), equal on every device."""
    uniform = (torch.rand(cells, codes, generator=generator) for generator in generators)
    return torch.stack([-(-own.clamp(min=2.0**-25).log()).log() for own in uniform])


def smooth(logits: Tensor, noise: Tensor, share: float, settings: SamplingSettings) -> Tensor:
    """Mix the codes that may be drawn, the sharper the further the pass (VAR's ``more_smooth``).

    Args:
        logits: float32 (B, n, V) after guidance.
        noise: (B, n, V) Gumbel noise.
        share: how far the pass is, from 0 to 1.
        settings: temperature and filters.

    Returns:
        (B, n, V), shares of the codes, which add up to 1.
    """
    logits = (logits - logits.amax(-1, keepdim=True)).div_(settings.divisor)
    logits = filter_logits(logits, settings.top_k, settings.top_p)
    sharpness = max(0.27 * (1 - 0.95 * share), 0.005)
    return ((logits * (1 + share) + noise) / sharpness).softmax(-1)


def draw_plain(logits: Tensor, uniform: Tensor, settings: SamplingSettings) -> Tensor:
    """Draw tokens through the inverse of the cumulative distribution.

    Args:
        logits: float32 (B, n, V) after guidance.
        uniform: (B, n) in [0, 1).
        settings: temperature and filters.

    Returns:
        (B, n) int64.

    Raises:
        CheckpointError: NaN or infinite logits.
    """
    divisor = settings.divisor if settings.temperature else None
    tokens, finite = choose(logits, uniform, divisor, settings.top_k, settings.top_p)
    refuse_unless(finite)
    return tokens


def choose(
    logits: Tensor,
    uniform: Tensor,
    divisor: float | Tensor | None,
    top_k: int = 0,
    top_p: float | Tensor = 1.0,
) -> tuple[Tensor, Tensor]:
    """Draw tokens without reading anything back from the device.

    Args:
        logits: float32 (B, n, V) after guidance.
        uniform: (B, n) in [0, 1).
        divisor: of the logits; None takes the most likely token.
        top_k: as in ``filter_logits``.
        top_p: as in ``filter_logits``.

    Returns:
        The tokens, (B, n) int64 below V, and bool (B, n): false where logits are NaN or infinite, so that the
        token means nothing.
    """
    if divisor is None:
        tokens = logits.argmax(-1)
        return tokens, logits.gather(-1, tokens[..., None]).squeeze(-1).isfinite()
    logits = (logits - logits.amax(-1, keepdim=True)).div_(divisor)
    logits = filter_logits(logits, top_k, top_p)
    cumulative = logits.softmax(-1).cumsum(-1)
    # Strictly below the last value, so that rounding never selects an excluded token.
    total = cumulative[..., -1]
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens = torch.searchsorted(cumulative, target[..., None], right=True).squeeze(-1)
    return tokens.clamp_(max=logits.shape[-1] - 1), total.isfinite()


def refuse_unless(finite: Tensor) -> None:
    """Raise unless all logits are finite.

    Args:
        finite: bool, any shape.

    Raises:
        CheckpointError: an element is false.
    """
    if not finite.all():
        raise CheckpointError(
            "The network gives logits that are no numbers, or infinite.",
            "Its weights are damaged, or too large for this number format: try `dtype=float32`.",
        )


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float | Tensor = 1.0) -> Tensor:
    """Set logits to minus infinity for every token that top-k or top-p excludes.

    Args:
        logits: (..., V).
        top_k: keep everything at least as large as the k-th largest; 0 keeps all.
        top_p: keep the shortest prefix of the remaining sorted tokens whose cumulative probability exceeds
            this, at least one token; the number 1 keeps all.
    """
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < kth_largest_plain(logits, top_k), -torch.inf)
    if isinstance(top_p, Tensor) or top_p < 1:
        ranked, indices = logits.sort(descending=True)
        probabilities = ranked.softmax(-1)
        # A token is dropped if those before it already exceed top_p.
        dropped = probabilities.cumsum(-1) - probabilities > top_p
        dropped[..., 0].fill_(False)
        logits = logits.masked_fill(dropped.scatter(-1, indices, dropped), -torch.inf)
    return logits


def kth_largest_plain(values: Tensor, k: int) -> Tensor:
    """Find the k-th largest value of each row: (..., V) float32 -> (..., 1)."""
    if values.device.type != "cpu":
        return values.topk(k, sorted=False).values.amin(-1, keepdim=True)
    place = values.shape[-1] - k  # in ascending order; numpy 2 finds it in a sixth of the time of topk
    return torch.from_numpy(np.partition(values.numpy(), place, -1)[..., place, None])
