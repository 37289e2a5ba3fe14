"""Training pictures and clips: a folder of image files or a prepared array."""

from __future__ import annotations

import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from math import lcm
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.config import MAX_CLASS_NAME, MAX_CLASSES, is_run
from ..errors import CheckpointError, UsageError, first_line
from ..media.textfiles import check_regular, expand, read_text, split_lines, unreadable
from ..viz.sheets import fit, read_picture, suffixes

#: First words in names of folders that hold parts of a data set.
TRAINING = {"train", "training"}
#: Other words in such names, besides digits; "train car" is a class.
_PART_WORDS = {
    "",
    "data",
    "dataset",
    "examples",
    "folder",
    "images",
    "imgs",
    "part",
    "pics",
    "pictures",
    "set",
    "split",
}
OTHER_PARTS = {"val", "valid", "validation", "test", "testing", "dev", "eval", "heldout", "holdout"}
Tell = Callable[[str], object]


@dataclass(frozen=True)
class Pictures:
    """Pictures or clips of one size and, if known, their classes.

    Args:
        images: uint8 (N, H, W, 3), or (N, frames, H, W, 3) for clips; possibly mapped from a file.
        labels: int64 (N,), class of each, or None.
        names: name of each class; empty if unknown.
        starts: items of each clip, which begin at evenly spaced frames and wrap around at the last frame.
        length: frames of an item; None is the whole clip.
    """

    images: np.ndarray
    labels: np.ndarray | None
    names: tuple[str, ...] = ()
    starts: int = 1
    length: int | None = None

    def __len__(self) -> int:
        return len(self.images) * self.starts

    @property
    def frames(self) -> int:
        """Frames of a clip; 0 for pictures."""
        return self.images.shape[1] if self.images.ndim == 5 else 0

    @property
    def item_labels(self) -> np.ndarray | None:
        """Class of each item, int64 (items,); None without labels."""
        return None if self.labels is None else self.labels.repeat(self.starts)

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 without labels."""
        return 0 if self.labels is None else max(len(self.names), int(self.labels.max()) + 1)

    def digest(self) -> str:
        """Hash of pictures and labels."""
        hasher = sha256(np.ascontiguousarray(self.images).data)
        if self.labels is not None:
            hasher.update(self.labels.tobytes())
        if self.starts > 1 or self.length:
            hasher.update(f"{self.starts} {self.length}".encode())
        return hasher.hexdigest()

    def loops(self, starts: int) -> Pictures:
        """Treat clips as loops: ``starts`` items each, from evenly spaced frames.

        Raises:
            UsageError: pictures, or a number that does not divide the frames.
        """
        if starts < 1 or (starts > 1 and (not self.frames or self.frames % starts)):
            raise UsageError(
                f"`loop_starts` is {starts}, and there are "
                + (f"clips of {self.frames} frames." if self.frames else "no clips."),
                "Give a number that divides the frames.",
            )
        return replace(self, starts=starts)

    def pieces(self, length: int) -> Pictures:
        """Cut clips into pieces of ``length`` frames for a tokenizer.

        Pieces begin at multiples of ``length``, and at the starts of loops.
        """
        return replace(self, starts=lcm(self.starts, self.frames // length), length=length)

    def pixels(self, indices: np.ndarray) -> np.ndarray:
        """Pixels of items: uint8 (B, H, W, 3) or (B, frames, H, W, 3)."""
        if not self.frames:
            return self.images[indices]
        clips, start = np.divmod(indices, self.starts)
        along = np.arange(self.length or self.frames)
        return self.images[
            clips[:, None], (start[:, None] * self.frames // self.starts + along) % self.frames
        ]

    def batch(self, indices: np.ndarray) -> Tensor:
        """Batch of items: float32 (B, 3, H, W) or (B, 3, frames, H, W) in [-1, 1]."""
        return to_unit(torch.from_numpy(self.pixels(indices)))


def to_unit(pixels: Tensor) -> Tensor:
    """Scale pixels: uint8 (B, ..., 3) -> float32 (B, 3, ...) in [-1, 1]."""
    # Contiguous: the backward pass of group normalisation is many times slower channels-last on a CPU.
    return pixels.movedim(-1, 1).contiguous().float() / 127.5 - 1


def load_pictures(path: str | Path, size: int | None = None, tell: Tell = warnings.warn) -> Pictures:
    """Read training pictures.

    Args:
        path: a folder with ``images.npy`` (uint8, N x H x W x 3, or N x frames x H x W x 3 for clips) and
            optionally ``labels.npy`` (N), or a folder of image files, ``class/name.png``: the sorted names of
            the sub-folders are the classes. Links are followed; names that begin with a dot are skipped.
        size: side in pixels of the (square) pictures; image files are fitted and centre-cropped to it,
            as ``read_picture`` reads them. Required for image files, checked for arrays.
        tell: called with a sentence about each omission and each likely mistake.

    Raises:
        UsageError: nothing usable, or a size that does not fit.
        CheckpointError: a file there cannot be read.
    """
    path = expand(path)
    if os.path.lexists(path / "images.npy"):
        return _load_arrays(path, size, tell)
    if not path.is_dir():
        raise UsageError(f"{str(path)!r} is not a folder.", "Give a folder of pictures (class/name.png).")
    if size is None:
        raise UsageError(f"{str(path)!r} holds image files, so a size is needed.", "Give one, such as 128.")
    if is_run({entry.name for entry in path.iterdir()}):
        raise UsageError(
            f"{path} is the folder of a training run, not of pictures.",
            "Give the folder of the pictures.",
        )
    files = _find(path, tell)
    if not files:
        raise UsageError(
            f"No pictures in {str(path)!r}.",
            "Expected images.npy, or files class/name.png (also jpg, webp, gif, tif and so on).",
        )
    folders = sorted({f.relative_to(path).parts[0] for f in files if f.parent != path})
    if folders:
        _check_classes(path, files, folders, tell)
    images = np.empty((len(files), size, size, 3), np.uint8)
    notes: list[str] = []
    for i, file in enumerate(files):
        images[i] = np.asarray(fit(read_picture(file, notes.append), size, size))
    if notes:
        tell(notes[0] + (f" So it is with {len(notes) - 1} more." if notes[1:] else ""))
    if not folders:
        return Pictures(images, None)
    labels = np.array([folders.index(f.relative_to(path).parts[0]) for f in files])
    return Pictures(images, labels, tuple(folders))


def _find(root: Path, tell: Tell) -> list[Path]:
    """Find picture files under a folder, sorted; links are followed, and each file is listed once."""
    endings, files, others = suffixes(), list[Path](), Counter[str]()
    folders, links, visited = [root], list[Path](), set[tuple[int, int]]()
    whole = root.resolve()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)  # links last, after the classes themselves
        try:
            status, entries = folder.stat(), sorted(folder.iterdir())
        except OSError as error:
            raise unreadable(folder, error) from None
        identity = (status.st_dev, status.st_ino)
        if identity in visited or folder.resolve() in whole.parents:
            tell(f"{folder} is a link to what is read already, and left out.")
            continue
        visited.add(identity)
        if folder != root and is_run({entry.name for entry in entries}):
            tell(f"{folder} is the folder of a training run, and left out.")
            continue
        for entry in entries:
            if entry.name.startswith("."):  # for example files of macOS
                continue
            if entry.is_symlink() and not entry.exists():
                raise CheckpointError(f"{entry} is a link to nothing.", "Correct it, or remove it.")
            if entry.is_dir():
                (links if entry.is_symlink() else folders).append(entry)
            elif entry.suffix.lower() in endings:
                files.append(entry)
            else:
                others[entry.suffix.lower() or entry.name] += 1
    if others:
        kinds = [f"{count} {kind}" for kind, count in others.most_common(5)]
        more = ", ..." if len(others) > 5 else ""
        tell(f"Left out in {root}, as no pictures: {', '.join(kinds)}{more}.")
    return sorted(files)


def _check_classes(path: Path, files: Sequence[Path], folders: Sequence[str], tell: Tell) -> None:
    """Refuse or report folders that are hardly meant as classes.

    Raises:
        UsageError: the folders cannot be classes.
    """
    if any(f.parent == path for f in files):
        raise UsageError(
            f"{str(path)!r} holds pictures both directly and in class folders.",
            "Put every picture into the folder of its class.",
        )
    parts = [f.relative_to(path).parts for f in files]
    names = {name: part for name in folders if (part := _part(name))}
    nested = sorted({f"{p[0]}/{p[1]}" for p in parts if len(p) > 2})
    training = [name for name, part in names.items() if part in TRAINING]
    if 0 < len(training) < len(names) or (len(names) == len(folders) and nested):
        chosen = (training or folders)[0]
        raise UsageError(
            f"The folders in {str(path)!r} are parts of a data set, not classes: {_some(folders)}.",
            f"Give the one to train on: {path / chosen}.",
        )
    if names:
        tell(f"The folder {min(names)} is taken for a class of that name.")
    if nested:
        tell(f"Folders inside of class folders belong to the class: {_some(nested)}.")
    inside = (e for e in sorted(path.iterdir()) if e.name not in folders and not e.name.startswith("."))
    if empty := [e.name for e in inside if e.is_dir() and not is_run({file.name for file in e.iterdir()})]:
        tell(f"Folders without pictures are no classes: {_some(empty)}.")
    counts = Counter(part[0] for part in parts)
    if single := [name for name in folders if counts[name] == 1]:
        tell(f"Classes of a single picture: {_some(single)}.")
    check_names(folders, str(path), tell)


def _part(name: str) -> str:
    """First word of a folder's name that means a part of a data set, as in ``val2017``; else ""."""
    first, *others = re.split(r"[\W\d_]+", name.lower())
    return first if first in TRAINING | OTHER_PARTS and set(others) <= _PART_WORDS else ""


