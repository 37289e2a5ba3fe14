"""PyTorch's files: archives and the format before them, whose model becomes memory-mapped tensors."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from ..errors import CheckpointError, MemoryLimitError, first_line, is_shortage
from ..media.textfiles import open_regular, open_zip
from .pickles import MAX_NAME, MAX_STEPS, Described, Other, Refused, Storage, TooLong, interpret

MAX_PROGRAM = 2**24  # bytes of a pickle, without the numbers of its tensors
MAX_TENSORS = 2**16
#: Returns (start, bytes) of a storage in the file.
Places = Callable[[Storage], tuple[int, int]]


def refuse_shortage(path: Path, error: Exception) -> None:
    """Tell a shortage of memory from a fault of the file.

    Raises:
        MemoryLimitError: memory was short.
    """
    if is_shortage(error):
        raise MemoryLimitError(
            f"Out of memory: {path} could not be read.", "Close other programs, or try a smaller model."
        ) from None


def check_names(path: Path, names: Sequence[object]) -> None:
    """Refuse names of tensors that no network has, before they are used or shown.

    Raises:
        CheckpointError: too many names, or one that is too long or not printable.
    """
    if len(names) > MAX_TENSORS:
        raise CheckpointError(f"{path} has {len(names):,} tensors, expected at most {MAX_TENSORS:,}.")
    for name in names:
        if not isinstance(name, str) or len(name) > MAX_NAME or not name.isprintable():
            raise CheckpointError(
                f"{path} has a tensor of an unusable name: {ascii(name)[:60]}.",
                f"Expected printable text of at most {MAX_NAME} characters.",
            )


def read_torch(
    path: Path, file: BinaryIO, size: int, zipped: bool, part: str = "transformer"
) -> dict[str, Tensor]:
    """Read the model's tensors, mapped from the file.

    Args:
        path: the file, which is mapped.
        file: the same, open at its beginning.
        size: its bytes.
        zipped: it is an archive, not of the format before.
        part: the network that is wanted, where a training checkpoint has both.

    Raises:
        CheckpointError: a damaged file, one without a model, or one with anything but plain weights.
        MemoryLimitError: the file cannot be mapped into memory.
    """
    try:
        content, place = _open_zip(path, file) if zipped else _open_legacy(file)
        described = _find_tensors(path, content, part)
        check_names(path, list(described))
        plain = {name: tensor for name, tensor in described.items() if isinstance(tensor, Described)}
        views = set(plain.values())  # tied tensors count once
        # A small file must not claim large tensors: strides of zero or shared storages would allow it.
        if len(plain) < len(described) or sum(tensor.bytes for tensor in views) > size:
            raise CheckpointError(f"{path} claims tensors that it does not hold.", "The file is damaged.")
        whole = cast(torch.UntypedStorage, torch.UntypedStorage.from_file(str(path), False, size))
        made = {tensor: _tensor(whole, place, tensor) for tensor in views}
        return {name: made[tensor] for name, tensor in plain.items()}
    except CheckpointError:
        raise
    except Refused as error:
        if request := "".join(c if c.isprintable() else "?" for c in str(error)[:80]):
            raise CheckpointError(
                f"{path} asks to run {request}, which a model's weights never need; nothing was run.",
                "Do not trust the file. If it is yours, save a plain dictionary of tensors.",
            ) from None
        raise CheckpointError(
            f"{path} holds instructions that are not plain weights; nothing was run.",
            "Do not trust the file. If it is yours, save a plain dictionary of tensors.",
        ) from None
    except TooLong:
        raise CheckpointError(
            f"{path} holds more than {MAX_STEPS:,} values besides its tensors.",
            "Save the model alone, as a plain dictionary of tensors.",
        ) from None
    except Exception as error:  # damaged pickles raise anything
        refuse_shortage(path, error)
        raise CheckpointError(
            f"{path} is damaged, cut off, or not a checkpoint ({type(error).__name__}: {first_line(error)}).",
            "narcli reads .pt, .pth and .safetensors; get the file again.",
        ) from None


def _open_zip(path: Path, file: BinaryIO) -> tuple[Any, Places]:
    """Read the pickle of an archive; return its objects, and (start, bytes) of each storage in the file."""
    try:
        with open_zip(file) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path} is cut off or damaged: the end of the archive is missing ({first_line(error)}).",
            "Get the file again, and compare its size with the one on its page.",
        ) from None
    # A memory map would read compressed bytes as numbers.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise CheckpointError(f"{path} was packed again with compression.", "Get the original file.")
    program = next((name for name in entries if name.rpartition("/")[2] == "data.pkl"), None)
    if program is None:
        raise CheckpointError(
            f"{path} is a ZIP archive, but not one that PyTorch wrote.", "Unpack it; give the file inside."
        )
    root = program.removesuffix("data.pkl")

    def find(name: str) -> tuple[int, int]:
        entry = entries[name]
        file.seek(entry.header_offset)
        header = file.read(30)
        if header[:4] != b"PK\x03\x04":
            raise ValueError(f"no entry {name[:60]}")
        start = entry.header_offset + 30 + sum(struct.unpack_from("<HH", header, 26))
        return start, entry.file_size

    def read(name: str, most: int) -> bytes:
        start, size = find(name)
        if size > most:
            raise TooLong if name == program else ValueError(f"{name[:60]} of more than {most:,} bytes")
        file.seek(start)
        data = file.read(size)
        if zlib.crc32(data) != entries[name].CRC:
            raise ValueError(f"{name[:60]} is not what was written")
        return data

    if f"{root}byteorder" in entries and read(f"{root}byteorder", 100) != b"little":
        raise CheckpointError(
            f"{path} has numbers in big-endian order.", "Save it on the usual kind of machine."
        )
    return interpret(io.BytesIO(read(program, MAX_PROGRAM))), lambda s: find(f"{root}data/{s.key}")


def _open_legacy(file: BinaryIO) -> tuple[Any, Places]:
    """Read PyTorch's format before archives: pickles in a row, then numbers; returns as ``_open_zip``."""
    program = io.BytesIO(file.read(MAX_PROGRAM))
    magic, protocol = interpret(program), interpret(program)
    if magic != 0x1950A86A20F9469CFC6C or protocol != 1001:
        raise ValueError("not what PyTorch writes")
    storages: dict[str, tuple[int, int]] = {}
    system, content, keys = interpret(program), interpret(program, storages), interpret(program)
    if not system["little_endian"]:
        raise ValueError("numbers in big-endian order")
    places, position = {}, program.tell()
    for key in keys:  # each storage is its count, then its numbers
        file.seek(position)
        (count,), (elements, width) = struct.unpack("<q", file.read(8)), storages[key]
        if count != elements:
            raise ValueError(f"{count} numbers instead of {elements}")
        places[key] = position + 8, count * width
        position += 8 + count * width
    return content, lambda storage: places[storage.key]


