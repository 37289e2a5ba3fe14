"""The cache of ``huggingface_hub``: its content, checks of it, and removal."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha1, sha256
from pathlib import Path
from typing import Any

from ..checkpoints import conversions
from ..checkpoints.config import weights_in
from ..errors import NarError
from ..media.names import MAX_NAME
from .catalog import Model


@dataclass(frozen=True)
class File:
    """A file of a repository, as the Hub lists it.

    Args:
        name: path in the repository.
        size: bytes; None if the Hub does not list it.
        hash: SHA-256 of a large file (64 digits), git's SHA-1 of a small one (40); None if not listed.
    """

    name: str
    size: int | None = None
    hash: str | None = None


def is_cached(model: Model) -> bool:
    """Tell whether the cache has anything of a repository."""
    return model.repo is not None and _folder(model.repo).is_dir()


def repositories() -> list[str]:
    """Names of all repositories of models in the cache."""
    from huggingface_hub import constants

    folders = Path(constants.HF_HUB_CACHE).glob("models--*")
    return sorted(folder.name.removeprefix("models--").replace("--", "/") for folder in folders)


def revisions(repo: str) -> list[str]:
    """Revisions of a repository in the cache: ``main`` if present, and commits other than its own."""
    main = _snapshot(repo, "main")
    commits = sorted(folder.name for folder in _folder(repo).glob("snapshots/*") if folder != main)
    return ["main"] * (main is not None) + commits


def held(model: Model) -> int:
    """Bytes of a repository in the cache: all its revisions, and partial downloads."""
    return sum(_content(model.repo).values()) if model.repo is not None else 0


def weights_of(model: Model, revision: str | None = None) -> set[str]:
    """Names of weights files of a repository in the cache, in one revision or in any."""
    repo = model.repo or ""
    snapshots = [_snapshot(repo, revision)] if revision else _folder(repo).glob("snapshots/*")
    names = [[p.relative_to(folder).as_posix() for p in folder.rglob("*")] for folder in snapshots if folder]
    return {name for each in names for name in weights_in(each)}


def remove(model: Model) -> int:
    """Remove all revisions and converted copies of a repository; return the bytes freed.

    Files that repositories share, as the client stores those that came by Xet, go with the last of them.

    Raises:
        NarError: it cannot be removed.
    """
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    folder, content = _folder(model.repo or ""), _content(model.repo or "")
    copies = [copy for path in content for copy in conversions.copies(path)]
    try:
        with _quiet(False):
            with suppress(CacheNotFound):
                info = scan_cache_dir(constants.HF_HUB_CACHE)
                ours = frozenset(repo for repo in info.repos if repo.repo_path.name == folder.name)
                commits = [revision.commit_hash for repo in ours for revision in repo.revisions]
                # Renamed copies of a repository share its commits, and the client would remove the first one.
                replace(info, repos=ours).delete_revisions(*commits).execute()
            if folder.exists():  # the client leaves partial downloads and damage
                shutil.rmtree(folder)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise NarError(f"Could not remove {folder}: {why}.", "Check whose it is.") from error
    freed = sum(size for path, size in content.items() if not path.exists()) + conversions.forget(copies)
    conversions.prune()  # copies of other files, not counted
    return freed


class _OddAnswerError(ValueError):
    """An answer that no Hub gives; the message describes it."""


def _is_name(name: str) -> bool:
    """Tell whether a file or revision of this name stays inside its cache folder on every system."""
    return (
        name.isprintable()
        and not set(name) & set('\\:*?"<>|')
        and len(name) <= MAX_PATH
        and all(
            part and part[0] != "." and part[-1] not in ". " and len(part.encode()) <= MAX_NAME
            for part in name.split("/")
        )
    )


def _short(value: object) -> str:
    return repr(value)[:80]


def _is_here(repo: str, file: File, commit: str) -> bool:
    """Tell whether the cache has a file of a commit in the right size, perhaps from an older commit."""
    pointer, blob = _pointer(repo, file, commit), _blob(repo, file)
    path = pointer if pointer.exists() else blob
    return path is not None and path.is_file() and _damage(path, file, check=False) is None


def _left(repo: str, file: File) -> int:
    """Bytes still to download of a missing file, less those of a partial download."""
    blob = _blob(repo, file)
    done = _part(blob).stat().st_size if blob is not None and _part(blob).is_file() else 0
    return max(0, (file.size or 0) - done)


#: Hexadecimal digits of the two kinds of hashes that the Hub lists.
SHA256, GIT_SHA1 = 64, 40


MAX_PATH = 500  # characters of the name of a file in a repository


_COMMIT = re.compile("[0-9a-f]{40}")


_HASH = re.compile(f"[0-9a-f]{{{SHA256}}}|[0-9a-f]{{{GIT_SHA1}}}")


def _damage(path: Path, file: File, check: bool) -> str | None:
    """Describe how a file differs from the Hub's listing, None if not at all; ``check`` hashes it."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"it has {size:,} bytes, the Hub says {file.size:,}"
    if check and file.hash is not None and (digest := hash_file(path, file.hash)) not in (None, file.hash):
        return f"its hash is {digest}, the Hub says {file.hash}"
    return None


