"""Signals that ask narcli to end: the first one ends it with all cleaned up, later ones disturb nothing.

Imports nothing heavy, so that the handlers are there before anything else is imported.
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

DELAY = 0.05  # seconds until a signal is given again whose exception was lost


class Interruption(KeyboardInterrupt):
    """A signal, whose number is the argument."""


class _State:
    number: int | None = None  # of the first signal
    raised: weakref.ref[Interruption] | None = None
    ended = False
    main = 0  # identity of the main thread


def catch() -> None:
    """Raise ``Interruption`` in the main thread on each signal that would end the process.

    A signal that is ignored stays so, as under ``nohup`` or in the background of a script.
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
    """The number of the first signal that came before ``end``, also where its exception was lost."""
    return _State.number


def end() -> None:
    """Let signals do nothing from now on: what is left is to report and leave."""
    _State.ended = True


def ended() -> bool:
    """Whether ``end`` was called: the outcome is reported."""
    return _State.ended


def _handle(number: int, _: object) -> None:
    # While the exception of an earlier signal exists, its cleanup runs.
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
    """Give a signal again while its exception is lost, as in destructors and in some imports of C code."""
    while not _State.ended:
        time.sleep(DELAY)
        if not _State.ended and _State.raised is not None and _State.raised() is None:
            if hasattr(signal, "pthread_kill"):
                signal.pthread_kill(_State.main, number)
            else:
                signal.raise_signal(number)


def _unraisable(about: Any) -> None:
    """Say nothing of an interruption that came in a destructor or a callback, which cannot raise."""
    if not isinstance(about.exc_value, Interruption):
        sys.__unraisablehook__(about)


def _ignore(handled: list[int]) -> None:
    """Keep signals from changing the exit code while Python shuts down."""
    for number in handled:
        if signal.getsignal(number) is _handle:
            signal.signal(number, signal.SIG_IGN)
