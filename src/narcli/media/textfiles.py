"""Safe reading of files of users and models: regular files only, up to a limit. No torch.

Reading a FIFO would block, a device has no end, and the claimed size of a file may be wrong.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from ..errors import CheckpointError, UsageError

if TYPE_CHECKING:
    import zipfile

MAX_TEXT = 2**24  # bytes of a file of text
MAX_DIRECTORY = 2**24  # bytes of the directory of a ZIP archive
MAX_JSON = 2**20  # bytes of a JSON file that belongs to a model
_BREAKS = re.compile("\r\n|\n|\r")


def expand(path: str | Path) -> Path:
    """Replace ``~`` or ``~user`` at the beginning of a path by the home folder.

    Raises:
        UsageError: no such user, or no home folder.
    """
    text = os.fspath(path)
    full = os.path.expanduser(text)  # noqa: PTH111 (Path knows "./~" no longer)
    if full == text and text.startswith("~"):
        if user := Path(text).parts[0][1:]:
            raise UsageError(
                f"{text} names the home folder of {user!r}, and there is no such user.",
                f"Write ./{text} for a file here.",
            )
        raise UsageError("There is no home folder.", "Set HOME to a folder of yours.")
    # An absolute "./~" is not expanded once more.
    return Path(full).absolute() if str(Path(full)).startswith("~") else Path(full)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, links followed; never wait for a FIFO or a device.

    Raises:
        CheckpointError: a folder, FIFO, socket or device in the file's place; the message names it.
        OSError: as ``open`` raises it, for example if there is no such file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.EISDIR):  # a socket; a folder, on some systems
            raise _irregular(path, path.stat().st_mode) from None
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise _irregular(path, mode)
    return os.fdopen(descriptor, "rb")


def check_regular(path: Path) -> None:
    """Raise unless a path is a regular file that can be opened.

    Raises:
        CheckpointError: no such file, no permission, or a folder, FIFO, socket or device in its place.
    """
    try:
        open_regular(path).close()
    except OSError as error:
        raise unreadable(path, error) from None


def read_bytes(path: Path, most: int, what: str) -> bytes:
    """Read a whole regular file of at most ``most`` bytes.

    Args:
        path: the file.
        most: bytes.
        what: noun for the message about a larger file, such as ``a file of prompts``.

    Raises:
        CheckpointError: it cannot be read, is no regular file, or is larger.
    """
    try:
        with open_regular(path) as file:
            data = file.read(most + 1)
    except OSError as error:
        raise unreadable(path, error) from None
    if len(data) > most:
        raise CheckpointError(f"{path} is larger than {most:,} bytes, too large for {what}.")
    return data


def read_text(path: Path, what: str, most: int = MAX_TEXT) -> str:
    """Read a UTF-8 text file, with or without a byte order mark; arguments as ``read_bytes``.

    Raises:
        CheckpointError: as ``read_bytes``, or other bytes than UTF-8; names the line.
    """
    return decode_text(read_bytes(path, most, what), str(path))


def decode_text(data: bytes, where: str) -> str:
    """Decode UTF-8 text, with or without a byte order mark; ``where`` names its source in messages.

    Raises:
        CheckpointError: it is not UTF-8; names the line.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise CheckpointError(f"{where} is UTF-16 text, expected UTF-8.", "Save it as UTF-8.") from None
        line = len(split_lines(data[: error.start].decode("utf-8", "replace") + "."))
        raise CheckpointError(f"{where} is not UTF-8 text (line {line}).", "Save it as UTF-8.") from None


def split_lines(text: str) -> list[str]:
    r"""Split text at ``\n``, ``\r\n`` and ``\r`` only; an end of line at the very end starts no line.

    ``str.splitlines`` also splits at form feeds and at separators that captions may hold.
    """
    lines = _BREAKS.split(text)
    return lines[:-1] if not lines[-1] else lines


class _Bounded:
    """A file for ``zipfile`` that bounds each read, since ``zipfile`` reads a whole directory at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY:
            raise ValueError(f"a directory of more than {MAX_DIRECTORY:,} bytes")
        return self._file.read(size)


def open_zip(file: BinaryIO) -> zipfile.ZipFile:
    """Open a ZIP archive for reading; no more than ``MAX_DIRECTORY`` bytes are read at once.

    Raises:
        zipfile.BadZipFile, OSError, ValueError, NotImplementedError: no archive, or a directory too large.
    """
    import zipfile

    return zipfile.ZipFile(cast(BinaryIO, _Bounded(file)))


def read_json(path: Path, most: int = MAX_JSON) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        CheckpointError: as ``read_text``, or it is not JSON, or no object.
    """
    try:
        content = json.loads(read_text(path, "a JSON file", most))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is not valid JSON.", "Get the original file again.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a JSON {type(content).__name__}, expected an object.")
    return content


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """Error for a file that the system cannot open or read."""
    return CheckpointError(f"Could not read {path}: {(error.strerror or str(error)).lower()}.")


def _irregular(path: Path, mode: int) -> CheckpointError:
    kinds = {
        stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe (FIFO)", stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    }  # fmt: skip
    return CheckpointError(f"{path} is {kinds.get(stat.S_IFMT(mode), 'a special file')}, expected a file.")
