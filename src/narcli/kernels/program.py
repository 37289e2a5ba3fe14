"""Generation on a device as a program of steps that touch no host memory, and what runs it.

A step reads the tokens of earlier steps and writes its own, all in buffers of one place and shape. So a batch
waits for the device once, at its end, and a graph of the device's work can be captured once and replayed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.network import Network, State
from ..order import Order
from ..sampling import Step, choose, generate, guidance, refuse_unless, start, uniform_draws
from ..settings import SamplingSettings
from . import draw


class Structure(NamedTuple):
    """Properties of a batch that decide which operators run; all other settings are numbers in buffers.

    Args:
        guided: of each pass, whether its guidance scale is above 1.
        greedy: whether the most likely tokens are taken.
        top_k: as in the settings; 0 is all.
        top_p: whether it is below 1.
        given: whether tokens are given.
        padded: whether some condition tokens are padding.
        dtype: of the weights.
    """

    guided: tuple[bool, ...]
    greedy: bool
    top_k: int
    top_p: bool
    given: bool
    padded: bool
    dtype: torch.dtype


@dataclass(frozen=True)
class Batch:
    """A batch as it is asked for; fields are the arguments of ``Runner.generate``."""

    condition: Tensor
    seeds: Sequence[int]
    settings: SamplingSettings
    padding: Tensor | None
    given: Tensor | None
    order: Order
    logits: bool = False

    def structure(self, model: Network) -> Structure:
        """Return what decides the operators of the batch."""
        settings, greedy = self.settings, self.settings.temperature == 0
        scales, _ = guidance(settings, self.order, model.config.unguided)
        return Structure(
            tuple(scale > 1 for scale in scales),
            greedy,
            0 if greedy or settings.top_k >= model.config.vocab_size else settings.top_k,
            not greedy and settings.top_p < 1,
            self.given is not None,
            self.padding is not None and bool(self.padding.any()),
            model.weight_dtype,
        )


class StepProgram:
    """Everything that the steps of a batch touch, on the device of the model.

    Args:
        model: the network.
        rows: samples of a batch.
        structure: of the batches.
        order: of the model's grid.

    Attributes:
        tokens: (rows, N) int64 in generation order.
        bad: bool without axes: whether logits were NaN or infinite.
    """

    def __init__(self, model: Network, rows: int, structure: Structure, order: Order) -> None:
        self.model, self.rows, self.structure, self.order = model, rows, structure, order
        for padded in (structure.padded, False):  # all made here, so that steps upload nothing
            plan = model.plan(order, padded)
            self.passes = plan.passes
            _ = plan.axes, plan.condition_rotary
        self.last = max((index for index, guided in enumerate(structure.guided) if guided), default=-1)
        device = next(model.parameters()).device
        self.tokens = torch.zeros(rows, order.cells, dtype=torch.int64, device=device)
        self.bad = torch.zeros((), dtype=torch.bool, device=device)
        self._draws = torch.zeros(rows, order.cells, device=device)
        self._numbers = torch.zeros(len(self.passes) + 2, device=device)
        *self._scales, self._divisor, self._top_p = self._numbers.unbind()
        self._given = torch.zeros_like(self.tokens) if structure.given else None
        self._condition: Tensor | None = None
        self._padding: Tensor | None = None
        self.state: State | None = None

    def load(self, batch: Batch) -> None:
        """Copy a batch into the buffers."""
        settings, generation = batch.settings, self.order.generation
        self._condition = self._copied(self._condition, batch.condition)
        if self.structure.padded:
            assert batch.padding is not None
            self._padding = self._copied(self._padding, batch.padding)
        if self._given is not None:
            assert batch.given is not None
            self._given.copy_(batch.given[:, generation])
        self._draws.copy_(uniform_draws(batch.seeds, self.order.cells)[:, generation])
        scales, _ = guidance(settings, self.order, self.model.config.unguided)
        self._numbers.copy_(torch.tensor([*scales, settings.divisor, settings.top_p]))
        self.bad.fill_(False)

    def _copied(self, buffer: Tensor | None, source: Tensor) -> Tensor:
        buffer = torch.empty_like(source, device=self.tokens.device) if buffer is None else buffer
        return buffer.copy_(source)

    def step(self, index: int) -> Tensor:
        """Run a pass; all before must have run. Returns its logits, float32 (B, n, V)."""
        model, structure, step = self.model, self.structure, self.passes[index]
        if index == 0:
            assert self._condition is not None
            self.state = start(model, self._condition, self.last >= 0, self._padding, self.order)
        state = self.state
        assert state is not None
        if self.order.passes[index].feeds:
            if index > self.last:
                state.cache.keep_rows(self.rows)
            model.feed(state, index, self.tokens)
        logits = model.predict(state, index, self._scales[index] if structure.guided[index] else 1.0)
        divisor, top_p = None if structure.greedy else self._divisor, self._top_p if structure.top_p else 1.0
        tokens, finite = choose(logits, self._draws[:, step.cells], divisor, structure.top_k, top_p)
        self.bad.logical_or_(finite.all().logical_not_())
        if self._given is not None:
            given = self._given[:, step.cells]
            tokens = torch.where(given < 0, tokens, given)
        self.tokens[:, step.cells] = tokens
        return logits

    def refuse_bad(self) -> None:
        """Wait for the device, and raise CheckpointError if any logits were NaN or infinite."""
        refuse_unless(~self.bad)


class Runner:
    """Runs passes one by one, each read back: for a CPU, which nothing has to wait for.

    Others run programs, and may keep them for later batches of the same kind.
    """

    @torch.inference_mode()
    def generate(
        self,
        model: Network,
        condition: Tensor,
        seeds: Sequence[int],
        settings: SamplingSettings,
        padding: Tensor | None = None,
        given: Tensor | None = None,
        *,
        order: Order | None = None,
        logits: bool = False,
        tell: Callable[[str], object] = warnings.warn,
    ) -> Iterator[Step]:
        """Decode a batch, one pass at a time, as ``sampling.generate``.

        Steps of programs may have no logits unless ``logits``, and NaN or infinite ones are told of at the
        last pass only. ``tell`` gets messages.
        """
        settings.check(model.config.fixed)
        order = order or model.config.decoding_order
        batch = Batch(condition, seeds, settings, padding, given, order, logits)
        # Smoothing draws a number for each code of each cell, on the host.
        run = Runner.run if settings.more_smooth else type(self).run
        yield from run(self, model, batch, tell)

    def run(self, model: Network, batch: Batch, tell: Callable[[str], object]) -> Iterator[Step]:
        """Run a batch."""
        b = batch
        return generate(model, b.condition, b.seeds, b.settings, b.padding, b.given, order=b.order, draw=draw)

    def clear(self) -> bool:
        """Free everything that no batch uses; tell whether there was anything."""
        return False


class Eager(Runner):
    """Passes of a program, which queues its work and waits at the end of a batch."""

    def run(self, model: Network, batch: Batch, tell: Callable[[str], object]) -> Iterator[Step]:
        """Run a batch, without ``more_smooth``."""
        program = StepProgram(model, len(batch.seeds), batch.structure(model), batch.order)
        program.load(batch)
        return walk(program, program.step)


def walk(program: StepProgram, run: Callable[[int], Tensor | None]) -> Iterator[Step]:
    """Run all passes of a loaded program.

    Args:
        program: the program.
        run: runs a pass by its index; the logits, if there are any, are those of the step.

    Raises:
        CheckpointError: NaN or infinite logits in any pass, after the last.
    """
    cells = program.order.steps
    for index, own in enumerate(program.passes):
        logits = run(index)
        tokens = program.tokens[:, own.cells].clone()  # a later batch overwrites the buffer
        if index == len(cells) - 1:
            program.refuse_bad()
        yield Step(index, cells[index], tokens, logits, own.cells.stop)
