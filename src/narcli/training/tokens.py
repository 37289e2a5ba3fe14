"""Codes of training pictures, cached between runs."""

from __future__ import annotations

import io
import math
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints.config import TOKENS
from ..errors import CheckpointError, UsageError
from ..media.atomic import write_atomic
from ..models.vq import VQConfig, VQTokenizer
from .data import Pictures, read_array


def grid_of(pictures: Pictures, tokenizer: VQConfig) -> tuple[int, ...]:
    """Give the grid of tokens: (H, W) of pictures, (T, H, W) of clips.

    Raises:
        UsageError: the tokenizer does not fit them.
    """
    height, width = pictures.images.shape[-3:-1]
    if tokenizer.frames > 1 and not pictures.frames:
        raise UsageError("The tokenizer is one of clips, and these are pictures.", "Train one on pictures.")
    if pictures.frames % tokenizer.frames:
        raise UsageError(
            f"The clips have {pictures.frames} frames, not a multiple of {tokenizer.frames}.",
            "Train a tokenizer with other frames.",
        )
    if height % tokenizer.downsampling or width % tokenizer.downsampling:
        raise UsageError(
            f"The pictures are {width}x{height} pixels, not a multiple of {tokenizer.downsampling}.",
            "Choose another size, or a tokenizer with another patch or other multipliers.",
        )
    slices = (pictures.frames // tokenizer.frames,) if pictures.frames else ()
    return *slices, height // tokenizer.downsampling, width // tokenizer.downsampling


@torch.inference_mode()
def tokenize(pictures: Pictures, tokenizer: VQTokenizer, folder: Path, batch_size: int = 16) -> Tensor:
    """Encode all pictures: (items, N) int64, cached in ``folder``."""
    known = weights_digest(tokenizer, pictures.digest().encode())
    cache = folder / TOKENS.format(known.hexdigest()[:16])
    count, cells = len(pictures), math.prod(grid_of(pictures, tokenizer.config))
    with suppress(CheckpointError, ValueError, TypeError):  # missing or damaged
        mapped = read_array(cache)
        if mapped.shape == (count, cells) and mapped.dtype == np.int32:
            kept = torch.from_numpy(mapped.astype(np.int64))
            if 0 <= kept.min() <= kept.max() < tokenizer.config.codebook_size:
                return kept
    codes = torch.cat(
        [
            tokenizer.encode(pictures.batch(np.arange(start, min(start + batch_size, count))))
            for start in range(0, count, batch_size)
        ]
    )
    buffer = io.BytesIO()
    np.save(buffer, codes.numpy().astype(np.int32))
    write_atomic(cache, buffer.getvalue(), overwrite=True)
    return codes


@torch.no_grad()
def mark_starts(tokens: Tensor, starts: int, tokenizer: VQTokenizer) -> Tensor:
    """Make the first token of a clip tell the start of its loop.

    The first corner mostly shows the background, the same for all starts. The start is then decided later, by
    several cells of a pass independently, and the clip mixes two starts. With different first tokens the
    first draw decides.

    Args:
        tokens: (clips * starts, N) int64, the starts of a clip one after the other.
        starts: starts of a clip.
        tokenizer: tokenizer of the codes; close codes look nearly the same.

    Returns:
        The tokens, in which a first token shared with an earlier start of the clip is replaced by the closest
        code that no start has.

    Raises:
        UsageError: a clip has more starts than there are codes.
    """
    codes = tokenizer.quantize(torch.arange(tokenizer.config.codebook_size))
    if starts > len(codes):
        raise UsageError(
            f"`loop_starts` is {starts}, and the tokenizer has {len(codes)} codes.", "Give fewer starts."
        )
    marked = tokens.clone()
    for first in marked[:, 0].view(-1, starts):
        for place in range(1, starts):
            if (first[:place] == first[place]).any():
                distance = (codes - codes[first[place]]).norm(dim=1)
                distance[first] = torch.inf
                first[place] = distance.argmin()
    return marked


def weights_digest(model: nn.Module, before: bytes = b"") -> Any:
    """SHA-256 of some bytes, then of all weights."""
    known = sha256(before)
    for tensor in model.state_dict().values():
        known.update(tensor.float().numpy().tobytes())
    return known
