"""The pipeline from Python: samples, seeds, batches, metadata, what does not fit together."""

import json
import subprocess
import sys
import weakref
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import narcli
from conftest import hold_at_most
from narcli import devices, memory, pipeline
from narcli.cli import app
from narcli.decoding import hash_tokens, to_clips
from narcli.errors import CheckpointError, MemoryLimitError, UsageError
from narcli.hub import locate as hub_locate
from narcli.hub import sources
from narcli.kernels import packed
from narcli.models.transformer import NARTransformer
from narcli.settings import SEEDS, plan_samples
from narcli.viz.sheets import auto_scale, contact_sheet, enlarge

DATA = Path(__file__).with_name("data")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def pipe(request, tiny):
    return narcli.load(tiny, dtype=request.param)


@pytest.fixture(scope="module")
def plain(tiny):
    return narcli.load(tiny, dtype="float32")


def same(a, b):
    return torch.equal(a.tokens, b.tokens) and a.image == b.image and a.metadata == b.metadata


# --- samples and seeds ---------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_a_sample_is_the_same_in_any_batch_as_alone(pipe, batch_size):
    together = pipe.images([207, 281, 292], seed=40, num=5, batch_size=batch_size)
    assert [(r.class_id, r.seed) for r in together] == [
        (c, 40 + k) for c in (207, 281, 292) for k in range(5)
    ]
    for result in together:
        (alone,) = pipe.images(result.class_id, seed=result.seed)
        assert same(result, alone)
    assert len({r.tokens.numpy().tobytes() for r in together}) == 15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("columns", "out"), [(1024, 64), (2048, 768), (3456, 1280)])
def test_wide_layers_do_not_depend_on_the_batch_either(dtype, columns, out, monkeypatch):
    """oneDNN sums products of some sizes in another order: one row, more than 32, long sums of many rows."""
    if not packed.can_pack(dtype):
        pytest.skip("this machine has no packed layers")
    torch.manual_seed(0)
    layer = packed.PackedLinear(torch.randn(out, columns).to(dtype))
    x = torch.randn(17, 12, columns).to(dtype)
    with torch.inference_mode():
        whole = layer(x)
        assert whole.shape == (17, 12, out) and layer(x[:0]).shape == (0, 12, out)
        assert torch.equal(whole[3:5], layer(x[3:5]))
        rows = whole.flatten(0, 1)
        for n in (1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 48, 49, 64, 65, 100, 150, 192, 193):
            assert torch.equal(layer(x.flatten(0, 1)[:n]), rows[:n]), n
            assert torch.equal(layer(x.flatten(0, 1)[None, 11 : 11 + n])[0], rows[11 : 11 + n]), n
        monkeypatch.setattr(packed, "most_rows", lambda *_: 48)  # products in pieces, the last of one row
        for n in (49, 97):
            assert torch.equal(layer(x.flatten(0, 1)[:n]), rows[:n]), n


@pytest.mark.parametrize(
    ("dtype", "amx", "counts"),
    [
        (torch.float32, False, {1: 2, 2: 2, 33: 33}),
        (torch.bfloat16, False, {1: 2, 2: 2, 31: 31, 32: 32, 33: 48, 48: 48, 49: 64}),
        (torch.bfloat16, True, {1: 48, 32: 48, 48: 48, 49: 64}),
    ],
)
def test_products_have_numbers_of_rows_that_are_summed_alike(dtype, amx, counts, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert {n: packed.padded_count.__wrapped__(n, dtype) for n in counts} == counts


def test_a_seed_is_drawn_when_none_is_given_and_makes_the_sample_again(plain):
    (first,) = plain.images(207)
    assert 0 <= first.seed < SEEDS
    (again,) = plain.images(207, seed=first.seed)
    assert same(first, again)
    assert plain.images(207)[0].seed != first.seed


def test_results_say_what_they_are(plain, tiny):
    (result,) = plain.images("golden retriever", seed=3)
    assert (result.class_id, result.class_name, result.seed) == (207, "golden_retriever", 3)
    assert result.entry.name == "dog"
    assert result.image.size == (8, 8) == plain.size and result.image.mode == "RGB"
    assert result.tokens.shape == (16,) and result.tokens.dtype == torch.int64
    about = result.metadata
    assert about == json.loads(json.dumps(about))
    assert about["class"] == {
        "id": 207,
        "name": "dog",
        "label": result.label,
        "stands_for": "golden retriever",
    }
    assert about["sampling"] == {
        "cfg_scale": 1.5,
        "cfg_interval": -1,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
    }
    assert (about["seed"], about["grid"], about["steps"]) == (3, [4, 4], 7)
    assert (about["device"], about["dtype"]) == ("cpu", "float32")
    assert about["tokens_sha256"] == hash_tokens(result.tokens)
    assert about["model"]["file"] == "model.safetensors" and len(about["model"]["sha256"]) == 64
    assert str(tiny.parent) not in json.dumps(about)


def test_settings_replace_the_models_defaults_one_by_one(plain):
    assert plain.settings(temperature=0.5, top_p=None).top_k == 50
    greedy = {r.tokens.numpy().tobytes() for r in plain.images(207, seed=0, num=3, temperature=0)}
    assert len(greedy) == 1
    with pytest.raises(TypeError):
        plain.images(207, temprature=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"classes": 5000}, "no class 5000"),
        ({"classes": ["cat", "catt"]}, "no class 'catt'"),
        ({"classes": 207, "num": 0}, "`num` is 0"),
        ({"classes": 207, "num": 10**9}, "`num` is 1000000000"),
        ({"classes": 207, "seed": -1}, "`seed` is -1"),
        ({"classes": 207, "seed": SEEDS - 1, "num": 2}, f"the last one would be {SEEDS}"),
        ({"classes": 207, "batch_size": 0}, "`batch_size` is 0"),
        ({"classes": 207, "top_p": 0.0}, "`top_p` is 0.0"),
        ({"classes": 207, "temperature": float("nan")}, "`temperature` is nan"),
    ],
)
def test_bad_requests_are_refused_before_the_first_step(plain, arguments, words):
    with pytest.raises(UsageError, match=words):
        plain.steps(**arguments)  # not iterated


