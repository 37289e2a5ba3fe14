"""Training pictures and clips: a folder of image files or a prepared array."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from math import lcm
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import CheckpointError, UsageError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class Pictures:
    """Pictures or clips of one size and, where known, their classes.

    Args:
        images: uint8 (N, H, W, 3), or (N, frames, H, W, 3) for clips; possibly mapped from a file.
        labels: int64 (N,), class of each, or None.
        names: name of each class; empty where not known.
        starts: items that each clip gives, from as many frames on, evenly spread; those after the first go on
            from the last frame to the first.
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
        """int64 (items,)."""
        return None if self.labels is None else self.labels.repeat(self.starts)

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 without labels."""
        return 0 if self.labels is None else max(len(self.names), int(self.labels.max()) + 1)

    def digest(self) -> str:
        """A hash of pictures and labels."""
        known = sha256(np.ascontiguousarray(self.images).data)
        if self.labels is not None:
            known.update(self.labels.tobytes())
        if self.starts > 1 or self.length:
            known.update(f"{self.starts} {self.length}".encode())
        return known.hexdigest()

    def loops(self, starts: int) -> Pictures:
        """The same clips as loops that begin anywhere: ``starts`` items each.

        Raises:
            UsageError: no clips, or a number that does not divide their frames.
        """
        if starts < 1 or (starts > 1 and (not self.frames or self.frames % starts)):
            raise UsageError(
                f"--loop-starts is {starts}, and there are "
                + (f"clips of {self.frames} frames." if self.frames else "no clips."),
                "Give a number that divides the frames.",
            )
        return replace(self, starts=starts)

    def pieces(self, length: int) -> Pictures:
        """The clips in pieces of ``length`` frames, for a tokenizer that sees no more at once.

        Pieces begin at every multiple of ``length``, and wherever a loop begins.
        """
        return replace(self, starts=lcm(self.starts, self.frames // length), length=length)

    def pixels(self, indices: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, 3) or (B, frames, H, W, 3)."""
        if not self.frames:
            return self.images[indices]
        clips, start = np.divmod(indices, self.starts)
        along = np.arange(self.length or self.frames)
        return self.images[
            clips[:, None], (start[:, None] * self.frames // self.starts + along) % self.frames
        ]

    def batch(self, indices: np.ndarray) -> Tensor:
        """float32 (B, 3, H, W) or (B, 3, frames, H, W) in [-1, 1]."""
        return to_unit(torch.from_numpy(self.pixels(indices)))


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 (B, ..., 3) -> float32 (B, 3, ...) in [-1, 1]."""
    # Contiguous: the backward pass of group normalisation is many times slower channels-last on a CPU.
    return pixels.movedim(-1, 1).contiguous().float() / 127.5 - 1


def load_pictures(path: Path, size: int | None = None) -> Pictures:
    """Read training pictures.

    Args:
        path: a folder with ``images.npy`` (uint8, N x H x W x 3, or N x frames x H x W x 3 for clips) and
            perhaps ``labels.npy`` (N), or a folder of image files, ``class/name.png``: the sorted names of
            the sub-folders are the classes.
        size: side in pixels of the (square) pictures; image files are fitted and centre-cropped to it,
            with transparency on white. Required for image files, checked for arrays.

    Raises:
        UsageError: nothing usable is there, or the size does not fit.
        CheckpointError: a file there cannot be read.
    """
    if (path / "images.npy").is_file():
        return _load_arrays(path, size)
    if not path.is_dir():
        raise UsageError(f"{str(path)!r} is not a folder.", "Give a folder of pictures (class/name.png).")
    if size is None:
        raise UsageError(f"{str(path)!r} holds image files, so a size is needed.", "Add --size 128.")
    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES and not hidden(f, path))
    if not files:
        raise UsageError(
            f"No pictures in {str(path)!r}.",
            "Expected images.npy, or files class/name.png (also jpg, webp, bmp).",
        )
    images = np.empty((len(files), size, size, 3), np.uint8)
    for i, file in enumerate(files):
        images[i] = _read(file, size)
    folders = sorted({f.relative_to(path).parts[0] for f in files if f.parent != path})
    if not folders:
        return Pictures(images, None)
    if any(f.parent == path for f in files):
        raise UsageError(
            f"{str(path)!r} holds pictures both directly and in class folders.",
            "Put every picture into the folder of its class.",
        )
    labels = np.array([folders.index(f.relative_to(path).parts[0]) for f in files])
    return Pictures(images, labels, tuple(folders))


def _load_arrays(path: Path, size: int | None) -> Pictures:
    try:
        images = np.load(path / "images.npy", mmap_mode="r")
        labels = np.load(path / "labels.npy") if (path / "labels.npy").is_file() else None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"The arrays in {str(path)!r} cannot be read: {error}.") from error
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
    known = path / "classes.txt"
    names = tuple(known.read_text("utf-8").splitlines()) if known.is_file() else ()
    if names and len(names) <= labels.max():
        raise CheckpointError(
            f"{str(known)!r} has {len(names)} names, and the labels reach {labels.max()}.",
            "Give one name a line, for every label from 0.",
        )
    return Pictures(images, labels.astype(np.int64), names)


def hidden(file: Path, folder: Path) -> bool:
    """Whether a part of the path below ``folder`` starts with a dot, as what macOS leaves does."""
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _read(file: Path, size: int) -> np.ndarray:
    try:
        with Image.open(file) as opened:
            picture = opened.convert("RGBA")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise CheckpointError(f"{str(file)!r} cannot be read as a picture: {error}.") from error
    canvas = Image.new("RGBA", picture.size, "white")
    canvas.alpha_composite(picture)
    ratio = size / min(canvas.size)
    fitted = canvas.convert("RGB").resize(
        (max(size, round(canvas.width * ratio)), max(size, round(canvas.height * ratio))),
        Image.Resampling.LANCZOS,
    )
    left, top = (fitted.width - size) // 2, (fitted.height - size) // 2
    return np.asarray(fitted.crop((left, top, left + size, top + size)))
