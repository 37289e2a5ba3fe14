"""From a model to its files on this machine, through ``huggingface_hub`` and its cache.

``HF_HOME``, ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` have their usual meaning. Online, one short
request gives the commit, the files and their sizes. If the Hub fails or refuses, files in the cache are used.
Offline, or for a pinned commit on disk, there is no request.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from urllib.parse import quote

from ..checkpoints.config import TOKENIZER
from ..errors import HubError, NarError, UsageError
from ..media.atomic import write_atomic
from .cache import (
    _COMMIT,
    _HASH,
    File,
    _folder,
    _is_here,
    _is_name,
    _left,
    _OddAnswerError,
    _online,
    _short,
    free_disk,
)
from .catalog import MODELS, Model, smaller_models
from .download import _download
from .failures import _at, _not_here, explain
from .resolve import complete, no_tokenizer
from .selection import Fetched, _fetched, cached, choose


@dataclass(frozen=True)
class Located:
    """A model found here or at the Hub, and its missing bytes.

    Args:
        model: the requested model.
        revision: branch, tag or commit.
        here: the model on this machine, if no request is needed; else None.
        commit: of the repository; None for local and built-in models.
        files: of the repository, the weights last.
        missing: bytes to download, as far as they are listed.
        license: the repository's; None without a request or a license.
        note: reason for an estimated size, or "".
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
        """Cached files of exactly this commit; None if any is missing."""
        return self.here or cached(self.model, self.commit or self.revision)

    def fetch(
        self,
        *,
        progress: bool = False,
        check: bool = False,
        tell: Callable[[str], None] = lambda note: None,
    ) -> Fetched:
        """Download missing files; errors are those of the function ``fetch``.

        Args:
            progress: show bars on stderr, where that is a terminal.
            check: also hash local files, and download damaged ones again.
            tell: called with a sentence about anything else that takes time.
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
        except Exception as error:  # kinds of errors differ between versions of the client
            return _instead(self.model, self.revision, error, name)
        return replace(_fetched(self.model, path), downloaded=downloaded, compared=check)

    def _remember(self) -> None:
        """Store in the cache, as the client does, the commit of a branch or tag that is complete now."""
        if self.commit is None or self.commit == self.revision:
            return
        ref = _folder(self.model.repo or "") / "refs" / self.revision
        if not ref.is_file() or ref.read_text() != self.commit:
            with suppress(NarError):  # a read-only cache still serves its files
                write_atomic(ref, self.commit.encode(), overwrite=True)


def fetch(
    model: Model,
    *,
    revision: str | None = None,
    offline: bool = False,
    progress: bool = False,
    tokenizer: bool = False,
) -> Fetched:
    """Return the model's files; download those missing in the cache.

    Args:
        model: from ``resolve``.
        revision: branch, tag or commit; None is ``main``.
        offline: use the cache only, as ``HF_HUB_OFFLINE=1`` does everywhere.
        progress: show bars on stderr, where that is a terminal.
        tokenizer: download nothing from a repository without the model's tokenizer.

    Raises:
        UsageError: the required tokenizer is missing, or an invalid revision.
        HubError: the network or the Hub failed.
        CheckpointError: an unusable config.json.
        NarError: the cache cannot be written, for example on a full disk.
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
        check: ask the Hub even for a pinned commit on disk, so that its files can be compared.
        estimate: use the catalog's size of a model that neither the cache nor the Hub has.
    """
    wanted = revision or "main"
    if model.repo is None:
        assert model.path is not None
        return Located(model, wanted, Fetched(complete(model, model.path), model.path))
    if not _is_name(wanted):
        raise UsageError(
            f"{wanted[:60]!r} cannot be a revision.", "Give a branch, a tag or a commit of 40 digits."
        )
    # Keeps the client from requests of its own about the kind of program.
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
            "Fetch it once without `offline` and HF_HUB_OFFLINE.",
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
        missing = model.size or 0  # from the models' pages
    return Located(model, wanted, None, commit, files, missing, license)


def _instead(model: Model, revision: str, error: Exception, file: str | None = None) -> Fetched:
    """Return the copy on this machine if the Hub failed.

    Raises:
        HubError, UsageError, NarError: there is no copy; explains the failure.
    """
    from huggingface_hub.errors import RevisionNotFoundError

    reason = explain(error, model, None if revision == "main" else revision, file)
    if not isinstance(error, RevisionNotFoundError) and (found := cached(model, revision)):
        return replace(found, note=f"{reason.message} This is the copy on this machine.")
    raise reason from error


def _list_files(repo: str, revision: str) -> tuple[str, str | None, dict[str, File]]:
    """List a revision: its commit, the license, and files by name, without names that ``_is_name`` rejects.

    The client's own ``model_info`` would read an answer of any length, unchecked.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        get_session,
        hf_raise_for_status,
    )

    url = f"{constants.ENDPOINT}/api/models/{repo}/revision/{quote(revision, safe='')}"
    timeout = constants.HF_HUB_ETAG_TIMEOUT  # 10 seconds, unless the environment sets another
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
    """Parse an entry of a repository's listing."""
    if not isinstance(entry, dict) or not isinstance(name := entry.get("rfilename"), str):
        raise _OddAnswerError("its list of files holds something else")
    size, large = entry.get("size"), entry.get("lfs")
    hash = large.get("sha256") if isinstance(large, dict) else entry.get("blobId")
    if size is not None and (type(size) is not int or not 0 <= size < 2**63):
        raise _OddAnswerError(f"it gives {_short(name)} the size {_short(size)}")
    if hash is not None and (not isinstance(hash, str) or not _HASH.fullmatch(hash)):
        raise _OddAnswerError(f"it gives {_short(name)} the hash {_short(hash)}")
    return File(name, size, hash)


MAX_LISTING = 2**25  # bytes of the list of a repository


MAX_FILES = 1000  # of a model


def check_disk(parts: Sequence[Located]) -> None:
    """Refuse downloads that the disk of the Hub's cache cannot hold.

    Raises:
        NarError: the disk is too small; names the bytes and smaller models of the kind that fit.
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
