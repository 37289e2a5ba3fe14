"""The benchmark measures what it says: the same network in other orders, and the plain algorithm."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from narcli import limits
from narcli.bench import machine, measure, plain, weights
from narcli.checkpoints.load import build
from narcli.checkpoints.save import save_model
from narcli.cli import app
from narcli.errors import NarError
from narcli.hub import sizes
from narcli.hub.catalog import MODELS
from narcli.hub.resolve import resolve
from narcli.kernels import native
from narcli.kernels.packed import can_pack
from narcli.models.blocks import TransformerConfig
from narcli.models.transformer import NARTransformer
from narcli.models.vq import VQConfig, VQTokenizer
from narcli.sampling import generate
from narcli.settings import SamplingSettings
from narcli.viz.style import FRONTIER, ramp

TINY = {"dim": 32, "layers": 2, "heads": 2, "vocab_size": 24, "ffn_dim": 64}
CPU = torch.device("cpu")
DATA = Path(__file__).with_name("data")


def network(grid=(3, 4), **options):
    torch.manual_seed(0)
    model = NARTransformer(TransformerConfig(grid, **TINY | {"num_classes": 2} | options))
    model.init_weights()
    for head in model.ordered_heads:
        torch.nn.init.normal_(head.output.weight)
    return model.eval()


NETWORKS = {
    "image": {},
    "video": {"grid": (2, 3, 3), "position": "absolute"},
    "text": {"condition": "text", "num_classes": 0, "condition_tokens": 5, "caption_dim": 6},
}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("interval", [-1, 4])
def test_the_plain_algorithm_draws_the_same_tokens(kind, interval):
    model = network(**NETWORKS[kind])
    settings = SamplingSettings(cfg_scale=2.0, cfg_interval=interval)
    condition = torch.tensor([0, 1])
    if model.config.condition == "text":
        condition = torch.randn(2, 5, 6)
    fast = list(generate(model, condition, [3, 4], settings))
    slow = list(plain.generate_plain(model, condition, [3, 4], settings))
    for ours, theirs in zip(fast, slow, strict=True):
        assert torch.equal(ours.tokens, theirs.tokens)
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("nar-b-256", 130_551_552),
        ("nar-xxl-256", 1_464_454_656),
        ("nar-l-ucf101", 369e6),
        ("nar-lp-ucf101", 694e6),
    ],
)
def test_random_models_have_the_released_sizes(name, parameters):
    model = build(weights.sizes_of(MODELS[name]))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.002)


@pytest.fixture
def tiny_rows(monkeypatch):
    """Rows of the catalog with their kinds, of networks that are made in no time."""
    small = {"dim": 128, "layers": 1, "heads": 2, "ffn_dim": 512}
    for name in ("nar-xl-256", "nar-xl-t2i-256"):
        monkeypatch.setitem(MODELS, name, replace(MODELS[name], sizes={**MODELS[name].sizes, **small}))
    for name in ("vq16-c2i", "vq16-t2i"):
        sizes = {"ch": 32, "ch_mult": (1, 1), "num_res_blocks": 1, "z_channels": 32, "codebook_size": 16384}
        monkeypatch.setitem(MODELS, name, replace(MODELS[name], sizes=sizes))


def test_random_weights_are_finite_and_make_finite_logits(tiny_rows):
    for name in ("nar-xl-256", "nar-xl-t2i-256"):
        model = weights.random_network(weights.sizes_of(MODELS[name]), torch.float32)
        assert all((p.isfinite().all() and p.std() > 0) or p.eq(1).all() for p in model.parameters())


@pytest.mark.parametrize("layers", ["packed", "native"])
def test_prepared_products_are_among_those_that_tell_the_machines_limit(layers, monkeypatch):
    if not (can_pack(torch.float32) if layers == "packed" else native.can_run(torch.float32, CPU)):
        pytest.skip(f"no {layers} layers on this machine")
    if layers == "packed":
        monkeypatch.setattr(machine, "multiply", lambda rows, weight: rows)  # in no time
    else:
        monkeypatch.setattr(native.NativeLinear, "forward", lambda self, rows: rows)
    assert machine.measure_limits(torch.device("cpu"), torch.float32).products > 1e14


def test_the_limit_is_reading_for_one_sample_and_computing_for_many():
    model, settings = network(), SamplingSettings(cfg_scale=2.0)
    c = model.config
    weights = c.total_layers * (4 * c.dim**2 + 3 * c.dim * c.ffn_dim) + 2 * c.dim * c.vocab_size
    slow_memory = machine.Limits(read=1.0, products=1e30)
    assert machine.limit(model, 1, settings, slow_memory) == len(c.decoding_order.steps) * weights * 4
    assert machine.limit(model, 8, settings, slow_memory) == machine.limit(model, 1, settings, slow_memory)
    slow_products = machine.Limits(read=1e30, products=1.0)
    once, eight = (machine.limit(model, size, settings, slow_products) for size in (1, 8))
    assert eight == pytest.approx(8 * once)
    # What torch counts of the real run, attention left out on both sides for its many forms.
    with FlopCounterMode(display=False) as counter:
        list(generate(model, torch.tensor([0]), [0], settings))
    counted = sum(
        count for op, count in counter.get_flop_counts()["Global"].items() if "attention" not in str(op)
    )
    assert counted == pytest.approx(once, rel=0.1)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A folder whose steps take memory: 4,096 codes."""
    torch.manual_seed(0)
    model = network((4, 4), vocab_size=4096)
    vq = VQTokenizer(VQConfig(32, (1, 1), 1, 32, codebook_size=4096))
    return save_model(tmp_path_factory.mktemp("wide") / "wide", transformer=model, tokenizer=vq)


