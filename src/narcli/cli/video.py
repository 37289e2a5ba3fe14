"""``narcli video``: clips of classes or from given frames, with metadata and frontier."""

from __future__ import annotations

from typing import Any

from ..runs.recipe import Recipe
from . import rows
from .report import Session


@rows.takes(rows.of("video"))
def video(**chosen: Any) -> None:
    """Make video clips of classes, or go on from the first frames of clips.

    An animation of their decoding order is written beside them.
    """
    Session.of(chosen).run(Recipe(kind="video", **rows.fields_of(chosen)))
