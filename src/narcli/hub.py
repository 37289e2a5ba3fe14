"""From a model to its files on this machine, through ``huggingface_hub`` and its cache.

``HF_HOME``, ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` mean what they mean everywhere. Online, one
short request tells the commit, the files and their sizes; a Hub that cannot be reached, or refuses, is
no error while the files are in the cache. Offline, or for a pinned commit that is on disk, nothing is asked.

A server is not trusted: names, sizes and hashes of its listing are checked, files are stored under the hash
that is listed, and no more bytes are taken than are listed.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from hashlib import sha1, sha256
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast
from urllib.parse import quote

from . import conversions
from .configs import CONFIG, MODEL, TEXT_ENCODER, TOKENIZER, read_config, weights_in
from .errors import HubError, NarError, UsageError
from .outputs import MAX_NAME
from .registry import MODELS, Model, complete, meant, no_tokenizer, smaller_models
from .writers import write_atomic


@dataclass(frozen=True)
class Fetched:
    """A model on this machine.

    Args:
        model: what was asked for, with what its own config.json says.
        path: the weights file or the narcli folder.
        commit: of the repository; None for local and built-in models.
        note: what a person should know about where it comes from, or "".
        downloaded: bytes that came over the network for it.
        compared: whether its files were hashed, and are what the Hub lists.
    """

    model: Model
    path: Path
    commit: str | None = None
    note: str = ""
    downloaded: int = field(default=0, compare=False)
    compared: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class File:
    """A file of a repository, as the Hub lists it.

    Args:
        name: path in the repository.
        size: bytes; None where the Hub does not tell.
        hash: SHA-256 of a large file (64 digits), git's SHA-1 of another one (40); None likewise.
    """

    name: str
    size: int | None = None
    hash: str | None = None


@dataclass(frozen=True)
class Located:
    """A model that was found, here or at the Hub, and what there is still to download.

    Args:
        model: what was asked for.
        revision: branch, tag or commit.
        here: the model, where it is on this machine and the Hub does not have to be asked; else None.
        commit: of the repository; None for local and built-in models.
        files: of the repository, the weights last.
        missing: bytes to download, as far as they are told.
        license: what the repository says; None where the Hub was not asked or tells none.
        note: reason why its size is an estimate, or "".
    """

    model: Model
    revision: str
    here: Fetched | None
    commit: str | None = None
    files: Sequence[File] = field(default=(), repr=False)
    missing: int = 0
    license: str | None = None
    note: str = ""

    @property
    def copy(self) -> Fetched | None:
        """What is on this machine of just this commit."""
        return self.here or cached(self.model, self.commit or self.revision)

    def fetch(
        self,
        *,
        progress: bool = False,
        check: bool = False,
        tell: Callable[[str], None] = lambda note: None,
    ) -> Fetched:
        """Download what is missing; errors are those of the function ``fetch``.

        Args:
            progress: show bars on stderr, where that is a terminal.
            check: hash also the files that are here, and download again those that are damaged.
            tell: is told, in a sentence, what else takes time.
        """
        if self.here is not None:
            return self.here
        assert self.model.repo is not None and self.commit is not None
        name: str | None = None
        downloaded = 0
        try:
            with _online(progress):
                for file in self.files:
                    name = file.name
                    path, size = _download(self.model.repo, file, self.commit, check=check, tell=tell)
                    downloaded += size
                self._remember()
        except NarError:
            raise
        except Exception as error:  # of many kinds, and other ones in each version of the client
            return _instead(self.model, self.revision, error, name)
        return replace(_fetched(self.model, path), downloaded=downloaded, compared=check)

    def _remember(self) -> None:
        """Note in the cache, as the client does, which commit a branch or tag is: all of it is here now."""
        if self.commit is None or self.commit == self.revision:
            return
        ref = _folder(self.model.repo or "") / "refs" / self.revision
        if not ref.is_file() or ref.read_text() != self.commit:
            with suppress(NarError):  # a cache that is read-only serves what it has
                write_atomic(ref, self.commit.encode(), overwrite=True)


def fetch(
    model: Model,
    *,
    revision: str | None = None,
    offline: bool = False,
    progress: bool = False,
    tokenizer: bool = False,
) -> Fetched:
    """The model's files, downloaded where they are not in the cache.

    Args:
        model: from ``registry.resolve``.
        revision: branch, tag or commit; None is ``main``.
        offline: use the cache only, as ``HF_HUB_OFFLINE=1`` does everywhere.
        progress: show bars on stderr, where that is a terminal.
        tokenizer: download nothing from a repository that does not bring the model's tokenizer too.

    Raises:
        UsageError: the tokenizer is wanted, and not there; a revision that cannot be one.
        HubError: what failed and what to do next.
        CheckpointError: a config.json that is not usable.
        NarError: the disk is full and the like.
    """
    found = locate(model, revision=revision, offline=offline, tokenizer=tokenizer)
    check_disk([found])
    return found.fetch(progress=progress)


def locate(
    model: Model,
    *,
    revision: str | None = None,
    offline: bool = False,
    tokenizer: bool = False,
    check: bool = False,
    estimate: bool = False,
) -> Located:
    """Find a model without downloading it; other arguments and errors are those of ``fetch``.

    Args:
        check: ask the Hub also for a pinned commit that is here, so that its files can be compared.
        estimate: take what the registry says of a known model where neither it nor the Hub is there.
    """
    wanted = revision or "main"
    if model.repo is None:
        assert model.path is not None
        return Located(model, wanted, Fetched(complete(model, model.path), model.path))
    if not _is_name(wanted):
        raise UsageError(
            f"{wanted[:60]!r} cannot be a revision.", "Give a branch, a tag or a commit of 40 digits."
        )
    # The client would look up, at the Hub, what kind of program it runs in; narcli asks for what was named.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import constants

    offline = offline or bool(constants.HF_HUB_OFFLINE)
    pinned = _COMMIT.fullmatch(wanted) is not None
    if (offline or (pinned and not check)) and (found := cached(model, wanted)):
        return Located(model, wanted, found, found.commit)
    rough = (
        Located(model, wanted, None, missing=model.size or 0) if estimate and model.name in MODELS else None
    )
    if offline:
        error = _not_here(
            model,
            f"{model.name}{_at(revision)} is not on this machine, and narcli is offline.",
            "Fetch it once without --offline and HF_HUB_OFFLINE.",
        )
        if rough is not None:
            return replace(rough, note=error.message)
        raise error
    try:
        with _online(False):
            commit, license, listed = _list_files(model.repo, wanted)
            files = [listed[name] for name in choose(model, listed)]
            if len({file.name.casefold() for file in files}) < len(files):
                raise _OddAnswerError("it lists several files of one name")
            if len(files) > MAX_FILES:
                raise _OddAnswerError(f"it lists {len(files):,} files of one model")
            if pinned and commit != wanted:
                raise _OddAnswerError(f"asked for commit {wanted}, it tells of {commit}")
            if tokenizer and not any(PurePosixPath(file.name).name == TOKENIZER for file in files):
                raise no_tokenizer(model)
            lacking = [file for file in files if not _is_here(model.repo, file, commit)]
            missing = sum(_left(model.repo, file) for file in lacking)
    except NarError:
        raise
    except Exception as failure:
        try:
            found = _instead(model, wanted, failure)
        except HubError as error:
            if rough is not None:
                return replace(rough, note=error.message)
            raise
        return Located(model, wanted, found, found.commit)
    if not missing and any(file.size is None for file in lacking):
        missing = model.size or 0  # as the models' pages had it
    return Located(model, wanted, None, commit, files, missing, license)


def _instead(model: Model, revision: str, error: Exception, file: str | None = None) -> Fetched:
    """The copy on this machine where the Hub failed; without one, the failure explained."""
    from huggingface_hub.errors import RevisionNotFoundError

    reason = explain(error, model, None if revision == "main" else revision, file)
    if not isinstance(error, RevisionNotFoundError) and (found := cached(model, revision)):
        return replace(found, note=f"{reason.message} This is the copy on this machine.")
    raise reason from error


def cached(model: Model, revision: str | None = None) -> Fetched | None:
    """The model where it is on this machine already; asks nobody.

    Raises:
        CheckpointError: a config.json that is not usable.
    """
    if model.repo is None:
        there = model.path is not None and model.path.exists()
        return Fetched(complete(model, model.path), model.path) if there and model.path else None
    files = chosen(model, revision)
    return _fetched(model, files[-1]) if files else None


def chosen(model: Model, revision: str | None = None) -> list[Path]:
    """The files of the cache that a model is read from, the weights last; [] where these are missing."""
    folder = _snapshot(model.repo or "", revision or "main")
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()] if folder else []
    try:
        return [folder / name for name in choose(model, names)] if folder else []
    except HubError:
        return []


def files_of(found: Fetched) -> list[Path]:
    """The files of a model that is here."""
    folder = found.path if found.path.is_dir() else found.path.parent
    if found.model.repo is not None:
        root = next(p for p in (folder, *folder.parents) if p.parent.name == "snapshots")
        names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
        return [root / name for name in choose(found.model, names)]
    if found.path.is_dir():
        return sorted(path for path in found.path.rglob("*") if path.is_file())
    return [path for path in (folder / CONFIG, found.path) if path.is_file()]


def is_cached(model: Model) -> bool:
    """Whether the cache has anything of a repository."""
    return model.repo is not None and _folder(model.repo).is_dir()


def repositories() -> list[str]:
    """The repositories of models, of any kind, that the cache has anything of."""
    from huggingface_hub import constants

    folders = Path(constants.HF_HUB_CACHE).glob("models--*")
    return sorted(folder.name.removeprefix("models--").replace("--", "/") for folder in folders)


def revisions(repo: str) -> list[str]:
    """What the cache has of a repository: ``main`` where that is here, and the commits that are not."""
    main = _snapshot(repo, "main")
    found = sorted(folder.name for folder in _folder(repo).glob("snapshots/*") if folder != main)
    return ["main"] * (main is not None) + found


def held(model: Model) -> int:
    """Bytes that the cache holds of a repository: all its revisions, and what has arrived of downloads."""
    return sum(_content(model.repo).values()) if model.repo is not None else 0


def weights_of(model: Model) -> set[str]:
    """The weights files that the cache has of a repository, in any revision."""
    snapshots = _folder(model.repo or "").glob("snapshots/*")
    names = [[p.relative_to(folder).as_posix() for p in folder.rglob("*")] for folder in snapshots]
    return {name for each in names for name in weights_in(each)}


def remove(model: Model) -> int:
    """Remove a repository from the cache, all its revisions and converted copies; the bytes freed.

    What repositories share, as the client stores files that came by Xet, stays until the last of them goes.

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
                # Copies of a repository share its commits, and the client would take the first of them.
                replace(info, repos=ours).delete_revisions(*commits).execute()
            if folder.exists():  # parts of downloads, or damage that the client does not touch
                shutil.rmtree(folder)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise NarError(f"Could not remove {folder}: {why}.", "Check whose it is.") from error
    freed = sum(size for path, size in content.items() if not path.exists()) + conversions.forget(copies)
    conversions.prune()  # of other files; this is not what was asked for, and not counted
    return freed


