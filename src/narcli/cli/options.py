"""Options that several commands share, so that they read and behave the same everywhere."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import typer

from ..errors import UsageError
from ..media.clips import FORMATS, FPS, QUALITY
from ..media.textfiles import expand
from ..prompts import Prompt
from ..runs.recipe import Recipe
from ..runs.repeat import Trust, refused
from ..settings import check_batch_size
from .console import Console

F = TypeVar("F", bound=Callable[..., None])


class Dtype(str, Enum):
    """Number formats."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class FrontierFormat(str, Enum):
    """Formats of the decoding frontier's picture; ``png`` is a filmstrip."""

    gif = "gif"
    mp4 = "mp4"
    png = "png"
    none = "none"


class FrontierMode(str, Enum):
    """Uncover the finished picture cell by cell, or decode the tokens known after each step."""

    reveal = "reveal"
    decode = "decode"


ClipFormat = Enum("ClipFormat", {name: name for name in FORMATS}, type=str)  # type: ignore[misc]


def _check_device(name: str | None) -> str | None:
    if name and not re.fullmatch("auto|cpu|mps|cuda(:[0-9]{1,3})?", name):
        raise UsageError(
            f"There is no device {name[:40]!r}.", "Choose auto, cpu, mps, cuda, or cuda:1 and so on."
        )
    return name


def _read_batch_size(text: str) -> int | None:
    """Read ``"8"`` as 8, and ``"auto"`` as None."""
    if text == "auto":
        return None
    try:
        return check_batch_size(int(text))
    except ValueError:
        raise UsageError(f"`batch_size` is {text[:40]!r}, expected auto or a whole number.") from None


def whole_numbers(text: str, option: str, example: str) -> tuple[int, ...]:
    """Read ``"1,2,4"`` as ``(1, 2, 4)``.

    Raises:
        UsageError: anything but whole numbers above 0.
    """
    parts = text.split(",")
    if not all(part.strip().isascii() and part.strip().isdigit() and int(part) for part in parts):
        raise UsageError(f"{option} is {text!r}, expected whole numbers such as {example}.")
    return tuple(map(int, parts))


# --- what to make ---------------------------------------------------------------------------------

Classes = Annotated[
    list[str] | None,
    typer.Option(
        "--class", metavar="CLASS", help="Id or name, or several: 207,cat,'polar bear'; may be repeated."
    ),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt", metavar="TEXT", help="Text to draw; may be repeated; - reads lines of standard input."
    ),
]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        parser=expand,
        help="File with a prompt a line, or a .csv or .tsv with a column 'prompt'.",
    ),
]
FramesFrom = Annotated[
    list[str] | None,
    typer.Option(metavar="CLIP", help="Video, or folder of pictures, to go on from; may be repeated."),
]
Num = Annotated[int, typer.Option("--num", "-n", help="Samples of each class, prompt or clip.")]
Seed = Annotated[
    int | None,
    typer.Option(help="Seed of the first sample; later ones add 1. Random if omitted."),
]

# --- sampling: None is the model's default --------------------------------------------------------

MODELS_OWN = "the model's"
CfgScale = Annotated[
    float | None,
    typer.Option(
        help="Guidance scale; 1 or less is no guidance. VAR counts from 0: 0 is none, 1.5 its default.",
        show_default=MODELS_OWN,
    ),
]
CfgInterval = Annotated[
    int | None,
    typer.Option(help="Tokens after which guidance ends; -1 is never.", show_default=MODELS_OWN),
]
Temperature = Annotated[
    float | None,
    typer.Option(help="Randomness of the draw; 0 takes the most likely token.", show_default=MODELS_OWN),
]
TopK = Annotated[
    int | None,
    typer.Option(help="Draw from this many most likely tokens; 0 is all.", show_default=MODELS_OWN),
]
TopP = Annotated[
    float | None,
    typer.Option(
        help="Draw from the most likely tokens of this total probability; 1 is all.", show_default=MODELS_OWN
    ),
]
MoreSmooth = Annotated[
    bool | None,
    typer.Option("--more-smooth", help="Mix codes near the drawn ones, for smoother pictures; VAR only."),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        parser=_read_batch_size,
        help="Samples decoded together; auto looks at the memory.",
        show_default="auto",
    ),
]

# --- what it runs with ----------------------------------------------------------------------------

