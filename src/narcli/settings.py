"""Samples of a run and sampling settings, checked without torch."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any, TypedDict

from .classes import ClassEntry
from .errors import UsageError, nearest
from .prompts import Prompt

if TYPE_CHECKING:
    from PIL import Image

SEEDS = 2**32  # seeds are below: the generator takes 32 bits
MAX_SAMPLES = 100_000  # of one run
DECODED_TOGETHER = 16  # samples turned into pixels at once, on a graphics card
PLAIN = "plain"  # NAR's released algorithm, which `narcli bench` takes beside orders
MAX_SCALE = 16  # factor that enlarges pictures
DTYPES = ("auto", "float32", "bfloat16", "float16")
LARGEST = 1000  # temperature and guidance scale; far beyond, logits would overflow
MAX_SWEPT = 256  # pictures on the sheet of a sweep; a file holds the hashes of as many
FITS = ("crop", "pad")  # ways to bring a given picture to the model's shape; the first is the default


@dataclass(frozen=True)
class GivenFrames:
    """First frames of a clip, from which a model goes on.

    Args:
        name: name of the clip's file or folder, without the folders above.
        count: number of given frames.
        pictures: the frames, RGB; none once they are encoded.
        codes: codes of a clip in which the last given frame is repeated; none before they are encoded.
    """

    name: str
    count: int
    pictures: tuple[Image.Image, ...] = field(default=(), compare=False, repr=False)
    codes: tuple[int, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        frames = "frame" if self.count == 1 else f"{self.count} frames"
        return f"from the first {frames} of {self.name}"


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


#: Class, prompt or given frames of a sample.
Subject = ClassEntry | Prompt | GivenFrames


@dataclass(frozen=True)
class Sample:
    """One requested sample of a class, a prompt or given frames."""

    entry: Subject
    seed: int


def plan_samples(entries: Sequence[Subject], seed: int | None = None, num: int = 1) -> list[Sample]:
    """Plan the samples of a run: each subject with the seeds ``seed``, ``seed + 1`` and so on.

    Args:
        entries: classes, prompts or given frames; their order is the order of the result.
        seed: 0 or more, below ``SEEDS``; None draws one.
        num: samples of each.

    Raises:
        UsageError: a number out of range.
    """
    check_seeds(seed, num, len(entries))
    if seed is None:
        seed = secrets.randbelow(SEEDS - num + 1)
    return [Sample(entry, seed + k) for entry in entries for k in range(num)]


def check_seeds(seed: int | None, num: int, entries: int = 1) -> None:
    """Check the numbers of a run's samples.

    Args:
        seed: the first one; None draws one.
        num: samples of each class, prompt or clip.
        entries: classes, prompts or clips, as far as they are known.

    Raises:
        UsageError: a number that is out of range, or no whole number.
    """
    if type(num) is not int or num < 1 or num * entries > MAX_SAMPLES:
        raise UsageError(f"`num` is {num}, expected 1 or more, and at most {MAX_SAMPLES:,} samples in a run.")
    if seed is not None and (type(seed) is not int or not 0 <= seed <= SEEDS - num):
        seeds = f"{seed}" if num == 1 else f"{seed}, so the last one would be {seed + num - 1}"
        raise UsageError(f"`seed` is {seeds}; seeds go from 0 to {SEEDS - 1}.")


def check_scale(scale: int) -> None:
    """Check a factor that enlarges pictures.

    Raises:
        UsageError: it is no whole number from 1 to 16.
    """
    if type(scale) is not int or not 1 <= scale <= MAX_SCALE:
        raise UsageError(f"`scale` is {scale}, expected a whole factor from 1 to {MAX_SCALE}.")


def check_batch_size(size: int) -> int:
    """Return a batch size unchanged.

    Raises:
        UsageError: it is below 1.
    """
    if size < 1:
        raise UsageError(f"`batch_size` is {size}, expected 1 or more.")
    return size


class Sampling(TypedDict, total=False):
    """Sampling settings as keywords, as in ``SamplingSettings``; None is the model's."""

    cfg_scale: float | None
    cfg_interval: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    more_smooth: bool | None


