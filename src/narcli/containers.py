"""Containers of tensors: PyTorch pickles and safetensors, read without running anything.

A pickle is a program; of what it may call, only PyTorch's own tensors are allowed, and the few plain
containers of the released training checkpoints are replaced by objects that do nothing. What is not a
checkpoint at all (a web page, a git-lfs pointer, half a download) is called by its name.
"""

from __future__ import annotations

import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import CheckpointError, MemoryLimitError, first_line


class _Ignored:
    """Stands for an object in a pickle that is not needed: takes whatever it is made of, keeps nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class _PlainDict:
    """Stands for ``easydict.EasyDict``: what comes out is an ordinary dictionary."""

    def __new__(cls, *_: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


# The only classes a pickle may name besides PyTorch's own tensors. None of the real ones is used, not even
# numpy's, so there is nothing that a crafted file could call.
_ALLOWED = [
    (_PlainDict, "easydict.EasyDict"),
    (_Ignored, "argparse.Namespace"),
    (_Ignored, "numpy.ndarray"),
    (_Ignored, "numpy.dtype"),
    *(
        (_Ignored, f"numpy.{core}.multiarray.{what}")
        for core in ("core", "_core")
        for what in ("_reconstruct", "scalar")
    ),
]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The model's tensors in a checkpoint file, memory-mapped, names as stored.

    Raises:
        CheckpointError: no such file, or what it is instead of a checkpoint.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise CheckpointError(f"Could not read {path}: {(error.strerror or str(error)).lower()}.") from None
    _refuse_other_formats(path, size, start)
    zipped = start.startswith(b"PK\x03\x04")
    if not zipped and (path.suffix == ".safetensors" or (start[8:9] == b"{" and start[0] != 0x80)):
        return _read_safetensors(path)
    tensors = _find_tensors(path, _read_pickle(path, zipped))
    # A small file must not claim large tensors: strides of zero or shared storages would allow it.
    if any(t.is_meta or t.layout != torch.strided for t in tensors.values()) or size < sum(
        t.numel() * t.element_size() for t in tensors.values()
    ):
        raise CheckpointError(f"{path} claims tensors that it does not hold.", "The file is damaged.")
    return tensors


def _refuse_other_formats(path: Path, size: int, start: bytes) -> None:
    text = start.lstrip().lower()
    if size == 0:
        what, hint = "is empty (0 bytes)", "The download failed; get it again."
    elif start.startswith(b"version https://git-lfs"):
        what = "is a git-lfs pointer, not the weights themselves"
        hint = "Run `git lfs pull` there, or download the file from its page."
    elif text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        what = "is a web page, not a checkpoint"
        hint = "The download gave a log-in or error page; use the page's download link, or narcli's --model."
    elif text.startswith((b"{", b"[")) and start[8:9] != b"{":
        what, hint = "is a JSON text, not a checkpoint", "Give the weights file instead."
    elif start.startswith(b"\x1f\x8b"):
        what, hint = "is gzip-compressed", "Unpack it first."
    elif start.startswith((b"\x89HDF", b"GGUF")):
        what, hint = "is not a PyTorch checkpoint", "narcli reads .pt, .pth and .safetensors."
    else:
        return
    raise CheckpointError(f"{path} {what}.", hint)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, OverflowError) as error:
        _refuse_unmapped(path, error)
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({first_line(error)}).",
            "It is cut off or damaged; get it again.",
        ) from None


def _read_pickle(path: Path, zipped: bool) -> Any:
    try:
        if zipped:
            _check_zip(path)
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():  # type: ignore[arg-type]
            warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read is an error anyway
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise
    except Exception as error:  # damaged pickles raise anything
        _refuse_unmapped(path, error)
        raise _explain(path, error) from None


def _refuse_unmapped(path: Path, error: Exception) -> None:
    """Raise where the file, as large as it is, finds no place in memory: that is no fault of the file."""
    if "unable to mmap" in str(error) and "allocate memor" in str(error):
        raise MemoryLimitError(
            f"Out of memory: {path} could not be mapped.", "Try a smaller model."
        ) from None


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path} is cut off or damaged: the end of the archive is missing ({first_line(error)}).",
            "Get the file again, and compare its size with the one on its page.",
        ) from None
    # Memory mapping would take compressed bytes for numbers.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(f"{path} was packed again with compression.", "Get the original file.")
    if not any(entry.filename.endswith("data.pkl") for entry in entries):
        raise CheckpointError(
            f"{path} is a ZIP archive, but not one that PyTorch wrote.", "Unpack it; give the file inside."
        )


def _explain(path: Path, error: Exception) -> CheckpointError:
    words = str(error)
    for sign in ("GLOBAL ", "unsupported GLOBAL "):
        if sign in words and ("not an allowed global" in words or "blocked" in words):
            wanted = words.split(sign, 1)[1].split()[0][:80]
            return CheckpointError(
                f"{path} asks to run {wanted}, which a model's weights never need; nothing was run.",
                "Do not trust the file. If it is yours, save a plain dictionary of tensors.",
            )
    if "reduce for unrecognized" in words or "Can only build" in words or "Can only create" in words:
        return CheckpointError(
            f"{path} holds instructions that are not plain weights; nothing was run.",
            "Do not trust the file.",
        )
    if isinstance(error, MemoryError) or "allocate" in words:
        return CheckpointError(f"{path} claims more memory than there is.", "The file is damaged.")
    return CheckpointError(
        f"{path} is damaged, cut off, or not a checkpoint ({type(error).__name__}: {first_line(error)}).",
        "narcli reads .pt, .pth and .safetensors; get the file again.",
    )


def _find_tensors(path: Path, content: Any) -> dict[str, Tensor]:
    """The dictionary of tensors, where the released code and its training put it."""
    outer = content if isinstance(content, dict) else {}
    model = outer.get("model")
    places = [model, model.get("sd") if isinstance(model, dict) else None]
    places += [outer.get("module"), outer.get("state_dict"), outer]
    for place in places:
        if (
            isinstance(place, dict)
            and place
            and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in place.items())
        ):
            return dict(place)
    if isinstance(content, dict):
        found = ", ".join(str(key)[:30] for key in list(content)[:6]) or "nothing"
    else:
        found = f"a {type(content).__name__}"
    raise CheckpointError(
        f"{path} holds no model: {found} instead of tensors.",
        "They are expected under 'model', 'module' or 'state_dict', or by themselves.",
    )
