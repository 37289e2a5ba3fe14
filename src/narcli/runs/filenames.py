"""Names and formats of a run's files, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..media.clips import BY_SUFFIX, FORMATS, ClipFormat
from ..media.names import Outputs, default_name, fields_of, resolve_outputs
from ..outpaint import check_keep
from ..settings import Sample
from .recipe import Recipe

if TYPE_CHECKING:
    from ..models.tokenizer import TokenizerConfig
    from ..order import Order

FRONTIER = "_frontier"  # before the suffix of the file beside the first sample's
SWEEP = "_sweep"  # before the suffix of the sheet of a sweep, named after the first sample
SHEET = "_grid.png"  # ending of the contact sheet beside the pictures
TOKENS = "_tokens.safetensors"  # ending of the tokens beside a sample
RECORD = "_record.safetensors"  # ending of the record beside a sample


def name_files(
    recipe: Recipe, samples: Sequence[Sample], model: str, reserved: Sequence[Path] = ()
) -> Outputs:
    """Choose a file for each sample, and those of frontier and sheet beside the first one; one for a sweep.

    Raises:
        UsageError: an impossible name, or a setting that the files' format does not have.
        NarError: a folder that cannot be written to, or one of other files that would be overwritten.
    """
    named = [fields_of(sample.entry, sample.seed) | {"model": model} for sample in samples]
    default = default_name(recipe.kind, named[0])
    if recipe.ranges:
        named, default = named[:1], f"{default}{SWEEP}"
    companions = [f"{FRONTIER}.{recipe.frontier}"] * (recipe.frontier != "none") + [SHEET] * recipe.sheet
    outputs = resolve_outputs(
        None if recipe.output is None else str(recipe.output),
        named,
        default=default,
        suffixes=_suffixes(recipe),
        companions=companions,
        beside=[TOKENS] * recipe.save_tokens + [RECORD] * (recipe.record is not None),
        overwrite=recipe.overwrite,
        reserved=reserved,
    )
    suffix = suffix_of(recipe, outputs)
    if recipe.kind == "video":
        format_of(suffix).check(recipe.fps, recipe.quality)
    if recipe.overwrite and not suffix:
        from ..media.writers import check_frames

        for path in outputs.paths:
            check_frames(path)
    return outputs


def suffix_of(recipe: Recipe, outputs: Outputs | None) -> str:
    """Return the ending of the files, the default before they are named; "" for folders of frames."""
    if recipe.format == "frames":
        return ""
    return outputs.paths[0].suffix.lower() if outputs is not None else _suffixes(recipe)[0]


def _suffixes(recipe: Recipe) -> list[str]:
    """Return the endings that the samples' files may have; the first is the default."""
    if recipe.kind == "image":
        return [".png"]
    return list(BY_SUFFIX) if recipe.format is None else [FORMATS[recipe.format].suffix]


def format_of(suffix: str) -> ClipFormat:
    """Return the format of clips with this ending; "" is folders of frames."""
    return BY_SUFFIX.get(suffix, FORMATS["frames"])


def check_fit(recipe: Recipe, order: Order, tokenizer: TokenizerConfig) -> None:
    """Compare a recipe with the order and the sizes of a model.

    Raises:
        UsageError: recipe and model do not fit.
        ValueError: the tokenizer does not fit the grid.
    """
    if recipe.frontier_mode == "reveal" and (tokenizer.holistic or order.has_scales):
        raise UsageError(
            "`frontier_mode` is reveal, but "
            + (
                "no token of this model has a place in the frames."
                if tokenizer.holistic
                else "each step of this model changes the whole picture."
            ),
            "Use `frontier_mode=decode`, or `frontier=none`.",
        )
    if recipe.init is not None:
        check_keep(recipe.init, recipe.keeping, order, tokenizer)
    from ..records import check_extent
    from ..viz.viewer import check_size

    check_extent(order, recipe.record)
    if recipe.frontier == "html":
        check_size(order)
    made = tokenizer.clip_size(order.sizes)[0]
    if recipe.frames is not None and recipe.frames > made:
        raise UsageError(
            f"`frames` is {recipe.frames}, but the model makes clips of {made} frames.",
            "It draws all frames of a clip together and cannot go on after them; "
            f"give at most {made}, or a lower `fps` to make it last longer.",
        )
