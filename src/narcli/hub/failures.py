"""Errors of the Hub and its client, explained."""

from __future__ import annotations

import errno

from ..errors import HubError, NarError
from .cache import _OddAnswerError
from .catalog import MODELS, Model
from .resolve import meant


def explain(error: Exception, model: Model, revision: str | None = None, file: str | None = None) -> NarError:
    """Turn a failure of the client into an error with a next step."""
    from huggingface_hub import constants, errors

    repo, page = model.repo, model.page
    login = (
        "Log in with `hf auth login`, or set HF_TOKEN to a token of https://huggingface.co/settings/tokens"
    )
    cause = error.__cause__ or error.__context__
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(cause, Exception):
        return explain(cause, model, revision, file)  # hidden behind the client's "not in the cache either"
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
    # Without a token the Hub answers 401 also for missing repositories.
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
    """Error for a model that is nowhere; a name that is no row may be meant as a path."""
    if model.name not in MODELS:
        message = f"There is no file or folder {model.name} here. {message}"
        hint = meant(model.name) + hint
    return HubError(f"{message} {model.origin}".strip(), hint)


#: System errors that name no file.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


def _at(revision: str | None) -> str:
    return f" at revision {revision}" if revision else ""
