"""Options of image, video, compare, rerun and decode as rows of data."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from enum import Enum
from typing import Annotated, Any, NamedTuple, TypeVar

from ..prompts import Prompt
from ..runs.recipe import Recipe
from ..runs.repeat import Trust, refused
from . import options
from .console import Console

F = TypeVar("F", bound=Callable[..., None])

WHAT, KEPT, DRAWING = "What to make", "Going on from a picture or clip", "Sampling"
MODEL, OUTPUT, BEHAVIOUR = "Model", "Output", "Behaviour"
BOTH, IMAGE, VIDEO = ("image", "video"), ("image",), ("video",)


class Row(NamedTuple):
    """An option as data.

    Args:
        name: parameter of the command; a field of the recipe has the same, but for ``FIELDS``.
        hint: its type, and how Typer shows it.
        default: value if it is not given.
        panel: title of its group in the help.
        kinds: kinds of runs that have it.
    """

    name: str
    hint: Any
    default: Any
    panel: str
    kinds: tuple[str, ...] = BOTH


ROWS = (
    Row("classes", options.Classes, None, WHAT),
    Row("prompt", options.Prompts, None, WHAT, IMAGE),
    Row("prompt_file", options.PromptFile, None, WHAT, IMAGE),
    Row("frames_from", options.FramesFrom, None, WHAT, VIDEO),
    Row("num", options.Num, 1, WHAT),
    Row("seed", options.Seed, None, WHAT),
    Row("frames", options.Frames, None, WHAT, VIDEO),
    Row("init", options.Init, None, KEPT),
    Row("keep", options.Keep, None, KEPT),
    Row("keep_mask", options.KeepMask, None, KEPT),
    Row("keep_cells", options.KeepCells, None, KEPT),
    Row("keep_frames", options.KeepFrames, None, KEPT, VIDEO),
    Row("fit", options.FitOption, None, KEPT),
    Row("cfg_scale", options.CfgScale, None, DRAWING),
    Row("cfg_interval", options.CfgInterval, None, DRAWING),
    Row("temperature", options.Temperature, None, DRAWING),
    Row("top_k", options.TopK, None, DRAWING),
    Row("top_p", options.TopP, None, DRAWING),
    Row("more_smooth", options.MoreSmooth, None, DRAWING, IMAGE),
    Row("sweep", options.Sweep, None, DRAWING, IMAGE),
    Row("model", options.Model, None, MODEL),
    Row("tokenizer", options.Tokenizer, None, MODEL),
    Row("text_encoder", options.TextEncoder, None, MODEL, IMAGE),
    Row("revision", options.Revision, None, MODEL),
    Row("order", options.OrderOption, None, MODEL),
    Row("device", options.Device, "auto", MODEL),
    Row("text_device", options.TextDevice, None, MODEL, IMAGE),
    Row("dtype", options.DtypeOption, options.Dtype.auto, MODEL),
    Row("batch_size", options.BatchSize, None, MODEL),
    Row("reproducible", options.Reproducible, False, MODEL),
    Row("output", options.Output, None, OUTPUT),
    Row("format", options.Format, None, OUTPUT, VIDEO),
    Row("fps", options.Fps, None, OUTPUT, VIDEO),
    Row("quality", options.Quality, None, OUTPUT, VIDEO),
    Row("scale", options.Scale, None, OUTPUT),
    Row("frontier", options.Frontier, None, OUTPUT),
    Row("frontier_mode", options.FrontierModeOption, None, OUTPUT),
    Row("theme", options.ThemeOption, None, OUTPUT),
    Row("grid", options.Grid, False, OUTPUT, IMAGE),
    Row("labels", options.Labels, False, OUTPUT, IMAGE),
    Row("save_tokens", options.SaveTokens, False, OUTPUT),
    Row("record", options.RecordOption, None, OUTPUT),
    Row("no_metadata", options.NoMetadata, False, OUTPUT),
    Row("overwrite", options.Overwrite, False, OUTPUT),
    Row("as_json", options.Json, False, BEHAVIOUR),
    Row("quiet", options.Quiet, False, BEHAVIOUR),
    Row("offline", options.Offline, False, BEHAVIOUR),
    Row("yes", options.Yes, False, BEHAVIOUR),
    Row("dry_run", options.DryRun, False, BEHAVIOUR),
)
RECIPE = {field.name for field in dataclasses.fields(Recipe)}
FIELDS = {"grid": "sheet"}  # option -> field of the recipe, where they differ


def of(kind: str) -> list[Row]:
    """Options of a kind of run."""
    return [row for row in ROWS if kind in row.kinds]


def takes(rows: Iterable[Row], *own: tuple[str, Any, Any], optional: bool = False) -> Callable[[F], F]:
    """Give a command options, which it gets as keywords.

    Args:
        rows: the options.
        own: name, hint and default (or ``...``) of the command's own options, which come first.
        optional: make the value of an option that is not given None, or False for a switch.
    """
    parameters = [_parameter(name, hint, default) for name, hint, default in own]
    for row in rows:
        kind, info = row.hint.__origin__, copy(row.hint.__metadata__[0])
        info.rich_help_panel, default = row.panel, row.default
        if optional:
            info.show_default, default = False, False if kind is bool else None
            kind = kind if kind is bool else kind | None
        parameters.append(_parameter(row.name, Annotated[kind, info], default))

    def give(command: F) -> F:
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        return command

    return give


def _parameter(name: str, hint: Any, default: Any) -> inspect.Parameter:
    empty = inspect.Parameter.empty if default is ... else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=empty, annotation=hint)


def fields_of(values: Mapping[str, Any], *, given: bool = False) -> dict[str, Any]:
    """Return fields of the recipe from values of options.

    Args:
        values: values by the names of the options; ``prompt`` and ``prompt_file`` are no fields.
        given: leave out options that were not given.
    """
    made = {FIELDS.get(name, name): value for name, value in values.items()}
    return {
        name: value.value if isinstance(value, Enum) else value
        for name, value in made.items()
        if name in RECIPE and (is_given(value) or not given)
    }


def is_given(value: Any) -> bool:
    """Tell whether an option has a value that somebody typed; 0 is one."""
    return value is not None and value is not False and value != []


def trust_of(chosen: Mapping[str, Any], console: Console, prompts: Sequence[Prompt] = ()) -> Trust:
    """Return the user's choices and permissions beside files, from values of options."""

    def ask(what: str) -> None:
        if not console.can_ask:
            raise refused(what)
        console.confirm(what, "Nothing was downloaded.")

    given = fields_of(chosen, given=True) | ({"prompts": prompts} if prompts else {})
    free = any(chosen.get(name) for name in ("yes", "offline", "dry_run"))  # allowed, or there will be none
    return Trust(given, chosen["yes"], (lambda what: None) if free else ask, console.warn)
