"""Choice of file names: free and safe ones, from ``--output``, templates and defaults.

Nothing is created or written here. Values of a template never leave its folder.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import chain, count
from pathlib import Path
from string import Formatter

from ..errors import NarError, UsageError, nearest
from ..prompts import Prompt, slug
from ..settings import GivenFrames, Subject
from .textfiles import expand

MAX_NAME = 255  # bytes of one part of a path on most file systems
MAX_STEM = 150  # bytes; leaves room for _frontier, a number and the suffix within 255

_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\.|$)")  # device names of Windows


@dataclass(frozen=True)
class Outputs:
    """Files that a run writes.

    Args:
        paths: one a sample.
        companions: further files of the run, named after the first sample, in the requested order.
        beside: further files of each sample, in the requested order.
    """

    paths: tuple[Path, ...]
    companions: tuple[Path, ...]
    beside: tuple[tuple[Path, ...], ...] = ()

    @property
    def names(self) -> list[Path]:
        """All paths."""
        return [*self.paths, *chain(*self.beside), *self.companions]


def default_name(kind: str, fields: Mapping[str, object]) -> str:
    """Template of default names: ``nar-image_c207-golden_retriever_s42``.

    Args:
        kind: ``image`` or ``video``.
        fields: values of one sample; the class, its name, the prompt or the clip, and the seed appear as far
            as they exist.
    """
    present = {key for key, value in fields.items() if value not in (None, "")}
    parts = {"class": "c{class}"} | {key: f"{{{key}}}" for key in ("class_name", "prompt", "frames_from")}
    subject = "-".join(text for key, text in parts.items() if key in present)
    return "_".join(filter(None, (f"nar-{kind}", subject, "s{seed}" if "seed" in present else "")))


def fields_of(entry: Subject, seed: int) -> dict[str, object]:
    """Return the fields of a sample that file names can hold, for commands and Python's results."""
    if isinstance(entry, Prompt):
        return {"prompt": slug(entry.text), "seed": seed}
    if isinstance(entry, GivenFrames):
        return {"frames_from": Path(entry.name).stem, "seed": seed}
    return {"class": entry.id, "class_name": entry.stands_for or entry.name, "seed": seed}


