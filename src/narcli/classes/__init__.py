"""Class tables: from an id or name, such as ``207`` or ``golden retriever``, to a class of a model.

A table has one row for each class of a model, in the order of its embedding (the labels). Ids are not always
labels: each class of the built-in model `emoji` stands for the ImageNet classes that it can depict, so 207
is a dog there too. No torch here.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path

from ..errors import UsageError, nearest

#: Tables that a model's ``config.json`` or catalog row may name.
TABLES = ("emoji", "emoji-video", "imagenet1k", "ucf101")
#: The tables of the released models, by kind and number of classes.
RELEASED_TABLES = {("image", 1000): "imagenet1k", ("video", 101): "ucf101"}
SHOWN = 60  # characters of the user's text in messages
#: An item of a list: in double quotes, which are doubled inside, or up to a comma.
_ITEM = re.compile(r'\s*"((?:[^"]|"")*)"\s*(?=,|$)|[^,]*')


@dataclass(frozen=True)
class ClassEntry:
    """One class as requested.

    Args:
        label: row of the model's class embedding.
        id: the requested id, or the first one of the class.
        name: the model's name of the class.
        stands_for: ImageNet name (or synonym) requested: "golden retriever" for a dog emoji.
        emoji: the emoji, where the class is one.
    """

    label: int
    id: int
    name: str
    stands_for: str | None = None
    emoji: str | None = None

    def __str__(self) -> str:
        return f"{self.stands_for} ({self.name})" if self.stands_for else self.name


@dataclass(frozen=True)
class ClassRow:
    """One class of a table: its names, the usual one first, and its ids."""

    names: tuple[str, ...]
    ids: tuple[int, ...]
    emoji: str | None = None


@dataclass(frozen=True)
class ClassTable:
    """The classes of a model.

    Args:
        name: one of ``TABLES``, or "" for a list of names.
        rows: in the order of the class embedding.
        stands: true if ids below 1000 are ImageNet's and mean the row that stands for them.
    """

    name: str
    rows: tuple[ClassRow, ...]
    stands: bool = False

    def __repr__(self) -> str:
        return f"<ClassTable {self.name or 'of names'}: {len(self)} classes>"

    def __len__(self) -> int:
        return len(self.rows)

    def entry(self, label: int) -> ClassEntry:
        """Return the class of a row.

        Raises:
            IndexError: there is no such row.
        """
        row = self.rows[label]
        return ClassEntry(label, row.ids[0], row.names[0], emoji=row.emoji)

    def lookup(self, text: str) -> ClassEntry:
        """Find the class of an id, name or emoji; the table's own names have precedence over ImageNet's.

        In a list of names a number is first looked up as a name, then as an id.

        Raises:
            UsageError: no such class (the nearest are named), or a name that several have (ids listed).
        """
        for exact in dict.fromkeys((text, text.strip())) if not self.name else ():
            named = [label for label, row in enumerate(self.rows) if exact in row.names]
            if len(named) == 1:
                return self.entry(named[0])
        text = text.strip()
        if text.isdecimal() and len(text) <= SHOWN:
            return self.by_id(int(text))
        if "," in text and (spelled := self._spelled(text)):
            return spelled
        labels = self._labels.get(_key(text), ())
        if len(labels) == 1:
            return self.entry(labels[0])
        ids = [self.rows[label].ids[0] for label in labels]
        if not labels and self.stands:
            ids = _imagenet_ids().get(_key(text), [])
            if len(ids) == 1:
                return self.by_id(ids[0])
        if ids:
            listed = " and ".join(map(str, ids))
            example = next((id for id in ids if id in self._by), ids[0])
            raise UsageError(
                f"{text!r} names several classes: {listed}.", f"Give the id: `classes={example}`."
            )
        raise UsageError(f"There is no class {_shorten(text)!r}.", self.similar(text))

    def by_id(self, id: int) -> ClassEntry:
        """Find the class of an id.

        Raises:
            UsageError: no such class (the nearest are named).
        """
        if id in self._by:
            label = self._by[id]
            stands_for = _imagenet()[id][0] if self.stands and id < len(_imagenet()) else None
            return replace(self.entry(label), id=id, stands_for=stands_for)
        nearest = sorted(sorted(self._by, key=lambda other: abs(other - id))[:3])
        shown = ", ".join(f"{other} ({self.by_id(other)})" for other in nearest)
        if self.stands and 0 <= id < len(_imagenet()):
            raise UsageError(
                f"Class {id} is ImageNet's {_imagenet()[id][0]}, for which this model has no class.",
                f"Nearest ids: {shown}. `narcli classes search WORD` finds others.",
            )
        raise UsageError(
            f"There is no class {id}.",
            f"Nearest ids: {shown}." if nearest else "This model has no classes.",
        )

    def parse_classes(self, text: str) -> list[ClassEntry]:
        """Parse a comma list of ids and names, such as ``"207,cat,1003"``.

        A name that holds commas is accepted plain or in double quotes. Synonyms of a class in their order are
        that class once, such as ``great white shark, white shark``. They are several classes if each is one
        here, such as ``mouse, computer mouse``.

        Raises:
            UsageError: as ``lookup``, or an empty item.
        """
        if any(text in row.names for row in self.rows):
            return [self.lookup(text)]
        pieces: list[re.Match[str]] = []
        end = -1
        while end < len(text):
            piece = _ITEM.match(text, end + 1)
            assert piece is not None  # the pattern also matches empty text
            pieces.append(piece)
            end = piece.end()
        if not all(piece[0].strip() for piece in pieces):
            raise UsageError(f"{text[:60]!r} has an empty class.", "Separate ids and names by single commas.")
        entries: list[ClassEntry] = []
        while pieces:
            for count in range(min(len(pieces), self._most_commas + 1), 1, -1):
                spelled = text[pieces[0].start() : pieces[count - 1].end()].strip()
                together = self._spelled(spelled)
                if together is not None and not self._are_several(spelled):
                    break
            else:
                count, quoted = 1, pieces[0][1]
                item = pieces[0][0].strip() if quoted is None else quoted.replace('""', '"')
                together = self._lookup_item(item)
            entries.append(together)
            del pieces[:count]
        return entries

    def _lookup_item(self, item: str) -> ClassEntry:
        try:
            return self.lookup(item)
        except UsageError as error:
            if any("," in name for row in self.rows for name in row.names):
                hint = f"{error.hint or ''} A name with a comma goes in double quotes.".strip()
                raise UsageError(error.message, hint) from error
            raise

    def _spelled(self, text: str) -> ClassEntry | None:
        """Find the class of a name with commas, or of the first synonyms of a class in order."""
        if text in self._with_commas:
            return self.entry(self._with_commas[text])
        synonyms = tuple(map(_key, text.split(",")))
        if synonyms in self._synonyms:
            return self.entry(self._synonyms[synonyms])
        id = _load("imagenet1k")._synonyms.get(synonyms) if self.stands else None
        return self.by_id(id) if id is not None else None

    def _are_several(self, text: str) -> bool:
        """Tell whether the parts between commas are a different class each."""
        if text in self._with_commas:
            return False
        try:
            ids = [self.lookup(part).id for part in text.split(",")]
        except UsageError:
            return False
        return len(set(ids)) == len(ids)

    @cached_property
    def _with_commas(self) -> dict[str, int]:
        """Labels of names that hold commas, by name."""
        return {name: label for label, row in enumerate(self.rows) for name in row.names if "," in name}

    @cached_property
    def _synonyms(self) -> dict[tuple[str, ...], int]:
        """Labels of classes by their leading names, two or more of them."""
        return {
            tuple(map(_key, row.names[:count])): label
            for label, row in enumerate(self.rows)
            for count in range(2, len(row.names) + 1)
        }

    @cached_property
    def _most_commas(self) -> int:
        """Largest number of commas in a text that ``_spelled`` can find."""
        most = max((name.count(",") for name in self._with_commas), default=0)
        several = [*self._synonyms, *(_load("imagenet1k")._synonyms if self.stands else ())]
        return max(most, *(len(names) - 1 for names in several), 0)

    def search(self, word: str) -> list[ClassEntry]:
        """Find classes with ``word`` in a name: own names first, then names that classes stand for."""
        key = _key(word)
        if not key:
            return []
        own = [
            replace(self.entry(label), stands_for=_synonym(row.names, key))
            for label, row in enumerate(self.rows)
            if _key(row.emoji or "") == key or any(key in _key(name) for name in row.names)
        ]
        if not self.stands:
            return own
        stood = [
            replace(self.by_id(id), stands_for=_synonym(names, key) or names[0])
            for id, names in enumerate(_imagenet())
            if id in self._by and any(key in _key(name) for name in names)
        ]
        return own + stood

    def similar(self, text: str) -> str:
        """Hint for an error message with the nearest names."""
        names = {_key(name): name for row in self.rows for name in row.names}
        if self.stands:
            covered = (name for id, synonyms in enumerate(_imagenet()) if id in self._by for name in synonyms)
            names = {_key(name): name for name in covered} | names
        close = [entry.stands_for or entry.name for entry in self.search(text)] if len(text) > 2 else []
        close = [*(names[key] for key in nearest(_key(text[:60]), names)), *close]
        if close := list(dict.fromkeys(close))[:3]:
            return f"Did you mean {' or '.join(map(repr, close))}?"
        return "`narcli classes --model NAME` lists those of a model."

    @cached_property
    def _by(self) -> dict[int, int]:
        """Labels by id."""
        return {id: label for label, row in enumerate(self.rows) for id in row.ids}

    @cached_property
    def _labels(self) -> dict[str, list[int]]:
        """Labels by own name; a name may have several."""
        labels: defaultdict[str, list[int]] = defaultdict(list)
        for label, row in enumerate(self.rows):
            for key in dict.fromkeys(map(_key, (*row.names, row.emoji or ""))):
                labels[key].append(label)
        labels.pop("", None)
        return dict(labels)


def load_table(source: str | Sequence[str]) -> ClassTable:
    """Load the class table of a name, or make one from a list of names.

    Raises:
        UsageError: no table of that name.
    """
    if not isinstance(source, str):
        numbers = {int(name): name for name in source if name.isdecimal()}
        # Sorted as text, folders "0" to "11" are out of order; their numbers are the ids.
        ids = numbers if len(numbers) == len(source) else range(len(source))
        return ClassTable("", tuple(ClassRow((name,), (id,)) for id, name in zip(ids, source, strict=True)))
    if source not in TABLES:
        close = nearest(source, TABLES, 1)
        suggestion = f"Did you mean {close[0]}? " if close else ""
        raise UsageError(
            f"There is no class table {source[:60]!r}.", f"{suggestion}There are {', '.join(TABLES)}."
        )
    return _load(source)


def table_for(num_classes: int, kind: str = "image") -> ClassTable:
    """Table of a released model, which names none: ImageNet, UCF-101, or numbers as names."""
    if name := RELEASED_TABLES.get((kind, num_classes)):
        return load_table(name)
    return load_table([f"class {label}" for label in range(num_classes)])


@cache
def _load(name: str) -> ClassTable:
    if name == "imagenet1k":
        return ClassTable(name, tuple(ClassRow(names, (id,)) for id, names in enumerate(_imagenet())))
    if name == "ucf101":
        return ClassTable(name, tuple(ClassRow((line,), (id,)) for id, line in enumerate(_lines(name))))
    rows = csv.DictReader(_text(f"{name}.tsv").splitlines(), delimiter="\t")
    return ClassTable(
        name,
        tuple(ClassRow((row["name"],), tuple(_ranges(row["ids"])), row["emoji"]) for row in rows),
        stands=name == "emoji",
    )


@cache
def _imagenet() -> tuple[tuple[str, ...], ...]:
    """Synonyms of the 1000 ImageNet classes, by id."""
    return tuple(tuple(name.strip() for name in line.split(",")) for line in _lines("imagenet1k"))


@cache
def _imagenet_ids() -> dict[str, list[int]]:
    """ImageNet ids by name; a name may have several."""
    return {key: list(labels) for key, labels in _load("imagenet1k")._labels.items()}


def _text(file: str) -> str:
    return Path(__file__).with_name(file).read_text(encoding="utf-8")


def _lines(name: str) -> list[str]:
    return _text(f"{name}.txt").splitlines()


def _ranges(text: str) -> Iterator[int]:
    """Parse ``"0,389,394-395"`` as 0, 389, 394, 395."""
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _synonym(names: Sequence[str], key: str) -> str | None:
    """First name that contains the word, or None if that is the usual one."""
    match = next((name for name in names if key in _key(name)), names[0])
    return None if match == names[0] else match


def _shorten(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


@lru_cache(8192)
def _key(text: str) -> str:
    """Key of a name, without case, accents, spaces and punctuation; an emoji is its own key."""
    plain = unicodedata.normalize("NFKD", text.replace("\ufe0f", "")).casefold()
    letters = "".join(c for c in plain if c.isalnum())
    return letters or "".join(c for c in plain if not c.isspace() and not c.isascii())
