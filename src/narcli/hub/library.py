"""Models: listed, described, fetched, checked, removed and converted. No torch at import.

``narcli models`` prints what these functions return.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints import conversions
from ..errors import CheckpointError, HubError, NarError, UsageError
from . import cache
from .catalog import MODELS, Model
from .inventory import Inventory, inventory
from .removal import Removal, plan_removal, remove
from .resolve import companions, lender, resolve
from .selection import Fetched, cached, files_of

if TYPE_CHECKING:
    from ..order import Order
    from .locate import Located
    from .sizes import Networks

__all__ = [
    "Checked", "CheckedFile", "Description", "Entry", "Inventory", "Removal", "convert", "describe",
    "inventory", "list_models", "plan_removal", "pull", "remove", "verify",
]  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A model, and its files on this machine.

    Args:
        model: its row in the catalog, or a row made from its name.
        found: its files on this machine, or None.
        note: a remark, or the reason why its files cannot be used.
    """

    model: Model
    found: Fetched | None
    note: str = ""

    @property
    def bytes(self) -> int | None:
        """Bytes on this machine, else bytes to fetch; None where they are not known."""
        if self.found is None:
            return self.model.size
        path = self.found.path
        files = [path] if path.is_file() else path.rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())

    @property
    def bytes_converted(self) -> int:
        """Bytes of converted copies of its files."""
        return conversions.held(conversions.copies(self.found.path)) if self.found else 0

    @property
    def bytes_to_fetch(self) -> int | None:
        """Bytes to download; None where they are not known."""
        return 0 if self.found or self.model.repo is None else self.model.size

    @property
    def commit(self) -> str | None:
        """Commit of its repository; None of a local model, and where nothing tells it."""
        return self.found.commit if self.found else None

    @property
    def license(self) -> str | None:
        """Name of its license; None where nothing tells it."""
        return self.model.license


def list_models() -> list[Entry]:
    """List the models of the catalog; the note of a damaged one is its error."""
    return [_entry(model) for model in MODELS.values()]


def _entry(model: Model) -> Entry:
    try:
        return Entry(model, cached(model), model.note)
    except NarError as error:  # one damaged model must not hide the others
        return Entry(model, None, error.message)


@dataclass(frozen=True, kw_only=True)
class Description(Entry):
    """A model with its sizes, from its files, the Hub or the catalog.

    Args:
        networks: sizes of its networks, as far as they are known.
        revision: of its repository; None of a local model.
        located: answer of the Hub, of a model that is not here; None where it was not asked.
        warning: reason why the Hub told nothing, or "".
    """

    networks: Networks
    revision: str | None
    located: Located | None
    warning: str

    @property
    def files(self) -> Sequence[cache.File]:
        """Files by their paths or, of a model that is not here, by their names in the repository."""
        if self.found is not None:
            return [cache.File(str(path), path.stat().st_size) for path in files_of(self.found)]
        return self.located.files if self.located else ()

    @property
    def bytes_to_fetch(self) -> int | None:
        """Bytes to download; None where they are not known."""
        return self.located.missing if self.located else super().bytes_to_fetch

    @property
    def commit(self) -> str | None:
        """Commit of its repository; None of a local model, and where nothing tells it."""
        return self.located.commit if self.located else super().commit

    @property
    def license(self) -> str | None:
        """Name of its license; None where nothing tells it."""
        return self.model.license or (self.located.license if self.located else None)

    @property
    def order(self) -> Order | None:
        """Decoding order of its transformer; None without one, or where its sizes are not known."""
        return self.networks.transformer.decoding_order if self.networks.transformer else None


def describe(name: str | Path, *, revision: str | None = None, offline: bool = False) -> Description:
    """Find a model and read its sizes, without downloading it.

    Args:
        name: as for ``resolve``.
        revision: branch, tag or commit of its repository; None is ``main``.
        offline: ask the Hub for nothing. Otherwise it is asked for a model that is not here.

    Raises:
        UsageError: nothing of that name, or a revision of a local model.
        HubError: the model is neither here nor in the catalog, and the Hub does not tell of it.
        CheckpointError: files that cannot be used.
    """
    from ..checkpoints.load import remark
    from .check import told
    from .locate import locate
    from .sizes import networks_of

    model = resolve(name, None)
    if revision is not None and model.repo is None:
        raise UsageError(f"`revision` is for models of the Hub; {model.name} is on this machine.")
    found, located, warning = cached(model, revision), None, ""
    if found is None:
        try:
            located = locate(model, revision=revision, offline=offline)
        except HubError as error:
            if model.name not in MODELS:
                raise
            warning = error.message
        else:
            found = located.here
    if found is not None:
        found = replace(found, model=told(found.model, found.path))
    return Description(
        found.model if found else model,
        found,
        "; ".join(filter(None, [model.note, remark(found.path) if found else ""])),
        networks=networks_of(found or located or model),
        revision=revision or ("main" if model.repo else None),
        located=None if found else located,
        warning=warning,
    )


@dataclass(frozen=True)
class CheckedFile:
    """A file on this machine with its hash.

    Args:
        path: the file.
        bytes: its size.
        hash: SHA-256 or, of a small file of the Hub, git's SHA-1.
        expected: hash of the download; None of a file that was not downloaded.
    """

    path: Path
    bytes: int
    hash: str | None
    expected: str | None

    @property
    def ok(self) -> bool:
        """Tell if the file does not differ from the download."""
        return self.expected in (None, self.hash)


