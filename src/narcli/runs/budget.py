"""Budget of a run: its downloads, memory, steps and files, estimated before it starts."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from .. import memory
from ..checkpoints.load import transformer_config
from ..decoding import check_pair
from ..devices import choose_device, choose_dtype, dtype_name
from ..hub.cache import free_disk
from ..hub.locate import Located, check_disk
from ..hub.sizes import networks_of
from ..limits import available
from ..models.blocks import Kind
from ..order import NAR, Order, named
from ..settings import FIXED_ROWS, SamplingSettings
from ..settings.sweeps import points_of
from .filenames import check_fit, suffix_of
from .recipe import Recipe

if TYPE_CHECKING:
    from .plan import Plan


class Budget:
    """Downloads, memory, steps and files of a planned run.

    Raises:
        UsageError: a device that this machine does not have.
        CheckpointError: a file that cannot be used.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.found, recipe = plan, plan.found, plan.recipe
        self.device = choose_device(recipe.device)
        self.dtype = choose_dtype(recipe.dtype, self.device)
        encoder = self.found.encoder.located if self.found.encoder is not None else None
        self.networks = networks_of(self.found.model, self.found.tokenizer, encoder)
        if (sizes := self.networks.transformer) is not None:
            self.networks = replace(self.networks, transformer=sizes.decoded_in(recipe.order))
        here = self.found.model.copy  # its config.json may say more than the Hub does
        row = here.model if here else self.found.model.model
        if here is not None and sizes is not None and sizes.kind != recipe.model_kind:
            transformer_config(
                here.path, kind=cast("Kind", recipe.model_kind), grid=row.grid
            )  # says what it makes
        points, sizes = points_of(recipe.ranges), self.networks.transformer
        settings = [SamplingSettings(**{**row.defaults, **recipe.sampling, **point}) for point in points]
        self.guided = any(each.guided(0, sizes.unguided if sizes else 1.0) for each in settings)
        for each in settings:
            each.check(sizes.fixed if sizes else {})
        # A text encoder elsewhere takes other memory.
        beside = recipe.text_device is None or choose_device(recipe.text_device).type == self.device.type
        self.encode = bool(recipe.prompts) and beside and self.found.encode
        self.samples = len(points) * (len(plan.samples) if plan.samples is not None else recipe.num)
        self.files = files_of(recipe, self.samples, suffix_of(recipe, plan.outputs))

    @cached_property
    def batch_size(self) -> int | None:
        """Samples decoded together, given or by ``memory.choose_batch_size``; None if not known yet."""
        planned = len(self.plan.samples) if self.plan.samples is not None else None
        wanted = self.plan.recipe.batch_size
        if self.plan.recipe.reproducible:
            return wanted or FIXED_ROWS
        if wanted is not None:
            return min(wanted, planned or wanted)
        if not self.networks.runs:
            return None
        return memory.choose_batch_size(
            self.networks, self.dtype, self.device, planned,
            guided=self.guided, encode=self.encode, files=self.files,
        )  # fmt: skip

    @cached_property
    def memory(self) -> memory.Memory | None:
        """Estimated memory; None if sizes are unknown before the download."""
        if self.batch_size is None or not self.networks.runs:
            return None
        return memory.estimate(
            self.networks, self.dtype, self.batch_size,
            guided=self.guided, device=self.device.type, encode=self.encode, files=self.files,
        )  # fmt: skip

    def check(self) -> None:
        """Check that disk and memory can hold the run.

        Raises:
            NarError: the disk is too small.
            MemoryLimitError: the memory is too small.
        """
        check_disk(self.found.needed)
        if self.batch_size is not None and self.networks.runs:
            memory.check(
                self.found.model.model, self.networks, self.dtype, self.batch_size, self.device,
                guided=self.guided, encode=self.encode, files=self.files,
            )  # fmt: skip

    def check_fit(self) -> None:
        """Compare recipe, model and tokenizer before the download, as far as their sizes are known.

        Raises:
            UsageError: recipe and model do not fit.
            CheckpointError: model and tokenizer do not belong together.
        """
        model, tokenizer, recipe = self.networks.transformer, self.networks.tokenizer, self.plan.recipe
        if model is None or tokenizer is None or model.kind != recipe.model_kind:
            return
        who, where = (_place(part) for part in (self.found.model, self.found.tokenizer or self.found.model))
        check_pair(who, model.decoding_order, tokenizer, where, model.vocab_size)
        check_fit(recipe, model.decoding_order, tokenizer)

    @property
    def order(self) -> Order | None:
        """Decoding order of the model; None if it is unknown before the download."""
        row, sizes = self.found.model.model, self.networks.transformer
        if sizes is not None:
            return sizes.decoding_order
        return named(row.sizes.get("order", NAR), row.grid) if row.grid else None

    def document(self) -> dict[str, Any]:
        """Return the budget as JSON; null stands for values that are unknown before the download."""
        row, order, outputs = self.found.model.model, self.order, self.plan.outputs
        return {
            "dry_run": True,
            "model": row.name,
            "commit": self.found.model.commit,
            "device": str(self.device),
            "dtype": dtype_name(self.dtype),
            "batch_size": self.batch_size,
            "samples_in_all": self.samples if self.plan.samples is not None else None,
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


def _place(part: Located) -> object:
    """Return the path of a model on this machine, or its name."""
    return part.copy.path if part.copy else part.model.name


def files_of(recipe: Recipe, samples: int, suffix: str) -> memory.Files:
    """Describe the files of a run for the estimate of its memory."""
    return memory.Files(
        samples,
        suffix=suffix,
        frames=recipe.frames,
        scale=recipe.scale,
        frontier=recipe.frontier or "none",
        partials=recipe.frontier_mode == "decode",
        sheet=recipe.sheet or bool(recipe.ranges),
        labels=recipe.labels or bool(recipe.ranges),
    )
