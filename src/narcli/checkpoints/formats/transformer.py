"""Files of transformers: narcli's own, and the released ones of NAR, LlamaGen, PAR and LARP. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError, UsageError
from ...order import HEADS, NAR, format_grid, named
from ...rules import MAX_CELLS, Rule, check, one_of, sizes_of, whole
from .format import Contents, Fields, Format, agree

if TYPE_CHECKING:
    from ...models.blocks import TransformerConfig

#: Grids that a file cannot tell: the released image models', and the video models' by number of cells.
IMAGE_GRID = (16, 16)
VIDEO_GRIDS = {1024: (4, 16, 16)}
PAR_GRID = (24, 24)
PIXELS = 16  # of a released tokenizer along a side of a token
ROTARY_TABLE = "freqs_cis"

#: Widths whose heads are not 64 wide (the 3B and 7B sizes).
HEAD_DIMS = {3200: 100, 4096: 128}

#: Fields of TransformerConfig in a ``config.json``.
RULES: Mapping[str, Rule] = {
    "grid": sizes_of(3, 4096, MAX_CELLS),
    "dim": whole(1, 2**16),
    "layers": whole(1, 1000),
    "heads": whole(1, 1024),
    "vocab_size": whole(1, 2**24),
    "ffn_dim": whole(1, 2**20),
    "condition": one_of("class", "text", "frames"),
    "num_classes": whole(0, 10**6),
    "condition_tokens": whole(1, MAX_CELLS),
    "caption_dim": whole(0, 2**16),
    "position": one_of("rotary", "absolute"),
    "extra_tokens": whole(0, 10**6),
    "order": (
        "nar, raster or par:N",
        lambda v: isinstance(v, str) and re.fullmatch("nar|raster|par:[0-9]{1,6}", v, re.ASCII) is not None,
    ),
}

#: Keys of a ``config.json`` beside a released file -> fields of TransformerConfig.
RELEASED: Mapping[str, str] = {
    "n_layer": "layers",
    "n_head": "heads",
    "cond_tokens": "condition_tokens",
    "cls_token_num": "condition_tokens",
} | {key: key for key in ("grid", "dim", "vocab_size", "num_classes", "caption_dim")}

#: What the released scripts sample with (the paper's numbers: images 2.0 with top-k 0, videos 1.25).
RELEASED_DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "image": {"cfg_scale": 4.0, "top_k": 2000},
    "text": {"cfg_scale": 7.5},
    "video": {"cfg_scale": 1.25},
}

#: Released names of tensors -> narcli's, without the ending ``.weight``.
COMMON = {
    "tok_embeddings": "token_embedding",
    "spe_tok_embeddings.special_embeddings": "learned_embedding",
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
RASTER_HEAD = {"norm": "heads.right.norm", "output": "heads.right.output"}
IMAGE_HEADS = RASTER_HEAD | {
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

_GRID_HINT = 'Say it in a config.json beside the file, for example {"grid": [4, 16, 16]}.'


def released_names(heads: Mapping[str, str], layers: int) -> dict[str, str]:
    """Return released name -> narcli's of every tensor that a model with these heads may have."""
    table = COMMON | dict(heads)
    for i in range(layers):
        table |= {f"layers.{i}.{old}": f"layers.{i}.{new}" for old, new in LAYER.items()}
    return {f"{old}.weight": f"{new}.weight" for old, new in table.items()} | ARRAYS