class Options(Sampling, total=False):
    """Sampling settings, what is kept of a given picture or clip, and what is recorded, as keywords."""

    init: Any
    keep: float | str | None
    keep_mask: Any
    keep_cells: str | Sequence[str]
    keep_frames: int | None
    fit: str | None
    record: Any


@dataclass(frozen=True)
class SamplingSettings:
    """Settings that draw the tokens.

    Args:
        cfg_scale: classifier-free guidance scale, 0 to 1000; up to 1 is without guidance. VAR counts from 0:
            its 0 is without guidance, and the last scale has 1 more.
        cfg_interval: guidance ends once more than this many tokens have been generated; -1 is never.
        temperature: 0 to 1000; 0 takes the most likely token.
        top_k: draw from this many most likely tokens (and ties with the last); 0 is all.
        top_p: draw from the shortest prefix of the sorted tokens whose probability exceeds this, in (0, 1].
        more_smooth: go on from mixtures of codes near the drawn ones, for smoother pictures; VAR only.
    """

    cfg_scale: float = 1.0
    cfg_interval: int = -1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    more_smooth: bool = False

    def __post_init__(self) -> None:
        def refuse(name: str, expected: str) -> UsageError:
            return UsageError(f"`{name}` is {getattr(self, name)}, expected {expected}.")

        # The comparisons are false for NaN, so NaN fails too.
        if not 0 <= self.cfg_scale <= LARGEST:
            raise refuse("cfg_scale", f"a number from 0 to {LARGEST}")
        if self.cfg_interval < -1:
            raise refuse("cfg_interval", "-1 (always guided) or a number of tokens")
        if not 0 <= self.temperature <= LARGEST:
            raise refuse("temperature", f"a number from 0 to {LARGEST}")
        if self.top_k < 0:
            raise refuse("top_k", "0 (all) or a number of tokens")
        if not 0 < self.top_p <= 1:
            raise refuse("top_p", "a number above 0 and at most 1")

    def refuse_guidance(self) -> None:
        """Refuse guidance, for models that go on from frames: they have no input without condition.

        Raises:
            UsageError: ``cfg_scale`` is not 1, or ``cfg_interval`` is given.
        """
        for name, without in (("cfg_scale", 1), ("cfg_interval", -1)):
            if (value := getattr(self, name)) != without:
                raise UsageError(
                    f"`{name}` is {value:g}, and models that go on from frames have no guidance.",
                    f"Leave it out, or give {without}.",
                )

    @property
    def divisor(self) -> float:
        """Divisor of the logits, at least 1e-30, so that different logits stay finite and different."""
        return max(self.temperature, 1e-30)

    def guided(self, generated: int, unguided: float = 1.0) -> bool:
        """Tell whether a pass uses guidance.

        Args:
            generated: clock of the pass; in NAR the number of tokens drawn before it.
            unguided: value of ``cfg_scale`` that the model takes for no guidance.
        """
        return self.cfg_scale > unguided and (self.cfg_interval == -1 or generated <= self.cfg_interval)

    def scale(self, clock: int, share: float = 1.0, unguided: float = 1.0) -> float:
        """Guidance scale of a pass, by its clock and its share of the excess; 1 is no guidance."""
        if not self.guided(clock, unguided):
            return 1.0
        return self.cfg_scale if share == unguided == 1 else 1 + (self.cfg_scale - unguided) * share

    def document(self) -> dict[str, float]:
        """Return the settings as JSON; ``more_smooth``, which few models have, only where it is true."""
        return {name: value for name, value in asdict(self).items() if name != "more_smooth" or value}

    def check(self, fixed: Mapping[str, float]) -> None:
        """Refuse a setting that the model does not have.

        Args:
            fixed: such settings, with the value that they must keep.

        Raises:
            UsageError: one has another value.
        """
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise UsageError(
                    f"`{name}` is {getattr(self, name)}, but this model has no such setting.", "Leave it out."
                )


# --- sweeps --------------------------------------------------------------------------------------

#: Settings that a sweep may vary, and the type of their values.
SWEPT: Mapping[str, type] = {
    "cfg_scale": float,
    "cfg_interval": int,
    "temperature": float,
    "top_k": int,
    "top_p": float,
}
Sweep = Mapping[str, tuple[float, ...]]


