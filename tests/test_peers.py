"""LlamaGen, ZipAR, PAR and LARP-AR against the released code's outputs (tests/data, float32 on a CPU)."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from narcli.checkpoints.containers import read_tensors
from narcli.checkpoints.load import load_tokenizer, load_transformer, transformer_config
from narcli.errors import CheckpointError, UsageError
from narcli.hub.catalog import MODELS
from narcli.hub.sizes import networks_of
from narcli.kernels import native, prepare
from narcli.kernels.native import NativeTransformer
from narcli.kernels.packed import can_pack
from narcli.models.transformer import NARTransformer
from narcli.sampling import SamplingSettings, generate

DATA = Path(__file__).with_name("data")
FILES = {
    "llamagen_c2i": "peers/llamagen_c2i.pt",
    "llamagen_t2i": "peers/llamagen_t2i.pt",
    "par_4x": "peers/par_4x.pt",
    "par_16x": "peers/par_16x.pt",
    "zipar_c2i": "peers/zipar_c2i.pt",
    "zipar_t2i": "peers/zipar_t2i.pt",
    "larp_ar": "video-peers/larp_ar.safetensors",
    "larp_ar_fp": "video-peers/larp_ar_fp.safetensors",
}
ABOUT = {name: json.loads((DATA / file).with_suffix(".json").read_text()) for name, file in FILES.items()}
ORDERS = {
    "llamagen_c2i": "raster",
    "llamagen_t2i": "raster",
    "par_4x": "par:4",
    "par_16x": "par:16",
    "zipar_c2i": "raster",
    "zipar_t2i": "raster",
    "larp_ar": "raster",
    "larp_ar_fp": "raster",
}
CASES = [
    (name, window, scale, interval)
    for name, about in ABOUT.items()
    for window in about.get("windows", [None])
    for scale, interval in about["cfg"]
]


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """name -> (model, condition, padding, expected tensors)."""

    def load(name):
        source = DATA / FILES[name]
        folder = tmp_path_factory.mktemp(name)
        shutil.copy(source, folder)
        said = source.with_suffix(".config.json")
        shutil.copy(said if said.exists() else source.with_suffix(".json"), folder / "config.json")
        expected = load_file(source.with_suffix(".expected.safetensors"))
        model = load_transformer(folder / source.name)
        if "caption_mask" in expected:
            return model, expected["caption_embeddings"], expected["caption_mask"] == 0, expected
        if "cond_tokens" in expected:
            return model, expected["cond_tokens"][:, :-1], None, expected
        return model, expected["class_ids"], None, expected

    return {name: load(name) for name in FILES}


def copied(model, order):
    """The model again, decoded in an order."""
    copy = NARTransformer(model.config)
    copy.load_state_dict(model.state_dict())
    copy.config = copy.config.decoded_in(order)
    return copy.eval()


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_recognised_with_its_order_and_sizes(released, name):
    c, about = released[name][0].config, ABOUT[name]
    assert (c.order, c.dim, c.layers, c.heads) == (ORDERS[name], 64, about["n_layer"], 4)
    assert c.vocab_size == 64
    assert c.extra_tokens == ("fp" in name)
    if "grid" in about:
        assert list(c.grid) == about["grid"]
    else:
        assert c.grid == (1, 1, about["max_seq_len"])


@pytest.mark.parametrize("layers", ["plain", "packed", "native"])
@pytest.mark.parametrize(("name", "window", "scale", "interval"), CASES)
def test_tokens_equal_and_logits_agree_with_the_released_code(
    released, name, window, scale, interval, layers, monkeypatch
):
    model, condition, padding, expected = released[name]
    model = copied(model, window and f"zipar:{window}")
    if layers != "native":
        monkeypatch.setattr(native, "library", lambda: None)
    if layers != "plain":
        if native.library() is None and not (layers == "packed" and can_pack(torch.float32)):
            pytest.skip(f"no {layers} layers on this machine")
        model = prepare(model)
        assert isinstance(model, NativeTransformer) == (layers == "native")
    key = "" if name == "larp_ar_fp" else f".cfg{scale:g}" + (f"_interval{interval}" if interval >= 0 else "")
    key = f".w{window}{key}" if window else key
    settings = SamplingSettings(scale, interval, temperature=0)
    steps = list(generate(model, condition, range(len(condition)), settings, padding))
    tokens = torch.empty_like(expected[f"tokens{key}"])
    for step in steps:
        tokens[:, list(step.cells)] = step.tokens.to(tokens.dtype)
    if "forward_passes" in ABOUT[name]:
        assert len(steps) == ABOUT[name]["forward_passes"][key[1:]]
    assert torch.equal(tokens, expected[f"tokens{key}"])
    logits = torch.cat([step.logits for step in steps], 1)
    torch.testing.assert_close(logits, expected[f"logits{key}"], rtol=1e-4, atol=5e-4)


@pytest.mark.parametrize("name", ["zipar_c2i", "zipar_t2i", "par_4x", "par_16x"])
def test_cells_come_in_the_order_of_the_released_code(released, name):
    model, _, _, expected = released[name]
    for window in ABOUT[name].get("windows", [None]):
        order = model.config.decoded_in(window and f"zipar:{window}").decoding_order
        key = f".w{window}" if window else ""
        assert list(order.generation) == expected[f"order{key}"].tolist()
        passes = [order.step_of[cell] for cell in order.generation]
        assert passes == expected[f"passes{key}"].tolist()


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("zipar")])
def test_training_logits_and_loss_agree_with_the_released_code(released, name):
    model, condition, padding, expected = released[name]
    tokens = expected["train.tokens"].long()
    with torch.no_grad():
        logits = model.forward_train(model.condition(condition), tokens, padding)
    torch.testing.assert_close(logits, expected["train.logits"], rtol=1e-4, atol=5e-4)
    loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    torch.testing.assert_close(loss, expected["train.loss"][0], rtol=1e-5, atol=1e-5)


def test_a_model_that_goes_on_from_frames_refuses_guidance(released):
    model, condition, _, _ = released["larp_ar_fp"]
    with pytest.raises(UsageError, match="`cfg_scale` above 1"):
        next(generate(model, condition, range(len(condition)), SamplingSettings(2.0)))


def test_given_frames_are_encoded_with_the_last_one_repeated(released, tmp_path):
    _, condition, _, expected = released["larp_ar_fp"]
    shutil.copy(DATA / "larp.safetensors", tmp_path / "larp.safetensors")
    shutil.copy(DATA / "larp.config.json", tmp_path / "config.json")
    tokenizer = load_tokenizer(tmp_path / "larp.safetensors")
    with torch.no_grad():
        assert torch.equal(tokenizer.encode_given(expected["cond_frames"], 4), condition)
        decoded = tokenizer.decode(expected["tokens"].long())
    torch.testing.assert_close(decoded, expected["decoded"], rtol=1e-4, atol=1e-4)


def test_frame_prediction_of_nar_is_refused_by_name():
    with pytest.raises(CheckpointError, match="NAR model of frame prediction") as raised:
        load_transformer(DATA / "video-peers" / "nar_fp.pth")
    assert "larp-ar-k600" in raised.value.hint


@pytest.mark.parametrize(
    ("name", "order", "message"),
    [
        ("par_4x", "zipar:2", "decodes in the order par:4"),
        ("par_4x", "raster", "decodes in the order par:4"),
        ("llamagen_c2i", "par:4", "decodes in the order raster"),
        ("llamagen_c2i", "zipar:8", "window is 8 on the grid 8x8, expected 2 to 7"),
        ("llamagen_c2i", "zipar", "no order 'zipar'"),
        ("llamagen_c2i", "diagonal", "no order 'diagonal'"),
        ("larp_ar", "zipar:8", "ZipAR does not decode the grid 1x1x32"),
    ],
)
def test_an_order_that_a_model_does_not_have_is_refused(released, name, order, message):
    with pytest.raises(UsageError, match=message):
        released[name][0].config.decoded_in(order)


@pytest.mark.parametrize(
    ("stem", "name", "grid"),
    [
        ("c2i_B_256", "llamagen_c2i", (16, 16)),
        ("c2i_XL_384", "llamagen_c2i", (24, 24)),
        ("t2i_XL_stage2_512", "llamagen_t2i", (32, 32)),
        ("model", "llamagen_c2i", (16, 16)),
        ("PAR-XL-4x", "par_4x", (24, 24)),
        ("any", "zipar_c2i", (8, 8)),  # which holds a table of positions
    ],
)
def test_a_grid_follows_from_the_name_or_the_table_of_positions(stem, name, grid, tmp_path):
    path = tmp_path / f"{stem}.pt"
    shutil.copy(DATA / FILES[name], path)
    (tmp_path / "config.json").write_text('{"n_head": 4}')
    assert transformer_config(path).grid == grid


def test_a_table_of_positions_begins_with_the_condition(tmp_path):
    tensors = read_tensors(DATA / FILES["llamagen_t2i"])
    table = torch.zeros(7 + 4, 8, 2)  # seven condition tokens and a grid of 2x2
    torch.save({"model": {**tensors, "freqs_cis": table}}, tmp_path / "any.pt")
    (tmp_path / "config.json").write_text('{"n_head": 4}')
    assert transformer_config(tmp_path / "any.pt").grid == (2, 2)


def test_a_model_keeps_its_order_in_a_narcli_folder(released, tmp_path):
    from narcli.checkpoints.save import save_model

    for name in ("llamagen_c2i", "par_4x", "larp_ar", "larp_ar_fp"):
        model = released[name][0]
        saved = load_transformer(save_model(tmp_path / name, transformer=model))
        assert saved.config == model.config
        assert all(torch.equal(saved.state_dict()[k], v) for k, v in model.state_dict().items())


def test_a_grid_that_par_cannot_cut_is_refused(released, tmp_path):
    shutil.copy(DATA / FILES["par_4x"], tmp_path / "model.pt")
    (tmp_path / "config.json").write_text('{"n_head": 4, "grid": [5, 6]}')
    with pytest.raises(CheckpointError, match="grid 5x6 cannot be cut into 4 regions"):
        load_transformer(tmp_path / "model.pt")
    assert replace(released["par_4x"][0].config, grid=(8, 8)).decoding_order.cells == 64


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llamagen-b-256", 110_888_448),
        ("llamagen-l-384", 342_910_976),
        ("llamagen-xl-384", 774_699_520),
        ("llamagen-xxl-384", 1_410_972_672),
        ("llamagen-3b-384", 3_096_659_200),
        ("llamagen-xl-t2i-512", 777_678_080 + 120 * 2048),  # the text that stands for none is stored
        ("par-xl-4x-384", 774_699_520 + 3 * 1280),
        ("par-3b-16x-384", 3_096_659_200 + 15 * 3200),
        ("larp-ar-ucf101", 631_975_680),
    ],
)
def test_rows_of_the_catalog_have_the_sizes_of_the_released_models(name, parameters):
    row = MODELS[name]
    assert networks_of(row).parameters["transformer"] == parameters
    assert row.size == pytest.approx(4 * parameters, rel=0.01)