def test_seeds_run_on_from_the_given_one_for_every_class(plain):
    entries = [plain.classes.lookup(name) for name in ("cat", "tiger")]
    assert [s.seed for s in plan_samples(entries, 42, 3)] == [42, 43, 44] * 2
    drawn = plan_samples(entries, None, 2)
    assert drawn[0].seed == drawn[2].seed == drawn[1].seed - 1


# --- steps ---------------------------------------------------------------------------------------


def test_every_step_of_every_batch_is_reported_and_the_last_brings_the_pictures(plain):
    reports = list(plain.steps(["cat", "tiger"], seed=1, num=2, batch_size=3))
    assert [(r.batch, r.step.index) for r in reports] == [(b, s) for b in range(2) for s in range(7)]
    assert [len(r.results) for r in reports] == [0] * 6 + [3] + [0] * 6 + [1]
    for report in reports:
        known = report.tokens >= 0
        assert known.sum(1).tolist() == [report.step.done] * len(report.samples)
        if report.results:
            assert torch.equal(report.tokens, torch.stack([r.tokens for r in report.results]))
    spent = [report.seconds["sample"] for report in reports]
    assert spent == sorted(spent) and reports[-1].seconds["decode"] > 0


def test_partial_token_maps_decode_to_the_final_picture_in_the_end(plain):
    results = plain.images(["cat", "tiger"], seed=1)
    partials = list(plain.partials([result.tokens for result in results]))
    assert len(partials) == 7
    assert partials[-1] == [result.frames for result in results]
    assert partials[0] != partials[-1]
    some = plain.partials([result.tokens for result in results], [2, 6])
    assert list(some) == [partials[2], partials[6]]


def test_pixels_are_clamped_and_rounded():
    pixels = torch.tensor([-3.0, -1.0, 0.0, 1.0, 7.0])[None, None, None].expand(1, 3, 1, 5)
    ((image,),) = to_clips(pixels)
    assert [image.getpixel((x, 0))[0] for x in range(5)] == [0, 0, 128, 255, 255]


# --- released files ------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", ["1", "2.5", "2.5_interval7"])
def test_released_files_give_the_released_codes_tokens(golden, cfg):
    expected = load_file(DATA / "c2i.expected.safetensors")
    scale, _, interval = cfg.partition("_interval")
    pipe = narcli.load(golden[0], tokenizer=golden[1], dtype="float32")
    results = pipe.images(
        expected["class_ids"].tolist(),
        seed=0,
        temperature=0,
        cfg_scale=float(scale),
        cfg_interval=int(interval or -1),
    )
    assert torch.equal(torch.stack([r.tokens for r in results]), expected[f"tokens.cfg{cfg}"])


def test_a_large_file_is_identified_by_its_size_and_ends(golden, monkeypatch):
    monkeypatch.setattr(sources, "MAX_HASHED", 1000)
    monkeypatch.setattr(sources, "END", 600)
    about = sources.choose("image", golden[0], golden[1]).fetch().about()["model"]
    data = golden[0].read_bytes()
    expected = sha256(str(len(data)).encode() + data[:600] + data[-600:]).hexdigest()
    assert about["sha256_of_size_and_ends"] == expected and "sha256" not in about


