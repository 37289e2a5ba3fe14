"""Files of VAR: transformers and multi-scale tokenizers, released ones and narcli's own. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError
from ...order import MAX_SCALES
from ...rules import MAX_CELLS, Rule, check, sizes_of, whole
from .format import Contents, Fields, Format, agree

if TYPE_CHECKING:
    from ...models.multiscale import MultiscaleConfig
    from ...models.var import VARConfig

_FLAG: Rule = ("true or false", lambda v: type(v) is bool)
_SIDES: Rule = (
    f"a list of 1 to {MAX_SCALES} sides of squares, the largest last, of at most {MAX_CELLS} cells in all",
    lambda v: (
        isinstance(v, list | tuple)
        and 1 <= len(v) <= MAX_SCALES
        and all(type(n) is int for n in v)
        and 1 <= min(v) <= max(v) == v[-1]
        and sum(n * n for n in v) <= MAX_CELLS
    ),
)

#: Fields of VARConfig in a ``config.json``.
RULES: Mapping[str, Rule] = {
    "grid": sizes_of(2, 4096, MAX_CELLS),
    "sides": _SIDES,
    "dim": whole(1, 2**16),
    "layers": whole(1, 1000),
    "heads": whole(1, 1024),
    "vocab_size": whole(1, 2**24),
    "code_dim": whole(1, 4096),
    "num_classes": whole(0, 10**6),
    "shared_modulation": _FLAG,
    "normalised_attention": _FLAG,
}
#: Keys of a ``config.json`` that the released class saves -> fields of VARConfig.
RELEASED = {
    "patch_nums": "sides",
    "embed_dim": "dim",
    "depth": "layers",
    "num_heads": "heads",
    "num_classes": "num_classes",
}
#: Settings that the released scores were drawn with.
DEFAULTS: Mapping[str, float] = {"cfg_scale": 1.5, "top_k": 900, "top_p": 0.96}

#: Released names of tensors that are not of a block.
_ALONE = (
    *("pos_start", "pos_1LC", "class_emb.weight", "lvl_embed.weight"),
    *(
        f"{layer}.{part}"
        for layer in ("word_embed", "head_nm.ada_lin.1", "head")
        for part in ("weight", "bias")
    ),
)

#: Fields of MultiscaleConfig in a ``config.json``.
TOKENIZER_RULES: Mapping[str, Rule] = {
    "ch": whole(32, 4096),
    "ch_mult": sizes_of(8, 64, 2**16),
    "num_res_blocks": whole(1, 32),
    "z_channels": whole(1, 4096),
    "codebook_size": whole(1, 2**24),
    "phis": whole(1, 64),
}

#: Parts of released names of the transformer's tensors -> narcli's.
_RENAMED = {
    r"^class_emb\.": "condition.embedding.",
    r"^pos_start$": "start_position",
    r"^pos_1LC$": "position",
    r"^lvl_embed\.": "scale_embedding.",
    r"^word_embed\.": "word_embedding.",
    r"^head\.(weight|bias)$": r"head.output.\1",
    r"^head_nm\.ada_lin\.1\.": "head.modulation.",
    r"^shared_ada_lin\.1\.": "modulation.",
    r"(?<=\d)\.ada_lin\.1\.": ".modulation.",
    r"\.ada_gss$": ".constants",
    r"\.attn\.mat_qkv\.": ".qkv.",
    r"\.attn\.scale_mul_1H11$": ".temperature",
    r"\.attn\.(q_bias|v_bias)$": r".\1",
    r"\.attn\.proj\.": ".out.",
    r"\.ffn\.(fc1|fc2)\.": r".\1.",
}


def _rename(names: Collection[str]) -> dict[str, str]:
    if "lvl_embed.weight" in names:  # a missing tensor has the file's own name in messages, too
        names = {*names, *_ALONE}
    return {
        name: re.sub(pattern, new, name)
        for name in names
        for pattern, new in _RENAMED.items()
        if re.search(pattern, name)
    }


def _rename_tokenizer(names: Collection[str]) -> dict[str, str]:
    """Rename the parts of a tokenizer; its decoder numbers levels from the highest resolution, narcli not."""
    last = _count(names, "decoder.up.") - 1

    def level(name: re.Match[str]) -> str:
        number = int(name[2])
        return f"{name[1]}conv_blocks.{number if name[1] == 'encoder.' else last - number}."

    new = {}
    for name in names:
        changed = re.sub(r"^(encoder\.|decoder\.)(?:down|up)\.(\d{1,3})\.", level, name)
        changed = re.sub(r"\.block\.(\d+)\.", r".res.\1.", changed) if changed != name else name
        for number, part in enumerate(("block_1", "attn_1", "block_2")):
            changed = changed.replace(f".mid.{part}.", f".mid.{number}.")
        changed = re.sub(r"^quantize\.quant_resi\.(?:qresi_ls\.)?(\d+)\.", r"quantize.phis.\1.", changed)
        changed = changed.replace("quantize.quant_resi.qresi.", "quantize.phis.0.")
        if changed != name:
            new[name] = changed
    return new


def _count(names: Collection[str], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in names if name.startswith(prefix)})


def _read_config(path: Path, given: Fields) -> Fields:
    check(path, "", {key: RULES[field] for key, field in RELEASED.items()}, given)
    return {field: given[key] for key, field in RELEASED.items() if key in given}


def _shape(contents: Contents, name: str, dims: int) -> tuple[int, ...]:
    """Return the shape of a tensor by narcli's name.

    Raises:
        CheckpointError: it is missing, or has another number of axes.
    """
    found = tuple(contents.tensors[name].shape) if name in contents.tensors else None
    name = contents.shown.get(name, name)
    if found is None:
        raise CheckpointError(f"{contents.file} lacks {name}.", "It is not a whole VAR model.")
    if len(found) != dims or 0 in found:
        raise CheckpointError(
            f"{contents.file}: {name} has the shape {found}, expected {dims} sizes above 0."
        )
    return found


def _infer(contents: Contents) -> VARConfig:
    from ...models.var import VARConfig

    file, tensors, said = contents.file, contents.tensors, contents.config
    stated = dict(said.transformer)
    dim, code_dim = _shape(contents, "word_embedding.weight", 2)
    cells = _shape(contents, "position", 3)[1]
    found: dict[str, Any] = {
        "dim": dim,
        "layers": _count(tensors, "blocks."),
        "vocab_size": _shape(contents, "head.output.weight", 2)[0],
        "code_dim": code_dim,
        "num_classes": _shape(contents, "condition.embedding.weight", 2)[0] - 1,
        "shared_modulation": "modulation.weight" in tensors,
        "normalised_attention": "blocks.0.temperature" in tensors,
    }
    if found["normalised_attention"]:
        found["heads"] = _shape(contents, "blocks.0.temperature", 4)[1]
    if "lvl_1L" in tensors:
        found["sides"] = _sides(contents)
    check(file, "", RULES, found)
    agree(said, stated, found, {field: key for key, field in RELEASED.items()})
    sides = stated.get("sides", found.get("sides"))
    if sides is None or sum(side * side for side in sides) != cells:
        what = "does not say its scales" if sides is None else f"has {cells} places, not those of {sides}"
        raise CheckpointError(
            f"{file} {what}.",
            'Say them in a config.json beside the file, for example {"patch_nums": [1, 2, 3, 4]}.',
        )
    grid = (sides[-1], sides[-1])
    if stated.get("grid", grid) != grid:
        raise CheckpointError(f"{said.path}: grid is {stated['grid']}, expected the last scale, {grid}.")
    heads = stated.get("heads", found.get("heads", dim // 64))
    if not heads or dim % heads:
        raise CheckpointError(
            f"{said.path if 'heads' in stated else file}: {heads} attention heads cannot share a width "
            f"of {dim}.",
            "Say the right number as num_heads in a config.json beside the file.",
        )
    return VARConfig(**{**found, "grid": grid, "sides": tuple(sides), "heads": heads})


def _sides(contents: Contents) -> tuple[int, ...]:
    """Sides of the scales, from the scale of each place.

    Raises:
        CheckpointError: they are not squares, one after the other.
    """
    levels = contents.tensors["lvl_1L"].flatten().tolist()
    counts = [levels.count(level) for level in dict.fromkeys(levels)] if len(levels) <= MAX_CELLS else []
    sides = tuple(map(math.isqrt, counts))
    ordered = [level for level, side in enumerate(sides) for _ in range(side * side)]
    if not sides or levels != ordered or len(sides) != _shape(contents, "scale_embedding.weight", 2)[0]:
        raise CheckpointError(f"{contents.file}: lvl_1L does not count square scales.", "It is damaged.")
    return sides


def _infer_tokenizer(contents: Contents) -> MultiscaleConfig:
    from ...models.multiscale import MultiscaleConfig

    file, tensors, said = contents.file, contents.tensors, contents.config
    ch = _shape(contents, "encoder.conv_in.weight", 4)[0]
    levels = range(_count(tensors, "encoder.conv_blocks."))
    widths = [_shape(contents, f"encoder.conv_blocks.{i}.res.0.conv1.weight", 4)[0] for i in levels]
    if not widths or ch % 32 or any(width % ch for width in widths):
        raise CheckpointError(
            f"{file} has levels of {widths} channels on a base of {ch}, which no tokenizer of scales has.",
            "It is damaged, or another tokenizer.",
        )
    codes = _shape(contents, "quantize.embedding.weight", 2)
    found: dict[str, Any] = {
        "ch": ch,
        "ch_mult": tuple(width // ch for width in widths),
        "num_res_blocks": _count(tensors, "encoder.conv_blocks.0.res."),
        "z_channels": codes[1],
        "codebook_size": codes[0],
        "phis": _count(tensors, "quantize.phis."),
    }
    check(file, "", TOKENIZER_RULES, found)
    agree(said, said.tokenizer, found)
    return MultiscaleConfig(**found)


def _classes() -> tuple[type[VARConfig], type[Any]]:
    from ...models.var import VARConfig, VARTransformer

    return VARConfig, VARTransformer


def _tokenizer_classes() -> tuple[type[MultiscaleConfig], type[Any]]:
    from ...models.multiscale import MultiscaleConfig, MultiscaleTokenizer

    return MultiscaleConfig, MultiscaleTokenizer


TRANSFORMER = Format(
    "a VAR model",
    lambda names: (
        {"pos_1LC", "lvl_embed.weight"}.issubset(names)
        or {"scale_embedding.weight", "word_embedding.weight"}.issubset(names)
    ),
    "transformer",
    rules=RULES,
    marks=("sides", "patch_nums", "num_heads"),
    read_config=_read_config,
    rename=_rename,
    dropped={
        "lvl_1L": "the scale of each place, which follows from the sides",
        "attn_bias_for_masking": "a mask that follows from the sides, with infinities",
        "blocks.*.attn.zero_k_bias": "zeros in place of a bias of keys",
    },
    infer=_infer,
    classes=_classes,
    defaults={"image": DEFAULTS},
    clue="pos_1LC",
)
TOKENIZER = Format(
    "a multi-scale image tokenizer (VAR's)",
    lambda names: any(name.startswith(("quantize.quant_resi.", "quantize.phis.")) for name in names),
    "tokenizer",
    rules=TOKENIZER_RULES,
    marks=("phis",),
    rename=_rename_tokenizer,
    dropped={"quantize.ema_vocab_hit_SV": "counts of how often training used each code"},
    infer=_infer_tokenizer,
    classes=_tokenizer_classes,
)