def parse_sweep(given: str | Sequence[str] | Mapping[str, Any] | None) -> dict[str, tuple[float, ...]]:
    """Read the settings that a sweep varies.

    Args:
        given: values by the name of their setting, or texts such as ``temperature=0.3,0.6``. Names take ``-``
            and ``_`` alike.

    Returns:
        The values of one or two settings, equal ones once; empty without a sweep. The first setting varies
        from row to row of the sheet.

    Raises:
        UsageError: a setting that cannot be swept, a value out of range, or too many of either.
    """
    texts = [given] if isinstance(given, str) else given or {}
    pairs = list(texts.items()) if isinstance(texts, Mapping) else [_pair(text) for text in texts]
    sweep: dict[str, tuple[float, ...]] = {}
    for typed, values in pairs:
        name = str(typed).strip().replace("-", "_")
        if name not in SWEPT:
            close = nearest(name, SWEPT)[:1]
            raise UsageError(
                f"`sweep` names {str(typed)[:40]!r}, expected one of {', '.join(SWEPT)}.",
                f"Did you mean {close[0]}?" if close else "Other settings have one value in a run.",
            )
        if name in sweep:
            raise UsageError(f"`sweep` names {name} twice.", "Give all its values at once, with commas.")
        sweep[name] = tuple(dict.fromkeys(_swept(name, value) for value in _several(values)))
        if not sweep[name]:
            raise UsageError(f"`sweep` has no value of {name}.", f"Give some, such as {name}=0.5,1.")
    if len(sweep) > 2:
        raise UsageError(
            f"`sweep` names {len(sweep)} settings, expected one or two.", "A sheet has rows and columns."
        )
    check_sweep(sweep, 1)
    return sweep


def check_sweep(sweep: Sweep, samples: int) -> None:
    """Limit the pictures of a sweep.

    Args:
        sweep: from ``parse_sweep``; an empty one is not limited.
        samples: samples drawn with each of its settings.

    Raises:
        UsageError: more than ``MAX_SWEPT`` pictures.
    """
    if sweep and (pictures := samples * prod(map(len, sweep.values()))) > MAX_SWEPT:
        values = " x ".join(f"{len(values)} of {name}" for name, values in sweep.items())
        each = "1 sample" if samples == 1 else f"{samples:,} samples"
        raise UsageError(
            f"`sweep` makes {pictures:,} pictures ({values}, {each} of each), expected at most {MAX_SWEPT}.",
            "Give fewer values, or fewer samples.",
        )


def points_of(sweep: Sweep) -> list[dict[str, Any]]:
    """Return the settings of each point of a sweep, row by row; one point without any for no sweep."""
    return [dict(zip(sweep, values, strict=True)) for values in product(*sweep.values())]


def words_of(point: Mapping[str, float]) -> str:
    """Return settings in words: ``temperature 0.3, top p 0.9``."""
    return ", ".join(
        f"{name.replace('_', ' ')} {int(value) if value == int(value) else value!r}"
        for name, value in point.items()
    )


def _pair(text: object) -> tuple[str, str]:
    """Split ``temperature=0.3,0.6`` into name and values."""
    name, equals, values = str(text).partition("=")
    if not equals:
        raise UsageError(
            f"`sweep` is {str(text)[:40]!r}, expected a setting and its values, "
            "such as temperature=0.3,0.6,0.9.",
        )
    return name, values


def _several(values: Any) -> Iterable[Any]:
    """Take values in a text, one value, or several, as several."""
    if isinstance(values, str):
        return values.split(",")
    return values if isinstance(values, Iterable) else (values,)


def _swept(name: str, value: Any) -> float:
    """Check one value of a sweep."""
    kind = SWEPT[name]
    try:
        number: float = kind(value)
        if isinstance(value, bool) or (not isinstance(value, str) and number != value):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        expected = "a whole number" if kind is int else "a number"
        raise UsageError(f"`sweep` gives {name} {str(value)[:40]!r}, expected {expected}.") from None
    try:
        SamplingSettings(**dict[str, Any]({name: number}))
    except UsageError as error:
        raise UsageError(f"In `sweep`, {error.message}", error.hint) from None
    return number
