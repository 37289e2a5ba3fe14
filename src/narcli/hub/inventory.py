"""Models in the cache of the Hub, among repositories that narcli does not read. No torch at import."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoints.config import CONFIG
from ..errors import CheckpointError, HubError, NarError, UsageError
from ..media.textfiles import read_json
from . import cache, selection
from .catalog import MODELS, Model
from .resolve import companions, resolve


@dataclass(frozen=True)
class Inventory:
    """Models to verify.

    Args:
        models: each with its revision; None is ``main``.
        others: repositories in the cache, or their revisions, that narcli does not read.
        incomplete: repositories of known models, or their revisions, that lack the weights.
    """

    models: Sequence[tuple[Model, str | None]]
    others: Sequence[str] = ()
    incomplete: Sequence[str] = ()


def inventory(name: str | None = None, revision: str | None = None) -> Inventory:
    """Find a model with its parts or, without a name, all models on this machine in every revision.

    The kind of a repository that is not in the catalog is what its files can be read as.

    Raises:
        UsageError: nothing of that name, or a revision without a name.
        HubError: the model is not on this machine.
    """
    if name is None:
        if revision is not None:
            raise UsageError("`revision` goes with the name of a model.", "Name one.")
        return _scan()
    model = resolve(name, None)
    if model.repo and model.name not in MODELS:
        if found := _read_as(model, revision or "main"):
            model = found[0]
        elif cache.weights_of(model, revision or "main"):  # here, and nothing that narcli reads
            return Inventory([], [f"{name} at {revision}" if revision else name])
    with suppress(CheckpointError):  # a damaged model is there, for ``verify`` to tell
        if selection.cached(model, revision) is None:
            raise HubError(f"{model.name} is not on this machine.", f"Fetch it: narcli models pull {name}")
    return Inventory([(model, revision), *((part, None) for part in companions(model))])


def _scan() -> Inventory:
    """Find the built-in models, and those in the cache of the Hub."""
    models: list[tuple[Model, str | None]] = [(row, None) for row in MODELS.values() if row.path]
    others, incomplete = list[str](), list[str]()
    for repo in cache.repositories():
        rows = [row for row in MODELS.values() if row.repo == repo]
        by_revision = {
            each: [row for row in rows if selection.chosen(row, each)]
            if rows
            else _read_as(Model(repo, "image", repo), each)
            for each in cache.revisions(repo)
        }
        models += [(model, each) for each, found in by_revision.items() for model in found]
        left = [f"{repo} at {each}" for each, found in by_revision.items() if not found]
        (incomplete if rows else others).extend(left if any(by_revision.values()) else [repo])
    return Inventory(models, others, incomplete)


def _read_as(model: Model, revision: str) -> list[Model]:
    """Find the kind that a revision of an unknown repository, or a file in it, can be read as; [] if none."""
    from .check import check_model

    models = [replace(model, kind=kind) for kind in ("image", "image-tokenizer", "text-encoder")]
    for model in models:
        with suppress(NarError):
            if (found := selection.cached(model, revision)) is None:
                continue
            # A folder of narcli states its own kind.
            if found.path.is_file() or model.kind == "text-encoder":
                check_model(found.model, found.path)
            return [model]
    whole = set[Path]()
    for model in models:  # damage may hide the kind of a file
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
    """Tell a config.json of another network of ``transformers``, whose weights narcli never reads."""
    with suppress(CheckpointError):
        return read_json(config).get("model_type") not in (None, "t5")
    return False
