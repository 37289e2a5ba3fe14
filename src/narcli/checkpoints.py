"""Checkpoints: what a file is, renaming, strict loading, and saying what is wrong.

Released files are PyTorch pickles or safetensors with the names of the released code; narcli's own
are folders (see ``configs``). Tensors stay memory-mapped and become the parameters of a module that
was built without memory, so nothing is held twice. Every tensor must be expected, there, and of the
right shape; the few that are dropped are listed with their reason.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import configs, containers, conversions
from .classes import RELEASED_TABLES
from .configs import (
    CONFIG,
    FORMAT,
    MAX_CELLS,
    MODEL,
    RELEASED_DEFAULTS,
    TEXT_ENCODER,
    TOKENIZER,
    ModelConfig,
    agree,
    read_config,
)
from .containers import NUMBERS, read_tensors
from .conversions import Conversion
from .errors import CheckpointError, UsageError, first_line
from .models.larp import LARPConfig, LARPTokenizer
from .models.text import T5Encoder, check_encoder
from .models.transformer import NARTransformer, TransformerConfig
from .models.vq import VQConfig, VQTokenizer
from .order import HEADS, format_grid
from .registry import DEFAULT_KINDS, Model, has_own_encoder, has_own_tokenizer
from .textfiles import MAX_JSON, expand, read_json
from .writers import OLD, PART, explain, system_error

Tensors = Mapping[str, Tensor]
Kind = Literal["image", "text", "video"]
Tokenizer = VQTokenizer | LARPTokenizer
M = TypeVar("M", bound=nn.Module)

#: What the names of the tensors begin with that are left out on purpose, by family, and why.
DROPPED = {
    "vq": {"quantize.codebook_used": "a training-time record of which codes were used"},
    "larp": {"prior_model.": "a training-time network whose loss shapes the codes"},
}
#: Grids that a file cannot tell: the released image models', and the video models' by number of cells.
IMAGE_GRID = (16, 16)
VIDEO_GRIDS = {1024: (4, 16, 16)}
#: Widths whose heads are not 64 wide (the 3B and 7B sizes).
HEAD_DIMS = {3200: 100, 4096: 128}
MAX_INDEX = 2**24  # bytes of the index of a model in shards

# --- names ---------------------------------------------------------------------------------------

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


def identify(names: Mapping[str, object] | Sequence[str]) -> str:
    """What the names of its tensors say a file is.

    Returns:
        ``image`` (class or text), ``video``, ``narcli`` (a transformer of ours), ``vq``, ``larp``, or what
        else it seems to be, in words.
    """
    has = set(names).__contains__
    if has("token_embedding.weight") and has("heads.right.output.weight"):
        return "narcli"
    if has("tok_embeddings.weight"):
        if has("medusa_output.weight") or has("medusa_norm.weight"):
            return "image"
        if has("output_R.weight") or has("output_D.weight"):
            return "video"
        if has("abs_pe"):
            return "a raster-order video model (LARP's, or another that NAR is compared with)"
        return "a LlamaGen model (raster order; it has no medusa_* tensors)"
    if has("quantize.embedding.weight"):
        return "vq"
    if has("bottleneck.out_linear.weight"):
        return "larp"
    if has("shared.weight") or has("encoder.block.0.layer.0.SelfAttention.q.weight"):
        return "a T5 text encoder"
    some = ", ".join(sorted(names)[:3])
    return f"a model of another family (its tensors begin with {some})" if some else "empty"


_IN_WORDS = {
    "image": "a NAR image model",
    "video": "a NAR video model",
    "narcli": "a NAR model",
    "vq": "an image tokenizer",
    "larp": "a video tokenizer (LARP)",
}

# --- the transformer -----------------------------------------------------------------------------


def load_transformer(
    path: str | Path,
    *,
    kind: Kind | None = None,
    grid: tuple[int, ...] | None = None,
    config: str | Path | None = None,
    dtype: torch.dtype | None = torch.float32,
    device: str | torch.device = "cpu",
    keep: bool = False,
) -> NARTransformer:
    """Load a NAR model for inference.

    Args:
        path: a released file, or a narcli folder.
        kind: what it has to be; None for any.
        grid: of the tokens, for released files that do not tell; a ``config.json`` goes first.
        config: a ``config.json``; by default the one beside the file.
        dtype: of the parameters; None keeps the file's.
        device: where they go.
        keep: keep a converted copy in the user's cache folder, where that saves time, and use it.

    Raises:
        CheckpointError: what the file is instead, or which tensors are missing, unexpected or misshapen.
    """
    kept = dtype if keep else None
    file, tensors, sizes, shown, copy = _read_transformer(Path(path), kind, grid, config, kept)
    return _fill(build(sizes), tensors, file, dtype, device, shown, copy)


def transformer_config(
    path: str | Path,
    *,
    kind: Kind | None = None,
    grid: tuple[int, ...] | None = None,
    config: str | Path | None = None,
) -> TransformerConfig:
    """The sizes of a NAR model, without loading it; arguments and errors as ``load_transformer``."""
    return _read_transformer(Path(path), kind, grid, config)[2]


def _read_transformer(
    path: Path,
    kind: Kind | None,
    grid: tuple[int, ...] | None,
    config: str | Path | None,
    kept: torch.dtype | None = None,
) -> tuple[Path, dict[str, Tensor], TransformerConfig, dict[str, str], Conversion | None]:
    """The file, tensors by narcli's names, their sizes, the file's own names for messages, and its copy."""
    file, said, tensors, copy = _open(path, MODEL, config, kept)
    family = _expect(file, tensors, ("image", "video", "narcli"), "a NAR model")
    names = {} if family == "narcli" else released_names(family, _layers(tensors))
    shown = {new: old for old, new in names.items()}
    renamed = {names.get(name, name): tensor for name, tensor in tensors.items()}
    sizes = _infer_transformer(file, renamed, said, grid, shown)
    _expect_kind(file, sizes, kind)
    return file, renamed, sizes, shown, copy


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
    configs.check(file, "", configs.TRANSFORMER, found)
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


# --- the tokenizers ------------------------------------------------------------------------------


def load_tokenizer(
    path: str | Path,
    *,
    config: str | Path | None = None,
    dtype: torch.dtype | None = torch.float32,
    device: str | torch.device = "cpu",
    keep: bool = False,
) -> Tokenizer:
    """Load a tokenizer of images or videos for inference; arguments as ``load_transformer``.

    Raises:
        CheckpointError: what the file is instead, or which tensors are missing, unexpected or misshapen.
    """
    file, said, tensors, copy = _open(Path(path), TOKENIZER, config, dtype if keep else None)
    family = _expect(file, tensors, ("vq", "larp"), "a tokenizer")
    tensors = {name: t for name, t in tensors.items() if not name.startswith(tuple(DROPPED[family]))}
    sizes = _infer_vq(file, tensors, said) if family == "vq" else _infer_larp(file, tensors, said)
    return _fill(build(sizes), tensors, file, dtype, device, copy=copy)


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
    configs.check(file, "", configs.VQ, found)
    agree(said, said.tokenizer, found)
    return VQConfig(**found)


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


# --- parts ---------------------------------------------------------------------------------------


def _weights_file(path: Path, part: str) -> Path:
    """The weights file that a path means: itself, or ``part`` or the only other one of a folder."""
    if not path.is_dir():
        return path
    there = sorted(p.name for p in path.iterdir())
    if part in there:
        return path / part
    others = configs.weights_in(there)
    if len(others) == 1:
        return path / others[0]  # a released repository as it was downloaded
    if others and all(_SHARD.search(name) for name in others):
        raise CheckpointError(f"The folder {path} has a model in {len(others)} shards.", _SHARD_HINT)
    held = ", ".join(others or there)[:200] or "nothing"
    raise CheckpointError(
        f"The folder {path} has no {part} (it holds {held}).",
        "Give a narcli model folder, or the weights file itself.",
    )


_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.\w+$")
_SHARD_HINT = "narcli reads a model from one file; save it as one, without shards."


def _refuse_shard(file: Path) -> None:
    """Refuse one of several files of a model, told by its name or by the index beside it."""
    shard = _SHARD.search(file.name)
    parts = int(shard[2]) if shard else 0
    for index in file.parent.glob("*.index.json"):
        with suppress(CheckpointError):  # what cannot be read says nothing
            names = read_json(index, MAX_INDEX).get("weight_map")
            listed = {n for n in names.values() if isinstance(n, str)} if isinstance(names, dict) else set()
            parts = max(parts, len(listed) if file.name in listed else 0)
    if parts > 1:
        number = f", number {int(shard[1])}" if shard else ""
        raise CheckpointError(f"{file} is one shard of a model in {parts}{number}.", _SHARD_HINT)


def remark(path: Path) -> str:
    """Say which model of several in a model's file is used; "" where there is one."""
    with suppress(CheckpointError):
        return containers.remark(_weights_file(path, MODEL))
    return ""


