"""Replay of a program's steps as CUDA graphs: a step costs one launch instead of some hundred.

Untried on a graphics card.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..devices import release
from ..errors import first_line, is_shortage
from ..models.network import Network
from ..sampling import Step
from .program import Batch, Eager, Runner, StepProgram, walk

#: Records the work of a function, which it need not run, and returns a function that does the work again.
Record = Callable[[Callable[[], object]], Callable[[], object]]
KEPT = 2  # programs whose graphs are kept
SEEN = 64  # programs that are remembered as run once


class CudaGraphs:
    """Records work on a CUDA device as graphs, which share one pool of memory.

    Graphs are valid if they are replayed in the order of their recording.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream()

    def __call__(self, work: Callable[[], object]) -> Callable[[], object]:
        """Record a function's work; raise RuntimeError if that cannot be done."""
        try:
            return self._record(work)
        except RuntimeError:
            self._recover()
            raise

    def _record(self, work: Callable[[], object]) -> Callable[[], object]:
        with torch.cuda.device(self.device):
            graph = torch.cuda.CUDAGraph()
            # A failed capture may leave its own stream current: the outer context restores it.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(graph, self._pool, self._stream, "thread_local"),
            ):
                work()
        return graph.replay

    def _recover(self) -> None:
        """Free the pool of a capture that could not end, and leave torch as it was.

        Torch would go on allocating in that pool, and refuse to draw random numbers outside of a capture.
        """
        with torch.cuda.device(self.device):
            with suppress(Exception):  # the capture did end, or torch has no such functions any more
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._pool)
                torch._C._cuda_releasePool(torch.cuda.current_device(), self._pool)
            self._pool = torch.cuda.graph_pool_handle()
            with suppress(RuntimeError):  # a capture that ends resets the generator
                self._record(lambda: torch.zeros(1, device=self.device))


@dataclass
class _Kept:
    """A program with its recorded steps.

    Args:
        program: the program; its buffers and its state stay where they are.
        steps: replay of each pass.
        busy: whether a batch is under way.
    """

    program: StepProgram
    steps: list[Callable[[], object]]
    busy: bool = False

    def replay(self, index: int) -> None:
        """Run a pass again, without its logits."""
        self.steps[index]()


class Graphs(Eager):
    """Records the steps of a program when its second batch comes, and replays them from then on.

    The first batch runs as in ``Eager``, so that libraries are ready and a run of one batch pays nothing.
    The programs of two kinds of batches are kept. If recording fails, all batches run as in ``Eager``; if
    memory does not hold the graphs of a kind, those of this kind do.

    Args:
        device: of the models.
        recorder: makes a recorder for the steps of one program.
    """

    def __init__(self, device: torch.device, recorder: Callable[[torch.device], Record] = CudaGraphs) -> None:
        self.device, self.recorder = device, recorder
        self.fails = False
        self._seen: OrderedDict[Any, bool] = OrderedDict()  # kinds run once; whether their graphs may fit
        self._kept: OrderedDict[Any, _Kept] = OrderedDict()

    def clear(self) -> bool:
        """Free all programs that no batch uses, and tell whether there were any; kinds begin anew."""
        self._seen.clear()
        idle = [key for key, kept in self._kept.items() if not kept.busy]
        for key in idle:
            del self._kept[key]
        return bool(idle)

    def run(self, model: Network, batch: Batch, tell: Callable[[str], object]) -> Iterator[Step]:
        """Run a batch; steps that are replayed have no logits."""
        key = model, len(batch.seeds), batch.structure(model), batch.order
        kept = None if batch.logits else self._program(key, batch, tell)
        if kept is None:
            yield from super().run(model, batch, tell)
            return
        kept.busy = True
        try:
            kept.program.load(batch)
            yield from walk(kept.program, kept.replay)
        finally:
            kept.busy = False

    def _program(self, key: Any, batch: Batch, tell: Callable[[str], object]) -> _Kept | None:
        """Return the recorded program of a kind of batches, or None if this batch should run otherwise."""
        if self.fails or (key in self._kept and self._kept[key].busy):
            return None
        if key in self._kept:
            self._kept.move_to_end(key)
        elif self._seen.get(key):
            while len(self._kept) >= KEPT:
                self._kept.popitem(last=False)
            if (kept := self._recorded(key, batch, tell)) is not None:
                self._kept[key] = kept
        self._seen.setdefault(key, True)
        if len(self._seen) > SEEN:
            self._seen.popitem(last=False)
        return self._kept.get(key)

    def _recorded(self, key: Any, batch: Batch, tell: Callable[[str], object]) -> _Kept | None:
        try:
            return _record(StepProgram(*key), batch, self.recorder(self.device))
        except (RuntimeError, MemoryError) as error:
            reason, short = _reason(error)
        self.clear()  # here, where no error holds the recorded steps any more
        release(self.device)
        if short:
            self._seen[key] = False
        else:
            self.fails = True
            tell(f"CUDA graphs cannot be used here ({reason}): steps are launched one by one.")
        return None


def _reason(error: BaseException) -> tuple[str, bool]:
    """Words of the error that began it, and whether memory was short.

    The end of a failed capture fails as well, with a message of its own.
    """
    chain = [error]
    while isinstance(before := chain[-1].__context__, RuntimeError | MemoryError):
        chain.append(before)
    return first_line(chain[-1]), any(map(is_shortage, chain))


def _record(program: StepProgram, batch: Batch, record: Record) -> _Kept:
    program.load(batch)
    return _Kept(program, [record(partial(program.step, index)) for index in range(len(program.passes))])


def choose_runner(device: torch.device) -> Runner:
    """Return what runs the passes best on a device."""
    if device.type == "cuda":
        return Graphs(device)
    return Runner() if device.type == "cpu" else Eager()