def check_names(names: Sequence[str], where: str, tell: Tell, lines: bool = False) -> None:
    """Refuse class names that a model cannot store, and report names that are easily confused.

    Args:
        names: names of the classes from 0 on.
        where: folder or file of the names, for messages.
        tell: called with a sentence about similar names.
        lines: true if ``where`` is a file with a name a line.

    Raises:
        CheckpointError: too many names, an empty one, a long one, or one that is not text.
    """
    if len(names) > MAX_CLASSES:
        raise CheckpointError(f"{where} has {len(names):,} classes, expected at most {MAX_CLASSES:,}.")
    for number, name in enumerate(names):
        place = f"Line {number + 1} of {where}" if lines else f"{where}: the name of class {number}"
        if not 0 < len(name) < MAX_CLASS_NAME or not name.isprintable():
            wrong = "unprintable characters" if not name.isprintable() else f"{len(name)} characters"
            raise CheckpointError(
                f"{place} has {wrong}: {name[:40]!r}.",
                f"Expected text of 1 to {MAX_CLASS_NAME - 1} characters.",
            )
    first: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if first.setdefault(name, number) != number:
            what = f"Lines {first[name]} and {number}" if lines else f"Classes {first[name]} and {number}"
            tell(f"{what} of {where} are both {name!r}: by name narcli asks for neither, only by id.")
    alike = Counter(unicodedata.normalize("NFC", name).casefold() for name in names)
    same = [name for name in names if alike[unicodedata.normalize("NFC", name).casefold()] > 1]
    if same:
        tell(f"Classes of the same name but for case or accents' encoding: {_some(list(map(ascii, same)))}.")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def read_array(path: Path) -> np.ndarray:
    """Map an array of a ``.npy`` file; nothing in it is run.

    Raises:
        CheckpointError: no such file, no array, an array of Python objects, or a damaged file.
    """
    check_regular(path)
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # damaged headers raise anything
        with path.open("rb") as file:
            start = file.read(2)
        reason = "an .npz archive" if start == b"PK" else f"damaged, or not an array ({first_line(error)})"
        raise CheckpointError(
            f"{path} is {reason if start else 'empty (0 bytes)'}.", "Write it with numpy.save."
        ) from None


