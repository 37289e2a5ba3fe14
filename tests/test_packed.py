"""What packing does to a model, and what a sample may depend on then."""

import pytest
import torch

from narcli.kernels import native, prepare
from narcli.kernels.native import NativeTransformer
from narcli.kernels.packed import PackedLinear, can_pack
from narcli.models.blocks import TransformerConfig
from narcli.models.transformer import NARTransformer
from narcli.sampling import SamplingSettings
from narcli.sampling import sample as sample_batch


def network(grid, heads, dtype, **sizes):
    torch.manual_seed(0)
    sizes = {"num_classes": 9} | sizes
    model = NARTransformer(TransformerConfig(grid, 64 * heads, 2, heads, 300, 128, **sizes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(192, 64), (300, 384), (1152, 384), (2304, 768), (768, 2048), (1024, 3)])
def test_a_product_sums_a_row_alike_whatever_the_rows_beside_it(shape, dtype):
    """On the processor and the torch at hand."""
    if not can_pack(dtype):
        pytest.skip("this machine has no packed layers")
    torch.manual_seed(0)
    layer = PackedLinear(torch.randn(shape).to(dtype))
    rows = torch.randn(1000, shape[1]).to(dtype)
    expected = torch.cat([layer(part) for part in rows[:256].split(2)])
    for count in (1, 2, 3, 7, 16, 31, 32, 33, 47, 64, 65, 79, 80, 81, 95, 96, 97, 100, 192, 256, 1000):
        assert torch.equal(layer(rows[:count])[:256], expected[:count]), count


TEXT = {"condition": "text", "num_classes": 0, "condition_tokens": 40, "caption_dim": 16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("grid", "heads", "sizes"),
    [((16, 16), 3, {}), ((4, 8, 8), 2, {"position": "absolute"}), ((9, 5), 1, {}), ((8, 8), 2, TEXT)],
)
def test_a_packed_model_gives_a_sample_the_same_tokens_in_every_batch(grid, heads, sizes, dtype, kernels):
    """Also with guidance that ends half way."""
    if not (native.can_run(dtype, torch.device("cpu")) if kernels == "native" else can_pack(dtype)):
        pytest.skip("this machine has no packed layers")
    model = prepare(network(grid, heads, dtype, **sizes))
    assert isinstance(model, NativeTransformer) == (kernels == "native")
    c, seeds = model.config, list(range(9))
    condition, padding = torch.arange(9), None
    if c.condition == "text":
        condition = torch.randn(9, 40, 16).to(dtype)
        padding = torch.arange(40) < torch.arange(9)[:, None] * 4
    settings = SamplingSettings(cfg_scale=2.0, cfg_interval=c.decoding_order.cells // 2)

    def drawn(rows):
        return sample_batch(
            model, condition[rows], seeds[rows], settings, None if padding is None else padding[rows]
        )

    together = drawn(slice(0, 9))
    for first, count in ((0, 1), (8, 1), (3, 2), (4, 5)):
        rows = slice(first, first + count)
        assert torch.equal(drawn(rows), together[rows])


def test_packing_leaves_odd_heads_as_they_are_and_may_be_asked_for_twice():
    torch.manual_seed(0)
    config = TransformerConfig((3, 4), 10, 1, 2, 20, 16, num_classes=2, position="absolute")
    model = NARTransformer(config).eval()  # heads of 5
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    classes, settings = torch.tensor([0, 1]), SamplingSettings()
    before = sample_batch(model, classes, [0, 1], settings)
    model = prepare(prepare(model))
    assert torch.equal(sample_batch(model, classes, [0, 1], settings), before)


def test_a_model_that_has_drawn_can_be_trained():
    model = network((4, 5), 1, torch.float32)
    tokens = sample_batch(model, torch.tensor([1]), [0], SamplingSettings())
    model.forward_train(model.condition(torch.tensor([1])), tokens).sum().backward()
    assert model.layers[0].qkv.weight.grad.abs().sum() > 0
