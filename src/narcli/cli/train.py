"""``narcli train``: tokenizers and transformers, from folders of pictures or prepared arrays and clips."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..allocator import keep_memory
from ..checkpoints import config as configs
from ..errors import UsageError
from ..media.textfiles import expand
from .console import Console
from .options import Json, Quiet, whole_numbers

if TYPE_CHECKING:
    from ..models.transformer import NARTransformer
    from ..training.data import Pictures
from ..training.recipe import check_sizes, grid_of, load_start, own_encoder, vq_tokenizer

app = typer.Typer(help="Train a tokenizer, then a NAR model on its tokens.", no_args_is_help=True)


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
        help="Folder of the run: goes on where it stopped; the result is its 'model'.",
    ),
]


Size = Annotated[int | None, typer.Option(min=8, help="Side of the pictures in pixels; needed for files.")]


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
    """How a transformer knows where a cell is; see ``TransformerConfig``."""

    rotary = "rotary"
    absolute = "absolute"


FRAMES = 4  # a slice of a clip, as in the released video models


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
        min=0, max=1, help="Share of examples with some or all input tokens as the network itself drew them."
    ),
]


Muon = Annotated[bool, typer.Option("--muon", help="Muon for hidden matrices: fewer steps.")]


@app.command()
def tokenizer(
    context: typer.Context,
    data: Data,
    output: Output,
    size: Size = None,
    steps: Steps = 10_000,
    batch_size: BatchSize = 16,
    learning_rate: LearningRate = 8e-4,
    channels: Annotated[int, typer.Option(min=32, help="At the highest resolution, a multiple of 32.")] = 64,
    multipliers: Annotated[
        str, typer.Option(help="Factors of the channels, one a level; all levels but the last halve.")
    ] = "1,1,2",
    blocks: Annotated[int, typer.Option(min=1, help="Residual blocks a level.")] = 1,
    patch: Annotated[int, typer.Option(min=1, help="Side in pixels of the patches stacked as channels.")] = 2,
    codes: Annotated[int, typer.Option(min=2, help="Codebook size.")] = 4096,
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
            help="Train only the decoder of this tokenizer: its codes, and models of them, stay.",
        ),
    ] = None,
    heldout: Annotated[
        Path | None,
        typer.Option(metavar="DATA", parser=expand, help="Pictures to measure the PSNR on at the end."),
    ] = None,
    save_every: SaveEvery = 500,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a VQ tokenizer: L1, L2, gradient and quantisation losses; dead codes are re-seeded."""
    if channels % 32:
        raise UsageError(f"--channels is {channels}, expected a multiple of 32 (normalisation groups).")
    levels = whole_numbers(multipliers, "--multipliers", "1,1,2")
    keep_memory()
    from ..checkpoints.save import check_saveable, save_model
    from ..models.vq import VQConfig
    from ..training.data import load_pictures
    from ..training.loop import TrainSettings
    from ..training.tokenizer import psnr, train_tokenizer

    console = Console(quiet)
    check_output(output, data)
    pictures = load_pictures(data, size, console.warn).loops(loop_starts)
    if frames and not pictures.frames:
        raise UsageError(f"--frames is {frames}, and {str(data)!r} holds no clips.", "Leave it out.")
    before = vq_tokenizer(start) if start else None
    if before:
        refuse_beside_start(context, "channels", "multipliers", "blocks", "patch", "codes", "frames")
        config = before.config
    else:
        stacked = (frames or FRAMES) if pictures.frames else 1
        config = VQConfig(channels, levels, blocks, channels * levels[-1], codes, patch=patch, frames=stacked)
        check_sizes(configs.VQ, asdict(config))
    grid_of(pictures, config)
    compared = load_pictures(heldout, size, console.warn) if heldout else None
    if compared:
        grid_of(compared, config)
    settings = TrainSettings(
        steps=steps, batch_size=batch_size, learning_rate=learning_rate, weight_decay=0.01,
        save_every=save_every, seed=seed, compile=False,
    )  # fmt: skip
    result = output / configs.RESULT
    check_saveable(result, tokenizer=config)
    model = train_tokenizer(pictures, config, settings, output, before, quiet)
    folder = save_model(result, tokenizer=model, overwrite=True)
    figures = {"heldout_psnr_db": round(float(psnr(model, compared).mean()), 3)} if compared else {}
    report(console, folder, as_json, figures)


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
            help="A trained tokenizer: a narcli folder. Needed for a new model.",
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL",
            parser=expand,
            help="A trained model of classes to go on with: its sizes, tokenizer and class names.",
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
            min=1, help="Hidden size of the feed-forward; default: 8/3 of --dim, up to a multiple of 64."
        ),
    ] = None,
    dropout: Dropout = 0.1,
    position: Annotated[
        Position | None,
        typer.Option(
            help="How the network knows the cells' places.", show_default="rotary; of clips absolute"
        ),
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
    """Train a class-conditional NAR transformer with teacher forcing."""
    console = Console(quiet)
    check_output(output, data)
    if start:
        start = configs.result_of(start)
        refuse_beside_start(context, "tokenizer", "dim", "layers", "heads", "ffn", "position", "classes")
    elif not tokenizer:
        raise UsageError("--tokenizer is missing.", "Give it, or --start to go on with a model.")
    if dim % heads or dim // heads % 4:
        raise UsageError(
            f"--dim {dim} with --heads {heads} gives heads of width {dim / heads:g}.",
            "Expected a multiple of 4.",
        )
    keep_memory()
    from ..checkpoints.save import check_saveable, save_model
    from ..classes import load_table
    from ..models.blocks import TransformerConfig, ffn_dim
    from ..training.data import load_pictures
    from ..training.loop import TrainSettings
    from ..training.nar import train_nar
    from ..training.tokens import tokenize

    pictures = load_pictures(data, size, console.warn).loops(loop_starts)
    if pictures.item_labels is None:
        raise UsageError(
            f"The pictures in {str(data)!r} have no classes.", "Put them into folders named by class."
        )
    before: NARTransformer | None = None
    table: str | Sequence[str] | None
    defaults: Mapping[str, float]
    if start:
        before, vq, known = load_start(start, ["video" if pictures.frames else "image"], pictures, data)
        config, table, defaults = before.config, known.classes, known.defaults
        if config.num_classes < pictures.num_classes:
            raise UsageError(
                f"{start} has {config.num_classes} classes, the labels {pictures.num_classes}.",
                "Train a new model.",
            )
        known_names = [row.names[0] for row in load_table(table).rows] if table else []
        for label, (name, expected) in enumerate(zip(pictures.names, known_names, strict=False)):
            if name != expected:
                raise UsageError(
                    f"Class {label} of {str(data)!r} is {name!r}, that of {start} is {expected!r}.",
                    "Give the pictures that it was trained on, or train a new model.",
                )
    else:
        assert tokenizer
        if pictures.frames and position == "rotary":
            raise UsageError("--position is rotary, which has two axes; clips have three.", "Leave it out.")
        position = position or (Position.absolute if pictures.frames else Position.rotary)
        names = len(load_table(classes)) if classes else pictures.num_classes
        if names < pictures.num_classes:
            raise UsageError(f"The table {classes} has {names} classes, the labels {pictures.num_classes}.")
        vq = vq_tokenizer(tokenizer)
        config = TransformerConfig(
            grid_of(pictures, vq.config), dim, layers, heads, vq.config.codebook_size,
            ffn or ffn_dim(dim, 64), num_classes=names, position=position.value,
        )  # fmt: skip
        check_sizes(configs.TRANSFORMER, asdict(config))
        if not classes and names > configs.MAX_CLASSES:
            raise UsageError(
                f"The labels of {str(data)!r} reach {names - 1:,}, expected below {configs.MAX_CLASSES:,}.",
                "Number the classes from 0.",
            )
        table = classes or pictures.names or [f"class {n}" for n in range(names)]
        defaults = {"cfg_scale": 2.0}
    settings = TrainSettings(
        steps=steps, batch_size=batch_size, learning_rate=learning_rate,
        muon=muon, save_every=save_every, seed=seed, compile=compile,
    )  # fmt: skip
    warn_of_untrained(pictures, config.num_classes, console)
    result = output / configs.RESULT
    check_saveable(result, config, vq.config, table, defaults)
    tokens = tokenize(pictures, vq, output)
    import torch

    labels = torch.from_numpy(pictures.item_labels)
    model = train_nar(
        tokens, labels, vq, config, settings, output, before,
        loop_starts=loop_starts, dropout=dropout, token_noise=token_noise, rollouts=rollouts, quiet=quiet,
    )  # fmt: skip
    folder = save_model(
        result, transformer=model, tokenizer=vq, classes=table, defaults=defaults, overwrite=True
    )
    report(console, folder, as_json, {})


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
            help="A trained model of classes, whose blocks and tokenizer it takes, or one of text to go on.",
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
            min=0, help="Steps in which a new encoder first learns which caption is of which picture."
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
            help="A text encoder that learns with the model, as transformers saves a T5.",
        ),
    ] = None,
    sentences: Annotated[
        float, typer.Option(min=0, max=1, help="Share of examples that give the end token's state alone.")
    ] = 0.0,
    projection_steps: Annotated[
        int, typer.Option(min=0, help="First steps, in which only the projections of captions learn.")
    ] = 0,
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
    if encoder_dim % 64:
        raise UsageError(f"--encoder-dim is {encoder_dim}, expected a multiple of 64 (attention heads).")
    console = Console(quiet)
    check_output(output, data)
    start = configs.result_of(start)
    keep_memory()
    import numpy as np

    from ..checkpoints.save import check_saveable, save_model
    from ..training.captions import load_captions
    from ..training.data import load_pictures
    from ..training.loop import TrainSettings
    from ..training.text import byte_encoder, looks_of, train_text
    from ..training.tokens import tokenize

    pictures = load_pictures(data, tell=console.warn)
    captions = load_captions(data, len(pictures))
    blocks, vq, known = load_start(start, ["image", "text"], pictures, data)
    own = None
    defaults: Mapping[str, float] = {"cfg_scale": 2.0}
    if known.kind == "text":
        refuse_beside_start(context, "encoder_dim", "encoder_layers", "encoder_steps")
        most, encoder_steps, defaults = blocks.config.condition_tokens, 0, known.defaults
        if text_encoder is None:
            refuse_beside_start(context, "caption_tokens")
        caption_tokens = most if text_encoder is None else min(caption_tokens, most)
        own = own_encoder(text_encoder or start / configs.TEXT_ENCODER, blocks.config.caption_dim)
    elif text_encoder:
        own, encoder_steps = own_encoder(text_encoder), 0
    settings = TrainSettings(
        steps=steps, batch_size=batch_size, learning_rate=learning_rate,
        muon=muon, save_every=save_every, seed=seed, compile=compile,
    )  # fmt: skip
    sizes = replace(
        blocks.config, condition="text", num_classes=0, condition_tokens=caption_tokens,
        caption_dim=blocks.config.caption_dim if own else encoder_dim,
    )  # fmt: skip
    check_sizes(configs.TRANSFORMER, asdict(sizes))
    result = output / configs.RESULT
    check_saveable(result, sizes, vq.config, defaults=defaults)
    tokens = tokenize(pictures, vq, output)
    import torch

    torch.manual_seed(seed)
    # Without labels every picture has a subject of its own.
    subjects = np.arange(len(pictures)) if pictures.labels is None else pictures.labels
    model, encoder = train_text(
        tokens, captions, torch.from_numpy(subjects), looks_of(pictures.images) if encoder_steps else None,
        vq, blocks, own or byte_encoder(encoder_dim, encoder_layers), caption_tokens,
        settings, output, encoder_steps,
        dropout=dropout, token_noise=token_noise, code_smoothing=code_smoothing,
        rollouts=rollouts, sentences=sentences, projection_steps=projection_steps, quiet=quiet,
    )  # fmt: skip
    folder = save_model(
        result, transformer=model, tokenizer=vq, text_encoder=encoder, defaults=defaults,
        overwrite=True,
    )  # fmt: skip
    report(console, folder, as_json, {})


