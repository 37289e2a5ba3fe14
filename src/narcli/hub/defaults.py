"""The default model of each kind: chosen, checked and kept."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

from ..media.textfiles import expand

if TYPE_CHECKING:
    from ..checkpoints.formats.transformer import Kind
from .catalog import MODELS
from .resolve import _chosen, _settings_file, check_kind, resolve


def set_default(kind: str, name: str | None) -> None:
    """Remember a default model, or forget it (None).

    Raises:
        UsageError: not a kind, or nothing of that name.
        CheckpointError: a file or folder that is no model of that kind, or a damaged one.
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
        chosen[kind] = str(expand(name).resolve()) if local else model.name
    write_atomic(_settings_file(), (json.dumps(chosen, indent=1) + "\n").encode(), overwrite=True)
