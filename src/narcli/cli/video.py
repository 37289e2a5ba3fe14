"""``narcli video``: clips of classes, each with its settings inside, and the frontier that drew them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import NarError, UsageError
from . import options
from .options import Dtype, FrontierFormat
from .run import Run

if TYPE_CHECKING:
    from ..decoding import Clip
    from ..memory import Files
    from ..models.larp import LARPConfig
    from ..models.vq import VQConfig

FPS, QUALITY = 8.0, 80
MIN_FPS, MAX_FPS = 0.1, 240.0
FORMAT_FPS = {".gif": 50.0}  # many players refuse a single hundredth of a second
BEATS = {".gif": 100, ".webp": 1000}  # what these formats count, in a second


class ClipFormat(str, Enum):
    """What a clip is written as; ``frames`` is a folder of PNGs."""

    mp4 = "mp4"
    gif = "gif"
    webp = "webp"
    frames = "frames"


def video(
    classes: options.Classes = None,
    frames: Annotated[
        int | None,
        typer.Option("--frames", help="Keep this many, the first ones.", show_default="all the model's"),
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second.", show_default=f"{FPS:g}")] = None,
    num: options.Num = 1,
    seed: options.Seed = None,
    cfg_scale: options.CfgScale = None,
    cfg_interval: options.CfgInterval = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    batch_size: options.BatchSize = None,
    model: options.Model = None,
    tokenizer: options.Tokenizer = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    dtype: options.DtypeOption = Dtype.auto,
    format: Annotated[
        ClipFormat | None,
        typer.Option(
            help="Format of the clips; frames is a folder of PNGs.", show_default="by --output, or mp4"
        ),
    ] = None,
    quality: Annotated[
        int | None, typer.Option(help="Quality of mp4 and webp, 0 to 100.", show_default=f"{QUALITY}")
    ] = None,
    frontier: options.Frontier = FrontierFormat.gif,
    frontier_mode: options.FrontierModeOption = None,
    scale: options.Scale = None,
    output: options.Output = None,
    save_tokens: options.SaveTokens = False,
    no_metadata: options.NoMetadata = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    offline: options.Offline = False,
    yes: options.Yes = False,
    dry_run: options.DryRun = False,
) -> None:
    """Make video clips of a class.

    Beside the clips it writes an animation of the order in which they were decoded.
    """
    Clips(**locals())()  # the options are its fields


@dataclass(kw_only=True)
class Clips(Run):
    """A run of clips; ``format`` None is that of the files' names."""

    kind = "video"
    noun = "clip"
    ways = "a class: --class 5 or --class kangaroo"
    frames: int | None
    fps: float | None
    format: ClipFormat | None
    quality: int | None

    @property
    def suffixes(self) -> list[str]:
        """Those of the format, or of all that a name may choose."""
        if self.format is None:
            return [".mp4", ".gif", ".webp"]
        return [""] if self.format == "frames" else [f".{self.format.value}"]

    def check(self) -> None:
        """Also the options of clips."""
        super().check()
        if self.frames is not None and self.frames < 1:
            raise UsageError(f"--frames is {self.frames}, expected 1 or more.")
        if self.fps is not None and not MIN_FPS <= self.fps <= MAX_FPS:
            raise UsageError(f"--fps is {self.fps:g}, expected a number from {MIN_FPS:g} to {MAX_FPS:g}.")
        if self.quality is not None and not 0 <= self.quality <= 100:
            raise UsageError(f"--quality is {self.quality}, expected a number from 0 to 100.")

    @property
    def suffix(self) -> str:
        """Ending of the clips' files; "" for folders of frames."""
        return "" if self.format == "frames" else self.outputs.paths[0].suffix.lower()

    def name_files(self, model: str) -> None:
        """Also refuse what the format, known from the names, does not have, and folders of other files."""
        from ..media.writers import check_frames

        super().name_files(model)
        words = self.suffix or "a folder of frames"
        if self.fps is not None and not self.suffix:
            raise UsageError(f"--fps does not go with {words}.", "Drop one of them.")
        if self.fps is not None and self.fps > FORMAT_FPS.get(self.suffix, MAX_FPS):
            raise UsageError(
                f"--fps is {self.fps:g}, and {words} shows at most {FORMAT_FPS[self.suffix]:g}.",
                "Use --format mp4 or webp.",
            )
        if self.quality is not None and self.suffix not in (".mp4", ".webp"):
            raise UsageError(
                f"--quality does not go with {words}, which is written as it is.", "Drop one of them."
            )
        if self.overwrite and not self.suffix:
            for path in self.outputs.paths:
                check_frames(path)

    def check_fit(self, grid: tuple[int, ...], tokenizer: VQConfig | LARPConfig) -> None:
        """Also the number of frames."""
        super().check_fit(grid, tokenizer)
        made = tokenizer.clip_size(grid)[0]
        if self.frames is not None and self.frames > made:
            raise UsageError(
                f"--frames is {self.frames}, but the model makes clips of {made} frames.",
                "It draws all frames of a clip together and cannot go on after them; "
                f"give at most {made}, or a lower --fps to make it last longer.",
            )

    def fit(self, grid: tuple[int, ...], tokenizer: VQConfig | LARPConfig) -> dict[str, Any]:
        """Also the frames and how they are written."""
        made = tokenizer.clip_size(grid)[0]
        about: dict[str, Any] = {
            "format": self.suffix.removeprefix(".") or "frames",
            "frames": self.frames or made,
            "model_frames": made,
        }
        if self.suffix:
            about |= {"fps": shown_fps(self.suffix, self.fps or FPS)}
        if self.suffix in (".mp4", ".webp"):
            about |= {"quality": QUALITY if self.quality is None else self.quality}
        return super().fit(grid, tokenizer) | about

    def about_files(self) -> Files:
        """Also the frames and their format."""
        suffix = self.suffix if hasattr(self, "outputs") else self.suffixes[0]
        return replace(super().about_files(), suffix=suffix, frames=self.frames)

    def write_sample(self, path: Path, clip: Clip, metadata: dict[str, Any] | None) -> Path:
        """The first frames in the format wanted; as PNGs where that fails.

        Raises:
            NarError: it failed, and where the frames are.
        """
        from ..media.atomic import companion
        from ..media.writers import write_frames, write_gif, write_mp4, write_webp
        from ..results import describe

        frames = clip[: self.common["frames"]]
        words = describe(metadata) if metadata is not None else ""
        if not self.suffix:
            return write_frames(path, frames, metadata, words, overwrite=self.overwrite)
        fps, over = self.common["fps"], self.overwrite
        try:
            if self.suffix == ".gif":
                beat = 1 / fps
                return write_gif(
                    path, frames, metadata, frame_seconds=beat, hold_seconds=beat, overwrite=over
                )
            write = write_mp4 if self.suffix == ".mp4" else write_webp
            return write(path, frames, metadata, fps=fps, quality=self.common["quality"], overwrite=over)
        except Exception as error:  # encoders fail in many ways
            folder = write_frames(companion(path, "_frames"), frames, metadata, words)
            self.files.append(folder)
            kept = f"The frames are kept in {folder}."
            if isinstance(error, NarError):
                error.hint = f"{kept} {error.hint or ''}".rstrip()
                raise
            raise NarError(f"Could not write {path}: {error}", kept) from error


def shown_fps(suffix: str, fps: float) -> float:
    """The frames per second that a format can show, nearest to those wanted; it counts whole beats."""
    if suffix not in BEATS:
        return fps
    beats, most = BEATS[suffix], FORMAT_FPS.get(suffix, MAX_FPS)
    return beats / max(round(beats / fps), ceil(beats / most))
