"""Files: names that are free and safe, writes that are atomic, metadata that travels inside the file.

Nothing here overwrites a file unless told to, and nothing half-written is ever left under a final
name: data goes to a temporary file beside the name and is moved there in one operation. Every
picture or video holds the settings that made it (the fields of ``narcli.metadata``): an iTXt chunk
``narcli`` in PNG, the comment in GIF and MP4, the EXIF description in WebP, an entry ``narcli`` in
safetensors. Pillow and ffmpeg are imported only when something is written.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import signal
import struct
import subprocess
import sys
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from difflib import get_close_matches
from itertools import chain, count
from pathlib import Path
from string import Formatter
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, BinaryIO

from .errors import CheckpointError, NarError, UsageError
from .metadata import SCHEMA, check_fields, ordered

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

MAX_METADATA = 100_000  # bytes of JSON; also what fits one argument of a command line
MAX_DOCUMENT = 2**24  # bytes of the document of --json
MAX_PARTS = 100_000  # chunks or boxes looked at in a file
_DESCRIPTION = 0x010E  # EXIF's ImageDescription
MAX_NAME = 255  # bytes of one part of a path, nearly everywhere
MAX_STEM = 150  # bytes; leaves room for _frontier, a number and the suffix within 255

Metadata = Mapping[str, Any]

# --- names ---------------------------------------------------------------------------------------

_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\.|$)")  # device names of Windows


@dataclass(frozen=True)
class Outputs:
    """Where a run writes.

    Args:
        paths: one a sample.
        companions: of the first sample, in the order asked for.
        beside: further files of each sample, likewise.
    """

    paths: tuple[Path, ...]
    companions: tuple[Path, ...]
    beside: tuple[tuple[Path, ...], ...] = ()

    @property
    def names(self) -> list[Path]:
        """All of them."""
        return [*self.paths, *chain(*self.beside), *self.companions]


def default_name(kind: str, fields: Mapping[str, object]) -> str:
    """The template of default names: ``nar-image_c207-golden_retriever_s42``.

    Args:
        kind: ``image`` or ``video``.
        fields: values of one sample; the class, its name or the prompt, and the seed appear as far as they
            exist.
    """
    known = {key for key, value in fields.items() if value not in (None, "")}
    about = "-".join(
        text
        for key, text in (("class", "c{class}"), ("class_name", "{class_name}"), ("prompt", "{prompt}"))
        if key in known
    )
    return "_".join(filter(None, (f"nar-{kind}", about, "s{seed}" if "seed" in known else "")))


def resolve_outputs(
    output: str | None,
    samples: Sequence[Mapping[str, object]],
    *,
    default: str,
    suffixes: Sequence[str] = (".png",),
    companions: Sequence[str] = (),
    beside: Sequence[str] = (),
    overwrite: bool = False,
    reserved: Iterable[Path] = (),
) -> Outputs:
    """Choose a file name for every sample; creates nothing.

    Args:
        output: None for the current folder; a folder (existing, or ending in a slash), a file in an
            existing folder, or a template with fields such as ``{seed}``, whose folders will be created.
            Values are cleaned: they cannot leave the folder.
        samples: the field values of each sample; ``index`` and ``date`` are added.
        default: template of the name, without suffix, when ``output`` names none.
        suffixes: accepted endings; the first is the default. "" is for folders of files.
        companions: endings of further files of the run, such as ``_frontier.gif``. They are named after
            the first sample's file, whose number is chosen so that all of them are free.
        beside: endings of further files of every sample, likewise.
        overwrite: take names that exist already.
        reserved: names that are not taken even then.

    Raises:
        UsageError: unknown field, another suffix, a folder that is not there, or one where a file goes.
        NarError: a folder that cannot be written to.
    """
    template, suffix = _split_output(output, default, suffixes)
    taken = set(map(_key, reserved))
    paths: list[Path] = []
    others: list[tuple[Path, ...]] = []
    extra: tuple[Path, ...] = ()
    names: tuple[Path, ...] = ()
    numbers: dict[Path, Iterator[int]] = {}  # by stem, so that a thousand equal names stay cheap
    for index, fields in enumerate(samples):
        known = {"index": index, "date": date.today().isoformat()} | dict(fields)
        stem = Path("/".join(_fill(part, known) for part in template.split("/")) or ".")
        if index == 0:
            _check_folder(
                stem.parent, create=output is not None and ("{" in output or output[-1] in "/" + os.sep)
            )
        for number in numbers.setdefault(stem, count()):
            base = f"{stem}_{number}" if number else str(stem)
            endings = (suffix, *beside, *(companions if index == 0 else ()))
            names = tuple(Path(base + end) for end in endings)
            if not any(_key(name) in taken or (not overwrite and os.path.lexists(name)) for name in names):
                break
        taken.update(map(_key, names))
        if any(len(os.fsencode(part)) > MAX_NAME for name in names for part in name.parts):
            raise UsageError(f"The name {names[0].name[:60]}... is too long.", "Choose a shorter --output.")
        for name in names[not suffix :]:  # without a suffix the first is a folder
            if name.is_dir():
                raise UsageError(f"{name} is a folder, and a file would be written there.", "Move it away.")
        paths.append(names[0])
        others.append(names[1 : 1 + len(beside)])
        if index == 0:
            extra = names[1 + len(beside) :]
    return Outputs(tuple(paths), extra, tuple(others))


def companion(path: Path, ending: str) -> Path:
    """``dog.png``, ``_frontier.gif`` -> ``dog_frontier.gif``."""
    return path.with_name(path.stem + ending)


def clean_name(value: object) -> str:
    """A value as part of a file name: letters and digits of any script, ``_``, ``-``, ``.``; never empty.

    It holds no separators or control characters, does not start or end with a dot or dash, is no
    device name of Windows, and is bounded in length.
    """
    text = unicodedata.normalize("NFC", str(value))
    encoding = sys.getfilesystemencoding()  # ASCII in some locales
    text = text.encode(encoding, "replace").decode(encoding)
    text = re.sub(r"[^\w.-]+", "_", text)
    text = _shorten(text.strip(".-_")).rstrip(".-_") or "_"
    return f"_{text}" if _RESERVED.match(text) else text


def _split_output(output: str | None, default: str, suffixes: Sequence[str]) -> tuple[str, str]:
    """``--output`` -> template without suffix, suffix."""
    if output is None:
        return default, suffixes[0]
    output = os.path.expanduser(output).replace(os.sep, "/")  # noqa: PTH111 (Path would drop a last slash)
    if not output.strip() or "\0" in output:
        raise UsageError(f"--output {output!r} names no file.", "Give a file, a folder or a template.")
    if Path(output).is_dir():
        output = output.replace("{", "{{").replace("}", "}}").rstrip("/") + "/"
    if output.endswith("/"):
        return f"{output.rstrip('/')}/{default}", suffixes[0]
    folder, slash, name = output.rpartition("/")
    suffix = "" if "}" in (end := Path(name).suffix) else end  # a dot inside {field:...} ends no name
    if suffix and suffix.lower() not in suffixes:
        raise UsageError(
            f"--output {output!r} ends in {suffix!r}, which narcli does not write here.",
            f"Use {', '.join(filter(None, suffixes)) or 'a name without an ending'}, "
            "or end a folder's name with a slash.",
        )
    return f"{folder}{slash}{name.removesuffix(suffix)}", suffix or suffixes[0]


def _fill(part: str, fields: Mapping[str, object]) -> str:
    """Fill in one component of a template; only plain ``{name}`` and ``{name:03}`` are fields."""
    filled = ""
    try:
        pieces = list(Formatter().parse(part))
    except ValueError as error:
        raise UsageError(
            f"--output: {part!r} is not a template ({error}).", "Write {{ for a brace."
        ) from None
    for literal, field, spec, conversion in pieces:
        filled += literal
        if field is None:
            continue
        if field not in fields:
            close = get_close_matches(field, fields, n=1)
            raise UsageError(
                f"--output has no field {{{field}}}.",
                (f"Did you mean {{{close[0]}}}? " if close else "")
                + f"Fields: {' '.join(f'{{{name}}}' for name in fields)}.",
            )
        if conversion or not re.fullmatch("0?[0-9]{0,2}", spec or ""):
            raise UsageError(f"--output: {{{field}...}} takes a width only.", f"For example {{{field}:04}}.")
        value = fields[field]
        filled += clean_name(format(value, spec or "") if isinstance(value, int) else value)
    if all(field is None for _, field, _, _ in pieces):
        return filled  # the user's own words, such as .. or a long folder name, stay as they are
    filled = _shorten(filled)
    return f"_{filled}" if _RESERVED.match(filled) else filled


def _shorten(text: str) -> str:
    # Bytes of a path that are no letters in this locale are surrogates, and stay as they are.
    data = text.encode("utf-8", "surrogatepass")
    return text if len(data) <= MAX_STEM else data[:MAX_STEM].decode("utf-8", "ignore")


def _key(path: Path) -> str:
    """Equal for names that some file system takes for the same."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def _check_folder(folder: Path, *, create: bool) -> None:
    """Refuse early what would fail after minutes of work."""
    existing = next(parent for parent in (folder, *folder.parents, Path()) if os.path.lexists(parent))
    if not existing.is_dir():
        raise UsageError(f"{existing} is a file, not a folder.", "Choose another --output.")
    if existing != folder and not create:
        raise UsageError(
            f"The folder {folder} does not exist.",
            f"Create it, or end --output with a slash to have it created: --output {folder}/",
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise NarError(f"The folder {existing} cannot be written to.", "Choose another folder with --output.")


# --- atomic writes -------------------------------------------------------------------------------


def write_atomic(path: Path, data: bytes | Callable[[Path], object], *, overwrite: bool = False) -> Path:
    """Write a file in one piece: it is there whole or not at all.

    Args:
        path: the name wanted; missing folders are created.
        data: the bytes, or a function that fills the (empty, existing) file it is given.
        overwrite: replace an existing file. Otherwise a name that was taken meanwhile gets ``_1``.

    Returns:
        The path written.

    Raises:
        NarError: disk full, no permission and the like, with the path and what to do.
    """
    temporary = path.with_name(f".narcli-{secrets.token_hex(8)}.part")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                if isinstance(data, bytes):
                    file.write(data)
            if not isinstance(data, bytes):
                data(temporary)
            if overwrite:
                os.replace(temporary, path)  # noqa: PTH105 (says what it does)
                return path
            return _move_to_free_name(temporary, path)
        finally:  # also after Ctrl-C
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _explain(path, error) from error


def _move_to_free_name(temporary: Path, path: Path) -> Path:
    for number in count():
        target = companion(path, f"_{number}{path.suffix}") if number else path
        try:
            try:
                os.link(temporary, target)  # fails if the name is taken, in one operation
            except FileExistsError:
                raise
            except OSError:  # a file system without links: take the name, then put the file over it
                target.open("xb").close()
                os.replace(temporary, target)  # noqa: PTH105
            return target
        except FileExistsError:
            continue
    raise AssertionError("unreachable")


def _explain(path: Path, error: OSError) -> NarError:
    happened, hint = {
        errno.ENOSPC: ("the disk is full", "Free some space or choose another disk with --output."),
        errno.EDQUOT: ("your disk quota is used up", "Free some space or choose another disk with --output."),
        errno.EFBIG: ("the file would be larger than allowed here", "Raise the limit (ulimit -f) or move."),
        errno.EACCES: ("permission denied", "Choose a folder of yours with --output."),
        errno.EPERM: ("not permitted", "Choose a folder of yours with --output."),
        errno.EROFS: ("the disk is read-only", "Choose another folder with --output."),
        errno.ENAMETOOLONG: ("the name is too long", "Choose a shorter --output."),
        errno.EEXIST: ("a part of the path is a file, not a folder", "Choose another --output."),
        errno.ENOTDIR: ("a part of the path is a file, not a folder", "Choose another --output."),
        errno.EISDIR: ("that is a folder", "Choose another --output."),
    }.get(error.errno or 0, ((error.strerror or str(error)).lower(), "Choose another place with --output."))
    return NarError(f"Could not write {path}: {happened}.", hint)


# --- pictures and videos -------------------------------------------------------------------------


def encode_metadata(metadata: Metadata) -> str:
    """Versioned JSON in ASCII, so that any text survives any container.

    Raises:
        NarError: when it is larger than ``MAX_METADATA``.
    """
    text = json.dumps({"schema": SCHEMA, **ordered(metadata)}, allow_nan=False)
    if len(text) > MAX_METADATA:
        raise NarError(
            f"The settings of this run take {len(text):,} bytes; a file holds {MAX_METADATA:,}.",
            "Shorten the prompt, ask for fewer at once, or add --no-metadata.",
        )
    return text


def write_png(
    path: Path,
    image: Image.Image,
    metadata: Metadata | None = None,
    parameters: str = "",
    *,
    overwrite: bool = False,
) -> Path:
    """Write a PNG with its settings inside, if any, and a short text for people under ``parameters``."""
    from io import BytesIO

    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if metadata is not None:
        info.add_itxt("narcli", encode_metadata(metadata))
    if parameters:
        info.add_itxt("parameters", parameters.replace("\0", "").encode("utf-8", "replace").decode())
    image.save(buffer := BytesIO(), "PNG", pnginfo=info)
    return write_atomic(path, buffer.getvalue(), overwrite=overwrite)


def write_gif(
    path: Path,
    frames: Iterable[Image.Image],
    metadata: Metadata | None = None,
    *,
    frame_seconds: float = 0.09,
    hold_seconds: float = 2.0,
    overwrite: bool = False,
) -> Path:
    """Write an animation that loops for ever and holds its last frame; all frames of one size.

    The metadata is the comment.
    """
    from io import BytesIO

    from .gif import palette_frames

    palette, (first, *rest) = palette_frames(list(frames))
    milliseconds = [round(frame_seconds * 100) * 10] * (1 + len(rest))  # GIF counts hundredths
    milliseconds[-1] = round(hold_seconds * 100) * 10 or milliseconds[-1]
    comment = encode_metadata(metadata).encode() if metadata is not None else b""
    first.save(
        buffer := BytesIO(),
        "GIF",
        save_all=True,
        append_images=rest,
        duration=milliseconds,
        loop=0,
        palette=palette,  # one for the whole file
        transparency=255,  # with optimize: pixels that stay as they were are not written again
        optimize=True,
        comment=comment,
    )
    return write_atomic(path, buffer.getvalue(), overwrite=overwrite)


def write_mp4(
    path: Path,
    frames: Iterable[Image.Image],
    metadata: Metadata | None = None,
    *,
    fps: float = 12,
    quality: int = 68,
    hold_seconds: float = 0.0,
    overwrite: bool = False,
) -> Path:
    """Write an H.264 video that plays everywhere: yuv420p, limited range, bt709, index first.

    An odd width or height gets one more row or column of the edge's colour; nothing is resized.

    Args:
        path: the name wanted.
        frames: RGB pictures of one size.
        metadata: goes into the ``comment`` tag.
        fps: frames per second.
        quality: 0 to 100, which are the rate factors (CRF) 51 to 0 of x264.
        hold_seconds: how much longer the last frame stays.
        overwrite: replace an existing file.

    Raises:
        NarError: when ffmpeg fails, with its last words.
    """
    from tempfile import TemporaryFile

    import numpy as np
    from imageio_ffmpeg import get_ffmpeg_exe

    frames = list(frames)
    width, height = frames[0].size
    pad = ((0, height % 2), (0, width % 2), (0, 0))
    comment = encode_metadata(metadata) if metadata is not None else ""
    options = f"""-hide_banner -loglevel error -nostdin -y
        -f rawvideo -pix_fmt rgb24 -s {width + width % 2}x{height + height % 2} -r {fps} -i -
        -vf scale=out_color_matrix=bt709:out_range=tv,format=yuv420p
        -c:v libx264 -preset medium -crf {round((100 - quality) * 0.51)} -threads 2
        -colorspace bt709 -color_primaries bt709 -color_trc bt709 -color_range tv
        -movflags +faststart -f mp4""".split()

    def encode(target: Path) -> None:
        command = [get_ffmpeg_exe(), *options, "-metadata", f"comment={comment}", str(target.absolute())]
        with TemporaryFile() as messages:  # not a pipe, which would have to be drained meanwhile
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=messages,
                start_new_session=True,  # Ctrl-C is ours to handle
            )
            assert process.stdin is not None
            try:
                with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
                    for frame in chain(frames, [frames[-1]] * round(hold_seconds * fps)):
                        pipe.write(np.pad(np.asarray(frame.convert("RGB")), pad, mode="edge").tobytes())
                process.wait()
            finally:
                process.kill()
                process.wait()
            if process.returncode:
                messages.seek(0)
                words = messages.read().decode(errors="replace").strip()
                _raise_for_ffmpeg(path, process.returncode, words)

    return write_atomic(path, encode, overwrite=overwrite)


