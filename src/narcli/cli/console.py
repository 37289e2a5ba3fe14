"""The one place where commands print: results on stdout, everything else on stderr.

Colour and progress appear only on a terminal; ``NO_COLOR`` and ``--quiet`` are honoured. ``fail`` is
the table that turns any exception into lines for a person and an exit code.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ..errors import DeclinedError, MemoryLimitError, NarError, UsageError, is_shortage
from . import signals

_ERASE = "\x1b[J\r\x1b[K"  # what wrapped below the cursor's line, and that line
_SPELLED = {"classes": "class", "prompts": "prompt", "sheet": "grid", "as_json": "json", "json": "json"}
ARGUMENTS = set(_SPELLED)  # names that commands take, which ``commands`` adds
LARGE = 2 * 10**9  # bytes; a person is asked before more is downloaded


def is_terminal(stream: TextIO | None) -> bool:
    """Tell whether a stream is a terminal that can redraw lines."""
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


def has_color(stream: TextIO | None) -> bool:
    """Tell whether to colour text on a stream (https://no-color.org)."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


@dataclass(frozen=True)
class Console:
    """Output of a command.

    Args:
        quiet: no notes and no progress; results, warnings and errors stay.
    """

    quiet: bool = False

    def result(self, text: object) -> None:
        """Print a line or block of results on stdout.

        Control characters are replaced, except in a path in a pipe.
        """
        buffer = getattr(sys.stdout, "buffer", None)
        if isinstance(text, Path) and buffer is not None and not is_terminal(sys.stdout):
            sys.stdout.flush()
            buffer.write(os.fsencode(text) + os.linesep.encode())  # the locale may lack its letters
        else:
            print(text if isinstance(text, Path) and buffer is None else printable(str(text)))

    def table(self, rows: Iterable[Sequence[str]], titles: Sequence[str] = ()) -> None:
        """Print columns on stdout; the cells of a row fold where a terminal is too narrow for it."""
        from rich.console import Console as Terminal
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, show_header=False)
        for row in (*([titles] if titles else []), *rows):
            table.add_row(*(Text(printable(cell), overflow="fold") for cell in row))
        width = _columns(sys.stdout) if is_terminal(sys.stdout) else 2**16
        terminal = Terminal(width=width, color_system=None)
        for line in terminal.render_lines(table, pad=False):
            self.result("".join(segment.text for segment in line).rstrip())

    def json(self, document: Any) -> None:
        """Print the only JSON document of a ``--json`` run on stdout."""
        utf = (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")
        text = json.dumps(document, ensure_ascii=not utf, indent=2)
        # json.dumps leaves C1 controls and marks of direction unescaped.
        print("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))

    def note(self, text: str) -> None:
        """Print a note on stderr, unless quiet."""
        if not self.quiet:
            _say(f"{_cleared()}{printable(text)}")

    def warn(self, text: str) -> None:
        """Print a warning on stderr, even when quiet."""
        _say(f"{_cleared()}{_paint('warning:', '33')} {printable(_options(text))}")

    @property
    def can_ask(self) -> bool:
        """Tell whether a person can answer: stdin and stderr are terminals."""
        return is_terminal(sys.stdin) and is_terminal(sys.stderr)

    def approve_download(self, sizes: Mapping[str, int]) -> None:
        """Ask before a download of several GB.

        Args:
            sizes: bytes to download of each model.

        Raises:
            UsageError: nobody can answer.
            DeclinedError: the answer is no.
        """
        total = sum(sizes.values())
        if total < LARGE:
            return
        parts = ", ".join(f"{name} {bytes_text(size)}" for name, size in sizes.items())
        what = f"{bytes_text(total)} to download " + (f"({parts})" if len(sizes) > 1 else f"for {min(sizes)}")
        if not self.can_ask:
            raise UsageError(f"There are {what}.", "Add --yes to allow it.")
        self.confirm(f"{what[0].upper()}{what[1:]}.", "Nothing was downloaded.")

    def confirm(self, what: str, declined: str) -> None:
        """Ask a yes-or-no question.

        Raises:
            DeclinedError: the answer is no; ``declined`` is its message.
        """
        sys.stderr.write(f"{printable(what)} Go on? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise DeclinedError(declined)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[..., None]]:
        """Context with a progress line on stderr, on a terminal only; it is erased at the end.

        Yields ``advance(count=1, note="", total=None)``, for example
        ``with console.progress("decoding", 31) as advance: ... advance()``; a new total replaces the old.
        """
        if self.quiet or not is_terminal(sys.stderr):
            yield lambda count=1, note="", total=None: None
            return
        done, shown, most = 0, 0.0, total

        def advance(count: int = 1, note: str = "", total: int | None = None) -> None:
            nonlocal done, shown, most
            done, most = done + count, total or most
            if (now := time.monotonic()) - shown > 0.05 or done >= most:
                shown = now
                # The cursor waits at the line's start: what a narrower window wraps is erased too.
                line = _progress_line(label, note, done, most, _columns(sys.stderr) - 1)
                sys.stderr.write(f"{_ERASE}{line}\r")
                sys.stderr.flush()

        try:
            advance(0)
            yield advance
        finally:
            sys.stderr.write(_ERASE)
            sys.stderr.flush()


def bytes_text(count: int) -> str:
    """Format ``11400000000`` as ``11.4 GB``."""
    if count < 1e6:
        return f"{count / 1e3:.0f} kB" if count >= 1000 else f"{count} bytes"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def fail(error: BaseException) -> int:
    """Report an error on stderr and return its exit code; signals are ignored from then on.

    After a signal, the signal is reported, since its exception may have become another one.
    """
    signals.end()
    number = signals.received()
    if number is not None and not isinstance(error, KeyboardInterrupt):
        error = signals.Interruption(number)
    if os.environ.get("NARCLI_DEBUG") == "1" and not isinstance(error, BrokenPipeError):
        import traceback

        traceback.print_exception(error)
    match error:
        case BrokenPipeError():  # the reader has gone
            return 1
        case KeyboardInterrupt():
            number = int(error.args[0]) if error.args else int(signal.SIGINT)
            _say("Interrupted." if number == signal.SIGINT else "Terminated.")
            return 128 + number
        case DeclinedError():
            _say(error.message)
            return error.exit_code
        case NarError():
            message, hint, code = error.message, error.hint, error.exit_code
        case _ if is_shortage(error):
            message, hint = "Out of memory.", "Try a smaller --batch-size, --num or grid."
            code = MemoryLimitError.exit_code
        case RuntimeError() if "home directory" in str(error):  # of pathlib and platformdirs
            message, hint, code = "There is no home folder.", "Set HOME to a folder of yours.", 1
        case OSError():
            message = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}."
            hint, code = "Set NARCLI_DEBUG=1 and run it again to see where.", 1
        case _:
            message = f"narcli failed unexpectedly: {type(error).__name__}: {str(error) or 'no message'}"
            hint, code = "Set NARCLI_DEBUG=1 and run it again for the traceback, and please report it.", 1
    message, hint = _options(message), _options(hint or "")
    _say(f"{_paint('error:', '1;31')} {printable(message)}" + (f"\n  {printable(hint)}" if hint else ""))
    return code


def _options(text: str) -> str:
    """Spell the arguments of the library in a message as options: `` `top_k=5` `` is ``--top-k 5``.

    Names that no command takes stay: words of a person may have backquotes too.
    """
    if "`" not in text:
        return text

    def spell(match: re.Match[str]) -> str:
        if match[1] not in ARGUMENTS:
            return match[0]
        name = _SPELLED.get(match[1], match[1]).replace("_", "-")
        return f"--{name} {match[2]}" if match[2] else f"--{name}"

    return re.sub("`([a-z][a-z_]*)(?:=([^`]+))?`", spell, text)


def _progress_line(label: str, note: str, done: int, total: int, width: int) -> str:
    """Lay out a progress line of at most ``width`` cells.

    Where it is too narrow the note goes first, then the bar, then the label.
    """
    from rich.cells import cell_len, set_cell_size

    label, count = " ".join(printable(label).split()), f"{done}/{total}"
    noted = f"{count} {' '.join(printable(note).split())}".rstrip()
    if cell_len(label) + cell_len(noted) + 10 <= width:
        count = noted
    size = min(24, width - cell_len(label) - len(count) - 2)
    if size >= 4:
        filled = size * min(done, total) // max(total, 1)
        return f"{label} {_paint('━' * filled, '33')}{_paint('━' * (size - filled), '90')} {count}"
    room = width - len(count) - 1
    if cell_len(label) > room:
        label = set_cell_size(label, room - 1) + "…" if room > 1 else ""
    return f"{label} {count}".strip() if width >= len(count) else ""


def _columns(stream: TextIO) -> int:
    """Present columns of the terminal, also if other streams are pipes; 80 if unknown."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):
        return 80


def _say(text: str) -> None:
    """Print on stderr; ignore a closed terminal."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)


def _cleared() -> str:
    """Control codes that erase a progress line, or ""."""
    return _ERASE if is_terminal(sys.stderr) else ""


def _paint(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if has_color(sys.stderr) else text


def printable(text: str) -> str:
    """Replace control characters in foreign text, and marks that change its direction."""
    kept = "\n\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"  # joiners make one emoji of several
    return "".join(c if c.isprintable() or c in kept else "\N{REPLACEMENT CHARACTER}" for c in text)
