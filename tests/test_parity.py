"""The released code's outputs (tests/data, float32 on a CPU), and the slow oracle, against the fast path."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from narcli.bench.plain import generate_plain
from narcli.checkpoints.load import load_tokenizer, load_transformer
from narcli.kernels import native, prepare, prepare_tokenizer
from narcli.kernels.native import NativeTransformer
from narcli.kernels.packed import TransposedUpsample, can_pack
from narcli.models.blocks import TransformerConfig
from narcli.models.transformer import NARTransformer
from narcli.sampling import SamplingSettings, filter_logits, generate

DATA = Path(__file__).with_name("data")
FILES = {"c2i": "c2i.pt", "t2i": "t2i.pt", "c2v": "c2v.pth"}
SETTINGS = [
    (kind, scale, interval)
    for kind in FILES
    for scale, interval in json.loads((DATA / f"{kind}.json").read_text())["cfg"]
]


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """kind -> (model, condition, padding, expected tensors)."""

    def load(kind):
        folder = tmp_path_factory.mktemp(kind)
        shutil.copy(DATA / FILES[kind], folder)
        shutil.copy(DATA / f"{kind}.json", folder / "config.json")
        expected = load_file(DATA / f"{kind}.expected.safetensors")
        model = load_transformer(folder / FILES[kind])
        if kind == "t2i":
            return model, expected["caption_embeddings"], expected["caption_mask"] == 0, expected
        return model, expected["class_ids"], None, expected

    return {kind: load(kind) for kind in FILES}


def run(model, condition, settings, padding=None, seeds=None):
    """(tokens in raster order, logits in generation order)."""
    steps = list(generate(model, condition, seeds or range(len(condition)), settings, padding))
    assert [step.done for step in steps][-1] == model.config.decoding_order.cells
    return gathered(model, condition, steps)


def run_plain(model, condition, settings, padding=None):
    """The same, by the slow algorithm."""
    return gathered(
        model, condition, list(generate_plain(model, condition, range(len(condition)), settings, padding))
    )


def gathered(model, condition, steps):
    tokens = torch.empty(len(condition), model.config.decoding_order.cells, dtype=torch.int64)
    for step in steps:
        tokens[:, list(step.cells)] = step.tokens
    return tokens, torch.cat([step.logits for step in steps], 1)


@pytest.mark.parametrize("layers", ["plain", "packed", "native"])
@pytest.mark.parametrize(("kind", "scale", "interval"), SETTINGS)
def test_tokens_equal_and_logits_agree_with_the_released_code(
    released, kind, scale, interval, layers, monkeypatch
):
    model, condition, padding, expected = released[kind]
    if layers != "native":
        monkeypatch.setattr(native, "library", lambda: None)
    if layers != "plain":
        if native.library() is None and not (layers == "packed" and can_pack(torch.float32)):
            pytest.skip(f"no {layers} layers on this machine")
        copy = NARTransformer(model.config)
        copy.load_state_dict(model.state_dict())
        model = prepare(copy.eval())
        assert isinstance(model, NativeTransformer) == (layers == "native")
    key = f"cfg{scale:g}" + (f"_interval{interval}" if interval >= 0 else "")
    tokens, logits = run(model, condition, SamplingSettings(scale, interval, temperature=0), padding)
    assert torch.equal(tokens, expected[f"tokens.{key}"])
    torch.testing.assert_close(logits, expected[f"logits.{key}"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", FILES)
def test_training_logits_and_loss_agree_with_the_released_code(released, kind):
    model, condition, padding, expected = released[kind]
    with torch.no_grad():
        logits = model.forward_train(model.condition(condition), expected["train.tokens"], padding)
    torch.testing.assert_close(logits, expected["train.logits"], rtol=1e-4, atol=1e-4)
    loss = F.cross_entropy(logits.flatten(0, 1), expected["train.tokens"].flatten())
    torch.testing.assert_close(loss, expected["train.loss"][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_image_tokenizer_agrees_with_the_released_code(packed):
    expected = load_file(DATA / "vq.expected.safetensors")
    tokenizer = load_tokenizer(DATA / "vq.pt")
    if packed:
        if not can_pack(torch.float32):
            pytest.skip("no packed layers on this machine")
        prepare_tokenizer(tokenizer)
        assert any(isinstance(module, TransposedUpsample) for module in tokenizer.modules())
    with torch.no_grad():
        decoded = tokenizer.decode(expected["codes"], (4, 4))
        encoded = tokenizer.encode(expected["image"])
    torch.testing.assert_close(decoded, expected["decoded"], rtol=1e-4, atol=1e-4)
    assert torch.equal(encoded, expected["encoded"])


def test_video_tokenizer_agrees_with_the_released_code(larp, kernels):
    expected = load_file(DATA / "larp.expected.safetensors")
    tokenizer = load_tokenizer(larp[1])
    with torch.no_grad():
        decoded = tokenizer.decode(expected["codes"])
        encoded = tokenizer.encode(expected["video"])
    torch.testing.assert_close(decoded, expected["decoded"], rtol=1e-4, atol=1e-4)
    assert torch.equal(encoded, expected["encoded"])


def test_filters_keep_what_the_released_code_keeps():
    expected = load_file(DATA / "top_k_top_p.expected.safetensors")
    cases = [name for name in expected if name.startswith("keep.")]
    assert len(cases) == 7
    for name in cases:
        top_k, top_p = re.fullmatch(r"keep\.k(\d+)_p(.+)", name).groups()
        kept = filter_logits(expected["logits"], int(top_k), float(top_p)) > -torch.inf
        assert torch.equal(kept, expected[name].bool()), name


@pytest.mark.parametrize("kind", FILES)
def test_the_slow_oracle_agrees_with_the_released_code(released, kind):
    model, condition, padding, expected = released[kind]
    scale, interval = [case[1:] for case in SETTINGS if case[0] == kind][-1]
    key = f"cfg{scale:g}" + (f"_interval{interval}" if interval >= 0 else "")
    settings = SamplingSettings(scale, interval, temperature=0)
    tokens, logits = run_plain(model, condition, settings, padding)
    assert torch.equal(tokens, expected[f"tokens.{key}"])
    torch.testing.assert_close(logits, expected[f"logits.{key}"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("grid", "position"),
    [((3, 5), "rotary"), ((5, 2), "rotary"), ((1, 4), "rotary"), ((3, 2, 4), "absolute"), ((6,), "absolute")],
)
def test_fast_path_agrees_with_the_oracle_on_grids_that_are_not_square(grid, position):
    torch.manual_seed(1)
    config = TransformerConfig(grid, 32, 2, 4, 40, 64, num_classes=5, position=position)
    model = NARTransformer(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    classes = torch.tensor([0, 4, 2])
    slow, slow_logits = run_plain(model, classes, SamplingSettings(3.0, 4, temperature=0))
    fast, fast_logits = run(model, classes, SamplingSettings(3.0, 4, temperature=0))
    assert torch.equal(fast, slow)
    torch.testing.assert_close(fast_logits, slow_logits, rtol=1e-4, atol=1e-4)


def test_teacher_forcing_gives_the_logits_of_generation(released):
    model, condition, _, _ = released["c2i"]
    tokens, logits = run(model, condition, SamplingSettings(temperature=0))
    with torch.no_grad():
        trained = model.forward_train(model.condition(condition), tokens)
    torch.testing.assert_close(
        trained[:, list(model.config.decoding_order.generation)], logits, rtol=1e-4, atol=1e-4
    )