def test_a_tokenizer_with_another_number_of_codes_is_refused(golden):
    with pytest.raises(CheckpointError, match=r"draws from 64 codes, and the tokenizer .* has 96"):
        narcli.load(golden[0], tokenizer=DATA / "vq.pt")


def test_a_model_without_a_tokenizer_asks_for_one(golden):
    with pytest.raises(UsageError, match="does not bring its tokenizer") as error:
        narcli.load(golden[0])
    assert "`tokenizer`" in error.value.hint


def test_a_repository_without_its_tokenizer_is_refused_before_gigabytes_are_fetched(monkeypatch):
    from huggingface_hub import constants

    from narcli.hub import cache

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        hub_locate,
        "_list_files",
        lambda *_: ("c" * 40, None, {"last.pt": cache.File("last.pt", 10**9)}),
    )
    monkeypatch.setattr(hub_locate, "_download", lambda *_: pytest.fail("a download"))
    with pytest.raises(UsageError, match="some/model does not bring its tokenizer"):
        sources.choose("image", "some/model").fetch()


def test_a_class_list_of_another_length_is_refused(tiny, tmp_path):
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text()) | {"classes": ["cat", "dog"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="classes, and its list of names has 2"):
        narcli.load(tmp_path)


def test_a_revision_of_a_local_model_is_refused(tiny):
    with pytest.raises(UsageError, match="`revision` is for models of the Hub"):
        narcli.load(tiny, revision="main")


# --- devices and memory --------------------------------------------------------------------------


def test_devices_and_dtypes_that_are_not_there_are_named():
    assert devices.choose_device("cpu").type == "cpu"
    with pytest.raises(UsageError, match="no device 'cuda:99'") as error:
        devices.choose_device("cuda:99")
    assert "cpu" in error.value.hint
    with pytest.raises(UsageError, match="no dtype 'int3'"):
        devices.choose_dtype("int3", torch.device("cpu"))


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux only")
def test_bfloat16_is_chosen_where_the_processor_has_it():
    flags = Path("/proc/cpuinfo").read_text()
    expected = torch.bfloat16 if "avx512_bf16" in flags or "amx_bf16" in flags else torch.float32
    assert devices.choose_dtype("auto", torch.device("cpu")) == expected


SHORTAGES = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes."),
]


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: type(error).__name__)
def test_a_batch_that_memory_does_not_hold_is_halved_and_the_samples_are_the_same(pipe, monkeypatch, error):
    expected = pipe.images([207, 281], seed=40, num=5)
    seen = hold_at_most(monkeypatch, 5, error)
    with pytest.warns(UserWarning) as told:
        reports = list(pipe.steps([207, 281], seed=40, num=5, batch_size=8))
    assert [str(warning.message) for warning in told] == [
        "Not enough memory for 8 samples together; going on with 4.",
        "Not enough memory for 4 samples together; going on with 2.",
    ]
    assert sorted(set(seen)) == [4, 8, 16] and seen[-6:] == [4] * 6  # guided: two rows a sample
    results = [result for report in reports for result in report.results]
    assert len(results) == 10 and all(map(same, results, expected))
    # The first batch begins again under its number; of five pairs none is drawn twice.
    ended = [(report.batch, report.batches, len(report.samples)) for report in reports if report.results]
    assert ended == [(batch, 5, 2) for batch in range(5)]
    assert [report.batches for report in reports[:4]] == [2, 2, 2, 3] and reports[3].batch == 0
    assert all(report.tokens.shape[0] == len(report.samples) for report in reports)


def test_what_is_finished_stays_when_memory_runs_short_later(plain, monkeypatch):
    expected = plain.images(207, seed=0, num=9)
    steps = plain.steps(207, seed=0, num=9, batch_size=4)
    results = [result for _ in range(7) for result in next(steps).results]
    assert len(results) == 4
    hold_at_most(monkeypatch, 4, MemoryError())
    with pytest.warns(UserWarning, match="for 4 samples together; going on with 2"):
        results += [result for report in steps for result in report.results]
    assert len(results) == 9 and all(map(same, results, expected))