def choose(model: Model, names: Iterable[str]) -> list[str]:
    """The files to fetch of those that a repository has; the weights come last.

    So when the weights are there, all is.

    Raises:
        HubError: the file is not there, or it is not clear which one is meant.
    """
    names = [name for name in names if _is_name(name)]
    if model.kind == "text-encoder":
        return _encoder_files(model, names)
    candidates = weights_in(names)
    if model.kind.endswith("-tokenizer") and TOKENIZER in names:
        candidates = [TOKENIZER]
    if model.file is not None:
        if model.file not in names:
            has = (
                f"It has {_some(candidates)}." if candidates else f"It has no weights file. See {model.page}"
            )
            raise HubError(f"{model.repo} has no file {model.file}.", has)
        candidates = [model.file]
    if len(candidates) != 1:
        if not candidates:
            raise HubError(
                f"{model.repo} has no weights file (.safetensors, .pt, .pth).", f"See {model.page}"
            )
        raise HubError(
            f"{model.repo} has several weights files: {_some(candidates)}.",
            f"Name one: --model {model.repo}/{candidates[0]}",
        )
    weights = PurePosixPath(candidates[0])
    companions = [CONFIG] + ([TOKENIZER] if weights.name == MODEL else [])
    beside = [str(weights.with_name(name)) for name in companions]
    encoder = str(weights.with_name(TEXT_ENCODER)) + "/"
    beside += sorted(name for name in names if weights.name == MODEL and name.startswith(encoder))
    return [name for name in beside if name in names] + [str(weights)]


