"""The VQ tokenizer (LlamaGen's VQ-16 and VQ-8; arXiv 2406.06525, section 2.1), for images and clips.

A convolutional encoder and decoder around a codebook of L2-normalised rows. Module names are those of the
released files, so loading needs no rename table. For clips, unlike the released ones, the network reads some
consecutive frames as one picture of more channels: one slice of the token grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, prod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attend
from .tokenizer import Tokenizer

#: Copies of its largest layer that the decoder holds at once, as measured on a CPU; see docs/models.md.
PLANES = 10


@dataclass(frozen=True)
class VQConfig:
    """Sizes of a VQ tokenizer; the defaults are the released VQ-16.

    Args:
        ch: channels at full resolution.
        ch_mult: channel multipliers from full to lowest resolution; each level but the last halves it.
        num_res_blocks: residual blocks of an encoder level; a decoder level has one more.
        z_channels: channels of the encoder's output.
        codebook_size: number of codes, the vocabulary of the transformer.
        codebook_dim: dimension of a code.
        in_channels: channels of a picture.
        patch: pixels along one side that are stacked as channels before the first convolution and
            spread out again after the last one; 1 in the released models.
        frames: consecutive frames that are stacked as channels, one slice of the grid; 1 for images.
        decoder_blocks: further residual blocks at the decoder's lowest resolution, in [0, 32]; 0 in the
            released models.
    """

    holistic: ClassVar[bool] = False
    laid_out: ClassVar[str] = "decoder."

    ch: int = 128
    ch_mult: tuple[int, ...] = field(default=(1, 1, 2, 2, 4))
    num_res_blocks: int = 2
    z_channels: int = 256
    codebook_size: int = 16384
    codebook_dim: int = 8
    in_channels: int = 3
    patch: int = 1
    frames: int = 1
    decoder_blocks: int = 0

    @property
    def downsampling(self) -> int:
        """Pixels along one side of a token."""
        return int(self.patch * 2 ** (len(self.ch_mult) - 1))

    @property
    def planes(self) -> int:
        """Channels that the first convolution reads and the last one makes."""
        return self.in_channels * self.frames * self.patch**2

    def clip_size(self, grid: tuple[int, ...]) -> tuple[int, int, int]:
        """(frames, height, width) of a clip decoded from a grid; a picture has one frame.

        Raises:
            ValueError: a grid of pictures for a tokenizer of clips.
        """
        if len(grid) == 2 and self.frames > 1:
            raise ValueError(f"clips, {self.frames} frames a slice")
        return self.frames * prod(grid[:-2]), grid[-2] * self.downsampling, grid[-1] * self.downsampling

    @property
    def kind(self) -> str:
        """Kind of a tokenizer of these sizes."""
        return "video-tokenizer" if self.frames > 1 else "image-tokenizer"

    def decoding_bytes(self, grid: tuple[int, ...], itemsize: int) -> int:
        """Bytes held at once while one grid is decoded, in numbers of ``itemsize`` bytes, as measured."""
        pixels = prod(grid) * (self.downsampling // self.patch) ** 2
        # Each level has a quarter of the pixels of the one before.
        largest = pixels * ceil(max(self.ch * m / 4**i for i, m in enumerate(self.ch_mult)))
        return PLANES * largest * itemsize


class VQTokenizer(Tokenizer):
    """Pictures or clips in [-1, 1] to grids of codes and back.

    A picture is (B, 3, H, W) and has the grid (h, w); a clip is (B, 3, frames, H, W) and has (t, h, w),
    t slices of ``config.frames`` frames each.
    """

    config: VQConfig
    quantize: Codebook
    pixel_range = (-1.0, 1.0)

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Codebook(config.codebook_size, config.codebook_dim)
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.z_channels, 1)

    def features(self, pixels: Tensor) -> Tensor:
        """Compute L2-normalised features before quantisation.

        Args:
            pixels: pictures or clips in [-1, 1]; H and W multiples of ``config.downsampling``, the frames of
                ``config.frames``.

        Returns:
            (B, h, w, codebook_dim) or (B, t, h, w, codebook_dim).
        """
        batch, is_clip = len(pixels), pixels.dim() == 5
        if is_clip:
            slices = pixels.unflatten(2, (-1, self.config.frames))  # (B, 3, t, frames, H, W)
            pixels = slices.permute(0, 2, 3, 1, 4, 5).flatten(2, 3).flatten(0, 1)  # (B * t, frames * 3, H, W)
        features = self.quant_conv(self.encoder(pixels)).permute(0, 2, 3, 1)
        return F.normalize(features.unflatten(0, (batch, -1)) if is_clip else features, dim=-1)

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode pictures or clips, shaped as for ``features``, to codes: (B, N) int64, raster order."""
        return self.quantize.nearest(self.features(pixels).flatten(1, -2))

    def decode_vectors(self, vectors: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Decode quantised vectors (B, N, codebook_dim); otherwise as ``decode``."""
        slices = vectors.reshape(-1, *grid[-2:], vectors.shape[-1]).permute(0, 3, 1, 2)  # (B * t, C, h, w)
        pixels: Tensor = self.decoder(self.post_quant_conv(slices))
        if len(grid) == 2:
            return pixels
        pixels = pixels.unflatten(1, (self.config.frames, -1)).unflatten(0, (len(vectors), -1))
        return pixels.permute(0, 3, 1, 2, 4, 5).flatten(2, 3)  # of (B, t, frames, 3, H, W)


class Codebook(nn.Module):
    """L2-normalised code vectors."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, dim)

    def forward(self, codes: Tensor) -> Tensor:
        """Look up codes: (...) int64 -> (..., dim), unit length."""
        return F.normalize(self.embedding(codes), dim=-1)

    def nearest(self, features: Tensor) -> Tensor:
        """Find the code with the greatest cosine to each unit feature: (..., dim) -> (...) int64."""
        codes = F.normalize(self.embedding.weight, dim=-1).to(features.dtype)
        return (features @ codes.T).argmax(-1)


class Encoder(nn.Module):
    """(B, 3 * frames, H, W) -> (B, z_channels, h, w)."""

    def __init__(self, c: VQConfig, attention: type[nn.Module] | None = None) -> None:
        super().__init__()
        attention = attention or PixelAttention
        self.patch = c.patch
        self.conv_in = nn.Conv2d(c.planes, c.ch, 3, padding=1)
        widths = [c.ch * m for m in c.ch_mult]
        last = len(widths) - 1
        self.conv_blocks = nn.ModuleList(
            Level(
                [(widths[max(level - 1, 0)], width), *[(width, width)] * (c.num_res_blocks - 1)],
                attention if level == last else None,
                downsample=level != last,
            )
            for level, width in enumerate(widths)
        )
        self.mid = middle(widths[-1], attention)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], c.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Encode: (B, 3 * frames, H, W) -> (B, z_channels, h, w)."""
        x = self.conv_in(F.pixel_unshuffle(x, self.patch))
        for level in self.conv_blocks:
            x = level(x)
        for block in self.mid:
            x = block(x)
        return self.conv_out(swish(self.norm_out(x)))


class Decoder(nn.Module):
    """(B, z_channels, h, w) -> (B, 3 * frames, H, W); ``conv_blocks.0`` has the lowest resolution."""

    def __init__(self, c: VQConfig, attention: type[nn.Module] | None = None) -> None:
        super().__init__()
        attention = attention or PixelAttention
        widths = [c.ch * m for m in reversed(c.ch_mult)]
        self.conv_in = nn.Conv2d(c.z_channels, widths[0], 3, padding=1)
        self.mid = middle(widths[0], attention)
        self.mid.extend(ResidualBlock(widths[0], widths[0]) for _ in range(c.decoder_blocks))
        self.conv_blocks = nn.ModuleList(
            Level(
                [(widths[max(level - 1, 0)], width), *[(width, width)] * c.num_res_blocks],
                attention if level == 0 else None,
                upsample=level != len(widths) - 1,
            )
            for level, width in enumerate(widths)
        )
        self.norm_out = group_norm(widths[-1])
        self.patch = c.patch
        self.conv_out = nn.Conv2d(widths[-1], c.planes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Decode: (B, z_channels, h, w) -> (B, 3 * frames, H, W)."""
        x = self.conv_in(x)
        for block in self.mid:
            x = block(x)
        for level in self.conv_blocks:
            x = level(x)
        return F.pixel_shuffle(self.conv_out(swish(self.norm_out(x))), self.patch)


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention at the lowest, then a resize."""

    def __init__(
        self,
        widths: list[tuple[int, int]],
        attention: type[nn.Module] | None,
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResidualBlock(a, b) for a, b in widths)
        self.attn = nn.ModuleList(attention(b) for _, b in widths if attention)
        if downsample:
            self.downsample = Downsample(widths[-1][1])
        if upsample:
            self.upsample = Upsample(widths[-1][1])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        for i, block in enumerate(self.res):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        if hasattr(self, "upsample"):
            x = self.upsample(x)
        return x


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions around a (1x1, where channels change) shortcut."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = group_norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        h = self.conv1(swish(self.norm1(x)))
        h = self.conv2(swish(self.norm2(h)))
        if hasattr(self, "nin_shortcut"):
            x = self.nin_shortcut(x)
        return x + h


class PixelAttention(nn.Module):
    """Single-head attention over all pixels, scale C^-0.5."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over all pixels: (B, C, H, W) -> (B, C, H, W)."""
        h = self.norm(x)
        # One head: (B, 1, H * W, C).
        q, k, v = (conv(h).flatten(2).transpose(1, 2).unsqueeze(1) for conv in (self.q, self.k, self.v))
        h = attend(q, k, v).squeeze(1)
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    """Halve the resolution: a stride-2 convolution padded on the right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / 2, W / 2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the resolution: nearest neighbor, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2 H, 2 W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def swish(x: Tensor) -> Tensor:
    """``x * sigmoid(x)``, in place without gradients; ``x`` must be a fresh tensor."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def middle(channels: int, attention: type[nn.Module]) -> nn.ModuleList:
    """Make the blocks at the lowest resolution."""
    return nn.ModuleList(
        [ResidualBlock(channels, channels), attention(channels), ResidualBlock(channels, channels)]
    )


def group_norm(channels: int) -> nn.GroupNorm:
    """Make a group normalisation with the tokenizer's 32 groups."""
    return nn.GroupNorm(32, channels, eps=1e-6)
