"""Files of a run: samples, their tokens, the frontier, the contact sheet, and their metadata."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.config import LONGEST_NAME
from ..classes import ClassEntry
from ..errors import NarError
from ..media.inits import read_cells
from ..media.metadata import about_given
from ..media.names import Outputs
from ..media.schema import MAX_HASHES, MAX_TOKENS
from ..prompts import Prompt
from ..settings import GivenFrames, Sample, SamplingSettings, Subject
from ..settings.sweeps import points_of
from .events import Clock, Finished, FrontierDecoded, Written
from .filenames import check_fit, format_of, suffix_of
from .orders import write_animation
from .recipe import Recipe
from .sheets import about_sheet, draw_sheet
from .subjects import title_of

if TYPE_CHECKING:
    from ..decoding import Clip, Decodes
    from ..results import Result

MAX_SUBJECTS = 50_000  # bytes of prompts or given frames in the metadata of a file of several samples


class Sinks:
    """Writer of a run's samples, frontier and contact sheet, or of the sheet of a sweep.

    Args:
        recipe: recipe of the run.
        decoder: maker of the frames; it decodes partial tokens for the frontier.
        samples: samples in the order of their results.
        outputs: a file for each sample, or one for a sweep.
        common: metadata of the run; of a sweep with the settings of its first point.
        clock: clock that times decoding and writing.

    Raises:
        UsageError: recipe and model do not fit.
        NarError: metadata too large for a file, before any sample is drawn.
    """

    def __init__(
        self,
        recipe: Recipe,
        decoder: Decodes,
        samples: Sequence[Sample],
        outputs: Outputs,
        common: Mapping[str, Any],
        clock: Clock,
        threads: int = 0,
    ) -> None:
        self.recipe, self.decoder, self.samples = recipe, decoder, samples
        self.outputs, self.clock = outputs, clock
        self.suffix = suffix_of(recipe, outputs)
        # Otherwise no cell could be uncovered.
        placed = not (decoder.tokenizer.config.holistic or decoder.order.has_scales)
        self._mode = recipe.frontier_mode or ("reveal" if placed else "decode")
        self.common = {**common, **self._fitted()}
        self.files: list[Path] = []
        self.documents: list[dict[str, Any]] = []
        self._kept: list[Result] = []
        self._started = 0  # samples whose writing has begun
        self._pool = ThreadPoolExecutor(threads, "narcli-writer") if threads else None
        self._waiting: deque[tuple[list[Path], Future[dict[str, Any]]]] = deque()
        self._check_metadata()

    def close(self) -> None:
        """Drop samples whose writing has not begun, and wait for the others."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def write_all(self, results: Sequence[Result]) -> Iterator[Written]:
        """Write the samples of a batch, or hand them to the threads; a failure does not stop the others.

        Threads are given one batch at a time: those of the last are waited for before.

        Yields files that are written by now, in the order of the samples.

        Raises:
            NarError: the first failure, once the others are written.
        """
        failed: NarError | None = None
        yield from self.written(wait=bool(results))
        for result in results:
            files: list[Path] = []
            index, self._started = self._started, self._started + 1
            if len(self._kept) < self._kept_samples():
                self._kept.append(result)
            write = partial(self._write, index, result, files)
            if self._pool is not None:
                self._waiting.append((files, self._pool.submit(write)))
                continue
            try:
                with self.clock.timed("write"):
                    self.documents.append(write())
            except NarError as error:
                failed = failed or error
            except BaseException:
                yield from self._report(files)
                raise
            yield from self._report(files)
        if failed is not None:
            raise failed

    def written(self, *, wait: bool = True) -> Iterator[Written]:
        """Yield the files of threads in the order of the samples; ``wait`` for all.

        Raises:
            NarError: the first failure, once the others are written.
        """
        failed: NarError | None = None
        while self._waiting and (wait or self._waiting[0][1].done()):
            files, future = self._waiting[0]
            try:
                with self.clock.timed("write"):
                    self.documents.append(future.result())
            except NarError as error:
                failed, wait = failed or error, True
            self._waiting.popleft()
            yield from self._report(files)
        if failed is not None:
            raise failed

    def stopped(self) -> Iterator[Written]:
        """Close, and yield the files that threads have written."""
        self.close()
        while self._waiting:
            yield from self._report(self._waiting.popleft()[0])

    def _report(self, files: Sequence[Path]) -> Iterator[Written]:
        self.files += files
        yield from map(Written, files)

    def write_companions(self) -> Iterator[Written | FrontierDecoded]:
        """Write the frontier of the first samples, and the contact sheet of all."""
        from ..media.writers import write_png

        if self.recipe.frontier != "none":
            path = yield from self._write_frontier(self.outputs.companions[0])
            self.files.append(path)
            yield Written(path)
        if self.recipe.sheet or self.recipe.ranges:
            path = self.outputs.names[-1]
            with self.clock.timed("write"):
                pictures = [result.image for result in self._kept]
                sheet = draw_sheet(self.recipe, self.samples, pictures, self.common["scale"])
                about = None if self.recipe.no_metadata else self._about_all() | about_sheet(self.recipe)
                path = write_png(path, sheet, about, overwrite=self.recipe.overwrite)
            self.files.append(path)
            yield Written(path)

    def finished(self) -> Finished:
        """Return the event that ends the run."""
        return Finished(
            self.recipe,
            self.samples,
            self.files,
            self.common,
            self._about_frontier(),
            self.documents,
            self.decoder.order,
            self.clock.total(),
        )

    def _fitted(self) -> dict[str, Any]:
        """Check that recipe and model fit; return metadata of how the files are written."""
        from ..viz.sheets import auto_scale

        recipe, order, tokenizer = self.recipe, self.decoder.order, self.decoder.tokenizer.config
        check_fit(recipe, order, tokenizer)
        made, *size = tokenizer.clip_size(order.sizes)
        scale = recipe.scale or auto_scale((size[0], size[1]))
        about: dict[str, Any] = {"scale": scale, **({"filter": "lanczos"} if scale > 1 else {})}
        if recipe.kind == "video":
            form = format_of(self.suffix)
            about |= {"format": form.name, "frames": recipe.frames or made, "model_frames": made}
            about |= form.about(recipe.fps, recipe.quality)
        return about

    def _check_metadata(self) -> None:
        """Check before sampling that the files can hold the metadata."""
        from ..media.writers import encode_metadata

        if self.recipe.no_metadata:
            return
        num = self._samples_of_each()
        each = map(_about, {sample.entry for sample in self.samples[::num]})
        largest = max(each, key=lambda about: len(json.dumps(about)))
        # The end that is cut and the name that it is drawn as are recorded, too.
        text = largest.get("cleaned_prompt")
        read = {} if text is None else {"dropped": text, "drawn_as": "x" * LONGEST_NAME}
        tokens = {"tokens": "A" * 6 * min(self.decoder.order.cells, MAX_TOKENS)}
        encode_metadata(self.common | largest | read | tokens)
        if self.outputs.companions or self.recipe.ranges:
            hashes = ["0" * 64] * min(len(self.samples), MAX_HASHES)
            encode_metadata(self._about_all() | {"samples_sha256": hashes} | about_sheet(self.recipe))

    def _write(self, index: int, result: Result, files: list[Path]) -> dict[str, Any]:
        """Write one sample and, if wanted, its tokens and record; return its document.

        The paths go to ``files``, also of what is written before a failure. Threads call this.
        """
        from ..media.writers import write_tokens
        from ..viz.sheets import enlarge

        own = result.metadata | self.common
        if self.recipe.ranges:
            shared = self.common.keys() - {"sampling"}
            return {key: value for key, value in result.metadata.items() if key not in shared}
        clip = tuple(enlarge(frame, self.common["scale"]) for frame in result.frames)
        path = self._write_sample(self.outputs.paths[index], clip, own, files)
        files.append(path)
        over, beside = self.recipe.overwrite, iter(self.outputs.beside[index])
        if self.recipe.save_tokens:
            order = self.decoder.order
            shape = order.sizes if len(order.panels) == 1 else (order.cells,)
            grid = result.tokens.reshape(shape).int().numpy()
            files.append(write_tokens(next(beside), grid, own, overwrite=over))
        if self.recipe.record is not None:
            assert result.record is not None
            files.append(replace(result.record, metadata=own).save(next(beside), overwrite=over))
        about = {key: value for key, value in result.metadata.items() if key not in self.common}
        return {"file": str(path), **about}

    def _write_sample(self, path: Path, clip: Clip, own: dict[str, Any], files: list[Path]) -> Path:
        """Write a picture, or the wanted frames of a clip; as PNGs if the encoder fails."""
        from ..media.atomic import companion
        from ..media.writers import write_frames, write_png
        from ..results import describe

        over = self.recipe.overwrite
        metadata = None if self.recipe.no_metadata else own
        words = describe(own) if metadata is not None else ""
        if self.suffix == ".png":
            return write_png(path, clip[0], metadata, words, overwrite=over)
        frames = clip[: self.common["frames"]]
        form = format_of(self.suffix)
        fps, quality = self.recipe.fps, self.recipe.quality
        try:
            return form.write(path, frames, metadata, words, fps=fps, quality=quality, overwrite=over)
        except Exception as error:  # encoders fail in many ways
            if not self.suffix:
                raise
            folder = write_frames(companion(path, "_frames"), frames, metadata, words)
            files.append(folder)
            kept = f"The frames are kept in {folder}."
            if isinstance(error, NarError):
                error.hint = f"{kept} {error.hint or ''}".rstrip()
                raise
            raise NarError(f"Could not write {path}: {error}", kept) from error

    def _write_frontier(self, path: Path) -> Generator[FrontierDecoded, None, Path]:
        """Write the picture of the frontier and return its path."""
        from ..media.writers import write_png
        from ..viz import frontier
        from ..viz.style import THEMES

        order, over = self.decoder.order, self.recipe.overwrite
        given = self._given()
        shown = self._kept[: frontier.shown_samples(order)]
        partials: list[list[Clip]] | None = None
        if self._mode == "decode" and self.recipe.frontier != "html":
            partials = []
            steps = frontier.shown_steps(order, still=self.recipe.frontier == "png")
            stages = [result.stages for result in shown if result.stages is not None]
            with self.clock.timed("decode"):
                tokens = [result.tokens for result in shown]
                decoded = self.decoder.partials(tokens, steps, stages or None, given)
            for _ in steps:
                with self.clock.timed("decode"):
                    partials.append(next(decoded))
                yield FrontierDecoded(len(steps))
        about = None
        if not self.recipe.no_metadata:
            about = self._about_all() | self._about_frontier()
        if self.recipe.frontier == "html":
            return self._write_page(path, shown, about)
        clips = [result.frames for result in shown]
        title = () if about is None else title_of(self.samples[: len(shown)], self.common["model"]["name"])
        looks: Any = {"holistic": self.decoder.tokenizer.config.holistic, "given": given}
        looks |= {"title": title, "theme": THEMES[self.recipe.theme or "dark"]}
        with self.clock.timed("write"):
            if self.recipe.frontier == "png":
                strip = frontier.filmstrip(order, clips, partials, **looks)
                return write_png(path, strip, about, overwrite=over)
            frames = frontier.run_frames(order, clips, partials, **looks)
            return write_animation(path, [order], frames, about, overwrite=over)

    def _given(self) -> Sequence[int]:
        """Return the cells whose tokens were given."""
        return read_cells(self.common["init"]["cells"], "The run") if "init" in self.common else ()

    def _write_page(self, path: Path, shown: Sequence[Result], about: Mapping[str, Any] | None) -> Path:
        """Write the page to step through the samples, and return its path."""
        from ..media.atomic import write_atomic
        from ..media.writers import encode_metadata
        from ..viz.viewer import page
        from .pages import MAX_SAMPLES
        from .pages import shown as shown_on_page

        with self.clock.timed("decode"):
            runs = shown_on_page(
                self.decoder, shown[:MAX_SAMPLES], partials=self._mode == "decode", told=about is not None
            )
        with self.clock.timed("write"):
            told = "" if about is None else encode_metadata(about)
            made = page(runs, told, self.recipe.theme).encode()
            return write_atomic(path, made, overwrite=self.recipe.overwrite)

    def _kept_samples(self) -> int:
        """Return the number of samples to keep in memory for frontier and contact sheet."""
        from ..viz.frontier import shown_samples

        if self.recipe.sheet or self.recipe.ranges:
            return len(self.samples)
        return 0 if self.recipe.frontier == "none" else shown_samples(self.decoder.order)

    def _about_frontier(self) -> dict[str, Any]:
        """Return metadata of the frontier; empty without one."""
        if self.recipe.frontier == "none":
            return {}
        theme = {"theme": self.recipe.theme} if self.recipe.theme not in (None, "dark") else {}
        return {"frontier": {"format": self.recipe.frontier, "mode": self._mode, **theme}}

    def _samples_of_each(self) -> int:
        return self.samples[-1].seed - self.samples[0].seed + 1

    def _about_all(self) -> dict[str, Any]:
        """Return metadata of a file of several samples: classes, prompts or clips, seeds and hashes."""
        num = self._samples_of_each()
        hashes = [about["tokens_sha256"] for about in self.documents[:MAX_HASHES]]
        about: dict[str, Any] = {"seed": self.samples[0].seed, "num": num, "samples_sha256": hashes}
        points = points_of(self.recipe.ranges)
        entries = [sample.entry for sample in self.samples[: len(self.samples) // len(points) : num]]
        if self.recipe.ranges:
            settings = [SamplingSettings(**{**self.common["sampling"], **point}) for point in points]
            about["points"] = [each.document() for each in settings]
        if classes := [entry for entry in entries if isinstance(entry, ClassEntry)]:
            from ..results import about_class

            labelled = self.recipe.ranges or self.recipe.labels  # names as they were asked for
            about["classes"] = [about_class(each) if labelled else each.id for each in classes]
            return self.common | about
        name = "prompts" if isinstance(entries[0], Prompt) else "frames_from"
        each = [told.get("given_frames", told) for told in map(_about, entries)]
        sizes = list(accumulate(len(json.dumps(told)) for told in each))
        about |= {name: each[: bisect_right(sizes, MAX_SUBJECTS)], f"{name}_in_all": len(each)}
        return self.common | about


def _about(entry: Subject) -> dict[str, Any]:
    """Return a class, prompt or given frames as metadata, as known before the run."""
    if isinstance(entry, Prompt):
        return {"prompt": entry.text, "cleaned_prompt": entry.cleaned}
    if isinstance(entry, GivenFrames):
        return {"given_frames": about_given(entry)}
    return {"class": {"id": entry.id, "name": entry.name, "label": entry.label}}
