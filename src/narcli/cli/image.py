"""``narcli image``: pictures of classes or prompts, their settings inside, and their frontier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..prompts import Prompt, collect
from ..settings import BATCH_SIZE
from . import options
from .options import Dtype, FrontierFormat
from .run import Run, sampling_settings

if TYPE_CHECKING:
    from ..pipeline import Clip

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
    batch_size: options.BatchSize = BATCH_SIZE,
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
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    offline: options.Offline = False,
    yes: options.Yes = False,
) -> None:
    """Make pictures of a class, or of a text.

    Beside the pictures it writes an animation of the order in which they were decoded.
    """
    sampling = sampling_settings(
        cfg_scale=cfg_scale, cfg_interval=cfg_interval, temperature=temperature, top_k=top_k, top_p=top_p
    )
    prompts = _prompts(classes, prompt, prompt_file, text_encoder=text_encoder, text_device=text_device)
    run = Pictures(
        classes=classes, prompts=prompts, num=num, seed=seed, sampling=sampling, batch_size=batch_size,
        model=model, tokenizer=tokenizer, text_encoder=text_encoder, revision=revision,
        device=device, text_device=text_device, dtype=dtype.value,
        frontier=frontier, frontier_mode=frontier_mode, scale=scale, output=output, overwrite=overwrite,
        as_json=as_json, quiet=quiet, offline=offline, yes=yes, grid=grid,
    )  # fmt: skip
    run()


def _prompts(
    classes: str | None, prompts: Sequence[str] | None, file: Path | None, **text: str | None
) -> list[Prompt]:
    """What ``--prompt`` and ``--prompt-file`` say; none with ``--class``, which excludes them."""
    if prompts or file is not None:
        if classes is not None:
            raise UsageError("--class and --prompt exclude each other.", "Each is for models of its kind.")
        return collect(prompts or (), file)
    if given := [name for name, value in text.items() if value is not None]:
        raise UsageError(f"--{given[0].replace('_', '-')} goes with --prompt.", "Leave it out.")
    return []


@dataclass(kw_only=True)
class Pictures(Run):
    """A run of pictures; ``grid`` asks for a contact sheet of all of them."""

    kind = "image"
    noun = "picture"
    ways = "a class, --class 207 or --class 'golden retriever', or a prompt, --prompt 'a red apple'"
    grid: bool

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

    def write_sample(self, path: Path, clip: Clip, metadata: dict[str, Any]) -> Path:
        """A PNG."""
        from ..pipeline import describe
        from ..writers import write_png

        return write_png(path, clip[0], metadata, describe(metadata), overwrite=self.overwrite)

    def write_companions(self) -> None:
        """The frontier, and all pictures on one sheet, a row for each class where that looks well."""
        super().write_companions()
        if not self.grid:
            return
        from ..pictures import contact_sheet, enlarge
        from ..writers import write_png

        with self.timed("write"):
            pictures = [enlarge(result.image, self.common["scale"]) for result in self.kept]
            sheet = contact_sheet(pictures, rows=len({sample.entry for sample in self.samples}))
            about, path = self.about_all() | {"contact_sheet": True}, self.outputs.companions[-1]
            self.files.append(write_png(path, sheet, about, "", overwrite=self.overwrite))
