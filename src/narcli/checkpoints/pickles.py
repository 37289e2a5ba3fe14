"""PyTorch's pickles, interpreted into plain descriptions and memory-mapped tensors.

Nothing in them is called. Longer than 400 lines, since the interpreter is read as a whole.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from ..errors import CheckpointError, MemoryLimitError, first_line, is_shortage
from ..media.textfiles import open_regular, open_zip

MAX_PROGRAM = 2**24  # bytes of a pickle, without the numbers of its tensors


MAX_STEPS = 2**19  # instructions of a pickle


MAX_TENSORS = 2**16


MAX_NAME = 300  # characters of a tensor's name


MAX_AXES = 8


NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # formats of weights


def _refuse_shortage(path: Path, error: Exception) -> None:
    """Raise MemoryLimitError if an error means a shortage of memory, not a fault of the file."""
    if is_shortage(error):
        raise MemoryLimitError(
            f"Out of memory: {path} could not be read.", "Close other programs, or try a smaller model."
        ) from None


def _check_names(path: Path, names: Sequence[object]) -> None:
    """Refuse names of tensors that no network has, before they are used or shown."""
    if len(names) > MAX_TENSORS:
        raise CheckpointError(f"{path} has {len(names):,} tensors, expected at most {MAX_TENSORS:,}.")
    for name in names:
        if not isinstance(name, str) or len(name) > MAX_NAME or not name.isprintable():
            raise CheckpointError(
                f"{path} has a tensor of an unusable name: {ascii(name)[:60]}.",
                f"Expected printable text of at most {MAX_NAME} characters.",
            )


@dataclass(frozen=True)
class _Global:
    """A name of a function or class in a pickle; only the interpreter gives it a meaning."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """Numbers in the file: ``numel`` of a dtype, ``skipped`` numbers after the start of ``key``."""

    dtype: torch.dtype
    key: str
    numel: int
    skipped: int = 0


@dataclass(frozen=True)
class _Described:
    """A tensor as the pickle describes it."""

    dtype: torch.dtype
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.size) * self.dtype.itemsize


class _Other:
    """A tensor without plain numbers in the file: sparse, quantized, nested, or on ``meta``."""


class _Refused(Exception):  # noqa: N818
    """A pickle mentions a name, or an instruction, that plain weights do not need."""


class _TooLong(Exception):  # noqa: N818
    """A pickle holds far more than the tensors of a model."""


_STORAGES = {
    f"{module}.{kind}Storage": dtype
    for module in ("torch", "torch.cuda")
    for kind, dtype in {
        "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8,
        "Byte": torch.uint8, "Bool": torch.bool,
        "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
        "QInt8": torch.int8, "QUInt8": torch.uint8, "QInt32": torch.int32,
    }.items()
} | {"torch.storage.UntypedStorage": torch.uint8}  # fmt: skip


_DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


_DICTIONARIES = {"collections.OrderedDict", "easydict.EasyDict"}


_TENSORS = {f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")}


#: Only their first argument is used; attributes and hooks are dropped.
_PARAMETERS = {
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
}


_SUBCLASS = "torch._tensor._rebuild_from_type_v2"


_OTHER_TENSORS = {
    f"torch._utils._rebuild_{kind}"
    for kind in (
        *("qtensor", "sparse_tensor", "nested_tensor", "meta_tensor_no_storage", "wrapper_subclass"),
        *("device_tensor_from_numpy", "device_tensor_from_cpu_tensor"),
    )
}


#: Containers of training checkpoints; they are read and dropped.
_IGNORED = {
    *("argparse.Namespace", "collections.Counter", "builtins.set", "builtins.complex", "_codecs.encode"),
    *(f"builtins.{kind}" for kind in ("bool", "int", "float", "str", "bytes", "bytearray")),
    *(f"builtins.{kind}" for kind in ("list", "tuple", "dict", "frozenset", "range", "slice")),
    "collections.defaultdict",
    *(
        f"pathlib{inner}.{kind}Path"
        for inner in ("", "._local")
        for kind in ("", "Pure", "Posix", "PurePosix", "Windows", "PureWindows")
    ),
    *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
    *("torch.Tensor", "torch.device", "torch.serialization._get_layout", "numpy.ndarray", "numpy.dtype"),
    *(f"torch.per_{kind}" for kind in ("tensor_affine", "tensor_symmetric", "channel_affine")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
}


_KNOWN = {
    *_STORAGES, *_DTYPES, *_DICTIONARIES, *_TENSORS, *_PARAMETERS, *_OTHER_TENSORS, *_IGNORED,
    "torch.Size", _SUBCLASS,
}  # fmt: skip


def _interpret(file: BinaryIO, storages: dict[str, tuple[int, int]] | None = None) -> Any:
    """Interpret a pickle.

    Args:
        file: read up to the end of the pickle.
        storages: receives (elements, bytes of one) of each storage, by key.

    Returns:
        Plain objects with ``_Described`` and ``_Other`` in them; None stands for ignored objects.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    steps = iter(range(MAX_STEPS))
    for instruction, value, _ in pickletools.genops(file):
        if next(steps, None) is None:
            raise _TooLong
        match instruction.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_SET":
                stack.append(None)
            case "FROZENSET":
                since_mark()
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(instruction.name == "NEWTRUE")
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(instruction.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND" | "APPENDS" | "ADDITEMS":
                items = [stack.pop()] if instruction.name == "APPEND" else since_mark()
                if isinstance(stack[-1], list):
                    stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                if instruction.name == "SETITEM":
                    marks.append(len(stack) - 2)
                items = since_mark()
                if isinstance(stack[-1], dict):
                    _put(stack[-1], zip(items[::2], items[1::2], strict=True))
            case "GLOBAL" | "STACK_GLOBAL":
                name, module = (stack.pop(), stack.pop()) if value is None else value.split(" ", 1)[::-1]
                if not isinstance(name, str) or not isinstance(module, str):
                    raise ValueError("a name that is no text")
                full = f"{module.replace('__builtin__', 'builtins')}.{name}"
                if full not in _KNOWN:
                    raise _Refused(full)
                stack.append(_Global(full))
            case "REDUCE" | "NEWOBJ":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call(function, arguments, steps))
            case "BUILD":
                stack.pop()  # attributes of an object are no part of a model
            case "BINPERSID":
                storage = _storage(identity := stack.pop())
                if storages is not None:
                    storages[storage.key] = identity[4], storage.dtype.itemsize
                stack.append(storage)
            case "EXT1" | "EXT2" | "EXT4" | "PERSID":
                raise _Refused
            case _ if not instruction.stack_before and len(instruction.stack_after) == 1:
                stack.append(value)  # a number or text
            case _:
                raise _Refused
    raise EOFError


