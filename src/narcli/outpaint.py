"""Given pictures and clips that a model goes on from: read, brought to its shape, encoded, kept in part.

The tokens of the kept cells are taken from the picture, and the model draws the others.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .encoding import read_frames, to_pixels
from .errors import CheckpointError, UsageError, first_line
from .media.textfiles import expand, open_regular
from .order import Order, format_grid
from .settings.keep import Init, Keep

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image
    from torch import Tensor

    from .models.tokenizer import Tokenizer, TokenizerConfig

Tell = Callable[[str], object]
HALF = 0.5  # share of the cells, or frames of a clip, that is kept by default
LIGHT = 128  # least level of a mask that is light, of 255


def encode(source: Any, keep: Keep, tokenizer: Tokenizer, order: Order, tell: Tell = warnings.warn) -> Init:
    """Encode a given picture or clip, and choose the cells that are kept.

    Args:
        source: a file, a folder of frames, an ``Init``, a picture of Pillow, or an array (height, width, 3)
            of uint8; for clips also several pictures, or an array (frames, height, width, 3). A clip that is
            shorter than the model's is encoded with its last frame repeated.
        keep: choice of the cells; none for an ``Init`` that a file recorded.
        tokenizer: tokenizer of the model.
        order: order of its tokens.
        tell: called with a sentence about what is left out.

    Returns:
        The kept cells and their tokens.

    Raises:
        UsageError: a choice that the model does not have, or that keeps nothing.
        CheckpointError: a file that cannot be read, or recorded tokens of another model.
        MemoryLimitError: the memory is too small.
    """
    import torch

    from .devices import computing, memory_guard

    check_keep(source, keep, order, tokenizer.config)
    length, height, width = tokenizer.config.clip_size(order.sizes)
    init = read(source, len(order.sizes) == 3, length, tell)
    if not init.pictures:
        return _checked(init, order, tokenizer.config)
    first, count = init.pictures[0], len(init.pictures)
    cells = kept_cells(
        keep, order, length, count, lambda: _mask(keep, first.size, (width, height), order, tell)
    )
    pictures = [shaped(picture, width, height, keep.fit) for picture in init.pictures[:length]]
    weight, guard = next(tokenizer.parameters()), memory_guard("Free some memory, or try `dtype=bfloat16`.")
    with guard, computing(weight.device, weight.dtype), torch.inference_mode():
        pixels = to_pixels(pictures, tokenizer)
        is_clip = len(order.sizes) == 3
        codes = tokenizer.encode_given(pixels, length) if is_clip else tokenizer.encode(pixels[:, :, 0])
    tokens = tuple(codes[0, list(cells)].tolist())
    return Init(init.name, init.sha256, grid=order.sizes, cells=cells, tokens=tokens)


def given_tokens(init: Init, cells: int) -> Tensor:
    """Return the kept tokens for ``sampling.generate``: (1, cells) int64, -1 where one is drawn."""
    import torch

    given = torch.full((1, cells), -1)
    given[0, list(init.cells)] = torch.tensor(init.tokens)
    return given


def check_source(source: Any, keep: Keep, clip: bool, tell: Tell) -> None:
    """Read a given picture, or the first frame of a clip, and the mask, only to find faults early.

    Raises:
        UsageError, CheckpointError: as ``encode``.
    """
    read(source, clip, 1, tell)
    if keep.keep_mask is not None:
        _read_mask(keep.keep_mask, lambda note: None)


def check_keep(source: Any, keep: Keep, order: Order, tokenizer: TokenizerConfig) -> None:
    """Compare a choice of cells with the order and the sizes of a model.

    Raises:
        UsageError: they do not fit.
    """
    if order.has_scales:
        raise UsageError(
            "`init` keeps cells of one grid, and this model draws scales, each of which changes the whole "
            "picture.",
            "Use a model of another order.",
        )
    if isinstance(source, Init) and not source.pictures:
        return  # its cells are chosen
    placed = keep.keep is None and not keep.keep_cells
    if tokenizer.holistic and placed:
        raise UsageError(
            "No token of this model has a place in the frames, so neither frames nor parts of them can be "
            "kept.",
            "Keep a share of the tokens, each of the whole clip: `keep=50%`.",
        )
    for text, ranges in zip(keep.keep_cells, keep.rectangles, strict=True):
        if len(ranges) != len(order.sizes) or any(
            each.stop > size for each, size in zip(ranges, order.sizes, strict=True)
        ):
            numbers = ", ".join(f"0-{size - 1}" for size in order.sizes)
            raise UsageError(
                f"`keep_cells` is {text[:40]!r}, and the grid of this model is {format_grid(order.sizes)}.",
                f"Give ranges within {numbers}.",
            )
    if keep.keep_frames is not None:
        made = tokenizer.clip_size(order.sizes)[0]
        each = made // order.sizes[0]
        if keep.keep_frames > made or keep.keep_frames % each:
            raise UsageError(
                f"`keep_frames` is {keep.keep_frames}, but a token of this model covers {each} frames of its "
                f"{made}.",
                f"Give a multiple of {each}, at most {made}.",
            )


def _checked(init: Init, order: Order, tokenizer: TokenizerConfig) -> Init:
    """Return recorded tokens unchanged if they are of the model's grid and codes."""
    fits = init.grid == order.sizes and len(init.tokens) == len(init.cells) > 0
    if not fits or init.cells[-1] >= order.cells or max(init.tokens) >= tokenizer.codebook_size:
        raise CheckpointError(
            f"The recorded tokens of {init.name} are not of this model, or only their hash is recorded.",
            "Give the picture or clip again: `init=PATH`.",
        )
    return init


