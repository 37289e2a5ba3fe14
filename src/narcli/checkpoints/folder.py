"""What a model's folder brings along."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError
from .config import MODEL, TEXT_ENCODER, TOKENIZER

if TYPE_CHECKING:
    pass


def has_own_tokenizer(path: Path) -> bool:
    """Whether a local model is a narcli folder that brings its tokenizer."""
    folder = path.parent if path.name == MODEL else path
    return os.path.lexists(folder / TOKENIZER)


def has_own_encoder(path: Path) -> bool:
    """Whether a local model is a narcli folder that brings its text encoder.

    Raises:
        CheckpointError: what has the encoder's name is no folder.
    """
    folder = (path if path.is_dir() else path.parent) / TEXT_ENCODER
    if os.path.lexists(folder) and not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder, expected one of a text encoder.", "Get it again.")
    return folder.is_dir()
