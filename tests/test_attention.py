"""Attention by products against PyTorch's own, and what a row may depend on."""

import copy

import pytest
import torch
import torch.nn.functional as F

from narcli.models import attention
from narcli.models.packed import can_pack, pack
from narcli.models.transformer import NARTransformer, TransformerConfig
from narcli.sampling import SamplingSettings, generate, sample


@pytest.fixture
def products(monkeypatch):
    """Attention by products, on any machine and of any size."""
    monkeypatch.setattr(attention, "FEW", 0)
    monkeypatch.setattr(attention, "attends_by_products", lambda dtype: True)


def qkv(batch=3, heads=4, n=9, m=37, d=24):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, heads, rows, d, generator=generator) for rows in (n, m, m)]


def masks():
    """Of every shape that is taken; each row sees something."""
    some = torch.rand(3, 1, 9, 37, generator=torch.Generator().manual_seed(1)) < 0.5
    some[..., 0] = True
    return {"none": None, "rows": some[0, 0], "samples": some, "padding": some[:, :, :1]}


@pytest.mark.parametrize("most", [2**23, 9 * 37 * 5, 1], ids=["at once", "in parts", "a head each"])
@pytest.mark.parametrize("kind", masks())
def test_products_give_what_the_fused_kernel_gives(products, monkeypatch, kind, most):
    monkeypatch.setattr(attention, "SCORES", most)
    q, keys, values = qkv()
    mask = masks()[kind]
    expected = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    with torch.inference_mode():
        found = attention.attend(q, keys, values, 37, mask)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        # With room behind what is there, as in a cache.
        room = (F.pad(tensor, (0, 0, 0, 13)) for tensor in (keys, values))
        torch.testing.assert_close(attention.attend(q, *room, 37, mask), expected, rtol=1e-5, atol=1e-5)


def test_training_has_the_kernel_that_has_a_gradient(products):
    q, keys, values = (tensor.requires_grad_() for tensor in qkv())
    attention.attend(q, keys, values, 37).sum().backward()
    assert values.grad is not None and values.grad.abs().sum() > 0


def test_products_are_for_bfloat16_without_amx_only(monkeypatch):
    tried = attention.attends_by_products.__wrapped__
    assert not tried(torch.float32) and not tried(torch.float16)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert not tried(torch.bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(attention, "by_products", lambda q, *_: q + len(q))
    assert not tried(torch.bfloat16)  # results that depend on how many are made at once
    monkeypatch.setattr(attention, "by_products", lambda q, *_: q)
    assert tried(torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("grid", "position", "heads"),
    [((16, 16), "rotary", 3), ((4, 8, 8), "absolute", 2), ((9, 5), "rotary", 1)],
)
def test_a_packed_model_gives_a_sample_the_same_tokens_in_every_batch(
    grid, position, heads, dtype, monkeypatch
):
    monkeypatch.setattr(attention, "FEW", 1000)  # of both kinds
    if not can_pack(dtype):
        pytest.skip("this machine has no packed layers")
    torch.manual_seed(0)
    config = TransformerConfig(grid, 64 * heads, 2, heads, 300, 128, num_classes=9, position=position)
    model = NARTransformer(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    model = pack(model.to(dtype))
    classes, seeds = torch.arange(9), list(range(9))
    settings = SamplingSettings(cfg_scale=2.0, cfg_interval=config.order.cells // 2)
    together = sample(model, classes, seeds, settings)
    for first, count in ((0, 1), (8, 1), (3, 2), (4, 5)):
        rows = slice(first, first + count)
        assert torch.equal(sample(model, classes[rows], seeds[rows], settings), together[rows])


def test_a_packed_model_is_as_near_to_float32_as_a_plain_one(monkeypatch):
    monkeypatch.setattr(attention, "FEW", 0)
    if not can_pack(torch.bfloat16):
        pytest.skip("this machine has no packed layers")
    torch.manual_seed(0)
    config = TransformerConfig((8, 8), 128, 4, 2, 400, 256, num_classes=4)
    exact = NARTransformer(config).eval()
    exact.init_weights(0.06)
    for head in exact.ordered_heads:
        torch.nn.init.normal_(head.output.weight, std=0.1)
    plain = copy.deepcopy(exact).bfloat16()
    packed = pack(copy.deepcopy(plain))
    classes, settings = torch.arange(4), SamplingSettings(cfg_scale=1.0)
    tokens = sample(exact, classes, range(4), settings)

    def error(model):
        steps = zip(
            generate(exact, classes, range(4), settings, given=tokens),
            generate(model, classes, range(4), settings, given=tokens),
            strict=True,
        )
        return torch.cat([(right.logits - found.logits).flatten() for right, found in steps]).norm().item()

    assert 0 < error(packed) < 1.25 * error(plain)
