"""Sample sheets that training writes at intervals."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..models.transformer import NARTransformer
from ..models.vq import VQTokenizer
from ..sampling import SamplingSettings, generate
from ..writers import write_atomic
from .data import to_unit


@torch.inference_mode()
def reconstruction_sheet(model: VQTokenizer, images: np.ndarray, path: Path, count: int = 24) -> None:
    """Originals (uint8, N x H x W x 3) above their reconstructions, spread over the data, as a PNG."""
    picks = np.linspace(0, len(images) - 1, count).astype(int)
    originals = torch.from_numpy(images[picks])
    batch = to_unit(originals)
    grid = (batch.shape[2] // model.config.downsampling, batch.shape[3] // model.config.downsampling)
    pixels = to_pixels(model.decode(model.encode(batch), grid))
    columns = 8
    rows = [
        np.concatenate([*source[start : start + columns].numpy()], axis=1)
        for start in range(0, count, columns)
        for source in (originals, pixels)
    ]
    save(np.concatenate(rows), path)


@torch.inference_mode()
def sample_sheet(model: NARTransformer, tokenizer: VQTokenizer, path: Path, count: int = 40) -> None:
    """Samples of classes spread over the table, seeds 0 and up, guidance 2, as a PNG, ten a row."""
    was_training = model.training
    model.eval()
    labels = torch.linspace(0, model.config.num_classes - 1, count).long()
    tokens = torch.empty(count, model.config.order.cells, dtype=torch.int64)
    for step in generate(model, labels, range(count), SamplingSettings(cfg_scale=2.0)):
        tokens[:, list(step.cells)] = step.tokens
    model.train(was_training)
    height, width = model.config.grid
    pixels = to_pixels(tokenizer.decode(tokens, (height, width)))
    rows = pixels.numpy().reshape(-1, 10, *pixels.shape[1:])
    save(np.concatenate([np.concatenate([*row], 1) for row in rows]), path)


def to_pixels(decoded: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in [-1, 1], not clamped -> uint8 (B, H, W, 3)."""
    return ((decoded.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


def save(pixels: np.ndarray, path: Path) -> None:
    """Write uint8 (H, W, 3) as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    write_atomic(path, buffer.getvalue(), overwrite=True)
