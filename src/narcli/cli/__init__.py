"""The ``narcli`` command: signals and exit codes; the commands are in ``commands``.

It imports little, so that signals are handled early.
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
    """Run narcli on ``sys.argv`` and return the exit code; errors become messages.

    After cleanup a signal gives 128 plus its number; later signals change nothing.
    """
    signals.catch()
    try:
        try:
            code = _run()
        except BaseException as error:
            code = _fail(error)
        signals.end()
    except signals.Interruption as error:  # a signal between the two statements above
        code = _fail(error)
    return code


def _run() -> int:
    """Run the command, print all of its results, and return the exit code."""
    import gc
    import io

    gc.set_threshold(50_000)  # Python's 700 slows the import of torch by a quarter; runs make few cycles
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII terminal gets ?, not an error
    try:
        sys.modules[__name__].app()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    number = signals.received()
    if code and number is not None and not signals.ended():  # Typer ends silently
        code = _fail(signals.Interruption(number))
    return _flush(code)


def _fail(error: BaseException) -> int:
    from .console import fail

    return _flush(fail(error))


def _flush(code: int) -> int:
    """Flush the results; return the exit code, 1 if nobody reads them."""
    import contextlib
    import os

    from .console import fail

    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):  # else Python reports the broken pipe again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code or fail(error)
    return code
