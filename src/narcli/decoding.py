"""Tokens to pixels: pictures, and clips as tuples of frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from .checkpoints.load import load_tokenizer, load_transformer
from .devices import choose_device, choose_dtype, computing, memory_guard
from .errors import CheckpointError
from .hub.sources import Files
from .kernels import prepare_tokenizer
from .models.blocks import Kind
from .models.multiscale import MultiscaleConfig, MultiscaleTokenizer
from .models.network import Network
from .models.tokenizer import Tokenizer, TokenizerConfig
from .models.var import VARTransformer
from .order import NAR, Order, format_grid, named
from .settings import DECODED_TOGETHER

Clip = tuple[Image.Image, ...]


def check_pair(
    who: object, order: Order, tokenizer: TokenizerConfig, where: object, codes: int | None = None
) -> None:
    """Check that a tokenizer decodes the tokens of a model.

    Args:
        who: the model, for messages.
        order: of the tokens.
        tokenizer: sizes of the tokenizer.
        where: its name or path, for messages.
        codes: number of codes that the model draws from; None leaves it open.

    Raises:
        CheckpointError: they do not belong together.
    """
    hint = "They do not belong together; give the right `tokenizer`."
    scaled = order.name.startswith("var")
    try:
        if scaled != isinstance(tokenizer, MultiscaleConfig):
            raise ValueError("grids without scales" if scaled else "the scales of VAR")
        tokenizer.clip_size(order.sizes)
    except ValueError as error:
        what = f"grids of {format_grid(order.sizes)} tokens" + " in the scales of VAR" * scaled
        raise CheckpointError(
            f"{who} draws {what}, and the tokenizer {where} is for {error}.", hint
        ) from None
    if codes not in (None, tokenizer.codebook_size):
        raise CheckpointError(
            f"{who} draws from {codes} codes, and the tokenizer {where} has {tokenizer.codebook_size}.", hint
        )


def load_networks(
    files: Files, device: torch.device, dtype: torch.dtype, order: str | None = None
) -> tuple[Network, Tokenizer]:
    """Load the transformer and its tokenizer.

    Raises:
        UsageError: an order that the model does not have.
        CheckpointError: a file that cannot be used, or two that do not belong together.
    """
    known, kind = files.model.model, cast(Kind, files.model.model.kind)
    transformer = load_transformer(
        files.model.path, kind=kind, grid=known.grid, dtype=dtype, device=device, keep=True
    )
    sizes = transformer.config = transformer.config.decoded_in(order)
    tokenizer = load_tokenizer(files.tokenizer.path, dtype=dtype, device=device, keep=True)
    check_pair(
        files.model.path, sizes.decoding_order, tokenizer.config, files.tokenizer.path, sizes.vocab_size
    )
    if isinstance(transformer, VARTransformer) and isinstance(tokenizer, MultiscaleTokenizer):
        try:
            transformer.use(tokenizer)
        except ValueError as error:
            raise CheckpointError(
                f"{files.model.path} takes {error}, and the tokenizer {files.tokenizer.path} has others.",
                "They do not belong together; give the right `tokenizer`.",
            ) from None
    return transformer, tokenizer


def load_decoder(
    path: Path, grid: tuple[int, ...], device: str = "auto", dtype: str = "auto", order: str = NAR
) -> TokenDecoder:
    """Load a tokenizer that turns tokens into pictures, without a transformer.

    Args:
        path: a tokenizer, a file or a folder.
        grid: of the tokens.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``.
        order: name of the order in which they were drawn.

    Raises:
        UsageError, CheckpointError, MemoryLimitError: as ``load``.
    """
    place = choose_device(device)
    with memory_guard("Try `dtype=bfloat16`."):
        tokenizer = load_tokenizer(path, dtype=choose_dtype(dtype, place), device=place, keep=True)
        prepare_tokenizer(tokenizer)
    drawn_in = named(order, grid)
    check_pair("The model of the tokens", drawn_in, tokenizer.config, path)
    if isinstance(tokenizer, MultiscaleTokenizer):
        tokenizer.sides = tuple(side for side, _ in drawn_in.panels)
    return TokenDecoder(tokenizer, drawn_in)


class Decodes(ABC):
    """Base of everything that turns tokens into pictures or clips: a tokenizer and a token grid."""

    tokenizer: Tokenizer

    def __repr__(self) -> str:
        width, height = self.size
        return (
            f"<{type(self).__name__}: {self.kind}s of {width}x{height}, grid {format_grid(self.grid)}, "
            f"{self.device}>"
        )

    @property
    @abstractmethod
    def order(self) -> Order:
        """Decoding order of the tokens."""

    @property
    def grid(self) -> tuple[int, ...]:
        """Sizes of the grid of tokens."""
        return self.order.sizes

    @torch.inference_mode()
    def decode(self, tokens: Tensor) -> list[Clip]:
        """Decode tokens to B clips; a picture is a clip of one frame.

        Args:
            tokens: (B, N) int64 in raster order, -1 where missing; see ``Tokenizer.embed``.
        """
        with computing(self.device, next(self.tokenizer.parameters()).dtype):
            vectors = self.tokenizer.embed(tokens.to(self.device), self.grid)
        return self.decode_vectors(vectors)

    @torch.inference_mode()
    def decode_vectors(self, vectors: Tensor) -> list[Clip]:
        """Decode vectors of ``Tokenizer.embed``, (B, N, C), to B clips."""
        # One at a time on a CPU: equally fast, a sixteenth of the memory, and equal in every batch.
        together, count = 1 if self.device.type == "cpu" else DECODED_TOGETHER, len(vectors)
        if count > together:  # equal parts, since rounding on a card depends on their size
            vectors = torch.cat([vectors, vectors[-1:].expand(-count % together, -1, -1)])
        parts = vectors.split(together)
        grid, limits = self.grid, self.tokenizer.pixel_range
        with computing(self.device, next(self.tokenizer.parameters()).dtype):
            decoded = (self.tokenizer.decode_vectors(part, grid) for part in parts)
            return [clip for pixels in decoded for clip in to_clips(pixels, limits)][:count]

    def partials(
        self,
        tokens: Sequence[Tensor],
        steps: Sequence[int] | None = None,
        stages: Sequence[Tensor] | None = None,
        given: Sequence[int] = (),
    ) -> Iterator[list[Clip]]:
        """Decode, for each step of the order, the tokens so far: B times (N,) -> B clips a step.

        Args:
            tokens: of each sample.
            steps: indices of the steps to decode; None is all.
            stages: ``Result.stages`` of each sample, which are decoded in place of the tokens.
            given: flat indices of cells whose tokens are there from the beginning.
        """
        known_at, stacked = torch.tensor(self.order.step_of), torch.stack(list(tokens))
        known_at[list(given)] = -1
        for step in range(len(self.order.steps)) if steps is None else steps:
            if stages is None:
                yield self.decode(torch.where(known_at <= step, stacked, -1))
            else:
                yield self.decode_vectors(torch.stack([each[step] for each in stages]).to(self.device))

    @property
    def kind(self) -> str:
        """``image`` or ``video``."""
        return "video" if len(self.grid) == 3 else "image"

    @property
    def device(self) -> torch.device:
        """Device that the tokenizer runs on."""
        return next(self.tokenizer.parameters()).device

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the pictures or frames."""
        _, height, width = self.tokenizer.config.clip_size(self.grid)
        return width, height


@dataclass(frozen=True, repr=False)
class TokenDecoder(Decodes):
    """A tokenizer alone, for existing tokens that were drawn in an order."""

    tokenizer: Tokenizer
    drawn_in: Order

    @property
    def order(self) -> Order:
        """Decoding order of the tokens."""
        return self.drawn_in


def hash_tokens(tokens: Tensor) -> str:
    """SHA-256 of the ids as 32-bit little-endian integers, raster order."""
    return sha256(tokens.cpu().numpy().astype("<i4").tobytes()).hexdigest()


def to_clips(pixels: Tensor, limits: tuple[float, float] = (-1.0, 1.0)) -> list[Clip]:
    """Convert tokenizer output to RGB pictures.

    Args:
        pixels: (B, 3, H, W) or (B, 3, frames, H, W); values outside of ``limits`` are clamped.
        limits: values of black and white.
    """
    black, white = limits
    levels = (pixels.float().clamp(black, white) - black) * (255 / (white - black))
    arrays = levels.round().to(torch.uint8).movedim(1, -1).cpu().numpy()  # (B, [frames,] H, W, 3)
    clips = arrays if pixels.dim() == 5 else arrays[:, None]
    return [tuple(map(Image.fromarray, clip)) for clip in clips]
