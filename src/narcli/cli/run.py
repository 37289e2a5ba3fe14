"""What ``narcli image`` and ``narcli video`` have in common: from options to files and a report."""

from __future__ import annotations

import json
import sys
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

from ..allocator import keep_memory
from ..classes import ClassEntry, load_table
from ..encoding import all_cached
from ..errors import NarError, UsageError
from ..hub.sources import choose
from ..media.metadata import MAX_HASHES, MAX_TOKENS, SCHEMA
from ..prompts import Prompt
from ..settings import Sample, SamplingSettings, plan_samples
from .console import Console, is_terminal
from .options import Dtype, FrontierFormat, FrontierMode

if TYPE_CHECKING:
    from .. import memory
    from ..classes import ClassTable
    from ..decoding import Clip, Decodes
    from ..hub.sources import Files
    from ..media.names import Outputs
    from ..models.larp import LARPConfig
    from ..models.vq import VQConfig
    from ..pipeline import Pipeline
    from ..results import Result

MAX_SCALE = 16
PHASES = ("import", "load", "sample", "decode", "write")
MAX_PROMPTS = 50_000  # bytes of prompts in the metadata of what shows several samples
FRONTIER = "_frontier"  # before the suffix of the file beside the first sample's
TOKENS = "_tokens.safetensors"  # ending of the tokens beside a sample


def _about(entry: ClassEntry | Prompt) -> dict[str, Any]:
    """A class or prompt as metadata, as far as it is known before the run."""
    if isinstance(entry, Prompt):
        return {"prompt": entry.text, "cleaned_prompt": entry.cleaned}
    return {"class": {"id": entry.id, "name": entry.name, "label": entry.label}}


def _entries(table: ClassTable, about: str | Mapping[str, Any]) -> list[ClassEntry]:
    """Classes as typed, or one from metadata; if asked for by its own name, it stands for nothing else."""
    if isinstance(about, str):
        return table.parse_classes(about)
    label = about.get("label", len(table))
    if "stands_for" not in about and label < len(table) and table.entry(label).id == about["id"]:
        return [table.entry(label)]
    return [table.by_id(about["id"])]


