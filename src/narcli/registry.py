"""The models that narcli knows, one row each, and what ``--model`` means. No torch, no network.

A model is a registry name (``nar-b-256``), a repository of the Hub (``owner/name``, or
``owner/name/file``), or a local file or folder. Nothing is fetched unless a person named it; out of
the box the defaults are the built-in models. Sources of the rows: the models' pages as last seen.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, cast

from .configs import CONFIG, MODEL, RELEASED_DEFAULTS, TEXT_ENCODER, TOKENIZER, read_config, result_of
from .errors import CheckpointError, NarError, UsageError, nearest
from .textfiles import expand

if TYPE_CHECKING:
    from .checkpoints import Kind

#: What a model can be the default for.
DEFAULT_KINDS = ("image", "text", "video")
WEIGHTS = Path(__file__).with_name("weights")


@dataclass(frozen=True)
class Model:
    """One model: where it is and what goes with it.

    Args:
        name: what people call it.
        kind: ``image`` (from classes), ``text`` (images from text), ``video`` (from classes),
            ``image-tokenizer``, ``video-tokenizer`` or ``text-encoder``.
        repo: repository on the Hub; None for local and built-in ones.
        file: weights file in the repository; None is the only one there.
        size: bytes to fetch, about; None where not known.
        grid: of its tokens, where the file cannot tell.
        tokenizer: name of its tokenizer; None when it is in the model's own folder, or not known.
        classes: name of its class table, or the names; None when not known.
        defaults: sampling settings.
        license: None is "see the model's page".
        note: what else to know.
        scale: letters of its size in the paper; None for ours.
        path: the local file or folder.
        text_encoder: name of its text encoder; None when it is in the model's own folder, or not known.
        origin: sentence on who chose it, where nobody named it for this run, or "".
    """

    name: str
    kind: str
    repo: str | None = None
    file: str | None = None
    size: int | None = None
    grid: tuple[int, ...] | None = None
    tokenizer: str | None = None
    classes: str | tuple[str, ...] | None = field(default=None, repr=False)
    defaults: Mapping[str, float] = field(default_factory=dict)
    license: str | None = None
    note: str = ""
    scale: str | None = None
    path: Path | None = None
    text_encoder: str | None = None
    origin: str = field(default="", compare=False)

    @property
    def page(self) -> str | None:
        """Where to read about it."""
        return f"https://huggingface.co/{self.repo}" if self.repo else None


IMAGE, TEXT, VIDEO = (RELEASED_DEFAULTS[kind] for kind in DEFAULT_KINDS)

#: What the released text models were trained with.
TEXT_ENCODER_OF_RELEASED = "flan-t5-xl"

# fmt: off
_ROWS = (
    Model("emoji", "image", classes="emoji", license="MIT", note="built in", path=WEIGHTS / "emoji"),
    Model("emoji-text", "text", license="MIT", note="built in", path=WEIGHTS / "emoji-text"),
    Model("emoji-video", "video", classes="emoji-video", license="MIT", note="built in",
          path=WEIGHTS / "emoji-video"),
    Model("nar-b-256", "image", "chenfeng1271/NAR-imagenet-256-B", "last_version.pt", 522_000_000,
          (16, 16), "vq16-c2i", "imagenet1k", IMAGE, note="130 M parameters", scale="B"),
    Model("nar-m-256", "image", "yefly/NAR-imagenet-256-M", None, 1_160_000_000,
          (16, 16), "vq16-c2i", "imagenet1k", IMAGE, note="290 M parameters", scale="M"),
    Model("nar-l-256", "image", "chenfeng1271/NAR-imagenet-256-L", None, 1_490_000_000,
          (16, 16), "vq16-c2i", "imagenet1k", IMAGE, note="372 M parameters", scale="L"),
    Model("nar-xl-256", "image", "yefly/NAR-imagenet-256-XL", None, 3_260_000_000,
          (16, 16), "vq16-c2i", "imagenet1k", IMAGE, note="816 M parameters", scale="XL"),
    Model("nar-xxl-256", "image", "chenfeng1271/NAR-imagenet-256-XXL", None, 5_840_000_000,
          (16, 16), "vq16-c2i", "imagenet1k", IMAGE, note="1.46 B parameters", scale="XXL"),
    Model("nar-xl-t2i-256", "text", "yefly/NAR-XL-t2i-stage1", None, None,
          (16, 16), "vq16-t2i", None, TEXT, note="256 px, 0.8 B parameters",
          scale="XL", text_encoder=TEXT_ENCODER_OF_RELEASED),
    Model("nar-xl-t2i-512", "text", "yefly/NAR-XL-t2i-stage2", None, None,
          (32, 32), "vq16-t2i", None, TEXT, note="512 px, 0.8 B parameters",
          scale="XL", text_encoder=TEXT_ENCODER_OF_RELEASED),
    Model("nar-l-ucf101", "video", "chenfeng1271/NAR-ucf101-256-L", None, 1_480_000_000,
          (4, 16, 16), "larp-long", "ucf101", VIDEO, note="16 frames of 128 px, 369 M parameters", scale="L"),
    Model("nar-lp-ucf101", "video", "chenfeng1271/NAR-ucf101-256-LP", None, 2_780_000_000,
          (4, 16, 16), "larp-long", "ucf101", VIDEO, scale="LP",
          note="16 frames of 128 px, 694 M parameters"),
    Model("vq16-c2i", "image-tokenizer", "FoundationVision/LlamaGen", "vq_ds16_c2i.pt", 288_000_000,
          note="of the class models"),
    Model("vq16-t2i", "image-tokenizer", "peizesun/llamagen_t2i", "vq_ds16_t2i.pt", 287_920_306,
          note="of the text models"),
    Model("larp-long", "video-tokenizer", "hywang66/LARP-L-long-tokenizer", "model.safetensors",
          note="of the video models"),
    Model(TEXT_ENCODER_OF_RELEASED, "text-encoder", "google/flan-t5-xl", None, 11_400_000_000,
          license="Apache-2.0", note="of the text models"),
)
# fmt: on
MODELS: Mapping[str, Model] = {row.name: row for row in _ROWS}

_KINDS = {
    "image": ("a model of images from classes", "Use `narcli image --class`."),
    "text": ("a model of images from text", "Use `narcli image --prompt`."),
    "video": ("a model of videos", "Use `narcli video`."),
    "image-tokenizer": ("an image tokenizer", "Give it as --tokenizer."),
    "video-tokenizer": ("a video tokenizer", "Give it as --tokenizer."),
    "text-encoder": ("a text encoder", "Give it as --text-encoder."),
}
_REPOSITORY = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(/(?P<file>\w[\w./ +-]*))?", re.ASCII)


def resolve(name: str | Path, kind: str | None) -> Model:
    """What a person means by ``--model`` or ``--tokenizer``.

    Args:
        name: a registry name, a path, or a repository; looked for in that order.
        kind: what is wanted: ``image``, ``text``, ``video``, ``image-tokenizer``, ``video-tokenizer`` or
            ``text-encoder``; None for any. Files and repositories that do not tell are taken for that kind
            (or for ``image``).

    Raises:
        UsageError: nothing of that name (near ones are suggested), or a model of another kind.
        CheckpointError: a local folder whose config.json is not usable.
        NarError: a built-in model that this installation lacks.
    """
    text = str(name)
    model = MODELS.get(text.lower())
    if model is not None:
        if model.path is not None and not model.path.is_dir():
            raise NarError(
                f"The built-in model {model.name} is not part of this installation.", "Install narcli again."
            )
    elif path := _existing(text):
        path = result_of(path)
        model = Model(path.stem if path.is_file() else path.resolve().name, kind or "image", path=path)
    elif _is_path(text):
        raise UsageError(
            f"There is no file or folder {text}.",
            f"{meant(text)}Check the path, or see `narcli models list`.",
        )
    elif (match := _REPOSITORY.fullmatch(text)) and ".." not in text:
        repo, file = match["repo"], match["file"]
        model = _row_of(repo, file) or Model(text, kind or "image", repo, file)
    else:
        raise UsageError(
            f"There is no model {text[:60]!r}, and no file or folder of that name.",
            f"{meant(text)}`narcli models list` shows them; a path or owner/name of the Hub works too.",
        )
    model = complete(model, model.path) if model.path else model
    if kind is not None and model.kind != kind:
        what, instead = _KINDS[model.kind]
        raise UsageError(f"{model.name} is {what}, not {_KINDS[kind][0]}.", instead)
    return model


def meant(text: str) -> str:
    """``Did you mean ...? `` with the nearest path here and the nearest names, or ""."""
    close = [*filter(None, [_near_path(text)]), *nearest(text.strip().strip("/"), MODELS)]
    return f"Did you mean {' or '.join(close[:3])}? " if close else ""


def _near_path(text: str) -> str | None:
    """The path on this machine that differs least in each of its parts, if any is near."""
    try:
        path = Path(text.strip().replace("\\", "/")).expanduser()
        found = Path(path.anchor)
        for part in path.relative_to(path.anchor).parts:
            if not (found / part).exists():
                names = [entry.name for entry in islice(found.iterdir(), 1000)]
                part = (nearest(part, names, 1) or [part])[0]
            found /= part
        return str(found) if found.exists() and found != Path(path.anchor) else None
    except (OSError, ValueError, RuntimeError):
        return None


def complete(model: Model, path: Path) -> Model:
    """The model with what the ``config.json`` at its local file or folder says.

    A released file, which says nothing of the kind, gets the default settings of the released scripts.

    Raises:
        CheckpointError: that file is not usable.
    """
    if model.kind == "text-encoder":  # its config.json is the one of transformers
        return model
    folder = path.parent if path.name == MODEL else path
    said = read_config(folder / CONFIG) if os.path.lexists(folder / CONFIG) else None
    if said is None or not said.kind:  # beside a released file: only about sizes
        return replace(model, defaults=model.defaults or RELEASED_DEFAULTS.get(model.kind, {}))
    kind = said.kind
    if model.kind.endswith("-tokenizer") and has_own_tokenizer(path) and kind in DEFAULT_KINDS:
        # A folder with both parts is a model; asked for as a tokenizer it is one too.
        kind = "video-tokenizer" if kind == "video" else "image-tokenizer"
    return replace(
        model,
        kind=kind,
        grid=said.transformer.get("grid", model.grid),
        tokenizer=None if has_own_tokenizer(path) else model.tokenizer,
        text_encoder=None if has_own_encoder(path) else model.text_encoder,
        classes=said.classes or model.classes,
        defaults={**model.defaults, **said.defaults},
    )


def has_own_tokenizer(path: Path) -> bool:
    """Whether a local model is a narcli folder that brings its tokenizer."""
    folder = path.parent if path.name == MODEL else path
    return os.path.lexists(folder / TOKENIZER)


def has_own_encoder(path: Path) -> bool:
    """Whether a local model is a narcli folder that brings its text encoder.

    Raises:
        CheckpointError: what has the encoder's name is no folder.
    """
    folder = (path if path.is_dir() else path.parent) / TEXT_ENCODER
    if os.path.lexists(folder) and not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder, expected one of a text encoder.", "Get it again.")
    return folder.is_dir()


_TOKENIZERS = {
    "image": "vq16-c2i for those of ImageNet",
    "text": "vq16-t2i for those of images from text",
    "video": "larp-long for those of UCF-101",
}


def no_tokenizer(model: Model) -> UsageError:
    """The error of a model that comes without its tokenizer, where none is named."""
    known = _TOKENIZERS.get(model.kind, _TOKENIZERS["image"])
    return UsageError(
        f"{model.name} does not bring its tokenizer.",
        f"Add --tokenizer: a file or, for the released models, {known}.",
    )


def smaller_models(model: Model, fits: Callable[[Model], bool]) -> list[str]:
    """Names of known models of the same kind that fit, the largest first, built-in ones last; not itself."""
    rows = [row for row in MODELS.values() if row.kind == model.kind and row.name != model.name and fits(row)]
    return [row.name for row in sorted(rows, key=lambda row: (row.path is None, row.size or 0), reverse=True)]


def _row_of(repo: str, file: str | None) -> Model | None:
    """The row of a repository, or of a file in it."""
    for row in MODELS.values():
        if row.repo and row.repo.lower() == repo.lower() and (file is None or row.file in (None, file)):
            return replace(row, file=file) if file else row
    return None


def _existing(text: str) -> Path | None:
    try:
        path = expand(text)
        return path if text and path.exists() else None
    except (OSError, ValueError):  # too long, a NUL in it
        return None


def _is_path(text: str) -> bool:
    ending = text.endswith((".pt", ".pth", ".safetensors", "/")) and text.count("/") < 2
    return text.startswith((".", "/", "~", "\\")) or ending


# --- defaults ------------------------------------------------------------------------------------


def default_model(kind: str) -> str:
    """The model used where none is named: from the environment, else the person's choice, else built in.

    Args:
        kind: ``image``, ``text`` or ``video``.

    Raises:
        UsageError: not a kind.
        NarError: the settings are damaged.
    """
    check_kind(kind)
    built_in = next(row.name for row in MODELS.values() if row.kind == kind and row.path)
    return from_environment(kind) or _chosen().get(kind) or built_in


def resolve_default(kind: str, wanted: str | None) -> Model:
    """The default model of a kind; ``wanted`` and errors as ``resolve``, which say who chose the name."""
    name = default_model(kind)
    origin = ""
    if from_environment(kind):
        origin = f"{variable(kind)} names it."
    elif kind in _chosen():
        origin = f"It is the default {kind} model in {_settings_file()}."
    try:
        return replace(resolve(name, wanted), origin=origin)
    except NarError as error:
        raise type(error)(f"{error.message} {origin}".strip(), error.hint) from error


def defaults() -> dict[str, str]:
    """The default of each kind."""
    return {kind: default_model(kind) for kind in DEFAULT_KINDS}


def set_default(kind: str, name: str | None) -> None:
    """Remember a default model, or forget it (None).

    Raises:
        UsageError: not a kind, or nothing of that name.
        CheckpointError: a file or folder that is no model of that kind, or a damaged one.
        NarError: the settings cannot be written.
    """
    from .writers import write_atomic

    check_kind(kind)
    chosen = _chosen()
    chosen.pop(kind, None)
    if name is not None:
        model = resolve(name, kind)
        local = model.path is not None and name.lower() not in MODELS
        if name.lower() not in MODELS:
            from .checkpoints import check_model  # only here: it imports torch
            from .hub import cached

            if (found := cached(model)) is not None:
                check_model(found.model, found.path, cast("Kind", kind))
        chosen[kind] = str(expand(name).resolve()) if local else model.name
    write_atomic(_settings_file(), (json.dumps(chosen, indent=1) + "\n").encode(), overwrite=True)


def variable(kind: str) -> str:
    """The environment variable that overrides the default of a kind."""
    return f"NARCLI_{kind.upper()}_MODEL"


def from_environment(kind: str) -> str | None:
    """The default that the environment sets."""
    return os.environ.get(variable(kind)) or None


def check_kind(kind: str) -> None:
    """Raise UsageError unless there can be a default of that kind."""
    if kind not in DEFAULT_KINDS:
        close = nearest(kind, DEFAULT_KINDS, 1)
        raise UsageError(
            f"There is no kind {kind[:40]!r}.",
            (f"Did you mean {close[0]}? " if close else "") + f"The kinds are {', '.join(DEFAULT_KINDS)}.",
        )


def _settings_file() -> Path:
    from platformdirs import user_config_path

    return user_config_path("narcli") / "models.json"


def _chosen() -> dict[str, str]:
    path = _settings_file()
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or not all(isinstance(value, str) for value in said.values()):
        raise NarError(f"The settings in {path} cannot be read.", "Correct that file, or remove it.")
    return said