# --- reading ---------------------------------------------------------------------------------------


def read(source: Any, clip: bool, most: int, tell: Tell = warnings.warn) -> Init:
    """Read a picture, or the first frames of a clip; arguments as ``encode``.

    Args:
        source: as ``encode``.
        clip: read frames.
        most: frames to read at most.
        tell: called with a sentence about frames of a picture that are left out.

    Raises:
        UsageError: an array that is no picture.
        CheckpointError: a file that cannot be read.
    """
    from .viz.sheets import read_picture

    if isinstance(source, Init):
        return source
    if isinstance(source, str | Path):
        path = expand(source)
        pictures = read_frames(path, most) if clip else [read_picture(path, tell)]
        known = "" if path.is_dir() else _hash(path)
        return Init(path.name or path.resolve().name, known, tuple(pictures))
    if not clip:
        return Init("a picture", pictures=(_picture(source, "init"),))
    several = isinstance(source, Sequence) or getattr(source, "ndim", 0) == 4
    frames = list(source)[:most] if several else [source]
    if not frames:
        raise UsageError("`init` holds no frames.", "Give at least one.")
    return Init("a clip", pictures=tuple(_picture(frame, "init") for frame in frames))


def _hash(path: Path) -> str:
    """SHA-256 of a file."""
    known = sha256()
    with open_regular(path) as file:
        while part := file.read(2**20):
            known.update(part)
    return known.hexdigest()


def _picture(source: Any, name: str) -> Image.Image:
    """Convert a picture of Pillow, or an array of uint8 or bool, to RGB as a viewer shows it."""
    import numpy as np
    from PIL import Image

    from .viz.sheets import as_shown

    if isinstance(source, Image.Image):
        try:
            return as_shown(source)
        except Exception as error:  # damaged pictures raise anything
            raise CheckpointError(f"`{name}` cannot be read as a picture: {first_line(error)}.") from error
    levels = np.asarray(source)
    if levels.dtype == bool:
        levels = levels * np.uint8(255)
    shape = levels.shape
    if (
        levels.dtype != np.uint8
        or levels.ndim not in (2, 3)
        or shape[2:] not in ((), (3,), (4,))
        or 0 in shape
    ):
        raise UsageError(
            f"`{name}` is an array of the shape {shape} and the type {levels.dtype}, expected "
            "(height, width, 3) of uint8."
        )
    return as_shown(Image.fromarray(levels))