def _open(
    path: Path, part: str, config: str | Path | None, kept: torch.dtype | None = None
) -> tuple[Path, ModelConfig, dict[str, Tensor], Conversion | None]:
    """The weights file that a path means, what its config.json says, its tensors, and its copy in a dtype."""
    file = _weights_file(configs.result_of(expand(path)), part)
    _refuse_shard(file)
    beside = expand(config) if config else file.with_name(CONFIG)
    said = read_config(beside) if config or os.path.lexists(beside) else ModelConfig()
    copy = conversions.of(file, str(kept).removeprefix("torch."))  # the state before it is read
    if copy is not None:
        with suppress(CheckpointError):  # which would not name the file as it was given
            return file, said, read_tensors(copy.source), copy  # a link may lead elsewhere by now
    return file, said, read_tensors(file), None


def _expect(file: Path, tensors: Tensors, families: tuple[str, ...], wanted: str) -> str:
    family = identify(tensors)
    if family in families:
        return family
    hint = None
    if family in ("vq", "larp"):
        hint = "Give it as --tokenizer; --model takes the transformer."
    elif family in ("image", "video", "narcli"):
        hint = "Give it as --model; --tokenizer takes the tokenizer."
    elif "LlamaGen" in family or "raster" in family:
        hint = "NAR's own weights have medusa_* (images) or output_R, output_D, output_B (videos) tensors."
    raise CheckpointError(f"{file} is {_IN_WORDS.get(family, family)}, not {wanted}.", hint)


