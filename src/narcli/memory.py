"""How much memory a run takes, told by the sizes of its networks and files before they are loaded.

One function, ``estimate``, serves ``narcli models show``, ``--dry-run`` and the refusal of runs that are too
large. It begins with what the process holds, which depends on the build of torch. Weights that are read as
they are stored stay memory-mapped, and the system may drop their pages: what
it cannot drop is counted. ``docs/models.md`` says how close the estimates are.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import torch

from . import conversions
from .checkpoints import build, load_tokenizer, transformer_config
from .configs import CONFIG, TEXT_ENCODER
from .devices import DTYPES
from .errors import MemoryLimitError
from .hub import Fetched, Located, cached
from .kernels.native import cache_shape, can_fuse
from .models.larp import LARPConfig
from .models.text import read_sizes
from .models.transformer import TransformerConfig, ffn_dim
from .models.vq import VQConfig
from .order import neighbor
from .registry import MODELS, TEXT_ENCODER_OF_RELEASED, Model, has_own_tokenizer, smaller_models
from .settings import DECODED_TOGETHER

#: (layers, attention heads, width) of the released sizes.
SIZES = {
    "B": (12, 12, 768),
    "M": (18, 16, 1024),
    "L": (24, 16, 1024),
    "LP": (30, 20, 1280),
    "XL": (36, 20, 1280),
    "XXL": (48, 24, 1536),
}  # fmt: skip
#: Parameters of a released text encoder.
ENCODERS = {TEXT_ENCODER_OF_RELEASED: 1_223_527_424}

# Measured on a CPU, see docs/models.md; tests compare them with runs on the build and processor at hand.
IMPORTED = 160 * 10**6  # bytes of Python and torch where the system does not tell: those of a CPU build
LATER = 60 * 10**6  # bytes of other libraries, threads and caches, which come while a run goes on
TRANSFORMERS = 95 * 10**6  # bytes of the library that runs text encoders
LOGITS = 8  # copies of a step's logits that drawing holds at once
PLANES = 10  # copies of its largest layer that a convolutional decoder holds at once

# Bytes a pixel. Pillow holds a pixel of a picture in four, one of a palette in one.
RGB, PALETTE = 4, 1
GIF = RGB + 3 * PALETTE  # of each frame of an animation: itself, its palette frame, and Pillow's two copies
COLORS = 90  # of one frame, while its colours are counted
PNG, DETAIL = 3, 0.4  # of a compressed picture at most; and what each pixel of an enlarged one adds
PIPED = 9  # of one frame on its way to ffmpeg
FFMPEG, AHEAD = 5, 60  # of each frame in ffmpeg, which looks ahead so many
FFMPEG_PROCESS = 20 * 10**6  # bytes of ffmpeg besides
WEBP = 16  # of one frame in Pillow's encoder

#: Cells that a batch chosen here decodes at once, at most: 16 images of 16x16 tokens, 4 clips of 4x16x16.
#: With so many rows, twice as many under guidance, computing takes longer than reading the weights, on CPUs
#: and on graphics cards, so that a larger batch has little to gain.
CELLS = 256
ROOM = 0.8  # share of the available memory that a batch size chosen here fills: others use memory too


@dataclass(frozen=True)
class Memory:
    """Bytes that a run takes on its device, by what for; encoding, sampling and decoding take turns.

    Args:
        base: of the process and its libraries, whatever the model; none on a graphics card.
        weights: of transformer and tokenizer.
        sampling: key/value cache and the largest step.
        decoding: tokens to pixels.
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
        """As JSON."""
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True)
class Files:
    """The files that a run writes, as far as they take memory.

    Args:
        samples: how many there are in all.
        suffix: of their files; "" is a folder of PNGs.
        frames: written of each clip; None is all.
        scale: factor of enlarging; None chooses it by the size.
        frontier: ``gif``, ``mp4``, ``png`` or ``none``.
        partials: whether the frontier's frames are decoded from the tokens of each step.
        sheet: whether all samples go on a contact sheet.
    """

    samples: int = 1
    suffix: str = ".png"
    frames: int | None = None
    scale: int | None = None
    frontier: str = "none"
    partials: bool = False
    sheet: bool = False


