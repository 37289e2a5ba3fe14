"""Parts of a training: the model that it begins with, and sizes that fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .. import rules
from ..checkpoints import config
from ..errors import CheckpointError, UsageError
from ..order import format_grid

if TYPE_CHECKING:
    from ..checkpoints.text_encoder import T5Encoder
    from ..models.blocks import Kind
    from ..models.transformer import NARTransformer
    from ..models.vq import VQConfig, VQTokenizer
    from .data import Pictures


def load_start(
    folder: Path, kinds: Sequence[str], pictures: Pictures, data: Path
) -> tuple[NARTransformer, VQTokenizer, config.ModelConfig]:
    """A model that goes on learning: its transformer in float32, its tokenizer, what its folder says.

    Raises:
        CheckpointError: it is not in narcli's own format, not of one of these kinds, or cannot be read.
        UsageError: it does not make what ``pictures`` are, or has a LARP tokenizer.
    """
    from ..checkpoints.load import load_transformer

    file = folder / config.CONFIG
    known = config.read_config(file) if file.is_file() else config.ModelConfig()
    if not known.kind:
        raise CheckpointError(
            f"{folder} is not a model in narcli's own format.",
            "`narcli models convert` makes one of a released model.",
        )
    if known.kind not in kinds:
        raise CheckpointError(
            f"{folder} is of the kind {known.kind!r}, expected {' or '.join(map(repr, kinds))}.",
            "Give another --start.",
        )
    model, vq = load_transformer(folder, kind=cast("Kind", known.kind)), vq_tokenizer(folder)
    if vq.config.codebook_size != model.config.vocab_size:
        raise CheckpointError(
            f"In {folder} the model draws from {model.config.vocab_size} codes, and the tokenizer has "
            f"{vq.config.codebook_size}.",
            "They do not belong together.",
        )
    if (grid := grid_of(pictures, vq.config)) != model.config.grid:
        raise UsageError(
            f"What is in {str(data)!r} makes a grid of {format_grid(grid)} tokens, and {folder} has one of "
            f"{format_grid(model.config.grid)}.",
            "Prepare it in the size that the model makes, or train a new model.",
        )
    return model, vq, known


def own_encoder(path: Path, width: int | None = None) -> T5Encoder:
    """Load the text encoder that learns with a model, in float32.

    Raises:
        CheckpointError: there is none, or one that makes features of another width.
    """
    import torch

    from ..checkpoints.text_encoder import T5Encoder

    if not path.is_dir():
        raise CheckpointError(
            f"There is no text encoder in {path}.", "Give one as --text-encoder, as transformers saves a T5."
        )
    encoder = T5Encoder.load(path, torch.float32)
    if width is not None and encoder.width != width:
        raise CheckpointError(
            f"The text encoder in {path} makes features of {encoder.width} numbers, and the model takes "
            f"{width}.",
            "They do not belong together.",
        )
    return encoder


def check_sizes(rules: Mapping[str, rules.Rule], sizes: Mapping[str, Any]) -> None:
    """Refuse a network that narcli's own format could not hold."""
    for name, (expected, holds) in rules.items():
        if not holds(sizes[name]):
            raise UsageError(f"{name} is {sizes[name]}, expected {expected}.")


def vq_tokenizer(path: Path) -> VQTokenizer:
    """A tokenizer of the kind that is trained here.

    Raises:
        UsageError: it is a LARP tokenizer.
    """
    from ..checkpoints.load import load_tokenizer
    from ..models.vq import VQTokenizer

    vq = load_tokenizer(path)
    if not isinstance(vq, VQTokenizer):
        raise UsageError(f"{path} is a LARP tokenizer.", "Expected one of `narcli train tokenizer`.")
    return vq


def grid_of(pictures: Pictures, tokenizer: VQConfig) -> tuple[int, ...]:
    """(H, W) of the tokens of pictures, (T, H, W) of those of clips.

    Raises:
        UsageError: the tokenizer does not fit them.
    """
    height, width = pictures.images.shape[-3:-1]
    if tokenizer.frames > 1 and not pictures.frames:
        raise UsageError("The tokenizer is one of clips, and these are pictures.", "Train one on pictures.")
    if pictures.frames % tokenizer.frames:
        raise UsageError(
            f"The clips have {pictures.frames} frames, not a multiple of {tokenizer.frames}.",
            "Train a tokenizer with other --frames.",
        )
    if height % tokenizer.downsampling or width % tokenizer.downsampling:
        raise UsageError(
            f"The pictures are {width}x{height} pixels, not a multiple of {tokenizer.downsampling}.",
            "Choose another --size, or another tokenizer (its --patch and --multipliers).",
        )
    slices = (pictures.frames // tokenizer.frames,) if pictures.frames else ()
    return *slices, height // tokenizer.downsampling, width // tokenizer.downsampling
