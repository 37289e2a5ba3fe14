"""Files of NAR transformers: names, and sizes from shapes and config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ... import rules
from ...errors import CheckpointError
from ...models.blocks import TransformerConfig
from ...order import HEADS, format_grid
from ...rules import MAX_CELLS
from .. import config
from ..config import (
    ModelConfig,
    agree,
)

Tensors = Mapping[str, Tensor]


Kind = Literal["image", "text", "video"]


#: Grids that a file cannot tell: the released image models', and the video models' by number of cells.
IMAGE_GRID = (16, 16)


VIDEO_GRIDS = {1024: (4, 16, 16)}


#: Widths whose heads are not 64 wide (the 3B and 7B sizes).
HEAD_DIMS = {3200: 100, 4096: 128}


#: Released name -> narcli's, without the ending ``.weight``.
COMMON = {
    "tok_embeddings": "token_embedding",
    "cls_embedding.embedding_table": "condition.embedding",
    "cls_embedding.cap_proj.fc1": "condition.fc1",
    "cls_embedding.cap_proj.fc2": "condition.fc2",
}


LAYER = {
    "attention.wqkv": "qkv",
    "attention.wo": "out",
    "feed_forward.w1": "ffn.gate",
    "feed_forward.w3": "ffn.up",
    "feed_forward.w2": "ffn.down",
    "attention_norm": "attention_norm",
    "ffn_norm": "ffn_norm",
}


IMAGE_HEADS = {
    "norm": "heads.right.norm",
    "output": "heads.right.output",
    "medusa_norm": "heads.down.norm",
    "medusa_output": "heads.down.output",
}


VIDEO_HEADS = {
    f"{part}_{letter}": f"heads.{head}.{part}"
    for letter, head in zip("RDB", HEADS, strict=True)
    for part in ("norm", "output")
}


#: The parameters that are not weights of a layer.
ARRAYS = {"cls_embedding.uncond_embedding": "condition.uncond_embedding", "abs_pe": "position_embedding"}


def released_names(family: str, layers: int) -> dict[str, str]:
    """Released name -> narcli name of everything that a model of that family may have."""
    heads = VIDEO_HEADS if family == "video" else IMAGE_HEADS
    table = COMMON | heads
    for i in range(layers):
        table |= {f"layers.{i}.{old}": f"layers.{i}.{new}" for old, new in LAYER.items()}
    return {f"{old}.weight": f"{new}.weight" for old, new in table.items()} | ARRAYS


def _layers(names: Mapping[str, object]) -> int:
    return len({name.split(".")[1] for name in names if name.startswith("layers.")})


def _infer_transformer(
    file: Path,
    tensors: Tensors,
    said: ModelConfig,
    grid: tuple[int, ...] | None,
    shown: Mapping[str, str],
) -> TransformerConfig:
    """Sizes from shapes; what these cannot tell from config.json, ``grid``, or the released models."""

    def shape(name: str, dims: int) -> tuple[int, ...]:
        found = tuple(tensors[name].shape) if name in tensors else None
        name = shown.get(name, name)
        if found is None:
            raise CheckpointError(f"{file} lacks {name}.", "It is not a whole NAR model.")
        if len(found) != dims or 0 in found:
            raise CheckpointError(f"{file}: {name} has the shape {found}, expected {dims} sizes above 0.")
        return found

    stated = dict(said.transformer)
    rows, dim = shape("token_embedding.weight", 2)
    vocab_size = shape("heads.right.output.weight", 2)[0]
    axes = len([head for head in HEADS if f"heads.{head}.output.weight" in tensors])
    found: dict[str, Any] = {
        "dim": dim,
        "vocab_size": vocab_size,
        "extra_tokens": rows - vocab_size,
        "layers": _layers(tensors) - (axes - 1),
        "ffn_dim": shape("layers.0.ffn.gate.weight", 2)[0],
        "position": "absolute" if "position_embedding" in tensors else "rotary",
    }
    if "condition.embedding.weight" in tensors:
        classes = shape("condition.embedding.weight", 2)[0] - 1
        found |= {"condition": "class", "num_classes": classes, "condition_tokens": 1, "caption_dim": 0}
    else:
        tokens, width = shape("condition.uncond_embedding", 2)
        found |= {"condition": "text", "num_classes": 0, "condition_tokens": tokens, "caption_dim": width}
        if not said.kind:
            stated.pop("num_classes", None)  # the released code has it for text too, and ignores it
    if found["extra_tokens"] < 0 or found["layers"] < 1:
        raise CheckpointError(
            f"{file} has {rows} token embeddings for {vocab_size} codes and {found['layers']} trunk layers.",
            "It is damaged, or not a NAR model.",
        )
    rules.check(file, "", config.TRANSFORMER, found)
    agree(said, stated, found)

    head_dim = stated.get("head_dim", HEAD_DIMS.get(dim, 64))
    heads = stated.get("heads", dim // head_dim)
    where = said.path if {"heads", "head_dim"} & stated.keys() else file
    if not heads or dim % heads or (found["position"] == "rotary" and dim // heads % 4):
        raise CheckpointError(
            f"{where}: {heads} attention heads cannot share a width of {dim}.",
            "Say the right number as n_head in a config.json beside the file.",
        )
    if "head_dim" in stated and heads * head_dim != dim:
        raise CheckpointError(f"{where}: head_dim is {head_dim}, but {heads} heads share a width of {dim}.")

    cells = None
    if found["position"] == "absolute":
        cells = shape("position_embedding", 3)[1] - found["condition_tokens"]
        grid = grid or VIDEO_GRIDS.get(cells)
    grid = stated.get("grid", grid or (IMAGE_GRID if cells is None and axes == 2 else None))
    if grid is None:
        raise CheckpointError(f"{file} does not say its token grid.", _GRID_HINT)
    if len(grid) != axes or (cells is not None and math.prod(grid) != cells) or math.prod(grid) > MAX_CELLS:
        expected = f"{axes} axes" if cells is None else f"{axes} axes and {cells} cells"
        where = said.path if "grid" in stated else file
        raise CheckpointError(
            f"{where}: the grid {format_grid(grid)} does not fit the tensors, expected {expected}.",
            _GRID_HINT,
        )
    return TransformerConfig(grid=tuple(grid), heads=heads, **found)


_GRID_HINT = 'Say it in a config.json beside the file, for example {"grid": [4, 16, 16]}.'


def kind_of(sizes: TransformerConfig) -> Kind:
    """What a model of these sizes makes: images of classes, images from text, or videos."""
    return "video" if len(sizes.grid) == 3 else "text" if sizes.condition == "text" else "image"


def _expect_kind(file: Path, sizes: TransformerConfig, kind: Kind | None) -> None:
    found = kind_of(sizes)
    words = {
        "image": ("makes images of classes", "Use `narcli image --class`."),
        "text": ("makes images from text", "Use `narcli image --prompt`."),
        "video": ("makes videos", "Use `narcli video`."),
    }
    if kind not in (None, found):
        raise CheckpointError(
            f"{file} {words[found][0]}; a model that {words[kind][0]} is wanted.", words[found][1]
        )