@dataclass(frozen=True)
class Networks:
    """The sizes of what a model runs with.

    Args:
        transformer: None of a tokenizer or text encoder alone.
        tokenizer: None of a text encoder alone, or of a transformer whose tokenizer is not known.
        encoder: parameters of the text encoder; 0 where there is none.
        stored: number format of the tokenizer's file.
        encoder_stored: likewise, of the text encoder's.
    """

    transformer: TransformerConfig | None = None
    tokenizer: VQConfig | LARPConfig | None = None
    encoder: int = 0
    stored: torch.dtype = torch.float32
    encoder_stored: torch.dtype = torch.float32

    @property
    def runs(self) -> bool:
        """Whether all is known that an estimate takes."""
        return self.transformer is not None and self.tokenizer is not None

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Number of parameters by part."""
        parts = {"transformer": self.transformer, "tokenizer": self.tokenizer}
        counts = {name: _count(config) for name, config in parts.items() if config is not None}
        return counts | ({"text_encoder": self.encoder} if self.encoder else {})

    def held(self, dtype: torch.dtype, device: str) -> int:
        """Parameters of transformer and tokenizer that take memory besides the pages of their files.

        A transformer is laid out anew, and so is the decoder of a convolutional tokenizer; what is left of a
        tokenizer stays mapped, a large one of another dtype from its converted copy, unless it is moved.
        """
        assert self.tokenizer is not None
        held, count = self.parameters.get("transformer", 0), self.parameters["tokenizer"]
        copied = dtype.itemsize < self.stored.itemsize and count * self.stored.itemsize >= conversions.LEAST
        if device != "cpu" or (dtype != self.stored and not copied):
            return held + count
        return held + (_count(self.tokenizer, "decoder.") if isinstance(self.tokenizer, VQConfig) else 0)


@cache
def _count(config: TransformerConfig | VQConfig | LARPConfig, part: str = "") -> int:
    return sum(p.numel() for name, p in build(config).named_parameters() if name.startswith(part))


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
    rows, widest = batch_size * (2 if guided else 1), c.order.widest
    length = c.condition_tokens + c.order.slots
    keys_and_values = c.total_layers * 2 * rows * length * c.dim * size
    if can_fuse(c, dtype, torch.device(device)):
        keys_and_values = math.prod(cache_shape(c, rows, length)) * size
    logits = LOGITS * batch_size * widest * c.vocab_size * 4
    hidden = rows * max(widest, c.condition_tokens) * (8 * c.dim + 3 * c.ffn_dim) * 4
    at_once = 1 if device == "cpu" else min(batch_size, DECODED_TOGETHER)
    encode = encode and networks.encoder > 0
    runs_in = torch.float32 if dtype == torch.float32 else torch.bfloat16
    mapped = runs_in == networks.encoder_stored and device == "cpu"
    encoding = networks.encoder * runs_in.itemsize if encode and not mapped else 0
    pictures, writing = _files(files, tokenizer, c.grid, batch_size) if files and device == "cpu" else (0, 0)
    return Memory(
        base=base() + TRANSFORMERS * encode if device == "cpu" else 0,
        weights=networks.held(dtype, device) * size,
        sampling=keys_and_values + logits + hidden,
        decoding=at_once * _decoding(tokenizer, c.grid, dtype),
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
def _files(
    files: Files, tokenizer: VQConfig | LARPConfig, grid: tuple[int, ...], batch_size: int
) -> tuple[int, int]:
    """Bytes of finished samples, and of what is on its way to a file; arithmetic on pixels."""
    from .frontier import frame_pixels, shown_samples
    from .pictures import auto_scale

    try:
        frames, height, width = tokenizer.clip_size(grid)
    except ValueError:  # they do not belong together, which is refused when they are loaded
        return 0, 0
    order, pixels = neighbor(grid), height * width
    scale = files.scale or auto_scale((height, width))
    large, many = pixels * scale**2, min(frames, files.frames or frames)
    png = round(PNG * pixels + DETAIL * large)
    enlarged = RGB * large * frames * (scale > 1)
    encoder = {
        ".mp4": _ffmpeg(large, many),
        ".gif": (GIF - RGB) * large * many + COLORS * large,
        ".webp": WEBP * large,
    }
    writing = [enlarged + encoder.get(files.suffix, png)]
    shown, kept = min(files.samples, shown_samples(order)), 0
    if files.frontier != "none":
        kept, steps = shown, len(order.steps)
        partials = RGB * pixels * frames * shown * steps * (files.partials or tokenizer.holistic)
        one = frame_pixels(order, shown, frames, (width, height))
        kinds = {"gif": (GIF * steps + COLORS) * one, "mp4": RGB * one * steps + _ffmpeg(one, steps)}
        writing.append(partials + kinds.get(files.frontier, RGB * one))
    if files.sheet:
        kept = files.samples
        writing.append(round(files.samples * (RGB + DETAIL) * large) + RGB * large)
    return RGB * pixels * frames * min(files.samples, kept + batch_size), max(writing)


def _ffmpeg(pixels: int, frames: int) -> int:
    """Bytes that writing frames through ffmpeg takes, without the frames."""
    return FFMPEG_PROCESS + pixels * (PIPED + FFMPEG * min(frames, AHEAD))


def _decoding(tokenizer: VQConfig | LARPConfig, grid: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes held at once while one sample is decoded."""
    if isinstance(tokenizer, LARPConfig):
        tokens = tokenizer.bottleneck_token_num + math.prod(tokenizer.decoder_patches)
        return 16 * tokens * tokenizer.decoder_hidden_size * 4  # whatever the dtype, as measured
    pixels = math.prod(grid) * (tokenizer.downsampling // tokenizer.patch) ** 2
    # Each level has a quarter of the pixels of the one before.
    largest = pixels * math.ceil(max(tokenizer.ch * m / 4**i for i, m in enumerate(tokenizer.ch_mult)))
    return PLANES * largest * dtype.itemsize


def available(device: torch.device, own: bool = True) -> int | None:
    """Bytes that a run may take on a device; None where not known.

    On a CPU: what Linux calls available, and swap, within the limits of the process and its control group.

    Args:
        device: where it runs.
        own: whether what this process holds already is included.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + own * torch.cuda.memory_reserved(device)
    try:
        system = sizes_told(Path("/proc/meminfo"))
        process = sizes_told(Path("/proc/self/status"))
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    import resource

    held = own * process.get("RssAnon", 0)
    found = [system.get("MemAvailable", 0) + system.get("SwapFree", 0) + held]
    for kind, taken in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            found.append(limit - process.get(taken, 0) + held)
    return max(0, min([*found, *(most - taken + held for most, taken in _control_groups())]))


def sizes_told(path: Path) -> dict[str, int]:
    """The sizes of a file of ``/proc`` in bytes, by name."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0][:-1]: int(words[1]) * 1024 for words in lines if words[2:] == ["kB"]}


def _control_groups() -> list[tuple[int, int]]:
    """(limit, taken) in bytes of each control group that limits this process, of version 1 or 2.

    A container sees its own group at the root, under a name that may not exist there.
    """
    found, root = [], Path("/sys/fs/cgroup")
    # Files of the limit, and the lines of memory.stat that cannot be dropped, as cached files can.
    version_1 = root / "memory", "memory.limit_in_bytes", ("total_rss", "total_shmem")
    version_2 = root, "memory.max", ("anon", "shmem")
    try:
        lines = Path("/proc/self/cgroup").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if "memory" in controllers.split(","):
            mount, file, kinds = version_1
        elif number == "0" and not controllers:
            mount, file, kinds = version_2
        else:
            continue
        group = mount / name.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(mount):
                break
            with suppress(OSError, ValueError):  # no limit here, or "max"
                most = int((folder / file).read_text())
                stat = (text.split() for text in (folder / "memory.stat").read_text().splitlines())
                taken = {key: int(value) for key, value in stat}
                found.append((most, sum(taken.get(kind, 0) for kind in kinds)))
    return found


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
    """As many samples decoded together as are of use, as the memory holds, and as there are; at least 1.

    Args:
        networks: what runs.
        samples: how many are wanted; None where that is not known yet.
        loaded: whether the weights are in memory already, with whatever else the process holds.

    The other arguments are those of ``estimate``.
    """
    assert networks.transformer is not None
    most = min(max(1, CELLS // networks.transformer.order.widest), samples or CELLS)
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
        fitting.append((f"--batch-size {smaller}", needed(batch_size=smaller)))
    for words, fewer in _lighter(files):
        if needed(files=fewer) <= free:
            fitting.append((words, needed(files=fewer)))
    if dtype == torch.float32 and needed(dtype=torch.bfloat16) <= free:
        fitting.append(("--dtype bfloat16", needed(dtype=torch.bfloat16)))
    sizes = {row.name: networks_of(row) for row in MODELS.values() if row.kind == model.kind}
    totals = {name: needed(other) for name, other in sizes.items() if other.runs}
    least = needed()
    for name in smaller_models(model, lambda row: totals.get(row.name, least) <= min(free, least - 1))[:1]:
        fitting.append((f"--model {name}", totals[name]))
    listed = ", ".join(f"{words} ({size / 1e9:.1f} GB)" for words, size in fitting)
    raise MemoryLimitError(
        f"{model.name} needs about {least / 1e9:,.1f} GB of memory in {str(dtype).removeprefix('torch.')} "
        f"with batches of {batch_size}, and {free / 1e9:,.1f} GB are available.",
        f"What fits: {listed}." if fitting else "Nothing smaller is known that fits; free some memory.",
    )


def check_decoding(
    tokenizer: Fetched, grid: tuple[int, ...], dtype: torch.dtype, device: torch.device, files: Files
) -> None:
    """Refuse to decode the tokens of a grid, and to write ``files`` of them, where memory cannot hold that.

    Raises:
        MemoryLimitError: how much is needed and available.
    """
    networks, free = networks_of(tokenizer), available(device)
    config = networks.tokenizer
    assert config is not None
    on_cpu = device.type == "cpu"

    def needed(files: Files) -> int:
        pictures, writing = _files(files, config, grid, 1) if on_cpu else (0, 0)
        return Memory(
            base=base() if on_cpu else 0,
            weights=networks.held(dtype, device.type) * dtype.itemsize,
            sampling=0,
            decoding=_decoding(config, grid, dtype),
            pictures=pictures,
            writing=writing,
        ).total

    if free is not None and needed(files) > free:
        fitting = [(words, needed(fewer)) for words, fewer in _lighter(files) if needed(fewer) <= free]
        listed = ", ".join(f"{words} ({size / 1e9:.1f} GB)" for words, size in fitting)
        raise MemoryLimitError(
            f"Decoding a grid of {math.prod(grid):,} tokens needs about {needed(files) / 1e9:,.1f} GB of "
            f"memory, and {free / 1e9:,.1f} GB are available.",
            f"What fits: {listed}." if fitting else "Free some memory, or use a larger machine.",
        )


def _lighter(files: Files | None) -> list[tuple[str, Files]]:
    """Options that leave files out, or make them smaller, and what is left."""
    if files is None:
        return []
    options = [
        ("--frontier none", replace(files, frontier="none")),
        ("--scale 1", replace(files, scale=1)),
        ("no --grid", replace(files, sheet=False)),
    ]
    return [(words, fewer) for words, fewer in options if fewer != files]


def _halves(number: int) -> list[int]:
    """16 -> [8, 4, 2, 1]."""
    return [number >> shift for shift in range(1, number.bit_length())]


# --- sizes of models -----------------------------------------------------------------------------


def networks_of(
    model: Model | Located | Fetched,
    tokenizer: Model | Located | None = None,
    encoder: Model | Located | None = None,
) -> Networks:
    """The sizes of a model and what it runs with, as far as they are known; from the files if here.

    Args:
        model: a model, or a tokenizer or text encoder alone.
        tokenizer: None is the one of the model's folder, or of its row.
        encoder: likewise, of a model of images from text.

    Raises:
        CheckpointError: a file that cannot be used.
    """
    row, path = _row_and_path(model)
    if row.kind == "text-encoder":
        count, stored = _encoder(row, path)
        return Networks(encoder=count, encoder_stored=stored)
    if row.kind.endswith("-tokenizer"):
        config, stored = _tokenizer(row, path)
        return Networks(tokenizer=config, stored=stored)
    own = path is not None and tokenizer is None and has_own_tokenizer(path)
    other = tokenizer or (MODELS[row.tokenizer] if row.tokenizer else None)
    text = encoder or (MODELS[row.text_encoder] if row.text_encoder else None)
    encoding = (0, torch.float32)
    if text is not None:
        encoding = _encoder(*_row_and_path(text))
    elif row.kind == "text" and path is not None:
        folder = path if path.is_dir() else path.parent
        encoding = _encoder(row, folder / TEXT_ENCODER)
    sizes = transformer_config(path, grid=row.grid) if path is not None else released_config(row)
    if other is not None and not own:
        row, path = _row_and_path(other)
    config, stored = _tokenizer(row, path) if own or other else (None, torch.float32)
    return Networks(sizes, config, encoding[0], stored, encoding[1])


def _row_and_path(model: Model | Located | Fetched) -> tuple[Model, Path | None]:
    if isinstance(model, Fetched):
        return model.model, model.path
    if isinstance(model, Located):
        here = model.copy
        model = model.model
    else:
        here = cached(model)
    return (here.model, here.path) if here else (model, None)


def _tokenizer(row: Model, path: Path | None) -> tuple[VQConfig | LARPConfig | None, torch.dtype]:
    """The sizes of a tokenizer, as far as they are known, and the number format of its file."""
    if path is not None:
        tokenizer = load_tokenizer(path, dtype=None, device="meta")
        return tokenizer.config, next(tokenizer.parameters()).dtype
    if row.name not in MODELS:
        return None, torch.float32
    return (LARPConfig() if row.kind == "video-tokenizer" else VQConfig()), torch.float32


def _encoder(row: Model, path: Path | None) -> tuple[int, torch.dtype]:
    """Parameters of a T5 encoder and the number format of its files, from its config.json.

    No parameters where that is not here; float32 where it does not say.

    Raises:
        CheckpointError: it is not of a T5, or a value is not what it should be.
    """
    if path is None:
        return ENCODERS.get(row.name, 0), torch.float32
    folder = path if path.is_dir() else path.parent
    if not os.path.lexists(folder / CONFIG):
        return 0, torch.float32
    said = read_sizes(folder)
    d, inner = said["d_model"], said["num_heads"] * said["d_kv"]
    layer = (
        4 * d * inner + (3 if said["feed_forward_proj"].startswith("gated") else 2) * d * said["d_ff"] + 2 * d
    )
    buckets = said["relative_attention_num_buckets"] * said["num_heads"]
    stored = DTYPES.get(said.get("dtype", ""), torch.float32)
    return said["num_layers"] * layer + said["vocab_size"] * d + buckets + d, stored


def released_config(row: Model) -> TransformerConfig | None:
    """The sizes of a released transformer that the registry knows, from the paper; None for other models."""
    if row.scale is None or row.grid is None:
        return None
    layers, heads, dim = SIZES[row.scale]
    video, text = row.kind == "video", row.kind == "text"
    return TransformerConfig(
        row.grid, dim, layers, heads, 8192 if video else 16384, ffn_dim(dim),
        condition="text" if text else "class",
        num_classes=0 if text else 101 if video else 1000,
        condition_tokens=120 if text else 1,
        caption_dim=2048 if text else 0,
        position="absolute" if video else "rotary",
    )  # fmt: skip