#: Of a text encoder as ``transformers`` saves it, besides the weights.
ENCODER_FILES = (
    CONFIG,
    *("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json"),
    "spiece.model",
)


def _encoder_files(model: Model, names: list[str]) -> list[str]:
    """The files of a text encoder, safetensors before pickles, all parts of them or none."""
    small = [name for name in ENCODER_FILES if name in names]
    for stem, ending in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        if stem + ending in names:
            return [*small, stem + ending]
        parts = sorted(name for name in names if re.fullmatch(rf"{stem}-\d{{5}}-of-\d{{5}}{ending}", name))
        index = f"{stem}{ending}.index.json"
        if parts and index in names and len(parts) == int(parts[0].removesuffix(ending)[-5:]):
            return [*small, index, *parts]
    raise HubError(f"{model.name} has no whole weights of a text encoder.", f"See {model.page}")


def explain(error: Exception, model: Model, revision: str | None = None, file: str | None = None) -> NarError:
    """What a failure of the client means, and what to do next."""
    from huggingface_hub import constants, errors

    repo, page = model.repo, model.page
    login = (
        "Log in with `hf auth login`, or set HF_TOKEN to a token of https://huggingface.co/settings/tokens"
    )
    cause = error.__cause__ or error.__context__
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(cause, Exception):
        return explain(cause, model, revision, file)  # the client's "not in the cache either"
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    headers = getattr(response, "headers", {})
    if isinstance(error, errors.GatedRepoError):
        return HubError(
            f"{repo} is gated: its owners ask you to accept their terms.", f"Visit {page}. {login}."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{repo} has no revision {revision or 'main'!r}.", f"See {page}/commits")
    if isinstance(error, errors.EntryNotFoundError) or (status == 404 and file):
        return HubError(f"{repo} has no file {file}{_at(revision)}.", f"See {page}/tree/{revision or 'main'}")
    # Without a token the Hub answers 401 for what does not exist, too.
    unknown = status == 401 and "Invalid credentials" not in headers.get("x-error-message", "")
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404 or unknown:
        return _not_here(
            model, f"The Hub has no repository {repo}, or it is private.", f"See {page}. {login}."
        )
    if status == 401:
        return HubError("The Hub did not accept your token.", f"{login}.")
    if status == 403:
        return HubError(f"The Hub gives no access to {repo}.", f"Ask for it on {page}. {login}.")
    if status == 429:
        wait = str(headers.get("retry-after", ""))
        when = f"in {wait} seconds" if wait.isdecimal() and len(wait) < 6 else "in a few minutes"
        return HubError("The Hub is asked too often from here.", f"Try again {when}. {login}.")
    if status is not None:
        return HubError(
            f"The Hub has a problem (status {status}).", "Try again later; what is on disk works."
        )
    if "Consistency check failed" in str(error) or "should be of size" in str(error):
        return HubError(f"{file} of {repo} arrived with the wrong length.", "Try again; check your proxy.")
    if isinstance(error, OSError) and error.errno and (error.filename or error.errno in _DISK):
        why = (error.strerror or str(error)).lower() + (f": {error.filename}" if error.filename else "")
        return NarError(
            f"Could not write to the Hub's cache: {why}.",
            "Free some space, or set HF_HOME to a folder on another disk.",
        )
    if isinstance(error, ValueError | TypeError | KeyError | RecursionError):
        why = f": {error}" if isinstance(error, _OddAnswerError) else ""
        return HubError(
            f"{constants.ENDPOINT} does not answer as the Hub does{why}.", "Check HF_ENDPOINT and your proxy."
        )
    why = f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else 'no answer'}"
    return _not_here(
        model,
        f"{constants.ENDPOINT} could not be reached ({why}).",
        "Check the connection, or HTTPS_PROXY. `narcli models list` shows what is on this machine.",
    )


