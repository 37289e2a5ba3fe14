"""Formats of clips, a row each. Writers are imported when a clip is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

FPS, QUALITY = 8.0, 80  # defaults
MIN_FPS, MAX_FPS = 0.1, 240.0


@dataclass(frozen=True)
class ClipFormat:
    """A format of clips.

    Args:
        name: name in ``--format`` and the metadata.
        suffix: suffix of its files; "" is a folder.
        timed: true if it shows frames at a rate.
        graded: true if it has a quality.
        max_fps: most frames per second that players show.
        beats: units of time in a second; a frame lasts a whole number of them. None is exact.
    """

    name: str
    suffix: str
    timed: bool = True
    graded: bool = False
    max_fps: float = MAX_FPS
    beats: int | None = None

    @property
    def words(self) -> str:
        """Suffix, or words for a folder, for messages."""
        return self.suffix or "a folder of frames"

    def shown_fps(self, fps: float) -> float:
        """Return the frame rate nearest to ``fps`` that it can show."""
        if self.beats is None:
            return fps
        return self.beats / max(round(self.beats / fps), ceil(self.beats / self.max_fps))

    def check(self, fps: float | None, quality: int | None) -> None:
        """Check that it has these settings; None is not given.

        Raises:
            UsageError: ``fps`` or ``quality`` is given, and it has none, or it is out of range.
        """
        check_pace(fps, quality)
        if fps is not None and not self.timed:
            raise UsageError(f"`fps` does not go with {self.words}.", "Drop one of them.")
        if fps is not None and fps > self.max_fps:
            raise UsageError(
                f"`fps` is {fps:g}, and {self.words} shows at most {self.max_fps:g}.",
                "Use `format=mp4` or webp.",
            )
        if quality is not None and not self.graded:
            raise UsageError(
                f"`quality` does not go with {self.words}, which is written as it is.", "Drop one of them."
            )

    def about(self, fps: float | None, quality: int | None) -> dict[str, Any]:
        """Return metadata of how a clip is written; None is the default."""
        about: dict[str, Any] = {"fps": self.shown_fps(fps or FPS)} if self.timed else {}
        return about | ({"quality": QUALITY if quality is None else quality} if self.graded else {})

    def write(
        self,
        path: Path,
        frames: Sequence[Image.Image],
        metadata: Mapping[str, Any] | None,
        parameters: str = "",
        *,
        fps: float | None = None,
        quality: int | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write a clip.

        Args:
            path: wanted path; ``_1`` is added to the name of an existing file.
            frames: RGB pictures of one size.
            metadata: metadata of the clip; None writes none.
            parameters: a short text for people, in the PNGs of a folder.
            fps: frames per second, 0.1 to ``max_fps``.
            quality: 0 to 100.
            overwrite: replace an existing file.

        Returns:
            The path of the file, or folder, that was written.

        Raises:
            NarError: the file cannot be written.
        """
        from . import writers

        how = self.about(fps, quality)
        if self.name == "frames":
            return writers.write_frames(path, frames, metadata, parameters, overwrite=overwrite)
        if self.name == "gif":
            beat = 1 / how["fps"]
            times = {"frame_seconds": beat, "hold_seconds": beat}
            return writers.write_gif(path, frames, metadata, **times, overwrite=overwrite)
        write = {"mp4": writers.write_mp4, "webp": writers.write_webp}[self.name]
        return write(path, frames, metadata, **how, overwrite=overwrite)


def check_pace(fps: float | None, quality: int | None) -> None:
    """Refuse values that no format has; None is the usual one.

    Raises:
        UsageError: ``fps`` is not from 0.1 to 240, or ``quality`` not from 0 to 100.
    """
    if fps is not None and not MIN_FPS <= fps <= MAX_FPS:
        raise UsageError(f"`fps` is {fps:g}, expected a number from {MIN_FPS:g} to {MAX_FPS:g}.")
    if quality is not None and not (type(quality) is int and 0 <= quality <= 100):
        raise UsageError(f"`quality` is {quality}, expected a number from 0 to 100.")


_ROWS = (
    ClipFormat("mp4", ".mp4", graded=True),
    ClipFormat("gif", ".gif", max_fps=50.0, beats=100),  # many players refuse a single hundredth
    ClipFormat("webp", ".webp", graded=True, beats=1000),
    ClipFormat("frames", "", timed=False),
)
#: The formats by name; the first is the default.
FORMATS: Mapping[str, ClipFormat] = {row.name: row for row in _ROWS}
#: The formats of files, by suffix.
BY_SUFFIX: Mapping[str, ClipFormat] = {row.suffix: row for row in _ROWS if row.suffix}
