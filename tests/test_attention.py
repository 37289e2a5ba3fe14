"""Attention by products against PyTorch's own, and what a row may depend on."""

import copy

import pytest
import torch
import torch.nn.functional as F

from narcli.models import attention, native
from narcli.models.packed import can_pack, pack
from narcli.models.transformer import NARTransformer, TransformerConfig
from narcli.sampling import SamplingSettings, generate
from narcli.sampling import sample as sample_batch


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
        found = attention.attend(q, keys, values, mask)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        # With room after each head, as in a cache.
        kept = (F.pad(tensor, (0, 0, 0, 13), value=torch.nan)[:, :, :37] for tensor in (keys, values))
        torch.testing.assert_close(attention.attend(q, *kept, mask), expected, rtol=1e-5, atol=1e-5)


def test_where_a_gradient_is_wanted_and_for_few_scores_it_is_the_fused_kernel(products, monkeypatch):
    def refuse(*_):
        raise AssertionError("products")

    monkeypatch.setattr(attention, "by_products", refuse)
    q, keys, values = (tensor.requires_grad_() for tensor in qkv())
    attention.attend(q, keys, values).sum().backward()
    assert values.grad is not None and values.grad.abs().sum() > 0
    with torch.inference_mode():
        with pytest.raises(AssertionError, match="products"):
            attention.attend(q, keys, values)
        monkeypatch.setattr(attention, "FEW", 4 * 9 * 37 + 1)  # of one sample, however many there are
        attention.attend(q, keys, values)


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


def network(grid, heads, dtype, **sizes):
    torch.manual_seed(0)
    sizes = {"num_classes": 9} | sizes
    model = NARTransformer(TransformerConfig(grid, 64 * heads, 2, heads, 300, 128, **sizes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model.to(dtype)


TEXT = {"condition": "text", "num_classes": 0, "condition_tokens": 40, "caption_dim": 16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("grid", "heads", "sizes"),
    [((16, 16), 3, {}), ((4, 8, 8), 2, {"position": "absolute"}), ((9, 5), 1, {}), ((8, 8), 2, TEXT)],
)
def test_a_packed_model_gives_a_sample_the_same_tokens_in_every_batch(
    grid, heads, sizes, dtype, kernels, monkeypatch
):
    """Also with attention of both kinds, where this machine has both, and guidance that ends half way."""
    if not (native.can_run(dtype, torch.device("cpu")) if kernels == "native" else can_pack(dtype)):
        pytest.skip("this machine has no packed layers")
    monkeypatch.setattr(attention, "FEW", 150 * heads)
    model = pack(network(grid, heads, dtype, **sizes))
    c, seeds = model.config, list(range(9))
    condition, padding = torch.arange(9), None
    if c.condition == "text":
        condition = torch.randn(9, 40, 16).to(dtype)
        padding = torch.arange(40) < torch.arange(9)[:, None] * 4
    settings = SamplingSettings(cfg_scale=2.0, cfg_interval=c.order.cells // 2)

    def drawn(rows):
        return sample_batch(
            model, condition[rows], seeds[rows], settings, None if padding is None else padding[rows]
        )

    both = attention.attends_by_products(dtype)  # tries some, which do not count
    products_made, make = [], attention.by_products
    monkeypatch.setattr(attention, "by_products", lambda *a: products_made.append(a) or make(*a))
    together = drawn(slice(0, 9))
    if both and model.fused is None:
        assert 0 < len(products_made) < c.total_layers * len(c.order.steps)
    else:
        assert not products_made
    for first, count in ((0, 1), (8, 1), (3, 2), (4, 5)):
        rows = slice(first, first + count)
        assert torch.equal(drawn(rows), together[rows])


@pytest.mark.parametrize("sizes", [{}, TEXT, {"position": "absolute"}])
def test_products_give_a_model_the_tokens_that_the_fused_kernel_gives(products, sizes):
    model = network((8, 8), 2, torch.float32, **sizes)
    condition, padding = torch.arange(4), None
    if sizes is TEXT:
        condition, padding = torch.randn(4, 40, 16), torch.arange(40) < torch.tensor([[0], [5], [30], [39]])
    settings = SamplingSettings(cfg_scale=3.0, cfg_interval=20)
    found = list(generate(model, condition, range(4), settings, padding))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "attends_by_products", lambda dtype: False)
        expected = list(generate(model, condition, range(4), settings, padding))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-4, atol=1e-3)


def test_bfloat16_by_products_is_as_near_to_float32_as_the_fused_kernel(kernels, monkeypatch):
    exact = network((8, 8), 2, torch.float32)
    exact.init_weights(0.06)
    for head in exact.ordered_heads:
        torch.nn.init.normal_(head.output.weight, std=0.1)
    classes, settings = torch.arange(4), SamplingSettings()
    tokens = sample_batch(exact, classes, range(4), settings)

    def error(model):
        steps = zip(
            generate(exact, classes, range(4), settings, given=tokens),
            generate(model, classes, range(4), settings, given=tokens),
            strict=True,
        )
        return torch.cat([(right.logits - found.logits).flatten() for right, found in steps]).norm().item()

    plain = copy.deepcopy(exact).bfloat16()
    monkeypatch.setattr(attention, "attends_by_products", lambda dtype: False)
    fused = error(plain)
    monkeypatch.setattr(attention, "FEW", 0)
    monkeypatch.setattr(attention, "attends_by_products", lambda dtype: dtype == torch.bfloat16)
    assert 0 < error(plain) < 1.25 * fused
    if can_pack(torch.bfloat16) or native.can_run(torch.bfloat16, torch.device("cpu")):
        assert 0 < error(pack(plain)) < 1.25 * fused


def test_packing_leaves_odd_heads_as_they_are_and_may_be_asked_for_twice():
    torch.manual_seed(0)
    config = TransformerConfig((3, 4), 10, 1, 2, 20, 16, num_classes=2, position="absolute")
    model = NARTransformer(config).eval()  # heads of 5
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    classes, settings = torch.tensor([0, 1]), SamplingSettings()
    before = sample_batch(model, classes, [0, 1], settings)
    model = pack(pack(model))
    assert torch.equal(sample_batch(model, classes, [0, 1], settings), before)


def test_a_model_that_has_drawn_can_be_trained():
    model = network((4, 5), 1, torch.float32)
    tokens = sample_batch(model, torch.tensor([1]), [0], SamplingSettings())
    model.forward_train(model.condition(torch.tensor([1])), tokens).sum().backward()
    assert model.layers[0].qkv.weight.grad.abs().sum() > 0
