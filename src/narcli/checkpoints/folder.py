"""Parts of a model's folder: weights, tokenizer, text encoder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import CheckpointError
from .config import MODEL, TEXT_ENCODER, TOKENIZER

#: Ending of the name of a shard: its number and their count.
SHARD = re.compile(r"[-_](\d{1,6})[-_]of[-_](\d{1,6})\.\w+$")
#: Names of shards without a count: of Llama, Megatron and DeepSpeed.
RANK = re.compile(r"^(?:consolidated\.(\d\d)\.|(?:.*_)?mp_rank_(\d\d)_model_states\.)")
SHARD_HINT = "narcli reads a model from one file; save it as one, without shards."


def has_own_tokenizer(path: Path) -> bool:
    """Tell whether a path is a narcli folder with a tokenizer of its own."""
    folder = path.parent if path.name == MODEL else path
    return os.path.lexists(folder / TOKENIZER)


def has_own_encoder(path: Path) -> bool:
    """Tell whether a path is a narcli folder with a text encoder of its own.

    Raises:
        CheckpointError: the encoder's name belongs to a file.
    """
    folder = (path if path.is_dir() else path.parent) / TEXT_ENCODER
    if os.path.lexists(folder) and not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder, expected one of a text encoder.", "Get it again.")
    return folder.is_dir()
