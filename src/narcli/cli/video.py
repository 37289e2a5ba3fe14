"""``narcli video``: clips of classes, each with its settings inside, and the frontier that drew them."""

from __future__ import annotations

from typing import Any

from ..runs.recipe import Recipe
from . import options
from .report import Session


@options.takes(options.of("video"))
def video(**chosen: Any) -> None:
    """Make video clips of a class.

    Beside the clips it writes an animation of the order in which they were decoded.
    """
    Session.of(chosen).run(Recipe(kind="video", **options.fields_of(chosen)))
