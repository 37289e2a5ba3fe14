"""Removal of models from the cache of the Hub, with what only they use. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..errors import UsageError
from . import cache, selection
from .catalog import MODELS, Model
from .resolve import companions, resolve


@dataclass(frozen=True)
class Removal:
    """Repositories to remove from the cache.

    Args:
        models: one of each repository, with the bytes that the cache holds of it.
        kept: names of companions that stay, each with the models or files that need it.
    """

    models: Sequence[tuple[Model, int]]
    kept: Mapping[str, Sequence[str]]


def plan_removal(names: Sequence[str]) -> Removal:
    """Choose the repositories to remove: those of the models, and of companions that only they use.

    Args:
        names: as for ``resolve``. A repository goes as a whole, in all its revisions.

    Raises:
        UsageError: nothing of a name, not a download, or a model or file that stays needs the repository.
    """
    models = [resolve(name, None) for name in names]
    for model in models:
        if model.repo is None:
            raise UsageError(
                f"{model.name} is {'built in' if model.name in MODELS else 'a file of yours'}; "
                "only downloads are removed.",
                "`narcli models list` shows what was downloaded.",
            )
        if not cache.is_cached(model):
            raise UsageError(f"{model.name} is not on this machine.", "`narcli models list` shows what is.")
    parts = [part for model in models for part in companions(model)]
    going = {model.repo: model for model in models}
    staying = [row for row in MODELS.values() if row.repo not in going and _is_here(row)]
    whole = {model.repo for model, name in zip(models, names, strict=True) if name == model.repo}

    def needed_by(model: Model) -> list[str]:
        """List models that stay and run with the model, else other weights in its repository."""
        users = [row.name for row in staying if model.repo in [part.repo for part in companions(row)]]
        files = {part.file for part in (*models, *parts) if part.repo == model.repo}
        others = set() if None in files or model.repo in whole else cache.weights_of(model) - files
        return users or [f"{model.repo}/{file}" for file in sorted(others)]

    for model in models:
        if users := needed_by(model):
            raise UsageError(
                f"{model.repo} goes as a whole, and {', '.join(users)} on this machine "
                f"{'needs' if len(users) == 1 else 'need'} it.",
                f"Remove {'that' if len(users) == 1 else 'those'} first, or too.",
            )
    kept = dict[str, Sequence[str]]()
    for part in parts:
        if part.repo in going or not cache.is_cached(part):
            continue
        if users := needed_by(part):
            kept[part.name] = users
        else:
            going[part.repo] = part
    return Removal([(model, cache.held(model)) for model in going.values()], kept)


def _is_here(model: Model) -> bool:
    """Tell if the cache holds the model's own file, of a repository that may hold others."""
    return cache.is_cached(model) and (model.file is None or bool(selection.chosen(model)))


def remove(removal: Removal) -> Iterator[tuple[Model, int]]:
    """Remove the repositories one after the other, and yield each with the bytes freed.

    Raises:
        NarError: one cannot be removed.
    """
    for model, _ in removal.models:
        yield model, cache.remove(model)
