"""Sizes of models, told before they are loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import torch

from ..checkpoints import conversions
from ..checkpoints.config import CONFIG, TEXT_ENCODER
from ..checkpoints.folder import has_own_encoder, has_own_tokenizer
from ..checkpoints.formats.families import sizes_of
from ..checkpoints.load import build, load_tokenizer, transformer_config
from ..checkpoints.t5 import read_sizes
from ..devices import DTYPES
from ..models.network import NetworkConfig
from ..models.tokenizer import TokenizerConfig
from .catalog import MODEL_KINDS, MODELS, Model
from .locate import Located
from .selection import Fetched, cached


@dataclass(frozen=True)
class Networks:
    """The sizes of what a model runs with.

    Args:
        transformer: None of a tokenizer or text encoder alone.
        tokenizer: None of a text encoder alone, or of a transformer whose tokenizer is not known.
        encoder: parameters of the text encoder; 0 where there is none.
        stored: number format of the tokenizer's file.
        encoder_stored: likewise, of the text encoder's.
    """

    transformer: NetworkConfig | None = None
    tokenizer: TokenizerConfig | None = None
    encoder: int = 0
    stored: torch.dtype = torch.float32
    encoder_stored: torch.dtype = torch.float32

    @property
    def runs(self) -> bool:
        """Tell whether all is known that an estimate takes."""
        return self.transformer is not None and self.tokenizer is not None

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Number of parameters by part."""
        parts = {"transformer": self.transformer, "tokenizer": self.tokenizer}
        counts = {name: _count(config) for name, config in parts.items() if config is not None}
        return counts | ({"text_encoder": self.encoder} if self.encoder else {})

    def held(self, dtype: torch.dtype, device: str) -> int:
        """Parameters of transformer and tokenizer that take memory besides the pages of their files.

        A transformer is laid out anew, and so are some parts of a tokenizer; what is left of a tokenizer
        stays mapped, a large one of another dtype from its converted copy, unless it is moved.
        """
        assert self.tokenizer is not None
        held, count = self.parameters.get("transformer", 0), self.parameters["tokenizer"]
        copied = dtype.itemsize < self.stored.itemsize and count * self.stored.itemsize >= conversions.LEAST
        if device != "cpu" or (dtype != self.stored and not copied):
            return held + count
        part = self.tokenizer.laid_out
        return held + (_count(self.tokenizer, part) if part else 0)


@cache
def _count(config: NetworkConfig | TokenizerConfig, part: str = "") -> int:
    return sum(p.numel() for name, p in build(config).named_parameters() if name.startswith(part))


def networks_of(
    model: Model | Located | Fetched,
    tokenizer: Model | Located | None = None,
    encoder: Model | Located | None = None,
) -> Networks:
    """The sizes of a model and what it runs with, as far as they are known; from the files if here.

    Args:
        model: a model, or a tokenizer or text encoder alone.
        tokenizer: None is the one of the model's folder, or of its row.
        encoder: likewise, of a model of images from text.

    Raises:
        CheckpointError: a file that cannot be used.
    """
    row, path = _row_and_path(model)
    if row.kind == "text-encoder":
        count, stored = _encoder(row, path)
        return Networks(encoder=count, encoder_stored=stored)
    if row.kind.endswith("-tokenizer"):
        config, stored = _tokenizer(row, path)
        return Networks(tokenizer=config, stored=stored)
    own = path is not None and tokenizer is None and has_own_tokenizer(path)
    other = tokenizer or (MODELS[row.tokenizer] if row.tokenizer else None)
    text = encoder or (MODELS[row.text_encoder] if row.text_encoder else None)
    encoding = (0, torch.float32)
    if text is not None:
        encoding = _encoder(*_row_and_path(text))
    elif row.kind == "text" and path is not None and has_own_encoder(path):
        folder = path if path.is_dir() else path.parent
        encoding = _encoder(row, folder / TEXT_ENCODER)
    sizes = transformer_config(path, grid=row.grid) if path is not None else released_config(row)
    if other is not None and not own:
        row, path = _row_and_path(other)
    config, stored = _tokenizer(row, path) if own or other else (None, torch.float32)
    return Networks(sizes, config, encoding[0], stored, encoding[1])


def _row_and_path(model: Model | Located | Fetched) -> tuple[Model, Path | None]:
    if isinstance(model, Fetched):
        return model.model, model.path
    if isinstance(model, Located):
        here = model.copy
        model = model.model
    else:
        here = cached(model)
    return (here.model, here.path) if here else (model, None)


def _tokenizer(row: Model, path: Path | None) -> tuple[TokenizerConfig | None, torch.dtype]:
    """The sizes of a tokenizer, as far as they are known, and the number format of its file."""
    if path is None:
        return released_tokenizer(row), torch.float32
    tokenizer = load_tokenizer(path, dtype=None, device="meta")
    return tokenizer.config, next(tokenizer.parameters()).dtype


def _encoder(row: Model, path: Path | None) -> tuple[int, torch.dtype]:
    """Parameters of a T5 encoder and the number format of its files, from its config.json or its row.

    No parameters where neither tells; float32 where the file does not.

    Raises:
        CheckpointError: it is not of a T5, or a value is not what it should be.
    """
    sizes = row.sizes
    if path is not None:
        folder = path if path.is_dir() else path.parent
        sizes = read_sizes(folder) if os.path.lexists(folder / CONFIG) else {}
    if not sizes:
        return 0, torch.float32
    d, inner = sizes["d_model"], sizes["num_heads"] * sizes["d_kv"]
    gated = sizes["feed_forward_proj"].startswith("gated")
    layer = 4 * d * inner + (3 if gated else 2) * d * sizes["d_ff"] + 2 * d
    buckets = sizes["relative_attention_num_buckets"] * sizes["num_heads"]
    stored = DTYPES.get(sizes.get("dtype", ""), torch.float32)
    return sizes["num_layers"] * layer + sizes["vocab_size"] * d + buckets + d, stored


def released_config(row: Model) -> NetworkConfig | None:
    """The sizes of a released transformer by its row; None for other models."""
    if row.kind not in MODEL_KINDS or not row.sizes:
        return None
    sizes: NetworkConfig = sizes_of("transformer", {**row.sizes, "grid": row.grid})
    return sizes


def released_tokenizer(row: Model) -> TokenizerConfig | None:
    """The sizes of a released tokenizer by its row; None for other models."""
    if not row.kind.endswith("-tokenizer") or not row.sizes:
        return None
    sizes: TokenizerConfig = sizes_of("tokenizer", row.sizes)
    return sizes
