"""Records of runs: how sure the network was of each cell.

A record is of the distribution that a token is drawn from, after guidance, temperature, top-k and top-p.
It is computed from the logits of the steps, beside the draw, so it changes no token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import log, log2
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .errors import CheckpointError, UsageError
from .kernels import kth_largest
from .media.metadata import hash_of
from .media.readers import read_metadata
from .media.textfiles import check_regular, expand
from .media.writers import write_arrays
from .order import NAR, Order, named
from .rules import MAX_CELLS
from .sampling import Step, filter_logits
from .settings import SamplingSettings

#: Extent of a record: cells, or the axis heads of each cell too; None records nothing.
Extent = Literal["cells", "heads"] | None
ALTERNATIVES = 5
#: Numbers of logits that are summarised together: one pass alone would be mostly overhead.
TOGETHER = 2**19
#: Temperature below which logits are shifted before they are divided.
LEAST = 1e-3
#: Codes of a block, when the likeliest codes are looked for.
BLOCK = 64
Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False, repr=False)
class Record:
    """Record of one sample: an entry for each of N cells, in raster order (VAR: scale by scale).

    Args:
        tokens: (N,) int32, drawn tokens.
        probability: (N,) float32 in [0, 1], of the drawn token under the distribution that it was drawn from.
            With a temperature of 0 the likeliest token has 1.
        entropy: (N,) float32 in bits, of that distribution: 0 to log2 of the number of codes.
        rank: (N,) int32, place of the drawn token among all codes by probability; 1 is the likeliest.
        codes: (N, K) int32, the K = 5 likeliest codes, the likeliest first; K is less for fewer codes.
        probabilities: (N, K) float32 in [0, 1], theirs; 0 of codes that top-k or top-p excludes.
        head_probability: (N, H) float32 in [0, 1], of the drawn token under the distribution of each axis
            head alone, at the same guidance and temperature, before top-k and top-p. NaN for a head that does
            not predict the cell. None if the axis heads are not recorded.
        head_entropy: (N, H) float32 in bits, of these distributions; NaN as above.
        disagreement: (N,) float32 in bits, Jensen-Shannon divergence of the axis heads that predict the cell:
            0 if they are equal, at most log2 of their number. NaN if there is one.
        metadata: settings of the sample, as in its file.
    """

    tokens: Ints
    probability: Floats
    entropy: Floats
    rank: Ints
    codes: Ints
    probabilities: Floats
    head_probability: Floats | None = None
    head_entropy: Floats | None = None
    disagreement: Floats | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        heads = "" if self.disagreement is None else ", with axis heads"
        return f"<Record: {len(self.tokens)} cells, {self.bits:.1f} bits{heads}>"

    @property
    def bits(self) -> float:
        """Bits of all draws: the negative logarithm of the probability of the whole sample."""
        return float(-np.log2(np.maximum(self.probability.astype(float), 1e-45)).sum())

    @property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays by name, without those that are None."""
        named_arrays = {each.name: getattr(self, each.name) for each in fields(self)[:-1]}
        return {name: array for name, array in named_arrays.items() if array is not None}

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the arrays as safetensors, with the metadata that ``narcli show`` and ``rerun`` read.

        Args:
            path: file that ends in ``.safetensors``. A name that is taken gets a number.
            overwrite: replace an existing file.

        Returns:
            The path that was written.

        Raises:
            UsageError: another ending.
            NarError: the file cannot be written.
        """
        path = expand(path)
        if path.suffix.lower() != ".safetensors":
            raise UsageError(
                f"`path` ends in {path.suffix!r}, expected .safetensors.", "Choose another name."
            )
        return write_arrays(path, self.arrays, self.metadata, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Read what ``save`` wrote. All numbers are checked.

        Raises:
            CheckpointError: no such file, a damaged one, no record, or tokens that differ from their hash.
        """
        path = expand(path)
        metadata, arrays = read_metadata(path), _read(path)
        order = named(metadata.get("order", NAR), tuple(metadata["grid"])) if "grid" in metadata else None
        cells, told = len(arrays["tokens"]), metadata.get("tokens_sha256")
        if order is not None and order.cells != cells:
            raise CheckpointError(
                f"{path} records {cells} cells, and its grid has {order.cells}.", "Get the original file."
            )
        if told is not None and told != hash_of(arrays["tokens"].tolist()):
            raise CheckpointError(f"{path}: its tokens are not those of its hash.", "Get the original file.")
        return cls(**arrays, metadata=metadata)


# --- files ---------------------------------------------------------------------------------------


def holds_record(path: Path) -> bool:
    """Tell whether a safetensors file holds the arrays of a record, of whatever sizes."""
    from safetensors import SafetensorError, safe_open

    check_regular(path)
    try:
        with safe_open(path, "np") as file:
            return {*_LAYOUT} - {*_HEADS_APART} <= set(file.keys())
    except (OSError, SafetensorError):
        return False