def _raise_for_ffmpeg(path: Path, code: int, words: str) -> None:
    if "No space left" in words:
        raise OSError(errno.ENOSPC, words)
    if code == -getattr(signal, "SIGXFSZ", 0) or "File too large" in words:
        raise OSError(errno.EFBIG, words)
    last = words.splitlines()[-1][:200] if words else f"exit status {code}"
    raise NarError(f"Could not write {path}: ffmpeg failed ({last}).", "Write a .gif instead.")


def write_webp(
    path: Path,
    frames: Iterable[Image.Image],
    metadata: Metadata | None = None,
    *,
    fps: float = 12,
    quality: int = 80,
    overwrite: bool = False,
) -> Path:
    """Write an animated WebP that loops for ever; all frames of one size.

    ``quality`` goes from 0 to 100. The metadata is the description of the picture in EXIF.
    """
    from io import BytesIO

    from PIL import Image

    first, *rest = frames
    exif = Image.Exif()
    if metadata is not None:
        exif[_DESCRIPTION] = encode_metadata(metadata)
    first.save(
        buffer := BytesIO(),
        "WEBP",
        save_all=True,
        append_images=rest,
        duration=round(1000 / fps),
        loop=0,
        quality=quality,
        method=4,
        exif=exif,
    )
    return write_atomic(path, buffer.getvalue(), overwrite=overwrite)