def hash_file(path: Path, like: str = "0" * SHA256) -> str | None:
    """Hash a file with the kind of hash that ``like`` is; None if ``like`` is of neither kind."""
    if not _HASH.fullmatch(like):
        return None
    digest = sha256() if len(like) == SHA256 else sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as opened:
        while chunk := opened.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def stored_hash(path: Path) -> str | None:
    """Hash of a cached file at its download: the name of the file that it links to; else None."""
    name = _first_link(path).name
    return name if path.is_symlink() and _HASH.fullmatch(name) else None


def is_damaged(path: Path) -> bool:
    """Tell whether a cached file has changed since its download."""
    expected = stored_hash(path)
    return expected is not None and hash_file(path, expected) != expected


def _first_link(path: Path) -> Path:
    """First target of a snapshot's link: the repository's own entry, perhaps a link to a shared file."""
    return path.parent / path.readlink() if path.is_symlink() else path


def free_disk() -> tuple[Path, int]:
    """Folder of the Hub's cache, and free bytes of its disk."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    existing = next(parent for parent in (folder, *folder.parents, Path()) if parent.exists())
    return folder, shutil.disk_usage(existing).free


def _folder(repo: str) -> Path:
    """Folder of a repository in the cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def _content(repo: str) -> dict[Path, int]:
    """Content files of a repository in the cache, with their sizes in bytes."""
    paths = [path for part in ("blobs", "snapshots") for path in (_folder(repo) / part).rglob("*")]
    return {path.resolve(): path.stat().st_size for path in paths if path.is_file()}


def _pointer(repo: str, file: File, commit: str) -> Path:
    """Path of a commit's file in the cache, which is a link to its content."""
    return _folder(repo) / "snapshots" / commit / file.name


def _blob(repo: str, file: File) -> Path | None:
    """Path of a file's content in the cache; None if its hash is unknown."""
    match = _HASH.fullmatch(file.hash or "")
    return _folder(repo) / "blobs" / match[0] if match else None


def _part(blob: Path) -> Path:
    """Path of the partial download of a content file."""
    return blob.with_name(f"{blob.name}.narcli.incomplete")


def _snapshot(repo: str, revision: str) -> Path | None:
    """Folder with the files of a revision in the cache; None if there is none."""
    folder = _folder(repo)
    if not _is_name(revision):
        return None
    try:
        commit = (folder / "refs" / revision).read_text().strip()
    except (OSError, ValueError):
        commit = revision
    snapshot = folder / "snapshots" / commit
    return snapshot if _COMMIT.fullmatch(commit) and snapshot.is_dir() else None


def _commit(path: Path) -> str | None:
    match = re.search(r"/snapshots/([0-9a-f]{40})/", path.as_posix())
    return match[1] if match else None


@contextmanager
def _quiet(progress: bool) -> Iterator[None]:
    """Context without messages of the client, and with its progress bars only if asked for."""
    from huggingface_hub.utils import logging
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    level, silence = logging.get_verbosity(), not progress and not are_progress_bars_disabled()
    logging.set_verbosity_error()
    if silence:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if silence:
            enable_progress_bars()


@contextmanager
def _online(progress: bool) -> Iterator[None]:
    """Context for quiet requests that do not read the body of an error, of any length."""
    from huggingface_hub import get_session

    def drop_error(response: Any) -> None:
        if response.status_code >= 400 and response.request.method == "GET":
            response.close()

    with _quiet(progress):
        session = get_session()
        hooks = session.event_hooks
        session.event_hooks = {**hooks, "response": [*hooks["response"], drop_error]}
        try:
            yield
        finally:
            session.event_hooks = hooks