def _put(target: dict[Any, Any], items: Iterable[tuple[Any, Any]]) -> None:
    """Set items of a dictionary. Keys slow to compare, such as nested tuples, are cut or become None."""
    for key, value in items:
        if isinstance(key, str):
            key = key[: MAX_NAME + 1]
        elif not isinstance(key, int | float) or (isinstance(key, int) and key.bit_length() > 64):
            key = None
        target[key] = value


def _call(function: Any, arguments: Any, steps: Iterator[int]) -> Any:
    """Return the meaning of a call of a known name, without calling it. Each copied item takes a step."""
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise _Refused
    name = function.name
    if name in _DICTIONARIES:
        made: dict[Any, Any] = {}
        if arguments:
            _put(made, (pair for pair, _ in zip(arguments[0], steps, strict=False)))
        return made
    if name in _TENSORS:
        storage, offset, size, stride, *more = arguments[:10]
        dtype = _DTYPES[more[2].name] if name.endswith("_v3") else storage.dtype
        turned = more[3:] if name.endswith("_v3") else more[2:]  # conjugate or negative, as bits
        if not isinstance(storage, _Storage) or len(size) != len(stride) or len(size) > MAX_AXES:
            raise ValueError("a tensor of no sizes")
        numbers = [offset, *size, *stride]
        if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
            raise ValueError("a tensor of no sizes")
        return _Other() if any(turned) else _Described(dtype, storage, offset, tuple(size), tuple(stride))
    if name in _PARAMETERS:
        return arguments[0]
    if name == _SUBCLASS:
        return _call(arguments[0], arguments[2], steps)
    if name == "torch.Size":
        return arguments[0]
    if name in _OTHER_TENSORS:
        return _Other()
    if name in _IGNORED:
        return None
    raise _Refused


