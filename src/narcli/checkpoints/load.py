"""Load networks from files strictly.

Tensors stay memory-mapped and become the parameters of a module that was built without memory, so nothing is
held twice. Every tensor must be expected, there, and of the right shape."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..devices import dtype_name
from ..errors import CheckpointError
from ..media.textfiles import expand, read_json
from ..models.attention import is_right
from ..models.blocks import Kind
from ..models.network import Network, NetworkConfig
from ..models.tokenizer import Tokenizer, TokenizerConfig
from . import config as configs
from . import conversions, torch_files
from .config import CONFIG, MODEL, TOKENIZER, read_config
from .containers import NUMBERS, read_tensors
from .conversions import Conversion
from .folder import RANK, SHARD, SHARD_HINT
from .formats.families import identify, network_of
from .formats.format import Contents, Format, ModelConfig

M = TypeVar("M", bound=nn.Module)
MAX_INDEX = 2**24  # bytes of the index of a model in shards

#: By section of a config.json: file of a narcli folder, name in messages, advice where another is wanted.
_PARTS = {
    "transformer": (
        MODEL,
        "a transformer that narcli runs",
        "Give it as `model`; `tokenizer` takes the tokenizer.",
    ),
    "tokenizer": (TOKENIZER, "a tokenizer", "Give it as `tokenizer`; `model` takes the transformer."),
}
_MAKES = {
    "image": ("makes images of classes", "Use `narcli image --class`."),
    "text": ("makes images from text", "Use `narcli image --prompt`."),
    "video": ("makes videos of classes", "Use `narcli video --class`."),
    "frames": ("makes videos that go on from frames", "Use `narcli video --frames-from`."),
}


@dataclass(frozen=True)
class Opened:
    """A file whose family and sizes are known, and no network yet.

    Args:
        file: the file, for messages.
        sizes: of its network.
        tensors: those that the network has, by its names.
        shown: the network's names -> the file's, where they differ, for messages.
        copy: of the file in a number format, to use or to write.
    """

    file: Path
    sizes: Any
    tensors: Mapping[str, Tensor]
    shown: Mapping[str, str]
    copy: Conversion | None


def load_transformer(
    path: str | Path,
    *,
    kind: Kind | None = None,
    grid: tuple[int, ...] | None = None,
    config: str | Path | None = None,
    dtype: torch.dtype | None = torch.float32,
    device: str | torch.device = "cpu",
    keep: bool = False,
) -> Network:
    """Load a transformer for inference.

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
    opened = _read_transformer(path, kind, grid, config, dtype if keep else None)
    return _fill(build(opened.sizes), opened, dtype, device)


def transformer_config(
    path: str | Path,
    *,
    kind: Kind | None = None,
    grid: tuple[int, ...] | None = None,
    config: str | Path | None = None,
) -> NetworkConfig:
    """The sizes of a transformer, without loading it; arguments and errors as ``load_transformer``."""
    sizes: NetworkConfig = _read_transformer(path, kind, grid, config).sizes
    return sizes


def kind_of(path: str | Path) -> str:
    """Return the kind of a model or tokenizer, by its tensors.

    Raises:
        CheckpointError: as ``load_transformer`` and ``load_tokenizer``.
    """
    _, _, tensors, _ = _open(Path(path), MODEL, None)
    if identify(tensors).part == "tokenizer":
        return load_tokenizer(path, dtype=None, device="meta").config.kind
    kind: str = transformer_config(path).kind
    return kind


def _read_transformer(
    path: str | Path,
    kind: Kind | None,
    grid: tuple[int, ...] | None,
    config: str | Path | None,
    kept: torch.dtype | None = None,
) -> Opened:
    opened = _read(path, "transformer", config, kept, grid)
    found = opened.sizes.kind
    if kind not in (None, found):
        what, hint = _MAKES[found]
        raise CheckpointError(f"{opened.file} {what}; a model that {_MAKES[kind][0]} is wanted.", hint)
    return opened


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
    opened = _read(path, "tokenizer", config, dtype if keep else None)
    return _fill(build(opened.sizes), opened, dtype, device)


