"""Sweeps: several values of one or two sampling settings. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

from ..errors import UsageError, nearest
from . import SamplingSettings

MAX_SWEPT = 256  # pictures on the sheet of a sweep; a file holds the hashes of as many
#: Settings that a sweep may vary, and the type of their values.
SWEPT: Mapping[str, type] = {
    "cfg_scale": float,
    "cfg_interval": int,
    "temperature": float,
    "top_k": int,
    "top_p": float,
}
Sweep = Mapping[str, tuple[float, ...]]


def parse_sweep(given: str | Sequence[str] | Mapping[str, Any] | None) -> dict[str, tuple[float, ...]]:
    """Read the settings that a sweep varies.

    Args:
        given: values by the name of their setting, or texts such as ``temperature=0.3,0.6``. Names take ``-``
            and ``_`` alike.

    Returns:
        The values of one or two settings, equal ones once; empty without a sweep. The first setting varies
        from row to row of the sheet.

    Raises:
        UsageError: a setting that cannot be swept, a value out of range, or too many of either.
    """
    texts = [given] if isinstance(given, str) else given or {}
    pairs = list(texts.items()) if isinstance(texts, Mapping) else [_pair(text) for text in texts]
    sweep: dict[str, tuple[float, ...]] = {}
    for typed, values in pairs:
        name = str(typed).strip().replace("-", "_")
        if name not in SWEPT:
            close = nearest(name, SWEPT)[:1]
            raise UsageError(
                f"`sweep` names {str(typed)[:40]!r}, expected one of {', '.join(SWEPT)}.",
                f"Did you mean {close[0]}?" if close else "Other settings have one value in a run.",
            )
        if name in sweep:
            raise UsageError(f"`sweep` names {name} twice.", "Give all its values at once, with commas.")
        sweep[name] = tuple(dict.fromkeys(_swept(name, value) for value in _several(values)))
        if not sweep[name]:
            raise UsageError(f"`sweep` has no value of {name}.", f"Give some, such as {name}=0.5,1.")
    if len(sweep) > 2:
        raise UsageError(
            f"`sweep` names {len(sweep)} settings, expected one or two.", "A sheet has rows and columns."
        )
    check_sweep(sweep, 1)
    return sweep


def check_sweep(sweep: Sweep, samples: int) -> None:
    """Limit the pictures of a sweep.

    Args:
        sweep: from ``parse_sweep``; an empty one is not limited.
        samples: samples drawn with each of its settings.

    Raises:
        UsageError: more than ``MAX_SWEPT`` pictures.
    """
    if sweep and (pictures := samples * prod(map(len, sweep.values()))) > MAX_SWEPT:
        values = " x ".join(f"{len(values)} of {name}" for name, values in sweep.items())
        each = "1 sample" if samples == 1 else f"{samples:,} samples"
        raise UsageError(
            f"`sweep` makes {pictures:,} pictures ({values}, {each} of each), expected at most {MAX_SWEPT}.",
            "Give fewer values, or fewer samples.",
        )


def points_of(sweep: Sweep) -> list[dict[str, Any]]:
    """Return the settings of each point of a sweep, row by row; one point without any for no sweep."""
    return [dict(zip(sweep, values, strict=True)) for values in product(*sweep.values())]


def words_of(point: Mapping[str, float]) -> str:
    """Return settings in words: ``temperature 0.3, top p 0.9``."""
    return ", ".join(
        f"{name.replace('_', ' ')} {int(value) if value == int(value) else value!r}"
        for name, value in point.items()
    )


def _pair(text: object) -> tuple[str, str]:
    """Split ``temperature=0.3,0.6`` into name and values."""
    name, equals, values = str(text).partition("=")
    if not equals:
        raise UsageError(
            f"`sweep` is {str(text)[:40]!r}, expected a setting and its values, "
            "such as temperature=0.3,0.6,0.9.",
        )
    return name, values


def _several(values: Any) -> Iterable[Any]:
    """Take values in a text, one value, or several, as several."""
    if isinstance(values, str):
        return values.split(",")
    return values if isinstance(values, Iterable) else (values,)


def _swept(name: str, value: Any) -> float:
    """Check one value of a sweep."""
    kind = SWEPT[name]
    try:
        number: float = kind(value)
        if isinstance(value, bool) or (not isinstance(value, str) and number != value):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        expected = "a whole number" if kind is int else "a number"
        raise UsageError(f"`sweep` gives {name} {str(value)[:40]!r}, expected {expected}.") from None
    try:
        SamplingSettings(**dict[str, Any]({name: number}))
    except UsageError as error:
        raise UsageError(f"In `sweep`, {error.message}", error.hint) from None
    return number