def _not_here(model: Model, message: str, hint: str) -> HubError:
    """The error of a model that is nowhere; a name that is no row may have been meant for a path."""
    if model.name not in MODELS:
        message = f"There is no file or folder {model.name} here. {message}"
        hint = meant(model.name) + hint
    return HubError(f"{message} {model.origin}".strip(), hint)


#: What a disk says where no file is named.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


# --- helpers -------------------------------------------------------------------------------------


class _OddAnswerError(ValueError):
    """An answer that the Hub would not give; says in words which."""


def _is_name(name: str) -> bool:
    """Whether a file or revision of this name stays in its folder of the cache, on every system."""
    return (
        name.isprintable()
        and not set(name) & set('\\:*?"<>|')
        and len(name) <= MAX_PATH
        and all(
            part and part[0] != "." and part[-1] not in ". " and len(part.encode()) <= MAX_NAME
            for part in name.split("/")
        )
    )


def _list_files(repo: str, revision: str) -> tuple[str, str | None, dict[str, File]]:
    """The commit of a revision, the license, and the files by name; others than ``_is_name`` are left out.

    The client's own ``model_info`` would read an answer of any length, and believe it.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        get_session,
        hf_raise_for_status,
    )

    url = f"{constants.ENDPOINT}/api/models/{repo}/revision/{quote(revision, safe='')}"
    timeout = constants.HF_HUB_ETAG_TIMEOUT  # 10 seconds, or what the environment says
    answer = bytearray()
    with get_session().stream(
        "GET", url, params={"blobs": True}, headers=build_hf_headers(), timeout=timeout
    ) as response:
        hf_raise_for_status(response)
        for chunk in response.iter_bytes(2**20):
            answer += chunk
            if len(answer) > MAX_LISTING:
                raise _OddAnswerError(f"its list of files is longer than {MAX_LISTING:,} bytes")
    about = json.loads(answer)
    if not isinstance(about, dict) or not isinstance(about.get("siblings"), list):
        raise _OddAnswerError("its list of files is none")
    commit, card = about.get("sha"), about.get("cardData")
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise _OddAnswerError(f"it names the commit {_short(commit)}, expected 40 digits")
    license = card.get("license") if isinstance(card, dict) else None
    files = [_read_entry(entry) for entry in about["siblings"]]
    return (
        commit,
        license[:100] if isinstance(license, str) else None,
        {file.name: file for file in files if _is_name(file.name)},
    )


def _read_entry(entry: object) -> File:
    """A file as the list of a repository tells of it."""
    if not isinstance(entry, dict) or not isinstance(name := entry.get("rfilename"), str):
        raise _OddAnswerError("its list of files holds something else")
    size, large = entry.get("size"), entry.get("lfs")
    hash = large.get("sha256") if isinstance(large, dict) else entry.get("blobId")
    if size is not None and (type(size) is not int or not 0 <= size < 2**63):
        raise _OddAnswerError(f"it gives {_short(name)} the size {_short(size)}")
    if hash is not None and (not isinstance(hash, str) or not _HASH.fullmatch(hash)):
        raise _OddAnswerError(f"it gives {_short(name)} the hash {_short(hash)}")
    return File(name, size, hash)


def _short(value: object) -> str:
    return repr(value)[:80]


def _is_here(repo: str, file: File, commit: str) -> bool:
    """Whether the cache has a file of a commit, of the right size, perhaps from an older commit."""
    pointer, blob = _pointer(repo, file, commit), _blob(repo, file)
    path = pointer if pointer.exists() else blob
    return path is not None and path.is_file() and _damage(path, file, check=False) is None


def _left(repo: str, file: File) -> int:
    """Bytes still to download of a file that is not here, perhaps after a part of it."""
    blob = _blob(repo, file)
    done = _part(blob).stat().st_size if blob is not None and _part(blob).is_file() else 0
    return max(0, (file.size or 0) - done)


def _download(
    repo: str, file: File, commit: str, *, check: bool, tell: Callable[[str], None]
) -> tuple[Path, int]:
    """One file of the cache, fetched unless it is there and whole; and how many bytes came."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    pointer = _pointer(repo, file, commit)
    if pointer.is_file() and _damage(pointer, file, check) is None:
        return pointer, 0
    # Asked once, a Hub that refuses says so at once; downloads of the client ask again for minutes.
    url = hf_hub_url(repo, file.name, revision=commit)
    told = get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    if told.commit_hash not in (None, commit):
        raise _OddAnswerError(f"{file.name} is of commit {_short(told.commit_hash)}, not {commit}")
    if told.etag is not None and file.hash is not None and told.etag != file.hash:
        raise _OddAnswerError(f"{file.name} has the ETag {_short(told.etag)}, listed is {file.hash}")
    file = replace(
        file,
        hash=file.hash or told.etag,
        size=told.size if file.size is None else file.size,
    )
    if not _HASH.fullmatch(file.hash or "") or file.size is None:
        raise _OddAnswerError(f"{file.name} has the ETag {_short(file.hash)} and {file.size} bytes")
    return pointer, _download_blob(repo, file, url, pointer, tell)


