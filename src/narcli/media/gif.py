"""One palette for a whole animation, chosen so that flat colours are exact and shades do not band.

Only pixels that change between frames are counted, and every colour once. This is several times faster than
quantizing frames one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

Bytes = npt.NDArray[np.uint8]

COLORS = 255  # the last of the 256 marks unchanged pixels

# Ordered dithering is fixed to its place, so nothing flickers between frames.
_BAYER = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]])


def palette_frames(frames: Sequence[Image.Image]) -> tuple[bytes, list[Image.Image]]:
    """Quantize RGB frames of one size: return a palette of 256 colours, and P frames.

    With at most 255 colours the frames are exact. Otherwise the colours of even areas are kept exactly;
    the others are fitted by median cut and mixed from two palette colours where they lie between them.
    """
    width, height = frames[0].size
    each = [np.unique(seen, return_counts=True) for _, seen in _changes(frames)]
    colors, inverse = np.unique(np.concatenate([seen for seen, _ in each]), return_inverse=True)
    counts = np.zeros(len(colors), np.int64)
    np.add.at(counts, inverse.ravel(), np.concatenate([number for _, number in each]))

    palette, near, far, share = _fit(_unpack(colors), counts)
    threshold = np.tile((_BAYER + 0.5) / 16, (height // 4 + 1, width // 4 + 1))[:height, :width].ravel()
    used = palette.astype(np.int64) @ (1 << 16, 1 << 8, 1)
    spare = np.setdiff1d(np.arange(512), used)[: 256 - len(palette)]  # Pillow is slow where colours repeat
    table = palette.tobytes() + _unpack(spare).tobytes()
    current: Bytes = np.zeros(height * width, np.uint8)
    result = []
    for at, seen in _changes(frames):
        color = np.searchsorted(colors, seen)
        current[at] = np.where(threshold[at] < share[color], far[color], near[color])
        frame = Image.fromarray(current.reshape(height, width).copy())
        frame.putpalette(table)
        result.append(frame)
    return table, result


def _changes(
    frames: Sequence[Image.Image],
) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.uint32]]]:
    """Flat indices of the pixels of each frame that differ from the frame before, and their 0xRRGGBB.

    Two frames at a time are in memory.
    """
    last = None
    for frame in frames:
        packed = _pack(frame).ravel()
        at = np.arange(packed.size) if last is None else np.flatnonzero(packed != last)
        yield at, packed[at]
        last = packed


def _fit(rgb: Bytes, counts: npt.NDArray[np.int64]) -> tuple[Bytes, Bytes, Bytes, npt.NDArray[np.float64]]:
    """Palette (at most 255, 3); for each of n colours the nearest entry, a second one and its share."""
    if len(rgb) <= COLORS:
        index = np.arange(len(rgb), dtype=np.uint8)
        return rgb, index, index, np.zeros(len(rgb))
    flat = np.argsort(-counts, kind="stable")[: COLORS // 2]
    flat = flat[counts[flat] > counts.sum() // 2000]
    soft = np.setdiff1d(np.arange(len(rgb)), flat)
    repeats = np.minimum(counts[soft], 64)  # large areas must not take the whole palette
    shades = Image.fromarray(rgb[np.repeat(soft, repeats)[None]])
    room = COLORS - len(flat)
    fitted = shades.quantize(room, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).getpalette() or []
    extra = np.unique(np.array(fitted[: 3 * room], np.uint8).reshape(-1, 3), axis=0)
    palette = np.concatenate([rgb[flat], extra])

    near = _nearest(rgb, palette)
    near[flat] = np.arange(len(flat))
    target, first = rgb.astype(float), palette[near].astype(float)
    far = _nearest((2 * target - first).clip(0, 255).astype(np.uint8), palette)
    between = palette[far] - first
    share = ((target - first) * between).sum(1) / np.maximum((between**2).sum(1), 1)
    share[flat] = 0
    share[(between**2).sum(1) > 48**2] = 0  # far apart, the pattern would show
    return palette, near, far, share


def _nearest(rgb: Bytes, palette: Bytes) -> Bytes:
    """Find the nearest of ``palette`` (m, 3) for each of ``rgb`` (n, 3): indices (n,)."""
    table = Image.new("P", (1, 1))
    table.putpalette(palette.tobytes())
    index = Image.fromarray(rgb[None]).quantize(palette=table, dither=Image.Dither.NONE)
    return np.array(index).reshape(len(rgb))


def _pack(image: Image.Image) -> npt.NDArray[np.uint32]:
    return (np.asarray(image.convert("RGBX")).view(">u4")[..., 0] >> 8).astype(np.uint32)


def _unpack(colors: npt.NDArray[np.integer]) -> Bytes:
    """Unpack colours 0xRRGGBB (n,) to uint8 (n, 3)."""
    return np.stack([colors >> 16, colors >> 8 & 255, colors & 255], axis=1).astype(np.uint8)