@dataclass(frozen=True)
class Checked:
    """A model that was checked.

    Args:
        model: the model.
        revision: of its repository; None is ``main``.
        found: its files on this machine; None where a damaged config.json hides them.
        files: with their hashes.
        error: the damage, in a sentence; None of a whole model.
    """

    model: Model
    revision: str | None
    found: Fetched | None
    files: Sequence[CheckedFile]
    error: str | None = None

    @property
    def remedy(self) -> str:
        """Tell how to mend a damaged model."""
        name, known = self.model.name, self.model.name in MODELS
        if self.model.repo is None:
            return "Install narcli again." if known else "Get it again, or make it anew."
        if not known and self.model.kind != "image":  # a pull would take it for an image model
            return f"Remove it, to fetch it again: narcli models rm {name}"
        again = "narcli models pull {} --revision {}" if self.revision else "narcli models pull {}"
        return "Fetch again: " + again.format(name, self.revision)


def _check_files(found: Fetched) -> list[CheckedFile]:
    """Hash the files of a model; those that the download hashed just now are not read again."""
    files = []
    for path in files_of(found):
        expected = cache.stored_hash(path)
        hashed = (found.compared and expected) or cache.hash_file(path, expected or "0" * 64)
        files.append(CheckedFile(path, path.stat().st_size, hashed, expected))
    return files


def pull(
    names: Iterable[str],
    *,
    revision: str | None = None,
    progress: bool = False,
    tell: Callable[[str], None] = lambda note: None,
    warn: Callable[[str], object] = warnings.warn,
) -> Iterator[Checked]:
    """Download models with their tokenizers and text encoders, check their hashes, and yield each.

    Args:
        names: as for ``resolve``.
        revision: branch, tag or commit, of a single model.
        progress: show bars on stderr, where that is a terminal.
        tell: is told, in a sentence, of a wait.
        warn: is told, in a sentence, of a copy that serves because the Hub does not.

    Raises:
        UsageError: nothing of a name, or a revision of several models or of a local one.
        HubError: a download that failed.
        CheckpointError: a damaged file that the Hub could not replace.
        NarError: the disk is full and the like.
    """
    from .locate import check_disk, locate

    models = {model.name: model for model in (resolve(name, None) for name in names)}
    if revision is not None and (len(models) > 1 or any(model.repo is None for model in models.values())):
        raise UsageError(f"`revision={revision[:60]}` goes with one model of the Hub.", "Pull it by itself.")
    wanted = {part.name: part for model in models.values() for part in (model, *companions(model))}
    parts = [
        locate(part, revision=revision if name in models else None, check=True)
        for name, part in wanted.items()
    ]
    check_disk(parts)
    for part in parts:
        found = part.fetch(progress=progress, check=True, tell=tell)
        if found.note:
            warn(found.note)
        files = _check_files(found)
        if damaged := [file.path for file in files if not file.ok]:
            raise CheckpointError(
                f"{damaged[0]} is damaged, and the Hub could not be asked for it.",
                "Try again when it can be reached.",
            )
        yield Checked(found.model, revision if part.model.name in models else None, found, files)


def verify(chosen: Inventory) -> Iterator[Checked]:
    """Check the hashes and tensors of models, and yield each; those that are not here are left out.

    Their converted copies are removed, and made anew by the next run.

    Args:
        chosen: of one model ``inventory(name)``, of all ``inventory()``.
    """
    from .check import check_model, told

    for model, revision in chosen.models:
        found, files, error = None, list[CheckedFile](), None
        try:
            if (found := cached(model, revision)) is None:
                continue
            files = _check_files(found)
            conversions.forget(conversions.copies(found.path))  # their hashes are not known
            if damaged := [file.path for file in files if not file.ok]:
                error = f"{damaged[0]} is not what was downloaded: its hash differs."
            else:
                check_model(told(found.model, found.path), found.path)
        except CheckpointError as problem:
            error = problem.message
        yield Checked(model, None if revision == "main" else revision, found, files, error)


def convert(
    file: Path,
    folder: Path,
    *,
    tokenizer: Path | None = None,
    config: Path | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    warn: Callable[[str], object] = warnings.warn,
) -> Path:
    """Turn a released file into a narcli folder, and return the folder.

    Args:
        file: a released transformer or tokenizer.
        folder: the folder to make.
        tokenizer: the tokenizer to put into the model's folder.
        config: a ``config.json`` for the file; None is the one beside it.
        dtype: name of the number format to store; None keeps the file's.
        overwrite: replace an older narcli folder.
        warn: is told, in a sentence, which model of several in a file was taken.

    Raises:
        UsageError: the folder holds something else, or a model and ``overwrite`` is false.
        CheckpointError: files that cannot be used.
        NarError: the disk is full and the like.
    """
    from ..checkpoints import convert as conversion
    from ..checkpoints.load import remark
    from ..devices import DTYPES

    stored, other = DTYPES[dtype] if dtype else None, lender(file)
    if tokenizer is None and other is not None:
        tokenizer = other.path
    made = conversion.convert(
        file, folder, tokenizer=tokenizer, config=config, dtype=stored, overwrite=overwrite
    )
    for source in (file, tokenizer):
        if source and (note := remark(source)):
            warn(note)
    return made
