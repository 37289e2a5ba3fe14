"""The ``narcli`` command: signals, exit codes, and the last word; the commands are in ``commands``.

Light, so that signals are handled before anything else is imported.
"""

from __future__ import annotations

import sys

from . import signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .commands import _Commands as _Commands
    from .commands import app as app


def __getattr__(name: str) -> object:
    """Import the commands when they are first used."""
    if name in ("app", "_Commands"):
        from . import commands

        return getattr(commands, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> int:
    """Run narcli on ``sys.argv``; the exit code. Nothing but a message for a person ever escapes.

    A signal ends it with 128 and its number, all cleaned up; those that follow change nothing.
    """
    signals.catch()
    try:
        try:
            code = _run()
        except BaseException as error:
            code = _fail(error)
        signals.end()
    except signals.Interruption as error:  # in the moment between the two
        code = _fail(error)
    return code


def _run() -> int:
    """Run the command, and print all of its results; the exit code."""
    import gc
    import io

    gc.set_threshold(50_000)  # Python's 700 makes imports of torch a quarter longer; runs make few cycles
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII terminal gets ?, not an error
    try:
        sys.modules[__name__].app()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    number = signals.received()
    if code and number is not None and not signals.ended():  # Typer ends without a word
        code = _fail(signals.Interruption(number))
    return _flush(code)


def _fail(error: BaseException) -> int:
    from .console import fail

    return _flush(fail(error))


def _flush(code: int) -> int:
    """Print what is left of the results; the exit code, 1 where nobody reads them."""
    import contextlib
    import os

    from .console import fail

    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):  # or Python would complain once more at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code or fail(error)
    return code
