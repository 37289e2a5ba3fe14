"""Files of convolutional tokenizers: LlamaGen's VQ-16 and VQ-8, and narcli's own. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError
from ...rules import Rule, check, sizes_of, whole
from .format import Contents, Fields, Format, agree

if TYPE_CHECKING:
    from ...models.vq import VQConfig

#: Fields of VQConfig in a ``config.json``, narcli's or one beside a released file.
RULES: Mapping[str, Rule] = {
    "ch": whole(32, 4096),
    "ch_mult": sizes_of(8, 64, 2**16),
    "num_res_blocks": whole(1, 32),
    "z_channels": whole(1, 2**14),
    "codebook_size": whole(1, 2**24),
    "codebook_dim": whole(1, 4096),
    "in_channels": whole(1, 16),
    "patch": whole(1, 16),
    "frames": whole(1, 64),
    "decoder_blocks": whole(0, 32),
}


def _read_config(path: Path, given: Fields) -> Fields:
    check(path, "", RULES, given)
    return {key: given[key] for key in RULES if key in given}


def _infer(contents: Contents) -> VQConfig:
    from ...models.vq import VQConfig

    file, tensors, said = contents.file, contents.tensors, contents.config

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
        # The released models have two residual blocks there, around attention.
        "decoder_blocks": max(count("decoder.mid.") - 3, 0),
    }
    check(file, "", RULES, found)
    agree(said, said.tokenizer, found)
    return VQConfig(**found)


def _classes() -> tuple[type[VQConfig], type[Any]]:
    from ...models.vq import VQConfig, VQTokenizer

    return VQConfig, VQTokenizer


FORMAT = Format(
    "an image tokenizer",
    lambda names: "quantize.embedding.weight" in names,
    "tokenizer",
    rules=RULES,
    read_config=_read_config,
    dropped={"quantize.codebook_used": "a training-time record of which codes were used"},
    infer=_infer,
    classes=_classes,
)
