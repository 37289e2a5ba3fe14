"""``narcli image``: pictures of classes or prompts, with metadata and frontier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UsageError
from ..prompts import Prompt, collect
from ..runs.recipe import Recipe
from . import rows
from .console import Console
from .report import Session


@rows.takes(rows.of("image"))
def image(**chosen: Any) -> None:
    """Make pictures of classes or prompts.

    An animation of their decoding order is written beside them.
    """
    session = Session.of(chosen)
    prompts = prompts_of(chosen, session.console)
    session.run(Recipe(kind="image", prompts=prompts, **rows.fields_of(chosen)))


def prompts_of(chosen: Mapping[str, Any], console: Console) -> Sequence[Prompt]:
    """Return the prompts of ``--prompt`` and ``--prompt-file``.

    Raises:
        UsageError: an unusable prompt, or classes given too.
        CheckpointError: a file that cannot be read.
    """
    typed, file = chosen.get("prompt"), chosen.get("prompt_file")
    if not typed and file is None:
        return ()
    if chosen.get("classes"):
        raise UsageError("`classes` and `prompts` exclude each other.", "Each is for models of its kind.")
    return collect(typed or (), file, console.warn)
