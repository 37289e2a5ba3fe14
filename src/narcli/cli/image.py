"""``narcli image``: pictures of classes or prompts, their settings inside, and their frontier."""

from __future__ import annotations

import json
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..prompts import Prompt, collect, slug
from ..settings import BATCH_SIZE, Sample, SamplingSettings, check_batch_size, plan_samples
from . import options
from .console import Console, is_terminal
from .options import Dtype, FrontierFormat, FrontierMode

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..classes import ClassEntry, ClassTable
    from ..pipeline import Pipeline, Result
    from ..writers import Outputs

MAX_SCALE = 16
MAX_PROMPTS_LISTED = 50_000  # bytes of prompts in the metadata of what shows several
PHASES = ("import", "load", "sample", "decode", "write")
FRONTIER, SHEET = "_frontier", "_grid.png"  # endings of the files beside the pictures


def image(
    classes: options.Classes = None,
    prompt: options.Prompts = None,
    prompt_file: options.PromptFile = None,
    num: options.Num = 1,
    seed: options.Seed = None,
    cfg_scale: options.CfgScale = None,
    cfg_interval: options.CfgInterval = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    batch_size: options.BatchSize = BATCH_SIZE,
    model: options.Model = None,
    tokenizer: options.Tokenizer = None,
    text_encoder: options.TextEncoder = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    text_device: options.TextDevice = None,
    dtype: options.DtypeOption = Dtype.auto,
    frontier: options.Frontier = FrontierFormat.gif,
    frontier_mode: options.FrontierModeOption = None,
    grid: options.Grid = False,
    scale: options.Scale = None,
    output: options.Output = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    offline: options.Offline = False,
    yes: options.Yes = False,
) -> None:
    """Make pictures of a class, or of a text.

    Beside the pictures it writes an animation of the order in which they were decoded.
    """
    began, seconds, console = perf_counter(), dict.fromkeys(PHASES, 0.0), Console(quiet)
    given = _given(
        cfg_scale=cfg_scale, cfg_interval=cfg_interval, temperature=temperature, top_k=top_k, top_p=top_p
    )
    check_batch_size(batch_size)
    _check(scale, frontier, frontier_mode)
    prompts = _prompts(classes, prompt, prompt_file, text_encoder=text_encoder, text_device=text_device)
    endings = [f"{FRONTIER}.{frontier.value}"] * (frontier != "none") + [SHEET] * grid

    from ..encoding import all_cached
    from ..sources import choose

    source = choose("text" if prompts else "image", model, tokenizer, revision, text_encoder)

    def plan(table: ClassTable | None) -> tuple[list[Sample], Outputs]:
        entries = prompts if table is None else table.parse_classes(classes or "")
        samples = plan_samples(entries, seed, num)
        return samples, _name_files(samples, source.model.name, output, endings, overwrite)

    # Or the model itself has to say its classes.
    planned = plan(source.table) if source.table or prompts else None
    files = source.fetch(
        offline=offline,
        progress=not quiet and is_terminal(sys.stderr),
        approve=(lambda sizes: None) if yes else console.approve_download,
        known=lambda encoder: all_cached(encoder, prompts, dtype.value),
    )
    for note in dict.fromkeys((files.model.note, files.tokenizer.note)):
        if note:
            console.warn(note)

    with _timed(seconds, "import"):
        from ..pipeline import load_files, prompt_encoder
    encoder = prompt_encoder(files, text_device or device, dtype.value, console.warn)
    if encoder is not None:
        seconds["encode"] = 0.0
        with _timed(seconds, "encode"):  # before the model takes its memory
            encoder.encode(prompts)
    with _timed(seconds, "load"):
        pipeline = load_files(files, device, dtype.value, encoder)
    samples, outputs = planned or plan(pipeline.classes)

    run = _Run(pipeline, pipeline.settings(**given), samples, outputs, scale, overwrite, keep_all=grid)
    steps = ceil(len(samples) / batch_size) * len(pipeline.order.steps)
    try:
        with console.progress("decoding", steps) as advance:
            spent = dict(seconds)
            for progress in pipeline.run(samples, run.settings, batch_size):
                with _timed(seconds, "write"):
                    for result in progress.results:
                        run.write(result)
                advance(note="steps")
                seconds |= {phase: spent[phase] + more for phase, more in progress.seconds.items()}
        partials = None
        if frontier_mode == "decode":
            with _timed(seconds, "decode"):
                partials = run.decode_partials(console)
        with _timed(seconds, "write"):
            if frontier != "none":
                run.write_frontier(frontier, partials)
            if grid:
                run.write_sheet()
    finally:  # what is written is told, even where the rest failed
        for path in run.files if not as_json else ():
            console.result(path)

    seconds["total"] = perf_counter() - began
    if as_json:
        console.json(run.document(seconds))
    else:
        console.note(run.summary(seconds["total"]))