def _load_arrays(path: Path, size: int | None, tell: Tell) -> Pictures:
    images = read_array(path / "images.npy")
    labels = read_array(path / "labels.npy") if os.path.lexists(path / "labels.npy") else None
    if images.ndim not in (4, 5) or images.shape[-1] != 3 or images.dtype != np.uint8 or not images.size:
        raise CheckpointError(
            f"images.npy in {str(path)!r} is {images.dtype} {images.shape}.",
            "Expected uint8 (N, H, W, 3), or (N, frames, H, W, 3) for clips.",
        )
    height, width = images.shape[-3:-1]
    if size is not None and (height, width) != (size, size):
        raise UsageError(f"The pictures are {width}x{height}, not {size}x{size}.")
    if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"):
        raise CheckpointError(
            f"labels.npy in {str(path)!r} is {labels.dtype} {labels.shape}.",
            f"Expected whole numbers ({len(images)},).",
        )
    if labels is None:
        return Pictures(images, None)
    if labels.min() < 0:
        raise CheckpointError(f"labels.npy in {str(path)!r} has {labels.min()}.", "Labels count from 0.")
    if labels.max() > np.iinfo(np.int64).max:
        raise CheckpointError(f"labels.npy in {str(path)!r} has {labels.max()}.", "Labels count from 0.")
    list_file = path / "classes.txt"
    names = read_names(list_file, tell) if os.path.lexists(list_file) else ()
    if names and len(names) <= labels.max():
        raise CheckpointError(
            f"{str(list_file)!r} has {len(names)} names, and the labels reach {labels.max()}.",
            "Give one name a line, for every label from 0.",
        )
    return Pictures(images, labels.astype(np.int64), names)


def read_names(path: Path, tell: Tell) -> tuple[str, ...]:
    """Read class names, one a line; empty lines at the end are ignored.

    Raises:
        CheckpointError: not UTF-8, or a name that a model cannot store.
    """
    names = [line.strip() for line in split_lines(read_text(path, "names of classes"))]
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise CheckpointError(
            f"Line {names.index('') + 1} of {path} is empty.", "Give one name a line, for every label from 0."
        )
    check_names(names, str(path), tell, lines=True)
    return tuple(names)