def _read(
    path: str | Path,
    part: str,
    config: str | Path | None,
    kept: torch.dtype | None = None,
    grid: tuple[int, ...] | None = None,
) -> Opened:
    """Read the tensors of a part of a model, and infer its sizes."""
    file, said, tensors, copy = _open(Path(path), _PARTS[part][0], config, kept)
    format = _expect(file, tensors, part)
    names = format.rename(tensors)
    renamed = {names.get(name, name): tensor for name, tensor in tensors.items()}
    shown = {new: old for old, new in names.items()}
    sizes = format.infer(Contents(file, renamed, said, grid, shown))
    taken = {name: tensor for name, tensor in renamed.items() if not format.drops(shown.get(name, name))}
    return Opened(file, sizes, taken, shown, copy)


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
        return torch_files.remark(_weights_file(path, MODEL))
    return ""


def _open(
    path: Path, part: str, config: str | Path | None, kept: torch.dtype | None = None
) -> tuple[Path, ModelConfig, dict[str, Tensor], Conversion | None]:
    """The weights file that a path means, what its config.json says, its tensors, and its copy in a dtype."""
    file = _weights_file(configs.result_of(expand(path)), part)
    _refuse_shard(file)
    beside = expand(config) if config else file.with_name(CONFIG)
    said = read_config(beside) if config or os.path.lexists(beside) else ModelConfig()
    network = next(name for name, known in _PARTS.items() if known[0] == part)
    copy = conversions.of(file, dtype_name(kept)) if kept else None  # the state before it is read
    if copy is not None:
        with suppress(CheckpointError):  # which would not name the file as it was given
            return file, said, read_tensors(copy.source, network), copy  # a link may lead elsewhere by now
    return file, said, read_tensors(file, network), None


def _expect(file: Path, tensors: Mapping[str, Tensor], part: str) -> Format:
    format = identify(tensors)
    if format.part == part:
        return format
    if not format.part and format.hint:
        raise CheckpointError(f"{file} is {format.words}, which narcli does not run.", format.hint)
    hint = _PARTS[format.part][2] if format.part else "`narcli models list` shows the families."
    raise CheckpointError(f"{file} is {format.words}, not {_PARTS[part][1]}.", hint)


@overload
def build(config: NetworkConfig) -> Network: ...


@overload
def build(config: TokenizerConfig) -> Tokenizer: ...


def build(config: NetworkConfig | TokenizerConfig) -> nn.Module:
    """A network of these sizes on the device ``meta``: shapes without memory."""
    with torch.device("meta"), _Uninitialized():
        return network_of(config)(config)


class _Uninitialized(TorchFunctionMode):
    """Modules are built without initial values: on ``meta`` these would import half of torch's compiler."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), named: dict[str, Any] | None = None
    ) -> Any:
        named = named or {}
        if getattr(function, "__module__", "") == "torch.nn.init":
            return named["tensor"] if "tensor" in named else arguments[0]
        return function(*arguments, **named)


def _fill(model: M, opened: Opened, dtype: torch.dtype | None, device: str | torch.device) -> M:
    """Give a module on ``meta`` the tensors of a file, each exactly once."""
    file, tensors, shown = opened.file, opened.tensors, opened.shown
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
    if opened.copy is not None:
        tensors = opened.copy.converted(tensors)
    # Where nothing changes this keeps the memory map; each is converted once, under whatever names.
    converted = {id(tensor): tensor.to(device, dtype or tensor.dtype) for tensor in tensors.values()}
    model.load_state_dict({name: converted[id(t)] for name, t in tensors.items()}, assign=True)
    # It warns before anything is drawn.
    is_right(torch.device(device).type, next(model.parameters()).dtype)
    return model.eval()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
