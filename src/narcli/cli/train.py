"""``narcli train``: tokenizers and transformers, from folders of pictures or prepared arrays and clips."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..allocator import keep_memory
from ..errors import UsageError
from ..media.textfiles import expand
from ..order import NAR
from ..training.recipe import FRAMES, ClassRecipe, Recipe, TextRecipe, TokenizerRecipe
from .console import Console
from .options import Json, Quiet, whole_numbers

app = typer.Typer(help="Train a tokenizer, then a model on its tokens.", no_args_is_help=True)

Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        parser=expand,
        help="Folder of pictures (class/name.png), or with images.npy (uint8, N x H x W x 3, or N x frames "
        "x H x W x 3 for clips) and labels.npy.",
    ),
]

Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FOLDER",
        parser=expand,
        help="Folder of the run, which resumes there; the result is its 'model'.",
    ),
]

Size = Annotated[
    int | None, typer.Option(min=8, help="Side of the pictures in pixels; required for picture files.")
]

Steps = Annotated[int, typer.Option(min=1, help="Optimiser steps in all.")]

BatchSize = Annotated[int, typer.Option(min=1, help="Pictures a step.")]

LearningRate = Annotated[float, typer.Option(min=0.0, help="Peak learning rate; a cosine takes it to zero.")]

SaveEvery = Annotated[int, typer.Option(min=1, help="Steps between checkpoints and sample sheets.")]

LoopStarts = Annotated[
    int, typer.Option(help="Clips are loops: also train on them from so many frames on, evenly spread.")
]

Seed = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Seed of weights, data order, dropout and noise.")
]


class Position(str, Enum):
    """Positions of cells; see ``TransformerConfig``."""

    rotary = "rotary"
    absolute = "absolute"


Compile = Annotated[bool, typer.Option("--compile", help="Use torch.compile: slow to start, then faster.")]

Dropout = Annotated[float, typer.Option(min=0, max=0.9, help="Token, attention and FFN dropout.")]

TokenNoise = Annotated[
    float,
    typer.Option(
        min=0, max=2, help="Largest share of input tokens exchanged for other pictures'; all of them above 1."
    ),
]

CodeSmoothing = Annotated[
    float,
    typer.Option(
        min=0,
        max=10,
        help="Share targets with codes that look alike, by a Gaussian of this width; 1 is the "
        "median distance of a code from the closest.",
    ),
]

Rollouts = Annotated[
    float,
    typer.Option(
        min=0, max=1, help="Share of examples with some or all input tokens drawn by the network itself."
    ),
]

Muon = Annotated[bool, typer.Option("--muon", help="Use Muon for hidden matrices; it needs fewer steps.")]


@app.command()
def tokenizer(
    context: typer.Context,
    data: Data,
    output: Output,
    size: Size = None,
    steps: Steps = 10_000,
    batch_size: BatchSize = 16,
    learning_rate: LearningRate = 8e-4,
    channels: Annotated[
        int, typer.Option(min=32, help="Channels at the highest resolution, a multiple of 32.")
    ] = 64,
    multipliers: Annotated[
        str,
        typer.Option(help="Factors of the channels, one a level; all levels but the last halve the size."),
    ] = "1,1,2",
    blocks: Annotated[int, typer.Option(min=1, help="Residual blocks a level.")] = 1,
    patch: Annotated[int, typer.Option(min=1, help="Side in pixels of the patches stacked as channels.")] = 2,
    codes: Annotated[int, typer.Option(min=2, help="Codebook size.")] = 4096,
    decoder_blocks: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=32,
            help="Further residual blocks at the decoder's lowest resolution; those that --start lacks begin "
            "without effect.",
            show_default="0, or as many as --start has",
        ),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(min=1, help="Frames of clips stacked as channels.", show_default=f"{FRAMES}, of clips"),
    ] = None,
    loop_starts: LoopStarts = 1,
    start: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL",
            parser=expand,
            help="Train only the decoder of this tokenizer; its codes, and models of them, stay valid.",
        ),
    ] = None,
    heldout: Annotated[
        Path | None,
        typer.Option(metavar="DATA", parser=expand, help="Pictures to measure the PSNR on at the end."),
    ] = None,
    muon: Annotated[
        bool, typer.Option("--muon", help="Use Muon for convolutions; it needs fewer steps.")
    ] = False,
    save_every: SaveEvery = 500,
    seed: Seed = 0,
    compile: Compile = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a VQ tokenizer: L1, L2, gradient and quantisation losses; dead codes are re-seeded."""
    if start:
        refuse_beside_start(context, "channels", "multipliers", "blocks", "patch", "codes", "frames")
    console = Console(quiet)
    recipe = TokenizerRecipe(
        data=data, output=output, size=size, steps=steps, batch_size=batch_size,
        learning_rate=learning_rate, channels=channels,
        multipliers=whole_numbers(multipliers, "--multipliers", "1,1,2"), blocks=blocks, patch=patch,
        codes=codes, decoder_blocks=decoder_blocks, frames=frames, loop_starts=loop_starts, start=start,
        heldout=heldout, muon=muon, save_every=save_every, seed=seed, compile=compile,
    )  # fmt: skip
    keep_memory()
    psnr = recipe.run(console.warn, quiet)
    report(console, recipe, as_json, {} if psnr is None else {"heldout_psnr_db": round(psnr, 3)})


