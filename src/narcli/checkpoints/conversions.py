"""Copies of float32 files in the number format of a run, kept in the user's cache folder.

A released pickle holds float32. Its copy in bfloat16 is half as large and is mapped into memory. A copy
belongs to one state of one file (path, size, times, inode) and one release of narcli. The folder may be
removed at any time.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import NarError
from ..media import atomic
from ..media.atomic import write_atomic

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LEAST = 2**26  # bytes; smaller files convert fast enough
MOST = 2**34  # bytes of all copies; the least recently used go first
SETTLED = 2.0  # seconds; a second change within this time may not change the file's times
HEADER = 2**24  # bytes that the header of a copy takes at most
FORMATS = {"bfloat16": "BF16", "float16": "F16"}


def cache_folder() -> Path:
    """Folder of the copies; it may be removed at any time."""
    from platformdirs import user_cache_path

    return user_cache_path("narcli") / "weights"


@dataclass(frozen=True)
class Conversion:
    """The copy of a file in a number format.

    Args:
        source: the file, links resolved.
        dtype: name of the number format.
        key: hash of the file's state.
        settled: true if any later change of the file changes its key.
    """

    source: Path
    dtype: str
    key: str
    settled: bool = field(compare=False)

    @property
    def path(self) -> Path:
        """File of the copy, which may not exist yet."""
        return cache_folder() / f"{self.key}.safetensors"

    def converted(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Map the tensors from the copy; write it first if it is missing or damaged.

        Args:
            tensors: of the file, read after this object was made.

        Returns:
            Tensors of the copy; the given ones if no copy can be written or the file changed recently.
        """
        from ..devices import DTYPES

        dtype = DTYPES[self.dtype]
        if all(tensor.element_size() <= dtype.itemsize for tensor in tensors.values()):
            return tensors
        found = self._read(tensors, dtype)
        if found is None:
            self._write(tensors, dtype)
            found = self._read(tensors, dtype)
        return tensors if found is None else found

    def _read(self, like: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor] | None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (OSError, SafetensorError, ValueError, RuntimeError, TypeError, OverflowError):
            return None
        expected = {name: (tensor.shape, dtype) for name, tensor in like.items()}
        if {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} != expected:
            return None
        with suppress(OSError):
            os.utime(self.path)  # the age of a copy counts from its last use
        return tensors

    def _write(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        size = sum(tensor.numel() for tensor in tensors.values()) * dtype.itemsize
        if not self.settled or size + HEADER > MOST:
            return
        with suppress(OSError, NarError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.path.parent).free >= 2 * size:
                write_atomic(self.path, lambda part: self._fill(part, tensors, dtype), overwrite=True)
                prune()

    def _fill(self, part: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        """Write a safetensors file with one tensor at a time in memory."""
        from torch import uint8

        header: dict[str, object] = {"__metadata__": {"source": str(self.source), "dtype": self.dtype}}
        end = 0
        for name, tensor in tensors.items():
            begin, end = end, end + tensor.numel() * dtype.itemsize
            shape = list(tensor.shape)
            header[name] = {"dtype": FORMATS[self.dtype], "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
        with part.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors.values():
                file.write(tensor.detach().to("cpu", dtype).flatten().view(uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())  # a power cut must not leave the name without the numbers
        if of(self.source, self.dtype) != self:
            raise OSError(f"{self.source} changed while it was copied")


def of(source: Path, dtype: str) -> Conversion | None:
    """The copy of a file in its present state; None for small files and formats without copies."""
    now = time.time()
    try:
        source = source.resolve()
        stat = source.stat()
    except OSError:
        return None
    if dtype not in FORMATS or stat.st_size < LEAST:
        return None
    state = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    about = "\0".join(map(str, (__version__, dtype, source, *state)))
    key = sha256(about.encode(errors="surrogateescape")).hexdigest()
    return Conversion(source, dtype, key, now - max(stat.st_mtime, stat.st_ctime) >= SETTLED)


def copies(source: Path) -> list[Path]:
    """Copies of a file, or of the files of a folder, in their present state."""
    files = [source] if source.is_file() else []
    with suppress(OSError):  # the folder may be removed meanwhile
        files += source.rglob("*")
    known = [of(file, dtype) for file in files for dtype in FORMATS]
    return [copy.path for copy in known if copy is not None and copy.path.is_file()]


def held(paths: Iterable[Path] | None = None) -> int:
    """Bytes of these copies; None counts all. Other runs may write and remove some meanwhile."""
    total = 0
    with suppress(OSError):
        for path in cache_folder().glob("*.safetensors") if paths is None else paths:
            with suppress(OSError):
                total += path.stat().st_size
    return total


def forget(paths: Iterable[Path]) -> int:
    """Remove copies and return the bytes freed; the next run writes them again."""
    freed = 0
    for path in paths:
        with suppress(OSError):
            size = path.stat().st_size
            path.unlink()
            freed += size
    return freed


def prune(most: int | None = None) -> int:
    """Remove copies of files that are gone or changed, and the oldest beyond ``most`` bytes; bytes freed."""
    return atomic.prune(cache_folder(), MOST if most is None else most, _is_current)


def _is_current(path: Path) -> bool:
    """Tell whether a file of the cache is an undamaged copy of its source's present state."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            about = json.loads(file.read(min(length, HEADER)))["__metadata__"]
            copy = of(Path(about["source"]), about["dtype"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return False
    return copy is not None and copy.path == path
