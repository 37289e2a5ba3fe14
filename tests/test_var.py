"""VAR: the released code's outputs (tests/data/var, float32 on a CPU), its files, settings and pictures."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import narcli
from narcli import memory
from narcli.bench import machine
from narcli.checkpoints.config import read_config
from narcli.checkpoints.convert import convert
from narcli.checkpoints.formats.families import identify
from narcli.checkpoints.load import load_tokenizer, load_transformer
from narcli.checkpoints.save import save_model
from narcli.cli import app
from narcli.errors import CheckpointError, UsageError
from narcli.hub.catalog import MODELS
from narcli.hub.sizes import networks_of
from narcli.kernels import prepare, prepare_tokenizer
from narcli.kernels.packed import PackedLinear, TransposedUpsample, can_pack
from narcli.models.multiscale import MultiscaleConfig, MultiscaleTokenizer, phi_of
from narcli.models.var import MOST
from narcli.sampling import SamplingSettings, filter_logits, generate, sample
from narcli.viz.frontier import run_frames

DATA = Path(__file__).with_name("data") / "var"
CASES = ("var", "var10", "var_saln")
GUIDED = [(case, scale) for case in CASES for scale in json.loads((DATA / f"{case}.json").read_text())["cfg"]]


def tokenizer_file(case):
    return DATA / ("var_saln.pth" if case == "var_saln" else f"{case}_vae.pth")


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """case -> (transformer, tokenizer, expected tensors), never prepared."""

    def load(case):
        folder = tmp_path_factory.mktemp(case)
        shutil.copy(DATA / f"{case}.pth", folder)
        if case == "var_saln":  # its tensors do not tell the heads
            (folder / "config.json").write_text('{"num_heads": 3}')
        model, tokenizer = load_transformer(folder / f"{case}.pth"), load_tokenizer(tokenizer_file(case))
        model.use(tokenizer)
        return model, tokenizer, load_file(DATA / f"{case}.expected.safetensors")

    return {case: load(case) for case in CASES}


@pytest.fixture(scope="module")
def packed():
    """A packed transformer and its tokenizer."""
    if not can_pack(torch.float32):
        pytest.skip("no packed layers on this machine")
    model, tokenizer = load_transformer(DATA / "var.pth"), load_tokenizer(tokenizer_file("var"))
    model.use(tokenizer)
    prepare_tokenizer(tokenizer)
    assert any(isinstance(module, TransposedUpsample) for module in tokenizer.modules())
    return prepare(model), tokenizer


@pytest.fixture(scope="module")
def pipeline():
    return narcli.load(DATA / "var.pth", tokenizer=tokenizer_file("var"), dtype="float32")


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def unit(pixels):
    """Pixels in [-1, 1] as the released code gives them, in [0, 1]."""
    return (pixels.clamp(-1, 1) + 1) / 2


def check_generation(model, tokenizer, expected, scale):
    settings = SamplingSettings(scale, temperature=0)
    condition = expected["class_ids"]
    steps = list(generate(model, condition, range(len(condition)), settings))
    tokens = torch.cat([step.tokens for step in steps], 1)
    assert torch.equal(tokens, expected[f"tokens.cfg{scale:g}"])
    close(torch.cat([step.logits for step in steps], 1), expected[f"logits.cfg{scale:g}"])
    with torch.no_grad():
        close(unit(tokenizer.decode(tokens, model.config.grid)), expected[f"image.cfg{scale:g}"])


# --- parity --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "scale"), GUIDED)
def test_tokens_logits_and_pictures_agree_with_the_released_code(released, case, scale):
    model, tokenizer, expected = released[case]
    check_generation(model, tokenizer, expected, scale)


@pytest.mark.parametrize("scale", [0.0, 4.0])
def test_packed_layers_agree_with_the_released_code(released, packed, scale):
    model, tokenizer = packed
    assert sum(isinstance(module, PackedLinear) for module in model.modules()) == 18  # 5 of 3 blocks, 3 more
    check_generation(model, tokenizer, released["var"][2], scale)


def test_a_learned_temperature_above_100_is_clamped(released):
    model = released["var"][0]
    assert max(float(block.temperature.detach().max()) for block in model.blocks) > MOST


@pytest.mark.parametrize("case", ["var", "var_saln"])
def test_training_inputs_and_logits_agree_with_the_released_code(released, case):
    model, _, expected = released[case]
    with torch.no_grad():
        close(model.train_inputs(expected["train.tokens"]), expected["train.inputs"])
        condition = model.condition(expected["class_ids"])
        close(model.forward_train(condition, expected["train.tokens"]), expected["train.logits"])


@pytest.mark.parametrize("case", CASES)
def test_the_tokenizer_agrees_with_the_released_code(released, case):
    model, tokenizer, _ = released[case]
    expected, grid = load_file(DATA / f"{case}_vae.expected.safetensors"), model.config.grid
    step_of = torch.tensor(model.config.decoding_order.step_of)
    codes, known = expected["codes"], {"first_scale": 0, "middle_scale": len(model.config.sides) // 2}
    with torch.no_grad():
        close(tokenizer.embed(codes, grid).transpose(1, 2).unflatten(2, grid), expected["f_hat"])
        close(tokenizer.decode(codes, grid).clamp(-1, 1), expected["decoded"])
        for name, scale in known.items():
            partial = torch.where(step_of <= scale, codes, -1)
            close(tokenizer.decode(partial, grid).clamp(-1, 1), expected[f"decoded.{name}"])
        close(tokenizer.features(expected["image"]), expected["features"])
        encoded = tokenizer.encode(expected["image"])
        close(tokenizer.decode(encoded, grid).clamp(-1, 1), expected["reconstructed"])
    assert torch.equal(encoded, expected["encoded"])


def test_filters_keep_what_the_released_code_keeps():
    expected = load_file(DATA / "top_k_top_p.expected.safetensors")
    cases = [name for name in expected if name.startswith("k")]
    assert len(cases) == 16
    for name in cases:
        top_k, top_p = re.fullmatch(r"k(\d+)_p(.+)", name).groups()
        kept = filter_logits(expected["logits"], int(top_k), float(top_p) or 1.0) > -torch.inf
        assert torch.equal(kept, expected[name]), name


def test_more_smooth_agrees_with_the_released_code(released):
    model, tokenizer, expected = released["var"]
    about = json.loads((DATA / "var.json").read_text())
    settings = SamplingSettings(
        about["smooth"], top_k=about["smooth_top_k"], top_p=about["smooth_top_p"], more_smooth=True
    )
    *_, last = generate(model, expected["class_ids"], range(3), settings, noise=expected["smooth.noise"])
    with torch.no_grad():
        close(unit(tokenizer.decode_vectors(last.vectors, model.config.grid)), expected["smooth.image"])


@pytest.mark.parametrize(
    ("scales", "phis"),
    [(10, "0011122333"), (3, "023"), (4, "0123"), (5, "01223"), (14, "00011112222333"), (1, "0")],
)
def test_a_scale_is_refined_by_the_nearest_convolution(scales, phis):
    assert "".join(str(phi_of(index, scales, 4)) for index in range(scales)) == phis


def test_other_numbers_of_convolutions_are_spread_evenly():
    assert [phi_of(index, 10, 1) for index in range(10)] == [0] * 10
    assert [phi_of(index, 5, 5) for index in range(5)] == [0, 1, 2, 3, 4]


# --- settings ------------------------------------------------------------------------------------


def test_guidance_grows_from_none_at_the_first_scale():
    order, settings = networks_of(MODELS["var-d16"]).transformer.decoding_order, SamplingSettings(1.5)
    shares = [settings.scale(step.clock, step.share, 0.0) for step in order.passes]
    assert shares[0] == 1 and shares[-1] == 2.5
    assert shares == pytest.approx([1 + 1.5 * k / 9 for k in range(10)])
    assert not SamplingSettings(0.0).guided(0, 0.0) and SamplingSettings(0.5).guided(0, 0.0)


def test_without_guidance_half_of_the_rows_are_enough(released):
    model, _, expected = released["var"]
    rows = []
    feed = model.feed
    model.feed = lambda state, *rest: rows.append(state.rows) or feed(state, *rest)
    try:
        for scale in (0.0, 1.0):
            sample(model, expected["class_ids"], range(3), SamplingSettings(scale))
    finally:
        del model.feed
    assert rows == [3] * 4 + [6] * 4


@pytest.mark.parametrize(
    "settings",
    [{}, {"cfg_scale": 0.0}, {"cfg_scale": 4.0, "top_k": 5}, {"top_k": 5, "top_p": 0.9, "more_smooth": True}],
    ids=str,
)
def test_a_sample_does_not_depend_on_its_batch(pipeline, settings):
    together = pipeline.images([3, 5], seed=1, num=2, batch_size=4, **settings)
    for result in together:
        alone = pipeline.images(result.class_id, seed=result.seed, **settings)[0]
        assert torch.equal(alone.tokens, result.tokens)
        assert alone.image.tobytes() == result.image.tobytes()


def test_smoothing_changes_the_picture_and_is_recorded(pipeline):
    plain, smooth = (pipeline.images(3, seed=1, more_smooth=more)[0] for more in (False, True))
    assert plain.image.tobytes() != smooth.image.tobytes()
    assert "more_smooth" not in plain.metadata["sampling"] and smooth.metadata["sampling"]["more_smooth"]
    only = {"top_k": 1, "seed": 1}  # one code is left: the mixture is that code
    plain, smooth = (pipeline.images(3, more_smooth=more, **only)[0] for more in (False, True))
    assert plain.image.tobytes() == smooth.image.tobytes()


def test_settings_of_other_families_are_refused(pipeline, tiny):
    with pytest.raises(UsageError, match="`cfg_interval` is 3, but this model has no such setting"):
        pipeline.steps(3, cfg_interval=3)
    with pytest.raises(UsageError, match="`more_smooth` is True, but this model has no such setting"):
        narcli.load(tiny).steps(0, more_smooth=True)
    with pytest.raises(UsageError, match="`order` is zipar:8, and this model decodes scale by scale"):
        narcli.load(DATA / "var.pth", tokenizer=tokenizer_file("var"), order="zipar:8")


def test_a_released_file_has_the_settings_of_the_released_scores(pipeline, tmp_path):
    expected = {"cfg_scale": 1.5, "top_k": 900, "top_p": 0.96}
    assert pipeline.defaults == SamplingSettings(**expected)
    shutil.copy(DATA / "var.pth", tmp_path)
    assert narcli.load(tmp_path, tokenizer=tokenizer_file("var")).defaults == SamplingSettings(**expected)


# --- pictures ------------------------------------------------------------------------------------


def test_a_pipeline_makes_pictures_that_get_sharper_scale_by_scale(pipeline):
    steps = list(pipeline.steps([3, 5], seed=7))
    assert [len(progress.step.cells) for progress in steps] == [1, 4, 9, 16]
    results = steps[-1].results
    assert [result.image.size for result in results] == [(8, 8)] * 2
    partials = list(pipeline.partials([result.tokens for result in results]))
    shown = [[clips[index][0].tobytes() for clips in partials] for index in range(2)]
    for index, result in enumerate(results):
        assert len(set(shown[index])) == 4 and shown[index][-1] == result.image.tobytes()
    clips = [result.frames for result in results]
    assert len(run_frames(pipeline.order, clips, partials, holistic=True)) == 4 + 1


def test_a_smoothed_picture_gets_sharper_scale_by_scale_too(pipeline):
    assert pipeline.images(3, seed=1)[0].stages is None
    results = pipeline.images([3, 5], seed=1, more_smooth=True, batch_size=2)
    partials = list(
        pipeline.partials([each.tokens for each in results], stages=[each.stages for each in results])
    )
    for index, result in enumerate(results):
        shown = [clips[index][0].tobytes() for clips in partials]
        assert len(set(shown)) == 4 and shown[-1] == result.image.tobytes()
        (of_tokens,) = pipeline.decode(result.tokens[None])
        assert of_tokens[0].tobytes() != result.image.tobytes()


def test_scales_that_are_not_known_add_nothing(released):
    model, tokenizer, expected = released["var"]
    codes = torch.full_like(expected["tokens.cfg1"], -1)
    assert not tokenizer.embed(codes, model.config.grid).any()


def test_the_network_needs_its_tokenizer(released):
    fresh = load_transformer(DATA / "var.pth")
    with pytest.raises(RuntimeError, match="tokenizer"):
        sample(fresh, torch.tensor([0]), [0], SamplingSettings())
    with pytest.raises(ValueError, match="codes of 8 numbers"):
        fresh.use(released["var_saln"][1])
    assert not any("tokenizer" in name for name in released["var"][0].state_dict())


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["var.pth", "var_saln.pth", "var_vae.pth"])
def test_files_are_told_apart(name):
    from narcli.checkpoints.containers import read_tensors

    assert ("tokenizer" in identify(read_tensors(DATA / name)).words) == ("vae" in name)
    assert "tokenizer" in identify(read_tensors(DATA / "var_saln.pth", "tokenizer")).words


def test_dropped_tensors_have_reasons_and_sizes_come_from_tensors(released):
    model = released["var"][0]
    tensors = torch.load(DATA / "var.pth", weights_only=True)
    format = identify(tensors)
    assert {name for name in tensors if format.drops(name)} == {
        "lvl_1L", "attn_bias_for_masking", *(f"blocks.{i}.attn.zero_k_bias" for i in range(3))
    }  # fmt: skip
    assert not tensors["attn_bias_for_masking"].isfinite().all()
    assert model.config.sides == (1, 2, 3, 4) and model.config.heads == 4
    assert released["var"][1].config == MultiscaleConfig(32, (1, 2), 1, 8, 64, 4)


def test_a_file_without_scales_takes_them_from_its_config(tmp_path):
    tensors = torch.load(DATA / "var.pth", weights_only=True)
    del tensors["lvl_1L"]
    save_file(tensors, tmp_path / "var.safetensors")
    with pytest.raises(CheckpointError, match="does not say its scales"):
        load_transformer(tmp_path / "var.safetensors")
    (tmp_path / "config.json").write_text('{"patch_nums": [1, 2, 3, 4], "depth": 3}')
    assert load_transformer(tmp_path / "var.safetensors").config.sides == (1, 2, 3, 4)
    (tmp_path / "config.json").write_text('{"patch_nums": [1, 2, 4], "depth": 3}')
    with pytest.raises(CheckpointError, match=r"has 30 places, not those of \(1, 2, 4\)"):
        load_transformer(tmp_path / "var.safetensors")
    (tmp_path / "config.json").write_text('{"patch_nums": [1, 2, 3, 4], "depth": 4}')
    with pytest.raises(CheckpointError, match="depth is 4, but the tensors say 3"):
        load_transformer(tmp_path / "var.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update(lvl_1L=t["lvl_1L"].flip(1)), "lvl_1L does not count square scales"),
        (lambda t: t.pop("pos_start"), "lacks 1 tensors: pos_start"),
        (lambda t: t.update({"head.weight": t["head.weight"][None]}), r"head.weight has the shape \(1, 64"),
        (lambda t: t.update({"more.weight": torch.zeros(1)}), "has unexpected 1 tensors: more.weight"),
    ],
)
def test_a_damaged_transformer_is_refused_by_the_files_own_names(tmp_path, change, words):
    tensors = torch.load(DATA / "var.pth", weights_only=True)
    change(tensors)
    torch.save(tensors, tmp_path / "var.pth")
    with pytest.raises(CheckpointError, match=words):
        load_transformer(tmp_path / "var.pth")


@pytest.mark.parametrize("sides", [[1, "4"], [1, [4]], ["x"], [], [4, 2], [0, 4], [True], [1] * 33, 4])
def test_sides_that_are_none_are_refused(tmp_path, sides):
    shutil.copy(DATA / "var.pth", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"patch_nums": sides}))
    with pytest.raises(CheckpointError, match=r"patch_nums is .*, expected a list of 1 to 32 sides"):
        load_transformer(tmp_path / "var.pth")


@pytest.mark.parametrize(
    ("model", "tokenizer", "words"),
    [
        ("var.pth", "var10_vae.pth", "draws from 64 codes, and the tokenizer .* has 96"),
        ("var_vae.pth", "var_vae.pth", "is a multi-scale image tokenizer"),
        ("var.pth", "var.pth", "is a VAR model, not a tokenizer"),
        ("var.pth", "../vq.pt", "in the scales of VAR, and the tokenizer .* is for grids without scales"),
    ],
)
def test_wrong_pairs_are_refused(model, tokenizer, words):
    with pytest.raises(CheckpointError, match=words):
        narcli.load(DATA / model, tokenizer=DATA / tokenizer)


def test_codes_of_another_width_are_refused_in_a_sentence(tmp_path):
    other = MultiscaleTokenizer(MultiscaleConfig(32, (1, 2), 1, 4, 64))
    folder = save_model(tmp_path / "other", tokenizer=other)
    with pytest.raises(
        CheckpointError, match=r"takes codes of 8 numbers, and the tokenizer .*other has others"
    ):
        narcli.load(DATA / "var.pth", tokenizer=folder)


def test_a_converted_folder_gives_the_same_pictures(pipeline, tmp_path):
    folder = convert(DATA / "var.pth", tmp_path / "mine", tokenizer=tokenizer_file("var"))
    about = read_config(folder / "config.json")
    assert about.transformer["sides"] == (1, 2, 3, 4) and about.tokenizer["phis"] == 4
    assert about.defaults == {"cfg_scale": 1.5, "top_k": 900, "top_p": 0.96}
    again = narcli.load(convert(folder, tmp_path / "again"), dtype="float32")
    assert again.images(3, seed=2)[0].image.tobytes() == pipeline.images(3, seed=2)[0].image.tobytes()
    alone = load_tokenizer(convert(tokenizer_file("var"), tmp_path / "tokenizer"))
    assert alone.config == pipeline.tokenizer.config


def test_a_training_checkpoint_has_both_networks(tmp_path):
    shutil.copy(DATA / "var_saln.pth", tmp_path)
    file = tmp_path / "var_saln.pth"
    with pytest.raises(CheckpointError, match="0 attention heads cannot share a width of 48"):
        narcli.load(file, tokenizer=file)
    (tmp_path / "config.json").write_text('{"num_heads": 3}')
    folder = convert(file, tmp_path / "mine", tokenizer=file)
    loaded, made = narcli.load(file, tokenizer=file, dtype="float32"), narcli.load(folder, dtype="float32")
    assert loaded.model.config.shared_modulation and not loaded.model.config.normalised_attention
    assert made.images(3, seed=2)[0].image.tobytes() == loaded.images(3, seed=2)[0].image.tobytes()


# --- the catalog ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("var-d16", 310_283_520),
        ("var-d20", 600_917_136),
        ("var-d24", 1_033_399_360),
        ("var-d30", 2_010_020_356),
        ("var-d36-512", 2_353_893_904),
    ],
)
def test_rows_have_the_released_sizes(name, parameters):
    row = MODELS[name]
    networks = networks_of(row)
    assert networks.parameters == {"transformer": parameters, "tokenizer": 108_948_355}
    assert networks.tokenizer == MultiscaleConfig()
    assert row.size == pytest.approx(4 * parameters, rel=0.003)
    needed = memory.estimate(networks, torch.float32, 1)
    small = memory.estimate(networks, torch.float32, 1, guided=False)
    places = networks.transformer.decoding_order.cells
    cache = 2 * networks.transformer.layers * networks.transformer.dim * places * 4
    assert needed.sampling - small.sampling >= cache and small.sampling > cache


def test_a_model_of_scales_is_measured(tmp_path):
    words = [
        "bench",
        "--model",
        str(DATA / "var.pth"),
        "--tokenizer",
        str(DATA / "var_vae.pth"),
        "--repeats",
        "1",
    ]
    done = CliRunner().invoke(app, [*words, "--batch-sizes", "1,2", "--dtype", "float32", "--json"])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert [(case["order"], case["batch_size"], case["passes"]) for case in document["cases"]] == [
        ("var:1-2-3-4", 1, 4), ("var:1-2-3-4", 2, 4),
    ]  # fmt: skip
    assert all(case["share_of_limit"] > 0 for case in document["cases"])


def test_the_limit_counts_what_the_network_computes(released):
    model = released["var"][0]
    settings = SamplingSettings(cfg_scale=1.5)
    slow = machine.Limits(read=1e30, products=1.0)
    least = machine.limit(model, 1, settings, slow)
    with FlopCounterMode(display=False) as counter:
        list(generate(model, torch.tensor([0]), [0], settings))
    products = ("mm", "addmm", "bmm")
    counts = counter.get_flop_counts()["Global"].items()
    counted = sum(count for op, count in counts if str(op).removeprefix("aten.") in products)
    assert counted == pytest.approx(least, rel=0.15)
