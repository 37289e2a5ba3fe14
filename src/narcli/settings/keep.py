"""Pictures and clips of which a part is kept, and the choice of that part. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

FITS = ("crop", "pad")  # ways to bring a given picture to the model's shape; the first is the default


@dataclass(frozen=True)
class Init:
    """Picture or clip of which some tokens are kept; a model draws the others.

    Args:
        name: name of its file or folder, without the folders above.
        sha256: hash of the file; empty for a folder or a picture in memory.
        pictures: the picture, or the first frames of the clip, RGB; none once they are encoded.
        grid: sizes of the token grid; none before they are encoded.
        cells: flat indices of the kept cells, ascending.
        tokens: their tokens; none if a file holds their hash only.
    """

    name: str
    sha256: str = ""
    pictures: tuple[Image.Image, ...] = field(default=(), compare=False, repr=False)
    grid: tuple[int, ...] = ()
    cells: tuple[int, ...] = field(default=(), repr=False)
    tokens: tuple[int, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Keep:
    """Choice of the cells of an ``Init`` that are kept; at most one of the first four.

    Without any, half of the cells are kept as ``keep`` does, or the first half of a clip's frames.

    Args:
        keep: keep the cells of the first passes, up to at least this share: above 0, at most 1; ``"40%"``.
        keep_mask: picture or its file; cells that are light for the most part are kept.
        keep_cells: rectangles, an index or range from 0 for each axis of the grid: ``"0-3,0-15"``.
        keep_frames: number of frames of a clip, the first ones.
        fit: ``crop`` takes the middle of a picture of another shape, ``pad`` adds white margins; None is
            ``crop``.

    Raises:
        UsageError: a field that is out of range, or excluded by another.
    """

    keep: float | str | None = None
    keep_mask: Any = None
    keep_cells: str | Sequence[str] = ()
    keep_frames: int | None = None
    fit: str | None = None

    def __post_init__(self) -> None:
        cells = (self.keep_cells,) if isinstance(self.keep_cells, str) else tuple(self.keep_cells or ())
        object.__setattr__(self, "keep_cells", cells)
        if self.keep is not None:
            object.__setattr__(self, "keep", _read_share(self.keep))
        if len(chosen := [name for name in KEEPS[:4] if not _absent(getattr(self, name))]) > 1:
            raise UsageError(f"`{chosen[0]}` and `{chosen[1]}` exclude each other.", "Drop one of them.")
        if self.fit not in (None, *FITS):
            raise UsageError(f"`fit` is {self.fit!r}, expected {' or '.join(FITS)}.")
        if self.keep_frames is not None and not (type(self.keep_frames) is int and self.keep_frames >= 1):
            raise UsageError(f"`keep_frames` is {self.keep_frames!r}, expected 1 or more.")
        _ = self.rectangles  # checks the texts

    @property
    def rectangles(self) -> tuple[tuple[range, ...], ...]:
        """Ranges of ``keep_cells``, one for each axis."""
        return tuple(map(_read_rectangle, self.keep_cells))

    def check(self, init: object, frames_from: bool) -> None:
        """Check that the choice goes with what is given.

        Args:
            init: a picture or clip, or its file; an ``Init`` that is encoded; None without any.
            frames_from: the run goes on from frames in the other way.

        Raises:
            UsageError: it does not.
        """
        given = [name for name in KEEPS if not _absent(getattr(self, name))]
        if init is None and given:
            raise UsageError(f"`{given[0]}` goes with `init`.", "Give a picture or clip, or leave it out.")
        if init is not None and frames_from:
            raise UsageError("`init` and `frames_from` exclude each other.", "Drop one of them.")
        if given and isinstance(init, Init) and not init.pictures:
            raise UsageError(
                f"`{given[0]}` chooses cells of a picture, and only the kept tokens of {init.name} are here.",
                "Give the picture or clip again: `init=PATH`.",
            )


#: Names of the fields of ``Keep``; the first four exclude each other.
KEEPS = tuple(Keep.__dataclass_fields__)


def _absent(value: object) -> bool:
    """Tell whether a field has its default; a mask may be an array."""
    return value is None or (isinstance(value, tuple) and not value)


def _read_share(value: object) -> float:
    """Read ``"40%"``, ``"0.4"`` or 0.4."""
    try:
        text = str(value).strip()
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UsageError(
            f"`keep` is {str(value)[:40]}, expected a share above 0 and at most 1, such as 40% or 0.4."
        )
    return share


def _read_rectangle(text: object) -> tuple[range, ...]:
    """Read ``"0-3,5"`` as rows 0 to 3 of column 5."""
    ranges = []
    for part in str(text).split(","):
        found = re.fullmatch(r"\s*([0-9]{1,6})\s*(?:-\s*([0-9]{1,6})\s*)?", part)
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise UsageError(
                f"`keep_cells` is {str(text)[:40]!r}, expected rows and columns from 0, such as 0-3,0-15, "
                "and in a clip slices of time before them.",
            )
        ranges.append(range(int(found[1]), int(found[2] or found[1]) + 1))
    return tuple(ranges)