def _tensor(whole: torch.UntypedStorage, place: Places, tensor: Described) -> Tensor:
    """Make the tensor of a description: mapped where its numbers are aligned, else copied."""
    storage, size, stride = tensor.storage, tensor.size, tensor.stride
    width = storage.dtype.itemsize
    start, room = place(storage)
    begin, end = start + storage.skipped * width, start + (storage.skipped + storage.numel) * width
    if not 0 <= start <= begin <= end <= min(start + room, whole.nbytes()):
        raise ValueError("a storage beyond the end of the file")
    last = tensor.offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if tensor.bytes and (last + 1) * tensor.dtype.itemsize > end - begin:
        raise ValueError("a tensor beyond the end of its storage")
    if not tensor.bytes:
        return torch.empty(size, dtype=tensor.dtype)
    made = torch.empty(0, dtype=tensor.dtype).set_(whole[begin:end], tensor.offset, size, stride)
    return made.contiguous() if begin % tensor.dtype.itemsize == 0 else made.clone().contiguous()


#: Keys under which the released code and its training store a model, the likeliest first.
_PLACES = ("model", "module", "state_dict", "ema")
_PARTS = ("sd", "module", "shadow")
#: Keys of a training checkpoint that has both networks, by part, one inside the other: VAR's.
_TRAINED = {"transformer": ("trainer", "var_wo_ddp"), "tokenizer": ("trainer", "vae_local")}


def _find_tensors(path: Path, content: Any, part: str) -> dict[str, Described | Other]:
    """Return the model's dictionary of tensors.

    Raises:
        CheckpointError: there is none.
    """
    if candidates := _candidates(content, part):
        return next(iter(candidates.values()))
    if isinstance(content, dict):
        words = [key if isinstance(key, str) and key.isprintable() else "?" for key in list(content)[:6]]
        description = ", ".join(word[:30] for word in words) or "nothing"
    else:
        description = f"a {type(content).__name__}"
    raise CheckpointError(
        f"{path} holds no model: {description} instead of tensors.",
        f"They are expected under {', '.join(map(repr, _PLACES[:-1]))} or {_PLACES[-1]!r}, or by themselves.",
    )


def _candidates(content: Any, part: str = "transformer") -> dict[str, dict[str, Described | Other]]:
    """Dictionaries of tensors in a checkpoint by their keys, the one that is used first.

    Args:
        content: of the checkpoint.
        part: the network that is wanted, where a checkpoint has both.
    """
    if not isinstance(content, dict):
        return {}
    places = {name: content.get(name) for name in _PLACES}
    outer, inner = _TRAINED[part]
    if isinstance(content.get(outer), dict):
        places[inner] = content[outer].get(inner)
    places |= {
        name: place[key]
        for name, place in places.items()
        if isinstance(place, dict)
        for key in reversed(_PARTS)  # the likeliest is set last
        if isinstance(place.get(key), dict)
    }
    return {
        name: place
        for name, place in {**places, "": content}.items()
        if isinstance(place, dict)
        and place
        and all(isinstance(tensor, Described | Other) for tensor in place.values())
    }


def remark(path: Path) -> str:
    """Sentence that names the model used, of several in a pickle; "" if there is one, or none readable."""
    with suppress(Exception), open_regular(path) as file:
        zipped = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        content, _ = _open_zip(path, file) if zipped else _open_legacy(file)
        used, *others = [repr(place) for place in _candidates(content)]
        if others:
            return f"{path} holds {used} and {', '.join(others)}; {used} is used, as by the released code."
    return ""