class _Limited:
    """A file that takes no more bytes than listed: a server may send more, packed or for ever."""

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
    """Bring a file into the cache, going on where an interrupted download stopped; the bytes that came.

    The client itself would start again, and store the file under any name that the server tells. What has
    arrived is kept under a name of its own, which `hf cache prune` knows, and gets the final one when the
    hash is right. A damaged file is replaced, whichever commit brought it.
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
                    opened.truncate(0)  # nothing can be added to what has arrived
                raise
        if why := _damage(part, file, check=True):
            part.unlink()
            raise _arrived_wrong(repo, file, why)
        part.replace(blob)
        size = blob.stat().st_size - began
        _link(pointer, blob)
        return size


def _link(pointer: Path, blob: Path) -> None:
    """Let a file of a commit be the blob, as the client does it; a copy where there are no links."""
    pointer.unlink(missing_ok=True)
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except FileExistsError:  # another process, for the same file
        pass
    except (OSError, NotImplementedError):
        shutil.copyfile(blob, pointer)


@contextmanager
def _locked(lock: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Hold the client's own lock, so that it and other narclis wait; ``wait`` is called where we have to."""
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    with ExitStack() as held:
        try:
            held.enter_context(WeakFileLock(lock, timeout=0.5))
        except Timeout:
            wait()
            held.enter_context(WeakFileLock(lock))
        yield


