"""Recipe: all that is asked for of a run, and its JSON. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast

from ..errors import CheckpointError, UsageError
from ..media.clips import BY_SUFFIX, FORMATS, MAX_FPS, MIN_FPS
from ..media.metadata import SCHEMA
from ..prompts import Prompt, parse_prompt
from ..settings import MAX_SCALE, SamplingSettings, check_batch_size

SAMPLING = tuple(each.name for each in fields(SamplingSettings))
LOOKS = ("scale", "frames", "fps", "quality")  # recorded under these names
#: Fields that only runs of one kind have.
ONLY = {
    "image": ("prompts", "text_encoder", "text_device", "text_dtype", "sheet"),
    "video": ("frames", "fps", "format", "quality"),
}
PARTS = ("model", "tokenizer", "text_encoder")  # files of a model, in metadata
_WHAT = {"image": ("picture", "class or prompt"), "video": ("clip", "class")}

Entry = str | int | Mapping[str, Any]  # of a class


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that is asked for of a run; None is the model's or the machine's own choice.

    Args:
        kind: ``image`` or ``video``.
        classes: ids, names, several of them in a text (``"207,cat"``), or classes as metadata has them.
        prompts: texts to draw, in place of classes; only for images.
        num: samples of each class or prompt.
        seed: of the first sample; later ones add 1. None draws one.
        cfg_scale, cfg_interval, temperature, top_k, top_p: as in ``SamplingSettings``.
        batch_size: samples decoded together; None looks at the memory.
        model, tokenizer, text_encoder: names, Hub repositories, files or folders.
        revision: branch, tag or commit of the model's repository.
        pins: revisions of the repositories of ``tokenizer`` and ``text_encoder``.
        device, text_device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; the text encoder's, if None,
            is the model's.
        dtype, text_dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``, likewise.
        frontier: picture of the decoding frontier: ``gif``, ``mp4``, ``png`` (a filmstrip) or ``none``.
        frontier_mode: ``reveal`` uncovers the finished picture, ``decode`` decodes the tokens of every step.
        sheet: also write a contact sheet of all pictures.
        scale: factor that enlarges pictures, 1 to 16; None enlarges small ones up to 256 pixels.
        frames: number of frames to keep of a clip, the first ones.
        fps: frames per second, 0.1 to 240.
        format: ``mp4``, ``gif``, ``webp`` or ``frames``, a folder of PNGs; None goes by ``output``.
        quality: of mp4 and webp, 0 to 100.
        output: a file, a folder, or a template such as ``out/{class_name}_{seed}.png``.
        save_tokens: also write the tokens of each sample.
        no_metadata: leave the settings out of the files.
        overwrite: replace files that exist; otherwise a number makes the name free.
        offline: never use the network.

    Raises:
        UsageError: a field that is missing, out of range, or does not go with another.
    """

    kind: Literal["image", "video"] = "image"
    classes: Entry | Sequence[Entry] = ()
    prompts: str | Sequence[str | Prompt] = ()
    num: int = 1
    seed: int | None = None
    cfg_scale: float | None = None
    cfg_interval: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    batch_size: int | None = None
    model: str | None = None
    tokenizer: str | None = None
    text_encoder: str | None = None
    revision: str | None = None
    pins: Mapping[str, str | None] = field(default_factory=dict)
    device: str = "auto"
    text_device: str | None = None
    dtype: str = "auto"
    text_dtype: str | None = None
    frontier: Literal["gif", "mp4", "png", "none"] = "gif"
    frontier_mode: Literal["reveal", "decode"] | None = None
    sheet: bool = False
    scale: int | None = None
    frames: int | None = None
    fps: float | None = None
    format: Literal["mp4", "gif", "webp", "frames"] | None = None
    quality: int | None = None
    output: str | None = None
    save_tokens: bool = False
    no_metadata: bool = False
    overwrite: bool = False
    offline: bool = False

    def __post_init__(self) -> None:
        """Take one class or prompt as several of one, and texts as prompts; then check."""
        classes, prompts = self.classes, self.prompts
        entries = (classes,) if isinstance(classes, str | int | Mapping) else tuple(classes or ())
        object.__setattr__(self, "classes", entries)
        texts = [prompts] if isinstance(prompts, str | Prompt) else prompts or ()
        made = tuple(text if isinstance(text, Prompt) else parse_prompt(text) for text in texts)
        object.__setattr__(self, "prompts", made)
        self._check()

    def _check(self) -> None:
        if self.kind not in ONLY:
            raise UsageError(f"`kind` is {self.kind!r}, expected image or video.")
        if self.classes and self.prompts:
            raise UsageError("`classes` and `prompts` exclude each other.", "Each is for models of its kind.")
        if not self.prompts:
            for name in ("text_encoder", "text_device"):
                if getattr(self, name) is not None:
                    raise UsageError(f"`{name}` goes with `prompts`.", "Leave it out.")
        for kind, names in ONLY.items():
            for name in names if kind != self.kind else ():
                if getattr(self, name) not in (None, False, ()):
                    raise UsageError(f"`{name}` is not for {self.kind}s.", "Drop it.")
        SamplingSettings(**self.sampling)
        if self.batch_size is not None:
            check_batch_size(self.batch_size)
        if self.save_tokens and self.no_metadata:
            raise UsageError(
                "`save_tokens` and `no_metadata` exclude each other: settings tell what the tokens mean.",
                "Drop one of them.",
            )
        if not self.classes and not self.prompts:
            ways = "`classes=207` or `classes='golden retriever'`"
            if self.kind == "image":
                ways += ", or a prompt, `prompts='a red apple'`"
            raise UsageError(
                f"No {_WHAT[self.kind][1]} given.",
                f"Give a class, {ways}. `narcli classes --model NAME` lists the classes of a model.",
            )
        if self.scale is not None and not 1 <= self.scale <= MAX_SCALE:
            raise UsageError(f"`scale` is {self.scale}, expected a whole factor from 1 to {MAX_SCALE}.")
        if self.frontier_mode is not None and self.frontier == "none":
            raise UsageError(
                "`frontier_mode` goes with a frontier, and `frontier` is none.", "Drop one of them."
            )
        if self.format not in (None, *FORMATS):
            raise UsageError(f"`format` is {self.format!r}, expected {', '.join(FORMATS)}.")
        if self.frames is not None and self.frames < 1:
            raise UsageError(f"`frames` is {self.frames}, expected 1 or more.")
        if self.fps is not None and not MIN_FPS <= self.fps <= MAX_FPS:
            raise UsageError(f"`fps` is {self.fps:g}, expected a number from {MIN_FPS:g} to {MAX_FPS:g}.")
        if self.quality is not None and not 0 <= self.quality <= 100:
            raise UsageError(f"`quality` is {self.quality}, expected a number from 0 to 100.")

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Classes as given, one by one."""
        return cast("tuple[Entry, ...]", self.classes)

    @property
    def texts(self) -> tuple[Prompt, ...]:
        """Prompts, checked and cleaned."""
        return cast("tuple[Prompt, ...]", self.prompts)

    @property
    def noun(self) -> str:
        """``picture`` or ``clip``."""
        return _WHAT[self.kind][0]

    @property
    def model_kind(self) -> str:
        """Kind of model: ``image``, ``text`` or ``video``."""
        return "text" if self.prompts else self.kind

    @property
    def sampling(self) -> dict[str, Any]:
        """Sampling settings that are given; the others are the model's."""
        given = {name: getattr(self, name) for name in SAMPLING}
        return {name: value for name, value in given.items() if value is not None}

    # --- JSON ------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """The recipe in the words of the metadata (``narcli.media.metadata``); defaults are left out."""
        about: dict[str, Any] = {"schema": SCHEMA, "kind": self.kind}
        if self.prompts:
            about["prompts"] = [{"prompt": each.text, "cleaned_prompt": each.cleaned} for each in self.texts]
        else:
            about["classes"] = list(self.entries)
        parts: dict[str, dict[str, Any]] = {}
        for part in PARTS:
            if (name := getattr(self, part)) is not None:
                parts[part] = {"name": name}
                revision = self.revision if part == "model" else self.pins.get(part)
                if revision is not None:
                    parts[part]["revision"] = revision
        about |= parts | {"sampling": self.sampling}
        if self.frontier != "none":
            about["frontier"] = {"format": self.frontier}
            if self.frontier_mode is not None:
                about["frontier"]["mode"] = self.frontier_mode
        if self.sheet:
            about["contact_sheet"] = True
        told = {"kind", "classes", "prompts", "revision", "pins", "frontier", "frontier_mode", "sheet"}
        told |= {*PARTS, *SAMPLING}
        rest = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in told}
        plain = {each.name: each.default for each in fields(self)}
        return about | {name: value for name, value in rest.items() if value != plain[name]}

    @classmethod
    def from_json(cls, about: Mapping[str, Any], where: str = "The recipe", **given: Any) -> Recipe:
        """The recipe of ``to_json``, or of the metadata of a file, picture or ``--json`` document.

        Args:
            about: with its ``kind``, and classes, prompts or samples.
            where: what it is of, for messages.
            given: fields that replace it. A model replaces its tokenizer and text encoder too; a class
                replaces prompts; another format replaces the quality.

        Raises:
            CheckpointError: it does not say what it is of.
            UsageError: as ``Recipe``.
        """
        require(where, about, "kind")
        made = _looks(about, given) | dict(about.get("sampling", {}))
        if not {"classes", "prompts"} & set(given):
            entries, seed, num = subject_of(about, where)
            made |= {"prompts" if isinstance(entries[0], Prompt) else "classes": entries}
        else:
            seed, num = about.get("seed"), about.get("num", 1)
            if "samples" in about:
                _, seed, num = subject_of(about, where)
        made |= {"kind": about["kind"], "seed": seed, "num": num, "sheet": about.get("contact_sheet", False)}
        frontier = about.get("frontier", {"format": "none"})
        made |= {"frontier": frontier["format"], "frontier_mode": frontier.get("mode")}
        if given.get("frontier") == "none":
            made["frontier_mode"] = None
        if "model" not in given:
            made |= _parts(about, given)
        if not {"model", "dtype", "text_encoder"} & set(given):
            made["text_dtype"] = about.get("text_encoder", {}).get("dtype")
        names = {each.name for each in fields(cls)} - {*PARTS, "frontier"}
        plain = {name: about[name] for name in names if name in about and name not in ("classes", "prompts")}
        return cls(**(plain | made | given))