def test_decoding_too_much_at_once_halves_the_batch(plain, monkeypatch):
    expected, whole = plain.images(207, seed=0, num=4), pipeline.Pipeline.decode

    def decode(self, tokens):
        if len(tokens) > 1:
            raise MemoryError
        return whole(self, tokens)

    monkeypatch.setattr(pipeline.Pipeline, "decode", decode)
    with pytest.warns(UserWarning, match="for 3 samples together; going on with 1"):
        results = plain.images(207, seed=0, num=4, batch_size=3)
    assert len(results) == 4 and all(map(same, results, expected))


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: type(error).__name__)
def test_one_sample_that_memory_does_not_hold_is_an_error(plain, monkeypatch, error):
    seen = hold_at_most(monkeypatch, 0, error)
    with (
        pytest.warns(UserWarning, match="samples together") as told,
        pytest.raises(MemoryLimitError) as caught,
    ):
        plain.images(207, num=5, batch_size=5)
    assert len(told) == 2 and seen[-1] == 2  # 5, 2, and 1, with its row of guidance
    assert "smaller model" in caught.value.hint and caught.value.exit_code == 5


def test_what_a_failed_batch_held_is_let_go_before_the_next(plain, monkeypatch):
    caches, whole = [], NARTransformer.feed

    def feed(self, state, index, tokens):
        caches.append(weakref.ref(state.cache))
        if state.rows > 4:
            raise RuntimeError("can't allocate memory")
        assert caches[0]() is None
        return whole(self, state, index, tokens)

    monkeypatch.setattr(NARTransformer, "feed", feed)
    with pytest.warns(UserWarning, match="for 4 samples together; going on with 2"):
        assert len(plain.images(207, num=4, batch_size=4)) == 4


def test_without_a_batch_size_it_is_what_memory_holds(plain, monkeypatch):
    def sizes(num):
        return {len(report.samples) for report in plain.steps(207, num=num) if report.step.index == 0}

    assert sizes(3) == {3} and sizes(70) == {memory.SAMPLES, 6}
    monkeypatch.setattr(memory, "available", lambda device, own: 1)
    assert sizes(3) == {1}


def test_other_errors_of_torch_are_not_taken_for_memory():
    with pytest.raises(RuntimeError, match="shapes"), devices.memory_guard("no"):
        raise RuntimeError("shapes do not match")


# --- pictures ------------------------------------------------------------------------------------


def test_small_pictures_are_enlarged_by_whole_factors():
    assert [auto_scale((n, n)) for n in (8, 64, 100, 128, 255, 256, 512)] == [32, 4, 3, 2, 2, 1, 1]
    image = Image.new("RGB", (4, 2), (10, 20, 30))
    assert enlarge(image, 1) is image
    assert enlarge(image, 3).size == (12, 6) and enlarge(image, 3).getpixel((5, 3)) == (10, 20, 30)


@pytest.mark.parametrize(
    ("count", "rows", "layout"),
    [(1, 1, (1, 1)), (4, 1, (2, 2)), (5, 1, (3, 2)), (12, 3, (4, 3)), (100, 100, (10, 10)), (40, 2, (7, 6))],
)
def test_a_contact_sheet_gives_classes_rows_or_is_about_square(count, rows, layout):
    sheet = contact_sheet([Image.new("RGB", (10, 10), "white")] * count, rows)
    assert sheet.size == tuple(8 + n * 18 for n in layout)


# --- import --------------------------------------------------------------------------------------


def test_importing_narcli_imports_no_torch():
    code = "import sys, narcli; print('torch' in sys.modules, hasattr(narcli, 'nothing'), narcli.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(Path(narcli.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[:2] == ["False", "False"]


@pytest.mark.parametrize("asked", [[207, 208], ["dog", "golden retriever"]])
def test_results_are_called_as_the_command_calls_their_files(plain, tiny, tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    classes = [word for each in asked for word in ("--class", str(each))]
    words = ["image", "--model", str(tiny), "--seed", "0", "-n", "2", "--frontier", "none"]
    template = "{class}-{class_name}-{seed}.png"
    results = plain.images(asked, seed=0, num=2)
    assert len({result.name for result in results}) == 4
    for output, names in {
        "./": [f"{result.name}.png" for result in results],
        template: [f"{result.class_id}-{result.class_name}-{result.seed}.png" for result in results],
    }.items():
        made = CliRunner().invoke(app, [*words, *classes, "-o", output])
        assert made.stdout.split() == names


def test_what_the_library_gives_is_short_in_a_shell(tiny, tiny_video):
    for folder, size in ((tiny, "8x8"), (tiny_video, "8x8, 6 frames")):
        loaded = narcli.load(folder)
        *_, progress = loaded.steps(classes=[0], seed=3)
        (result,) = progress.results
        for each in (loaded, progress, progress.step, result, loaded.classes, loaded.order):
            assert len(repr(each)) < 200 and type(each).__name__ in repr(each)
        assert "seed 3" in repr(result) and size in repr(result)
