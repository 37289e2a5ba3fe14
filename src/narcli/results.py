"""Results of a run, on the way and finished, and their metadata."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from .classes import ClassEntry
from .decoding import Clip, hash_tokens
from .errors import UsageError
from .media.clips import BY_SUFFIX, FORMATS
from .media.metadata import about_given, pack_tokens
from .media.names import clean_name, default_stem, fields_of
from .media.schema import MAX_TOKENS
from .media.textfiles import expand
from .prompts import Prompt
from .records import Record
from .sampling import Step
from .settings import GivenFrames, Sample, Subject, check_scale


@dataclass(frozen=True, repr=False)
class Result:
    """One finished picture or clip.

    Args:
        frames: RGB, at the size that the model makes; a picture has one.
        entry: the class, the prompt or the given frames. ``frames`` begin with given ones, as the tokenizer
            shows them.
        seed: seed of the sample.
        tokens: (N,) int64 on the CPU, raster order.
        metadata: all settings needed to make it again, as JSON.
        stages: with ``more_smooth``, (steps, N, C) vectors of ``Step`` after each step; else None.
        record: how sure the model was of each cell, if that was asked for; else None.
    """

    frames: Clip
    entry: Subject
    seed: int
    tokens: Tensor
    metadata: dict[str, Any]
    stages: Tensor | None = None
    record: Record | None = None

    def __repr__(self) -> str:
        width, height = self.frames[0].size
        frames = f", {len(self.frames)} frames" if len(self.frames) > 1 else ""
        return f"<Result: {str(self.entry)[:60]!r}, seed {self.seed}, {width}x{height}{frames}>"

    def with_record(self, record: Record) -> Result:
        """Return the result with a record, which gets its metadata."""
        return replace(self, record=replace(record, metadata=self.metadata))

    @property
    def middle(self) -> Image.Image:
        """The picture, or the middle frame of a clip."""
        return self.frames[len(self.frames) // 2]

    @property
    def image(self) -> Image.Image:
        """The picture, or the first frame of a clip."""
        return self.frames[0]

    @property
    def name(self) -> str:
        """File name that the commands choose, without its ending: ``nar-image_c207-golden_retriever_s42``."""
        return default_stem(self.metadata["kind"], self.entry, self.seed)

    def save(
        self,
        path: str | Path,
        *,
        scale: int = 1,
        fps: float | None = None,
        quality: int | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write the picture as a PNG, or the clip, with the metadata that ``narcli rerun`` reads.

        Args:
            path: file; the suffix chooses the format. Pictures take ``.png``. Clips take ``.mp4``, ``.gif``,
                ``.webp``, or no suffix for a folder of PNGs. A name that is taken gets a number.
            scale: factor that enlarges the frames, 1 to 16.
            fps: frames per second of a clip, 0.1 to 240.
            quality: quality of mp4 and webp, 0 to 100.
            overwrite: replace an existing file.

        Returns:
            The path of the file, or folder, that was written.

        Raises:
            UsageError: another suffix, or a setting that the format does not have.
            NarError: the file cannot be written.
        """
        from .viz.sheets import enlarge

        path, clip = expand(str(path)), self.metadata["kind"] == "video"
        suffix = path.suffix.lower()
        known = ["", *BY_SUFFIX] if clip else [".png"]
        if suffix not in known:
            expected = ", ".join(filter(None, known))
            raise UsageError(f"`path` ends in {suffix!r}, expected {expected}.", "Choose another name.")
        check_scale(scale)
        frames = tuple(enlarge(frame, scale) for frame in self.frames)
        about = self.metadata | {"scale": scale, **({"filter": "lanczos"} if scale > 1 else {})}
        if not clip:
            from .media.writers import write_png

            return write_png(path, frames[0], about, describe(about), overwrite=overwrite)
        form = BY_SUFFIX.get(suffix, FORMATS["frames"])
        form.check(fps, quality)
        about |= {"format": form.name, "frames": len(frames), "model_frames": len(frames)}
        about |= form.about(fps, quality)
        words = describe(about)
        return form.write(path, frames, about, words, fps=fps, quality=quality, overwrite=overwrite)

    def _repr_png_(self) -> bytes | None:
        """Return the picture as PNG for notebooks; None for a clip."""
        from io import BytesIO

        if len(self.frames) > 1:
            return None
        self.image.save(buffer := BytesIO(), "PNG")
        return buffer.getvalue()

    def _repr_html_(self) -> str | None:
        """Return the clip as a looping animation for notebooks; None for a picture."""
        from base64 import b64encode
        from tempfile import TemporaryDirectory

        if len(self.frames) == 1:
            return None
        with TemporaryDirectory() as folder:
            data = self.save(Path(folder) / "clip.webp").read_bytes()
        words = html.escape(f"{self.entry}, seed {self.seed}")
        return f'<img alt="{words}" src="data:image/webp;base64,{b64encode(data).decode()}">'

    @property
    def class_id(self) -> int:
        """The requested class id."""
        return self._class.id

    @property
    def class_name(self) -> str:
        """Name of the requested class, as ``{class_name}`` of ``--output``; ``entry.name`` is the model's."""
        return clean_name(fields_of(self._class, self.seed)["class_name"])

    @property
    def label(self) -> int:
        """Row of the model's class embedding."""
        return self._class.label

    @property
    def prompt(self) -> str:
        """The prompt as typed."""
        if isinstance(self.entry, Prompt):
            return self.entry.text
        raise AttributeError("this result is not of a prompt")

    @property
    def _class(self) -> ClassEntry:
        if isinstance(self.entry, ClassEntry):
            return self.entry
        raise AttributeError("this result is not of a class")


