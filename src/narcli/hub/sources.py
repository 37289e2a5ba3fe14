"""Files of a run: chosen by name, fetched, and identified in metadata. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..checkpoints.config import MODEL, NAMES, TEXT_ENCODER, TOKENIZER, weights_in
from ..checkpoints.folder import has_own_encoder, has_own_tokenizer
from ..classes import ClassTable, load_table
from ..errors import UsageError
from ..media.textfiles import check_regular
from .catalog import TEXT_ENCODER_OF_RELEASED, Model, tokenizer_kind
from .resolve import no_tokenizer, resolve, resolve_default

if TYPE_CHECKING:
    from ..models.blocks import Kind
    from .locate import Located
    from .selection import Fetched

MAX_HASHED = 2**26  # bytes; hashing a larger file would take longer than a picture
END = 2**20  # bytes at either end of a larger file, hashed instead


@dataclass(frozen=True)
class Source:
    """A model with its tokenizer and encoder, chosen but not yet located.

    Args:
        model: the model.
        tokenizer: its tokenizer; None when it is in the model's own folder.
        revision: of the model's repository; None is the newest.
        encoder: text encoder of a model of images from text; None when it is in the model's own folder.
        pins: revisions of the repositories of ``tokenizer`` and ``text_encoder``.
    """

    model: Model
    tokenizer: Model | None = None
    revision: str | None = None
    encoder: Model | None = None
    pins: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def table(self) -> ClassTable | None:
        """Class table of the model, if known before it is loaded; else None."""
        return load_table(self.model.classes) if self.model.classes else None

    def locate(
        self,
        *,
        offline: bool = False,
        estimate: bool = False,
        approve: Callable[[Mapping[str, int]], None] = lambda sizes: None,
        known: Callable[[EncoderFiles], bool] = lambda encoder: False,
    ) -> Found:
        """Find the files, here or at the Hub, without downloading any.

        Args:
            offline: use what is on disk only.
            estimate: as in ``locate.locate``.
            approve: as in ``fetch``; kept for a text encoder that is needed later.
            known: returns true if all prompts are encoded, so that the text encoder is not needed.

        Raises:
            UsageError, HubError, CheckpointError, NarError: as ``hub.fetch``.
        """
        from .locate import locate  # slow to import

        model = locate(
            self.model,
            revision=self.revision,
            offline=offline,
            tokenizer=self.tokenizer is None,
            estimate=estimate,
        )
        tokenizer = None
        if self.tokenizer:
            pin = self.pins.get("tokenizer")
            tokenizer = locate(self.tokenizer, revision=pin, offline=offline, estimate=estimate)
        if self.model.kind != "text":
            return Found(model, tokenizer, None, False)
        if self.encoder is None and _brings_encoder(model):
            here = model.copy
            own = EncoderFiles(replace(model, here=here), own=True)
            return Found(model, tokenizer, None, here is None or not known(own))
        if self.model.path is not None:  # no encoder is fetched for a model of another kind
            from ..checkpoints.load import transformer_config

            transformer_config(self.model.path, kind="text", grid=self.model.grid)
        other = self.encoder or resolve(TEXT_ENCODER_OF_RELEASED, "text-encoder")
        pin = self.pins.get("text_encoder")
        located = locate(other, revision=pin, offline=offline, estimate=estimate)
        encoder = EncoderFiles(located, approve=approve)
        return Found(model, tokenizer, encoder, not known(encoder))

    def fetch(
        self,
        *,
        offline: bool = False,
        progress: bool = False,
        approve: Callable[[Mapping[str, int]], None] = lambda sizes: None,
        known: Callable[[EncoderFiles], bool] = lambda encoder: False,
    ) -> Files:
        """Locate the files and download missing ones.

        Args:
            offline: use what is on disk only.
            progress: show bars on stderr, where that is a terminal.
            approve: called before a download with the bytes of each model; raises to prevent it.
            known: as in ``locate``.

        Raises:
            UsageError, HubError, CheckpointError, NarError: as ``hub.fetch``.
        """
        from .locate import check_disk

        found = self.locate(offline=offline, approve=approve, known=known)
        check_disk(found.needed)
        return found.fetch(progress=progress, approve=approve)


@dataclass(frozen=True)
class Found:
    """A model with its tokenizer and encoder, located, and their missing bytes.

    Args:
        model: the model.
        tokenizer: its tokenizer; None when it is in the model's own folder.
        encoder: its text encoder; None where there is none, or in the model's own folder.
        encode: true if a text encoder, separate or in the model's folder, has to run.
    """

    model: Located
    tokenizer: Located | None
    encoder: EncoderFiles | None
    encode: bool

    @property
    def needed(self) -> list[Located]:
        """Models that have to be on this machine before the run."""
        encoder = self.encoder.located if self.encoder is not None and self.encode else None
        return [part for part in (self.model, self.tokenizer, encoder) if part is not None]

    @property
    def missing(self) -> dict[str, int]:
        """Bytes to download, by model."""
        return {part.model.name: part.missing for part in self.needed if part.missing}

    def fetch(
        self,
        *,
        progress: bool = False,
        approve: Callable[[Mapping[str, int]], None] = lambda sizes: None,
        tell: Callable[[str], None] = lambda note: None,
    ) -> Files:
        """Download missing files; arguments and errors are those of ``Source.fetch``.

        ``tell`` is called with a sentence about anything else that takes time.
        """
        approve(self.missing)
        fetched = [part.fetch(progress=progress, tell=tell) for part in self.needed]
        here, tokenizer, encoder = fetched[0], fetched[1 if self.tokenizer else 0], self.encoder
        if encoder is not None and self.encode:
            encoder = EncoderFiles(replace(encoder.located, here=fetched[-1]))
        if self.tokenizer is None and not has_own_tokenizer(here.path):
            raise no_tokenizer(here.model)
        if here.model.kind == "text" and encoder is None:
            encoder = EncoderFiles(replace(self.model, here=here), own=True)
        return Files(here, tokenizer, encoder)


def _brings_encoder(model: Located) -> bool:
    if model.here is not None:
        return has_own_encoder(model.here.path)
    return any(f"/{TEXT_ENCODER}/" in f"/{file.name}" for file in model.files)


@dataclass(frozen=True)
class EncoderFiles:
    """A text encoder, located but perhaps not yet downloaded.

    Args:
        located: the encoder, or the model that holds it.
        own: true if it is the folder ``text_encoder`` of that model.
        approve: as in ``Source.fetch``; called if the encoder is needed later.
    """

    located: Located
    own: bool = False
    approve: Callable[[Mapping[str, int]], None] = lambda sizes: None

    def folder(self) -> Path:
        """Return the folder that ``transformers`` reads, downloading it if missing."""
        if self.located.here is None:
            from .locate import check_disk

            check_disk([self.located])
            self.approve({self.located.model.name: self.located.missing})
        path = self.located.fetch().path
        if not path.is_dir():
            check_regular(path)
        folder = path if path.is_dir() else path.parent
        return folder / TEXT_ENCODER if self.own else folder

    @cached_property
    def identity(self) -> str:
        """Identity of the encoder: its repository and commit, or a hash of its files."""
        if self.located.commit is not None:
            return f"{self.located.model.repo}@{self.located.commit}{TEXT_ENCODER * self.own}"
        known, folder = sha256(), self.folder()
        names = folder / NAMES
        for file in (*sorted(folder.iterdir()), *(sorted(names.iterdir()) if names.is_dir() else ())):
            if file.is_file():
                known.update(f"{file.relative_to(folder).as_posix()}:{hash_ends(file)}\n".encode())
        return known.hexdigest()

    def about(self) -> dict[str, Any]:
        """The encoder's entry in metadata."""
        name = self.located.model.name
        if self.located.commit is not None:
            return {"name": name, "repo": self.located.model.repo, "commit": self.located.commit}
        return {"name": name, "sha256_of_names_and_ends": self.identity}


