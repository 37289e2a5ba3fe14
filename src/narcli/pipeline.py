"""From classes or prompts to pictures and clips: load, condition, sample, decode.

A clip is a tuple of frames, and a picture is a clip of one frame.

``Pipeline.steps`` yields once for every decoding step of every batch. The last step of a batch brings its
finished pictures. A long run holds one batch at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import __version__
from .classes import ClassTable
from .decoding import Clip, Decodes, load_networks
from .devices import about_card, choose_device, choose_dtype, computing, dtype_name, memory_guard, release
from .encoding import Clips, PromptEncoder, encode_samples, prompt_encoder, subjects_of
from .errors import MemoryLimitError
from .hub.check import classes_of
from .hub.sizes import Networks
from .hub.sources import Files, choose
from .kernels import draw, prepare, prepare_tokenizer
from .kernels.graphs import choose_runner
from .kernels.program import Runner
from .media.inits import about_init
from .memory import choose_batch_size
from .models.network import Network
from .models.tokenizer import Tokenizer
from .order import Order
from .outpaint import encode, given_tokens
from .prompts import Prompt
from .records import Extent, Recorder, check_extent
from .results import Progress as Progress
from .results import Result, result_of
from .sampling import Step, generate, in_raster_order
from .settings import (
    FIXED_ROWS,
    GivenFrames,
    Options,
    Sample,
    Sampling,
    SamplingSettings,
    check_batch_size,
    plan_samples,
)
from .settings.keep import KEEPS, Init, Keep

if TYPE_CHECKING:
    from typing_extensions import Unpack


def load(
    model: str | Path | None = None,
    *,
    kind: str | None = None,
    tokenizer: str | Path | None = None,
    text_encoder: str | Path | None = None,
    revision: str | None = None,
    device: str = "auto",
    text_device: str | None = None,
    dtype: str = "auto",
    offline: bool = False,
    order: str | None = None,
) -> Pipeline:
    """Load a model of images from classes or text, or of videos from classes or given frames.

    Args:
        model: a name such as ``emoji``, a repository of the Hub, a file or a folder; None is the default.
        kind: ``image`` (from classes), ``text`` (images from text), ``video`` (from classes) or ``frames``
            (videos that go on from frames); None is the model's own if narcli or its folder tells it, else
            ``image``.
        tokenizer: name, repository, file or folder; None is the model's own.
        text_encoder: as ``tokenizer``, of a model of images from text; loaded only to encode prompts.
        revision: branch, tag or commit of the model's repository.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.
        text_device: device of the text encoder; None is the model's.
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``.
        offline: never use the network.
        order: ``zipar:W`` decodes a raster model of images with ZipAR's window W; None is the model's order.

    Raises:
        UsageError: an unknown model, an order that the model does not have, or a device that is not here.
        HubError: a failed download.
        CheckpointError: a file that cannot be used, or two that do not belong together.
        MemoryLimitError: a model that is too large for this machine.
    """
    files = choose(kind, model, tokenizer, revision, text_encoder).fetch(offline=offline)
    encoder = prompt_encoder(files, text_device or device, dtype)
    return load_files(files, device, dtype, encoder, order)


def load_files(
    files: Files,
    device: str = "auto",
    dtype: str = "auto",
    encoder: PromptEncoder | None = None,
    order: str | None = None,
) -> Pipeline:
    """Load a model from files on disk; errors are those of ``load``."""
    began = perf_counter()
    place = choose_device(device)
    known = files.model.model
    with memory_guard("Try a smaller model, or `dtype=bfloat16`."):
        transformer, tokenizer = load_networks(files, place, choose_dtype(dtype, place), order)
        transformer = prepare(transformer)
        prepare_tokenizer(tokenizer)
    classes = classes_of(known, files.model.path, transformer.config.num_classes)
    defaults = SamplingSettings(**known.defaults)  # type: ignore[arg-type]
    source = files.about() | ({"text_encoder": encoder.source} if encoder else {})
    return Pipeline(transformer, tokenizer, classes, defaults, source, perf_counter() - began, encoder)


@dataclass(frozen=True, repr=False)
class Pipeline(Decodes):
    """A model, its tokenizer and its classes, ready to run.

    Args:
        model: transformer with an (H, W) or (T, H, W) grid, in evaluation mode.
        tokenizer: on the same device, of the same dtype.
        classes: classes of the model; none for images from text.
        defaults: sampling settings that apply if none are given.
        source: metadata of the files: ``{"model": {...}, "tokenizer": {...}}``.
        load_seconds: time that loading took.
        encoder: encoder of prompts; None for models of classes.
        runner: runs the passes; None is the best for the device, whose steps may have no logits.
    """

    model: Network
    tokenizer: Tokenizer
    classes: ClassTable
    defaults: SamplingSettings = field(default_factory=SamplingSettings)
    source: Mapping[str, Any] = field(default_factory=dict)
    load_seconds: float = 0.0
    encoder: PromptEncoder | None = None
    runner: Runner | None = None

    def __repr__(self) -> str:
        name = str(self.source.get("model", {}).get("name", "a model"))[:60]
        of = {"text": "prompts", "frames": "given frames"}.get(self.model.config.condition)
        return f"{super().__repr__()[:-1]}, {name}, {of or f'{len(self.classes)} classes'}>"

    def images(
        self,
        classes: int | str | Sequence[int | str] | None = None,
        seed: int | None = None,
        num: int = 1,
        *,
        prompts: str | Sequence[str] | None = None,
        frames_from: Clips | None = None,
        batch_size: int | None = None,
        **options: Unpack[Options],
    ) -> list[Result]:
        """Make pictures or, with a model of videos, clips; arguments and errors are those of ``steps``."""
        given: Any = {"prompts": prompts, "frames_from": frames_from, "batch_size": batch_size, **options}
        steps = self.steps(classes, seed, num, **given)
        return [result for progress in steps for result in progress.results]

    videos = images

    def steps(
        self,
        classes: int | str | Sequence[int | str] | None = None,
        seed: int | None = None,
        num: int = 1,
        *,
        prompts: str | Sequence[str] | None = None,
        frames_from: Clips | None = None,
        batch_size: int | None = None,
        **options: Unpack[Options],
    ) -> Iterator[Progress]:
        """Make pictures or clips, reporting every decoding step.

        Args:
            classes: ids or names; for a model of classes.
            seed: seed of the first sample of each class, prompt or clip; later ones add 1. None draws one.
            num: samples of each class, prompt or clip.
            prompts: texts, for a model of images from text. One that is too long is cut, with a warning.
            frames_from: clips or folders of pictures, for a model that goes on from frames, as
                ``encoding.read_given`` reads them.
            batch_size: samples decoded together, at most; it changes speed and memory, not the samples. None
                looks at the memory.
            options: fields of ``SamplingSettings``, by default the model's; ``init``, a picture or clip to go
                on from, as ``outpaint.encode`` takes it; fields of ``Keep``, which say what is kept of it;
                ``record``, True or ``cells`` for results with a ``Record``, ``heads`` for one with the axis
                heads apart; ``reproducible=True``, which always decodes ``batch_size`` samples together, 16
                for None, with filler ones, so that samples do not depend on the batch on a card either.

        Raises:
            UsageError: an unknown class, an unusable prompt, or a number out of range; raised at once.
            CheckpointError: a picture or clip that cannot be read; raised at once.
            MemoryLimitError, CheckpointError, HubError: while iterating.
        """
        given: dict[str, Any] = dict(options)
        init, extent = given.pop("init", None), check_extent(self.order, given.pop("record", None))
        fixed = given.pop("reproducible", False)
        if batch_size is None and fixed:
            batch_size = FIXED_ROWS
        keep = Keep(**{name: given.pop(name) for name in KEEPS if name in given})
        chosen = self.settings(**given)
        chosen.check(self.model.config.fixed)
        entries = subjects_of(self.model.config.condition, self.classes, classes, prompts, frames_from)
        keep.check(init, frames_from is not None)
        samples = plan_samples(entries, seed, num)
        samples = encode_samples(samples, self.tokenizer, self.model.config)
        init = None if init is None else encode(init, keep, self.tokenizer, self.order)
        if batch_size is None:
            networks, dtype = Networks(self.model.config, self.tokenizer.config), self._dtype
            batch_size = choose_batch_size(
                networks,
                dtype,
                self.device,
                len(samples),
                guided=chosen.guided(0, self.model.config.unguided),
                loaded=True,
            )
        return self.run(samples, chosen, check_batch_size(batch_size), init=init, record=extent, fixed=fixed)

    def settings(self, **given: Unpack[Sampling]) -> SamplingSettings:
        """Return the model's settings, replaced by those that are given and not None.

        Raises:
            UsageError: a setting out of range, or guidance for a model that goes on from frames.
        """
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        chosen = replace(self.defaults, **changes)
        if self.model.config.condition == "frames":
            chosen.refuse_guidance()
        return chosen

    @torch.inference_mode()
    def run(
        self,
        samples: Sequence[Sample],
        settings: SamplingSettings,
        batch_size: int,
        tell: Callable[[str], object] = warnings.warn,
        init: Init | None = None,
        record: Extent = None,
        *,
        fixed: bool = False,
    ) -> Generator[Progress, None, None]:
        """Decode samples batch by batch; ``steps`` calls it with everything chosen.

        A batch that memory does not hold, even without what is kept of earlier ones, is halved, and so are
        later ones; ``tell`` gets a message. The kept tokens of ``init`` are those of every sample; ``record``
        is the extent of the results' records.
        ``fixed`` always decodes ``batch_size`` samples: filler ones complete a batch, and none is halved.
        """
        seconds = {"sample": 0.0, "decode": 0.0}
        start, number, wanted, freed = 0, 0, len(samples), False
        if fixed:
            samples = [*samples, *[samples[-1]] * (-wanted % batch_size)]
        while start < wanted:
            batch = tuple(samples[start : start + batch_size])
            began = perf_counter()
            condition, padding = self._condition(samples, start, len(batch))
            if self.encoder is not None:
                seconds["encode"] = seconds.get("encode", 0.0) + perf_counter() - began
            batches = number + ceil((len(samples) - start) / batch_size)
            try:
                own = batch[: wanted - start]
                kept = len(own) if fixed else None
                asked = batch, condition, padding, settings, seconds, tell, init, record, kept
                for decoded in self._sample_batch(*asked):
                    yield Progress(number, batches, own, *decoded, dict(seconds))
                    del decoded
            except MemoryLimitError as error:
                cleared = self._passes.clear()
                again, freed = cleared and not freed, True
                if fixed and batch_size > 1:
                    error.hint = f"Give fewer: `batch_size={batch_size // 2}`. Samples may round otherwise."
                if not again and (fixed or len(batch) == 1):
                    raise
                del condition, padding, asked  # before the next attempt needs the room
                if not again:
                    batch_size = len(batch) // 2
                    tell(f"Not enough memory for {len(batch)} samples together; going on with {batch_size}.")
            else:
                start, number, freed = start + len(batch), number + 1, False
                continue
            release(self.device)  # here, where the error no longer holds what was in use

    def _sample_batch(
        self,
        batch: Sequence[Sample],
        condition: Tensor,
        padding: Tensor | None,
        settings: SamplingSettings,
        seconds: dict[str, float],
        tell: Callable[[str], object],
        init: Init | None,
        record: Extent,
        kept: int | None,
    ) -> Iterator[tuple[Step, Callable[[], Tensor], tuple[Result, ...]]]:
        """Yield each step of a batch, a reader of tokens, and at the end the results; add to ``seconds``.

        Of a batch with a fixed number of samples the first ``kept`` are wanted; None is not fixed.
        """
        order, drawn, stages = self.order, list[Tensor](), list[Tensor]()
        given = None if init is None else given_tokens(init, order.cells).expand(len(batch), -1)
        asked = self.model, condition, [sample.seed for sample in batch], settings, padding, given
        recorder = None if record is None else Recorder(order, len(batch), settings)
        if record == "heads":
            steps = generate(*asked, draw=draw, heads=True)
        else:
            steps = self._passes.generate(*asked, logits=record is not None, tell=tell)
        for index in range(len(order.steps)):
            results: tuple[Result, ...] = ()
            guard = memory_guard("Free some memory, or try a smaller model or `dtype=bfloat16`.")
            with guard, computing(self.device, self.model.weight_dtype):
                began = perf_counter()
                step = next(steps)
                drawn.append(step.tokens)
                if step.vectors is not None:
                    stages.append(step.vectors.cpu())
                if recorder is not None:
                    recorder.add(step)
                seconds["sample"] += perf_counter() - began
                if index == len(order.steps) - 1:
                    del steps  # and with it what the runner does not keep
                    began, tokens = perf_counter(), in_raster_order(order, drawn)
                    clips = self.decode(tokens) if step.vectors is None else self.decode_vectors(step.vectors)
                    seconds["decode"] += perf_counter() - began
                    common = self.metadata(settings, init, None if kept is None else len(batch))
                    results = tuple(map(self._result, batch, clips, tokens, [common] * len(batch)))[:kept]
                    if stages:
                        each = zip(results, torch.stack(stages, 1), strict=False)
                        results = tuple(replace(result, stages=own) for result, own in each)
                    if recorder is not None:
                        results = tuple(map(Result.with_record, results, recorder.records()))
            yield step.first(kept), partial(in_raster_order, order, drawn, index + 1, kept), results

    def _condition(self, samples: Sequence[Sample], start: int, rows: int) -> tuple[Tensor, Tensor | None]:
        """Return condition and padding of a batch; encode prompts of later samples together with its own."""
        entries = [sample.entry for sample in samples[start : start + rows]]
        if self.encoder is None:
            rows_of = [entry.codes if isinstance(entry, GivenFrames) else entry.label for entry in entries
                       if not isinstance(entry, Prompt)]  # fmt: skip
            return torch.tensor(rows_of, device=self.device), None
        prompts = [entry for entry in entries if isinstance(entry, Prompt)]
        later = (sample.entry for sample in islice(samples, start + rows, None))
        upcoming = (entry for entry in later if isinstance(entry, Prompt))
        condition, padding = self.encoder.condition(prompts, upcoming, self._make_room)
        return condition.to(self.device, self._dtype), padding.to(self.device)

    def _make_room(self) -> None:
        if self._passes.clear():
            release(self.device)

    @cached_property
    def _passes(self) -> Runner:
        return self.runner or choose_runner(self.device)

    @property
    def order(self) -> Order:
        """Decoding order of the model."""
        return self.model.config.decoding_order

    @property
    def _dtype(self) -> torch.dtype:
        return self.model.weight_dtype

    def metadata(
        self, settings: SamplingSettings, init: Init | None = None, rows: int | None = None
    ) -> dict[str, Any]:
        """Return the metadata that all results of a run share; ``rows`` if their number is fixed."""
        fixed = {} if rows is None else {"reproducible": {"rows": rows, **about_card(self.device)}}
        return {
            "kind": self.kind,
            "narcli": __version__,
            "torch": torch.__version__,
            **self.source,
            "sampling": settings.document(),
            **({"init": about_init(init)} if init else {}),
            "grid": list(self.grid),
            "order": self.order.name,
            "steps": len(self.order.steps),
            "device": self.device.type,
            "dtype": dtype_name(self._dtype),
            **fixed,
        }

    def _result(self, sample: Sample, clip: Clip, tokens: Tensor, common: Mapping[str, Any]) -> Result:
        about = self.encoder.about(sample.entry) if isinstance(sample.entry, Prompt) and self.encoder else {}
        return result_of(sample, clip, tokens, {**common, **about})