@dataclass(frozen=True, repr=False)
class Progress:
    """One decoding step of one batch.

    Args:
        batch: number of the batch, from 0. One too large for the memory begins again, halved.
        batches: number of batches, as planned now.
        samples: the B samples of the batch.
        step: the decoded step.
        read: tells ``tokens``.
        results: finished samples: the batch on its last step, none before.
        seconds: time of the run so far, on ``sample`` and on ``decode``.
    """

    batch: int
    batches: int
    samples: tuple[Sample, ...]
    step: Step
    read: Callable[[], Tensor]
    results: tuple[Result, ...]
    seconds: Mapping[str, float]

    @cached_property
    def tokens(self) -> Tensor:
        """All tokens so far, (B, N) int64 on the CPU in raster order, -1 elsewhere.

        Before the last step of a batch, a graphics card is waited for.
        """
        return self.read()

    def __repr__(self) -> str:
        return (
            f"<Progress: batch {self.batch} of {self.batches}, step {self.step.index}, "
            f"{len(self.samples)} samples, {len(self.results)} finished>"
        )


def result_of(sample: Sample, clip: Clip, tokens: Tensor, common: Mapping[str, Any]) -> Result:
    """Make the result of a sample, with its metadata.

    Args:
        sample: what was drawn.
        clip: its frames.
        tokens: (N,) int64 in raster order.
        common: metadata of the run and, of a prompt, its own.
    """
    about = {**common}
    if isinstance(sample.entry, ClassEntry):
        about["class"] = about_class(sample.entry)
    elif isinstance(sample.entry, GivenFrames):
        about["given_frames"] = about_given(sample.entry)
    about |= {"seed": sample.seed, "tokens_sha256": hash_tokens(tokens)}
    if len(tokens) <= MAX_TOKENS:
        about["tokens"] = pack_tokens(tokens.tolist())
    return Result(clip, sample.entry, sample.seed, tokens.clone(), about)


def about_class(entry: ClassEntry) -> dict[str, Any]:
    """Entry of a class in metadata."""
    fields = {"id": entry.id, "name": entry.name, "label": entry.label}
    return fields | ({"stands_for": entry.stands_for} if entry.stands_for else {})


def describe(metadata: Mapping[str, Any]) -> str:
    """Summarise the settings of a picture in a few words, from its metadata."""
    sampling = metadata["sampling"]
    if "prompt" in metadata:
        title = " ".join(metadata["prompt"].split())
    elif "given_frames" in metadata:
        given = metadata["given_frames"]
        title = str(GivenFrames(given["source"], given["count"]))
    else:
        row = metadata["class"]
        name = f"{row['stands_for']} ({row['name']})" if "stands_for" in row else row["name"]
        title = f"class {row['id']}, {name}"
    from_zero = " (VAR's, from 0)" if metadata.get("order", "").startswith("var") else ""
    facts = {
        "Steps": metadata["steps"],
        "Seed": metadata["seed"],
        "CFG scale": f"{sampling['cfg_scale']}{from_zero}",
        "CFG interval": sampling["cfg_interval"],
        "Temperature": sampling["temperature"],
        "Top-k": sampling["top_k"],
        "Top-p": sampling["top_p"],
        "Model": metadata["model"]["name"],
        "Version": f"narcli {metadata['narcli']}",
    }
    if "init" in metadata:
        facts["Init"] = metadata["init"]["source"]
    listed = ", ".join(f"{key}: {value}" for key, value in facts.items())
    return f"{title}\n{listed}"
