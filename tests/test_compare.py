"""``narcli compare``: the same samples in several orders, and what may be compared."""

import json
from math import log2
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import narcli
from narcli.bench import compare as bench
from narcli.bench.compare import difference, enter
from narcli.checkpoints.load import load_tokenizer, load_transformer
from narcli.checkpoints.save import save_model
from narcli.cli import app
from narcli.errors import NarError, UsageError
from narcli.media import writers
from narcli.media.readers import read_metadata
from narcli.models.blocks import TransformerConfig
from narcli.models.transformer import NARTransformer
from narcli.models.vq import VQConfig, VQTokenizer
from narcli.order import named
from narcli.runs.recipe import Recipe
from narcli.sampling import SamplingSettings, generate

ORDERS = ("nar", "raster", "zipar:2", "par:4")
RECORD = {"data": "d" * 64, "tokenizer": "e" * 64, "layers": 3, "dim": 32, "steps": 5, "seed": 0}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of three models by order, with equal records of their training."""
    place = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    vq = VQTokenizer(VQConfig(32, (1, 1), 1, 32, codebook_size=24))
    torch.nn.init.normal_(vq.quantize.embedding.weight)
    made = {}
    for order, layers in (("nar", 2), ("raster", 3), ("par:4", 3)):
        config = TransformerConfig((4, 4), 32, layers, 2, 24, 64, num_classes=2, order=order)
        network = NARTransformer(config)
        network.init_weights()
        for head in network.ordered_heads:
            torch.nn.init.normal_(head.output.weight, std=0.3)
        folder = place / order.replace(":", "-")
        made[order] = save_model(
            folder, transformer=network, tokenizer=vq, classes=["a", "b"], training=RECORD
        )
    return made


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Labelled pictures of the models' size: dark ones of class a, bright ones of class b."""
    folder = tmp_path_factory.mktemp("reference")
    pictures = np.concatenate([np.full((3, 8, 8, 3), 10), np.full((3, 8, 8, 3), 245)]).astype(np.uint8)
    np.save(folder / "images.npy", pictures)
    np.save(folder / "labels.npy", np.array([0, 0, 0, 1, 1, 1]))
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Files are written to a folder of the test."""
    monkeypatch.chdir(tmp_path)


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["compare", *map(str, arguments)])
    assert result.exit_code == code, (result.stderr, result.exception)
    return result


def given(models, *orders):
    return [word for order in orders for word in ("--model", models[order])]


QUICK = [
    "--class",
    "a,b",
    "--num",
    2,
    "--seed",
    3,
    "--repeats",
    1,
    "--batch-sizes",
    "1,2",
    "--dtype",
    "float32",
]


def test_orders_are_compared_on_the_same_samples(models, reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*given(models, "nar", "raster", "par:4"), "--orders", ",".join(ORDERS), *QUICK]
    result = run(*words, "--reference", reference, "-o", "sheet.png", "--json")
    document = json.loads(result.stdout)
    assert document["trained_alike"] and "not_alike" not in document
    orders = {each["order"]: each for each in document["orders"]}
    assert {name: each["passes"] for name, each in orders.items()} == {
        "nar": 7, "raster": 16, "zipar:2": 12, "par:4": 7,
    }  # fmt: skip
    assert {name: each["widest"] for name, each in orders.items()} == {
        name: named(name, (4, 4)).widest for name in ORDERS
    }
    assert [sample["seed"] for sample in document["samples"]] == [3, 4, 3, 4]
    for name, each in orders.items():
        pipeline = narcli.load(models["raster" if name == "zipar:2" else name], dtype="float32", order=name)
        expected = [r.metadata["tokens_sha256"] for r in pipeline.images(["a", "b"], 3, 2)]
        assert each["tokens_sha256"] == expected
        assert set(each["batch_sizes"]) == {"1", "2"} and each["batch_sizes"]["2"]["seconds"] > 0
        assert 0 <= each["own_class"] <= 1
    assert orders["raster"]["tokens_sha256"] != orders["zipar:2"]["tokens_sha256"]
    with Image.open("sheet.png") as sheet:
        assert sheet.width >= 4 * 8 and sheet.height >= 4 * (8 + 30)
    assert read_metadata(tmp_path / "sheet.png")["command"] == "compare"


def test_bits_and_the_likeliest_are_those_of_the_network(models):
    document = json.loads(run(*given(models, "raster"), *QUICK, "--temperature", 0.7, "--json").stdout)
    model = narcli.load(models["raster"], dtype="float32").model
    settings = SamplingSettings(temperature=0.7)
    bits, likeliest = [], []
    for label in (0, 1):
        for step in generate(model, torch.tensor([label, label]), [3, 4], settings):
            odds = step.logits.softmax(-1).gather(-1, step.tokens[..., None])
            bits += [-log2(p) for p in odds.flatten().tolist()]
            likeliest += (step.logits.argmax(-1) == step.tokens).flatten().tolist()
    (each,) = document["orders"]
    assert each["bits"] == pytest.approx(sum(bits) / len(bits), abs=1e-3)
    assert each["likeliest"] == pytest.approx(sum(likeliest) / len(likeliest), abs=1e-4)


def test_quality_is_not_compared_between_models_that_were_not_trained_alike(models, reference, tmp_path):
    other = save_model(
        tmp_path / "other", transformer=load_transformer(models["raster"]),
        tokenizer=load_tokenizer(models["raster"]), classes=["a", "b"], training=RECORD | {"steps": 6},
    )  # fmt: skip
    words = [*given(models, "nar"), "--model", other, *QUICK, "--reference", reference]
    result = run(*words, "-o", tmp_path / "sheet.png", "--json")
    document = json.loads(result.stdout)
    assert (
        not document["trained_alike"] and document["not_alike"] == "nar and other differ in steps (5 and 6)"
    )
    assert "not trained alike" in result.stderr
    assert all("own_class" not in each for each in document["orders"])


def test_a_model_without_a_record_was_trained_alike_with_none_but_itself(models, tmp_path):
    recipe = Recipe(classes="a", offline=True)
    bare = save_model(
        tmp_path / "bare", transformer=load_transformer(models["nar"]), classes=["a", "b"],
        tokenizer=load_tokenizer(models["nar"]),
    )  # fmt: skip
    assert difference(enter([models["raster"]], ["raster", "zipar:2"], recipe)) is None
    assert difference(enter([models["raster"], models["nar"]], [], recipe)) is None
    assert "bare has no record" in difference(enter([models["raster"], bare], [], recipe))


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        ("nar,par:16", "No model decodes in the order par:16"),
        ("nar,nar", "one is there twice"),
        ("raster,zipar:9", "No model decodes in the order zipar:9"),
        ("diagonal", "There is no order 'diagonal'"),
    ],
)
def test_orders_that_cannot_be_compared_are_refused(models, orders, message):
    assert message in run(*given(models, "nar", "raster"), "--orders", orders, *QUICK, code=2).stderr


def test_an_order_of_one_model_says_why_it_does_not_fit(models):
    with pytest.raises(UsageError, match="decodes in the order nar"):
        enter([models["nar"]], ["zipar:2"], Recipe(classes="a", offline=True))


def test_the_table_and_the_sheet_come_without_json(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*given(models, "nar", "raster"), *QUICK)
    lines = result.stdout.splitlines()
    assert lines[0].split()[:4] == ["order", "model", "passes", "widest"] and "own class" not in lines[0]
    assert [line.split()[0] for line in lines[1:3]] == ["nar", "raster"]
    assert lines[3:] == ["narcli-compare.png"] and (tmp_path / lines[3]).is_file()
    again = run(*given(models, "nar"), *QUICK, "-o", "narcli-compare.png")
    assert "narcli-compare_1.png" in again.stdout  # nothing is overwritten


def test_a_reference_without_labels_is_refused_before_anything_is_drawn(models, tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((2, 8, 8, 3), np.uint8))
    result = run(*given(models, "nar"), *QUICK, "--reference", tmp_path, "-o", tmp_path / "a.png", code=2)
    assert "no labelled pictures" in result.stderr and not (tmp_path / "a.png").exists()


def test_each_order_says_its_settings_and_a_note_where_they_differ(models, tmp_path):
    guided = save_model(
        tmp_path / "guided", transformer=load_transformer(models["raster"]), classes=["a", "b"],
        tokenizer=load_tokenizer(models["raster"]), defaults={"cfg_scale": 3.0},
    )  # fmt: skip
    words = [*given(models, "nar"), "--model", guided, *QUICK]
    document = json.loads(run(*words, "--json").stdout)
    assert [each["sampling"]["cfg_scale"] for each in document["orders"]] == [1.0, 3.0]
    assert "own settings: cfg_scale 1.0 and 3.0." in run(*words).stderr
    assert "own settings" not in run(*words, "--cfg-scale", 2).stderr


def test_figures_are_printed_if_the_sheet_cannot_be_written(models, monkeypatch):
    def full(*_, **__):
        raise NarError("The disk is full.", "Free some space.")

    monkeypatch.setattr(writers, "write_png", full)
    result = run(*given(models, "nar"), *QUICK, "--json", code=1)
    document = json.loads(result.stdout)
    assert document["orders"][0]["passes"] == 7 and "file" not in document
    assert "The disk is full" in result.stderr


def test_a_sheet_of_more_samples_than_its_metadata_hold_is_written(models, monkeypatch):
    for module in (bench, writers):
        monkeypatch.setattr(module, "MAX_METADATA", 3000)
    words = [*given(models, "nar", "raster"), "--class", "a", "--num", 20, "--seed", 3, *QUICK[6:]]
    document = json.loads(run(*words, "--json").stdout)
    assert len(document["samples"]) == len(document["orders"][0]["tokens_sha256"]) == 20
    measured = read_metadata(Path(document["file"]))["measured"]
    with Image.open(document["file"]) as sheet:  # a row goes on below after 16 pictures
        assert sheet.width < 20 * 16 and sheet.height > 4 * 16
    assert "samples" not in measured and "tokens_sha256" not in measured["orders"][0]
    assert [each["passes"] for each in measured["orders"]] == [7, 16]


def test_classes_of_references_say_nothing_of_prompts(reference):
    words = ["--model", "emoji-text", "--prompt", "a red apple", "--reference", reference]
    assert "--reference tells classes" in run(*words, code=2).stderr


def test_a_drawn_seed_is_that_of_all_orders(models):
    words = ["--class", "a", "--repeats", 1, "--batch-sizes", "1", "--dtype", "float32", "--json"]
    document = json.loads(run(*given(models, "raster"), "--orders", "raster,zipar:2", *words).stdout)
    (sample,) = document["samples"]
    for each in document["orders"]:
        pipeline = narcli.load(models["raster"], dtype="float32", order=each["order"])
        (result,) = pipeline.images("a", sample["seed"])
        assert each["tokens_sha256"] == [result.metadata["tokens_sha256"]]