# --- before the run ------------------------------------------------------------------------------


def _given(**settings: float | None) -> dict[str, Any]:
    """The sampling settings that were given, checked; the others are the model's."""
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    SamplingSettings(**given)
    return given


def _prompts(
    classes: str | None, prompts: Sequence[str] | None, file: Path | None, **text: Any
) -> list[Prompt]:
    """What ``--prompt`` and ``--prompt-file`` say; none with ``--class``, which excludes them."""
    if prompts or file is not None:
        if classes is not None:
            raise UsageError(
                "--class and --prompt exclude each other.", "Each is for models of its own kind."
            )
        return collect(prompts or (), file)
    if given := [name for name, value in text.items() if value is not None]:
        raise UsageError(f"--{given[0].replace('_', '-')} goes with --prompt.", "Leave it out.")
    if classes is None:
        raise UsageError(
            "Nothing says what to make a picture of.",
            "Give a class, --class 207 or --class 'golden retriever' (`narcli classes` lists them), "
            "or a prompt, --prompt 'a red apple'.",
        )
    return []


def _check(scale: int | None, frontier: FrontierFormat, mode: FrontierMode | None) -> None:
    """Refuse what does not go together."""
    if scale is not None and not 1 <= scale <= MAX_SCALE:
        raise UsageError(f"--scale is {scale}, expected a whole factor from 1 to {MAX_SCALE}.")
    if mode is not None and frontier == "none":
        raise UsageError("--frontier-mode goes with a frontier, and --frontier is none.", "Drop one of them.")


def _name_files(
    samples: Sequence[Sample], model: str, output: str | None, endings: Sequence[str], overwrite: bool
) -> Outputs:
    """A file for each sample; those with ``endings`` are named after the first."""
    from ..writers import default_name, resolve_outputs

    fields = [{**_fields(sample.entry), "seed": sample.seed, "model": model} for sample in samples]
    default = default_name("image", fields[0])
    return resolve_outputs(output, fields, default=default, companions=endings, overwrite=overwrite)


