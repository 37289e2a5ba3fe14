"""Conditions: prompts, encoded once and cached on disk, and given frames.

The encoder of prompts is in memory only while it encodes. The cache, in the user's cache folder, holds the
features of each cleaned prompt. A run with a cached prompt loads no encoder and does not import transformers.
The cache is bounded, and may be removed at any time. Given frames are encoded by the model's tokenizer.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import chain
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .classes import ClassTable
from .errors import CheckpointError, NarError, UsageError
from .hub.sources import EncoderFiles, Files
from .media import atomic
from .media.atomic import write_atomic
from .media.ffmpeg import read_clip
from .media.textfiles import expand, unreadable
from .prompts import Prompt, parse_prompt, shorten
from .settings import GivenFrames, Sample, Subject

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from .checkpoints.text_encoder import Encoded
    from .models.network import NetworkConfig
    from .models.tokenizer import Tokenizer

MAX_CACHED = 2**28  # bytes of the cache; the oldest go first
GIVEN = 5  # frames that are given of a clip, as in LARP (arXiv 2410.21264, section 4)
CHUNK = 1024  # prompts that are encoded and held in memory together
#: Clips whose first frames are given.
Clips = str | Path | GivenFrames | Sequence[str | Path | GivenFrames]
#: By the condition of a model, an error for other subjects.
_WANTED = {
    "class": ("This model makes images of classes.", "Give classes=[207]."),
    "text": ("This model makes images from text.", "Give prompts=['a red apple']."),
    "frames": ("This model goes on from given frames.", "Give frames_from='clip.mp4'."),
}


class PromptEncoder:
    """Conditions of prompts, from the cache or from a T5 encoder that is loaded only to encode.

    Args:
        files: files of the encoder.
        tokens: condition tokens of the transformer.
        width: width of the features that the transformer takes.
        device: where the encoder runs; ``auto`` chooses.
        dtype: ``bfloat16`` or ``float32``.
        warn: called with a sentence for each prompt that is cut.
        note: called with a sentence for each prompt that is drawn as another name.
    """

    def __init__(
        self,
        files: EncoderFiles,
        tokens: int,
        width: int,
        device: str = "auto",
        dtype: str = "bfloat16",
        warn: Callable[[str], object] = warnings.warn,
        note: Callable[[str], object] = lambda text: None,
    ) -> None:
        self.files, self.tokens, self.width, self.device, self.dtype = files, tokens, width, device, dtype
        self.warn, self.note = warn, note
        self._known: dict[str, Encoded] = {}

    @property
    def source(self) -> dict[str, Any]:
        """The encoder's entry in metadata."""
        return self.files.about() | {"dtype": self.dtype}

    def encode(
        self, prompts: Iterable[Prompt], least: int = 0, make_room: Callable[[], object] = lambda: None
    ) -> None:
        """Encode the first ``CHUNK`` different prompts, and drop earlier ones from memory.

        Args:
            prompts: in the order in which they will be needed.
            least: number of leading prompts that are encoded in any case.
            make_room: called before the encoder is loaded.

        Raises:
            CheckpointError: the encoder cannot be used, or does not belong to the transformer.
            HubError: it could not be fetched.
            MemoryLimitError: too large for this machine.
        """
        chosen: dict[str, Prompt] = {}
        for index, prompt in enumerate(prompts):
            if index >= least and len(chosen) >= CHUNK:
                break
            chosen.setdefault(prompt.cleaned, prompt)
        known = {text: found for text in chosen if (found := self._known.get(text) or self._read(text))}
        if missing := [text for text in chosen if text not in known]:
            make_room()
            known |= self._run_encoder(missing)
        for text, prompt in chosen.items():
            if text in self._known:
                continue
            if dropped := known[text].dropped:
                self.warn(
                    f"The prompt {str(prompt)!r} is longer than the model takes; "
                    f"dropped: {shorten(dropped, 300)!r}"
                )
            if (name := known[text].drawn_as) not in ("", text):
                self.note(f"The prompt {str(prompt)!r} is drawn as {name!r}, the nearest name that is known.")
        self._known = known

    def condition(
        self,
        prompts: Sequence[Prompt],
        upcoming: Iterable[Prompt] = (),
        make_room: Callable[[], object] = lambda: None,
    ) -> tuple[Tensor, Tensor]:
        """Features of B prompts, left-padded: (B, C, width), and (B, C) bool, true for padding.

        Missing prompts are encoded, together with upcoming ones; errors and ``make_room`` as in ``encode``.
        """
        from .checkpoints.text_encoder import left_pad

        if any(prompt.cleaned not in self._known for prompt in prompts):
            self.encode(chain(prompts, upcoming), least=len(prompts), make_room=make_room)
        return left_pad([self._known[prompt.cleaned].features for prompt in prompts], self.tokens)

    def about(self, prompt: Prompt) -> dict[str, str]:
        """Fields of an encoded prompt in metadata: as typed, as cleaned, as drawn, and its dropped end."""
        encoded = self._known[prompt.cleaned]
        about = {"prompt": prompt.text, "cleaned_prompt": prompt.cleaned}
        more = {"drawn_as": encoded.drawn_as, "dropped": encoded.dropped}
        return about | {name: text for name, text in more.items() if text}

    def _run_encoder(self, texts: Sequence[str]) -> dict[str, Encoded]:
        """Load the encoder, encode the texts, and release the encoder."""
        from .devices import DTYPES, choose_device, computing, memory_guard, release

        device = choose_device(self.device)
        with memory_guard("The text encoder is too large; try `text_device=cpu`."):
            from .checkpoints.text_encoder import T5Encoder

            folder = self.files.folder()
            encoder = T5Encoder.load(folder, DTYPES[self.dtype], device)
            if encoder.width != self.width:
                raise CheckpointError(
                    f"The text encoder {folder.name} makes features of {encoder.width} numbers, "
                    f"and the model takes {self.width}.",
                    "They do not belong together; give the right `text_encoder`.",
                )
            with computing(device, DTYPES[self.dtype]):
                found = dict(zip(texts, encoder.encode_all(texts, self.tokens), strict=True))
            del encoder
        release(device)
        for text, encoded in found.items():
            write_cached(self.files.identity, self.dtype, text, self.tokens, encoded)
        prune()
        return found

    def _read(self, text: str) -> Encoded | None:
        found = read_cached(self.files.identity, self.dtype, text, self.tokens)
        return found if found is not None and found.features.shape[1] == self.width else None