@dataclass(frozen=True)
class Files:
    """A model and its tokenizer on this machine; equal if they share a folder.

    A model of images from text also has an encoder.
    """

    model: Fetched
    tokenizer: Fetched
    encoder: EncoderFiles | None = None

    def about(self) -> dict[str, Any]:
        """Entries of model and tokenizer in metadata, by base names."""
        return {"model": _about(self.model, MODEL), "tokenizer": _about(self.tokenizer, TOKENIZER)}


def choose(
    kind: str | None,
    model: str | Path | None = None,
    tokenizer: str | Path | None = None,
    revision: str | None = None,
    text_encoder: str | Path | None = None,
) -> Source:
    """Choose model, tokenizer and encoder of a run; nothing is fetched or loaded.

    Args:
        kind: ``image``, ``text``, ``video`` or ``frames``, as in ``resolve``; None is the model's own.
        model: a name, repository, file or folder; None is the default model.
        tokenizer: a name, repository, file or folder; None is the model's own.
        revision: branch, tag or commit of the model's repository.
        text_encoder: a repository or folder, for images from text; None is the model's own.

    Raises:
        UsageError: no such model, one of another kind, or one without a known tokenizer.
        CheckpointError: a file without a known tokenizer that is no model of this kind.
    """
    chosen = resolve(model, kind) if model else resolve_default(kind or "image", kind)
    if revision is not None and chosen.repo is None:
        raise UsageError(
            f"`revision` is for models of the Hub; {chosen.name} is on this machine.", "Leave `revision` out."
        )
    if chosen.kind != "text" and text_encoder is not None:
        raise UsageError(f"{chosen.name} has no text encoder.", "Leave `text_encoder` out.")
    wanted = text_encoder or chosen.text_encoder
    encoder = resolve(wanted, "text-encoder") if wanted else None
    if name := tokenizer or chosen.tokenizer:
        return Source(chosen, resolve(name, tokenizer_kind(chosen.kind)), revision, encoder)
    if chosen.path is not None and not has_own_tokenizer(chosen.path):
        from ..checkpoints.load import transformer_config  # imports torch, only to explain the error

        # A model of another kind needs another command, not a tokenizer.
        transformer_config(chosen.path, kind=cast("Kind | None", kind))
        raise no_tokenizer(chosen)
    return Source(chosen, None, revision, encoder)


def _about(fetched: Fetched, part: str) -> dict[str, Any]:
    """Name and identity of a file: its commit, or its size and a hash."""
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
    """SHA-256 of a large file's size in decimal digits and its first and last MiB."""
    with file.open("rb") as opened:
        size = opened.seek(0, 2)
        found = sha256(str(size).encode())
        for start in (0, max(0, size - END)):
            opened.seek(start)
            found.update(opened.read(END))
    return found.hexdigest()
