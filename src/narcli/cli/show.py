"""``narcli show``: the metadata of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..media.textfiles import expand
from . import options
from .console import Console


def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", parser=expand, help="A file that narcli wrote.")],
    as_json: options.Json = False,
) -> None:
    """Print what a file says about itself."""
    from ..media.metadata import lines
    from ..media.readers import read_metadata

    about, console = read_metadata(file), Console()
    if as_json:
        console.json(about)
        return
    for line in lines(about):
        console.result(line)