def encoder_dtype(dtype: str) -> str:
    """Number format of an encoder for a model in ``dtype``: float32 for float32, else bfloat16."""
    return "float32" if dtype == "float32" else "bfloat16"


def all_cached(files: EncoderFiles, prompts: Iterable[Prompt], dtype: str) -> bool:
    """Tell, without torch, whether the cache has files for all prompts."""
    numbers = encoder_dtype(dtype)
    return all(cached_path(files.identity, numbers, prompt.cleaned).is_file() for prompt in prompts)


# --- on disk -------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Folder of encoded prompts; it may be removed at any time."""
    from platformdirs import user_cache_path

    return user_cache_path("narcli") / "prompts"


def cached_path(identity: str, dtype: str, text: str) -> Path:
    """Cache file of a cleaned prompt and an encoder."""
    from hashlib import sha256

    key = sha256("\0".join(("2", identity, dtype, text)).encode()).hexdigest()
    return cache_folder() / f"{key}.safetensors"


def read_cached(identity: str, dtype: str, text: str, tokens: int) -> Encoded | None:
    """Read cached features of a prompt; None if there are none for that many condition tokens."""
    from safetensors import SafetensorError, safe_open

    from .checkpoints.text_encoder import Encoded

    path = cached_path(identity, dtype, text)
    try:
        with safe_open(path, "pt") as file:
            about, features = file.metadata() or {}, file.get_tensor("features").clone()
        dropped, limit, name = about["dropped"], int(about["tokens"]), about.get("drawn_as", "")
    except (OSError, SafetensorError, KeyError, ValueError):  # missing, damaged, or of another release
        return None
    if features.dim() != 2 or not 0 < len(features) <= tokens or (dropped and limit != tokens):
        return None
    with suppress(OSError):
        os.utime(path)  # the age of a file counts from its last use
    return Encoded(features, dropped, name)


def write_cached(identity: str, dtype: str, text: str, tokens: int, encoded: Encoded) -> None:
    """Write an encoded prompt to the cache; do nothing if the cache cannot be written."""
    from safetensors.torch import save

    about = {"dropped": encoded.dropped, "drawn_as": encoded.drawn_as, "tokens": str(tokens)}
    data = save({"features": encoded.features.contiguous()}, about)
    with suppress(NarError):
        write_atomic(cached_path(identity, dtype, text), data, overwrite=True)


def prune(most: int = MAX_CACHED) -> None:
    """Remove the files of the cache that were not used for longest, beyond ``most`` bytes in all."""
    atomic.prune(cache_folder(), most)


# --- subjects ------------------------------------------------------------------------------------


def subjects_of(
    condition: str,
    table: ClassTable,
    classes: int | str | Sequence[int | str] | None,
    prompts: str | Sequence[str] | None,
    frames_from: Clips | None,
) -> Sequence[Subject]:
    """Return the subjects that are given for a model of a condition: classes, prompts or given frames.

    Raises:
        UsageError: an unknown class, an unusable prompt, or subjects of another condition.
        CheckpointError: a clip that cannot be read.
    """
    given = {"class": classes, "text": prompts, "frames": frames_from}
    if [name for name, value in given.items() if value is not None] != [condition]:
        raise UsageError(*_WANTED[condition])
    if prompts is not None:
        return [parse_prompt(text) for text in ([prompts] if isinstance(prompts, str) else prompts)]
    if frames_from is not None:
        clips = [frames_from] if isinstance(frames_from, str | Path | GivenFrames) else frames_from
        return [clip if isinstance(clip, GivenFrames) else read_given(clip) for clip in clips]
    assert classes is not None
    chosen = [classes] if isinstance(classes, int | str) else classes
    return [table.by_id(name) if isinstance(name, int) else table.lookup(name) for name in chosen]


