"""Sample sheets that training writes at intervals."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..media.atomic import write_atomic
from ..models.transformer import NARTransformer
from ..models.vq import VQTokenizer
from ..sampling import SamplingSettings, sample
from .data import Pictures


@torch.inference_mode()
def reconstruction_sheet(model: VQTokenizer, pictures: Pictures, path: Path, count: int = 24) -> None:
    """Write a PNG of originals above their reconstructions, spread over the data; frames side by side."""
    picks = np.linspace(0, len(pictures) - 1, count).astype(int)
    batch = pictures.batch(picks)
    features = model.features(batch)
    decoded = model.decode(model.quantize.nearest(features.flatten(1, -2)), features.shape[1:-1])
    originals, pixels = to_pixels(batch), to_pixels(decoded)
    columns = max(1, 8 // max(1, pictures.length or pictures.frames))
    rows = [
        np.concatenate([*source[start : start + columns].numpy()], axis=1)
        for start in range(0, count, columns)
        for source in (originals, pixels)
    ]
    save(np.concatenate(rows), path)


@torch.inference_mode()
def sample_sheet(
    model: NARTransformer,
    tokenizer: VQTokenizer,
    path: Path,
    features: torch.Tensor | None = None,
    padding: torch.Tensor | None = None,
) -> None:
    """Write a PNG of samples with seeds from 0 and guidance 2: 40 pictures, ten a row, or 8 clips, one a row.

    Args:
        model: of classes, which are spread over the table, or of text.
        tokenizer: decodes the samples.
        path: file to write.
        features: (40, C, width) left-padded features of captions, for a model of text.
        padding: (40, C) bool, true for padding.
    """
    was_training = model.training
    model.eval()
    count, columns = (8, 1) if len(model.config.grid) == 3 else (40, 10)
    labels = torch.linspace(0, model.config.num_classes - 1, count).long()
    condition = labels if features is None else features
    tokens = sample(model, condition, range(count), SamplingSettings(cfg_scale=2.0), padding)
    model.train(was_training)
    pixels = to_pixels(tokenizer.decode(tokens, model.config.grid))
    rows = pixels.numpy().reshape(-1, columns, *pixels.shape[1:])
    save(np.concatenate([np.concatenate([*row], 1) for row in rows]), path)


def to_pixels(decoded: torch.Tensor) -> torch.Tensor:
    """Convert (B, 3, [frames,] H, W) in [-1, 1], unclamped, to uint8 (B, H, W, 3), frames side by side."""
    levels = ((decoded.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(1, -1)
    return levels if decoded.dim() == 4 else levels.transpose(1, 2).flatten(2, 3)


def save(pixels: np.ndarray, path: Path) -> None:
    """Write uint8 (H, W, 3) as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    write_atomic(path, buffer.getvalue(), overwrite=True)