def _arrived_wrong(repo: str, file: File, why: str) -> HubError:
    return HubError(
        f"{file.name} of {repo} did not arrive as the Hub lists it: {why}.",
        "It was removed. Try again; check your proxy.",
    )


#: Hexadecimal digits of the two kinds of hashes that the Hub lists.
SHA256, GIT_SHA1 = 64, 40
MAX_LISTING = 2**25  # bytes of the list of a repository
MAX_FILES = 1000  # of a model
MAX_PATH = 500  # characters of the name of a file in a repository
_COMMIT = re.compile("[0-9a-f]{40}")
_HASH = re.compile(f"[0-9a-f]{{{SHA256}}}|[0-9a-f]{{{GIT_SHA1}}}")


def _damage(path: Path, file: File, check: bool) -> str | None:
    """How a file differs from what the Hub lists; hashed only to ``check``. None if it does not."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"it has {size:,} bytes, the Hub says {file.size:,}"
    if check and file.hash is not None and (found := hash_file(path, file.hash)) not in (None, file.hash):
        return f"its hash is {found}, the Hub says {file.hash}"
    return None


def hash_file(path: Path, like: str = "0" * SHA256) -> str | None:
    """SHA-256 of a file, or the kind of hash that ``like`` is; None where that is of neither kind."""
    if not _HASH.fullmatch(like):
        return None
    found = sha256() if len(like) == SHA256 else sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as opened:
        while chunk := opened.read(2**20):
            found.update(chunk)
    return found.hexdigest()


def stored_hash(path: Path) -> str | None:
    """The hash that a file of the Hub's cache had when it arrived: the name of what it links to."""
    name = _first_link(path).name
    return name if path.is_symlink() and _HASH.fullmatch(name) else None


