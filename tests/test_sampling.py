import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from narcli.errors import UsageError
from narcli.kernels import draw, packed
from narcli.models.blocks import TransformerConfig, rotate
from narcli.models.transformer import NARTransformer
from narcli.sampling import SamplingSettings, filter_logits, generate, uniform_draws
from narcli.sampling import sample as sample_batch


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = NARTransformer(TransformerConfig((5, 6), 32, 2, 2, 50, 64, num_classes=7)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def sample(model, classes, seeds, **settings):
    return sample_batch(model, torch.tensor(classes), seeds, SamplingSettings(**settings))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_sample_does_not_depend_on_its_batch(model, scale):
    together = sample(model, [1, 2, 3, 1], [5, 6, 7, 8], cfg_scale=scale, top_k=20)
    for row, (label, seed) in enumerate(zip([1, 2, 3, 1], [5, 6, 7, 8], strict=True)):
        assert torch.equal(sample(model, [label], [seed], cfg_scale=scale, top_k=20)[0], together[row])


@pytest.mark.parametrize("threads", [1, 5, 8])
def test_positions_do_not_depend_on_the_batch_however_it_is_split_over_threads(threads):
    model = NARTransformer(TransformerConfig((16, 16), 96, 1, 1, 8, 32, num_classes=2))
    step = next(step for step in model.plan().passes if len(step.tokens) == 16)
    tables = packed.halves(step.rotary, 1)
    qk = torch.randn(24, 16, 2, 2, 48, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        together = packed.rotate_halves(qk, *tables)
        for row in range(len(qk)):
            assert torch.equal(packed.rotate_halves(qk[row : row + 1], *tables)[0], together[row])
    finally:
        torch.set_num_threads(before)
    cos, sin = step.rotary
    pairs = qk.transpose(-1, -2).flatten(-2)[:, :, :, None]  # one head of 96
    torch.testing.assert_close(together.transpose(-1, -2).flatten(-2)[:, :, :, None], rotate(pairs, cos, sin))


def test_seeds_and_classes_make_a_difference(model):
    tokens = sample(model, [1, 1, 2], [0, 1, 0])
    assert not torch.equal(tokens[0], tokens[1])
    assert not torch.equal(tokens[0], tokens[2])
    assert torch.equal(sample(model, [1], [0])[0], tokens[0])


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_given_tokens_are_taken_and_what_follows_is_drawn_after_them(model, scale):
    free = sample(model, [1, 2], [5, 6], cfg_scale=scale)
    settings, classes = SamplingSettings(cfg_scale=scale), torch.tensor([1, 2])
    known = torch.full_like(free, -1)
    assert torch.equal(sample_batch(model, classes, [5, 6], settings, given=known), free)
    known[0, [0, 7]] = (free[0, [0, 7]] + 1) % 50
    drawn = sample_batch(model, classes, [5, 6], settings, given=known)
    assert torch.equal(drawn[0, [0, 7]], known[0, [0, 7]])
    assert torch.equal(drawn[1], free[1])
    assert (drawn[0] != free[0]).sum() > 5
    known[0] = drawn[0].roll(1)
    assert torch.equal(sample_batch(model, classes, [5, 6], settings, given=known)[0], known[0])


def test_guidance_interval_counts_tokens_and_the_corner_is_always_guided(model):
    def logits(**settings):
        steps = generate(model, torch.tensor([3]), [0], SamplingSettings(temperature=0, **settings))
        return [step.logits for step in steps]

    always, corner = logits(cfg_scale=4.0), logits(cfg_scale=4.0, cfg_interval=0)
    never = logits(cfg_scale=1.0)
    assert torch.equal(always[0], corner[0])
    assert not torch.allclose(always[0], never[0])
    # After the corner one token is generated: more than 0, not more than 1.
    assert not torch.allclose(always[1], corner[1])
    assert torch.allclose(always[1], logits(cfg_scale=4.0, cfg_interval=1)[1])


def test_draws_follow_the_distribution():
    probabilities = torch.tensor([0.5, 0.3, 0.0, 0.2])
    uniform = (torch.arange(1000)[None] + 0.5) / 1000
    logits = probabilities.log().expand(1, 1000, 4)
    counts = torch.bincount(draw(logits, uniform, SamplingSettings()).flatten(), minlength=4)
    assert counts.tolist() == [500, 300, 0, 200]


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 5), st.integers(0, 60), st.floats(0.01, 1))
def test_only_tokens_that_the_filters_keep_are_drawn(seed, temperature, top_k, top_p):
    logits = torch.randn(1, 9, 50, generator=torch.Generator().manual_seed(seed)) * 3
    settings = SamplingSettings(temperature=temperature, top_k=top_k, top_p=top_p)
    edge = torch.tensor([[0.0, 1 - 2**-24, *torch.rand(7).tolist()]])
    tokens = draw(logits, edge, settings)
    below = logits - logits.amax(-1, keepdim=True)
    kept = filter_logits(below / temperature, top_k, top_p) > -torch.inf
    assert kept.gather(-1, tokens[..., None]).all()
    assert kept.any(-1).all()


@pytest.mark.parametrize("temperature", [1e-320, 1e-46, 1e-38, 1e-3])
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.5}])
def test_a_temperature_near_0_takes_the_most_likely_token(temperature, filters):
    logits = torch.randn(1, 9, 50, generator=torch.Generator().manual_seed(0)) * 3
    tokens = draw(logits, torch.rand(1, 9), SamplingSettings(temperature=temperature, **filters))
    assert torch.equal(tokens, logits.argmax(-1))


def test_draws_are_one_number_a_cell_of_the_samples_own_seed():
    draws = uniform_draws([3, 4], 100)
    assert draws.shape == (2, 100)
    assert torch.equal(draws[1], uniform_draws([4], 100)[0])
    assert draws.min() >= 0 and draws.max() < 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"cfg_scale": -1},
        {"cfg_scale": math.nan},
        {"cfg_scale": math.inf},
        {"cfg_scale": 1e38},
        {"temperature": 1001},
        {"cfg_interval": -2},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.1},
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(UsageError, match="`" + next(iter(wrong)) + "`"):
        SamplingSettings(**wrong)
