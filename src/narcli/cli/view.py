"""``narcli view``: a page to step through files, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..allocator import keep_memory
from ..errors import UsageError
from ..media.metadata import runs_of
from ..media.schema import SCHEMA
from ..media.textfiles import expand
from . import rows
from .console import bytes_text
from .report import Session

#: Options of ``image`` and ``video`` that say how files are run again.
_AGAIN = {
    "model", "tokenizer", "text_encoder", "revision", "device", "text_device", "dtype", "output", "record",
    "overwrite", "as_json", "quiet", "offline", "yes",
}  # fmt: skip
_FILES = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE...", parser=expand, help="Pictures, clips, tokens, records, or pictures of orders."
    ),
]


@rows.takes([row for row in rows.ROWS if row.name in _AGAIN], ("files", _FILES, ...), optional=True)
def view(files: list[Path], **chosen: Any) -> None:
    """Write one HTML page to step through files that narcli wrote, side by side.

    The page shows the order, the picture as far as decoded, and how sure the model was of each cell. A file
    without a record beside it is run again, which takes its model.
    """
    from ..media.names import resolve_outputs
    from ..media.readers import read_metadata
    from ..media.writers import encode_metadata

    session = Session.of(chosen)
    console = session.console
    path = resolve_outputs(
        chosen["output"], [{}], default=f"{files[0].stem.replace('{', '_').replace('}', '_')}_view",
        suffixes=(".html",), overwrite=chosen["overwrite"],
    ).paths[0]  # fmt: skip
    trust = rows.trust_of(chosen, console)
    abouts = [(file, about) for file in files for about in runs_of(read_metadata(file))]
    keep_memory()
    from .. import __version__
    from ..media.atomic import write_atomic
    from ..runs.view import Viewed
    from ..viz.viewer import MAX_RUNS, page

    extent: Any = chosen["record"].value if chosen["record"] is not None else "cells"
    viewed, runs = Viewed(trust, session.host, extent), []
    with console.progress("reading", len(abouts)) as advance:
        for file, about in abouts:
            runs += viewed.read(file, about)
            if len(runs) > MAX_RUNS:
                raise UsageError(
                    f"The files are of more than {MAX_RUNS} samples, the most that a page shows.",
                    "Name fewer.",
                )
            advance()
    about = {"command": "view", "narcli": __version__}
    made = write_atomic(path, page(runs, encode_metadata(about)).encode(), overwrite=chosen["overwrite"])
    session.files.append(made)
    if session.as_json:
        told = [{"title": run.title, "order": run.order.name, "steps": len(run.order.steps)} for run in runs]
        console.json({"schema": SCHEMA, "command": "view", "files": [str(made)], "shown": told})
        return
    console.note(f"{len(runs)} side by side, {bytes_text(made.stat().st_size)}")
    console.result(made)
