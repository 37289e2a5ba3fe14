"""The families of files that narcli knows, in the order in which a file is compared with them. No torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from . import larp, transformer, var, vq
from .format import PARTS, Fields, Format

T5 = Format(
    "a T5 text encoder",
    lambda names: "shared.weight" in names or "encoder.block.0.layer.0.SelfAttention.q.weight" in names,
)
FORMATS: tuple[Format, ...] = (
    transformer.NARCLI,
    transformer.IMAGE,
    transformer.VIDEO_FRAMES,
    transformer.VIDEO,
    transformer.PAR,
    transformer.RASTER_VIDEO,
    transformer.LLAMAGEN,
    var.TRANSFORMER,
    var.TOKENIZER,
    vq.FORMAT,
    larp.FORMAT,
    T5,
)


def identify(names: Collection[str]) -> Format:
    """Return the family of a file with tensors of these names.

    For an unknown one it is a format that only describes the file in words.
    """
    for format in FORMATS:
        if format.recognise(names):
            return format
    some = ", ".join(sorted(names)[:3])
    words = f"a model of another family (its tensors begin with {some})" if some else "empty"
    return Format(words, lambda names: True)


def released_defaults(start: bytes, kind: str) -> Mapping[str, float]:
    """Return the settings of the released scripts for a transformer's file.

    Args:
        start: beginning of the file, which names its tensors.
        kind: ``image``, ``text`` or ``video``.
    """
    clued = (format for format in FORMATS if format.clue and format.clue.encode() in start)
    return next(clued, transformer.NARCLI).defaults.get(kind, {})


def readers(fields: Fields, *parts: str) -> list[Format]:
    """Return the formats that read a ``config.json`` with these fields, or one of its sections.

    They are those that the fields mark; where no format is marked, those that have no marks.
    """
    read = [format for format in FORMATS if format.part in (parts or PARTS)]
    marked = [format for format in read if any(mark in fields for mark in format.marks)]
    return marked or [format for format in read if not format.marks]


def sizes_of(part: str, fields: Fields) -> Any:
    """Return the sizes that a section of a ``config.json`` states in full."""
    return readers(fields, part)[0].classes()[0](**fields)


def network_of(sizes: object) -> type[Any]:
    """Return the class of the networks of these sizes."""
    classes = (format.classes() for format in FORMATS if format.part)
    return next(network for config, network in classes if isinstance(sizes, config))