def check_model(model: Model, path: Path, kind: Kind | None = None) -> None:
    """Load all networks of a model that is on this machine strictly, without memory.

    Args:
        model: from the registry.
        path: its weights file or folder.
        kind: what a transformer has to be; None for any.

    Raises:
        CheckpointError: what the file is instead, or what is missing, unexpected or misshapen.
    """
    folder = path if path.is_dir() else path.parent
    if model.kind == "text-encoder":
        return check_encoder(folder)
    if model.kind in DEFAULT_KINDS:
        load_transformer(path, kind=kind, grid=model.grid, dtype=None, device="meta")
        if has_own_encoder(path):
            check_encoder(folder / TEXT_ENCODER)
    if model.kind.endswith("-tokenizer") or has_own_tokenizer(path):
        load_tokenizer(folder if has_own_tokenizer(path) else path, dtype=None, device="meta")


@overload
def build(config: TransformerConfig) -> NARTransformer: ...
@overload
def build(config: VQConfig | LARPConfig) -> Tokenizer: ...
def build(config: TransformerConfig | VQConfig | LARPConfig) -> nn.Module:
    """A network of these sizes on the device ``meta``: shapes without memory."""
    with torch.device("meta"), _Uninitialized():
        if isinstance(config, TransformerConfig):
            return NARTransformer(config)
        return VQTokenizer(config) if isinstance(config, VQConfig) else LARPTokenizer(config)


