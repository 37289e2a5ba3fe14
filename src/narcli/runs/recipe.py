"""Recipe: everything that a run is asked for, and its JSON. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast

from ..errors import UsageError
from ..media.clips import FORMATS, check_pace
from ..media.inits import about_init
from ..media.metadata import about_given
from ..media.schema import SCHEMA
from ..order import parse_name
from ..prompts import Prompt, parse_prompt
from ..settings import (
    DTYPES,
    MAX_ROWS,
    GivenFrames,
    SamplingSettings,
    check_batch_size,
    check_scale,
    check_seeds,
)
from ..settings.keep import KEEPS, Init, Keep
from ..settings.sweeps import Sweep, check_sweep, parse_sweep
from . import recipe_json
from .recipe_json import PARTS, SAMPLING
from .subjects import SUBJECTS

#: Fields that only runs of one kind have.
ONLY = {
    "image": (
        *("prompts", "text_encoder", "text_device", "text_dtype", "more_smooth"),
        *("sweep", "sheet", "labels"),
    ),
    "video": ("frames_from", "keep_frames", "frames", "fps", "format", "quality"),
}
CHOICES: Mapping[str, tuple[str | None, ...]] = {
    "dtype": DTYPES,
    "text_dtype": (None, *DTYPES),
    "frontier": ("gif", "mp4", "png", "html", "none"),
    "record": (None, "cells", "heads"),
    "frontier_mode": (None, "reveal", "decode"),
    "theme": (None, "dark", "light"),
    "format": (None, *FORMATS),
}
_WHAT = {
    "image": (
        "picture",
        "No class or prompt given.",
        "a class, `classes=207` or `classes='golden retriever'`, or a prompt, `prompts='a red apple'`",
    ),
    "video": (
        "clip",
        "No class or frames given.",
        "a class, `classes=5` or `classes=kangaroo`, or frames to go on from, `frames_from='clip.mp4'`",
    ),
}

Entry = str | int | Mapping[str, Any]  # a class: id, name, or metadata


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that a run is asked for; None leaves the choice to the model or the machine.

    Args:
        kind: ``image`` or ``video``.
        classes: ids, names, several of them in a text (``"207,cat"``), or metadata of classes.
        prompts: texts to draw instead of classes; only for images.
        frames_from: clips, or folders of pictures, to go on from instead of classes; only for videos.
        init: picture, or with videos a clip, to go on from: its file, or an ``Init``.
        keep, keep_mask, keep_cells, keep_frames, fit: what is kept of it, as in ``Keep``.
        num: samples of each class, prompt or clip.
        seed: seed of the first sample; later ones add 1. None draws one.
        cfg_scale, cfg_interval, temperature, top_k, top_p, more_smooth: as in ``SamplingSettings``.
        sweep: values of one or two of these settings, such as ``{"temperature": (0.3, 0.6)}`` or
            ``"temperature=0.3,0.6"``. Every combination draws the same samples, and one labelled sheet is
            written instead of the pictures.
        batch_size: samples decoded together; None looks at the memory.
        reproducible: always decode ``batch_size`` samples together, 16 for None, so that samples do not
            depend on the batch.
        model, tokenizer, text_encoder: names, Hub repositories, files or folders.
        revision: branch, tag or commit of the model's repository.
        order: ``zipar:W`` decodes a raster model of images with ZipAR's window W; None is the model's order.
        pins: revisions of the repositories of ``tokenizer`` and ``text_encoder``.
        device, text_device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; the text encoder's default is
            the model's.
        dtype, text_dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``; the text encoder's default is
            the model's.
        frontier: picture of the decoding frontier: ``gif``, ``mp4``, ``png`` (a filmstrip), ``html`` (a page
            to step through) or ``none``; None is ``none`` with a sweep, else ``gif``.
        frontier_mode: ``reveal`` uncovers the finished picture, ``decode`` decodes the tokens of every step.
        theme: colours of the frontier: ``dark``, which None is, or ``light``.
        sheet: also write a contact sheet of all pictures.
        labels: write class or prompt, and seed, above each picture of the contact sheet.
        scale: factor that enlarges pictures, 1 to 16; None enlarges small ones up to 256 pixels.
        frames: number of frames to keep of a made clip, the first ones.
        fps: frames per second, 0.1 to 240.
        format: ``mp4``, ``gif``, ``webp`` or ``frames``, a folder of PNGs; None follows ``output``.
        quality: quality of mp4 and webp, 0 to 100.
        output: file, folder, or template such as ``out/{class_name}_{seed}.png``.
        save_tokens: also write the tokens of each sample.
        record: also write how sure the model was of each cell: ``cells``, or ``heads`` with the axis heads
            apart; see ``records.Record``.
        no_metadata: leave the settings out of the files.
        overwrite: replace existing files; otherwise a number is added to the name.
        offline: never use the network.

    Raises:
        UsageError: a field that is missing, out of range, or excluded by another.
    """

    kind: Literal["image", "video"] = "image"
    classes: Entry | Sequence[Entry] = ()
    prompts: str | Sequence[str | Prompt] = ()
    frames_from: str | Path | GivenFrames | Sequence[str | Path | GivenFrames] = ()
    init: str | Path | Init | None = None
    keep: float | str | None = None
    keep_mask: str | Path | None = None
    keep_cells: str | Sequence[str] = ()
    keep_frames: int | None = None
    fit: Literal["crop", "pad"] | None = None
    num: int = 1
    seed: int | None = None
    cfg_scale: float | None = None
    cfg_interval: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    more_smooth: bool | None = None
    sweep: str | Sequence[str] | Mapping[str, Any] | None = field(default=None, hash=False)
    batch_size: int | None = None
    reproducible: bool = False
    model: str | Path | None = None
    tokenizer: str | Path | None = None
    text_encoder: str | Path | None = None
    revision: str | None = None
    order: str | None = None
    pins: Mapping[str, str] = field(default_factory=dict, hash=False)
    device: str = "auto"
    text_device: str | None = None
    dtype: str = "auto"
    text_dtype: str | None = None
    frontier: Literal["gif", "mp4", "png", "html", "none"] | None = None
    frontier_mode: Literal["reveal", "decode"] | None = None
    theme: Literal["dark", "light"] | None = None
    sheet: bool = False
    labels: bool = False
    scale: int | None = None
    frames: int | None = None
    fps: float | None = None
    format: Literal["mp4", "gif", "webp", "frames"] | None = None
    quality: int | None = None
    output: str | Path | None = None
    save_tokens: bool = False
    record: Literal["cells", "heads"] | None = None
    no_metadata: bool = False
    overwrite: bool = False
    offline: bool = False

    def __post_init__(self) -> None:
        """Take one class, prompt or clip as several of one, and texts as prompts; then check."""
        for name in (*PARTS, "output", "init", "keep_mask"):
            if isinstance(path := getattr(self, name), Path):
                object.__setattr__(self, name, str(path))
        classes, prompts = self.classes, self.prompts
        entries = (classes,) if isinstance(classes, str | int | Mapping) else tuple(classes or ())
        object.__setattr__(self, "classes", entries)
        texts = [prompts] if isinstance(prompts, str | Prompt) else prompts or ()
        made = tuple(text if isinstance(text, Prompt) else parse_prompt(text) for text in texts)
        object.__setattr__(self, "prompts", made)
        given = self.frames_from
        clips = (given,) if isinstance(given, str | Path | GivenFrames) else tuple(given or ())
        clips = tuple(str(clip) if isinstance(clip, Path) else clip for clip in clips)
        object.__setattr__(self, "frames_from", clips)
        object.__setattr__(self, "sweep", parse_sweep(self.sweep))
        if self.frontier is None:
            object.__setattr__(self, "frontier", "none" if self.sweep else "gif")
        object.__setattr__(self, "keep", self.keeping.keep)
        object.__setattr__(self, "keep_cells", self.keeping.keep_cells)
        self._check()

    def _check(self) -> None:
        if self.kind not in ONLY:
            raise UsageError(f"`kind` is {self.kind!r}, expected image or video.")
        subjects = [name for name in SUBJECTS if getattr(self, name)]
        if len(subjects) > 1:
            first, second = subjects[:2]
            raise UsageError(
                f"`{first}` and `{second}` exclude each other.", "Each is for models of its kind."
            )
        if not self.prompts:
            for name in ("text_encoder", "text_device"):
                if getattr(self, name) is not None:
                    raise UsageError(f"`{name}` goes with `prompts`.", "Leave it out.")
        for kind, names in ONLY.items():
            for name in names if kind != self.kind else ():
                value = getattr(self, name)
                if value is not None and value is not False and value != () and value != {}:
                    raise UsageError(f"`{name}` is not for {self.kind}s.", "Drop it.")
        self.keeping.check(self.init, bool(self.frames_from))
        settings = SamplingSettings(**self.sampling)
        if self.frames_from:
            settings.refuse_guidance()
        if self.order is not None:
            parse_name(self.order)
        check_seeds(self.seed, self.num)
        if self.batch_size is not None:
            check_batch_size(self.batch_size)
            if self.reproducible and self.batch_size > MAX_ROWS:
                raise UsageError(
                    f"`batch_size` is {self.batch_size}, expected 1 to {MAX_ROWS} with `reproducible`."
                )
        for name in ("save_tokens", "record"):
            if getattr(self, name) and self.no_metadata:
                raise UsageError(
                    f"`{name}` and `no_metadata` exclude each other: settings tell what the tokens mean.",
                    "Drop one of them.",
                )
        if not subjects:
            _, message, ways = _WHAT[self.kind]
            raise UsageError(
                message,
                f"Give {ways}. `narcli classes --model NAME` lists the classes of a model.",
            )
        self._check_sheets()
        if self.scale is not None:
            check_scale(self.scale)
        for name in ("frontier_mode", "theme"):
            if getattr(self, name) is not None and self.frontier == "none":
                raise UsageError(
                    f"`{name}` goes with a frontier, and `frontier` is none.", "Drop one of them."
                )
        for name, expected in CHOICES.items():
            if getattr(self, name) not in expected:
                words = ", ".join(value for value in expected if value is not None)
                raise UsageError(f"`{name}` is {getattr(self, name)!r}, expected {words}.")
        if self.frames is not None and not (type(self.frames) is int and self.frames >= 1):
            raise UsageError(f"`frames` is {self.frames}, expected 1 or more.")
        check_pace(self.fps, self.quality)

    def _check_sheets(self) -> None:
        if self.labels and not self.sheet:
            raise UsageError("`labels` goes with `sheet`.", "A sweep has labels by itself.")
        check_sweep(self.ranges, self.num * max(1, len(self.texts)))
        for name in self.ranges:
            if (value := getattr(self, name)) is not None:
                raise UsageError(f"`{name}` is {value}, and `sweep` varies it.", "Drop one of them.")
        for name in ("sheet", "save_tokens", "record", "frontier"):
            if self.ranges and getattr(self, name) not in (False, None, "none"):
                raise UsageError(
                    f"`{name}` and `sweep` exclude each other: a sweep writes one sheet.", f"Drop `{name}`."
                )

    @property
    def ranges(self) -> Sweep:
        """Values of the settings that the sweep varies; empty without one."""
        return cast("Sweep", self.sweep)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Classes as given, always several."""
        return cast("tuple[Entry, ...]", self.classes)

    @property
    def texts(self) -> tuple[Prompt, ...]:
        """Prompts, checked and cleaned."""
        return cast("tuple[Prompt, ...]", self.prompts)

    @property
    def clips(self) -> tuple[str | GivenFrames, ...]:
        """Clips to go on from: paths, or given frames as a file recorded them."""
        return cast("tuple[str | GivenFrames, ...]", self.frames_from)

    @property
    def keeping(self) -> Keep:
        """Choice of the kept cells of ``init``."""
        return Keep(**{name: getattr(self, name) for name in KEEPS})

    @property
    def noun(self) -> str:
        """``picture`` or ``clip``."""
        return _WHAT[self.kind][0]

    @property
    def model_kind(self) -> str:
        """Kind of model: ``image``, ``text``, ``video`` or ``frames``."""
        return "text" if self.prompts else "frames" if self.frames_from else self.kind

    @property
    def recorded(self) -> Literal["cells", "heads"] | None:
        """Extent of the records that the run needs: those that it writes, or that a page shows."""
        return self.record or ("cells" if self.frontier == "html" else None)

    @property
    def sampling(self) -> dict[str, Any]:
        """Sampling settings that are given; the others are the model's."""
        given = {name: getattr(self, name) for name in SAMPLING}
        return {name: value for name, value in given.items() if value is not None}

    # --- JSON ------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Write the recipe in the words of the metadata of files; most defaults are left out.

        Raises:
            UsageError: given frames without codes, such as pictures in memory.
        """
        about: dict[str, Any] = {"schema": SCHEMA, "kind": self.kind}
        if self.prompts:
            about["prompts"] = [{"prompt": each.text, "cleaned_prompt": each.cleaned} for each in self.texts]
        elif self.clips:
            for clip in self.clips:
                if isinstance(clip, GivenFrames) and not clip.codes:
                    raise UsageError(
                        f"The frames given from {clip.name} have no codes, so JSON cannot hold them.",
                        "Give a path, or the entry of a result.",
                    )
            about["frames_from"] = [
                about_given(clip) if isinstance(clip, GivenFrames) else clip for clip in self.clips
            ]
        else:
            about["classes"] = list(self.entries)
        if self.init is not None:
            about["init"] = about_init(self.init) if isinstance(self.init, Init) else self.init
        about |= {part: {"name": name} for part in PARTS if (name := getattr(self, part)) is not None}
        about["sampling"] = self.sampling
        if self.frontier != "none":
            about["frontier"] = {"format": self.frontier}
            told = {"mode": self.frontier_mode, "theme": self.theme}
            about["frontier"] |= {name: value for name, value in told.items() if value is not None}
        if self.sheet:
            about["contact_sheet"] = True
        if self.ranges:
            about["sweep"] = {name: list(values) for name, values in self.ranges.items()}
        named = {"kind", *SUBJECTS, "init", "pins", "frontier", "frontier_mode", "theme", "sheet", "sweep"}
        named |= {*PARTS, *SAMPLING}
        rest = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in named}
        plain = {each.name: each.default for each in fields(self)}
        about |= {"pins": dict(self.pins)} if self.pins else {}
        return about | {name: value for name, value in rest.items() if value != plain[name]}

    @classmethod
    def from_json(cls, about: Mapping[str, Any], where: str = "The recipe", **given: Any) -> Recipe:
        """Read the recipe of ``to_json``, or of the metadata of a file or of a JSON document of a run.

        Args:
            about: metadata with a ``kind``, and classes, prompts, given frames or samples.
            where: name of the source, for messages.
            given: fields that override it. A model also replaces tokenizer and text encoder; a class
                replaces prompts or given frames; another format drops the quality; a sweep drops the values
                of its settings, and sheet and frontier.

        Raises:
            CheckpointError: it does not say what it is of, or a field is not what it should be.
            UsageError: as ``Recipe``.
        """
        return cls(**recipe_json.read(about, where, given, {each.name for each in fields(cls)}))
