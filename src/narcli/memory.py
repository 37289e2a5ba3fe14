"""Memory of a run, estimated from the sizes of its networks and files before they are loaded.

One function, ``estimate``, serves ``narcli models show``, ``--dry-run`` and the refusal of runs that are too
large. It begins with what the process holds, which depends on the build of torch. Weights that are read as
they are stored stay memory-mapped, and the system may drop their pages: what
it cannot drop is counted. ``docs/models.md`` says how close the estimates are.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch

from .devices import dtype_name
from .errors import MemoryLimitError
from .hub.catalog import MODELS, Model, smaller_models
from .hub.selection import Fetched
from .hub.sizes import Networks, networks_of
from .kernels import cache_numbers
from .limits import available, sizes_told
from .models.tokenizer import TokenizerConfig
from .order import Order
from .settings import DECODED_TOGETHER

# Measured on a CPU, see docs/models.md; tests compare them with runs on the build and processor at hand.
IMPORTED = 160 * 10**6  # bytes of Python and torch where the system does not tell: those of a CPU build
LATER = 60 * 10**6  # bytes of other libraries, threads and caches, which come while a run goes on
TRANSFORMERS = 95 * 10**6  # bytes of the library that runs text encoders
LOGITS = 8  # copies of a step's logits that drawing holds at once

# Bytes a pixel. Pillow holds a pixel of a picture in four, one of a palette in one.
RGB, PALETTE = 4, 1
GIF = RGB + 3 * PALETTE  # of each frame of an animation: itself, its palette frame, and Pillow's two copies
COLORS = 90  # of one frame, while its colours are counted
REPEATED = 16  # of each frame of a clip, while colours of its moving shades are fitted
PNG, DETAIL = 3, 0.4  # of a compressed picture at most; and what each pixel of an enlarged one adds
PIPED = 9  # of one frame on its way to ffmpeg
FFMPEG, AHEAD = 5, 60  # of each frame in ffmpeg, which looks ahead so many
FFMPEG_PROCESS = 60 * 10**6  # bytes of ffmpeg besides
WEBP = 48  # of one frame in Pillow's encoder

#: Cells that a batch chosen here decodes at once, at most: 16 images of 16x16 tokens, 4 clips of 4x16x16.
#: With so many rows, twice as many under guidance, computing takes longer than reading the weights of a CPU,
#: so that a larger batch has little to gain.
CELLS = 256
#: Samples that a batch chosen here has on a card, at most: memory decides below that.
MOST = 256
#: Samples of such a batch, at most, which counts in raster order. Each reads keys and values of its own. By
#: the sizes of released models, 8 to 23 samples have as many bytes of them as there are weights. No sample
#: is finished before all of its batch are.
SAMPLES = 32
ROOM = 0.8  # share of the available memory that a batch size chosen here fills: others use memory too


@dataclass(frozen=True)
class Memory:
    """Bytes that a run takes on its device, by what for; encoding, sampling and decoding take turns.

    Args:
        base: of the process and its libraries, whatever the model; none on a graphics card.
        weights: of transformer and tokenizer.
        sampling: key/value cache and the largest step.
        decoding: tokens to pixels; on a card the program that is kept for later batches, too.
        encoding: the text encoder, before the other weights are loaded.
        pictures: finished samples of a batch, and those kept for files that show several.
        writing: pictures on their way to a file; ffmpeg's memory is included.
    """

    base: int
    weights: int
    sampling: int
    decoding: int
    encoding: int = 0
    pictures: int = 0
    writing: int = 0

    @property
    def total(self) -> int:
        """At most, at any time."""
        turns = max(self.sampling, self.decoding, self.writing)
        return self.base + max(self.encoding, self.weights + self.pictures + turns)

    def document(self) -> dict[str, int]:
        """Return it as JSON."""
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True)
class Files:
    """The files that a run writes, as far as they take memory.

    Args:
        samples: how many there are in all.
        suffix: of their files; "" is a folder of PNGs.
        frames: written of each clip; None is all.
        scale: factor of enlarging; None chooses it by the size.
        frontier: ``gif``, ``mp4``, ``png``, ``html`` or ``none``.
        partials: whether the frontier's frames are decoded from the tokens of each step.
        sheet: whether all samples go on a contact sheet.
        labels: whether there are labels on it.
    """

    samples: int = 1
    suffix: str = ".png"
    frames: int | None = None
    scale: int | None = None
    frontier: str = "none"
    partials: bool = False
    sheet: bool = False
    labels: bool = False


def estimate(
    networks: Networks,
    dtype: torch.dtype,
    batch_size: int,
    *,
    guided: bool = True,
    device: str = "cpu",
    encode: bool = True,
    files: Files | None = None,
) -> Memory:
    """The memory of a run.

    Args:
        networks: what runs; a transformer and a tokenizer at least.
        dtype: of the weights.
        batch_size: samples decoded together.
        guided: whether classifier-free guidance doubles the rows.
        device: its type; a CPU decodes samples one by one.
        encode: whether the text encoder has to run, on the same device; in bfloat16 unless dtype is float32.
            One that is stored as it runs stays mapped, too.
        files: what is written, on a CPU; None is nothing.
    """
    c, tokenizer, size = networks.transformer, networks.tokenizer, dtype.itemsize
    assert c is not None and tokenizer is not None
    rows = batch_size * (2 if guided else 1)
    keys_and_values = cache_numbers(c, rows, dtype, torch.device(device)) * size
    logits = LOGITS * batch_size * c.decoding_order.widest * c.vocab_size * 4
    sampling = keys_and_values + logits + rows * c.activations * 4
    at_once = 1 if device == "cpu" else min(batch_size, DECODED_TOGETHER)
    encode = encode and networks.encoder > 0
    runs_in = torch.float32 if dtype == torch.float32 else torch.bfloat16
    mapped = runs_in == networks.encoder_stored and device == "cpu"
    encoding = networks.encoder * runs_in.itemsize if encode and not mapped else 0
    pictures, writing = (
        _files(files, tokenizer, c.decoding_order, batch_size) if files and device == "cpu" else (0, 0)
    )
    return Memory(
        base=base() + TRANSFORMERS * encode if device == "cpu" else 0,
        weights=networks.held(dtype, device) * size,
        sampling=sampling,
        decoding=at_once * tokenizer.decoding_bytes(c.grid, size) + (device == "cuda") * sampling,
        encoding=encoding,
        pictures=pictures,
        writing=writing,
    )


@cache
def base() -> int:
    """Bytes of this process, whatever the model: those held when first asked, and libraries to come.

    Torch is imported by then, so its build counts as it is. It is asked once, before a model is loaded:
    what the process takes for models later is not counted again.
    """
    return _held(IMPORTED) + LATER


def _held(otherwise: int) -> int:
    """Bytes of this process that no file backs; ``otherwise`` where the system does not tell."""
    with suppress(OSError, KeyError):
        return sizes_told(Path("/proc/self/status"))["RssAnon"]
    return otherwise


@cache
def _files(files: Files, tokenizer: TokenizerConfig, order: Order, batch_size: int) -> tuple[int, int]:
    """Bytes of finished samples, and of what is on its way to a file; arithmetic on pixels."""
    from .viz.frontier import frame_pixels, shown_samples, shown_steps
    from .viz.sheets import auto_scale, labelled_pixels

    try:
        frames, height, width = tokenizer.clip_size(order.sizes)
    except ValueError:  # they do not belong together, which is refused when they are loaded
        return 0, 0
    pixels = height * width
    scale = files.scale or auto_scale((height, width))
    large, many = pixels * scale**2, min(frames, files.frames or frames)
    png = round(PNG * pixels + DETAIL * large)
    enlarged = RGB * large * frames * (scale > 1)
    encoder = {
        ".mp4": _ffmpeg(large, many),
        ".gif": (GIF - RGB + REPEATED) * large * many + COLORS * large,
        ".webp": WEBP * large,
    }
    writing = [enlarged + encoder.get(files.suffix, png)]
    shown, kept = min(files.samples, shown_samples(order)), 0
    if files.frontier != "none":
        kept, steps = shown, len(shown_steps(order, still=files.frontier == "png"))
        decoded = files.partials or tokenizer.holistic or order.has_scales
        partials = RGB * pixels * frames * shown * steps * decoded
        one = frame_pixels(order, shown, frames, (width, height))
        drawn = steps + 1  # the last one twice, without anything bright
        kinds = {"gif": (GIF * drawn + COLORS) * one, "mp4": RGB * one * drawn + _ffmpeg(one, drawn)}
        writing.append(partials + kinds.get(files.frontier, RGB * one))
    if files.sheet:
        kept = files.samples
        each = labelled_pixels(width * scale, height * scale) if files.labels else large
        writing.append(round(files.samples * (RGB + DETAIL) * each) + RGB * large)
    return RGB * pixels * frames * min(files.samples, kept + batch_size), max(writing)


def _ffmpeg(pixels: int, frames: int) -> int:
    """Bytes that writing frames through ffmpeg takes, without the frames."""
    return FFMPEG_PROCESS + pixels * (PIPED + FFMPEG * min(frames, AHEAD))


def choose_batch_size(
    networks: Networks,
    dtype: torch.dtype,
    device: torch.device,
    samples: int | None = None,
    *,
    guided: bool = True,
    encode: bool = False,
    loaded: bool = False,
    files: Files | None = None,
) -> int:
    """Choose a batch size: as large as is of use, as memory holds and as there are samples; at least 1.

    Args:
        networks: what runs.
        samples: how many are wanted; None where that is not known yet.
        loaded: whether the weights are in memory already, with whatever else the process holds.

    The other arguments are those of ``estimate``.
    """
    assert networks.transformer is not None
    most = min(max(1, CELLS // networks.transformer.decoding_order.widest), SAMPLES)
    most = MOST if device.type == "cuda" else most
    most = min(most, samples or most)
    if most == 1 or (free := available(device, own=not loaded)) is None:
        return most

    def needed(size: int) -> int:
        taken = estimate(networks, dtype, size, guided=guided, device=device.type, encode=encode, files=files)
        return max(taken.sampling, taken.decoding) if loaded else taken.total

    return next((size for size in range(most, 1, -1) if needed(size) <= ROOM * free), 1)


def check(
    model: Model,
    networks: Networks,
    dtype: torch.dtype,
    batch_size: int,
    device: torch.device,
    *,
    guided: bool = True,
    encode: bool = False,
    files: Files | None = None,
) -> None:
    """Refuse a run that the memory cannot hold; the arguments are those of ``estimate``.

    Raises:
        MemoryLimitError: how much is needed and available; and what fits: a smaller batch, dtype or model.
    """
    free = available(device)

    def needed(
        other: Networks = networks,
        dtype: torch.dtype = dtype,
        batch_size: int = batch_size,
        files: Files | None = files,
    ) -> int:
        return estimate(
            other, dtype, batch_size, guided=guided, device=device.type, encode=encode, files=files
        ).total

    if free is None or needed() <= free:
        return
    fitting = []
    smaller = next((n for n in _halves(batch_size) if needed(batch_size=n) <= free), None)
    if smaller is not None:
        fitting.append((f"`batch_size={smaller}`", needed(batch_size=smaller)))
    for words, fewer in _lighter(files):
        if needed(files=fewer) <= free:
            fitting.append((words, needed(files=fewer)))
    if dtype == torch.float32 and needed(dtype=torch.bfloat16) <= free:
        fitting.append(("`dtype=bfloat16`", needed(dtype=torch.bfloat16)))
    sizes = {row.name: networks_of(row) for row in MODELS.values() if row.kind == model.kind}
    totals = {name: needed(other) for name, other in sizes.items() if other.runs}
    least = needed()
    for name in smaller_models(model, lambda row: totals.get(row.name, least) <= min(free, least - 1))[:1]:
        fitting.append((f"`model={name}`", totals[name]))
    listed = ", ".join(f"{words} ({size / 1e9:.1f} GB)" for words, size in fitting)
    raise MemoryLimitError(
        f"{model.name} needs about {least / 1e9:,.1f} GB of memory in {dtype_name(dtype)} "
        f"with batches of {batch_size}, and {free / 1e9:,.1f} GB are available.",
        f"What fits: {listed}." if fitting else "Nothing smaller is known that fits; free some memory.",
    )


def check_decoding(
    tokenizer: Fetched, order: Order, dtype: torch.dtype, device: torch.device, files: Files
) -> None:
    """Refuse to decode the tokens of an order, and to write ``files`` of them, where memory cannot hold that.

    Raises:
        MemoryLimitError: how much is needed and available.
    """
    networks, free = networks_of(tokenizer), available(device)
    config = networks.tokenizer
    assert config is not None
    on_cpu = device.type == "cpu"

    def needed(files: Files) -> int:
        pictures, writing = _files(files, config, order, 1) if on_cpu else (0, 0)
        return Memory(
            base=base() if on_cpu else 0,
            weights=networks.held(dtype, device.type) * dtype.itemsize,
            sampling=0,
            decoding=config.decoding_bytes(order.sizes, dtype.itemsize),
            pictures=pictures,
            writing=writing,
        ).total

    if free is not None and needed(files) > free:
        fitting = [(words, needed(fewer)) for words, fewer in _lighter(files) if needed(fewer) <= free]
        listed = ", ".join(f"{words} ({size / 1e9:.1f} GB)" for words, size in fitting)
        raise MemoryLimitError(
            f"Decoding a grid of {order.cells:,} tokens needs about {needed(files) / 1e9:,.1f} GB of "
            f"memory, and {free / 1e9:,.1f} GB are available.",
            f"What fits: {listed}." if fitting else "Free some memory, or use a larger machine.",
        )


def _lighter(files: Files | None) -> list[tuple[str, Files]]:
    """Options that leave files out, or make them smaller, and what is left."""
    if files is None:
        return []
    options = [
        ("`frontier=none`", replace(files, frontier="none")),
        ("`scale=1`", replace(files, scale=1)),
        ("no `sheet`", replace(files, sheet=False, labels=False)),
    ]
    return [(words, fewer) for words, fewer in options if fewer != files]


def _halves(number: int) -> list[int]:
    """16 -> [8, 4, 2, 1]."""
    return [number >> shift for shift in range(1, number.bit_length())]
