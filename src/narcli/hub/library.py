"""Models on this machine: what there is, what it needs, and whether it is whole."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.config import CONFIG
from ..errors import CheckpointError, NarError
from ..media.textfiles import read_json
from . import catalog as registry

if TYPE_CHECKING:
    from .selection import Fetched


def _companions(model: registry.Model) -> list[registry.Model]:
    """The tokenizer and the text encoder that a model does not bring itself."""
    return [registry.MODELS[name] for name in (model.tokenizer, model.text_encoder) if name]


def _on_disk() -> tuple[list[tuple[registry.Model, str | None]], list[str], list[str]]:
    """Models on disk, each with its revisions; what narcli does not read; what lacks its weights."""
    from . import cache, selection

    chosen: list[tuple[registry.Model, str | None]] = []
    chosen += [(row, None) for row in registry.MODELS.values() if row.path]
    others, incomplete = list[str](), list[str]()
    for repo in cache.repositories():
        rows = [row for row in registry.MODELS.values() if row.repo == repo]
        there = {
            each: [row for row in rows if selection.chosen(row, each)] if rows else _read_as(repo, each)
            for each in cache.revisions(repo)
        }
        chosen += [(model, each) for each, found in there.items() for model in found]
        left = [f"{repo} at {each}" for each, found in there.items() if not found]
        (incomplete if rows else others).extend(left if any(there.values()) else [repo])
    return chosen, others, incomplete


def _read_as(repo: str, revision: str) -> list[registry.Model]:
    """What narcli takes a revision in the cache for, of a repository that it does not know; [] if nothing."""
    from . import cache, selection
    from .check import check_model

    models = [registry.Model(repo, kind, repo) for kind in ("image", "image-tokenizer", "text-encoder")]
    for model in models:
        with suppress(NarError):
            if (found := selection.cached(model, revision)) is None:
                continue
            if (
                found.path.is_file() or model.kind == "text-encoder"
            ):  # a folder of narcli says itself what it is
                check_model(found.model, found.path)
            return [model]
    whole = set[Path]()
    for model in models:  # damage may hide what a file is
        for path in selection.chosen(model, revision):
            if path in whole:
                continue
            if cache.is_damaged(path):
                return [model]
            if path.name == CONFIG and _is_foreign(path):
                return []
            whole.add(path)
    return []


def _is_foreign(config: Path) -> bool:
    """Whether a config.json is of another network of ``transformers``, whose weights narcli never reads."""
    with suppress(CheckpointError):
        return read_json(config).get("model_type") not in (None, "t5")
    return False


def _list_files(found: Fetched) -> list[dict[str, Any]]:
    from .selection import files_of

    return [{"path": str(path), "bytes": path.stat().st_size} for path in files_of(found)]


def _check_files(found: Fetched) -> list[dict[str, Any]]:
    """The files of a model with their hashes, and whether these are those of the download."""
    from .cache import hash_file, stored_hash

    files = _list_files(found)
    for file in files:
        expected = stored_hash(Path(file["path"]))
        # What was hashed just now, when it was fetched, is not read again.
        hashed = expected if found.compared else None
        hashed = hashed or hash_file(Path(file["path"]), expected or "0" * 64)
        file |= {"hash": hashed, "expected": expected, "ok": expected in (None, hashed)}
    return files


def _held(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())
