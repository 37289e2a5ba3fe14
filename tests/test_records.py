"""Records of how sure a model was: against direct computations in float64, in files, and from commands."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import narcli
from conftest import small_transformer
from narcli.checkpoints.load import load_tokenizer, load_transformer
from narcli.checkpoints.save import save_model
from narcli.cli import app
from narcli.errors import CheckpointError, NarError, UsageError
from narcli.kernels import draw, prepare
from narcli.media.readers import read_metadata
from narcli.records import Recorder, heads_summary, likeliest, summary
from narcli.sampling import SamplingSettings, generate, sample

DATA = Path(__file__).with_name("data")
FILTERED = SamplingSettings(cfg_scale=2.5, temperature=0.8, top_k=40, top_p=0.95)
ARRAYS = ("tokens", "probability", "entropy", "rank", "codes", "probabilities")
HEADS = ("head_probability", "head_entropy", "disagreement")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def narcli_(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# --- networks of every order ---------------------------------------------------------------------


def peer(folder, name, order=None):
    """A golden file of another order, plain, and a condition of two samples."""
    source = DATA / name
    folder.mkdir()
    shutil.copy(source, folder)
    said = source.with_suffix(".config.json")
    shutil.copy(said if said.exists() else source.with_suffix(".json"), folder / "config.json")
    model = load_transformer(folder / source.name)
    model.config = model.config.decoded_in(order)
    return model


def networks(case, folder):
    """The plain network twice: one to sample with, which is prepared, and one to compute with."""
    match case:
        case "nar":
            return [small_transformer((4, 4), 10).eval() for _ in range(2)]
        case "nar video":
            return [small_transformer((2, 3, 3), 10, position="absolute").eval() for _ in range(2)]
        case "var":
            made = []
            for _ in range(2):
                model, tokenizer = (
                    load_transformer(DATA / "var/var.pth"),
                    load_tokenizer(DATA / "var/var_vae.pth"),
                )
                model.use(tokenizer)
                made.append(model)
            return made
    file, order = {
        "raster": ("peers/llamagen_c2i.pt", None),
        "zipar": ("peers/zipar_c2i.pt", "zipar:3"),
        "par": ("peers/par_4x.pt", None),
        "larp": ("video-peers/larp_ar.safetensors", None),
    }[case]
    return [peer(folder / str(k), file, order) for k in range(2)]


CASES = ("nar", "nar video", "raster", "zipar", "par", "larp", "var")


def directly(plain, condition, tokens, settings):
    """The guided logits of all cells, in float64, of the plain network given these tokens."""
    order, unguided = plain.config.decoding_order, plain.config.unguided
    rows = plain.condition(condition)
    if order.name.startswith("zipar"):  # not trained with teacher forcing: the plain steps
        steps = generate(plain, condition, [0] * len(condition), settings, given=tokens)
        logits = torch.empty(*tokens.shape, plain.config.vocab_size)
        for step in steps:
            logits[:, list(step.cells)] = step.logits
        return logits.double()
    logits = plain.forward_train(rows, tokens).double()
    if settings.cfg_scale > unguided:
        without = plain.forward_train(plain.condition.unconditional(condition), tokens).double()
        for step in order.passes:
            cells = list(step.cells)
            scale = settings.scale(step.clock, step.share, unguided)
            logits[:, cells] = without[:, cells] + scale * (logits[:, cells] - without[:, cells])
    return logits


def expected(logits, tokens, settings):
    """Arrays of a record of one sample, in float64, from logits (N, V)."""
    logits, tokens = logits.numpy(), np.asarray(tokens)
    cells = np.arange(len(tokens))
    z = logits / settings.temperature
    shares = np.exp(z - z.max(1, keepdims=True))
    if settings.top_k:
        shares[z < -np.sort(-z, 1)[:, settings.top_k - 1 : settings.top_k]] = 0
    shares /= shares.sum(1, keepdims=True)
    if settings.top_p < 1:
        for row in shares:
            places = np.argsort(-row, kind="stable")
            before = np.concatenate([[0], row[places].cumsum()[:-1]])
            row[places[before > settings.top_p]] = 0
        shares /= shares.sum(1, keepdims=True)
    entropy = -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(1)
    rank = (logits > logits[cells, tokens][:, None]).sum(1) + 1
    codes = np.argsort(-logits, 1, kind="stable")[:, :5]
    return {
        "probability": shares[cells, tokens],
        "entropy": entropy,
        "rank": rank,
        "codes": codes,
        "probabilities": np.take_along_axis(shares, codes, 1),
    }


@pytest.mark.parametrize("settings", [SamplingSettings(temperature=0.9), FILTERED], ids=["plain", "filtered"])
@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_numbers_are_those_of_a_direct_computation_in_every_order(case, settings, kernels, here):
    network, plain = networks(case, here)
    if case == "var" and settings is FILTERED:
        settings = SamplingSettings(cfg_scale=1.5, temperature=0.8, top_k=40, top_p=0.95)
    network, condition = prepare(network), torch.tensor([1, 2])
    order = network.config.decoding_order
    recorder = Recorder(order, 2, settings)
    tokens = torch.empty(2, order.cells, dtype=torch.int64)
    for step in generate(network, condition, [3, 4], settings, draw=draw):
        recorder.add(step)
        tokens[:, list(step.cells)] = step.tokens
    assert torch.equal(tokens, sample(network, condition, [3, 4], settings, draw=draw))
    logits = directly(plain, condition, tokens, settings)
    for index, record in enumerate(recorder.records()):
        assert record.tokens.tolist() == tokens[index].tolist()
        want = expected(logits[index], tokens[index], settings)
        for name in ("probability", "entropy", "probabilities"):
            close = np.isclose(getattr(record, name), want[name], rtol=2e-3, atol=2e-3)
            # A code at the edge of a filter may fall on the other side of it.
            assert close.mean() > 0.97, (name, close.mean())
        assert (record.rank == want["rank"]).mean() > 0.97 and np.abs(record.rank - want["rank"]).max() <= 1
        assert (record.codes == want["codes"]).mean() > 0.97
        assert record.bits == pytest.approx(-np.log2(want["probability"]).sum(), rel=0.01)


def test_without_randomness_the_likeliest_token_is_certain():
    logits = torch.tensor([[[0.1, 3.0, 2.9, -1.0]]])
    made = summary(logits, torch.tensor([[1]]), SamplingSettings(temperature=0))
    assert float(made["probability"]) == 1 and float(made["entropy"]) == 0 and int(made["rank"]) == 1
    assert made["codes"].tolist() == [[[1, 2, 0, 3]]] and made["probabilities"].tolist() == [[[1, 0, 0, 0]]]


@pytest.mark.parametrize("codes", [3, 100, 640, 1024, 4096])
def test_the_likeliest_codes_are_those_of_a_sort(codes):
    rows = torch.randn(50, codes, generator=torch.Generator().manual_seed(codes))
    values, found = likeliest(rows)
    ranked, places = rows.sort(descending=True)
    assert torch.equal(values, ranked[:, :5]) and torch.equal(found, places[:, :5])
    tokens = places[:, [0, 2, -1]].T
    ranks = summary(rows.expand(3, -1, -1), tokens, SamplingSettings())["rank"]
    assert ranks.tolist() == [[1] * 50, [3] * 50, [codes] * 50]


def test_axis_heads_apart_disagree_as_far_as_their_distributions_differ():
    one, two = torch.tensor([9.0, 0, 0, 0]), torch.tensor([0, 9.0, 0, 0])
    logits = torch.stack([torch.stack([one, one]), torch.stack([one, two]), torch.stack([one, two])])[None]
    weights = torch.tensor([[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]])
    made = heads_summary(logits, torch.tensor([[0, 0, 0]]), weights, SamplingSettings())
    p = torch.softmax(one.double(), 0)
    q, m = p[[1, 0, 2, 3]], (p + p[[1, 0, 2, 3]]) / 2
    divergence = float(((p * (p / m).log2()).sum() + (q * (q / m).log2()).sum()) / 2)
    same, apart, alone = made["disagreement"][0].tolist()
    assert same == pytest.approx(0, abs=1e-6) and apart == pytest.approx(divergence, rel=1e-4)
    assert math.isnan(alone) and math.isnan(made["head_entropy"][0, 2, 1])
    assert made["head_probability"][0, 1].tolist() == pytest.approx([float(p[0]), float(q[0])], rel=1e-4)


@torch.inference_mode()
def test_logits_of_the_axis_heads_add_up_to_those_of_the_cell(kernels):
    network = prepare(small_transformer((4, 4), 10).eval())
    settings = SamplingSettings(cfg_scale=2.0)
    for step in generate(network, torch.tensor([1, 2]), [0, 1], settings, heads=True):
        for place, terms in enumerate(network.config.decoding_order.passes[step.index].sources):
            mean = sum(source.weight * step.heads[:, place, source.head] for source in terms)
            torch.testing.assert_close(mean, step.logits[:, place], rtol=1e-4, atol=1e-4)


# --- from Python ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "tiny_video"])
def test_recording_changes_no_token_in_any_batch(name, request, kernels):
    model = narcli.load(request.getfixturevalue(name))
    classes = [207, 281] if name == "tiny" else [0, 1]
    plain = model.images(classes, seed=5, num=2)
    for extent in (True, "heads"):
        for batch_size in (1, 4):
            recorded = model.images(classes, seed=5, num=2, record=extent, batch_size=batch_size)
            for before, after in zip(plain, recorded, strict=True):
                assert torch.equal(before.tokens, after.tokens) and before.image == after.image
                assert after.record.tokens.tolist() == after.tokens.tolist()
                assert (after.record.disagreement is None) == (extent is True)
                assert before.record is None and after.record.metadata == after.metadata
    first, last = (after.record for after in (recorded[0], recorded[-1]))
    assert not np.array_equal(first.entropy, last.entropy)


def test_records_of_prompts_and_of_holistic_tokens(tiny_text, larp):
    (result,) = narcli.load(tiny_text).images(prompts="a red apple", seed=0, record="heads")
    assert len(result.record.entropy) == 16
    (clip,) = narcli.load(larp[0], tokenizer=larp[1]).videos(2, seed=0, record=True)
    assert len(clip.record.entropy) == 8


def test_many_logits_are_recorded_in_parts(tiny, monkeypatch):
    model = narcli.load(tiny)
    (whole,) = model.images(207, seed=1, record="heads")
    monkeypatch.setattr("narcli.records.TOGETHER", 100)
    (parts,) = model.images(207, seed=1, record="heads")
    for name, array in whole.record.arrays.items():
        np.testing.assert_allclose(parts.record.arrays[name], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", ["all", 3])
def test_other_extents_are_refused_at_once(tiny, value):
    with pytest.raises(UsageError, match=r"`record` is .*, expected cells or heads"):
        narcli.load(tiny).steps(207, record=value)


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture
def saved(tiny, here):
    """A result with a record, and its file."""
    (result,) = narcli.load(tiny).images(207, seed=0, record="heads")
    return result, result.record.save(here / "a.safetensors")


def test_a_record_survives_its_file(saved, here):
    result, path = saved
    loaded = narcli.Record.load(path)
    assert set(loaded.arrays) == {*ARRAYS, *HEADS}
    for name, array in result.record.arrays.items():
        np.testing.assert_array_equal(loaded.arrays[name], array)
        assert loaded.arrays[name].dtype == array.dtype
    assert loaded.metadata["class"] == result.metadata["class"] and loaded.bits == result.record.bits
    assert result.record.save(path) == here / "a_1.safetensors"
    assert result.record.save(path, overwrite=True) == path
    with pytest.raises(UsageError, match=r"expected \.safetensors"):
        result.record.save(here / "a.npz")
    assert path.stat().st_size < 16 * 90 + 3000


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ({"entropy": None}, "no record of a run"),
        ({"more": np.zeros(3, np.float32)}, "no record of a run"),
        ({"entropy": np.zeros(15, np.float32)}, r"is \[1[56]\] of"),
        ({"entropy": np.zeros(16, np.float64)}, "of F64"),
        ({"entropy": np.zeros((16, 1), np.float32)}, r"is \[16, 1\]"),
        (
            {"codes": np.zeros((16, 6), np.int32), "probabilities": np.zeros((16, 6), np.float32)},
            r"\[16, 6\]",
        ),
        ({"entropy": np.full(16, np.nan, np.float32)}, "entropy has numbers outside"),
        ({"probability": np.full(16, 1.5, np.float32)}, "probability has numbers outside of 0 to 1"),
        ({"rank": np.zeros(16, np.int32)}, "rank has numbers outside"),
        ({"codes": np.full((16, 5), -1, np.int32)}, "codes has numbers outside"),
        ({"disagreement": np.full(16, np.inf, np.float32)}, "disagreement has numbers outside"),
        ({"tokens": np.zeros(16, np.int32)}, "not those of its hash"),
    ],
)
def test_records_that_are_not_what_they_say_are_refused(saved, lie, words, here):
    _, path = saved
    arrays = {name: array for name, array in (load_file(path) | lie).items() if array is not None}
    settings = {"schema": "narcli.run/1"} | read_metadata(path)
    save_file(arrays, here / "lie.safetensors", {"narcli": json.dumps(settings)})
    with pytest.raises(CheckpointError, match=words) as caught:
        narcli.Record.load(here / "lie.safetensors")
    assert "lie.safetensors" in caught.value.message and caught.value.hint


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_damaged_records_are_refused(saved, cut, here):
    data = saved[1].read_bytes()
    (here / "cut.safetensors").write_bytes(data[:cut])
    with pytest.raises(CheckpointError):
        narcli.Record.load(here / "cut.safetensors")
    for path in (here, here / "missing.safetensors"):
        with pytest.raises(NarError):
            narcli.Record.load(path)


def test_a_record_of_another_grid_is_refused(saved, here):
    _, path = saved
    settings = read_metadata(path) | {"grid": [4, 5]}
    save_file(load_file(path), here / "lie.safetensors", {"narcli": json.dumps(settings)})
    with pytest.raises(CheckpointError, match="records 16 cells, and its grid has 20"):
        narcli.Record.load(here / "lie.safetensors")


# --- commands ------------------------------------------------------------------------------------


def test_the_command_writes_a_record_beside_each_picture(tiny, here):
    words = ("image", "--class", "207,281", "--seed", 0, "--frontier", "none", "--model", tiny)
    done = narcli_(*words, "--record", "cells", "--save-tokens", "-o", "{class}.png")
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in here.iterdir()) == sorted(
        f"{name}{ending}"
        for name in ("207", "281")
        for ending in (".png", "_record.safetensors", "_tokens.safetensors")
    )
    record = narcli.Record.load("207_record.safetensors")
    assert record.metadata["tokens_sha256"] == read_metadata(here / "207.png")["tokens_sha256"]
    assert record.tokens.tolist() == load_file("207_tokens.safetensors")["tokens"].ravel().tolist()
    again = narcli_("rerun", "207_record.safetensors", "--verify", "--model", tiny, "-o", "again.png")
    assert (
        again.exit_code == 0
        and read_metadata(here / "again.png")["tokens_sha256"] == record.metadata["tokens_sha256"]
    )
    assert narcli_("show", "207_record.safetensors").output.startswith("schema: narcli.run/1")


def test_axis_heads_are_refused_where_there_is_one_before_anything_is_drawn(tiny, here, monkeypatch):
    raster = small_transformer((4, 4), 497, order="raster")
    model = save_model(here / "raster", transformer=raster, tokenizer=load_tokenizer(tiny), classes="emoji")
    for module in ("pipeline", "kernels.program"):
        monkeypatch.setattr(f"narcli.{module}.generate", None)
    done = narcli_("image", "--class", 207, "--model", model, "--record", "heads")
    assert (
        done.exit_code == 2
        and "--record is heads, and the order raster predicts with a single head" in done.output
    )
    assert "Give --record cells" in done.output and [path.name for path in here.iterdir()] == ["raster"]
    with pytest.raises(UsageError, match="single head"):
        narcli.load(model).images(207, record="heads")


def test_a_record_needs_its_settings(tiny):
    done = narcli_("image", "--class", 207, "--model", tiny, "--record", "cells", "--no-metadata")
    assert done.exit_code == 2 and "--record and --no-metadata exclude each other" in done.output
