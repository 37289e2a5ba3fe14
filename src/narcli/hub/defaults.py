"""Choice of the default model of each kind, checked and stored in the settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from ..checkpoints.folder import has_own_tokenizer
from ..errors import UsageError
from ..media.textfiles import expand
from .catalog import MODELS
from .resolve import _chosen, _settings_file, check_kind, meant, no_tokenizer, resolve

if TYPE_CHECKING:
    from ..models.blocks import Kind


def set_default(kind: str, name: str | None, tell: Callable[[str], None] = lambda note: None) -> None:
    """Store a default model, or remove it (None).

    Args:
        kind: ``image``, ``text`` or ``video``.
        name: as for ``resolve``.
        tell: called with a sentence if an unknown name is taken for a repository.

    Raises:
        UsageError: not a kind, nothing of that name, or a model without a known tokenizer.
        CheckpointError: a damaged file or folder, or one that is no model of that kind.
        NarError: the settings cannot be written.
    """
    from ..media.atomic import write_atomic

    check_kind(kind)
    chosen = _chosen()
    chosen.pop(kind, None)
    if name is not None:
        model = resolve(name, kind)
        local = model.path is not None and name.lower() not in MODELS
        if name.lower() not in MODELS:
            from .check import check_model  # only here: it imports torch
            from .selection import cached

            if (found := cached(model)) is not None:
                check_model(found.model, found.path, cast("Kind", kind))
                if found.model.tokenizer is None and not has_own_tokenizer(found.path):
                    raise UsageError(
                        no_tokenizer(found.model).message,
                        "A default brings one: `narcli models convert FILE --tokenizer FILE -o FOLDER`",
                    )
            elif model.name not in MODELS:
                tell(
                    f"No file or folder {name} here; taken for a repository of the Hub. {meant(name)}".strip()
                )
        chosen[kind] = str(expand(name).resolve()) if local else model.name
    write_atomic(_settings_file(), (json.dumps(chosen, indent=1) + "\n").encode(), overwrite=True)
