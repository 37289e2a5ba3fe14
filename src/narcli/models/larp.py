"""The LARP video tokenizer (arXiv 2410.21264, section 3.1).

Its tokens are *holistic*: learned queries gather the whole clip, so a token has no place and no time. NAR
still reads them as a grid. Module names are those of the released files, so loading needs no rename table.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attend
from .tokenizer import Tokenizer
from .vq import Codebook

NORM_EPS = 1e-6  # of the last norm


@dataclass(frozen=True)
class LARPConfig:
    """Sizes of a LARP tokenizer, by the released config's names; the defaults are the released one's.

    Args:
        bottleneck_token_num: tokens of a clip.
        codebook_size: number of codes, the vocabulary of the transformer.
        bottleneck_dim: dimension of a code.
        input_size: height and width of a frame in pixels.
        frame_num: frames of a clip.
        patch_size, temporal_patch_size: pixels and frames of an encoder patch.
        decoder_patch_size, decoder_temporal_patch_size: pixels and frames of a decoder patch.
        in_channels: channels of a frame.
        encoder_hidden_size, encoder_depth, encoder_num_heads: width, blocks and attention heads.
        decoder_hidden_size, decoder_depth, decoder_num_heads: width, blocks and attention heads.
        use_decoder_patch_query_token_type_embed: a learned vector is added to all patch queries.
        block_norm_eps: epsilon of the norms in the blocks. The released code has that of the installed timm:
            1e-5 when the released weights were trained, 1e-6 in later versions.
    """

    kind: ClassVar[str] = "video-tokenizer"
    holistic: ClassVar[bool] = True
    laid_out: ClassVar[str] = ""

    bottleneck_token_num: int = 1024
    codebook_size: int = 8192
    bottleneck_dim: int = 16
    input_size: int = 128
    frame_num: int = 16
    patch_size: int = 8
    temporal_patch_size: int = 4
    decoder_patch_size: int = 8
    decoder_temporal_patch_size: int = 4
    in_channels: int = 3
    encoder_hidden_size: int = 768
    encoder_depth: int = 12
    encoder_num_heads: int = 12
    decoder_hidden_size: int = 768
    decoder_depth: int = 12
    decoder_num_heads: int = 12
    use_decoder_patch_query_token_type_embed: bool = True
    block_norm_eps: float = 1e-6

    @property
    def encoder_patches(self) -> tuple[int, int, int]:
        """(frames, height, width) of the patch grid that the encoder reads."""
        side = self.input_size // self.patch_size
        return self.frame_num // self.temporal_patch_size, side, side

    @property
    def decoder_patches(self) -> tuple[int, int, int]:
        """(frames, height, width) of the patch grid that the decoder makes."""
        side = self.input_size // self.decoder_patch_size
        return self.frame_num // self.decoder_temporal_patch_size, side, side

    def clip_size(self, grid: tuple[int, ...]) -> tuple[int, int, int]:
        """(frames, height, width) of a clip decoded from a grid.

        Raises:
            ValueError: the grid has another number of cells than a clip has tokens.
        """
        if prod(grid) != self.bottleneck_token_num:
            raise ValueError(f"clips of {self.bottleneck_token_num} tokens")
        return self.frame_num, self.input_size, self.input_size

    def decoding_bytes(self, grid: tuple[int, ...], itemsize: int) -> int:
        """Bytes held at once while one clip is decoded, as measured; alike in every number format."""
        tokens = self.bottleneck_token_num + prod(self.decoder_patches)
        return 16 * tokens * self.decoder_hidden_size * 4


class LARPTokenizer(Tokenizer):
    """Clips in [0, 1] to holistic codes and back."""

    config: LARPConfig
    pixel_range = (0.0, 1.0)

    def __init__(self, config: LARPConfig) -> None:
        super().__init__()
        self.config = c = config
        self.x_embedder = PatchEmbedding(c)
        self.encoder = Encoder(c.encoder_hidden_size, c.encoder_depth, c.encoder_num_heads, c.block_norm_eps)
        self.decoder = Encoder(c.decoder_hidden_size, c.decoder_depth, c.decoder_num_heads, c.block_norm_eps)
        self.bottleneck = Bottleneck(c)
        self.final_layer = FinalLayer(c)
        # Fixed sine tables or learned ones: files hold either.
        inside, outside = c.encoder_hidden_size, c.decoder_hidden_size
        self.encoder_patch_pe = nn.Parameter(torch.zeros(1, prod(c.encoder_patches), inside))
        self.encoder_latent_query_embed = nn.Parameter(torch.zeros(c.bottleneck_token_num, inside))
        self.decoder_latent_pe = nn.Parameter(torch.zeros(1, c.bottleneck_token_num, outside))
        self.decoder_patch_query_embed = nn.Parameter(torch.zeros(1, prod(c.decoder_patches), outside))
        if c.use_decoder_patch_query_token_type_embed:
            self.decoder_patch_query_token_type_embed = nn.Parameter(torch.zeros(1, 1, outside))

    @property
    def quantize(self) -> Codebook:  # type: ignore[override]  # a file has it inside the bottleneck
        """The codebook."""
        return self.bottleneck.regularizer

    def encode(self, clips: Tensor) -> Tensor:
        """Encode clips, (B, 3, frames, H, W) in [0, 1], to their nearest codes: (B, N) int64."""
        patches = self.x_embedder(clips) + self.encoder_patch_pe
        queries = self.encoder_latent_query_embed.expand(len(clips), -1, -1)
        latents = self.bottleneck.in_linear(self.encoder(patches, queries))  # (B, N, bottleneck_dim)
        return self.quantize.nearest(F.normalize(latents.float(), dim=-1))  # half precision has ties

    def decode_vectors(self, vectors: Tensor, grid: tuple[int, ...] = ()) -> Tensor:
        """Decode quantised vectors (B, N, bottleneck_dim); otherwise as ``decode``."""
        c = self.config
        latents = self.bottleneck.out_linear(vectors) + self.decoder_latent_pe
        queries: Tensor = self.decoder_patch_query_embed
        if c.use_decoder_patch_query_token_type_embed:
            queries = queries + self.decoder_patch_query_token_type_embed
        patches = self.final_layer(self.decoder(latents, queries.expand(len(vectors), -1, -1)))
        patch = (c.decoder_temporal_patch_size, c.decoder_patch_size, c.decoder_patch_size, c.in_channels)
        pixels = patches.unflatten(1, c.decoder_patches).unflatten(-1, patch)  # (B, t, h, w, pt, p, p, C)
        return pixels.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


class PatchEmbedding(nn.Module):
    """(B, 3, frames, H, W) -> (B, patches, D)."""

    def __init__(self, c: LARPConfig) -> None:
        super().__init__()
        patch = (c.temporal_patch_size, c.patch_size, c.patch_size)
        self.proj = nn.Conv3d(c.in_channels, c.encoder_hidden_size, patch, stride=patch)

    def forward(self, clips: Tensor) -> Tensor:
        """Embed patches: (B, 3, frames, H, W) -> (B, patches, D)."""
        embedded: Tensor = self.proj(clips)
        return embedded.flatten(2).transpose(1, 2)


class Bottleneck(nn.Module):
    """The projections to the codes' dimension and back, and the codebook."""

    def __init__(self, c: LARPConfig) -> None:
        super().__init__()
        self.in_linear = nn.Linear(c.encoder_hidden_size, c.bottleneck_dim)
        self.out_linear = nn.Linear(c.bottleneck_dim, c.decoder_hidden_size)
        self.regularizer = Codebook(c.codebook_size, c.bottleneck_dim)