def measured(path, orders, sizes):
    with weights.model_files(resolve(path, None), None, torch.float32, orders) as files:
        settings, limits = SamplingSettings(), machine.Limits(1.0, 1.0)
        return measure.measure(files, sizes, settings, CPU, torch.float32, limits, 1)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="of Linux")
def test_the_peak_is_that_of_each_case(wide):
    block = 4 * 256 * 4096 * 4  # bytes of the logits of the largest step at the larger batch size
    ballast = [torch.ones(2**20) for _ in range(128)]  # 512 MB, let go before
    del ballast
    peaks = {case.batch_size: case.peak_bytes for case in measured(wide, ["nar"], [256, 1])}
    assert peaks[256] - peaks[1] > 2 * block  # though the smaller one comes later
    assert peaks[1] < limits.sizes_told(Path("/proc/self/status"))["VmRSS"] + 2**26


def test_where_the_peak_cannot_begin_anew_it_is_said_to_be_the_processs(monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refuse)
    assert machine.forget_peak(CPU) == "process" and machine.peak_bytes(CPU) > 10**8


def test_loading_is_measured_from_a_file(wide, monkeypatch):
    loaded, load = [], measure.load_networks

    def slow(files, *how):
        loaded.append(files.model.path.name)
        time.sleep(0.2)
        return load(files, *how)

    monkeypatch.setattr(measure, "load_networks", slow)
    cases = measured(wide, ["nar", "raster", "plain"], [1, 2])
    assert sorted(loaded) == ["wide"] * 4 + ["wide-raster"] * 2  # packed and plain, uncounted and counted
    seconds = {case.order: case.load_seconds for case in cases}
    assert len(cases) == 6 and min(seconds.values()) > 0.2


def test_random_weights_are_read_from_a_file_that_goes_away(tiny_rows):
    for name in ("nar-xl-256", "nar-xl-t2i-256"):
        row = MODELS[name]
        with weights.model_files(row, None, torch.bfloat16) as made:
            files = made["nar"]
            path = files.model.path
            model, tokenizer = measure.load_ready(files, CPU, torch.bfloat16, "plain")
            assert path.is_dir() and files.model.model.kind == row.kind
            assert files.model.model.defaults == row.defaults
            assert model.config == sizes.released_config(row) and tokenizer.config.codebook_size == 16384
        assert not path.exists()


