"""Parts of a model's folder: its tokenizer and text encoder, and shards."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import CheckpointError
from .config import MODEL, TEXT_ENCODER, TOKENIZER

#: The end of the name of one of several files of a model: its number and their count.
SHARD = re.compile(r"[-_](\d{1,6})[-_]of[-_](\d{1,6})\.\w+$")
#: A rank's part, by names that do not say how many there are: of Llama, Megatron and DeepSpeed.
RANK = re.compile(r"^(?:consolidated\.(\d\d)\.|(?:.*_)?mp_rank_(\d\d)_model_states\.)")
SHARD_HINT = "narcli reads a model from one file; save it as one, without shards."


def has_own_tokenizer(path: Path) -> bool:
    """Tell if a local model is a narcli folder that brings its tokenizer."""
    folder = path.parent if path.name == MODEL else path
    return os.path.lexists(folder / TOKENIZER)


def has_own_encoder(path: Path) -> bool:
    """Tell if a local model is a narcli folder that brings its text encoder.

    Raises:
        CheckpointError: what has the encoder's name is no folder.
    """
    folder = (path if path.is_dir() else path.parent) / TEXT_ENCODER
    if os.path.lexists(folder) and not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder, expected one of a text encoder.", "Get it again.")
    return folder.is_dir()