class _Uninitialized(TorchFunctionMode):
    """Modules are built without initial values: on ``meta`` these would import half of torch's compiler."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), named: dict[str, Any] | None = None
    ) -> Any:
        named = named or {}
        if getattr(function, "__module__", "") == "torch.nn.init":
            return named["tensor"] if "tensor" in named else arguments[0]
        return function(*arguments, **named)


def _fill(
    model: M,
    tensors: Mapping[str, Tensor],
    file: Path,
    dtype: torch.dtype | None,
    device: str | torch.device,
    shown: Mapping[str, str] | None = None,
    copy: Conversion | None = None,
) -> M:
    """Give a module on ``meta`` its tensors, each exactly once.

    ``shown`` maps names to those that the file has, for messages; ``copy`` is the file's, to use or to write.
    """
    shown = shown or {}
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = {
        "lacks": [shown.get(name, name) for name in expected if name not in tensors],
        "has unexpected": [shown.get(name, name) for name in tensors if name not in expected],
        "has misshapen": [
            f"{shown.get(name, name)} {tuple(tensors[name].shape)} instead of {shape}"
            for name, shape in expected.items()
            if name in tensors and tuple(tensors[name].shape) != shape
        ],
        "has non-float": [shown.get(n, n) for n, t in tensors.items() if t.dtype not in NUMBERS],
    }
    found = [f"{what} {len(names)} tensors: {_some(names)}" for what, names in problems.items() if names]
    if found:
        raise CheckpointError(
            f"{file} {'; '.join(found)}.",
            "It is another model, or a damaged one; nothing is loaded in part.",
        )
    if copy is not None:
        tensors = copy.converted(tensors)
    # Where nothing changes this keeps the memory map; elsewhere one tensor at a time is copied.
    converted = {name: tensor.to(device, dtype or tensor.dtype) for name, tensor in tensors.items()}
    model.load_state_dict(converted, assign=True)
    return model.eval()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# --- narcli's own format -------------------------------------------------------------------------


def save_model(
    folder: str | Path,
    *,
    transformer: NARTransformer | None = None,
    tokenizer: Tokenizer | None = None,
    text_encoder: T5Encoder | None = None,
    classes: str | Sequence[str] | None = None,
    defaults: Mapping[str, float] | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a narcli folder; it is there whole or not at all.

    Args:
        folder: the folder to make; one that is empty is replaced. Its name becomes the model's.
        transformer: the model; without one the folder holds a tokenizer only.
        tokenizer: the tokenizer that belongs to it.
        text_encoder: of a model of images from text, where it has one of its own.
        classes: name of a class table, or the class names.
        defaults: sampling settings (cfg_scale, temperature, top_k, top_p, cfg_interval).
        dtype: of the stored tensors; None keeps each as it is.
        overwrite: replace an older narcli folder.

    Raises:
        UsageError: neither part given, or the folder holds something else.
        CheckpointError: a setting or class list that could not be read back.
        NarError: the disk is full and the like.
    """
    folder = expand(folder)
    if transformer is None and tokenizer is None:
        raise UsageError("A model folder needs a transformer or a tokenizer.")
    _check_replaceable(folder, overwrite)
    parts: dict[str, dict[str, Tensor]] = {}
    if transformer is not None:
        parts[MODEL] = _storable(transformer, dtype)
    if tokenizer is not None:
        parts[TOKENIZER] = _storable(tokenizer, dtype)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=PART[0], suffix=PART[1], dir=folder.parent) as made:
            new = Path(made) / "new" / folder.name
            new.mkdir(parents=True)
            _write_config(
                new / CONFIG,
                folder.name,
                transformer.config if transformer is not None else None,
                tokenizer.config if tokenizer is not None else None,
                classes,
                defaults,
            )
            for file, tensors in parts.items():
                save_file(tensors, new / file)
                (new / file).chmod((new / CONFIG).stat().st_mode)  # it is made for its owner alone
            if text_encoder is not None:
                text_encoder.save(new / TEXT_ENCODER, dtype)
                for stored in (new / TEXT_ENCODER).iterdir():
                    stored.chmod((new / CONFIG).stat().st_mode)
            old = Path(made) / OLD / folder.name
            if folder.exists():
                old.parent.mkdir()
                folder.rename(old)
            try:
                new.rename(folder)
            except BaseException:
                if old.exists():
                    old.rename(folder)
                raise
    except (OSError, SafetensorError) as error:
        raise explain(folder, system_error(error) or OSError(first_line(error))) from error
    return folder


def check_saveable(
    folder: Path,
    transformer: TransformerConfig | None = None,
    tokenizer: VQConfig | LARPConfig | None = None,
    classes: str | Sequence[str] | None = None,
    defaults: Mapping[str, float] | None = None,
) -> None:
    """Raise now what ``save_model`` would raise after hours of training; arguments as there, but sizes.

    Raises:
        UsageError, CheckpointError, NarError: as ``save_model`` with ``overwrite``.
    """
    _check_replaceable(folder, overwrite=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=PART[0], suffix=PART[1], dir=folder.parent) as made:
            _write_config(Path(made) / CONFIG, folder.name, transformer, tokenizer, classes, defaults)
    except OSError as error:
        raise explain(folder, error) from error