def require(where: object, about: Mapping[str, Any], *names: str) -> None:
    """Refuse metadata without these fields.

    Raises:
        CheckpointError: the first one that is not there.
    """
    for name in names:
        if name not in about:
            raise CheckpointError(f"{where} does not say its {name}.", "Get the original file again.")


def subject_of(about: Mapping[str, Any], where: object) -> tuple[Sequence[Any], int | None, int]:
    """Classes (ids, or as metadata) or prompts that metadata are of, the first seed, and samples of each.

    Raises:
        CheckpointError: they do not say.
    """
    seed: int | None
    entries: list[Any]
    if "samples" in about:
        each = [(entry_of(sample, where), sample["seed"]) for sample in about["samples"]]
        num = 1
        while num < len(each) and each[num] == (each[0][0], each[0][1] + num):
            num += 1
        entries = [entry for entry, _ in each[::num]]
        if not each or each != [(entry, each[0][1] + k) for entry in entries for k in range(num)]:
            raise CheckpointError(
                f"The samples of {where} are not those of one run.", "Get the original file."
            )
        seed = each[0][1]
    else:
        seed, num = about.get("seed"), about.get("num", 1)
        if "classes" in about:
            entries = list(about["classes"])
        elif "prompts" in about:
            entries = [entry_of(prompt, where) for prompt in about["prompts"]]
            if len(entries) < about.get("prompts_in_all", 0):
                raise CheckpointError(
                    f"{where} holds {len(entries)} of its {about['prompts_in_all']} prompts.",
                    "Rerun the files of the samples.",
                )
        else:
            entries = [entry_of(about, where)]
    if not entries or len({isinstance(entry, Prompt) for entry in entries}) > 1:
        raise CheckpointError(f"{where} does not say what it is of.", "Get the original file again.")
    return entries, seed, num


