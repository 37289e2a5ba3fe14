"""``narcli video``: clips of classes or from given frames, with metadata and frontier."""

from __future__ import annotations

from typing import Any

from ..runs.recipe import Recipe
from . import options
from .report import Session


@options.takes(options.of("video"))
def video(**chosen: Any) -> None:
    """Make video clips of classes, or go on from the first frames of clips.

    An animation of their decoding order is written beside them.
    """
    Session.of(chosen).run(Recipe(kind="video", **options.fields_of(chosen)))
