"""Readers of metadata and tokens in narcli's files.

Files are untrusted: only the parts with the settings are read, claimed sizes are checked, and any fault is a
CheckpointError.
"""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import CheckpointError
from ..rules import MAX_CELLS
from .metadata import DESCRIPTION, MAX_METADATA, check_fields
from .schema import SCHEMA
from .textfiles import check_regular

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAX_DOCUMENT = 2**24  # bytes of the document of --json
MAX_PARTS = 100_000  # chunks or boxes read in a file


def read_metadata(path: Path) -> dict[str, Any]:
    """Read the settings in a PNG, GIF, WebP, MP4, page, file of tokens or record, or document of --json.

    A folder of frames has those of its first one. At most ``MAX_DOCUMENT`` bytes are read.

    Raises:
        CheckpointError: no such file, not one of narcli, damaged, from a newer narcli, or with an invalid
            field.
    """
    try:
        if path.is_dir() and (path / "00.png").is_file():
            path /= "00.png"
        if path.exists() and not path.is_file() and not path.is_dir():  # opening a pipe would block
            raise CheckpointError(f"{path} is not a file.")
        with path.open("rb") as file:
            start = file.read(12)
            file.seek(0)
            if start[:8] == b"\x89PNG\r\n\x1a\n":
                text = _png_text(file)
            elif start.startswith(b"GIF8"):
                text = _gif_comment(file)
            elif start[:4] == b"RIFF" and start[8:] == b"WEBP":
                text = _webp_description(file)
            elif start[4:8] == b"ftyp":
                text = _mp4_comment(file)
            elif start[8:10] == b'{"':
                text = _safetensors_entry(file)
            elif start.lower().startswith(b"<!doctype"):
                text = _page_settings(file)
            elif start.lstrip()[:1] == b"{":
                text = _document(path, file)
            else:
                text = None
    except OSError as error:
        raise CheckpointError(f"Could not read {path}: {(error.strerror or str(error)).lower()}.") from None
    except (struct.error, zlib.error, ValueError, SyntaxError, EOFError):
        raise CheckpointError(f"{path} is damaged or cut off.", "Get the original file again.") from None
    if text is None:
        raise CheckpointError(
            f"{path} holds no settings of narcli.",
            "Files as narcli wrote them do; editing, sharing and `no_metadata` remove them.",
        )
    try:
        metadata = json.loads(text, parse_constant=_refuse_constant)
        schema = metadata["schema"]
        assert isinstance(metadata, dict) and isinstance(schema, str)
    except (ValueError, KeyError, TypeError, AssertionError, RecursionError):
        raise CheckpointError(f"The settings inside {path} are damaged.", "Get the original file.") from None
    if schema != SCHEMA:
        raise CheckpointError(
            f"{path} has settings of schema {schema[:40]!r}, not {SCHEMA!r}.", "Upgrade narcli."
        )
    check_fields(path, metadata)
    return metadata


def _refuse_constant(name: str) -> None:
    raise ValueError(name)  # NaN and the infinities are not JSON


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise EOFError
    return data


def _parts() -> Iterator[int]:
    """Count the parts of a file, up to a limit, since a hostile file may claim any number.

    Raises:
        ValueError: there are more than ``MAX_PARTS``.
    """
    yield from range(MAX_PARTS)
    raise EOFError


def _png_text(file: BinaryIO) -> str | None:
    """Read the iTXt chunk ``narcli``, compressed or not (other tools rewrite it)."""
    file.seek(8)
    for _ in _parts():
        size, kind = struct.unpack(">I4s", _exactly(file, 8))
        if kind == b"IEND":
            return None
        if kind != b"iTXt" or size > 2 * MAX_METADATA:
            file.seek(size + 4, 1)
            continue
        data = _exactly(file, size)
        if struct.unpack(">I", _exactly(file, 4))[0] != zlib.crc32(kind + data):
            raise EOFError
        keyword, _, rest = data.partition(b"\0")
        if keyword != b"narcli":
            continue
        compressed, method = rest[0:1], rest[1:2]
        text = rest[2:].split(b"\0", 2)[2] if rest[2:].count(b"\0") >= 2 else b""
        if compressed == b"\1" and method == b"\0":
            text = zlib.decompressobj().decompress(text, 2 * MAX_METADATA)
        return text.decode()
    return None