def entry_of(sample: Mapping[str, Any], where: object) -> Prompt | dict[str, Any]:
    """The prompt, or the class as metadata, that a sample is of.

    A prompt keeps its cleaned text: that of an earlier release gives the same tokens again.

    Raises:
        CheckpointError: it names neither, or the prompt is unusable.
    """
    if "prompt" not in sample:
        require(where, sample, "class")
        return dict(sample["class"])
    try:
        return parse_prompt(sample["prompt"], sample.get("cleaned_prompt"))
    except UsageError as error:
        raise CheckpointError(f"{where}: {error.message}", "Get the original file again.") from None


def _looks(about: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """How metadata have pictures and clips written; less where it is another format now."""
    looks = {name: about.get(name) for name in LOOKS}
    if (looks["scale"] or 0) > MAX_SCALE:  # that of a very small picture, which nobody chose
        looks["scale"] = None
    wanted, suffix = given.get("format"), Path(given.get("output") or "").suffix.lower()[1:]
    if wanted is None and f".{suffix}" in BY_SUFFIX:
        wanted = suffix
    if "format" in about:
        looks["format"] = wanted or about["format"]
        if looks["format"] != about["format"]:
            looks["quality"] = None
        if looks["format"] == "frames":
            looks["fps"] = None
    return looks


def _parts(about: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Names and revisions of a model's files; a part in the model's own folder has its name."""
    made: dict[str, Any] = {"pins": {}}
    own = about.get("model", {}).get("name")
    for part in PARTS:
        if part in about and part not in given and (part == "model" or about[part]["name"] != own):
            made[part] = about[part]["name"]
            revision = about[part].get("revision", about[part].get("commit"))
            if part == "model":
                made["revision"] = revision
            else:
                made["pins"][part] = revision
    return made