class FinalLayer(nn.Module):
    """(B, patches, D) -> (B, patches, pixels of a patch)."""

    def __init__(self, c: LARPConfig) -> None:
        super().__init__()
        pixels = c.decoder_temporal_patch_size * c.decoder_patch_size**2 * c.in_channels
        self.norm_final = nn.LayerNorm(c.decoder_hidden_size, eps=NORM_EPS)
        self.linear = nn.Linear(c.decoder_hidden_size, pixels)

    def forward(self, x: Tensor) -> Tensor:
        """Project to pixels: (B, patches, D) -> (B, patches, pixels of a patch)."""
        return self.linear(self.norm_final(x))


class Encoder(nn.Module):
    """Transformer blocks over a context and queries; returns the queries."""

    def __init__(self, dim: int, depth: int, heads: int, eps: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, heads, eps) for _ in range(depth))

    def forward(self, context: Tensor, queries: Tensor) -> Tensor:
        """Context (B, m, D) and queries (B, n, D) -> (B, n, D)."""
        x = torch.cat([context, queries], 1)
        for block in self.blocks:
            x = block(x)
        return x[:, context.shape[1] :]


class Block(nn.Module):
    """A pre-norm block of the Vision Transformer."""

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = MLP(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block: (B, n, D) -> (B, n, D)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Self-attention; no bias on queries, keys and values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over all positions: (B, n, D) -> (B, n, D)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, n, d)
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Four times as wide inside, exact GELU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the MLP: (B, n, D) -> (B, n, D)."""
        return self.fc2(F.gelu(self.fc1(x)))
