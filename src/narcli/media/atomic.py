"""Atomic writing: to a temporary file beside the name, then moved there in one operation."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from ..errors import NarError

#: How the names of temporary files and folders begin and end; in such a folder, what it is to replace.
PART, OLD = (".narcli-", ".part"), "old"
ABANDONED = 3600.0  # seconds after which a part in a cache is nobody's


def write_atomic(path: Path, data: bytes | Callable[[Path], object], *, overwrite: bool = False) -> Path:
    """Write a file, complete or not at all.

    Args:
        path: the desired name; missing folders are created.
        data: the bytes, or a function that fills the empty file passed to it.
        overwrite: replace an existing file. Otherwise a name that is taken by then gets ``_1``.

    Returns:
        The path written.

    Raises:
        NarError: the file cannot be written, for example on a full disk or without permission.
    """
    temporary = path.with_name(secrets.token_hex(8).join(PART))
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                if isinstance(data, bytes):
                    file.write(data)
            if not isinstance(data, bytes):
                data(temporary)
            if overwrite:
                os.replace(temporary, path)  # noqa: PTH105 (clearer than Path.replace)
                return path
            return _move_to_free_name(temporary, path)
        finally:  # runs after Ctrl-C too
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    except NarError:
        raise
    except Exception as error:
        if (known := system_error(error)) is None:
            raise
        raise explain(path, known) from error


def companion(path: Path, ending: str) -> Path:
    """Path of a companion file: ``dog.png`` and ``_frontier.gif`` give ``dog_frontier.gif``."""
    return path.with_name(path.stem + ending)


def _move_to_free_name(temporary: Path, path: Path) -> Path:
    for number in count():
        target = companion(path, f"_{number}{path.suffix}") if number else path
        try:
            try:
                os.link(temporary, target)  # fails if the name is taken, in one operation
            except FileExistsError:
                raise
            except OSError:  # a file system without links: reserve the name, then replace it
                target.open("xb").close()
                os.replace(temporary, target)  # noqa: PTH105
            return target
        except FileExistsError:
            continue
    raise AssertionError("unreachable")


def clear_parts(folder: Path) -> None:
    """Remove temporary files of a process that was killed while it wrote into ``folder``.

    A model that ``save_model`` had moved aside and not yet replaced is moved back.
    """
    for part in folder.glob("*".join(PART)):
        for old in (part / OLD).glob("*"):
            if not (folder / old.name).exists():
                old.rename(folder / old.name)
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def prune(folder: Path, most: int, is_current: Callable[[Path], bool] = lambda path: True) -> int:
    """Remove files of a cache, and return the bytes freed.

    Args:
        folder: of the cache; other processes may write and remove files meanwhile.
        most: bytes to leave. Files that were not used for longest go first.
        is_current: tells a file that can be used still; others go in any case.
    """
    freed, kept = 0, []
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                stat = path.stat()
                abandoned = time.time() - stat.st_mtime > ABANDONED
                if abandoned if path.suffix == PART[1] else not is_current(path):
                    path.unlink(missing_ok=True)
                    freed += stat.st_size
                elif path.suffix != PART[1]:
                    kept.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if total <= most:
                break
            path.unlink(missing_ok=True)
            total, freed = total - size, freed + size
    return freed


def system_error(error: BaseException | None) -> OSError | None:
    """Find the system error behind an error of a library that writes files, or None.

    torch and safetensors turn a full disk into errors of their own; safetensors has its number in the text.
    """
    while error is not None:
        if isinstance(error, OSError):
            return error
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            return OSError(int(number[1]), os.strerror(int(number[1])))
        error = error.__cause__ or error.__context__
    return None


def explain(path: Path, error: OSError) -> NarError:
    """Error for a file or folder that cannot be written."""
    happened, hint = {
        errno.ENOSPC: ("the disk is full", "Free some space or choose another disk with `output`."),
        errno.EDQUOT: ("your disk quota is used up", "Free some space or choose another disk with `output`."),
        errno.EFBIG: ("the file would be larger than allowed here", "Raise the limit (ulimit -f) or move."),
        errno.EACCES: ("permission denied", "Choose a folder of yours with `output`."),
        errno.EPERM: ("not permitted", "Choose a folder of yours with `output`."),
        errno.EROFS: ("the disk is read-only", "Choose another folder with `output`."),
        errno.ENAMETOOLONG: ("the name is too long", "Choose a shorter `output`."),
        errno.EEXIST: ("a part of the path is a file, not a folder", "Choose another `output`."),
        errno.ENOTDIR: ("a part of the path is a file, not a folder", "Choose another `output`."),
        errno.EISDIR: ("that is a folder", "Choose another `output`."),
    }.get(error.errno or 0, ((error.strerror or str(error)).lower(), "Choose another place with `output`."))
    return NarError(f"Could not write {path}: {happened}.", hint)
