"""Options that several commands share, so that they read and behave the same everywhere."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from ..media.clips import FORMATS, FPS, QUALITY
from ..media.textfiles import expand
from ..settings import check_batch_size
from ..settings.keep import FITS


class Dtype(str, Enum):
    """Number formats."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class FrontierFormat(str, Enum):
    """Formats of the decoding frontier's picture; ``png`` is a filmstrip, ``html`` a page to step through."""

    gif = "gif"
    mp4 = "mp4"
    png = "png"
    html = "html"
    none = "none"


class Theme(str, Enum):
    """Colours of a picture; ``light`` is for papers."""

    dark = "dark"
    light = "light"


class Extent(str, Enum):
    """Extent of a record: each cell, or the axis heads of each cell too."""

    cells = "cells"
    heads = "heads"


class FrontierMode(str, Enum):
    """Uncover the finished picture cell by cell, or decode the tokens known after each step."""

    reveal = "reveal"
    decode = "decode"


Fit = Enum("Fit", {name: name for name in FITS}, type=str)  # type: ignore[misc]
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
Init = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Picture to go on from, or a clip with narcli video."),
]
Keep = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE",
        help="Share of --init to keep, the cells of the first passes.",
        show_default="50%, of a clip half of the frames",
    ),
]
KeepMask = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Keep the cells of --init where this picture is light."),
]
KeepCells = Annotated[
    list[str] | None,
    typer.Option(
        metavar="RANGES", help="Keep these rows and columns of cells, such as 0-3,0-15; may be repeated."
    ),
]
KeepFrames = Annotated[
    int | None, typer.Option(metavar="N", help="Keep the first frames of --init, a multiple of a token's.")
]
FitOption = Annotated[
    Fit | None,
    typer.Option(help="Crop --init to the model's shape, or pad it with white.", show_default="crop"),
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
Sweep = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=V,V,...",
        help="Values of a setting, such as temperature=0.3,0.6: one labelled sheet instead of pictures, its "
        "rows; given twice, also its columns.",
    ),
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
Reproducible = Annotated[
    bool,
    typer.Option(
        "--reproducible",
        help="Always decode --batch-size samples together (auto: 16), so that samples do not depend on it.",
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
    FrontierFormat | None,
    typer.Option(
        help="Picture of the decoding frontier; png is a filmstrip, html a page to step through.",
        show_default=FrontierFormat.gif.value,
    ),
]
FrontierModeOption = Annotated[
    FrontierMode | None,
    typer.Option(
        help="Uncover the finished picture, or decode the tokens of every step.",
        show_default="reveal",
    ),
]
ThemeOption = Annotated[
    Theme | None, typer.Option(help="Colours of the frontier; light is for papers.", show_default="dark")
]
Grid = Annotated[bool, typer.Option("--grid", help="Also write a contact sheet of all pictures.")]
Labels = Annotated[
    bool, typer.Option("--labels", help="Write class or prompt, and seed, on the contact sheet.")
]
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
RecordOption = Annotated[
    Extent | None,
    typer.Option(
        help="Also write how sure the model was of each token, for narcli view; heads: each axis head apart.",
    ),
]
NoMetadata = Annotated[
    bool, typer.Option("--no-metadata", help="Leave the settings out of the files; they cannot be rerun.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]
