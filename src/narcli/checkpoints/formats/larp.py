"""Files of LARP tokenizers: sizes from shapes and LARP's own config.json."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...models.larp import LARPConfig
from .. import config as configs
from ..config import (
    ModelConfig,
    agree,
)
from .transformer import Tensors


def _infer_larp(file: Path, tensors: Tensors, said: ModelConfig) -> LARPConfig:
    """Sizes from config.json, compared with all that the shapes tell."""

    def shape(name: str, dims: int) -> tuple[int, ...]:
        found = tuple(tensors[name].shape) if name in tensors else None
        if found is None or len(found) != dims or 0 in found:
            what = f"has no {name}" if found is None else f"has {name} of the shape {found}"
            raise CheckpointError(f"{file} {what}.", "It is not a whole LARP tokenizer.")
        return found

    if not said.tokenizer:
        raise CheckpointError(
            f"{file} is a video tokenizer (LARP) without the config.json that says its sizes.",
            "Put the config.json of its repository beside it.",
        )
    codes = shape("bottleneck.regularizer.embedding.weight", 2)
    queries = shape("encoder_latent_query_embed", 2)
    patch = shape("x_embedder.proj.weight", 5)
    found: dict[str, Any] = {
        "bottleneck_token_num": queries[0],
        "codebook_size": codes[0],
        "bottleneck_dim": codes[1],
        "patch_size": patch[3],
        "temporal_patch_size": patch[2],
        "in_channels": patch[1],
        "encoder_hidden_size": queries[1],
        "decoder_hidden_size": shape("decoder_latent_pe", 3)[2],
        "use_decoder_patch_query_token_type_embed": "decoder_patch_query_token_type_embed" in tensors,
    }
    for part in ("encoder", "decoder"):
        blocks = {name.split(".")[2] for name in tensors if name.startswith(f"{part}.blocks.")}
        found[f"{part}_depth"] = len(blocks)
    agree(said, said.tokenizer, found)
    if foreign := sorted(said.tokenizer.keys() - configs.LARP.keys()):
        raise CheckpointError(
            f"{said.path}: {foreign[0]} does not belong to a LARP tokenizer.",
            "The two files do not belong together.",
        )
    sizes = LARPConfig(**{**said.tokenizer, **found})
    for part, name in (("encoder", "encoder_patch_pe"), ("decoder", "decoder_patch_query_embed")):
        grid, cells = getattr(sizes, f"{part}_patches"), shape(name, 3)[1]
        width, heads = getattr(sizes, f"{part}_hidden_size"), getattr(sizes, f"{part}_num_heads")
        wrong = f"{sizes.frame_num} frames of {sizes.input_size} pixels are {math.prod(grid)} patches"
        if math.prod(grid) != cells:
            raise CheckpointError(
                f"{said.path}: {wrong} of the {part}, but the tensors say {cells}.",
                "The two files do not belong together.",
            )
        if width % heads:
            raise CheckpointError(f"{said.path}: {heads} {part} heads cannot share a width of {width}.")
    return sizes
