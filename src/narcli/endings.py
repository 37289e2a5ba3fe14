"""Signals that end a process. Imports nothing heavy, so that handlers are there before all else."""

from __future__ import annotations

import signal

#: Signals of a person and of the system, in order of precedence.
ASKED = ("SIGINT", "SIGTERM", "SIGHUP")
#: Signals left alone: they cannot be handled, do not end the process, or report a fault.
#: Python ignores ``SIGPIPE`` and ``SIGXFSZ``, which are errors of a write then.
LEFT_ALONE = (
    *("SIGKILL", "SIGSTOP", "SIGCONT", "SIGTSTP", "SIGTTIN", "SIGTTOU"),
    *("SIGCHLD", "SIGURG", "SIGWINCH", "SIGINFO"),
    *("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP", "SIGSYS", "SIGEMT"),
    *("SIGPIPE", "SIGXFSZ"),
)


def endings() -> list[int]:
    """Numbers of the signals that end a process unless it handles them."""
    left_alone = {getattr(signal, name, None) for name in LEFT_ALONE}
    return [number for number in signal.valid_signals() if number not in left_alone]