def _fields(entry: ClassEntry | Prompt) -> dict[str, object]:
    """What names of files can hold of a class or prompt."""
    if isinstance(entry, Prompt):
        return {"prompt": slug(entry.text)}
    return {"class": entry.id, "class_name": entry.stands_for or entry.name}


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the time that the block takes."""
    began = perf_counter()
    try:
        yield
    finally:
        seconds[phase] += perf_counter() - began


# --- what a run writes ---------------------------------------------------------------------------


@dataclass
class _Run:
    """Writes the pictures of a run as they come, then what is made of them, and remembers all files.

    Args:
        pipeline: what makes them.
        settings: of sampling.
        samples: what is made.
        outputs: names for the pictures and, as companions, for the frontier and the contact sheet.
        scale: whole factor to enlarge by; None brings small pictures to 256 pixels.
        overwrite: replace files.
        keep_all: hold on to all pictures, for the contact sheet.
    """

    pipeline: Pipeline
    settings: SamplingSettings
    samples: Sequence[Sample]
    outputs: Outputs
    scale: int | None
    overwrite: bool
    keep_all: bool
    files: list[Path] = field(default_factory=list)
    documents: list[dict[str, Any]] = field(default_factory=list)
    kept: list[Result] = field(default_factory=list)

    def __post_init__(self) -> None:
        from ..pictures import auto_scale

        self.scale = self.scale or auto_scale(self.pipeline.size)
        self.common = self.pipeline.metadata(self.settings) | {"scale": self.scale, "filter": "lanczos"}
        if self.scale == 1:
            del self.common["filter"]

    def write(self, result: Result) -> None:
        """Write one picture."""
        from ..frontier import MAX_IMAGES
        from ..pictures import enlarge
        from ..pipeline import describe
        from ..writers import write_png

        own = result.metadata | self.common
        picture = enlarge(result.image, self.common["scale"])
        path = self.outputs.paths[len(self.documents)]
        path = write_png(path, picture, own, describe(own), overwrite=self.overwrite)
        self.files.append(path)
        about = {key: value for key, value in result.metadata.items() if key not in self.common}
        self.documents.append({"file": str(path), **about})
        if self.keep_all or len(self.kept) < MAX_IMAGES:
            self.kept.append(result)

    def decode_partials(self, console: Console) -> list[list[Image]]:
        """For each step, the first samples decoded from what is known after it."""
        from ..frontier import MAX_IMAGES

        partials = []
        with console.progress("decoding the frontier of", len(self.pipeline.order.steps)) as advance:
            for pictures in self.pipeline.partials([result.tokens for result in self.kept[:MAX_IMAGES]]):
                partials.append(pictures)
                advance(note="steps")
        return partials

    def write_frontier(self, kind: FrontierFormat, partials: list[list[Image]] | None) -> None:
        """Write the frontier crossing the first samples, uncovered or (with ``partials``) decoded."""
        from .. import frontier
        from ..writers import write_gif, write_mp4, write_png

        order, images = self.pipeline.order, [result.image for result in self.kept[: frontier.MAX_IMAGES]]
        mode = FrontierMode.reveal if partials is None else FrontierMode.decode
        path = self.outputs.companions[0]
        about = self._about_all() | {"frontier": {"format": kind.value, "mode": mode.value}}
        if kind == "png":
            strip = frontier.filmstrip(order, images, partials)
            path = write_png(path, strip, about, "", overwrite=self.overwrite)
        elif kind == "gif":
            frames = frontier.run_frames(order, images, partials)
            path = write_gif(path, frames, about, overwrite=self.overwrite)
        else:
            frames = frontier.run_frames(order, images, partials)
            path = write_mp4(path, frames, about, hold_seconds=2, overwrite=self.overwrite)
        self.files.append(path)

    def write_sheet(self) -> None:
        """Write all pictures on one sheet, a row for each class where that looks well."""
        from ..pictures import contact_sheet, enlarge
        from ..writers import write_png

        pictures = [enlarge(result.image, self.common["scale"]) for result in self.kept]
        sheet = contact_sheet(pictures, rows=len({sample.entry for sample in self.samples}))
        about = self._about_all() | {"contact_sheet": True}
        self.files.append(write_png(self.outputs.companions[-1], sheet, about, "", overwrite=self.overwrite))

    def document(self, seconds: dict[str, float]) -> dict[str, Any]:
        """The run as ``--json`` prints it."""
        from ..writers import SCHEMA

        return {
            "schema": SCHEMA,
            "files": [str(path) for path in self.files],
            **self.common,
            "samples": self.documents,
            "seconds": {phase: round(value, 3) for phase, value in seconds.items()},
        }

    def summary(self, total: float) -> str:
        """One line about the run."""
        first, last, order = self.samples[0], self.samples[-1], self.pipeline.order
        made = str(first.entry) if len(self.samples) == 1 else f"{len(self.samples)} pictures"
        seeds = f"seed {first.seed}" if first.seed == last.seed else f"seeds {first.seed} to {last.seed}"
        return f"{made}, {seeds}: {len(order.steps)} steps instead of {order.cells}, {total:.1f} s"

    def _about_all(self) -> dict[str, Any]:
        """Metadata of what shows several samples: ids of classes, or prompts, and the seeds that each has."""
        first, last = self.samples[0].seed, self.samples[-1].seed
        num = last - first + 1
        entries = [sample.entry for sample in self.samples[::num]]
        about: dict[str, Any] = {"seed": first, "num": num}
        if prompts := [entry for entry in entries if isinstance(entry, Prompt)]:
            # As many as a file holds, and how many there were.
            room = accumulate(len(json.dumps([prompt.text, prompt.cleaned])) for prompt in prompts)
            listed = prompts[: bisect_right(list(room), MAX_PROMPTS_LISTED)]
            about["prompts"] = [{"prompt": each.text, "cleaned_prompt": each.cleaned} for each in listed]
            about |= {"prompts_in_all": len(prompts)} if len(listed) < len(prompts) else {}
        else:
            about["classes"] = [entry.id for entry in entries if not isinstance(entry, Prompt)]
        return self.common | about
