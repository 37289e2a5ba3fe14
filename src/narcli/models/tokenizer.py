"""Faces that tokenizers of all families have: of their sizes, and of the network."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn


class TokenizerConfig(Protocol):
    """Sizes of a tokenizer: a frozen dataclass.

    Args:
        holistic: no token belongs to a place, so that pictures cannot be uncovered cell by cell.
        laid_out: what the names of the parameters begin with that take memory of their own on a CPU. The
            others stay mapped from their file. "" is none.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    holistic: ClassVar[bool]
    laid_out: ClassVar[str]

    def __hash__(self) -> int:
        """Sizes are keys of caches."""

    @property
    def kind(self) -> str:
        """``image-tokenizer`` or ``video-tokenizer``."""

    @property
    def codebook_size(self) -> int:
        """Number of codes, the vocabulary of the transformer."""

    def clip_size(self, grid: tuple[int, ...]) -> tuple[int, int, int]:
        """(frames, height, width) of what is decoded from a grid; a picture has one frame.

        Raises:
            ValueError: a grid that the tokenizer has no pictures or clips of.
        """

    def decoding_bytes(self, grid: tuple[int, ...], itemsize: int) -> int:
        """Bytes held at once while one grid is decoded, in numbers of ``itemsize`` bytes."""


class Tokenizer(nn.Module):
    """Network that turns pictures or clips into codes and back.

    Args:
        config: its sizes.
        pixel_range: values of black and white.
        quantize: codes below ``config.codebook_size`` to their vectors, (B, N) int64 -> (B, N, C).
    """

    config: TokenizerConfig
    pixel_range: tuple[float, float]
    quantize: nn.Module

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """Encode pictures (B, 3, H, W) or clips (B, 3, frames, H, W) to codes: (B, N) int64."""

    def embed(self, codes: Tensor, grid: tuple[int, ...] = ()) -> Tensor:
        """Look up the vectors that are decoded.

        Args:
            codes: (B, N) int64 below ``config.codebook_size``, raster order; -1 (missing) is the average
                code.
            grid: as for ``decode``.

        Returns:
            (B, N, C).
        """
        vectors = self.quantize(codes.clamp(min=0))
        every = torch.arange(self.config.codebook_size, device=codes.device)
        average = self.quantize(every).float().mean(0).to(vectors.dtype)
        return torch.where((codes < 0)[..., None], average, vectors)

    def encode_given(self, frames: Tensor, length: int) -> Tensor:
        """Encode the first frames of a clip, the last of them repeated (LARP's frame prediction).

        Args:
            frames: (B, 3, f, H, W) in ``pixel_range``, f from 1 to ``length``.
            length: frames of a clip.

        Returns:
            (B, N) int64 codes.
        """
        last = frames[:, :, -1:].expand(-1, -1, length - frames.shape[2], -1, -1)
        return self.encode(torch.cat([frames, last], 2))

    @abstractmethod
    def decode_vectors(self, vectors: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Decode vectors (B, N, C); otherwise as ``decode``."""

    def decode(self, codes: Tensor, grid: tuple[int, ...] = ()) -> Tensor:
        """Decode codes to pictures or clips.

        Args:
            codes: as for ``embed``.
            grid: (h, w) or (t, h, w); unused where no token has a place.

        Returns:
            (B, 3, H, W) or (B, 3, frames, H, W), nominally in ``pixel_range``, not clamped.
        """
        return self.decode_vectors(self.embed(codes, grid), grid)
