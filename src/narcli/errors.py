"""Errors that narcli reports to a person: one sentence, a next step, and an exit code."""

from __future__ import annotations


class NarError(Exception):
    """Something went wrong that a person can act on.

    Args:
        message: what happened, naming the offending value and what was expected.
        hint: what to do next, or None.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(NarError):
    """An option or argument that cannot be used: exit code 2."""

    exit_code = 2


class HubError(NarError):
    """The network or the Hugging Face Hub failed: exit code 3."""

    exit_code = 3


class CheckpointError(NarError):
    """A checkpoint or other input file that cannot be used: exit code 4."""

    exit_code = 4


class MemoryLimitError(NarError):
    """Not enough memory for the run: exit code 5."""

    exit_code = 5


#: In messages: of the allocators of torch for cuda and mps, for the CPU, and of oneDNN; of the system, and of
#: its loader of libraries.
_SHORTAGE = (
    *("out of memory", "allocate memory", "not enough memory", "bad_alloc", "create a memory"),
    "failed to map segment",
)


def is_shortage(error: BaseException) -> bool:
    """Whether an error of Python or torch means that there was not enough memory."""
    said = str(error).lower() if isinstance(error, RuntimeError | ImportError | OSError) else ""
    return isinstance(error, MemoryError) or any(words in said for words in _SHORTAGE)


def first_line(error: BaseException) -> str:
    """The first line of an error, for a message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
