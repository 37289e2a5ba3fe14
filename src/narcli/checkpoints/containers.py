"""Containers of tensors: PyTorch pickles and safetensors, read without running anything.

A pickle is a program. narcli interprets it without running it: its instructions make dictionaries, lists,
numbers and descriptions of tensors. Any other name that it mentions is refused. Only the model's
descriptions become tensors, mapped from the file after their sizes are checked against it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError, first_line
from ..media.textfiles import open_regular, unreadable
from .torch_files import check_names, read_torch, refuse_shortage

MAX_HEADER = 2**23  # bytes of the header of a safetensors file
NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # formats of weights

#: Prefixes that wrappers of training add to the names of tensors. The first two are also
#: ordinary words: they are removed where all names begin with them, the others anywhere.
WRAPPERS = ("module", "model")
INNER_WRAPPERS = (
    *("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
    *("_forward_module", "_fpw_module"),
)
#: A counter that ``torch.optim.swa_utils.AveragedModel`` stores beside the network.
AVERAGED = "n_averaged"


def read_tensors(path: Path, part: str = "transformer") -> dict[str, Tensor]:
    """Read the model's tensors in a checkpoint file: memory-mapped, dense, names without wrappers.

    Args:
        path: the file.
        part: the network that is wanted, where a training checkpoint has both.

    Raises:
        CheckpointError: no such file, or not a checkpoint; the message says what it seems to be.
        MemoryLimitError: the file cannot be mapped into memory.
    """
    try:
        with open_regular(path) as file:
            size = file.seek(0, 2)
            file.seek(0)
            start = file.read(512)
            _refuse_other_formats(path, size, start)
            zipped = start.startswith(b"PK\x03\x04")
            if path.suffix == ".safetensors" or (not zipped and start[8:9] == b"{" and start[0] != 0x80):
                tensors = _read_safetensors(path, start)
            else:
                file.seek(0)
                tensors = read_torch(path, file, size, zipped, part)
    except OSError as error:
        raise unreadable(path, error) from None
    return _unwrap(path, tensors)


def _refuse_other_formats(path: Path, size: int, start: bytes) -> None:
    text = start.lstrip().lower()
    if size == 0:
        what, hint = "is empty (0 bytes)", "The download failed; get it again."
    elif start.startswith(b"version https://git-lfs"):
        what = "is a git-lfs pointer, not the weights themselves"
        hint = "Run `git lfs pull` there, or download the file from its page."
    elif text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        what = "is a web page, not a checkpoint"
        hint = "The download gave a log-in or error page; use the page's download link, or narcli's `model`."
    elif text.startswith((b"{", b"[")) and start[8:9] != b"{":
        what, hint = "is a JSON text, not a checkpoint", "Give the weights file instead."
    elif start.startswith(b"\x1f\x8b"):
        what, hint = "is gzip-compressed", "Unpack it first."
    elif start.startswith((b"\x89HDF", b"GGUF")):
        what, hint = "is not a PyTorch checkpoint", "narcli reads .pt, .pth and .safetensors."
    else:
        return
    raise CheckpointError(f"{path} {what}.", hint)


def _read_safetensors(path: Path, start: bytes) -> dict[str, Tensor]:
    try:
        if len(start) >= 8 and struct.unpack_from("<Q", start)[0] > MAX_HEADER:
            raise ValueError(f"a header of more than {MAX_HEADER:,} bytes")
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            check_names(path, names)
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, OverflowError) as error:
        refuse_shortage(path, error)
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({first_line(error)}).",
            "It is cut off or damaged; get it again.",
        ) from None


def _unwrap(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors to their names in the network: remove prefixes of wrappers."""
    tensors = {name: tensor for name, tensor in tensors.items() if name != AVERAGED or tensor.dim()}
    names = {name: [part for part in name.split(".") if part not in INNER_WRAPPERS] for name in tensors}
    while names and any(
        all(len(parts) > 1 and parts[0] == wrapper for parts in names.values()) for wrapper in WRAPPERS
    ):
        names = {name: parts[1:] for name, parts in names.items()}
    plain = {".".join(parts): tensors[name] for name, parts in names.items()}
    if len(plain) != len(tensors):
        raise CheckpointError(
            f"{path} has tensors with and without the wrappers of training ({', '.join(INNER_WRAPPERS)}).",
            "It is not clear which are meant; save the state of one network.",
        )
    return plain
