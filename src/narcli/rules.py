"""Rules for values in foreign files: the expected values in words, and a check. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import CheckpointError

MAX_CELLS = 2**16  # of a grid of tokens


Rule = tuple[str, Callable[[Any], bool]]


def whole(low: int, high: int) -> Rule:
    """Rule for a whole number in a range, not true or false."""
    return f"a whole number from {low} to {high}", lambda v: type(v) is int and low <= v <= high


def number(low: float, high: float) -> Rule:
    """Rule for a finite number in a range."""
    return (
        f"a number from {low:g} to {high:g}",
        lambda v: type(v) in (int, float) and math.isfinite(v) and low <= v <= high,
    )


def one_of(*choices: str) -> Rule:
    """Rule for one of a few words."""
    return " or ".join(map(repr, choices)), lambda v: isinstance(v, str) and v in choices


def sizes_of(most: int, high: int, product: int) -> Rule:
    """Rule for a list of axis lengths with a bounded product."""
    return (
        f"a list of 1 to {most} whole numbers from 1 to {high}, with a product of at most {product}",
        lambda v: (
            isinstance(v, list | tuple)
            and 1 <= len(v) <= most
            and all(type(n) is int and 1 <= n <= high for n in v)
            and math.prod(v) <= product
        ),
    )


def check(path: Path | str, prefix: str, rules: Mapping[str, Rule], values: Mapping[str, Any]) -> None:
    """Check present values against the rules.

    Raises:
        CheckpointError: names the first invalid value and the expected one.
    """
    for key, (expected, holds) in rules.items():
        if key in values and not holds(values[key]):
            raise CheckpointError(f"{path}: {prefix}{key} is {show(values[key])}, expected {expected}.")


def show(value: Any) -> str:
    """Return a value as JSON for a message, shortened."""
    try:
        text = json.dumps(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
