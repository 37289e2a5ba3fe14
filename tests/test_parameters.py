"""Parameter counts of the released sizes (the table of the paper), without any memory."""

import pytest
import torch

from narcli.models.blocks import TransformerConfig, ffn_dim
from narcli.models.larp import LARPConfig, LARPTokenizer
from narcli.models.transformer import NARTransformer
from narcli.models.vq import VQConfig, VQTokenizer


def count(model):
    return sum(p.numel() for p in model.parameters())


def sizes(dim, layers, heads, grid=(16, 16), vocab_size=16384, **options):
    return TransformerConfig(grid, dim, layers, heads, vocab_size, ffn_dim(dim), **options)


def parameters(config):
    with torch.device("meta"):
        return count(NARTransformer(config))


# The paper's figures are not rounded all in one way, and M's 290 M is 295 M by its table of sizes.
@pytest.mark.parametrize(
    ("dim", "layers", "heads", "paper", "exact"),
    [
        (768, 12, 12, 130e6, 130_551_552),
        (1024, 18, 16, 290e6, 295_453_696),
        (1024, 24, 16, 372e6, 372_536_320),
        (1280, 36, 20, 816e6, 815_991_040),
        (1536, 48, 24, 1.46e9, 1_464_454_656),
    ],
)
def test_image_models_have_the_papers_sizes(dim, layers, heads, paper, exact):
    found = parameters(sizes(dim, layers, heads, num_classes=1000))
    assert found == exact
    assert found == pytest.approx(paper, rel=0.02 if layers == 18 else 0.005)


@pytest.mark.parametrize(("dim", "layers", "heads", "expected"), [(1024, 24, 16, 369), (1280, 30, 20, 694)])
def test_video_models_have_the_papers_sizes(dim, layers, heads, expected):
    config = sizes(dim, layers, heads, (4, 16, 16), 8192, num_classes=101, position="absolute")
    assert round(parameters(config) / 1e6) == expected


@pytest.mark.parametrize(
    ("dim", "layers", "heads", "head_dim"),
    [(2560, 48, 40, 64), (2048, 22, 32, 64), (3200, 24, 32, 100), (4096, 32, 32, 128)],
)
def test_the_unreleased_sizes_can_be_built(dim, layers, heads, head_dim):
    config = sizes(dim, layers, heads, num_classes=1000)
    assert config.head_dim == head_dim and parameters(config) > 1e9


def test_the_released_tokenizer_has_72_million():
    with torch.device("meta"):
        assert round(count(VQTokenizer(VQConfig())) / 1e6) == 72


def test_the_released_video_tokenizer_makes_sixteen_frames_of_128_pixels():
    with torch.device("meta"):
        tokenizer = LARPTokenizer(LARPConfig())
        clips = tokenizer.decode(torch.zeros(2, 1024, dtype=torch.int64))
        codes = tokenizer.encode(clips)
    assert clips.shape == (2, 3, 16, 128, 128) and codes.shape == (2, 1024)
    assert tokenizer.config.clip_size((4, 16, 16)) == (16, 128, 128)
    assert round(count(tokenizer) / 1e6) == 175  # its prior, which is not built here, aside