def check_output(output: Path, data: Path) -> None:
    """Refuse to write a run among the pictures, whose sample sheets would be pictures next time.

    Raises:
        UsageError: they are one folder, or the run would be in a folder inside that holds pictures.
    """
    if output.resolve() == data.resolve():
        raise UsageError(f"--output is {output}, the folder of the pictures.", "Give another folder.")
    if data.resolve() not in output.resolve().parents:
        return
    from ..viz.sheets import suffixes

    for _, _, files in os.walk(output):
        if not configs.is_run(files) and any(Path(name).suffix.lower() in suffixes() for name in files):
            raise UsageError(f"--output is {output}, which holds pictures of {data}.", "Give another folder.")


def warn_of_untrained(pictures: Pictures, classes: int, console: Console) -> None:
    """Tell which classes of a model have no pictures."""
    assert pictures.labels is not None
    there = set(pictures.labels.tolist())
    if absent := [label for label in range(classes) if label not in there]:
        some = ", ".join(map(str, absent[:5])) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
        hint = " Labels count from 0." if 0 in absent else ""
        console.warn(f"Classes without pictures stay untrained: {some}.{hint}")


def refuse_beside_start(context: typer.Context, *names: str) -> None:
    """Refuse options for what --start brings.

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


def report(console: Console, folder: Path, as_json: bool, figures: dict[str, float]) -> None:
    """Print where the result is, and what was measured."""
    if as_json:
        console.json({"model": str(folder), **figures})
        return
    for name, value in figures.items():
        console.note(f"{name}: {value}")
    console.result(folder)