def prompt_encoder(
    files: Files,
    device: str = "auto",
    dtype: str = "auto",
    warn: Callable[[str], object] = warnings.warn,
    note: Callable[[str], object] = lambda text: None,
) -> PromptEncoder | None:
    """Make the encoder of the prompts of a model of images from text; None for other models.

    Raises:
        CheckpointError: a file that cannot be used, or of a model that takes no text.
    """
    from .checkpoints.load import transformer_config

    if files.encoder is None:
        return None
    sizes = transformer_config(files.model.path, kind="text", grid=files.model.model.grid)
    return PromptEncoder(
        files.encoder, sizes.condition_tokens, sizes.caption_dim, device, encoder_dtype(dtype), warn, note
    )


def read_given(path: str | Path) -> GivenFrames:
    """Read the first ``GIVEN`` frames of a clip, or all of a shorter one; otherwise as ``read_frames``.

    Raises:
        UsageError: an empty path.
    """
    if path == "":
        raise UsageError("`frames_from` is empty.", "Give a clip, or a folder of its frames as pictures.")
    path = expand(path)
    pictures = read_frames(path, GIVEN)
    return GivenFrames(path.name or path.resolve().name, len(pictures), tuple(pictures))


def read_frames(path: Path, most: int) -> list[Image.Image]:
    """Read the first frames of a clip.

    Args:
        path: a video, an animation, a picture, or a folder of pictures in the order of their numbers.
        most: frames to read at most.

    Returns:
        RGB pictures, at least one.

    Raises:
        UsageError: an empty path, which would mean the present folder.
        CheckpointError: no such file, no frames in it, or a damaged one.
    """
    from .viz.sheets import read_picture, read_pictures, suffixes

    if path.is_dir():
        try:
            files = [file for file in path.iterdir() if file.suffix.lower() in suffixes()]
        except OSError as error:
            raise unreadable(path, error) from None
        files = sorted((file for file in files if file.name[0] != "."), key=_numbered)[:most]
        pictures = [read_picture(file, lambda note: None) for file in files]
    else:
        pictures = read_pictures(path, most) or read_clip(path, most)
    if not pictures:
        raise CheckpointError(
            f"The folder {path} holds no pictures.", "Give a clip, or a folder of its frames as pictures."
        )
    return pictures


def _numbered(file: Path) -> list[str | int]:
    """Key that sorts ``2.png`` before ``10.png``."""
    parts: list[str | int] = list(re.split("([0-9]+)", file.name))
    parts[1::2] = map(int, parts[1::2])  # the others hold no digits of these
    return parts


def encode_samples(samples: Sequence[Sample], tokenizer: Tokenizer, config: NetworkConfig) -> list[Sample]:
    """Encode the given frames of samples, each clip once; recorded codes are checked.

    Args:
        samples: of the model's subjects; those without given frames stay as they are.
        tokenizer: the model's.
        config: sizes of the model.

    Raises:
        CheckpointError: recorded codes that are not of this model, or only their hash.
        MemoryLimitError: the memory is too small.
    """
    from .devices import computing, memory_guard

    weight = next(tokenizer.parameters())
    made: dict[int, GivenFrames] = {}
    guard = memory_guard("Free some memory, or try `dtype=bfloat16`.")
    with guard, computing(weight.device, weight.dtype):
        for frames in (sample.entry for sample in samples):
            if isinstance(frames, GivenFrames) and id(frames) not in made:
                made[id(frames)] = _encode(frames, tokenizer, config.grid) if frames.pictures else frames
    for frames in made.values():
        if len(frames.codes) != prod(config.grid) or max(frames.codes) >= config.vocab_size:
            raise CheckpointError(
                f"The recorded codes of the frames given from {frames.name} do not belong to this model.",
                "Give the clip again: `frames_from=PATH`.",
            )
    return [Sample(made.get(id(sample.entry), sample.entry), sample.seed) for sample in samples]


def _encode(frames: GivenFrames, tokenizer: Tokenizer, grid: tuple[int, ...]) -> GivenFrames:
    """Encode the middle of given frames as codes; at least one frame of a clip is left to be made."""
    import torch

    from .viz.sheets import fit

    length, height, width = tokenizer.config.clip_size(grid)
    pictures = frames.pictures[: max(1, length - 1)]
    pixels = to_pixels([fit(picture, width, height) for picture in pictures], tokenizer)
    with torch.inference_mode():
        codes = tokenizer.encode_given(pixels, length)
    return GivenFrames(frames.name, len(pictures), codes=tuple(codes[0].tolist()))


def to_pixels(pictures: Sequence[Image.Image], tokenizer: Tokenizer) -> Tensor:
    """Convert f RGB pictures of one size to what a tokenizer encodes: (1, 3, f, H, W)."""
    import numpy as np
    import torch

    levels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).movedim(-1, 0)[None]
    weight, (black, white) = next(tokenizer.parameters()), tokenizer.pixel_range
    return (black + levels.float() / 255 * (white - black)).to(weight)