def _storage(identity: Any) -> _Storage:
    kind, of, key, _, numel, *view = identity[:6]
    if kind != "storage" or not isinstance(key, str) or type(numel) is not int or numel < 0:
        raise ValueError("a storage of no sizes")
    dtype = _STORAGES[of.name]
    if view and view[0] is not None:  # of files before 2020: a part of a storage
        _, skipped, part = view[0]
        if type(skipped) is not int or type(part) is not int or not 0 <= skipped <= skipped + part <= numel:
            raise ValueError("a part beyond its storage")
        return _Storage(dtype, key, part, skipped)
    return _Storage(dtype, key, numel)


Places = Callable[[_Storage], tuple[int, int]]


def _read_pickle(
    path: Path, file: BinaryIO, size: int, zipped: bool, part: str = "transformer"
) -> dict[str, Tensor]:
    try:
        content, place = _open_zip(path, file) if zipped else _open_legacy(file)
        described = _find_tensors(path, content, part)
        _check_names(path, list(described))
        plain = {name: tensor for name, tensor in described.items() if isinstance(tensor, _Described)}
        views = set(plain.values())  # tied tensors count once
        # A small file must not claim large tensors: strides of zero or shared storages would allow it.
        if len(plain) < len(described) or sum(tensor.bytes for tensor in views) > size:
            raise CheckpointError(f"{path} claims tensors that it does not hold.", "The file is damaged.")
        whole = cast(torch.UntypedStorage, torch.UntypedStorage.from_file(str(path), False, size))
        made = {tensor: _tensor(whole, place, tensor) for tensor in views}
        return {name: made[tensor] for name, tensor in plain.items()}
    except CheckpointError:
        raise
    except _Refused as error:
        if request := "".join(c if c.isprintable() else "?" for c in str(error)[:80]):
            raise CheckpointError(
                f"{path} asks to run {request}, which a model's weights never need; nothing was run.",
                "Do not trust the file. If it is yours, save a plain dictionary of tensors.",
            ) from None
        raise CheckpointError(
            f"{path} holds instructions that are not plain weights; nothing was run.",
            "Do not trust the file. If it is yours, save a plain dictionary of tensors.",
        ) from None
    except _TooLong:
        raise CheckpointError(
            f"{path} holds more than {MAX_STEPS:,} values besides its tensors.",
            "Save the model alone, as a plain dictionary of tensors.",
        ) from None
    except Exception as error:  # damaged pickles raise anything
        _refuse_shortage(path, error)
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
            raise _TooLong if name == program else ValueError(f"{name[:60]} of more than {most:,} bytes")
        file.seek(start)
        data = file.read(size)
        if zlib.crc32(data) != entries[name].CRC:
            raise ValueError(f"{name[:60]} is not what was written")
        return data

    if f"{root}byteorder" in entries and read(f"{root}byteorder", 100) != b"little":
        raise CheckpointError(
            f"{path} has numbers in big-endian order.", "Save it on the usual kind of machine."
        )
    return _interpret(io.BytesIO(read(program, MAX_PROGRAM))), lambda s: find(f"{root}data/{s.key}")


def _open_legacy(file: BinaryIO) -> tuple[Any, Places]:
    """Read PyTorch's format before archives: pickles in a row, then numbers; returns as ``_open_zip``."""
    program = io.BytesIO(file.read(MAX_PROGRAM))
    magic, protocol = _interpret(program), _interpret(program)
    if magic != 0x1950A86A20F9469CFC6C or protocol != 1001:
        raise ValueError("not what PyTorch writes")
    storages: dict[str, tuple[int, int]] = {}
    system, content, keys = _interpret(program), _interpret(program, storages), _interpret(program)
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


def _tensor(whole: torch.UntypedStorage, place: Places, tensor: _Described) -> Tensor:
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


def _find_tensors(path: Path, content: Any, part: str) -> dict[str, _Described | _Other]:
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


def _candidates(content: Any, part: str = "transformer") -> dict[str, dict[str, _Described | _Other]]:
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
        and all(isinstance(tensor, _Described | _Other) for tensor in place.values())
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