def rename(heads: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    """Return ``released_names`` for a file with tensors of these names."""
    return released_names(heads, _layers(names))


def _layers(names: Collection[str]) -> int:
    return len({name.split(".")[1] for name in names if name.startswith("layers.")})


def read_config(path: Path, given: Fields) -> dict[str, Any]:
    """Check a ``config.json`` in the released code's words and return fields of TransformerConfig.

    A ``head_dim`` is kept beside them, to compare it.

    Raises:
        CheckpointError: a value that is not what it should be.
    """
    check(path, "", {key: RULES[field] for key, field in RELEASED.items()}, given)
    check(path, "", {"head_dim": whole(1, 2**16)}, given)
    fields = {field: given[key] for key, field in RELEASED.items() if key in given}
    return fields | ({"head_dim": given["head_dim"]} if "head_dim" in given else {})


def infer(contents: Contents, order: str = "") -> TransformerConfig:
    """Infer sizes from shapes; what these cannot tell from config.json, the grid, or the released models.

    Args:
        contents: all that states the sizes.
        order: name of the order of the family; "" is what the ``config.json`` says, or NAR's.

    Raises:
        CheckpointError: sizes that no model has, or that differ from the stated ones.
    """
    from ...models.blocks import TransformerConfig

    file, tensors, said = contents.file, contents.tensors, contents.config

    def shape(name: str, dims: int) -> tuple[int, ...]:
        found = tuple(tensors[name].shape) if name in tensors else None
        name = contents.shown.get(name, name)
        if found is None:
            raise CheckpointError(f"{file} lacks {name}.", "It is not a whole model.")
        if len(found) != dims or 0 in found:
            raise CheckpointError(f"{file}: {name} has the shape {found}, expected {dims} sizes above 0.")
        return found

    stated = dict(said.transformer)
    order = order or stated.get("order", NAR)
    if "learned_embedding.weight" in tensors:
        order = f"par:{shape('learned_embedding.weight', 2)[0] + 1}"
    rows, dim = shape("token_embedding.weight", 2)
    vocab_size = shape("heads.right.output.weight", 2)[0]
    heads_there = len([head for head in HEADS if f"heads.{head}.output.weight" in tensors])
    found: dict[str, Any] = {
        "dim": dim,
        "vocab_size": vocab_size,
        "extra_tokens": rows - vocab_size,
        "layers": _layers(tensors) - (heads_there - 1),
        "ffn_dim": shape("layers.0.ffn.gate.weight", 2)[0],
        "position": "absolute" if "position_embedding" in tensors else "rotary",
        "order": order,
    }
    if "condition.embedding.weight" in tensors:
        classes = shape("condition.embedding.weight", 2)[0] - 1
        found |= {"condition": "class", "num_classes": classes, "condition_tokens": 1, "caption_dim": 0}
    elif "condition.uncond_embedding" in tensors or "position_embedding" not in tensors:
        tokens, width = shape("condition.uncond_embedding", 2)
        found |= {"condition": "text", "num_classes": 0, "condition_tokens": tokens, "caption_dim": width}
    else:
        tokens = shape("position_embedding", 3)[1] // 2 + 1
        found |= {"condition": "frames", "num_classes": 0, "condition_tokens": tokens, "caption_dim": 0}
    if found["condition"] != "class" and not said.kind:
        stated.pop("num_classes", None)  # the released code has it for all models, and ignores it
    if found["extra_tokens"] < 0 or found["layers"] < 1:
        raise CheckpointError(
            f"{file} has {rows} token embeddings for {vocab_size} codes and {found['layers']} trunk layers.",
            "It is damaged, or not a whole model.",
        )
    check(file, "", RULES, found)
    agree(said, stated, found, {field: key for key, field in RELEASED.items()})

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
        cells = shape("position_embedding", 3)[1] - found["condition_tokens"] + (order != NAR)
    # A grid has an axis for each of NAR's heads; a clip has three, and a picture two.
    axes = len(stated["grid"]) if "grid" in stated else 2 if cells is None else 3
    axes = heads_there if order == NAR else axes
    grid = stated.get("grid") or contents.grid or _grid(contents, found, cells, axes)
    if grid is None:
        raise CheckpointError(f"{file} does not say its token grid.", _GRID_HINT)
    if len(grid) != axes or (cells is not None and math.prod(grid) != cells) or math.prod(grid) > MAX_CELLS:
        expected = f"{axes} axes" if cells is None else f"{axes} axes and {cells} cells"
        where = said.path if "grid" in stated else file
        raise CheckpointError(
            f"{where}: the grid {format_grid(grid)} does not fit the tensors, expected {expected}.",
            _GRID_HINT,
        )
    try:
        named(order, tuple(grid))
    except UsageError as error:
        raise CheckpointError(f"{file}: {error.message}", _GRID_HINT) from None
    return TransformerConfig(grid=tuple(grid), heads=heads, **found)


def _grid(contents: Contents, found: Fields, cells: int | None, axes: int) -> tuple[int, ...] | None:
    """Return the grid of a file that does not state it, as far as it follows from the rest."""
    order, first = found["order"], found["condition_tokens"]
    if cells is not None:
        return VIDEO_GRIDS.get(cells) or ((1, 1, cells) if order != NAR else None)
    if axes != 2:
        return None
    table = contents.tensors.get(ROTARY_TABLE)
    if table is not None and table.dim() == 3 and len(table) > first:  # rows of condition tokens and cells
        return (math.isqrt(len(table) - first),) * 2
    size = re.search("(?<![0-9])(256|384|512)(?![0-9])", contents.file.stem)
    if size and order != NAR:
        return (int(size[1]) // PIXELS,) * 2
    return PAR_GRID if order.startswith("par") else IMAGE_GRID


def _classes() -> tuple[type[TransformerConfig], type[Any]]:
    from ...models.blocks import TransformerConfig
    from ...models.transformer import NARTransformer

    return TransformerConfig, NARTransformer


NARCLI = Format(
    "a NAR model",
    {"token_embedding.weight", "heads.right.output.weight"}.issubset,
    "transformer",
    rules=RULES,
    read_config=read_config,
    infer=infer,
    classes=_classes,
    defaults=RELEASED_DEFAULTS,
)
IMAGE = replace(
    NARCLI,
    words="a NAR image model",
    recognise=lambda names: (
        "tok_embeddings.weight" in names
        and ("medusa_output.weight" in names or "medusa_norm.weight" in names)
    ),
    rename=partial(rename, IMAGE_HEADS),
)
VIDEO = replace(
    NARCLI,
    words="a NAR video model",
    recognise=lambda names: (
        "tok_embeddings.weight" in names and ("output_R.weight" in names or "output_D.weight" in names)
    ),
    rename=partial(rename, VIDEO_HEADS),
)
VIDEO_FRAMES = Format(
    "a NAR model of frame prediction",
    lambda names: VIDEO.recognise(names) and not any(name.startswith("cls_embedding") for name in names),
    hint="Its released code hides the given frames from the network; larp-ar-k600 goes on from frames.",
)
PAR = replace(
    NARCLI,
    words="a PAR model",
    recognise={"tok_embeddings.weight", "spe_tok_embeddings.special_embeddings.weight"}.issubset,
    rename=partial(rename, RASTER_HEAD),
    dropped={ROTARY_TABLE: "the table of rotary positions, which is computed"},
    clue="spe_tok_embeddings",
    defaults={"image": {"cfg_scale": 1.5}},
)
RASTER_VIDEO = replace(
    NARCLI,
    words="a LARP-AR video model (raster order)",
    recognise={"tok_embeddings.weight", "abs_pe"}.issubset,
    rename=partial(rename, RASTER_HEAD),
    infer=partial(infer, order="raster"),
)
LLAMAGEN = replace(
    PAR,
    words="a LlamaGen model (raster order)",
    recognise=lambda names: "tok_embeddings.weight" in names,
    infer=partial(infer, order="raster"),
    clue="",
    defaults=RELEASED_DEFAULTS,
)