def write_frames(
    folder: Path,
    frames: Iterable[Image.Image],
    metadata: Metadata | None,
    parameters: str = "",
    *,
    overwrite: bool = False,
) -> Path:
    """Write each frame as a PNG, ``00.png`` and so on, into a folder that is there whole or not at all.

    Args:
        folder: the name wanted; ``_1`` is added where it was taken meanwhile.
        frames: RGB pictures.
        metadata: goes into each PNG, with ``frame``, its number from 0; None for none.
        parameters: a short text for people, likewise.
        overwrite: replace a folder that holds nothing but numbered PNGs.

    Raises:
        NarError: disk full, no permission and the like, or a folder that holds other files.
    """
    if overwrite:
        check_frames(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".narcli-", suffix=".part", dir=folder.parent) as made:
            new = Path(made) / "new"
            for number, frame in enumerate(frames):
                about = None if metadata is None else {**metadata, "frame": number}
                write_png(new / f"{number:02}.png", frame, about, parameters)
            if overwrite and folder.exists():
                folder.rename(Path(made) / "old")
            for number in count():
                target = folder.with_name(f"{folder.name}_{number}") if number else folder
                if not os.path.lexists(target):
                    return new.rename(target)
    except OSError as error:
        raise _explain(folder, error) from error
    raise AssertionError("unreachable")


