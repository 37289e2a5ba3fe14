"""Downloads into the cache: bounded, resumed, compared with the listed hash."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, cast

from ..errors import HubError
from .cache import _HASH, File, _blob, _damage, _OddAnswerError, _part, _pointer, _short


def _download(
    repo: str, file: File, commit: str, *, check: bool, tell: Callable[[str], None]
) -> tuple[Path, int]:
    """Fetch a file unless the cache has it undamaged; return its path and the bytes received."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    pointer = _pointer(repo, file, commit)
    if pointer.is_file() and _damage(pointer, file, check) is None:
        return pointer, 0
    # One request shows a refusal at once; the client's downloads retry for minutes.
    url = hf_hub_url(repo, file.name, revision=commit)
    answer = get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    if answer.commit_hash not in (None, commit):
        raise _OddAnswerError(f"{file.name} is of commit {_short(answer.commit_hash)}, not {commit}")
    if answer.etag is not None and file.hash is not None and answer.etag != file.hash:
        raise _OddAnswerError(f"{file.name} has the ETag {_short(answer.etag)}, listed is {file.hash}")
    file = replace(
        file,
        hash=file.hash or answer.etag,
        size=answer.size if file.size is None else file.size,
    )
    if not _HASH.fullmatch(file.hash or "") or file.size is None:
        raise _OddAnswerError(f"{file.name} has the ETag {_short(file.hash)} and {file.size} bytes")
    return pointer, _download_blob(repo, file, url, pointer, tell)


class _Limited:
    """A file that takes no more bytes than listed, since a server may send more, or without end."""

    def __init__(self, opened: BinaryIO, file: File) -> None:
        self.opened, self.file = opened, file
        self.tell, self.seek, self.truncate = opened.tell, opened.seek, opened.truncate

    def write(self, data: bytes) -> int:
        if self.opened.tell() + len(data) > (self.file.size or 0):
            raise _OddAnswerError(
                f"it sends more than the {self.file.size:,} bytes that it lists of {self.file.name}"
            )
        return self.opened.write(data)


def _download_blob(repo: str, file: File, url: str, pointer: Path, tell: Callable[[str], None]) -> int:
    """Download a file into the cache, resuming an interrupted download; return the bytes received.

    The client itself would start again, and use any name that the server sends. The partial file has a name
    that `hf cache prune` knows, and gets the final one when its hash is right. A damaged file is replaced,
    whichever commit brought it.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    blob = _blob(repo, file)
    assert blob is not None
    lock = Path(constants.HF_HUB_CACHE, ".locks", blob.parents[1].name, f"{blob.name}.lock")
    for folder in (blob.parent, lock.parent, pointer.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with _locked(lock, lambda: tell(f"Waiting for another process that downloads {file.name} of {repo}.")):
        if blob.exists() and _damage(blob, file, check=True) is None:
            _link(pointer, blob)
            return 0
        part = _part(blob)
        with part.open("ab") as opened:
            if opened.tell() > (file.size or 0):
                opened.truncate(0)
                opened.seek(0)
            began = opened.tell()
            try:
                http_get(
                    url,
                    cast(BinaryIO, _Limited(opened, file)),
                    resume_size=began,
                    headers=build_hf_headers(),
                    expected_size=file.size,
                    displayed_filename=file.name,
                )
            except (OSError, _OddAnswerError) as error:
                status = getattr(getattr(error, "response", None), "status_code", None)
                wrong = isinstance(error, _OddAnswerError) or "Consistency check failed" in str(error)
                if status == 416 or wrong:
                    opened.truncate(0)  # the partial file cannot be resumed
                raise
        if why := _damage(part, file, check=True):
            part.unlink()
            raise _arrived_wrong(repo, file, why)
        part.replace(blob)
        size = blob.stat().st_size - began
        _link(pointer, blob)
        return size


def _link(pointer: Path, blob: Path) -> None:
    """Link a file of a commit to its content, as the client does; copy it if links are impossible."""
    pointer.unlink(missing_ok=True)
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except FileExistsError:  # another process made the same file
        pass
    except (OSError, NotImplementedError):
        shutil.copyfile(blob, pointer)


@contextmanager
def _locked(lock: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Context that holds the client's own lock; ``wait`` is called if another process holds it."""
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    with ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(lock, timeout=0.5))
        except Timeout:
            wait()
            stack.enter_context(WeakFileLock(lock))
        yield


def _arrived_wrong(repo: str, file: File, why: str) -> HubError:
    return HubError(
        f"{file.name} of {repo} did not arrive as the Hub lists it: {why}.",
        "It was removed. Try again; check your proxy.",
    )
