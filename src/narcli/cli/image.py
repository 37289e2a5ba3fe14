"""``narcli image``: pictures of classes or prompts, their settings inside, and their frontier."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..prompts import collect
from . import options
from .options import Dtype, FrontierFormat
from .run import Run

if TYPE_CHECKING:
    from ..decoding import Clip
    from ..memory import Files

SHEET = "_grid.png"  # ending of the contact sheet beside the pictures


def image(
    classes: options.Classes = None,
    prompt: options.Prompts = None,
    prompt_file: options.PromptFile = None,
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
    text_encoder: options.TextEncoder = None,
    revision: options.Revision = None,
    device: options.Device = "auto",
    text_device: options.TextDevice = None,
    dtype: options.DtypeOption = Dtype.auto,
    frontier: options.Frontier = FrontierFormat.gif,
    frontier_mode: options.FrontierModeOption = None,
    grid: options.Grid = False,
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
    """Make pictures of a class, or of a text.

    Beside the pictures it writes an animation of the order in which they were decoded.
    """
    Pictures(**locals())()  # the options are its fields


@dataclass(kw_only=True)
class Pictures(Run):
    """A run of pictures of classes or prompts; ``grid`` asks for a contact sheet of all of them."""

    kind = "image"
    noun = "picture"
    ways = "a class, --class 207 or --class 'golden retriever', or a prompt, --prompt 'a red apple'"
    prompt: list[str] | None
    prompt_file: Path | None
    grid: bool

    def check(self) -> None:
        """Also the prompts, which exclude a class."""
        if self.prompt or self.prompt_file is not None:
            if self.classes:
                raise UsageError(
                    "--class and --prompt exclude each other.", "Each is for models of its kind."
                )
            self.prompts = collect(self.prompt or (), self.prompt_file, self.console.note)
        elif not self.prompts:
            for option, value in (("encoder", self.text_encoder), ("device", self.text_device)):
                if value is not None:
                    raise UsageError(f"--text-{option} goes with --prompt.", "Leave it out.")
        super().check()

    @property
    def suffixes(self) -> list[str]:
        """PNG only."""
        return [".png"]

    @property
    def endings(self) -> list[str]:
        """The frontier's, and the contact sheet's."""
        return super().endings + [SHEET] * self.grid

    @property
    def kept_samples(self) -> int:
        """All, for the contact sheet."""
        return len(self.samples) if self.grid else super().kept_samples

    def about_files(self) -> Files:
        """Also the contact sheet."""
        return replace(super().about_files(), sheet=self.grid)

    def write_sample(self, path: Path, clip: Clip, metadata: dict[str, Any] | None) -> Path:
        """A PNG."""
        from ..media.writers import write_png
        from ..results import describe

        words = describe(metadata) if metadata is not None else ""
        return write_png(path, clip[0], metadata, words, overwrite=self.overwrite)

    def write_companions(self) -> None:
        """The frontier, and all pictures on one sheet, a row for each class where that looks well."""
        super().write_companions()
        if not self.grid:
            return
        from ..media.writers import write_png
        from ..viz.sheets import contact_sheet

        with self.timed("write"):
            pictures = [result.image for result in self.kept]
            rows = len({sample.entry for sample in self.samples})
            sheet = contact_sheet(pictures, rows, self.common["scale"])
            about = None if self.no_metadata else self.about_all() | {"contact_sheet": True}
            path = self.outputs.companions[-1]
            self.files.append(write_png(path, sheet, about, overwrite=self.overwrite))

    def document(self) -> dict[str, Any]:
        """Also the contact sheet."""
        return super().document() | ({"contact_sheet": True} if self.grid else {})