@dataclass(kw_only=True)
class Run:
    """A run of a model, from what was asked for to its files; the fields are the options of the commands.

    Subclasses say what kind of model it takes, and write what it makes. ``narcli rerun`` gives classes as
    metadata has them, or sets ``prompts``, the number format of the text encoder, ``text_dtype``, and
    ``pins``, the revisions of the tokenizer's and text encoder's repositories.
    """

    kind: ClassVar[str]
    noun: ClassVar[str]
    ways: ClassVar[str]
    classes: Sequence[str | Mapping[str, Any]] | None
    num: int
    seed: int | None
    cfg_scale: float | None
    cfg_interval: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    batch_size: int | None
    model: str | None
    tokenizer: str | None
    text_encoder: str | None = None
    revision: str | None
    device: str
    text_device: str | None = None
    dtype: Dtype
    frontier: FrontierFormat
    frontier_mode: FrontierMode | None
    scale: int | None
    output: str | None
    save_tokens: bool
    no_metadata: bool
    overwrite: bool
    as_json: bool
    quiet: bool
    offline: bool
    yes: bool
    dry_run: bool
    prompts: Sequence[Prompt] = field(default=(), init=False)
    text_dtype: str | None = field(default=None, init=False)
    reserved: Sequence[Path] = field(default=(), init=False)
    pins: Mapping[str, str | None] = field(default_factory=dict, init=False)
    files: list[Path] = field(default_factory=list, init=False)
    documents: list[dict[str, Any]] = field(default_factory=list, init=False)
    kept: list[Result] = field(default_factory=list, init=False)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0), init=False)

    def __post_init__(self) -> None:
        self.began = perf_counter()
        self.console = Console(self.quiet)
        self.put: Callable[[dict[str, Any]], object] = self.console.json
        self.pipeline: Decodes
        self.loaded: tuple[Files, Pipeline]
        self.samples: Sequence[Sample]
        self.outputs: Outputs
        self.common: dict[str, Any]
        self.started = 0  # samples, of those that are to be written

    def __call__(self) -> None:
        """Do all of it, and tell.

        Raises:
            NarError: of any kind; what is written by then is whole, and told.
        """
        self.make()
        if not self.dry_run:
            self.report()

    def make(self, like: Run | None = None) -> None:
        """Do all but the report; the model of an earlier run, ``like``, serves again or is let go."""
        self.began = perf_counter()
        self.check()
        kind = "text" if self.prompts else self.kind
        source = choose(kind, self.model, self.tokenizer, self.revision, self.text_encoder)
        source = replace(source, pins=self.pins)
        table = load_table([]) if self.prompts else source.table
        if table is not None:  # else the model itself has to say its classes
            self.plan(table, source.model.name)
        text_dtype = self.text_dtype or self.dtype.value
        approve = (lambda sizes: None) if self.yes else self.console.approve_download
        found = source.locate(
            offline=self.offline,
            estimate=self.dry_run,
            approve=approve,
            known=lambda encoder: all_cached(encoder, self.prompts, text_dtype),
        )
        here = found.model.copy
        if table is None and here is not None and here.model.classes:
            table = load_table(here.model.classes)
            self.plan(table, source.model.name)
        with self.timed("import"):
            keep_memory()
            from .budget import Budget
        budget = Budget(self, found)
        budget.check_fit(kind)
        if self.dry_run:
            parts = (found.model, found.tokenizer, found.encoder and found.encoder.located)
            for note in dict.fromkeys(part.note for part in parts if part):
                if note:
                    self.console.warn(f"{note} Sizes are those of the models' pages.")
            budget.tell()
        budget.check()
        if self.dry_run:
            return
        progress = not self.quiet and is_terminal(sys.stderr)
        files = found.fetch(progress=progress, approve=approve, tell=self.console.note)
        from ..checkpoints.load import remark

        parts_here = (files.model, files.tokenizer)
        notes = [note for part in parts_here for note in (part.note, remark(part.path))]
        for note in dict.fromkeys(notes):
            if note:
                self.console.warn(note)
        if not budget.networks.runs:  # a repository that says its sizes only now
            budget = Budget(self, found)
            budget.check()
        with self.timed("import"):
            from ..pipeline import load_files, prompt_encoder
        place = self.text_device or self.device
        encoder = prompt_encoder(files, place, text_dtype, self.console.warn)
        pipeline = like.hand_over(self, files, text_dtype) if like is not None else None
        if encoder is not None:
            self.seconds["encode"] = 0.0
            with self.timed("encode"):  # before the model takes its memory
                encoder.encode(self.prompts)
        with self.timed("load"):
            if pipeline is None:
                pipeline = load_files(files, self.device, self.dtype.value, encoder)
            elif encoder is not None:
                about = {**pipeline.source, "text_encoder": encoder.source}
                pipeline = replace(pipeline, encoder=encoder, source=about)
        self.pipeline, self.loaded = pipeline, (files, pipeline)
        if table is None:
            self.plan(pipeline.classes, source.model.name)
        settings = pipeline.settings(**self.sampling)
        self.common = pipeline.metadata(settings) | self.fit(pipeline.grid, pipeline.tokenizer.config)
        self.check_metadata()
        self.finish(self.sampled(pipeline, settings, budget.batch_size or 1))

    def hand_over(self, other: Run, files: Files, text_dtype: str) -> Pipeline | None:
        """Let go of the model, and of the samples kept; to another run, if that is the model it needs.

        Not beside a text encoder that has to run, which takes as much memory.
        """
        mine, pipeline = self.loaded
        del self.pipeline, self.loaded
        self.kept.clear()
        same = (mine.model, mine.tokenizer) == (files.model, files.tokenizer)
        same &= (self.device, self.dtype) == (other.device, other.dtype)
        if files.encoder is not None:
            same = same and all_cached(files.encoder, other.prompts, text_dtype)
        return pipeline if same else None

    def finish(self, batches: Generator[Sequence[Result], None, None]) -> None:
        """Write the samples as they come, and what shows several of them."""
        try:
            with closing(batches):
                for results in batches:
                    self.write_all(results)
            self.write_companions()
        finally:  # what is written is told, even where the rest failed
            for path in self.files if not self.as_json else ():
                self.console.result(path)
            self.seconds["total"] = perf_counter() - self.began

    def report(self) -> None:
        """Say what was done."""
        if self.as_json:
            self.put(self.document())
        else:
            self.console.note(self.summary())

    # --- what differs ----------------------------------------------------------------------------

    @property
    def suffixes(self) -> list[str]:
        """Endings that the samples' files may have; the first is the default."""
        raise NotImplementedError

    def write_sample(self, path: Path, clip: Clip, metadata: dict[str, Any] | None) -> Path:
        """Write one sample, enlarged already, with its metadata if wanted; the path it got."""
        raise NotImplementedError

    @property
    def kept_samples(self) -> int:
        """How many samples are kept after they are written, for what shows several."""
        from ..viz.frontier import shown_samples

        return 0 if self.frontier == "none" else shown_samples(self.pipeline.order)

    def about_files(self) -> memory.Files:
        """The files to be written, as far as they take memory."""
        from ..memory import Files

        samples = len(self.samples) if hasattr(self, "samples") else self.num
        partials = self.frontier_mode == "decode"
        return Files(samples, scale=self.scale, frontier=self.frontier.value, partials=partials)

    @property
    def names(self) -> list[Path]:
        """The files written; of a dry run those that would be, as far as they are known."""
        if self.dry_run:
            return self.outputs.names if hasattr(self, "outputs") else []
        return self.files

    @property
    def endings(self) -> list[str]:
        """Of the files beside the first sample's, the frontier's first."""
        return [f"{FRONTIER}.{self.frontier.value}"] * (self.frontier != "none")

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling settings that were given; the others are the model's."""
        given = {f.name: getattr(self, f.name) for f in fields(SamplingSettings)}
        return {name: value for name, value in given.items() if value is not None}

    def check(self) -> None:
        """Refuse what can be known to be wrong before anything is loaded.

        Raises:
            UsageError: an option that is missing, out of range, or does not go with another.
        """
        SamplingSettings(**self.sampling)
        if self.save_tokens and self.no_metadata:
            raise UsageError(
                "--save-tokens and --no-metadata exclude each other: settings tell what the tokens mean.",
                "Drop one of them.",
            )
        if not self.classes and not self.prompts:
            raise UsageError(
                f"Nothing says what to make a {self.noun} of.",
                f"Give {self.ways}. `narcli classes --model NAME` lists the classes of a model.",
            )
        if self.scale is not None and not 1 <= self.scale <= MAX_SCALE:
            raise UsageError(f"--scale is {self.scale}, expected a whole factor from 1 to {MAX_SCALE}.")
        if self.frontier_mode is not None and self.frontier == "none":
            raise UsageError(
                "--frontier-mode goes with a frontier, and --frontier is none.", "Drop one of them."
            )

    def plan(self, table: ClassTable, model: str) -> None:
        """Choose the samples, and a file for each."""
        entries: Sequence[ClassEntry | Prompt] = self.prompts
        if self.classes:
            entries = [entry for given in self.classes for entry in _entries(table, given)]
        self.samples = plan_samples(entries, self.seed, self.num)
        self.name_files(model)

    def name_files(self, model: str) -> None:
        """Choose a file for each sample; those with ``endings`` are named after the first."""
        from ..media.names import default_name, fields_of, resolve_outputs

        named = [fields_of(sample.entry, sample.seed) | {"model": model} for sample in self.samples]
        self.outputs = resolve_outputs(
            self.output,
            named,
            default=default_name(self.kind, named[0]),
            suffixes=self.suffixes,
            companions=self.endings,
            beside=[TOKENS] * self.save_tokens,
            overwrite=self.overwrite,
            reserved=self.reserved,
        )

    def check_fit(self, grid: tuple[int, ...], tokenizer: VQConfig | LARPConfig) -> None:
        """Compare the options with the sizes of a model.

        Raises:
            UsageError: they do not fit.
            ValueError: the tokenizer does not fit the grid.
        """
        if self.frontier_mode == "reveal" and tokenizer.holistic:
            raise UsageError(
                "--frontier-mode is reveal, but no token of this model has a place in the frames.",
                "Use --frontier-mode decode, or --frontier none.",
            )

    def fit(self, grid: tuple[int, ...], tokenizer: VQConfig | LARPConfig) -> dict[str, Any]:
        """``check_fit``, the frontier's mode if tokens leave no choice, and what all metadata say besides."""
        from ..viz.sheets import auto_scale

        self.check_fit(grid, tokenizer)
        if tokenizer.holistic and self.frontier != "none":
            self.frontier_mode = FrontierMode.decode
        scale = self.scale or auto_scale(tokenizer.clip_size(grid)[1:])
        return {"scale": scale, **({"filter": "lanczos"} if scale > 1 else {})}

    # --- steps -----------------------------------------------------------------------------------

    def check_metadata(self) -> None:
        """Refuse, before the samples are drawn, what no file could hold.

        Raises:
            NarError: it is too large.
        """
        from ..media.writers import encode_metadata

        if self.no_metadata:
            return
        each = map(_about, {sample.entry for sample in self.samples[:: self.num]})
        largest = max(each, key=lambda about: len(json.dumps(about)))
        dropped = {"dropped": largest.get("cleaned_prompt", "")}  # may come to be said too
        tokens = {"tokens": "A" * 6 * min(self.pipeline.order.cells, MAX_TOKENS)}
        encode_metadata(self.common | largest | dropped | tokens)
        if self.endings:
            hashes = ["0" * 64] * min(len(self.samples), MAX_HASHES)
            encode_metadata(self.about_all() | {"samples_sha256": hashes})

    def sampled(
        self, pipeline: Pipeline, settings: SamplingSettings, batch_size: int
    ) -> Generator[Sequence[Result], None, None]:
        """Sample batch by batch."""
        steps, done = len(pipeline.order.steps), 0
        spent = dict(self.seconds)
        with self.console.progress("decoding", ceil(len(self.samples) / batch_size) * steps) as advance:
            for progress in pipeline.run(self.samples, settings, batch_size, self.console.note):
                self.seconds |= {phase: spent[phase] + more for phase, more in progress.seconds.items()}
                if progress.results:
                    yield progress.results
                before, done = done, progress.batch * steps + progress.step.index + 1
                advance(done - before, "steps", progress.batches * steps)

    def write_all(self, results: Sequence[Result]) -> None:
        """Write the samples of a batch; one that cannot be written keeps none of the others from it.

        Raises:
            NarError: the first that could not be written, once the others are.
        """
        failed: NarError | None = None
        with self.timed("write"):
            for result in results:
                try:
                    self.write(result)
                except NarError as error:
                    failed = failed or error
        if failed is not None:
            raise failed

    def write(self, result: Result) -> None:
        """Write one sample."""
        from ..media.writers import write_tokens
        from ..viz.sheets import enlarge

        index, own = self.started, result.metadata | self.common
        self.started += 1
        if len(self.kept) < self.kept_samples:
            self.kept.append(result)
        clip = tuple(enlarge(frame, self.common["scale"]) for frame in result.frames)
        path = self.write_sample(self.outputs.paths[index], clip, None if self.no_metadata else own)
        self.files.append(path)
        about = {key: value for key, value in result.metadata.items() if key not in self.common}
        self.documents.append({"file": str(path), **about})
        for name in self.outputs.beside[index]:
            grid = result.tokens.reshape(self.pipeline.grid).int().numpy()
            self.files.append(write_tokens(name, grid, own, overwrite=self.overwrite))

    def write_companions(self) -> None:
        """Write what shows several samples: here the frontier crossing the first ones."""
        if self.frontier == "none":
            return
        from ..media.writers import write_gif, write_mp4, write_png
        from ..viz import frontier

        order, mode = self.pipeline.order, self.frontier_mode or FrontierMode.reveal
        shown = self.kept[: frontier.shown_samples(order)]
        partials = self.decode_partials(shown) if mode == "decode" else None
        holistic = self.pipeline.tokenizer.config.holistic
        about = None if self.no_metadata else self.about_all() | self.about_frontier()
        path, clips = self.outputs.companions[0], [result.frames for result in shown]
        with self.timed("write"):
            if self.frontier == "png":
                strip = frontier.filmstrip(order, clips, partials, holistic=holistic)
                path = write_png(path, strip, about, overwrite=self.overwrite)
            else:
                frames = frontier.run_frames(order, clips, partials, holistic=holistic)
                if self.frontier == "gif":
                    path = write_gif(path, frames, about, overwrite=self.overwrite)
                else:
                    path = write_mp4(path, frames, about, hold_seconds=2, overwrite=self.overwrite)
        self.files.append(path)

    def decode_partials(self, shown: Sequence[Result]) -> list[list[Clip]]:
        """For each step, the samples decoded from what is known after it."""
        partials, steps = [], len(self.pipeline.order.steps)
        with self.timed("decode"), self.console.progress("decoding the frontier", steps) as advance:
            for clips in self.pipeline.partials([result.tokens for result in shown]):
                partials.append(clips)
                advance(note="steps")
        return partials

    # --- words -----------------------------------------------------------------------------------

    def document(self) -> dict[str, Any]:
        """The run as ``--json`` prints it."""
        return {
            "schema": SCHEMA,
            "files": [str(path) for path in self.files],
            **self.common,
            **self.about_frontier(),
            "samples": self.documents,
            "seconds": {phase: round(value, 3) for phase, value in self.seconds.items()},
        }

    def summary(self) -> str:
        """One line about the run."""
        first, last, order = self.samples[0], self.samples[-1], self.pipeline.order
        made = str(first.entry) if len(self.samples) == 1 else f"{len(self.samples)} {self.noun}s"
        seeds = f"seed {first.seed}" if first.seed == last.seed else f"seeds {first.seed} to {last.seed}"
        steps = f"{len(order.steps)} steps instead of {order.cells}"
        return f"{made}, {seeds}: {steps}, {self.seconds['total']:.1f} s"

    def about_all(self) -> dict[str, Any]:
        """Metadata of what shows several samples: ids of classes, or prompts, and the seeds that each has."""
        first, last = self.samples[0].seed, self.samples[-1].seed
        num = last - first + 1
        hashes = [about["tokens_sha256"] for about in self.documents[:MAX_HASHES]]
        about: dict[str, Any] = {"seed": first, "num": num, "samples_sha256": hashes}
        if self.prompts:
            each = [_about(prompt) for prompt in self.prompts]
            sizes = list(accumulate(len(json.dumps(prompt)) for prompt in each))
            about["prompts"] = each[: bisect_right(sizes, MAX_PROMPTS)]
            about["prompts_in_all"] = len(each)
        else:
            entries = [sample.entry for sample in self.samples[::num]]
            about["classes"] = [entry.id for entry in entries if isinstance(entry, ClassEntry)]
        return self.common | about

    def about_frontier(self) -> dict[str, Any]:
        """Metadata of the frontier, where there is one."""
        if self.frontier == "none":
            return {}
        mode = self.frontier_mode or FrontierMode.reveal
        return {"frontier": {"format": self.frontier.value, "mode": mode.value}}

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time that the block takes."""
        began = perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += perf_counter() - began
