"""Samples of a run and sampling settings, checked without torch."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

from ..classes import ClassEntry
from ..errors import UsageError
from ..prompts import Prompt

if TYPE_CHECKING:
    from PIL import Image

SEEDS = 2**32  # seeds are below: the generator takes 32 bits
MAX_SAMPLES = 100_000  # of one run
DECODED_TOGETHER = 16  # samples turned into pixels at once, on a graphics card
FIXED_ROWS = 16  # samples of a reproducible batch, where no number is given
MAX_ROWS = 4096  # of a reproducible batch
PLAIN = "plain"  # NAR's released algorithm, which `narcli bench` takes beside orders
MAX_SCALE = 16  # factor that enlarges pictures
DTYPES = ("auto", "float32", "bfloat16", "float16")
LARGEST = 1000  # temperature and guidance scale; far beyond, logits would overflow


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
    reproducible: bool


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