def is_damaged(path: Path) -> bool:
    """Whether a file of the Hub's cache is another than the one that arrived."""
    expected = stored_hash(path)
    return expected is not None and hash_file(path, expected) != expected


def _first_link(path: Path) -> Path:
    """What a file of a snapshot links to: the repository's own entry, which may be a link to a shared one."""
    return path.parent / path.readlink() if path.is_symlink() else path


def check_disk(parts: Sequence[Located]) -> None:
    """Refuse downloads that the disk of the Hub's cache cannot hold.

    Raises:
        NarError: how much is free and how much is needed, and smaller models of the kind that fit.
    """
    total, (folder, free) = sum(part.missing for part in parts), free_disk()
    if total <= free:
        return
    largest = max(parts, key=lambda part: part.missing)
    fits = smaller_models(
        largest.model, lambda row: total - largest.missing + (0 if row.path else row.size or total) <= free
    )
    names = ", ".join(part.model.name for part in parts if part.missing)
    raise NarError(
        f"There are {total / 1e9:,.1f} GB to download ({names}), and the disk of {folder} "
        f"has {free / 1e9:,.1f} GB free.",
        "Free some space, or set HF_HOME to a folder on another disk"
        + (f"; smaller models are {', '.join(fits)}." if fits else "."),
    )


def free_disk() -> tuple[Path, int]:
    """The folder of the Hub's cache, and the bytes that its disk has free."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    existing = next(parent for parent in (folder, *folder.parents, Path()) if parent.exists())
    return folder, shutil.disk_usage(existing).free


def _folder(repo: str) -> Path:
    """Of a repository in the cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def _content(repo: str) -> dict[Path, int]:
    """The files in which the cache keeps what a repository has, with their sizes."""
    paths = [path for part in ("blobs", "snapshots") for path in (_folder(repo) / part).rglob("*")]
    return {path.resolve(): path.stat().st_size for path in paths if path.is_file()}


def _pointer(repo: str, file: File, commit: str) -> Path:
    """Where the cache has a file of a commit."""
    return _folder(repo) / "snapshots" / commit / file.name


def _blob(repo: str, file: File) -> Path | None:
    """Where the cache keeps the content of a file; None where its hash is not known."""
    known = _HASH.fullmatch(file.hash or "")
    return _folder(repo) / "blobs" / known[0] if known else None


def _part(blob: Path) -> Path:
    """Where what has arrived of a large file is kept."""
    return blob.with_name(f"{blob.name}.narcli.incomplete")


def _fetched(model: Model, path: Path) -> Fetched:
    if model.kind == "text-encoder":
        return Fetched(model, path.parent, _commit(path))
    config = path.with_name(CONFIG)
    if path.name in (MODEL, TOKENIZER) and config.is_file() and read_config(config).kind:
        return Fetched(complete(model, path.parent), path.parent, _commit(path))
    return Fetched(complete(model, path), path, _commit(path))


def _snapshot(repo: str, revision: str) -> Path | None:
    """The folder of the cache with the files of a revision."""
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


def _at(revision: str | None) -> str:
    return f" at revision {revision}" if revision else ""


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@contextmanager
def _quiet(progress: bool) -> Iterator[None]:
    """No chatter of the client, and bars only where wanted; as it was afterwards."""
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
    """Quiet requests; what a server sends along with an error, of any length, is not read."""
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