def test_random_weights_need_room_before_they_are_made(tiny_rows, monkeypatch):
    row, usage = MODELS["nar-xl-256"], shutil.disk_usage
    with weights.model_files(row, None, torch.bfloat16) as files:
        held = sum(path.stat().st_size for path in files["nar"].model.path.glob("*.safetensors"))

    def leave(free):
        monkeypatch.setattr(weights.shutil, "disk_usage", lambda path: usage(path)._replace(free=free))

    leave(held)
    with weights.model_files(row, None, torch.bfloat16):
        pass
    leave(held // 2)
    monkeypatch.setattr(weights, "random_network", lambda *given: pytest.fail("made before the check"))
    with (
        pytest.raises(NarError, match=r"nar-xl-256 take .* GB in bfloat16, .* free") as caught,
        weights.model_files(row, None, torch.bfloat16),
    ):
        pass
    assert "TMPDIR" in caught.value.hint


KINDS = {
    "image": ("c2i", "c2i.pt", {}, 4.0),
    "text": ("t2i", "t2i.pt", {}, 7.5),
    "video": ("c2v", "c2v.pth", {"frames": 3}, 1.25),
}


@pytest.mark.parametrize("kind", KINDS)
def test_released_files_of_every_kind_are_measured(kind, tmp_path):
    sizes, weights, tokenizer, guidance = KINDS[kind]
    shutil.copy(DATA / weights, tmp_path)
    about = json.loads((DATA / f"{sizes}.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({key: about[key] for key in ("grid", "n_head")}))
    vq = save_model(
        tmp_path / "vq", tokenizer=VQTokenizer(VQConfig(32, (1, 1), 1, 32, codebook_size=64, **tokenizer))
    )
    arguments = ["bench", "--model", str(tmp_path / weights), "--batch-sizes", "2", "--repeats", "1"]
    done = CliRunner().invoke(app, [*arguments, "--json", "--tokenizer", str(vq)])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["kind"], document["grid"], document["weights"]) == (kind, about["grid"], "its own")
    assert document["sampling"]["cfg_scale"] == guidance  # of the released scripts
    assert [case["order"] for case in document["cases"]] == ["nar", "raster", "plain"]
    alone = CliRunner().invoke(app, arguments)
    assert alone.exit_code == 2 and "does not bring its tokenizer" in alone.stderr
    wrong = CliRunner().invoke(app, [*arguments[:2], str(vq), *arguments[3:]])
    assert wrong.exit_code == 4 and "vq" in wrong.stderr


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
        assert case["tokens_seconds"] >= case["prefill_seconds"] > 0 and case["decode_seconds"] > 0
    ratio = cases["raster", 1]["tokens_seconds"] / cases["nar", 1]["tokens_seconds"]
    assert cases["nar", 1]["times_raster"] == pytest.approx(ratio, rel=0.01)
    assert document["machine"]["read_gb_per_s"] > 0 and "times_plain" in cases["raster", 1]
    assert document["weights"] == "its own" and document["kind"] == "image"
    assert document["machine"]["peak_of"] in ("case", "process")
    assert all(case["peak_bytes"] > 10**7 and case["load_seconds"] > 0 for case in cases.values())
    rows = [line.split() for line in run.stdout.splitlines()]
    assert "load s" in run.stdout and "peak GB" in run.stdout
    assert rows[1][:3] == ["nar", "1", "7"] and rows[2][0] == "raster"
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.size == (900, 560)
        pixels = {tuple(color) for color in np.unique(np.asarray(picture).reshape(-1, 3), axis=0).tolist()}
    assert {FRONTIER, ramp(2 / 3), ramp(1 / 3)} <= pixels  # a line for each order
    again = subprocess.run([*command, "--json", "--orders", "nar"], capture_output=True, text=True)
    assert json.loads(again.stdout)["chart"].endswith("chart_1.png")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--orders", "nar,spiral"), "spiral"),
        (("--batch-sizes", "1,x"), "--batch-sizes"),
        (("--batch-sizes", "0"), "--batch-sizes"),
        (("--output", "chart.jpg"), "png"),
        (("--output", "nowhere/chart.png"), "nowhere"),
        (("--model", "vq16-c2i"), "size of vq16-c2i is not known"),
        (("--tokenizer", "vq16-c2i"), "Leave it out"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, says):
    code = "from narcli.cli import main; raise SystemExit(main())"
    run = subprocess.run([sys.executable, "-c", code, "bench", *arguments], capture_output=True, text=True)
    assert run.returncode == 2 and says in run.stderr


def test_orders_are_measured_with_networks_of_their_own(wide):
    orders = ["nar", "raster", "zipar:2", "par:4"]
    cases = {case.order: case for case in measured(wide, orders, [1])}
    assert [cases[order].passes for order in orders] == [7, 16, 12, 7]
    with weights.model_files(resolve(wide, None), None, torch.float32, orders) as files:
        assert files["raster"] is files["zipar:2"] is not files["par:4"] is not files["nar"]
        networks = [measure.load_ready(files[order], CPU, torch.float32, order)[0].config for order in orders]
    assert [config.order for config in networks] == orders
    assert [config.total_layers for config in networks] == [3, 2, 2, 2]


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        ("nar,diagonal", "There is no order 'diagonal'"),
        ("", "There is no order ''"),
        ("zipar:16", "window is 16 on the grid 16x16"),
        ("par:5", "cannot be cut into 5 regions"),
        ("var", "cannot run a model of the order nar"),
    ],
)
def test_orders_that_cannot_be_measured_are_refused(orders, message):
    done = CliRunner().invoke(app, ["bench", "--model", "nar-b-256", "--orders", orders])
    assert done.exit_code == 2 and message in done.stderr


def test_the_limit_counts_what_each_order_feeds():
    slow = machine.Limits(read=1e30, products=1.0)
    settings, limits = SamplingSettings(), {}
    for order in ("raster", "zipar:2", "par:4"):
        model = network((4, 4), order="raster" if order == "zipar:2" else order)
        model.config = model.config.decoded_in(order)
        limits[order] = machine.limit(model, 1, settings, slow)
        with FlopCounterMode(display=False) as counter:
            list(generate(model, torch.tensor([0]), [0], settings))
        counts = counter.get_flop_counts()["Global"].items()
        counted = sum(count for op, count in counts if "attention" not in str(op))
        assert counted == pytest.approx(limits[order], rel=0.15)
    # ZipAR feeds substitutes too; PAR feeds learned rows in place of the last group.
    assert limits["raster"] < 0.95 * limits["zipar:2"]
    assert limits["par:4"] == pytest.approx(limits["raster"], rel=0.05)
