"""Conversion of released files into narcli folders."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..classes import RELEASED_TABLES
from ..errors import UsageError
from ..media.textfiles import expand
from . import config as configs
from .config import (
    MODEL,
    TEXT_ENCODER,
    TOKENIZER,
)
from .folder import has_own_encoder
from .formats.families import identify
from .load import _open, load_tokenizer, load_transformer
from .save import _check_replaceable, save_model
from .text_encoder import T5Encoder


def convert(
    source: str | Path,
    folder: str | Path,
    *,
    tokenizer: str | Path | None = None,
    config: str | Path | None = None,
    grid: tuple[int, ...] | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> Path:
    """Convert a released file (or a narcli folder) into a narcli folder.

    Args:
        source: a transformer or a tokenizer.
        folder: the folder to make; see ``save_model``.
        tokenizer: the tokenizer to put into the model's folder.
        config: a ``config.json`` for the source; by default the one beside it.
        grid: sizes of the token grid, if the file does not hold them.
        dtype: number format to store; None keeps the source's.
        overwrite: replace an older narcli folder.

    Raises:
        CheckpointError, UsageError, NarError: as ``load_transformer`` and ``save_model``.
    """
    folder = expand(folder)
    _check_replaceable(folder, overwrite)
    source = configs.result_of(expand(source))
    names = [path.name for path in source.iterdir()] if source.is_dir() else []
    part = TOKENIZER if TOKENIZER in names and not configs.weights_in(names) else MODEL
    file, said, tensors, _ = _open(source, part, config)
    format = identify(tensors)
    if format.part == "tokenizer":
        if tokenizer is not None:
            raise UsageError(f"{file} is a tokenizer already.", "Leave `tokenizer` out.")
        alone = load_tokenizer(file, config=config, dtype=dtype)
        return save_model(folder, tokenizer=alone, overwrite=overwrite)
    model = load_transformer(file, grid=grid, config=config, dtype=dtype)
    if tokenizer is None and file.name == MODEL and os.path.lexists(file.with_name(TOKENIZER)):
        tokenizer = file.with_name(TOKENIZER)
    return save_model(
        folder,
        transformer=model,
        tokenizer=load_tokenizer(tokenizer, dtype=dtype) if tokenizer else None,
        text_encoder=T5Encoder.load(file.with_name(TEXT_ENCODER), None) if has_own_encoder(file) else None,
        classes=said.classes or RELEASED_TABLES.get((model.config.kind, model.config.num_classes)),
        defaults=said.defaults if said.kind else format.defaults.get(model.config.kind),
        dtype=dtype,
        overwrite=overwrite,
    )
