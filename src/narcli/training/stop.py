"""Ending a training by a signal, and its lines on a stderr that may be closed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..endings import ASKED, endings


def say(line: str) -> bool:
    """Print on stderr; return false if it is closed."""
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def deferred(quiet: bool) -> Iterator[list[signal.Signals]]:
    """Context in which the first ending signal only joins the yielded list; a second one acts as usual.

    These signals are Ctrl-C, SIGTERM and SIGHUP if Python handles them, and others with a handler.
    """
    handlers = {number: handler for number in endings() if callable(handler := signal.getsignal(number))}
    always = [getattr(signal, name, None) for name in ASKED]
    shared = [handlers[number] for number in always if number in handlers]
    before = {number: handler for number, handler in handlers.items() if handler in shared}
    stop: list[signal.Signals] = []

    def note(number: int, frame: object) -> None:
        stop.append(signal.Signals(number))
        restore()
        if not quiet:
            with suppress(OSError):
                os.write(2, b"\nStopping after this step; once more stops at once.\n")

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    if threading.current_thread() is not threading.main_thread():
        before = {}  # only the main thread may set handlers
    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        restore()
