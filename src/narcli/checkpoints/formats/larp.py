"""Files of LARP tokenizers: sizes from shapes and from LARP's own ``config.json``. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError
from ...rules import MAX_CELLS, Rule, check, number, one_of, whole
from .format import Contents, Fields, Format, agree

if TYPE_CHECKING:
    from ...models.larp import LARPConfig

#: Fields of LARPConfig in a ``config.json``, narcli's or LARP's.
RULES: Mapping[str, Rule] = {
    "bottleneck_token_num": whole(1, MAX_CELLS),
    "codebook_size": whole(1, 2**24),
    "bottleneck_dim": whole(1, 4096),
    "input_size": whole(1, 4096),
    "frame_num": whole(1, 1024),
    **{f"{part}patch_size": whole(1, 64) for part in ("", "temporal_", "decoder_", "decoder_temporal_")},
    "in_channels": whole(1, 16),
    **{f"{part}_hidden_size": whole(1, 2**14) for part in ("encoder", "decoder")},
    **{f"{part}_depth": whole(1, 1000) for part in ("encoder", "decoder")},
    **{f"{part}_num_heads": whole(1, 1024) for part in ("encoder", "decoder")},
    "use_decoder_patch_query_token_type_embed": ("true or false", lambda v: type(v) is bool),
    "block_norm_eps": number(1e-12, 1e-2),
}

#: Values in LARP's ``config.json`` of the only variant of the network that narcli has.
VARIANT: Mapping[str, Rule] = {
    "transformer_name": one_of("transformer_encoder_parallel"),
    "encoder_name": one_of("none"),
    "decoder_name": one_of("none"),
    "l2_normalized": ("true", lambda v: v is True),
}


def _read_config(path: Path, given: Fields) -> Fields:
    fields, inner = dict(given), given.get("bottleneck")
    for key in ("args", "regularizer", "args"):  # one inside the other
        part = inner.get(key) if isinstance(inner, dict) else None
        if not isinstance(part, dict):
            raise CheckpointError(f"{path}: the bottleneck has no {key}.", "It is not LARP's config.json.")
        fields |= {name: value for name, value in part.items() if name in {*RULES, *VARIANT}}
        inner = part
    check(path, "", {**RULES, **VARIANT}, fields)
    return {key: fields[key] for key in RULES if key in fields}


def _infer(contents: Contents) -> LARPConfig:
    from ...models.larp import LARPConfig

    file, tensors, said = contents.file, contents.tensors, contents.config

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
    if foreign := sorted(said.tokenizer.keys() - RULES.keys()):
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


def _classes() -> tuple[type[LARPConfig], type[Any]]:
    from ...models.larp import LARPConfig, LARPTokenizer

    return LARPConfig, LARPTokenizer


FORMAT = Format(
    "a video tokenizer (LARP)",
    lambda names: "bottleneck.out_linear.weight" in names,
    "tokenizer",
    rules=RULES,
    marks=("bottleneck_token_num", "bottleneck"),
    read_config=_read_config,
    dropped={"prior_model.*": "a training-time network whose loss shapes the codes"},
    infer=_infer,
    classes=_classes,
)