def default_stem(kind: str, entry: Subject, seed: int) -> str:
    """Return the default file name of a sample without its ending: ``nar-image_c207-cat_s42``."""
    fields = fields_of(entry, seed)
    return _fill(default_name(kind, fields), fields)


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
        beside: endings of further files of every sample; its number is chosen so that all are free.
        overwrite: use names of existing files.
        reserved: names that are not used even then.

    Raises:
        UsageError: unknown field, another suffix, a missing folder, or a folder in place of a file.
        NarError: a folder that cannot be written to.
    """
    template, suffix = _split_output(output, default, suffixes)
    taken = set(map(_key, reserved))
    paths: list[Path] = []
    others: list[tuple[Path, ...]] = []
    extra: tuple[Path, ...] = ()
    names: tuple[Path, ...] = ()
    numbers: dict[Path, Iterator[int]] = {}  # by stem, so that many equal names stay cheap
    for index, fields in enumerate(samples):
        values = {"index": index, "date": date.today().isoformat()} | dict(fields)
        stem = Path("/".join(_fill(part, values) for part in template.split("/")) or ".")
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
            raise UsageError(f"The name {names[0].name[:60]}... is too long.", "Choose a shorter `output`.")
        for name in names[not suffix :]:  # without a suffix the first is a folder
            if name.is_dir():
                raise UsageError(f"{name} is a folder, and a file would be written there.", "Move it away.")
            _refuse_device(str(name))
        paths.append(names[0])
        others.append(names[1 : 1 + len(beside)])
        if index == 0:
            extra = names[1 + len(beside) :]
    return Outputs(tuple(paths), extra, tuple(others))


def clean_name(value: object) -> str:
    """Clean a value for a file name: letters and digits of any script, ``_``, ``-``, ``.``; never empty.

    The result has a bounded length, no separators or control characters, and no dot or dash at its ends. It
    is no device name of Windows.
    """
    text = unicodedata.normalize("NFC", str(value))
    encoding = sys.getfilesystemencoding()  # ASCII in some locales
    text = text.encode(encoding, "replace").decode(encoding)
    text = re.sub(r"[^\w.-]+", "_", text)
    text = _shorten(text.strip(".-_")).rstrip(".-_") or "_"
    return f"_{text}" if _RESERVED.match(text) else text


def _split_output(output: str | None, default: str, suffixes: Sequence[str]) -> tuple[str, str]:
    """Split ``--output`` into a template without suffix, and the suffix."""
    if output is None:
        return default, suffixes[0]
    if output.startswith("~"):
        output = f"{expand(output)}{'/' * (output[-1] in '/' + os.sep)}"  # a last slash means a folder
    output = output.replace(os.sep, "/")
    if not output.strip() or "\0" in output:
        raise UsageError(f"`output={output!r}` names no file.", "Give a file, a folder or a template.")
    _refuse_device(output)
    if Path(output).is_dir():
        output = output.replace("{", "{{").replace("}", "}}").rstrip("/") + "/"
    if output.endswith("/"):
        return f"{output.rstrip('/')}/{default}", suffixes[0]
    folder, slash, name = output.rpartition("/")
    suffix = "" if "}" in (end := Path(name).suffix) else end  # a dot inside {field:...} ends no name
    if suffix and suffix.lower() not in suffixes:
        raise UsageError(
            f"`output={output!r}` ends in {suffix!r}, which narcli does not write here.",
            f"Use {', '.join(filter(None, suffixes)) or 'a name without an ending'}, "
            "or end a folder's name with a slash.",
        )
    return f"{folder}{slash}{name.removesuffix(suffix)}", suffix or suffixes[0]


def _refuse_device(output: str) -> None:
    """Refuse stdout and names of devices and pipes, since narcli writes regular files."""
    path = Path(output)
    beside = path.parent.as_posix() in ("/dev", "/dev/fd") and not path.is_dir()
    if output == "-" or beside or (path.exists() and not (path.is_file() or path.is_dir())):
        what = "stdout" if output == "-" else "a device or a pipe"
        raise UsageError(
            f"`output={output!r}` is {what}, and narcli writes files.",
            "Give a file, a folder or a template; `json` tells on stdout what was written.",
        )


def _fill(part: str, fields: Mapping[str, object]) -> str:
    """Fill in one component of a template; only plain ``{name}`` and ``{name:03}`` are fields."""
    filled = ""
    try:
        pieces = list(Formatter().parse(part))
    except ValueError as error:
        raise UsageError(
            f"`output`: {part!r} is not a template ({error}).", "Write {{ for a brace."
        ) from None
    for literal, field, spec, conversion in pieces:
        filled += literal
        if field is None:
            continue
        if field not in fields:
            close = nearest(field, fields, 1)
            raise UsageError(
                f"`output` has no field {{{field}}}.",
                (f"Did you mean {{{close[0]}}}? " if close else "")
                + f"Fields: {' '.join(f'{{{name}}}' for name in fields)}.",
            )
        if conversion or not re.fullmatch("0?[0-9]{0,2}", spec or ""):
            raise UsageError(f"`output`: {{{field}...}} takes a width only.", f"For example {{{field}:04}}.")
        value = fields[field]
        filled += clean_name(format(value, spec or "") if isinstance(value, int) else value)
    if all(field is None for _, field, _, _ in pieces):
        return filled  # literal parts such as .. or a long folder name stay as they are
    filled = _shorten(filled)
    return f"_{filled}" if _RESERVED.match(filled) else filled


def _shorten(text: str) -> str:
    # Bytes of a path that are no letters in this locale are surrogates, and stay as they are.
    data = text.encode("utf-8", "surrogatepass")
    return text if len(data) <= MAX_STEM else data[:MAX_STEM].decode("utf-8", "ignore")


def _key(path: Path) -> str:
    """Key that is equal for names that some file system takes for the same."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def _check_folder(folder: Path, *, create: bool) -> None:
    """Refuse folders that cannot be written to, before minutes of work."""
    existing = next(parent for parent in (folder, *folder.parents, Path()) if os.path.lexists(parent))
    if not existing.is_dir():
        raise UsageError(f"{existing} is a file, not a folder.", "Choose another `output`.")
    if existing != folder and not create:
        raise UsageError(
            f"The folder {folder} does not exist.",
            f"Create it, or end `output` with a slash to have it created: `output={folder}/`",
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise NarError(f"The folder {existing} cannot be written to.", "Choose another folder with `output`.")
