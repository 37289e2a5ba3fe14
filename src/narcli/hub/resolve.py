"""Resolve names, repositories, files, folders and defaults to models. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

from ..checkpoints.config import CONFIG, MODEL, read_config, result_of, weights_in
from ..checkpoints.folder import has_own_encoder, has_own_tokenizer
from ..checkpoints.formats.families import released_defaults
from ..errors import NarError, UsageError, nearest
from ..media.textfiles import expand, open_regular
from .catalog import (
    _KINDS,
    _REPOSITORY,
    _TOKENIZERS,
    DEFAULT_KINDS,
    MODEL_KINDS,
    MODELS,
    Model,
    tokenizer_kind,
)

START = 2**20  # bytes at the beginning of a file that name its tensors


def resolve(name: str | Path, kind: str | None) -> Model:
    """Resolve the value of ``--model`` or ``--tokenizer``.

    Args:
        name: a catalog name, a path, or a repository; looked for in that order.
        kind: required kind: ``image``, ``text``, ``video``, ``frames``, ``image-tokenizer``,
            ``video-tokenizer`` or ``text-encoder``; None takes any. Files and repositories that do not tell
            are taken for that kind (or for ``image``).

    Raises:
        UsageError: an unknown name (near ones are suggested), or a model of another kind.
        CheckpointError: a local folder with an unusable config.json.
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
        called = path.stem if path.is_file() else path.resolve().name
        other = lender(path)
        model = Model(called, kind or "image", path=path, tokenizer=other.name if other else None)
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
    if kind is not None and kind.endswith("-tokenizer") and model.path:
        model = replace(MODELS.get(model.tokenizer or "", model), kind=kind)  # a built-in one means its own
    model = complete(model, model.path) if model.path else model
    if kind is not None and model.kind != kind:
        what, instead = _KINDS[model.kind]
        raise UsageError(f"{model.name} is {what}, not {_KINDS[kind][0]}.", instead)
    return model


def meant(text: str) -> str:
    """``Did you mean ...? `` with the nearest path and the nearest names, or ""."""
    close = [*filter(None, [_near_path(text)]), *nearest(text.strip().strip("/"), MODELS)]
    return f"Did you mean {' or '.join(close[:3])}? " if close else ""


def _near_path(text: str) -> str | None:
    """Nearest existing path, compared part by part; None if none is near."""
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
    """Complete a model with the ``config.json`` at its local file or folder.

    A released file, which does not tell its kind, gets the default settings of the released scripts.

    Raises:
        CheckpointError: an unusable config.json.
    """
    if model.kind == "text-encoder":  # its config.json is the one of transformers
        return model
    folder = path.parent if path.name == MODEL else path
    said = read_config(folder / CONFIG) if os.path.lexists(folder / CONFIG) else None
    if said is None or not said.kind:  # beside a released file it only has sizes
        return replace(model, defaults=model.defaults or _released_defaults(path, model.kind))
    kind = said.kind
    if model.kind.endswith("-tokenizer") and has_own_tokenizer(path) and kind in MODEL_KINDS:
        kind = tokenizer_kind(kind)  # a folder with both parts, asked for as a tokenizer
    return replace(
        model,
        kind=kind,
        grid=said.transformer.get("grid", model.grid),
        tokenizer=None if has_own_tokenizer(path) else model.tokenizer,
        text_encoder=None if has_own_encoder(path) else model.text_encoder,
        classes=said.classes or model.classes,
        defaults={**model.defaults, **said.defaults},
    )


def _released_defaults(path: Path, kind: str) -> Mapping[str, float]:
    """Return the settings of the released scripts for a file, or for the only one of a folder."""
    start = b""
    with suppress(OSError, NarError):
        names = weights_in(file.name for file in path.iterdir()) if path.is_dir() else [path.name]
        if len(names) == 1:
            with open_regular(path / names[0] if path.is_dir() else path) as file:
                start = file.read(START)
    return released_defaults(start, kind)


def companions(model: Model) -> list[Model]:
    """List the tokenizer and the text encoder of a model that are models of their own."""
    return [MODELS[name] for name in (model.tokenizer, model.text_encoder) if name]


def no_tokenizer(model: Model) -> UsageError:
    """Error for a model without a tokenizer when none is named."""
    known = _TOKENIZERS.get(model.kind, _TOKENIZERS["image"])
    return UsageError(
        f"{model.name} does not bring its tokenizer.",
        f"Add `tokenizer`: a file or, for the released models, {known}.",
    )


def lender(path: Path) -> Model | None:
    """Find the built-in model whose tokenizer the built-in model at a path uses; None for other paths."""
    folder = (path.parent if path.name == MODEL else path).resolve()
    name = next((row.tokenizer for row in MODELS.values() if row.path and row.path.resolve() == folder), None)
    return MODELS[name] if name else None


def _row_of(repo: str, file: str | None) -> Model | None:
    """Catalog row of a repository, or of a file in it; None if there is none."""
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


def default_model(kind: str) -> str:
    """Default model of a kind: from the environment, else the user's choice, else built in.

    Args:
        kind: ``image``, ``text`` or ``video``.

    Raises:
        UsageError: not a kind, or one without a default.
        NarError: the settings are damaged.
    """
    if kind in MODEL_KINDS and kind not in DEFAULT_KINDS:
        known = next(row.name for row in MODELS.values() if row.kind == kind)
        raise UsageError(f"The default is no model {_KINDS[kind][0][8:]}.", f"Name one: `model={known}`.")
    check_kind(kind)
    built_in = next(row.name for row in MODELS.values() if row.kind == kind and row.path)
    return from_environment(kind) or _chosen().get(kind) or built_in


def resolve_default(kind: str, wanted: str | None) -> Model:
    """Resolve the default model of a kind; as ``resolve``, but errors name the source of the choice."""
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
    """Names of the default models, by kind."""
    return {kind: default_model(kind) for kind in DEFAULT_KINDS}


def variable(kind: str) -> str:
    """Name of the environment variable that overrides the default of a kind."""
    return f"NARCLI_{kind.upper()}_MODEL"


def from_environment(kind: str) -> str | None:
    """Default model set by the environment, or None."""
    return os.environ.get(variable(kind)) or None


def check_kind(kind: str) -> None:
    """Raise UsageError unless kinds with defaults include this one."""
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