def _gif_comment(file: BinaryIO) -> str | None:
    """Read narcli's comment among those before the first picture."""

    def blocks(most: int) -> bytes:
        """Read the next sub-blocks, at most ``most`` bytes of them."""
        data = b""
        for _ in _parts():
            if not (size := _exactly(file, 1)[0]):
                break
            part = _exactly(file, size)
            data += part if len(data) <= most else b""
        return data

    flags = _exactly(file, 13)[10]
    file.seek(3 * 2 ** (flags % 8 + 1) if flags & 128 else 0, 1)  # the palette
    for _ in _parts():
        if _exactly(file, 1) != b"!":  # no extension: a picture, or the end
            return None
        if _exactly(file, 1) != b"\xfe":
            blocks(0)
        elif b"narcli.run/" in (text := blocks(2 * MAX_METADATA))[:100] and len(text) <= 2 * MAX_METADATA:
            return text.decode()
    return None


def _webp_description(file: BinaryIO) -> str | None:
    """Read the description in the chunk ``EXIF`` without decoding pictures."""
    from PIL import Image

    file.seek(12)
    for _ in _parts():
        header = file.read(8)
        if len(header) < 8:
            return None
        kind, size = struct.unpack("<4sI", header)
        if kind != b"EXIF" or size > 2 * MAX_METADATA:
            file.seek(size + size % 2, 1)
            continue
        exif = Image.Exif()
        try:
            exif.load(_exactly(file, size))
            text = exif.get(DESCRIPTION, "")
        except Exception as error:  # Pillow raises many kinds for damaged files
            raise EOFError from error
        return text if isinstance(text, str) and "narcli.run/" in text[:100] else None
    return None


def _safetensors_entry(file: BinaryIO) -> str | None:
    """Read the entry ``narcli`` of the header."""
    (size,) = struct.unpack("<Q", _exactly(file, 8))
    if size > 4 * MAX_METADATA:
        return None
    try:
        return str(json.loads(_exactly(file, size))["__metadata__"]["narcli"])
    except (KeyError, TypeError):
        return None
    except RecursionError as error:
        raise EOFError from error


def _page_settings(file: BinaryIO) -> str | None:
    """Read the element ``narcli`` near the beginning of a page."""
    found = re.search(
        rb'<script type="application/json" id="narcli">(.*?)</script>', file.read(3 * MAX_METADATA)
    )
    return found[1].decode() if found else None


def _document(path: Path, file: BinaryIO) -> str | None:
    """Read a document of --json."""
    data = file.read(MAX_DOCUMENT + 1)
    if len(data) > MAX_DOCUMENT:
        raise CheckpointError(f"{path} is larger than {MAX_DOCUMENT:,} bytes: no JSON document of a run.")
    return data.decode() if b'"narcli.run/' in data else None


def _mp4_comment(file: BinaryIO) -> str | None:
    """Read the tag ``©cmt``: boxes moov > udta > meta > ilst > ©cmt > data."""
    end = file.seek(0, 2)
    position, path = 0, [b"moov", b"udta", b"meta", b"ilst", b"\xa9cmt", b"data"]
    for _ in _parts():
        if not path or position + 8 > end:
            break
        file.seek(position)
        size, kind = struct.unpack(">I4s", _exactly(file, 8))
        header = 8
        if size == 1:
            size, header = struct.unpack(">Q", _exactly(file, 8))[0], 16
        size = size or end - position
        if size < header or position + size > end:
            raise EOFError
        if kind == path[0]:
            end = position + size
            position += header + (4 if kind == b"meta" else 8 if kind == b"data" else 0)
            path.pop(0)
        else:
            position += size
    if path or not 0 <= end - position <= 2 * MAX_METADATA:
        return None
    file.seek(position)
    return _exactly(file, end - position).decode()


def read_tokens(path: Path) -> npt.NDArray[np.int32]:
    """Read tokens that ``write_tokens`` wrote: int32 in the shape of their grid.

    Raises:
        CheckpointError: no such file, a damaged one, or no file of tokens.
    """
    from safetensors import SafetensorError, safe_open

    check_regular(path)
    try:
        with safe_open(path, "np") as file:
            part = file.get_slice("tokens")
            shape = part.get_shape()
            if part.get_dtype() != "I32" or not 1 <= len(shape) <= 3 or not 0 < math.prod(shape) <= MAX_CELLS:
                raise CheckpointError(
                    f"{path} holds {'x'.join(map(str, shape))} numbers of the format {part.get_dtype()}, "
                    f"expected at most {MAX_CELLS} tokens (I32) in a grid of 1 to 3 axes.",
                    "Get the original file.",
                )
            return file.get_tensor("tokens")
    except (OSError, SafetensorError):
        raise CheckpointError(
            f"{path} is no file of tokens, or damaged.", "`save_tokens` writes such files."
        ) from None
