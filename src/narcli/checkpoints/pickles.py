"""Pickles, interpreted into plain descriptions of tensors. Nothing in them is called."""

from __future__ import annotations

import math
import pickletools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

MAX_STEPS = 2**19  # instructions of a pickle
MAX_NAME = 300  # characters of a tensor's name
MAX_AXES = 8


@dataclass(frozen=True)
class _Global:
    """A name of a function or class in a pickle; only the interpreter gives it a meaning."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Numbers in the file: ``numel`` of a dtype, ``skipped`` numbers after the start of ``key``."""

    dtype: torch.dtype
    key: str
    numel: int
    skipped: int = 0


@dataclass(frozen=True)
class Described:
    """A tensor as the pickle describes it."""

    dtype: torch.dtype
    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.size) * self.dtype.itemsize


class Other:
    """A tensor without plain numbers in the file: sparse, quantized, nested, or on ``meta``."""


class Refused(Exception):  # noqa: N818
    """A pickle mentions a name, or an instruction, that plain weights do not need."""


class TooLong(Exception):  # noqa: N818
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


def interpret(file: BinaryIO, storages: dict[str, tuple[int, int]] | None = None) -> Any:
    """Interpret a pickle.

    Args:
        file: read up to the end of the pickle.
        storages: receives (elements, bytes of one) of each storage, by key.

    Returns:
        Plain objects with ``Described`` and ``Other`` in them; None stands for ignored objects.

    Raises:
        Refused: a name or an instruction that plain weights do not need.
        TooLong: more than ``MAX_STEPS`` instructions.
        Exception: of any kind; the pickle is damaged.
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
            raise TooLong
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
                    raise Refused(full)
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
                raise Refused
            case _ if not instruction.stack_before and len(instruction.stack_after) == 1:
                stack.append(value)  # a number or text
            case _:
                raise Refused
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
        raise Refused
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
        if not isinstance(storage, Storage) or len(size) != len(stride) or len(size) > MAX_AXES:
            raise ValueError("a tensor of no sizes")
        numbers = [offset, *size, *stride]
        if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
            raise ValueError("a tensor of no sizes")
        return Other() if any(turned) else Described(dtype, storage, offset, tuple(size), tuple(stride))
    if name in _PARAMETERS:
        return arguments[0]
    if name == _SUBCLASS:
        return _call(arguments[0], arguments[2], steps)
    if name == "torch.Size":
        return arguments[0]
    if name in _OTHER_TENSORS:
        return Other()
    if name in _IGNORED:
        return None
    raise Refused


def _storage(identity: Any) -> Storage:
    kind, of, key, _, numel, *view = identity[:6]
    if kind != "storage" or not isinstance(key, str) or type(numel) is not int or numel < 0:
        raise ValueError("a storage of no sizes")
    dtype = _STORAGES[of.name]
    if view and view[0] is not None:  # of files before 2020: a part of a storage
        _, skipped, part = view[0]
        if type(skipped) is not int or type(part) is not int or not 0 <= skipped <= skipped + part <= numel:
            raise ValueError("a part beyond its storage")
        return Storage(dtype, key, part, skipped)
    return Storage(dtype, key, numel)
