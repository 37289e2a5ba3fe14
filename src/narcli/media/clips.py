"""Formats of clips, a row each. Imports what writes them only when a clip is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

FPS, QUALITY = 8.0, 80  # where none are given
MIN_FPS, MAX_FPS = 0.1, 240.0


@dataclass(frozen=True)
class ClipFormat:
    """A format of clips.

    Args:
        name: as ``--format`` and the metadata have it.
        suffix: of its files; "" is a folder.
        timed: whether it shows frames at a rate.
        graded: whether it has a quality.
        max_fps: most frames per second that players show.
        beats: of a second, in whole numbers of which it times a frame; None is exact.
    """

    name: str
    suffix: str
    timed: bool = True
    graded: bool = False
    max_fps: float = MAX_FPS
    beats: int | None = None

    @property
    def words(self) -> str:
        """Its suffix, or that it is a folder."""
        return self.suffix or "a folder of frames"

    def shown_fps(self, fps: float) -> float:
        """The frames per second that it can show, nearest to those wanted."""
        if self.beats is None:
            return fps
        return self.beats / max(round(self.beats / fps), ceil(self.beats / self.max_fps))

    def check(self, fps: float | None, quality: int | None) -> None:
        """Refuse settings that it does not have.

        Raises:
            UsageError: ``fps`` or ``quality`` is given, and it has none, or not so many.
        """
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
        """Metadata of how a clip is written; None is the usual value."""
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
            path: the desired name; ``_1`` is added if it is taken by then.
            frames: RGB pictures of one size.
            metadata: its settings; None for none.
            parameters: a short text for people, in the PNGs of a folder.
            fps: frames per second, 0.1 to ``max_fps``.
            quality: 0 to 100.
            overwrite: replace an existing file.

        Raises:
            NarError: it cannot be written.
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
