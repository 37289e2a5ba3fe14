"""Display of runs and budgets: progress, paths of files, and a line or document at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..allocator import keep_memory
from ..media.inits import read_cells
from ..media.schema import SCHEMA
from ..runs.recipe import Recipe
from .console import Console, bytes_text, is_terminal

if TYPE_CHECKING:
    from ..order import Order
    from ..runs.events import Finished
    from ..runs.plan import Host
    from ..runs.run import Loader


@dataclass
class Session:
    """Output of a command that makes files.

    Args:
        console: printer of the command.
        as_json: print one document instead of lines.
        yes: approve downloads without asking.
        dry_run: print budgets and run nothing.
        documents: documents of the runs so far, with ``as_json``.
        files: paths written so far or, in dry runs, that would be.
    """

    console: Console
    as_json: bool = False
    yes: bool = False
    dry_run: bool = False
    documents: list[dict[str, Any]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    @classmethod
    def of(cls, chosen: Mapping[str, Any]) -> Session:
        """Make the session that the options of a command ask for."""
        console = Console(chosen["quiet"])
        return cls(console, chosen["as_json"], chosen["yes"], chosen.get("dry_run", False))

    @property
    def host(self) -> Host:
        """Callbacks of a run."""
        from ..runs.plan import Host

        approve: Callable[[Mapping[str, int]], None] = self.console.approve_download
        return Host(
            self.console.note,
            self.console.warn,
            (lambda sizes: None) if self.yes else approve,
            not self.console.quiet and is_terminal(sys.stderr),
        )

    def run(self, recipe: Recipe) -> None:
        """Carry out one recipe, the only one of a command, and report it.

        Raises:
            NarError: of any kind; files written before are whole and reported.
        """
        try:
            if self.dry_run:
                self.budget(recipe)
            else:
                self.tell(self.make(recipe))
        finally:
            for document in self.documents:
                self.console.json(document)

    def make(self, recipe: Recipe, loader: Loader | None = None) -> Finished:
        """Carry out a recipe without the report."""
        from ..runs.run import run

        keep_memory()
        reserved = tuple(self.files)
        return self.follow(run(recipe, self.host, loader=loader, reserved=reserved))

    def follow(self, events: Generator[Any, None, None]) -> Finished:
        """Show the progress of a run and print its files, even if the rest fails."""
        from ..runs.events import Finished, FrontierDecoded, Written
        from ..runs.run import Loaded

        written: list[Path] = []
        bars, steps = _Bars(self.console), 0
        try:
            with bars.closed(), closing(events):
                for event in events:
                    match event:
                        case Loaded():
                            steps = len(event.pipeline.order.steps)
                            batches = ceil(len(event.samples) / event.batch_size)
                            bars.open("decoding", batches * steps)
                        case Written():
                            written.append(event.path)
                        case FrontierDecoded():
                            bars.open("decoding the frontier", event.steps)
                            bars.to(bars.done + 1)
                        case Finished():
                            return event
                        case _:
                            bars.to(event.batch * steps + event.step.index + 1, event.batches * steps)
        finally:
            self.files += written
            for path in written if not self.as_json else ():
                self.console.result(path)
        raise AssertionError("a run ends with Finished")

    def tell(self, run: Finished) -> None:
        """Report a run."""
        if self.as_json:
            self.documents.append(run.document())
        else:
            self.console.note(summary(run))

    def budget(self, recipe: Recipe) -> None:
        """Report what a run would download, need and write.

        Raises:
            NarError: disk or memory is too small; raised after the report.
        """
        from ..runs.run import budget

        keep_memory()
        made = budget(recipe, self.host, reserved=tuple(self.files))
        found = made.found
        parts = (found.model, found.tokenizer, found.encoder and found.encoder.located)
        for note in dict.fromkeys(part.note for part in parts if part):
            if note:
                self.console.warn(f"{note} Sizes are those of the models' pages.")
        about = made.document()
        if self.as_json:
            self.documents.append(about)
        else:
            _print_budget(self.console, about, made.order)
        self.files += made.plan.outputs.names if made.plan.outputs else []
        made.check()

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Print the documents of several runs at the end, even if a later one fails."""
        try:
            yield
        finally:
            if self.as_json and self.documents:
                self.console.json({"schema": SCHEMA, "runs": self.documents})


def summary(run: Finished) -> str:
    """Return a line about a run."""
    first, last = run.samples[0], run.samples[-1]
    made = str(first.entry) if len(run.samples) == 1 else f"{len(run.samples)} {run.recipe.noun}s"
    seeds = f"seed {first.seed}" if first.seed == last.seed else f"seeds {first.seed} to {last.seed}"
    steps = steps_text(run.order, " steps")
    if init := run.common.get("init"):
        steps += f", {len(read_cells(init['cells'], 'The run'))} given"
    return f"{made}, {seeds}: {steps}, {run.seconds['total']:.1f} s"


def steps_text(order: Order, noun: str = "") -> str:
    """Return ``31 instead of 256``, the passes of an order and those of raster order if they are fewer."""
    count, cells = len(order.steps), prod(order.sizes)
    return f"{count}{noun}" + (f" instead of {cells}" if count < cells else "")


class _Bars:
    """Progress line of the current phase."""

    def __init__(self, console: Console) -> None:
        self._console, self._stack, self._label = console, ExitStack(), ""
        self._advance: Callable[..., None] = lambda *_: None
        self.done = 0

    def open(self, label: str, total: int) -> None:
        """Show a phase in place of the last one."""
        if label != self._label:
            self._stack.close()
            self._advance = self._stack.enter_context(self._console.progress(label, total))
            self._label, self.done = label, 0

    def to(self, done: int, total: int | None = None) -> None:
        """Move the line to a number of steps."""
        self._advance(done - self.done, "steps", total)
        self.done = done

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Erase the line at the end."""
        with self._stack:
            yield


def _print_budget(console: Console, about: Mapping[str, Any], order: Order | None) -> None:
    download, memory = about["download"], about["memory"]
    parts = ", ".join(f"{name} {bytes_text(size)}" for name, size in download["parts"].items())
    unknown = "known once the model is here"
    needed, there = memory["needed"], memory["available"]
    rows = {
        "model": about["model"] + (f" at {about['commit']}" if about["commit"] else ""),
        "to download": f"{parts}; {bytes_text(download['disk_free'])} free on the disk"
        if parts
        else "nothing",
        "memory": (f"about {bytes_text(needed['total'])}" if needed else unknown)
        + (f"; {bytes_text(there)} available" if there is not None else ""),
        "runs in": f"{about['dtype']} on {about['device']}"
        + (f", batches of {about['batch_size']}" if about["batch_size"] else ""),
        "samples": unknown if about["samples_in_all"] is None else f"{about['samples_in_all']}",
        "steps": steps_text(order) if order else unknown,
        "largest frontier": f"{order.widest} tokens" if order else unknown,
        "files": unknown if about["files"] is None else "",
    }
    for title, value in rows.items():
        console.result(f"{title:<17} {value}".rstrip())
    files: Sequence[str] = about["files"] or ()
    for path in files:
        console.result(f"  {path}")
