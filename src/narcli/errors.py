"""Errors that narcli reports to a person: one sentence, a next step, and an exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class NarError(Exception):
    """Base of errors that a person can act on.

    Args:
        message: what happened, naming the offending value and what was expected. An argument is in
            backquotes; the command line spells it as its option.
        hint: what to do next, or None.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class UsageError(NarError):
    """An option or argument that cannot be used: exit code 2."""

    exit_code = 2


class DeclinedError(NarError):
    """A person declined; the message tells the consequence. Exit code 1, reported as no error."""


class HubError(NarError):
    """The network or the Hugging Face Hub failed: exit code 3."""

    exit_code = 3


class CheckpointError(NarError):
    """A checkpoint or other input file that cannot be used: exit code 4."""

    exit_code = 4


class MemoryLimitError(NarError):
    """Not enough memory for the run: exit code 5."""

    exit_code = 5


#: Parts of messages: of torch's allocators for cuda, mps and CPU, of oneDNN, of the system and its loader
#: of libraries.
_SHORTAGE = (
    *("out of memory", "allocate memory", "not enough memory", "bad_alloc", "create a memory"),
    *("failed to map segment", "alloc_failed", "allocation_failed"),  # the last two of cuBLAS and cuDNN
)


def is_shortage(error: BaseException) -> bool:
    """Tell whether an error of Python or torch means a shortage of memory."""
    message = str(error).lower() if isinstance(error, RuntimeError | ImportError | OSError) else ""
    return isinstance(error, MemoryError) or any(words in message for words in _SHORTAGE)


def first_line(error: BaseException) -> str:
    """First line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def nearest(text: str, names: Iterable[str], n: int = 3) -> list[str]:
    """At most ``n`` similar names: those at most two typing errors away, then others."""
    from difflib import get_close_matches

    typed, by_key = text[:60].casefold().strip(), {name.casefold(): name for name in names}
    slips = {key: _slips(typed, key) for key in by_key if abs(len(key) - len(typed)) <= 2}
    few = [key for key in slips if slips[key] <= max(1, len(typed) // 4)]
    close = [*sorted(few, key=lambda key: slips[key]), *get_close_matches(typed, by_key, n, cutoff=0.6)]
    return [by_key[key] for key in dict.fromkeys(close)][:n]


def _slips(a: str, b: str) -> int:
    """Count typing errors from ``a`` to ``b``: letters lost, added, changed or swapped."""
    rows = [list(range(len(b) + 1))]
    for i, left in enumerate(a, 1):
        row = [i]
        for j, right in enumerate(b, 1):
            row.append(min(row[-1] + 1, rows[-1][j] + 1, rows[-1][j - 1] + (left != right)))
            if i > 1 and j > 1 and left == b[j - 2] and right == a[i - 2]:
                row[-1] = min(row[-1], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]
