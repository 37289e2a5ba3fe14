"""Selection of a model's files from a repository or folder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..checkpoints.config import (
    CONFIG,
    MODEL,
    NAMES,
    NAMES_LIST,
    NAMES_VECTORS,
    TEXT_ENCODER,
    TOKENIZER,
    read_config,
    weights_in,
)
from ..checkpoints.folder import SHARD, SHARD_HINT
from ..errors import HubError
from .cache import _commit, _is_name, _snapshot
from .catalog import Model
from .resolve import complete


@dataclass(frozen=True)
class Fetched:
    """A model on this machine.

    Args:
        model: the requested model, completed from its own config.json.
        path: the weights file or the narcli folder.
        commit: of the repository; None for local and built-in models.
        note: remark about its origin, or "".
        downloaded: bytes received over the network.
        compared: true if the files were hashed and match the Hub's listing.
    """

    model: Model
    path: Path
    commit: str | None = None
    note: str = ""
    downloaded: int = field(default=0, compare=False)
    compared: bool = field(default=False, compare=False)


def cached(model: Model, revision: str | None = None) -> Fetched | None:
    """Return the model if it is on this machine, else None; makes no request.

    Raises:
        CheckpointError: an unusable config.json.
    """
    if model.repo is None:
        there = model.path is not None and model.path.exists()
        return Fetched(complete(model, model.path), model.path) if there and model.path else None
    files = chosen(model, revision)
    return _fetched(model, files[-1]) if files else None


def chosen(model: Model, revision: str | None = None) -> list[Path]:
    """Cached files that a model is read from, the weights last; [] if weights are missing."""
    folder = _snapshot(model.repo or "", revision or "main")
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()] if folder else []
    try:
        return [folder / name for name in choose(model, names)] if folder else []
    except HubError:
        return []


def files_of(found: Fetched) -> list[Path]:
    """Files of a local model."""
    folder = found.path if found.path.is_dir() else found.path.parent
    if found.model.repo is not None:
        root = next(p for p in (folder, *folder.parents) if p.parent.name == "snapshots")
        names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
        return [root / name for name in choose(found.model, names)]
    if found.path.is_dir():
        return sorted(path for path in found.path.rglob("*") if path.is_file())
    return [path for path in (folder / CONFIG, found.path) if path.is_file()]


def choose(model: Model, names: Iterable[str]) -> list[str]:
    """Choose the files to fetch from a repository.

    Weights come last, so a model whose weights are cached is complete.

    Raises:
        HubError: the file is missing, or several could be meant.
    """
    names = [name for name in names if _is_name(name)]
    if model.kind == "text-encoder":
        return _encoder_files(model, names)
    candidates = weights_in(names)
    if model.kind.endswith("-tokenizer") and TOKENIZER in names:
        candidates = [TOKENIZER]
    if model.file is not None:
        if model.file not in names:
            has = (
                f"It has {_some(candidates)}." if candidates else f"It has no weights file. See {model.page}"
            )
            raise HubError(f"{model.repo} has no file {model.file}.", has)
        candidates = [model.file]
    shards = [int(shard[2]) for name in candidates if (shard := SHARD.search(name))]
    if candidates and len(shards) == len(candidates) and max(shards) > 1:
        raise HubError(f"{model.repo} has a model in {max(shards)} shards.", SHARD_HINT)
    if len(candidates) != 1:
        if not candidates:
            raise HubError(
                f"{model.repo} has no weights file (.safetensors, .pt, .pth).", f"See {model.page}"
            )
        raise HubError(
            f"{model.repo} has several weights files: {_some(candidates)}.",
            f"Name one: `model={model.repo}/{min(candidates, key=lambda name: bool(SHARD.search(name)))}`",
        )
    weights = PurePosixPath(candidates[0])
    companions = [CONFIG] + ([TOKENIZER] if weights.name == MODEL else [])
    beside = [str(weights.with_name(name)) for name in companions]
    encoder = str(weights.with_name(TEXT_ENCODER)) + "/"
    beside += sorted(name for name in names if weights.name == MODEL and name.startswith(encoder))
    return [name for name in beside if name in names] + [str(weights)]


#: Files of a text encoder that ``transformers`` saves beside the weights.
ENCODER_FILES = (
    CONFIG,
    *("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json"),
)


def _encoder_files(model: Model, names: list[str]) -> list[str]:
    """Choose the files of a text encoder: its names, and all shards of safetensors, else all of pickles."""
    small = [name for name in ENCODER_FILES if name in names]
    # A folder of names comes whole or not at all: without it prompts are read as they are.
    of_names = [f"{NAMES}/{name}" for name in (MODEL, NAMES_LIST, NAMES_VECTORS)]
    if all(name in names for name in of_names):
        small += [name for file in ENCODER_FILES if (name := f"{NAMES}/{file}") in names] + of_names
    for stem, ending in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        if stem + ending in names:
            return [*small, stem + ending]
        parts = sorted(name for name in names if re.fullmatch(rf"{stem}-\d{{5}}-of-\d{{5}}{ending}", name))
        index = f"{stem}{ending}.index.json"
        if parts and index in names and len(parts) == int(parts[0].removesuffix(ending)[-5:]):
            return [*small, index, *parts]
    raise HubError(f"{model.name} has no whole weights of a text encoder.", f"See {model.page}")


def _fetched(model: Model, path: Path) -> Fetched:
    if model.kind == "text-encoder":
        return Fetched(model, path.parent, _commit(path))
    config = path.with_name(CONFIG)
    if path.name in (MODEL, TOKENIZER) and config.is_file() and read_config(config).kind:
        return Fetched(complete(model, path.parent), path.parent, _commit(path))
    return Fetched(complete(model, path), path, _commit(path))


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