def shaped(picture: Image.Image, width: int, height: int, fit: str | None = None) -> Image.Image:
    """Bring a picture to a size in pixels.

    Args:
        picture: RGB, or the levels of a mask.
        width, height: pixels.
        fit: as in ``Keep``. The margins of a mask are dark.
    """
    from PIL import Image, ImageOps

    is_mask = picture.mode == "L"
    sampled = Image.Resampling.BOX if is_mask else Image.Resampling.LANCZOS
    if fit != "pad":
        return ImageOps.fit(picture, (width, height), sampled)
    scale = min(width / picture.width, height / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    canvas = Image.new(picture.mode, (width, height), 0 if is_mask else "white")
    canvas.paste(picture.resize(size, sampled), ((width - size[0]) // 2, (height - size[1]) // 2))
    return canvas


# --- choice of the cells ---------------------------------------------------------------------------


def kept_cells(
    keep: Keep,
    order: Order,
    length: int = 1,
    count: int = 1,
    mask: Callable[[], npt.NDArray[np.bool_]] | None = None,
) -> tuple[int, ...]:
    """Return the flat indices of the kept cells, ascending.

    Args:
        keep: choice of the cells.
        order: order of the model.
        length: frames of its clips.
        count: frames that are given.
        mask: function that returns the cells that ``keep_mask`` keeps of a slice of time, (rows, columns).

    Raises:
        UsageError: none is kept, or the clip has fewer frames than are kept.
    """
    import numpy as np

    kept = np.zeros(order.sizes, bool)
    if keep.keep_mask is not None and mask is not None:
        kept[...] = mask()
        if not kept.any():
            raise UsageError("`keep_mask` keeps no cell: each is dark for the most part.", "White is kept.")
    elif keep.keep_cells:
        for ranges in keep.rectangles:
            kept[tuple(slice(each.start, each.stop) for each in ranges)] = True
    elif keep.keep is None and len(order.sizes) == 3:
        each = length // order.sizes[0]
        frames = keep.keep_frames or each * ceil(order.sizes[0] * HALF)
        if count < frames:
            raise UsageError(
                f"`keep_frames` is {frames}, and the clip has {count}.", "Give fewer, or a longer clip."
            )
        kept[: frames // each] = True
    else:
        share, flat = HALF if keep.keep is None else keep.keep, kept.reshape(-1)
        for cells in order.steps:
            if flat.sum() >= float(share) * order.cells - 1e-6:
                break
            flat[list(cells)] = True
    return tuple(np.flatnonzero(kept).tolist())


def _read_mask(source: Any, tell: Tell) -> Image.Image:
    """Read a mask as levels of one channel, as a viewer shows it."""
    from .viz.sheets import read_picture

    if isinstance(source, str | Path):
        return read_picture(expand(source), tell).convert("L")
    return _picture(source, "keep_mask").convert("L")


def _mask(
    keep: Keep, size: tuple[int, int], shape: tuple[int, int], order: Order, tell: Tell
) -> npt.NDArray[np.bool_]:
    """Scale a mask to the cells of a slice of time.

    Args:
        keep: has the mask, and how the picture is brought to the model's shape.
        size: (width, height) of the given picture, which the mask is laid over.
        shape: (width, height) of the model's pictures.
        order: order of the model.
        tell: called with a sentence if the mask is of another size.
    """
    import numpy as np
    from PIL import Image

    box = Image.Resampling.BOX
    mask = _read_mask(keep.keep_mask, tell).point([255 * (level >= LIGHT) for level in range(256)])
    if mask.size != size:
        tell(
            f"The mask is {mask.width}x{mask.height} pixels and the picture {size[0]}x{size[1]}: it is "
            "stretched over the picture."
        )
        mask = mask.resize(size, box)
    rows, columns = order.sizes[-2:]
    levels = np.asarray(shaped(mask, *shape, keep.fit)).reshape(rows, shape[1] // rows, columns, -1)
    kept: npt.NDArray[np.bool_] = levels.mean((1, 3)) > 127.5
    return kept
