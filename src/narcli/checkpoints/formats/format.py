"""A family of checkpoint files as data. No torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError
from ...rules import Rule, show

if TYPE_CHECKING:
    from torch import Tensor

#: Sections of a ``config.json`` with sizes of networks.
PARTS = ("transformer", "tokenizer")
Fields = Mapping[str, Any]


@dataclass(frozen=True)
class ModelConfig:
    """A validated ``config.json``.

    Args:
        path: the file, for messages; None when there is none.
        kind: one of ``config.KINDS``, or "" when the file does not say.
        transformer: fields of the transformer's sizes that are given (and ``head_dim``, in a released one).
        tokenizer: fields of the tokenizer's sizes that are given.
        classes: name of a class table, or the names; None when not given.
        defaults: sampling settings.
        name: what the model is called.
        training: what it was trained on and with, of models trained here.
    """

    path: Path | None = None
    kind: str = ""
    transformer: Fields = field(default_factory=dict)
    tokenizer: Fields = field(default_factory=dict)
    classes: str | tuple[str, ...] | None = None
    defaults: Mapping[str, float] = field(default_factory=dict)
    name: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Contents:
    """All that states the sizes of a network in a file.

    Args:
        file: the file, for messages.
        tensors: by narcli's names, those that are left out included.
        config: its ``config.json``.
        grid: of the tokens, for files that do not tell; None where the caller does not know it.
        shown: narcli's names -> the file's, where they differ, for messages.
    """

    file: Path
    tensors: Mapping[str, Tensor]
    config: ModelConfig
    grid: tuple[int, ...] | None = None
    shown: Mapping[str, str] = field(default_factory=dict)


def _not_read(*_: object) -> Any:
    raise NotImplementedError("narcli does not read this family")


@dataclass(frozen=True)
class Format:
    """Everything about the files of one family.

    Args:
        words: name of such a file in messages, with its article.
        recognise: tell from the names of its tensors whether a file is of this family.
        part: one of ``PARTS``, the section with its sizes; "" of a family that is named but not read.
        hint: advice where such a file cannot be used; None is the advice of its part.
        rules: fields of its section, which are those of its sizes.
        marks: fields that only its section and its released ``config.json`` have; a part's usual family
            has none.
        read_config: check a released ``config.json`` and return the fields of the section.
        rename: names of a file's tensors -> names in the network, where they differ.
        dropped: patterns of names of tensors that are left out, and the reason of each.
        infer: sizes from shapes, and from what else states them.
        classes: import and return the classes of its sizes and of its network.
        defaults: sampling settings of the released scripts, by kind.
        clue: name of a tensor that tells a released transformer of this family; "" where its settings are
            the usual ones.
    """

    words: str
    recognise: Callable[[Collection[str]], bool]
    part: str = ""
    hint: str | None = None
    rules: Mapping[str, Rule] = field(default_factory=dict)
    marks: tuple[str, ...] = ()
    read_config: Callable[[Path, Fields], Fields] = lambda path, given: {}
    rename: Callable[[Collection[str]], Mapping[str, str]] = lambda names: {}
    dropped: Mapping[str, str] = field(default_factory=dict)
    infer: Callable[[Contents], Any] = _not_read
    classes: Callable[[], tuple[type[Any], type[Any]]] = _not_read
    defaults: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    clue: str = ""

    def drops(self, name: str) -> bool:
        """Tell whether a tensor of this name is left out."""
        return any(fnmatchcase(name, pattern) for pattern in self.dropped)


def agree(
    config: ModelConfig, stated: Fields, found: Fields, aliases: Mapping[str, str] | None = None
) -> None:
    """Compare what a ``config.json`` states with what the tensors say.

    Args:
        config: for messages.
        stated: fields of the ``config.json``.
        found: fields by the tensors.
        aliases: narcli's names -> those of a released ``config.json``.

    Raises:
        CheckpointError: they differ.
    """
    for key, value in stated.items():
        if key in found and found[key] != value:
            name = key if config.kind else (aliases or {}).get(key, key)
            raise CheckpointError(
                f"{config.path}: {name} is {show(value)}, but the tensors say {show(found[key])}.",
                "The two files do not belong together.",
            )