Model = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Name, Hub repository, file or folder; see narcli models.")
]
Tokenizer = Annotated[
    str | None, typer.Option(metavar="TOKENIZER", help="Tokenizer to use instead of the model's own.")
]
TextEncoder = Annotated[
    str | None,
    typer.Option(metavar="ENCODER", help="Text encoder to use instead of the model's own; with --prompt."),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the model's Hub repository.")]
OrderOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Decoding order; zipar:W decodes a raster model with ZipAR.",
        show_default=MODELS_OWN,
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Use files on disk only, never the network.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Download several GB without asking.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what the run would download, need and write; run nothing.")
]
Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        callback=_check_device,
        help="Device: auto, cpu, cuda, cuda:1 ... or mps.",
    ),
]
TextDevice = Annotated[
    str | None,
    typer.Option(
        metavar="DEVICE",
        callback=_check_device,
        help="Device of the text encoder; with --prompt.",
        show_default="--device",
    ),
]
DtypeOption = Annotated[
    Dtype, typer.Option("--dtype", help="Number format; auto is the fastest on the device.")
]

# --- clips ----------------------------------------------------------------------------------------

Frames = Annotated[
    int | None,
    typer.Option(help="Number of frames to keep, the first ones.", show_default="all the model's"),
]
Fps = Annotated[float | None, typer.Option(help="Frames per second.", show_default=f"{FPS:g}")]
Format = Annotated[
    ClipFormat | None,
    typer.Option(
        help="Format of the clips; frames is a folder of PNGs.",
        show_default="by --output, or mp4",
    ),
]
Quality = Annotated[
    int | None,
    typer.Option(help="Quality of mp4 and webp, 0 to 100.", show_default=f"{QUALITY}"),
]

# --- what comes out -------------------------------------------------------------------------------

Frontier = Annotated[
    FrontierFormat, typer.Option(help="Picture of the decoding frontier; png is a filmstrip.")
]
FrontierModeOption = Annotated[
    FrontierMode | None,
    typer.Option(
        help="Uncover the finished picture, or decode the tokens of every step.",
        show_default="reveal",
    ),
]
Grid = Annotated[bool, typer.Option("--grid", help="Also write a contact sheet of all pictures.")]
Scale = Annotated[
    int | None,
    typer.Option(
        metavar="FACTOR",
        help="Factor that enlarges pictures; auto goes up to 256 pixels.",
        show_default="auto",
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help="File, folder, or template such as out/{class_name}_{seed}.png.",
    ),
]
SaveTokens = Annotated[
    bool,
    typer.Option("--save-tokens", help="Also write the tokens of each sample, for narcli decode."),
]
NoMetadata = Annotated[
    bool, typer.Option("--no-metadata", help="Leave the settings out of the files; they cannot be rerun.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]

# --- the options of image, video, rerun and decode ------------------------------------------------

WHAT, DRAWING, MODEL, OUTPUT, BEHAVIOUR = "What to make", "Sampling", "Model", "Output", "Behaviour"
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
    Row("classes", Classes, None, WHAT),
    Row("prompt", Prompts, None, WHAT, IMAGE),
    Row("prompt_file", PromptFile, None, WHAT, IMAGE),
    Row("frames_from", FramesFrom, None, WHAT, VIDEO),
    Row("num", Num, 1, WHAT),
    Row("seed", Seed, None, WHAT),
    Row("frames", Frames, None, WHAT, VIDEO),
    Row("cfg_scale", CfgScale, None, DRAWING),
    Row("cfg_interval", CfgInterval, None, DRAWING),
    Row("temperature", Temperature, None, DRAWING),
    Row("top_k", TopK, None, DRAWING),
    Row("top_p", TopP, None, DRAWING),
    Row("more_smooth", MoreSmooth, None, DRAWING, IMAGE),
    Row("model", Model, None, MODEL),
    Row("tokenizer", Tokenizer, None, MODEL),
    Row("text_encoder", TextEncoder, None, MODEL, IMAGE),
    Row("revision", Revision, None, MODEL),
    Row("order", OrderOption, None, MODEL),
    Row("device", Device, "auto", MODEL),
    Row("text_device", TextDevice, None, MODEL, IMAGE),
    Row("dtype", DtypeOption, Dtype.auto, MODEL),
    Row("batch_size", BatchSize, None, MODEL),
    Row("output", Output, None, OUTPUT),
    Row("format", Format, None, OUTPUT, VIDEO),
    Row("fps", Fps, None, OUTPUT, VIDEO),
    Row("quality", Quality, None, OUTPUT, VIDEO),
    Row("scale", Scale, None, OUTPUT),
    Row("frontier", Frontier, FrontierFormat.gif, OUTPUT),
    Row("frontier_mode", FrontierModeOption, None, OUTPUT),
    Row("grid", Grid, False, OUTPUT, IMAGE),
    Row("save_tokens", SaveTokens, False, OUTPUT),
    Row("no_metadata", NoMetadata, False, OUTPUT),
    Row("overwrite", Overwrite, False, OUTPUT),
    Row("as_json", Json, False, BEHAVIOUR),
    Row("quiet", Quiet, False, BEHAVIOUR),
    Row("offline", Offline, False, BEHAVIOUR),
    Row("yes", Yes, False, BEHAVIOUR),
    Row("dry_run", DryRun, False, BEHAVIOUR),
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