def _write_config(
    path: Path,
    name: str,
    transformer: TransformerConfig | None,
    tokenizer: VQConfig | LARPConfig | None,
    classes: str | Sequence[str] | None,
    defaults: Mapping[str, float] | None,
) -> None:
    """Write a ``config.json`` that ``read_config`` reads.

    Raises:
        CheckpointError: a setting or class list that could not be read back.
    """
    said: dict[str, Any] = {"format": FORMAT, "kind": _kind(transformer, tokenizer), "name": name}
    if transformer is not None:
        said["transformer"] = asdict(transformer)
    if tokenizer is not None:
        said["tokenizer"] = asdict(tokenizer)
    if classes is not None:
        said["classes"] = classes if isinstance(classes, str) else list(classes)
    if defaults:
        said["defaults"] = dict(defaults)
    text = json.dumps(said, indent=1) + "\n"
    if len(text) > MAX_JSON:
        raise CheckpointError(
            f"The class names take {len(text):,} bytes of {CONFIG}, expected at most {MAX_JSON:,}.",
            "Shorten them.",
        )
    path.write_text(text)
    read_config(path)


def convert(
    source: str | Path,
    folder: str | Path,
    *,
    tokenizer: str | Path | None = None,
    config: str | Path | None = None,
    grid: tuple[int, ...] | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> Path:
    """Turn a released file (or a narcli folder) into a narcli folder.

    Args:
        source: a NAR model or a tokenizer.
        folder: the folder to make, as ``save_model``.
        tokenizer: the tokenizer to put into the model's folder.
        config: a ``config.json`` for the source; by default the one beside it.
        grid: of the tokens, where the file does not tell.
        dtype: of the stored tensors; None keeps the source's.
        overwrite: replace an older narcli folder.

    Raises:
        CheckpointError, UsageError, NarError: as ``load_transformer`` and ``save_model``.
    """
    folder = expand(folder)
    _check_replaceable(folder, overwrite)
    source = configs.result_of(expand(source))
    names = [path.name for path in source.iterdir()] if source.is_dir() else []
    part = TOKENIZER if TOKENIZER in names and not configs.weights_in(names) else MODEL
    file, said, tensors, _ = _open(source, part, config)
    if identify(tensors) in ("vq", "larp"):
        if tokenizer is not None:
            raise UsageError(f"{file} is a tokenizer already.", "Leave --tokenizer out.")
        alone = load_tokenizer(file, config=config, dtype=dtype)
        return save_model(folder, tokenizer=alone, overwrite=overwrite)
    model = load_transformer(file, grid=grid, config=config, dtype=dtype)
    if tokenizer is None and file.name == MODEL and os.path.lexists(file.with_name(TOKENIZER)):
        tokenizer = file.with_name(TOKENIZER)
    return save_model(
        folder,
        transformer=model,
        tokenizer=load_tokenizer(tokenizer, dtype=dtype) if tokenizer else None,
        text_encoder=T5Encoder.load(file.with_name(TEXT_ENCODER), None) if has_own_encoder(file) else None,
        classes=said.classes or RELEASED_TABLES.get((kind_of(model.config), model.config.num_classes)),
        defaults=said.defaults if said.kind else RELEASED_DEFAULTS[kind_of(model.config)],
        dtype=dtype,
        overwrite=overwrite,
    )


def _check_replaceable(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    known = {CONFIG, MODEL, TOKENIZER, TEXT_ENCODER}
    ours = folder.is_dir() and {f.name for f in folder.iterdir()} <= known
    if not ours:
        raise UsageError(f"{folder} holds something else.", "Choose a folder that does not exist yet.")
    if not overwrite:
        raise UsageError(f"{folder} holds a model already.", "Choose another folder, or --overwrite it.")


def _kind(transformer: TransformerConfig | None, tokenizer: VQConfig | LARPConfig | None = None) -> str:
    if transformer is None:
        of_clips = isinstance(tokenizer, LARPConfig) or (tokenizer and tokenizer.frames > 1)
        return "video-tokenizer" if of_clips else "image-tokenizer"
    return kind_of(transformer)


def _storable(model: nn.Module, dtype: torch.dtype | None) -> dict[str, Tensor]:
    return {
        name: tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
