"""``narcli decode``: pictures and clips from saved tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..allocator import keep_memory
from ..media.textfiles import expand
from . import rows
from .report import Session

#: Options of ``image`` and ``video`` that do not change the tokens.
_DECODING = {
    "tokenizer", "device", "dtype", "frames", "fps", "format", "quality", "scale", "frontier",
    "frontier_mode", "theme", "output", "no_metadata", "overwrite", "as_json", "quiet", "offline", "yes",
}  # fmt: skip
_TOKENS = Annotated[
    list[Path], typer.Argument(metavar="TOKENS...", parser=expand, help="Files that --save-tokens wrote.")
]


@rows.takes([row for row in rows.ROWS if row.name in _DECODING], ("tokens", _TOKENS, ...), optional=True)
def decode(tokens: list[Path], **chosen: Any) -> None:
    """Decode saved tokens to pictures or clips, without drawing them again.

    Only the tokenizer is needed. An animation of the decoding order is written beside each.
    """
    from ..media.readers import read_metadata

    session = Session.of(chosen)
    trust = rows.trust_of(chosen, session.console)
    keep_memory()
    abouts = [read_metadata(path) for path in tokens]
    from ..runs.decode import Decoders
    from ..runs.decode import decode as events_of

    decoders = Decoders()
    with session.collected():
        for path, about in zip(tokens, abouts, strict=True):
            reserved = tuple(session.files)
            events = events_of(path, about, trust, session.host, decoders=decoders, reserved=reserved)
            run = session.follow(events)
            sample, seconds = run.samples[0], run.seconds["total"]
            if session.as_json:
                session.tell(run)
            else:
                session.console.note(f"{sample.entry}, seed {sample.seed}: decoded in {seconds:.1f} s")
