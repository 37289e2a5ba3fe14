"""From a model to its files on this machine, through ``huggingface_hub`` and its cache.

``HF_HOME``, ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` mean what they mean everywhere. Online, one
short request tells the commit, the files and their sizes; a Hub that cannot be reached, or refuses, is
no error while the files are in the cache. Offline, or for a pinned commit that is on disk, nothing is asked.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from .configs import CONFIG, MODEL, TEXT_ENCODER, TOKENIZER, read_config, weights_in
from .errors import HubError, NarError
from .registry import Model, complete, no_tokenizer


@dataclass(frozen=True)
class Fetched:
    """A model on this machine.

    Args:
        model: what was asked for, with what its own config.json says.
        path: the weights file or the narcli folder.
        commit: of the repository; None for local and built-in models.
        note: what a person should know about where it comes from, or "".
    """

    model: Model
    path: Path
    commit: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Located:
    """A model that was found, here or at the Hub, and what there is still to download.

    Args:
        model: what was asked for.
        revision: branch, tag or commit.
        here: the model, where it is on this machine and the Hub does not have to be asked; else None.
        commit: of the repository; None for local and built-in models.
        files: of the repository, the weights last, and their sizes in bytes where the Hub tells them.
        missing: bytes to download, as far as they are told.
    """

    model: Model
    revision: str
    here: Fetched | None
    commit: str | None = None
    files: Mapping[str, int | None] = field(default_factory=dict)
    missing: int = 0

    def fetch(self, *, progress: bool = False) -> Fetched:
        """Download what is missing; errors are those of the function ``fetch``."""
        if self.here is not None:
            return self.here
        assert self.model.repo is not None
        name: str | None = None
        try:
            with _quiet(progress):
                for name, size in self.files.items():
                    path = _download(self.model.repo, name, self.revision, self.commit, size)
        except NarError:
            raise
        except Exception as error:  # of many kinds, and other ones in each version of the client
            return _instead(self.model, self.revision, error, name)
        return _fetched(self.model, path)


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
        UsageError: the tokenizer is wanted, and not there.
        HubError: what failed and what to do next.
        CheckpointError: a config.json that is not usable.
        NarError: the disk is full and the like.
    """
    found = locate(model, revision=revision, offline=offline, tokenizer=tokenizer)
    return found.fetch(progress=progress)


def locate(
    model: Model, *, revision: str | None = None, offline: bool = False, tokenizer: bool = False
) -> Located:
    """Find a model without downloading it; arguments and errors are those of ``fetch``."""
    wanted = revision or "main"
    if model.repo is None:
        assert model.path is not None
        return Located(model, wanted, Fetched(complete(model, model.path), model.path))
    # The client would look up, at the Hub, what kind of program it runs in; narcli asks for what was named.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import constants

    offline = offline or bool(constants.HF_HUB_OFFLINE)
    pinned = re.fullmatch("[0-9a-f]{40}", wanted) is not None
    if (offline or pinned) and (found := cached(model, wanted)):
        return Located(model, wanted, found, found.commit)
    if offline:
        raise HubError(
            f"{model.name}{_at(revision)} is not on this machine, and narcli is offline.",
            "Fetch it once without --offline and HF_HUB_OFFLINE.",
        )
    try:
        with _quiet(False):
            commit, listed = _list_files(model.repo, wanted)
            files = choose(model, listed)
            if tokenizer and not any(PurePosixPath(name).name == TOKENIZER for name in files):
                raise no_tokenizer(model)
            missing = [name for name in files if not _is_here(model.repo, name, commit, listed[name][1])]
    except NarError:
        raise
    except Exception as error:
        found = _instead(model, wanted, error)
        return Located(model, wanted, found, found.commit)
    sizes = {name: listed[name][0] for name in files}
    told = sum(sizes[name] or 0 for name in missing)
    return Located(model, wanted, None, commit, sizes, told or (model.size or 0) * bool(missing))


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
    folder = _snapshot(model.repo, revision or "main")
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()] if folder else []
    try:
        return _fetched(model, folder / choose(model, names)[-1]) if folder else None
    except HubError:
        return None


def choose(model: Model, names: Iterable[str]) -> list[str]:
    """The files to fetch of those that a repository has; the weights come last.

    So when the weights are there, all is.

    Raises:
        HubError: the file is not there, or it is not clear which one is meant.
    """
    names = [name for name in names if ".." not in name and not name.startswith("/")]
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
        return HubError(f"The Hub has no repository {repo}, or it is private.", f"See {page}. {login}.")
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
    if isinstance(error, ValueError | TypeError | KeyError):
        return HubError(
            f"{constants.ENDPOINT} does not answer as the Hub does.", "Check HF_ENDPOINT and your proxy."
        )
    why = f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else 'no answer'}"
    return HubError(
        f"{constants.ENDPOINT} could not be reached ({why}).",
        "Check the connection, or HTTPS_PROXY. `narcli models list` shows what is on this machine.",
    )


#: What a disk says where no file is named.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


# --- helpers -------------------------------------------------------------------------------------


def _list_files(repo: str, revision: str) -> tuple[str | None, dict[str, tuple[int | None, str | None]]]:
    """The commit of a revision, and of each file the size in bytes and the blob, where the Hub tells them."""
    from huggingface_hub import HfApi, constants

    timeout = constants.HF_HUB_ETAG_TIMEOUT  # 10 seconds, or what the environment says
    info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=timeout)
    return info.sha, {
        file.rfilename: (file.size, file.lfs.sha256 if file.lfs else file.blob_id)
        for file in info.siblings or []
    }


def _is_here(repo: str, name: str, commit: str | None, blob: str | None) -> bool:
    """Whether the cache has a file of a commit, perhaps from an older commit."""
    from huggingface_hub import constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(repo, name, revision=commit), str):
        return True
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "blobs"
    return re.fullmatch("[0-9a-f]{40,64}", blob or "") is not None and (folder / str(blob)).is_file()


def _download(repo: str, name: str, revision: str, commit: str | None, size: int | None) -> Path:
    """One file of the cache, fetched unless it is there, whole and current."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    found = try_to_load_from_cache(repo, name, revision=revision)
    path = Path(found) if isinstance(found, str) else None
    damaged = path is not None and size is not None and path.stat().st_size != size
    if path is None or damaged or _commit(path) != commit:
        path = Path(hf_hub_download(repo, name, revision=revision, force_download=damaged))
    if size is not None and path.stat().st_size != size:
        raise HubError(
            f"{name} of {repo} has {path.stat().st_size:,} bytes, the Hub says {size:,}.",
            f"Remove {path} and try again.",
        )
    return path


def _fetched(model: Model, path: Path) -> Fetched:
    if model.kind == "text-encoder":
        return Fetched(model, path.parent, _commit(path))
    config = path.with_name(CONFIG)
    if path.name in (MODEL, TOKENIZER) and config.is_file() and read_config(config).kind:
        return Fetched(complete(model, path.parent), path.parent, _commit(path))
    return Fetched(complete(model, path), path, _commit(path))


def _snapshot(repo: str, revision: str) -> Path | None:
    """The folder of the cache with the files of a revision."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    try:
        commit = (folder / "refs" / revision).read_text().strip()
    except (OSError, ValueError):
        commit = revision
    snapshot = folder / "snapshots" / commit
    return snapshot if re.fullmatch("[0-9a-f]{40}", commit) and snapshot.is_dir() else None


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
