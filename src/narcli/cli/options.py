"""Options that several commands share, so that they read and behave the same everywhere."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from ..media.textfiles import expand
from ..settings import check_batch_size


class Dtype(str, Enum):
    """Number formats."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class FrontierFormat(str, Enum):
    """What shows the decoding frontier of a run; ``png`` is a filmstrip."""

    gif = "gif"
    mp4 = "mp4"
    png = "png"
    none = "none"


class FrontierMode(str, Enum):
    """Uncover the finished picture cell by cell, or really decode the tokens known after each step."""

    reveal = "reveal"
    decode = "decode"


def _check_device(name: str) -> str:
    if not re.fullmatch("auto|cpu|mps|cuda(:[0-9]{1,3})?", name):
        raise UsageError(
            f"There is no device {name[:40]!r}.", "Choose auto, cpu, mps, cuda, or cuda:1 and so on."
        )
    return name


def _read_batch_size(text: str) -> int | None:
    """``"8"`` -> 8; None is auto."""
    if text == "auto":
        return None
    try:
        return check_batch_size(int(text))
    except ValueError:
        raise UsageError(f"--batch-size is {text[:40]!r}, expected auto or a whole number.") from None


def whole_numbers(text: str, option: str, example: str) -> tuple[int, ...]:
    """``"1,2,4"`` -> ``(1, 2, 4)``.

    Raises:
        UsageError: when it is not that.
    """
    parts = text.split(",")
    if not all(part.strip().isascii() and part.strip().isdigit() and int(part) for part in parts):
        raise UsageError(f"{option} is {text!r}, expected whole numbers such as {example}.")
    return tuple(map(int, parts))


# --- what to make ---------------------------------------------------------------------------------

Classes = Annotated[
    list[str] | None,
    typer.Option(
        "--class", metavar="CLASS", help="Id or name, or several: 207,cat,'polar bear'; may be given again."
    ),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt", metavar="TEXT", help="What to draw; may be given again; - reads lines of standard input."
    ),
]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", parser=expand, help="A prompt a line, or a .csv or .tsv with a column 'prompt'."
    ),
]
Num = Annotated[int, typer.Option("--num", "-n", help="Samples of each class or prompt.")]
Seed = Annotated[
    int | None,
    typer.Option(help="Seed of the first sample; later ones add 1. Random if omitted."),
]

# --- sampling: None is the model's default --------------------------------------------------------

MODELS_OWN = "the model's"
CfgScale = Annotated[
    float | None,
    typer.Option(help="Guidance scale; up to 1 is without guidance.", show_default=MODELS_OWN),
]
CfgInterval = Annotated[
    int | None,
    typer.Option(help="Guidance ends after this many tokens; -1 is never.", show_default=MODELS_OWN),
]
Temperature = Annotated[
    float | None, typer.Option(help="0 takes the most likely token.", show_default=MODELS_OWN)
]
TopK = Annotated[
    int | None,
    typer.Option(help="Draw from this many most likely tokens; 0 is all.", show_default=MODELS_OWN),
]
TopP = Annotated[
    float | None,
    typer.Option(
        help="Draw from the likeliest tokens of this probability; 1 is all.", show_default=MODELS_OWN
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

# --- what it runs with ----------------------------------------------------------------------------

Model = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Name, Hub repository, file or folder; see narcli models.")
]
Tokenizer = Annotated[
    str | None, typer.Option(metavar="TOKENIZER", help="Another tokenizer than the model's own, likewise.")
]
TextEncoder = Annotated[
    str | None,
    typer.Option(
        metavar="ENCODER", help="Another text encoder than the model's own, likewise; with --prompt."
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the model's Hub repository.")]
Offline = Annotated[bool, typer.Option("--offline", help="Use what is on disk; never the network.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Download several GB without asking.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what the run would download, take and write; do nothing.")
]
Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        callback=lambda name: name and _check_device(name),
        help="auto, cpu, cuda, cuda:1 ... or mps.",
    ),
]
TextDevice = Annotated[
    str | None,
    typer.Option(
        metavar="DEVICE",
        callback=lambda name: name and _check_device(name),
        help="Where the text encoder runs; with --prompt.",
        show_default="--device",
    ),
]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Number format; auto is the quickest there.")]

# --- what comes out -------------------------------------------------------------------------------

Frontier = Annotated[
    FrontierFormat, typer.Option("--frontier", help="Picture of the decoding frontier; png is a filmstrip.")
]
FrontierModeOption = Annotated[
    FrontierMode | None,
    typer.Option(
        "--frontier-mode",
        help="Uncover the finished picture, or decode the tokens of every step.",
        show_default="reveal",
    ),
]
Grid = Annotated[bool, typer.Option("--grid", help="Also write a contact sheet of all pictures.")]
Scale = Annotated[
    int | None,
    typer.Option(
        metavar="FACTOR",
        help="Enlarge pictures so many times; by default up to 256 pixels.",
        show_default="auto",
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help="A file, a folder, or a template such as out/{class_name}_{seed}.png.",
    ),
]
SaveTokens = Annotated[
    bool,
    typer.Option("--save-tokens", help="Also write the tokens of each sample, for narcli decode."),
]
NoMetadata = Annotated[
    bool, typer.Option("--no-metadata", help="Leave the settings out of the files; no rerun then.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]
