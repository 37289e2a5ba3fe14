"""Files of convolutional tokenizers: sizes from shapes and config.json."""

from __future__ import annotations

import math
from pathlib import Path

from ... import rules
from ...errors import CheckpointError
from ...models.vq import VQConfig
from .. import config
from ..config import (
    ModelConfig,
    agree,
)
from .transformer import Tensors


def _infer_vq(file: Path, tensors: Tensors, said: ModelConfig) -> VQConfig:
    def size(name: str, axis: int = 0) -> int:
        if name not in tensors:
            raise CheckpointError(f"{file} lacks {name}.", "It is not a whole image tokenizer.")
        shape = tensors[name].shape
        if len(shape) <= axis or 0 in shape:
            raise CheckpointError(f"{file}: {name} has the shape {tuple(shape)}, which no tokenizer has.")
        return int(shape[axis])

    def count(prefix: str) -> int:
        return len({name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)})

    ch = size("encoder.conv_in.weight")
    widths = [
        size(f"encoder.conv_blocks.{i}.res.0.conv1.weight") for i in range(count("encoder.conv_blocks."))
    ]
    if not widths or ch % 32 or any(width % ch for width in widths):
        raise CheckpointError(
            f"{file} has levels of {widths} channels on a base of {ch}, which no image tokenizer here has.",
            "narcli reads VQ-16 and VQ-8 tokenizers of LlamaGen, and its own.",
        )
    planes = size("encoder.conv_in.weight", 1)
    frames = said.tokenizer.get("frames", 1)
    square = planes // (3 * frames)
    patch = said.tokenizer.get("patch", math.isqrt(square) if planes % (3 * frames) == 0 else 1)
    found = {
        "ch": ch,
        "ch_mult": tuple(width // ch for width in widths),
        "num_res_blocks": count("encoder.conv_blocks.0.res."),
        "z_channels": size("encoder.conv_out.weight"),
        "codebook_size": size("quantize.embedding.weight"),
        "codebook_dim": size("quantize.embedding.weight", 1),
        "in_channels": planes // (patch**2 * frames),
        "patch": patch,
        "frames": frames,
    }
    rules.check(file, "", config.VQ, found)
    agree(said, said.tokenizer, found)
    return VQConfig(**found)
