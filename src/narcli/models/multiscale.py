"""VAR's multi-scale VQ tokenizer (arXiv 2404.02905, section 3.2; ``vae_ch160v4096z32``).

The convolutional network is LlamaGen's with other attention and quantisation. A picture is a list of square
grids, each of what the smaller ones leave undescribed. All are enlarged to the largest grid, refined and
added; the sum is decoded. Codes of all scales are one sequence: scale by scale, each row-major.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..order import SIDES
from .attention import attend
from .tokenizer import Tokenizer
from .vq import Decoder, Encoder, VQConfig, group_norm


@dataclass(frozen=True)
class MultiscaleConfig:
    """Sizes of a multi-scale tokenizer; the defaults are the released one's.

    Args:
        ch: channels at full resolution.
        ch_mult: channel multipliers from full to lowest resolution; each level but the last halves it.
        num_res_blocks: residual blocks of an encoder level; a decoder level has one more.
        z_channels: width of a code.
        codebook_size: number of codes, the vocabulary of the transformer.
        phis: convolutions that refine an enlarged scale, shared by neighboring scales.
    """

    #: A cell has tokens of all scales, so that no picture is uncovered cell by cell.
    holistic: ClassVar[bool] = False
    laid_out: ClassVar[str] = "decoder."
    kind: ClassVar[str] = "image-tokenizer"

    ch: int = 160
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    z_channels: int = 32
    codebook_size: int = 4096
    phis: int = 4

    @property
    def network(self) -> VQConfig:
        """Sizes of the convolutional network."""
        return VQConfig(
            self.ch,
            self.ch_mult,
            self.num_res_blocks,
            self.z_channels,
            self.codebook_size,
            codebook_dim=self.z_channels,
        )

    def clip_size(self, grid: tuple[int, ...]) -> tuple[int, int, int]:
        """(1, height, width) of a picture by its last scale.

        Raises:
            ValueError: a grid that is not a square.
        """
        if len(grid) != 2 or grid[0] != grid[1]:
            raise ValueError("pictures of square grids")
        return self.network.clip_size(grid)

    def decoding_bytes(self, grid: tuple[int, ...], itemsize: int) -> int:
        """Bytes held at once while one picture is decoded, in numbers of ``itemsize`` bytes."""
        return self.network.decoding_bytes(grid, itemsize)


class MultiscaleTokenizer(Tokenizer):
    """Pictures in [-1, 1] to grids of codes of several scales, and back.

    Args:
        config: its sizes.

    Attributes:
        sides: of the scales, from the smallest; None before a transformer tells them.
    """

    config: MultiscaleConfig
    quantize: MultiscaleCodebook
    pixel_range = (-1.0, 1.0)

    def __init__(self, config: MultiscaleConfig) -> None:
        super().__init__()
        self.config = config
        self.sides: tuple[int, ...] | None = None
        width, network = config.z_channels, config.network
        self.encoder = Encoder(network, FusedAttention)
        self.decoder = Decoder(network, FusedAttention)
        self.quantize = MultiscaleCodebook(config)
        self.quant_conv = nn.Conv2d(width, width, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(width, width, 3, padding=1)

    def features(self, pixels: Tensor) -> Tensor:
        """Compute features before quantisation.

        Args:
            pixels: (B, 3, H, H) in [-1, 1]; H is P times the downsampling.

        Returns:
            (B, z, P, P).
        """
        return self.quant_conv(self.encoder(pixels))

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode pictures, shaped as for ``features``, to codes of all scales: (B, N) int64.

        Raises:
            ValueError: the scales of such pictures are not known.
        """
        rest = self.features(pixels).float()
        sides, codes = self.sides_of(rest.shape[-2:]), []
        for index, side in enumerate(sides):
            found = self.quantize.nearest(area_down(rest, side).flatten(2).transpose(1, 2))
            codes.append(found)
            rest = rest - self.quantize.enlarge(self.quantize(found), index, sides)
        return torch.cat(codes, 1)

    def embed(self, codes: Tensor, grid: tuple[int, ...] = ()) -> Tensor:
        """Sum the enlarged scales.

        Args:
            codes: (B, N) int64 of all scales; -1 (missing) adds nothing. A scale without any code adds
                nothing at all.
            grid: (P, P).

        Returns:
            (B, P * P, z) float32.

        Raises:
            ValueError: the scales of such pictures are not known.
        """
        sides = self.sides_of(grid)
        total = torch.zeros(len(codes), self.config.z_channels, sides[-1], sides[-1], device=codes.device)
        for index, found in enumerate(codes.split([side * side for side in sides], 1)):
            known = found >= 0
            vectors = self.quantize(found.clamp(min=0)) * known[..., None]
            enlarged = self.quantize.enlarge(vectors, index, sides)
            total += enlarged * known.any(1)[:, None, None, None]
        return total.flatten(2).transpose(1, 2)

    def decode_vectors(self, vectors: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Decode sums of scales (B, P * P, z); otherwise as ``decode``."""
        total = vectors.transpose(1, 2).unflatten(2, grid)
        return self.decoder(self.post_quant_conv(total.to(self.post_quant_conv.weight.dtype)))

    def sides_of(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """Return the sides of the scales of a grid (P, P).

        Raises:
            ValueError: they are not known.
        """
        sides = self.sides or SIDES.get(grid[-1], ())
        if not sides or tuple(grid) != (sides[-1], sides[-1]):
            raise ValueError(f"the scales below {tuple(grid)} are not known")
        return sides


class MultiscaleCodebook(nn.Module):
    """Code vectors as they are, and the convolutions that refine an enlarged scale."""

    def __init__(self, config: MultiscaleConfig) -> None:
        super().__init__()
        width = config.z_channels
        self.embedding = nn.Embedding(config.codebook_size, width)
        self.phis = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(config.phis))

    def forward(self, codes: Tensor) -> Tensor:
        """Look up codes: (...) int64 -> float32 (..., z)."""
        return self.embedding(codes).float()

    def nearest(self, features: Tensor) -> Tensor:
        """Find the code at the smallest distance from each feature: (..., z) -> (...) int64."""
        codes = self.embedding.weight.float()
        return (codes.square().sum(-1) - 2 * features @ codes.T).argmin(-1)

    def enlarge(self, vectors: Tensor, index: int, sides: tuple[int, ...]) -> Tensor:
        """Enlarge a scale to the last one and refine it: (B, n, z) -> float32 (B, z, P, P).

        Args:
            vectors: of the n = side * side codes.
            index: of the scale.
            sides: of all scales.
        """
        side, last = sides[index], sides[-1]
        grids = vectors.float().transpose(1, 2).unflatten(2, (side, side)).contiguous()
        conv = cast(nn.Conv2d, self.phis[phi_of(index, len(sides), len(self.phis))])
        weight, bias = conv.weight.float(), cast(Tensor, conv.bias).float()
        enlarged = []
        # One at a time on a CPU: the order of sums may depend on the number of pictures.
        for grid in grids.split(1 if grids.device.type == "cpu" else len(grids)):
            if side != last:
                grid = F.interpolate(grid, size=(last, last), mode="bicubic")
            enlarged.append(0.5 * grid + 0.5 * F.conv2d(grid, weight, bias, padding=1))
        return torch.cat(enlarged)


class FusedAttention(nn.Module):
    """Single-head attention over all pixels, scale C^-0.5; one convolution for q, k and v."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over all pixels: (B, C, H, W) -> (B, C, H, W)."""
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1)  # (B, 1, H * W, 3 C)
        h = attend(*qkv.chunk(3, -1)).squeeze(1)
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[2:]))


def area_down(grid: Tensor, side: int) -> Tensor:
    """Average over bins, which may overlap: (B, z, P, P) -> (B, z, side, side)."""
    return F.adaptive_avg_pool2d(grid, side) if side != grid.shape[-1] else grid


def phi_of(index: int, scales: int, phis: int) -> int:
    """Return the convolution of a scale: the one whose tick is nearest, the higher of two.

    The ticks in [0, 1] are ``(3 + 10 i) / 36`` for four convolutions, else ``(2 i + 1) / (2 phis)``.

    Args:
        index: of the scale.
        scales: number of scales.
        phis: number of convolutions.
    """
    first, step, whole = (3, 10, 36) if phis == 4 else (1, 2, 2 * phis)
    far = [abs(whole * index - (first + step * i) * max(scales - 1, 1)) for i in range(phis)]
    return max(i for i in range(phis) if far[i] == min(far))