_CELLS, _CODES, _HEADS = "N", "K", "H"
#: Shape, dtype, least and most of each array.
_LAYOUT: Mapping[str, tuple[tuple[str, ...], str, float, float]] = {
    "tokens": ((_CELLS,), "I32", 0, 2**31),
    "probability": ((_CELLS,), "F32", 0, 1),
    "entropy": ((_CELLS,), "F32", 0, 31),
    "rank": ((_CELLS,), "I32", 1, 2**31),
    "codes": ((_CELLS, _CODES), "I32", 0, 2**31),
    "probabilities": ((_CELLS, _CODES), "F32", 0, 1),
    "head_probability": ((_CELLS, _HEADS), "F32", 0, 1),
    "head_entropy": ((_CELLS, _HEADS), "F32", 0, 31),
    "disagreement": ((_CELLS,), "F32", 0, log2(3)),
}
_HEADS_APART = ("head_probability", "head_entropy", "disagreement")


def _read(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays of a record, sizes first."""
    from safetensors import SafetensorError, safe_open

    check_regular(path)
    refused = CheckpointError(f"{path} is no record of a run, or damaged.", "`record` writes such files.")
    try:
        with safe_open(path, "np") as file:
            there = set(file.keys())
            if there not in ({*_LAYOUT}, {*_LAYOUT} - {*_HEADS_APART}):
                raise refused
            sizes: dict[str, int] = {}
            for name in sorted(there):
                axes, dtype, _, _ = _LAYOUT[name]
                part = file.get_slice(name)
                shape = part.get_shape()
                same = len(shape) == len(axes) and all(
                    size == sizes.setdefault(axis, size) for size, axis in zip(shape, axes, strict=True)
                )
                limits = {_CELLS: MAX_CELLS, _CODES: ALTERNATIVES, _HEADS: 3}
                small = all(0 < size <= limits[axis] for axis, size in sizes.items())
                if not same or not small or part.get_dtype() != dtype:
                    raise CheckpointError(
                        f"{path}: {name} is {json.dumps(shape)} of {part.get_dtype()}, "
                        f"expected ({', '.join(axes)}) of {dtype} with N up to {MAX_CELLS}.",
                        "Get the original file.",
                    )
            arrays = {name: file.get_tensor(name) for name in there}
    except (OSError, SafetensorError):
        raise refused from None
    for name, array in arrays.items():
        _, _, least, most = _LAYOUT[name]
        within = (array >= least) & (array <= most * (1 + 1e-6))
        if not (within | np.isnan(array) if name in _HEADS_APART else within).all():
            raise CheckpointError(
                f"{path}: {name} has numbers outside of {least:g} to {most:g}.", "Get the original file."
            )
    return arrays


# --- recording -----------------------------------------------------------------------------------


def check_extent(order: Order, record: Extent | bool) -> Extent:
    """Check that a model of an order has what is to be recorded, and return it; True stands for cells.

    Raises:
        UsageError: axis heads, of an order that has one; or a value that is none of these.
    """
    if record not in (None, False, True, "cells", "heads"):
        raise UsageError(f"`record` is {record!r}, expected cells or heads.")
    if record == "heads" and len(order.heads) < 2:
        raise UsageError(
            f"`record` is heads, and the order {order.name} predicts with a single head.",
            "Give `record=cells`.",
        )
    return "cells" if record is True else record or None


class Recorder:
    """Recorder of a batch: takes its steps, returns a record for each sample.

    Args:
        order: order that the steps are of.
        samples: B.
        settings: settings that the tokens are drawn with.
    """

    def __init__(self, order: Order, samples: int, settings: SamplingSettings) -> None:
        self._order, self._samples, self._settings = order, samples, settings
        self._waiting: list[tuple[Step, Tensor]] = []  # with its logits
        self._cells: list[int] = []
        self._parts: list[dict[str, Tensor]] = []

    @torch.inference_mode()
    def add(self, step: Step) -> None:
        """Record a step, which has logits; its axis heads too if it has them."""
        assert step.logits is not None
        self._waiting.append((step, step.logits))
        last = step.done == self._order.cells
        if last or sum(logits.numel() for _, logits in self._waiting) >= TOGETHER:
            self._summarise()

    def records(self) -> list[Record]:
        """Return the record of each sample, once all steps are added; without metadata."""
        arrays = {}
        for name in self._parts[0]:
            values = torch.cat([part[name] for part in self._parts], 1)
            dtype = torch.float32 if values.is_floating_point() else torch.int32
            placed = torch.empty(values.shape, dtype=dtype)
            placed[:, self._cells] = values.to("cpu", dtype)
            arrays[name] = placed.numpy()
        return [
            Record(**{name: array[index] for name, array in arrays.items()}) for index in range(self._samples)
        ]

    def _summarise(self) -> None:
        waiting, self._waiting = self._waiting, []
        steps = [step for step, _ in waiting]
        self._cells += [cell for step in steps for cell in step.cells]
        tokens, logits = steps[0].tokens, waiting[0][1]
        if len(steps) > 1:
            tokens = torch.cat([step.tokens for step in steps], 1)
            logits = torch.cat([each for _, each in waiting], 1)
        made = summary(logits, tokens, self._settings)
        if all(step.heads is not None for step in steps):
            apart = torch.cat([step.heads for step in steps if step.heads is not None], 1)
            weights = torch.zeros(apart.shape[1:3])
            terms = [own for step in steps for own in self._order.passes[step.index].sources]
            for row, own in enumerate(terms):
                for source in own:
                    weights[row, source.head] = source.weight
            made |= heads_summary(apart, tokens, weights.to(apart.device), self._settings)
        self._parts.append(made)


def summary(logits: Tensor, tokens: Tensor, settings: SamplingSettings) -> dict[str, Tensor]:
    """Summarise the distributions that tokens were drawn from.

    Args:
        logits: float32 (B, n, V) after guidance.
        tokens: (B, n) int64.
        settings: temperature and filters.

    Returns:
        The arrays of ``Record`` by name, (B, n) or (B, n, K) each.
    """
    rows, own = logits.flatten(0, 1), tokens.flatten()
    size = max(1, TOGETHER // rows.shape[1]) if rows.device.type == "cpu" else len(rows)
    pairs = zip(rows.split(size), own.split(size), strict=True)
    parts = [_summary(part, drawn, settings) for part, drawn in pairs]
    return {name: torch.cat([part[name] for part in parts]).unflatten(0, tokens.shape) for name in parts[0]}


def _summary(rows: Tensor, tokens: Tensor, settings: SamplingSettings) -> dict[str, Tensor]:
    """Summarise (R, V) logits and (R,) tokens: (R,) or (R, K) each."""
    own, (top, codes) = rows.gather(1, tokens[:, None]), likeliest(rows)
    cold = settings.temperature < LEAST  # a division of the logits themselves may overflow
    if cold:
        rows, own, top = rows - top[:, :1], own - top[:, :1], top - top[:, :1]
    scaled = rows / settings.divisor
    if 0 < settings.top_k < scaled.shape[1]:
        scaled.masked_fill_(scaled < kth_largest(scaled, settings.top_k), -torch.inf)
    if settings.top_p < 1:
        scaled = filter_logits(scaled, top_p=settings.top_p)
    shares = scaled.softmax(1)
    probabilities = shares.gather(1, codes)
    if cold or settings.top_k or settings.top_p < 1:
        scaled.clamp_(min=-1e30)  # no infinities times 0
    # The likeliest code tells the logarithm of the sum of exponentials.
    mean = torch.linalg.vecdot(shares, scaled)
    entropy = (top[:, 0] / settings.divisor - mean - probabilities[:, 0].log()).clamp_(min=0)
    above = (top > own).sum(1)
    far = (above == top.shape[1]).nonzero()[:, 0]
    if len(far):
        above[far] = (rows[far] > own[far]).sum(1)
    return {
        "tokens": tokens,
        "probability": shares.gather(1, tokens[:, None])[:, 0],
        "entropy": entropy / log(2),
        "rank": above + 1,
        "codes": codes,
        "probabilities": probabilities,
    }


def likeliest(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Find the K largest logits of (R, V), and their codes: two of (R, K), the largest first.

    They are in the K blocks of the largest maxima, which is quicker to find than by a sort of all.
    """
    count = min(ALTERNATIVES, rows.shape[1])
    if rows.shape[1] % BLOCK or rows.shape[1] < 2 * ALTERNATIVES * BLOCK:
        values, codes = rows.topk(count)
        return values, codes
    blocks = rows.unflatten(1, (-1, BLOCK))
    chosen = blocks.amax(2).topk(count).indices
    first = torch.arange(len(rows), device=rows.device)[:, None] * blocks.shape[1]
    values, places = blocks.flatten(0, 1)[chosen + first].flatten(1).topk(count)
    return values, chosen.gather(1, places // BLOCK) * BLOCK + places % BLOCK


def heads_summary(
    logits: Tensor, tokens: Tensor, weights: Tensor, settings: SamplingSettings
) -> dict[str, Tensor]:
    """Summarise the distributions of the axis heads alone.

    Args:
        logits: float32 (B, n, H, V) after guidance.
        tokens: (B, n) int64.
        weights: (n, H) share of each head, 0 where it does not predict.
        settings: their temperature is used.

    Returns:
        The arrays of ``Record`` by name, (B, n) or (B, n, H) each.
    """
    shares = ((logits - logits.amax(-1, keepdim=True)) / settings.divisor).softmax(-1)
    entropy = _entropy(shares)
    own = shares.gather(-1, tokens[..., None, None].expand(*shares.shape[:-1], 1))[..., 0]
    mixed = _entropy((shares * weights[..., None]).sum(-2))
    apart = mixed - (entropy * weights).sum(-1)  # Jensen-Shannon divergence, never below 0 but for rounding
    nan = float("nan")
    return {
        "head_probability": own.masked_fill(weights == 0, nan),
        "head_entropy": entropy.masked_fill(weights == 0, nan),
        "disagreement": apart.clamp(0, log2(logits.shape[2])).masked_fill((weights > 0).sum(-1) < 2, nan),
    }


def _entropy(shares: Tensor) -> Tensor:
    """Entropy in bits of (..., V): (...)."""
    return torch.special.entr(shares).sum(-1).clamp_(min=0) / log(2)