@app.command()
def nar(
    context: typer.Context,
    data: Data,
    output: Output,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL",
            parser=expand,
            help="Trained tokenizer, a narcli folder; required for a new model.",
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL",
            parser=expand,
            help="Trained model of classes to continue, with its sizes, tokenizer and class names.",
        ),
    ] = None,
    size: Size = None,
    steps: Steps = 10_000,
    batch_size: BatchSize = 32,
    learning_rate: LearningRate = 1e-3,
    dim: Annotated[int, typer.Option(min=8, help="Width of the model.")] = 320,
    layers: Annotated[int, typer.Option(min=1, help="Layers of the trunk; each further head adds one.")] = 6,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads, each a multiple of 4 wide.")] = 5,
    ffn: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Hidden size of the feed-forward; default: 8/3 of --dim, rounded up to a multiple of 64.",
        ),
    ] = None,
    order: Annotated[
        str, typer.Option(metavar="NAME", help="Order that the model decodes in: nar, raster or par:N.")
    ] = NAR,
    dropout: Dropout = 0.1,
    position: Annotated[
        Position | None,
        typer.Option(help="Position encoding of the cells.", show_default="rotary; of clips absolute"),
    ] = None,
    loop_starts: LoopStarts = 1,
    token_noise: TokenNoise = 0.0,
    rollouts: Rollouts = 0.0,
    muon: Muon = False,
    classes: Annotated[str | None, typer.Option(help="Class table of the labels, such as emoji.")] = None,
    save_every: SaveEvery = 500,
    seed: Seed = 0,
    compile: Compile = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a class-conditional transformer of NAR's or another order, with teacher forcing."""
    if start:
        refuse_beside_start(
            context, "tokenizer", "dim", "layers", "heads", "ffn", "order", "position", "classes"
        )
    console = Console(quiet)
    recipe = ClassRecipe(
        data=data, output=output, tokenizer=tokenizer, start=start, size=size, steps=steps,
        batch_size=batch_size, learning_rate=learning_rate, dim=dim, layers=layers, heads=heads, ffn=ffn,
        order=order, dropout=dropout, position=position.value if position else None, loop_starts=loop_starts,
        token_noise=token_noise, rollouts=rollouts, muon=muon, classes=classes, save_every=save_every,
        seed=seed, compile=compile,
    )  # fmt: skip
    keep_memory()
    recipe.run(console.warn, quiet)
    report(console, recipe, as_json, {})


@app.command()
def text(
    context: typer.Context,
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", parser=expand, help="Folder with images.npy, captions.tsv and perhaps labels.npy."
        ),
    ],
    output: Output,
    start: Annotated[
        Path,
        typer.Option(
            metavar="MODEL",
            parser=expand,
            help="Trained model of classes, for its blocks and tokenizer, or of text, to continue.",
        ),
    ],
    steps: Steps = 10_000,
    batch_size: BatchSize = 32,
    learning_rate: LearningRate = 1e-3,
    encoder_dim: Annotated[int, typer.Option(min=64, help="Width of a new encoder, a multiple of 64.")] = 256,
    encoder_layers: Annotated[int, typer.Option(min=1, help="Layers of a new encoder.")] = 4,
    encoder_steps: Annotated[
        int,
        typer.Option(
            min=0, help="First steps, in which a new encoder learns to match captions and pictures."
        ),
    ] = 1000,
    caption_tokens: Annotated[
        int, typer.Option(min=2, help="Longest caption of a new encoder, in bytes and one for its end.")
    ] = 80,
    text_encoder: Annotated[
        Path | None,
        typer.Option(
            metavar="ENCODER",
            parser=expand,
            help="Text encoder to train with the model, as transformers saves a T5.",
        ),
    ] = None,
    dropout: Dropout = 0.1,
    token_noise: TokenNoise = 0.0,
    code_smoothing: CodeSmoothing = 0.0,
    rollouts: Rollouts = 0.0,
    muon: Muon = False,
    save_every: SaveEvery = 500,
    seed: Seed = 0,
    compile: Compile = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a NAR transformer on captions, together with a small T5 encoder that reads bytes."""
    console = Console(quiet)
    recipe = TextRecipe(
        data=data, output=output, start=start, steps=steps, batch_size=batch_size,
        learning_rate=learning_rate, encoder_dim=encoder_dim, encoder_layers=encoder_layers,
        encoder_steps=encoder_steps, caption_tokens=caption_tokens, text_encoder=text_encoder,
        dropout=dropout, token_noise=token_noise, code_smoothing=code_smoothing, rollouts=rollouts, muon=muon,
        save_every=save_every, seed=seed, compile=compile,
    )  # fmt: skip
    if recipe.goes_on:
        refuse_beside_start(context, "encoder_dim", "encoder_layers", "encoder_steps")
        if text_encoder is None:
            refuse_beside_start(context, "caption_tokens")
    keep_memory()
    recipe.run(console.warn, quiet)
    report(console, recipe, as_json, {})


def refuse_beside_start(context: typer.Context, *names: str) -> None:
    """Refuse options of a new network beside --start.

    Raises:
        UsageError: one of them is given.
    """
    for name in names:
        source = context.get_parameter_source(name)
        if source and source.name == "COMMANDLINE":
            option = "--" + name.replace("_", "-")
            raise UsageError(
                f"{option} is for a new network, and --start brings one.", f"Leave {option} out."
            )


def report(console: Console, recipe: Recipe, as_json: bool, figures: dict[str, float]) -> None:
    """Print the folder of the result, and the measured figures."""
    if as_json:
        console.json({"model": str(recipe.result), **figures})
        return
    for name, value in figures.items():
        console.note(f"{name}: {value}")
    console.result(recipe.result)