def check_frames(folder: Path) -> None:
    """Make sure that a folder, if it exists, holds nothing but numbered PNGs.

    Raises:
        NarError: it holds other files, or is none.
    """
    if os.path.lexists(folder) and not (
        folder.is_dir() and all(re.fullmatch(r"[0-9]+\.png", file.name) for file in folder.iterdir())
    ):
        raise NarError(f"{folder} holds other files than frames.", "Choose another --output.")


def write_tokens(
    path: Path, tokens: npt.NDArray[np.int32], metadata: Metadata, *, overwrite: bool = False
) -> Path:
    """Write the tokens of a sample, int32 in the shape of their grid, with its settings (safetensors)."""
    from safetensors.numpy import save

    data = save({"tokens": tokens}, {"narcli": encode_metadata(metadata)})
    return write_atomic(path, data, overwrite=overwrite)


def read_tokens(path: Path) -> npt.NDArray[np.int32]:
    """The tokens that ``write_tokens`` wrote, in the shape of their grid.

    Raises:
        CheckpointError: no such file, damaged, or another one.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            part = file.get_slice("tokens")
            if part.get_dtype() != "I32" or not 1 <= len(part.get_shape()) <= 3:
                raise CheckpointError(f"{path} holds other numbers than tokens.", "Get the original file.")
            return file.get_tensor("tokens")
    except (OSError, SafetensorError):
        raise CheckpointError(
            f"{path} is no file of tokens, or damaged.", "--save-tokens writes such files."
        ) from None


# --- metadata back -------------------------------------------------------------------------------


def read_metadata(path: Path) -> dict[str, Any]:
    """The settings inside a file that narcli wrote: PNG, GIF, WebP, MP4, tokens, or the document of --json.

    A folder of frames has those of its first one. Nothing of a file is read but what holds them, and no
    more than ``MAX_DOCUMENT`` bytes.

    Raises:
        CheckpointError: no such file, not one of ours, damaged, from a newer narcli, or a field that is not
            what it should be.
    """
    try:
        if path.is_dir() and (path / "00.png").is_file():
            path /= "00.png"
        if path.exists() and not path.is_file() and not path.is_dir():  # a pipe would be waited for
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
            "Files as narcli wrote them do; editing, sharing and --no-metadata remove them.",
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
    raise ValueError(name)  # NaN and the infinities are no JSON


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise EOFError
    return data


def _parts() -> Iterator[int]:
    """Counts the parts of a file; a lying one must not keep narcli busy."""
    yield from range(MAX_PARTS)
    raise EOFError


def _png_text(file: BinaryIO) -> str | None:
    """The iTXt chunk ``narcli``, compressed or not (other tools rewrite it)."""
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
    """The comment that is narcli's among those before the first picture."""

    def blocks(most: int) -> bytes:
        """The next sub-blocks; what goes beyond ``most`` bytes is left out."""
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
    """The description in the chunk ``EXIF``; the pictures are not decoded."""
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
            text = exif.get(_DESCRIPTION, "")
        except Exception as error:  # Pillow raises many kinds for damaged files
            raise EOFError from error
        return text if isinstance(text, str) and "narcli.run/" in text[:100] else None
    return None


def _safetensors_entry(file: BinaryIO) -> str | None:
    """The entry ``narcli`` of the header."""
    (size,) = struct.unpack("<Q", _exactly(file, 8))
    if size > 4 * MAX_METADATA:
        return None
    try:
        return str(json.loads(_exactly(file, size))["__metadata__"]["narcli"])
    except (KeyError, TypeError):
        return None
    except RecursionError as error:
        raise EOFError from error


def _document(path: Path, file: BinaryIO) -> str | None:
    """The whole of a document of --json."""
    data = file.read(MAX_DOCUMENT + 1)
    if len(data) > MAX_DOCUMENT:
        raise CheckpointError(f"{path} is larger than {MAX_DOCUMENT:,} bytes: no document of --json.")
    return data.decode() if b'"narcli.run/' in data else None


def _mp4_comment(file: BinaryIO) -> str | None:
    """The tag ``©cmt``: boxes moov > udta > meta > ilst > ©cmt > data."""
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
