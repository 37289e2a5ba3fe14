"""Load networks from files strictly.

Tensors stay memory-mapped and become the parameters of a module that was built without memory, so nothing is
held twice. Every tensor must be expected, there, and of the right shape."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import CheckpointError
from ..media.textfiles import expand, read_json
from ..models.blocks import TransformerConfig
from ..models.larp import LARPConfig, LARPTokenizer
from ..models.transformer import NARTransformer
from ..models.vq import VQConfig, VQTokenizer
from . import config as configs
from . import conversions
from . import pickles as containers
from .config import (
    CONFIG,
    MODEL,
    TOKENIZER,
    ModelConfig,
    read_config,
)
from .containers import read_tensors
from .conversions import Conversion
from .folder import RANK, SHARD, SHARD_HINT
from .formats.families import _IN_WORDS, DROPPED, identify
from .formats.larp import _infer_larp
from .formats.transformer import (
    Kind,
    Tensors,
    _expect_kind,
    _infer_transformer,
    _layers,
    released_names,
)
from .formats.vq import _infer_vq
from .pickles import NUMBERS

Tokenizer = VQTokenizer | LARPTokenizer


M = TypeVar("M", bound=nn.Module)


MAX_INDEX = 2**24  # bytes of the index of a model in shards


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
    if others and all(SHARD.search(name) or RANK.search(name) for name in others):
        raise CheckpointError(f"The folder {path} has a model in {len(others)} shards.", SHARD_HINT)
    held = ", ".join(others or there)[:200] or "nothing"
    raise CheckpointError(
        f"The folder {path} has no {part} (it holds {held}).",
        "Give a narcli model folder, or the weights file itself.",
    )


def _refuse_shard(file: Path) -> None:
    """Refuse one of several files of a model, told by its name or by the index beside it."""
    if rank := RANK.search(file.name):
        ranks = [path for path in file.parent.glob("*") if RANK.search(path.name)]
        if len(ranks) > 1 or int(rank[1] or rank[2]) > 0:
            raise CheckpointError(f"{file} is one shard of a model, of one rank.", SHARD_HINT)
    shard = SHARD.search(file.name)
    parts = int(shard[2]) if shard else 0
    for index in file.parent.glob("*.index.json"):
        with suppress(CheckpointError):  # what cannot be read says nothing
            names = read_json(index, MAX_INDEX).get("weight_map")
            listed = {n for n in names.values() if isinstance(n, str)} if isinstance(names, dict) else set()
            parts = max(parts, len(listed) if file.name in listed else 0)
    if parts > 1:
        number = f", number {int(shard[1])}" if shard else ""
        raise CheckpointError(f"{file} is one shard of a model in {parts}{number}.", SHARD_HINT)


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
    # Where nothing changes this keeps the memory map; each is converted once, under whatever names.
    converted = {id(tensor): tensor.to(device, dtype or tensor.dtype) for tensor in tensors.values()}
    model.load_state_dict({name: converted[id(t)] for name, t in tensors.items()}, assign=True)
    return model.eval()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
