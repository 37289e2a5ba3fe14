"""The benchmark measures what it says: the same network in other orders, and the plain algorithm."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from narcli import bench
from narcli.checkpoints import save_model
from narcli.errors import UsageError
from narcli.models.transformer import NARTransformer, TransformerConfig
from narcli.models.vq import VQConfig, VQTokenizer
from narcli.registry import MODELS
from narcli.sampling import generate
from narcli.settings import SamplingSettings

TINY = {"dim": 32, "layers": 2, "heads": 2, "vocab_size": 24, "ffn_dim": 64}
CPU = torch.device("cpu")


def network(grid=(3, 4), **options):
    torch.manual_seed(0)
    model = NARTransformer(TransformerConfig(grid, **TINY, **{"num_classes": 2} | options))
    model.init_weights()
    for head in model.ordered_heads:
        torch.nn.init.normal_(head.output.weight)
    return model.eval()


@pytest.mark.parametrize(
    "model",
    [
        network(),
        network((2, 3, 3), position="absolute"),
        network(condition="text", num_classes=0, condition_tokens=5, caption_dim=6),
    ],
    ids=["image", "video", "text"],
)
@pytest.mark.parametrize("interval", [-1, 4])
def test_the_plain_algorithm_draws_the_same_tokens(model, interval):
    settings = SamplingSettings(cfg_scale=2.0, cfg_interval=interval)
    condition = torch.tensor([0, 1])
    if model.config.condition == "text":
        condition = torch.randn(2, 5, 6)
    fast = list(generate(model, condition, [3, 4], settings))
    plain = list(bench.generate_plain(model, condition, [3, 4], settings))
    for ours, theirs in zip(fast, plain, strict=True):
        assert torch.equal(ours.tokens, theirs.tokens)
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grid", [(3, 4), (2, 3, 3)])
def test_raster_order_shares_the_weights_and_takes_a_pass_a_cell(grid):
    model = network(grid, position="absolute" if len(grid) == 3 else "rotary")
    other = bench.raster(model)
    cells = model.config.order.cells
    assert [len(step) for step in other.config.order.steps] == [1] * cells
    assert all(a is b for a, b in zip(other.parameters(), model.parameters(), strict=True))
    assert len(model.config.order.steps) < cells
    assert len(list(generate(other, torch.tensor([0]), [0], SamplingSettings()))) == cells


@pytest.mark.parametrize(
    "name", [row.name for row in MODELS.values() if row.kind in ("image", "text", "video")]
)
def test_every_released_model_has_a_size(name):
    row = MODELS[name]
    if row.repo is None:
        with pytest.raises(UsageError, match="not known"):
            bench.random_model(row, torch.float32, CPU)
        return
    with torch.device("meta"):
        model = bench.random_model(row, torch.bfloat16, torch.device("meta"))
    stated = row.note.split()[-3:-1]
    scale = {"M": 1e6, "B": 1e9}[stated[1]] if stated[1] in "MB" else 0
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(float(stated[0]) * scale, rel=0.06)


def test_the_limit_is_reading_for_one_sample_and_computing_for_many():
    model, settings = network(), SamplingSettings(cfg_scale=2.0)
    c = model.config
    weights = c.total_layers * (4 * c.dim**2 + 3 * c.dim * c.ffn_dim) + 2 * c.dim * c.vocab_size
    slow_memory = bench.Limits(read=1.0, products=1e30)
    assert bench.floor(model, 1, settings, slow_memory) == len(c.order.steps) * weights * 4
    assert bench.floor(model, 8, settings, slow_memory) == bench.floor(model, 1, settings, slow_memory)
    slow_products = bench.Limits(read=1e30, products=1.0)
    once, eight = (bench.floor(model, size, settings, slow_products) for size in (1, 8))
    assert eight == pytest.approx(8 * once)


def test_the_command_reports_every_case_and_draws_a_chart(tmp_path):
    model = NARTransformer(TransformerConfig((4, 4), **TINY, num_classes=2))
    vq = VQTokenizer(VQConfig(32, (1, 1), 1, 32, codebook_size=24))
    save_model(tmp_path / "model", transformer=model, tokenizer=vq, classes=["a", "b"])
    code = "from narcli.cli import main; raise SystemExit(main())"
    command = [
        sys.executable, "-c", code, "bench", "--model", str(tmp_path / "model"), "--batch-sizes", "1,2",
        "--repeats", "1", "-o", str(tmp_path / "chart.png"),
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout.splitlines()[-1])
    cases = {(case["order"], case["batch_size"]): case for case in document["cases"]}
    assert len(cases) == 6 and cases["nar", 1]["passes"] == 7 and cases["raster", 2]["passes"] == 16
    for case in cases.values():
        assert case["tokens"] >= case["prefill"] > 0 and case["decode"] > 0
    ratio = cases["raster", 1]["tokens"] / cases["nar", 1]["tokens"]
    assert cases["nar", 1]["over_raster"] == pytest.approx(ratio, rel=0.05)
    assert document["machine"]["read_gb_per_s"] > 0 and "over_plain" in cases["raster", 1]
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.size == (900, 560)
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2 and "--overwrite" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--orders", "nar,spiral"), "spiral"),
        (("--batch-sizes", "1,x"), "--batch-sizes"),
        (("--output", "chart.jpg"), "png"),
        (("--model", "vq16-c2i"), "size of vq16-c2i is not known"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, says):
    code = "from narcli.cli import main; raise SystemExit(main())"
    run = subprocess.run([sys.executable, "-c", code, "bench", *arguments], capture_output=True, text=True)
    assert run.returncode == 2 and says in run.stderr
