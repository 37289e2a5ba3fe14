"""Training pictures: a folder of image files or a prepared array."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import CheckpointError, UsageError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class Pictures:
    """Pictures of one size and, where known, their classes.

    Args:
        images: uint8 (N, H, W, 3), possibly mapped from a file.
        labels: int64 (N,), class of each, or None.
        names: name of each class; empty where not known.
    """

    images: np.ndarray
    labels: np.ndarray | None
    names: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 without labels."""
        return 0 if self.labels is None else max(len(self.names), int(self.labels.max()) + 1)

    def digest(self) -> str:
        """A hash of pictures and labels."""
        known = sha256(np.ascontiguousarray(self.images).data)
        if self.labels is not None:
            known.update(self.labels.tobytes())
        return known.hexdigest()

    def batch(self, indices: np.ndarray) -> Tensor:
        """float32 (B, 3, H, W) in [-1, 1]."""
        return to_unit(torch.from_numpy(self.images[indices]))


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1]."""
    # Contiguous: the backward pass of group normalisation is many times slower channels-last on a CPU.
    return pixels.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def load_pictures(path: Path, size: int | None = None) -> Pictures:
    """Read training pictures.

    Args:
        path: a folder with ``images.npy`` (uint8, N x H x W x 3) and perhaps ``labels.npy`` (N), or a folder
            of image files, ``class/name.png``: the sorted names of the sub-folders are the classes.
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
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or not len(images):
        raise CheckpointError(
            f"images.npy in {str(path)!r} is {images.dtype} {images.shape}.", "Expected uint8 (N, H, W, 3)."
        )
    if size is not None and images.shape[1:3] != (size, size):
        raise UsageError(f"The pictures are {images.shape[2]}x{images.shape[1]}, not {size}x{size}.")
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
