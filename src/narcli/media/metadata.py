"""Metadata of narcli's files, checked against the table of ``schema``. No torch, no numpy."""

from __future__ import annotations

import struct
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..rules import check
from ..settings import GivenFrames
from .schema import FIELDS, MAX_TOKENS

MAX_METADATA = 100_000  # bytes of JSON; also what fits one argument of a command line
DESCRIPTION = 0x010E  # EXIF's ImageDescription, which holds the settings in WebP
MAX_DEPTH = 16  # of objects and lists inside one another


def ordered(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata in the order of the table; unknown fields come last."""
    known = {name: metadata[name] for name in FIELDS if name in metadata}
    return known | {name: value for name, value in metadata.items() if name not in FIELDS}


def check_fields(path: Path, metadata: Mapping[str, Any]) -> None:
    """Check all fields of a file.

    Raises:
        CheckpointError: a field with an unexpected value, or nested too deep.
    """
    level: list[Any] = [metadata]
    for _ in range(MAX_DEPTH):
        parts = (part.values() if isinstance(part, dict) else part for part in level)
        level = [inner for part in parts for inner in part if isinstance(inner, dict | list)]
    if level:
        raise CheckpointError(f"{path}: its fields are nested too deep.", "Get the original file.")
    rules = {name: field.rule for name, field in FIELDS.items()}
    check(path, "", rules, metadata)
    for run in runs_of(metadata):
        check(path, "", rules, run)


def runs_of(metadata: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the runs of metadata: several in a document of ``rerun`` or ``decode``, else one."""
    runs: list[Mapping[str, Any]] = metadata.get("runs", [metadata])
    return runs


# --- tokens --------------------------------------------------------------------------------------


def pack_tokens(tokens: Sequence[int]) -> str:
    """Encode tokens in base64: 2 bytes each if that is enough, else 4."""
    letter = "H" if max(tokens) < 2**16 else "I"
    return b64encode(struct.pack(f"<{len(tokens)}{letter}", *tokens)).decode()


def unpack_tokens(
    path: object, sample: Mapping[str, Any], cells: int | None = None
) -> tuple[int, ...] | None:
    """Return the tokens in the metadata of a sample, raster order; None if there are none.

    Args:
        path: the file, for messages.
        sample: its metadata.
        cells: number of tokens; None leaves it to their hash.

    Raises:
        CheckpointError: tokens that differ from the hash beside them.
    """
    if "tokens" not in sample:
        return None
    try:
        data = b64decode(sample["tokens"], validate=True)
    except ValueError:
        data = b""
    for letter, size in (("H", 2), ("I", 4)):
        count = len(data) // size if cells is None else cells
        with suppress(struct.error):
            tokens = struct.unpack(f"<{count}{letter}", data)
            if tokens and hash_of(tokens) == sample.get("tokens_sha256"):
                return tokens
    raise CheckpointError(f"{path}: its tokens are not those of its hash.", "Get the original file.")


def hash_of(tokens: Sequence[int]) -> str:
    """SHA-256 of tokens, as ``decoding.hash_tokens``."""
    return sha256(struct.pack(f"<{len(tokens)}i", *tokens)).hexdigest()


def about_given(frames: GivenFrames) -> dict[str, Any]:
    """Return given frames, once encoded, as metadata."""
    about = {"source": frames.name, "count": frames.count, "tokens_sha256": hash_of(frames.codes)}
    return about | ({"tokens": pack_tokens(frames.codes)} if len(frames.codes) <= MAX_TOKENS else {})


def given_of(about: Mapping[str, Any], where: object) -> GivenFrames:
    """Return the given frames of metadata; without codes where the file has their hash only.

    Raises:
        CheckpointError: codes that differ from the hash beside them.
    """
    return GivenFrames(about["source"], about["count"], codes=unpack_tokens(where, about) or ())


# --- for people ----------------------------------------------------------------------------------


def lines(metadata: Mapping[str, Any]) -> list[str]:
    """Return the metadata for people, a field a line; control characters of strings are kept."""
    shown = []
    for name, value in ordered(metadata).items():
        if name == "tokens":
            shown.append("tokens: in base64, not shown here")
        elif name in ("given_frames", "frames_from", "init"):
            each = value if isinstance(value, list) else [value]
            shown.append(f"{name}: {_words([_brief(given) for given in each])}")
        elif name == "runs":
            shown += [f"run {n}: {line}" for n, run in enumerate(value, 1) for line in lines(run)]
        elif name == "samples":
            shown.append(f"samples: {len(value)}")
            shown += [f"  {_words(each.get('file', 'sample'))}: {_words(_brief(each))}" for each in value]
        else:
            shown.append(f"{_words(name)}: {_words(value)}")
    return shown


def _brief(sample: Mapping[str, Any]) -> dict[str, Any]:
    brief = {key: value for key, value in sample.items() if key not in ("file", "tokens", "cleaned_prompt")}
    return brief | ({"given_frames": _brief(sample["given_frames"])} if "given_frames" in sample else {})


def _words(value: Any) -> str:
    match value:
        case dict():
            return ", ".join(f"{_words(key)} {_words(part)}" for key, part in value.items())
        case list():
            return ", ".join(map(_words, value))
        case str():
            return " ".join(value.split())
        case float():
            return f"{value:g}"
        case _:
            return str(value)
