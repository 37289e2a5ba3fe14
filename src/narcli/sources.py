"""Which files a run needs: chosen by name, brought here, and identified in metadata. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .classes import ClassTable, load_table
from .configs import MODEL, TOKENIZER, weights_in
from .errors import UsageError
from .registry import Model, default_model, has_own_tokenizer, no_tokenizer, resolve

if TYPE_CHECKING:
    from .hub import Fetched

MAX_HASHED = 2**26  # bytes; hashing a larger file would take longer than a picture
END = 2**20  # bytes at either end of a larger file, which are hashed instead


@dataclass(frozen=True)
class Source:
    """A model and its tokenizer, chosen but not yet here.

    Args:
        model: the model.
        tokenizer: its tokenizer; None when it is in the model's own folder.
        revision: of the model's repository; None is the newest.
    """

    model: Model
    tokenizer: Model | None = None
    revision: str | None = None

    @property
    def table(self) -> ClassTable | None:
        """The model's classes, where they are known before it is loaded."""
        return load_table(self.model.classes) if self.model.classes else None

    def fetch(self, *, offline: bool = False, progress: bool = False) -> Files:
        """Bring the files here, where they are not; arguments and errors are those of ``hub.fetch``."""
        from .hub import fetch  # slow to import

        model = fetch(
            self.model,
            revision=self.revision,
            offline=offline,
            progress=progress,
            tokenizer=self.tokenizer is None,
        )
        if self.tokenizer is not None:
            return Files(model, fetch(self.tokenizer, offline=offline, progress=progress))
        if not has_own_tokenizer(model.path):
            raise no_tokenizer(model.model)
        return Files(model, model)


@dataclass(frozen=True)
class Files:
    """A model and its tokenizer on this machine; one and the same when they share a folder."""

    model: Fetched
    tokenizer: Fetched

    def about(self) -> dict[str, Any]:
        """What metadata says of both, by base names."""
        return {"model": _about(self.model, MODEL), "tokenizer": _about(self.tokenizer, TOKENIZER)}


def choose(
    kind: str | None,
    model: str | Path | None = None,
    tokenizer: str | Path | None = None,
    revision: str | None = None,
) -> Source:
    """What the options of a run mean; nothing is fetched or loaded.

    Args:
        kind: ``image`` or ``video``, as ``registry.resolve`` has it; None is the model's own.
        model: a name, repository, file or folder; None is the default model.
        tokenizer: likewise; None is the model's own.
        revision: of the model's repository.

    Raises:
        UsageError: no such model, one of another kind, or one without a known tokenizer.
    """
    chosen = resolve(model or default_model(kind or "image"), kind)
    if revision is not None and chosen.repo is None:
        raise UsageError(
            f"--revision is for models of the Hub; {chosen.name} is on this machine.", "Leave --revision out."
        )
    if name := tokenizer or chosen.tokenizer:
        wanted = "video-tokenizer" if chosen.kind == "video" else "image-tokenizer"
        return Source(chosen, resolve(name, wanted), revision)
    if chosen.path is not None and not has_own_tokenizer(chosen.path):
        raise no_tokenizer(chosen)
    return Source(chosen, None, revision)


def _about(fetched: Fetched, part: str) -> dict[str, Any]:
    """Name and, as far as it is cheap, what tells the file from others: its commit or its hash."""
    file = fetched.path
    if file.is_dir():
        names = sorted(path.name for path in file.iterdir())
        file /= part if part in names else (weights_in(names) or [part])[0]
    about: dict[str, Any] = {"name": fetched.model.name, "file": file.name}
    if fetched.commit is not None:
        return about | {"repo": fetched.model.repo, "commit": fetched.commit}
    about["size"] = file.stat().st_size
    if about["size"] <= MAX_HASHED:
        about["sha256"] = sha256(file.read_bytes()).hexdigest()
    else:
        about["sha256_of_size_and_ends"] = hash_ends(file)
    return about


def hash_ends(file: Path) -> str:
    """SHA-256 of the size in bytes, in decimal digits, and the first and the last MiB of a large file."""
    with file.open("rb") as opened:
        size = opened.seek(0, 2)
        found = sha256(str(size).encode())
        for start in (0, max(0, size - END)):
            opened.seek(start)
            found.update(opened.read(END))
    return found.hexdigest()
