"""What a run will take: downloads, memory, steps and files; for ``--dry-run``, and to refuse it in time."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from typing import Any

from ..checkpoints.formats.transformer import kind_of
from ..devices import choose_device, choose_dtype
from ..hub.cache import free_disk
from ..hub.locate import check_disk
from ..hub.sizes import networks_of
from ..hub.sources import Found
from ..limits import available
from ..memory import Memory, check, choose_batch_size, estimate
from ..order import neighbor
from ..settings import SamplingSettings
from .console import bytes_text


class Budget:
    """What ``run`` takes with the files that were found for it.

    Raises:
        UsageError: a device that is not there.
        CheckpointError: a file that cannot be used.
    """

    def __init__(self, run: Any, found: Found) -> None:
        self.run, self.found = run, found
        self.device = choose_device(run.device)
        self.dtype = choose_dtype(run.dtype.value, self.device)
        encoder = found.encoder.located if found.encoder is not None else None
        self.networks = networks_of(found.model, found.tokenizer, encoder)
        here = found.model.copy  # its config.json may say more than the Hub does
        row = here.model if here else found.model.model
        settings = SamplingSettings(**{**row.defaults, **run.sampling})
        self.guided = settings.guided(0)
        # A text encoder elsewhere takes other memory.
        beside = run.text_device is None or choose_device(run.text_device).type == self.device.type
        self.encode = bool(run.prompts) and beside and found.encode

    @cached_property
    def batch_size(self) -> int | None:
        """The one asked for, or as ``memory.choose_batch_size`` says; None where that is not known yet."""
        planned = len(self.run.samples) if hasattr(self.run, "samples") else None
        if self.run.batch_size is not None:
            return min(self.run.batch_size, planned or self.run.batch_size)
        if not self.networks.runs:
            return None
        return choose_batch_size(
            self.networks, self.dtype, self.device, planned,
            guided=self.guided, encode=self.encode,
            files=self.run.about_files(),
        )  # fmt: skip

    @cached_property
    def memory(self) -> Memory | None:
        """The estimate; None where sizes are not known before the download."""
        if self.batch_size is None or not self.networks.runs:
            return None
        return estimate(
            self.networks, self.dtype, self.batch_size,
            guided=self.guided, device=self.device.type, encode=self.encode, files=self.run.about_files(),
        )  # fmt: skip

    def check(self) -> None:
        """Refuse what disk or memory cannot hold.

        Raises:
            NarError: the disk is too small.
            MemoryLimitError: the memory is.
        """
        check_disk(self.found.needed)
        if self.batch_size is not None and self.networks.runs:
            check(
                self.found.model.model, self.networks, self.dtype, self.batch_size, self.device,
                guided=self.guided, encode=self.encode, files=self.run.about_files(),
            )  # fmt: skip

    def check_fit(self, kind: str) -> None:
        """``Run.check_fit`` before the download, where sizes are known and belong together.

        What does not belong together, or is of another kind than wanted, is refused when it is loaded.
        """
        model, tokenizer = self.networks.transformer, self.networks.tokenizer
        if model is None or tokenizer is None or kind_of(model) != kind:
            return
        if model.vocab_size == tokenizer.codebook_size:
            with suppress(ValueError):
                self.run.check_fit(model.grid, tokenizer)

    def document(self) -> dict[str, Any]:
        """As JSON; null is what is not known before the download."""
        row, known = self.found.model.model, self.networks.transformer
        order = known.order if known else neighbor(row.grid) if row.grid else None
        outputs = self.run.outputs if hasattr(self.run, "outputs") else None
        return {
            "dry_run": True,
            "model": row.name,
            "commit": self.found.model.commit,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "batch_size": self.batch_size,
            "download": {
                "bytes": sum(self.found.missing.values()),
                "parts": self.found.missing,
                "disk_free": free_disk()[1],
            },
            "memory": {
                "needed": self.memory.document() if self.memory else None,
                "available": available(self.device),
            },
            "steps": len(order.steps) if order else None,
            "cells": order.cells if order else None,
            "largest_frontier": order.widest if order else None,
            "files": [str(path) for path in outputs.names] if outputs else None,
        }

    def tell(self) -> None:
        """Print it on stdout."""
        about = self.document()
        if self.run.as_json:
            self.run.put(about)
            return
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
            "steps": f"{about['steps']} instead of {about['cells']}" if about["steps"] else unknown,
            "largest frontier": f"{about['largest_frontier']} tokens" if about["steps"] else unknown,
            "files": unknown if about["files"] is None else "",
        }
        for title, value in rows.items():
            self.run.console.result(f"{title:<17} {value}".rstrip())
        for path in about["files"] or ():
            self.run.console.result(f"  {path}")
