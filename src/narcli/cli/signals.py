"""Signals that end narcli: the first one starts the cleanup, later ones do not disturb it.

It imports little, so that the handlers are installed early.
"""

from __future__ import annotations

import _thread
import atexit
import signal
import sys
import time
import weakref

from ..endings import endings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DELAY = 0.05  # seconds until a signal whose exception was lost is raised again


class Interruption(KeyboardInterrupt):
    """A signal, whose number is the argument."""


class _State:
    number: int | None = None  # of the first signal
    raised: weakref.ref[Interruption] | None = None
    ended = False
    main = 0  # identity of the main thread


def catch() -> None:
    """Raise ``Interruption`` in the main thread on each signal that would end the process.

    Ignored signals stay ignored, as under ``nohup`` or in the background of a script.
    """
    _State.number, _State.raised, _State.ended, _State.main = None, None, False, _thread.get_ident()
    handled = endings()
    try:
        handled = [number for number in handled if signal.getsignal(number) not in (signal.SIG_IGN, None)]
        for number in handled:
            signal.signal(number, _handle)
    except ValueError:  # not in the main thread
        return
    sys.unraisablehook = _unraisable
    atexit.register(_ignore, handled)


def received() -> int | None:
    """Number of the first signal before ``end``, also if its exception was lost; else None."""
    return _State.number


def end() -> None:
    """Ignore signals from now on, while the outcome is reported."""
    _State.ended = True


def ended() -> bool:
    """Tell whether ``end`` was called."""
    return _State.ended


def _handle(number: int, _: object) -> None:
    # An earlier signal's exception exists while its cleanup runs.
    if _State.ended or (_State.raised is not None and _State.raised() is not None):
        return
    if _State.number is None:
        _State.number = number
        _thread.start_new_thread(_insist, (number,))
    raise _interruption(number)  # a variable here would keep it alive, through its traceback


def _interruption(number: int) -> Interruption:
    error = Interruption(number)
    _State.raised = weakref.ref(error)
    return error


def _insist(number: int) -> None:
    """Raise a signal again if its exception was lost, as in destructors and some imports of C code."""
    while not _State.ended:
        time.sleep(DELAY)
        if not _State.ended and _State.raised is not None and _State.raised() is None:
            if hasattr(signal, "pthread_kill"):
                signal.pthread_kill(_State.main, number)
            else:
                signal.raise_signal(number)


def _unraisable(about: Any) -> None:
    """Hide interruptions in destructors and callbacks, which cannot raise."""
    if not isinstance(about.exc_value, Interruption):
        sys.__unraisablehook__(about)


def _ignore(handled: list[int]) -> None:
    """Keep signals from changing the exit code while Python shuts down."""
    for number in handled:
        if signal.getsignal(number) is _handle:
            signal.signal(number, signal.SIG_IGN)
