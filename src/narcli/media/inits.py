"""Given pictures and clips in metadata: their names and hashes, and the tokens that are kept. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import CheckpointError
from ..rules import MAX_CELLS
from ..settings.keep import Init
from .metadata import hash_of, pack_tokens, unpack_tokens
from .schema import MAX_TOKENS


def about_init(init: Init) -> dict[str, Any]:
    """Return a given picture or clip, once encoded, as metadata."""
    about: dict[str, Any] = {"source": init.name}
    about |= {"sha256": init.sha256} if init.sha256 else {}
    about |= {
        "grid": list(init.grid),
        "cells": write_cells(init.cells),
        "tokens_sha256": hash_of(init.tokens),
    }
    return about | ({"tokens": pack_tokens(init.tokens)} if len(init.tokens) <= MAX_TOKENS else {})


def init_of(about: Mapping[str, Any], where: object) -> Init:
    """Return the given picture or clip of metadata; without tokens where the file has their hash only.

    Raises:
        CheckpointError: tokens that differ from the hash beside them, or cells that are not ascending.
    """
    cells = read_cells(about["cells"], where)
    tokens = unpack_tokens(where, about, len(cells)) or ()
    return Init(about["source"], about.get("sha256", ""), (), tuple(about["grid"]), cells, tokens)


def write_cells(cells: Iterable[int]) -> str:
    """Write ascending flat indices as ranges: ``0-3,16``."""
    ranges: list[list[int]] = []
    for cell in cells:
        if ranges and cell == ranges[-1][1] + 1:
            ranges[-1][1] = cell
        else:
            ranges.append([cell, cell])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in ranges)


def read_cells(text: str, where: object) -> tuple[int, ...]:
    """Read the ranges of ``write_cells``.

    Raises:
        CheckpointError: they are not ascending, or beyond ``MAX_CELLS``.
    """
    cells: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if not (cells[-1] if cells else -1) < low <= high < MAX_CELLS:
            raise CheckpointError(f"{where}: init.cells is not ascending.", "Get the original file.")
        cells += range(low, high + 1)
    return tuple(cells)
