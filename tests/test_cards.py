"""Graphics cards and Apple's devices, as far as a CPU can tell: choices, settings, fallbacks, timers."""

import json
import os
import re
import runpy
import subprocess
import sys
import warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from threading import Event, Timer
from threading import enumerate as enumerate_threads

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import narcli
from narcli import devices, limits, memory
from narcli.bench import machine
from narcli.checkpoints import load
from narcli.errors import MemoryLimitError, NarError, UsageError, is_shortage
from narcli.hub.catalog import MODELS
from narcli.hub.sizes import networks_of
from narcli.kernels import packed
from narcli.media.readers import read_metadata
from narcli.models import attention
from narcli.models.vq import VQConfig, VQTokenizer
from narcli.runs import run as running
from narcli.runs.events import Written
from narcli.runs.plan import Host
from narcli.runs.recipe import Recipe
from narcli.runs.repeat import Trust, recipe_of, warn_of_others
from narcli.runs.run import budget, run
from narcli.settings import FIXED_ROWS

CPU, CARD = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def cards(monkeypatch):
    """A function that gives this machine some cards, as far as torch says."""

    def give(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    for name in ("LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return give


# --- processes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_process_of_torchrun_takes_a_card_of_its_own(cards, monkeypatch, name):
    cards(4)
    assert devices.choose_device(name) == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert devices.choose_device(name) == torch.device("cuda")  # set by something else
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert devices.choose_device(name) == torch.device("cuda:2")
    assert devices.choose_device("cuda:1") == torch.device("cuda:1")
    assert devices.choose_device("cpu") == CPU
    cards(0)
    assert devices.choose_device("auto") == CPU


@pytest.mark.parametrize("rank", ["4", "-1", "x", ""])
def test_a_rank_without_a_card_is_refused(cards, monkeypatch, rank):
    cards(4)
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(UsageError, match=f"LOCAL_RANK is {rank!r}, and there are 4 cards here") as error:
        devices.choose_device("auto")
    assert "`device=cuda:0`" in error.value.hint
    assert devices.choose_device("cuda:0") == torch.device("cuda:0")


# --- settings of torch ----------------------------------------------------------------------------


def settings_now():
    return (
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.cudnn.conv.fp32_precision,
        torch.nn.attention._cur_sdpa_kernel_backends(with_priority=True),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_card_computes_with_pinned_attention_and_exact_float32_and_settings_come_back(dtype):
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    before = settings_now()
    try:
        with pytest.raises(ZeroDivisionError), devices.computing(CARD, dtype):
            products, convolutions, backends = settings_now()
            assert [backend.name for backend in backends] == [
                "FLASH_ATTENTION",
                "EFFICIENT_ATTENTION",
                "MATH",
            ]
            exact = dtype == torch.float32
            assert (products, convolutions) == (("ieee", "ieee") if exact else before[:2])
            raise ZeroDivisionError
        assert settings_now() == before
        with devices.computing(CPU, dtype):
            assert settings_now() == before
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"


def test_sampling_and_decoding_run_in_these_settings_and_the_program_between_does_not(tiny, monkeypatch):
    pipe, whole, inside = narcli.load(tiny, dtype="float32"), devices.computing, []

    def as_card(device, dtype):
        return whole(CARD, dtype)

    monkeypatch.setattr("narcli.pipeline.computing", as_card)
    monkeypatch.setattr("narcli.decoding.computing", as_card)
    for part, name in ((pipe.model, "predict"), (pipe.tokenizer, "decode_vectors")):
        method = getattr(part, name)

        def watched(*given, method=method):
            inside.append(settings_now())
            return method(*given)

        monkeypatch.setattr(part, name, watched, raising=False)
    before = settings_now()
    for _ in pipe.steps(207, seed=1):
        assert settings_now() == before
    assert len(inside) == 7 + 1  # passes and one picture
    assert {tuple(map(str, each)) for each in inside} != {tuple(map(str, before))}
    assert all(each[:2] == ("ieee", "ieee") and len(each[2]) == 3 for each in inside)


def test_decoders_run_channels_last_only_where_that_is_faster(monkeypatch):
    assert devices.memory_format(CPU) == torch.channels_last
    for kind in ("cuda", "mps"):
        assert devices.memory_format(torch.device(kind)) == torch.contiguous_format
    for kinds, last in ((("cpu",), True), ((), False)):
        monkeypatch.setattr(devices, "CHANNELS_LAST", kinds)
        monkeypatch.setattr(packed, "can_pack", lambda dtype: False)
        tokenizer = VQTokenizer(VQConfig(32, (1, 1), 1, 32, codebook_size=96))
        packed.pack_decoder(tokenizer)
        weight = tokenizer.decoder.conv_in.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == last


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    ],
)
def test_a_shortage_of_nvidias_libraries_halves_a_batch_too(words):
    assert is_shortage(RuntimeError(words))
    assert not is_shortage(RuntimeError("CUDA error: device-side assert triggered"))


# --- attention ------------------------------------------------------------------------------------


@pytest.fixture
def checked(monkeypatch):
    """The CPU is a device whose attention is not trusted."""
    attention.is_right.cache_clear()
    monkeypatch.setattr(attention, "CHECKED", ("cpu",))
    yield monkeypatch
    attention.is_right.cache_clear()


def inputs(queries=3, keys=9):
    torch.manual_seed(0)
    shapes = ((2, queries, 4, 16), (2, keys, 4, 16), (2, keys, 4, 16))
    return [torch.randn(shape).transpose(1, 2) for shape in shapes]


MASKS = {"all": None, "some": torch.ones(3, 9, dtype=torch.bool).tril(4)}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("scale", [None, 0.5])
def test_plain_products_attend_as_torch_does(mask, scale):
    expected = F.scaled_dot_product_attention(*inputs(), attn_mask=MASKS[mask], scale=scale)
    torch.testing.assert_close(attention.products(*inputs(), MASKS[mask], scale), expected)


@pytest.mark.parametrize("release", ["2.11.0", "2.12.1+cu130"])
def test_right_attention_is_used_before_a_release_that_is_mended_on_contiguous_inputs(checked, release):
    seen, whole = [], F.scaled_dot_product_attention

    def watched(*parts, **options):
        seen.append([part.is_contiguous() for part in parts])
        return whole(*parts, **options)

    checked.setattr(F, "scaled_dot_product_attention", watched)
    checked.setattr(torch, "__version__", release)
    made = attention.attend(*inputs(), MASKS["some"])
    assert torch.equal(made, whole(*inputs(), attn_mask=MASKS["some"]))
    assert seen[-1] == [release.startswith("2.11")] * 3
    assert len(seen) == 2 * len(attention.SHAPES) + 1  # the comparison, once


def wrong(q, k, v, attn_mask=None, scale=None):
    """Wrong for few queries, as on Apple's devices before 2.12."""
    made = torch.ops.aten.scaled_dot_product_attention(q, k, v, attn_mask, scale=scale)
    return made + 1 if q.shape[2] < 8 else made


def test_wrong_attention_is_noticed_while_loading_and_plain_products_take_its_place(checked, tiny):
    expected = narcli.load(tiny, dtype="float32").images(207, seed=3)[0]
    attention.is_right.cache_clear()
    checked.setattr(F, "scaled_dot_product_attention", wrong)
    with pytest.warns(UserWarning, match="computes attention wrongly on cpu in float32"):
        tokenizer = load.load_tokenizer(tiny)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        model = load.load_transformer(tiny, kind="image")
        made = attention.attend(*inputs())
    torch.testing.assert_close(made, torch.ops.aten.scaled_dot_product_attention(*inputs()))
    from narcli.sampling import SamplingSettings, sample

    settings = SamplingSettings(cfg_scale=1.5, top_k=50)
    tokens = sample(model, torch.tensor([expected.label]), [3], settings)
    assert torch.equal(tokens[0], expected.tokens)
    assert tokenizer.decode(tokens, (4, 4)).shape == (1, 3, 8, 8)


# --- the bench's limits ---------------------------------------------------------------------------


def test_work_on_a_card_is_timed_by_its_own_clock(monkeypatch):
    told = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: told.append(device) or nullcontext())

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            told.append("record")

        def synchronize(self):
            told.append("wait")

        def elapsed_time(self, other):
            assert other is not self
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    card = torch.device("cuda:1")
    assert machine.seconds_of(lambda: told.append("work"), card) == 0.25
    assert told == [card, "record", "work", card, "record", "wait"]
    assert 0 < machine.seconds_of(lambda: torch.ones(1000).sum(), CPU) < 5


def test_limits_of_a_card_are_measured_with_large_products_and_reads(monkeypatch):
    made = []
    small = {"side": 64, "numbers": 2**10}
    assert machine.SIZES["cuda"] == (8192, 2**30)
    monkeypatch.setattr(machine, "SIZES", {"cuda": tuple(small.values())})
    for name in ("ones", "randn"):
        whole = getattr(torch, name)
        monkeypatch.setattr(
            torch, name, lambda *size, device, whole=whole: made.append((size, device)) or whole(*size)
        )
    monkeypatch.setattr(machine, "can_run", lambda dtype, device: False)
    monkeypatch.setattr(machine, "seconds_of", lambda work, device: (work(), 0.5)[1])
    limits = machine.measure_limits(CARD, torch.float32)
    assert made == [((2**10,), CARD), ((64, 64), CARD)]
    assert limits == machine.Limits(2**10 * 4 / 0.5, 2 * 64**3 / 0.5)


# --- batches --------------------------------------------------------------------------------------


def test_memory_that_torch_holds_and_does_not_use_is_available(monkeypatch):
    for name, size in (("memory_reserved", 70), ("memory_allocated", 40)):
        monkeypatch.setattr(torch.cuda, name, lambda device, size=size: size)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 500))
    assert limits.available(CARD) == 170
    assert limits.available(CARD, own=False) == 130


def test_a_program_stays_while_a_card_decodes():
    networks = networks_of(MODELS["nar-b-256"])
    card, cpu = (memory.estimate(networks, torch.bfloat16, 4, device=kind) for kind in ("cuda", "cpu"))
    assert card.sampling > 10**7 and card.decoding > cpu.decoding + card.sampling


@pytest.mark.parametrize("count", [1, 16, 17, 20, 32])
def test_parts_that_a_card_decodes_are_of_one_size(tiny, monkeypatch, count):
    pipe, sizes = narcli.load(tiny, dtype="float32"), []
    tokens = torch.randint(96, (count, 16), generator=torch.Generator().manual_seed(count))
    expected = pipe.decode(tokens)
    monkeypatch.setattr(type(pipe), "device", torch.device("meta"))
    whole = type(pipe.tokenizer).decode_vectors

    def decode(self, vectors, grid):
        sizes.append(len(vectors))
        return whole(self, vectors, grid)

    monkeypatch.setattr(type(pipe.tokenizer), "decode_vectors", decode)
    made = pipe.decode_vectors(pipe.tokenizer.embed(tokens, pipe.grid))
    assert len(made) == count and sizes == [min(count, 16)] * -(-count // 16)
    for (one,), (other,) in zip(made, expected, strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=1)


def test_on_a_card_memory_alone_chooses_the_batch_up_to_256_samples(monkeypatch):
    networks = networks_of(MODELS["nar-b-256"])

    def chosen(room, samples=None, device=CARD):
        monkeypatch.setattr(memory, "available", lambda device, own: room)
        return memory.choose_batch_size(networks, torch.bfloat16, device, samples)

    assert chosen(10**12) == chosen(None) == 256
    assert [chosen(10**12, samples) for samples in (1, 40, 50_000)] == [1, 40, 256]
    assert chosen(10**12, device=CPU) == 16
    needed = {n: memory.estimate(networks, torch.bfloat16, n, device="cuda").total for n in (100, 101)}
    assert chosen(round(needed[100] / memory.ROOM) + 1) == 100
    assert needed[101] > needed[100]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reproducible_batches_always_have_the_same_rows(tiny, monkeypatch, dtype):
    pipe, seen = narcli.load(tiny, dtype=dtype), []
    whole = type(pipe.model).start

    def start(self, condition, samples, *rest):
        seen.append((len(condition), samples))
        return whole(self, condition, samples, *rest)

    monkeypatch.setattr(type(pipe.model), "start", start)
    expected = pipe.images([207, 281], seed=5, num=3)
    seen.clear()
    reports = list(pipe.steps([207, 281], seed=5, num=3, batch_size=4, reproducible=True))
    assert seen == [(8, 4)] * 2  # with guidance
    assert [(len(r.samples), len(r.tokens), len(r.step.tokens), len(r.step.logits)) for r in reports] == [
        *[(4, 4, 4, 4)] * 7,
        *[(2, 2, 2, 2)] * 7,
    ]
    results = [result for report in reports for result in report.results]
    assert [r.seed for r in results] == [5, 6, 7] * 2
    for result, alone in zip(results, expected, strict=True):
        assert torch.equal(result.tokens, alone.tokens) and result.image == alone.image
        assert result.metadata == alone.metadata | {"reproducible": {"rows": 4}}
    assert all("reproducible" not in each.metadata for each in expected)
    seen.clear()
    (one,) = pipe.images(207, seed=5, reproducible=True)
    assert seen == [(2 * FIXED_ROWS, FIXED_ROWS)] and one.metadata["reproducible"] == {"rows": FIXED_ROWS}


def test_metadata_of_a_reproducible_run_name_card_and_versions(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91300)
    about = devices.about_card(CARD)
    assert about == {"card": "NVIDIA H200", "cuda": "13.0", "cudnn": "91300"}
    monkeypatch.setattr("narcli.pipeline.about_card", lambda device: about)
    pipe = narcli.load(tiny)
    assert pipe.metadata(pipe.defaults, rows=16)["reproducible"] == {"rows": 16, **about}
    assert "reproducible" not in pipe.metadata(pipe.defaults)


def test_a_reproducible_batch_that_memory_does_not_hold_is_refused_and_not_halved(tiny, monkeypatch):
    from conftest import hold_at_most

    pipe = narcli.load(tiny, dtype="float32")
    hold_at_most(monkeypatch, 5, MemoryError())
    with pytest.raises(MemoryLimitError) as caught:
        pipe.images(207, num=3, batch_size=8, reproducible=True)
    assert "`batch_size=4`" in caught.value.hint


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_reproducible_run_is_repeated_in_the_same_rows(tiny, tiny_video, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    folder, wanted = (tiny, 207) if kind == "image" else (tiny_video, 1)
    recipe = Recipe(
        kind=kind, model=str(folder), classes=[wanted], seed=3, num=3, batch_size=2, reproducible=True,
        dtype="float32", frontier="none", output=f"{tmp_path}/{{seed}}",
    )  # fmt: skip
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    notes = []
    assert budget(recipe).batch_size == 2
    events = list(run(recipe, Host(note=notes.append)))
    assert any("On a CPU samples never depend" in note for note in notes)
    files = events[-1].files
    about = read_metadata(files[2])
    assert about["reproducible"] == {"rows": 2}
    again = recipe_of(files[2], about, Trust({"model": str(folder)}))
    assert (again.reproducible, again.batch_size, again.num, again.seed) == (True, 2, 1, 5)
    end = list(run(again))[-1]
    assert end.documents[0]["tokens_sha256"] == about["tokens_sha256"]
    assert read_metadata(end.files[0])["reproducible"] == {"rows": 2}
    larger = recipe_of(files[2], about, Trust({"model": str(folder), "batch_size": 3}))
    assert (larger.reproducible, larger.batch_size) == (True, 3)
    assert budget(Recipe(model=str(tiny), classes=[207], reproducible=True)).batch_size == FIXED_ROWS


def test_another_card_than_that_of_the_file_is_reported():
    warned = []
    trust = Trust(warn=warned.append)
    then = {"reproducible": {"rows": 16, "card": "NVIDIA H200", "cuda": "13.0"}}
    warn_of_others(
        "a.png", then, {"reproducible": {"rows": 16, "card": "NVIDIA A100", "cuda": "13.0"}}, trust
    )
    assert warned == [
        "a.png was made with card NVIDIA H200, and here it is NVIDIA A100: its tokens may come out otherwise."
    ]
    warn_of_others("a.png", then, then, trust)
    warn_of_others("a.png", {}, then, trust)
    assert len(warned) == 1


@pytest.mark.parametrize("rows", [0, 5000, "4", True])
def test_rows_of_a_file_that_no_run_has_are_refused(tiny, rows):
    about = {"kind": "image", "classes": [207], "sampling": {}, "reproducible": {"rows": rows}}
    with pytest.raises(narcli.errors.CheckpointError, match="reproducible"):
        Recipe.from_json(about)
    with pytest.raises(UsageError, match="`batch_size` is 5000, expected 1 to 4096 with `reproducible`"):
        Recipe(classes=[207], batch_size=5000, reproducible=True)


# --- files written by threads ---------------------------------------------------------------------


def events_of(recipe, monkeypatch, threads):
    monkeypatch.setattr(running, "writers", lambda device: threads)
    return list(run(recipe))


@pytest.mark.parametrize("kind", ["image", "video"])
def test_threads_write_the_same_files_in_the_same_order(tiny, tiny_video, tmp_path, monkeypatch, kind):
    folder, wanted = (tiny, 207) if kind == "image" else (tiny_video, 1)
    made = {}
    for threads in (0, 3):
        recipe = Recipe(
            kind=kind, model=str(folder), classes=[wanted], seed=3, num=7, batch_size=2, save_tokens=True,
            frontier="png", output=f"{tmp_path}/{threads}/{{seed}}", sheet=kind == "image",
            format="webp" if kind == "video" else None,
        )  # fmt: skip
        events = events_of(recipe, monkeypatch, threads)
        files = [event.path for event in events if isinstance(event, Written)]
        assert files == list(events[-1].files)
        assert [path.name for path in files[:14:2]] == [f"{seed}{files[0].suffix}" for seed in range(3, 10)]
        names = [type(event).__name__ for event in events]
        assert (names[0], names[-1]) == ("Loaded", "Finished")
        # The files of a batch come before those of the next, and before the last step of the one after.
        last = max(index for index, name in enumerate(names) if name == "Progress")
        assert names[:last].count("Written") >= 2 * 4
        document = events[-1].document()
        assert [Path(each["file"]).name for each in document["samples"]] == [p.name for p in files[:14:2]]
        made[threads] = {path.name: path.read_bytes() for path in files}
    assert made[0] == made[3] and len(made[0]) == 14 + 1 + (kind == "image")


def test_threads_are_for_cards_and_never_more_than_processors(monkeypatch):
    monkeypatch.setattr(running.os, "cpu_count", lambda: 4)
    assert [running.writers(kind) for kind in ("cpu", "cuda", "mps")] == [0, 4, 4]
    monkeypatch.setattr(running.os, "cpu_count", lambda: 64)
    assert running.writers("cuda") == running.WRITERS


@pytest.mark.parametrize("threads", [0, 2])
def test_a_file_that_cannot_be_written_stops_the_run_once_the_others_of_its_batch_are(
    tiny, tmp_path, monkeypatch, threads
):
    from narcli.media import writers

    whole = writers.write_png

    def failing(path, *rest, **options):
        if path.stem == "4":
            raise NarError("The disk is full.")
        return whole(path, *rest, **options)

    monkeypatch.setattr(writers, "write_png", failing)
    monkeypatch.setattr(running, "writers", lambda device: threads)
    recipe = Recipe(
        model=str(tiny), classes=[207], seed=3, num=9, batch_size=3, frontier="none",
        output=f"{tmp_path}/{{seed}}.png",
    )  # fmt: skip
    written = []
    with pytest.raises(NarError, match="disk is full"):
        written += (event.path.stem for event in run(recipe) if isinstance(event, Written))
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == ["3", "5"]


def test_an_interrupted_run_reports_what_threads_have_written_and_begins_no_more(tiny, tmp_path, monkeypatch):
    from narcli.media import writers

    whole, begun, drawing = writers.write_png, [], Event()

    def slow(path, *rest, **options):
        begun.append(path)
        drawing.wait(30)  # until the next batch is drawn
        return whole(path, *rest, **options)

    monkeypatch.setattr(writers, "write_png", slow)
    monkeypatch.setattr(running, "writers", lambda device: 1)
    recipe = Recipe(
        model=str(tiny), classes=[207], seed=3, num=6, batch_size=3, frontier="none",
        output=f"{tmp_path}/{{seed}}.png",
    )  # fmt: skip
    pipeline_run, steps = narcli.pipeline.Pipeline.run, []

    def interrupted(self, *given, **options):
        for progress in pipeline_run(self, *given, **options):
            steps.append(progress)
            if progress.batch == 1 and progress.step.index == 3:
                Timer(0.2, drawing.set).start()
                raise KeyboardInterrupt
            yield progress

    monkeypatch.setattr(narcli.pipeline.Pipeline, "run", interrupted)
    written, events = [], run(recipe)
    with pytest.raises(KeyboardInterrupt):
        written.extend(event.path for event in events if isinstance(event, Written))
    assert len(begun) == 1 and steps[-1].batch == 1
    assert list(tmp_path.iterdir()) == begun == written


def test_a_run_that_is_left_waits_for_its_threads(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "writers", lambda device: 2)
    recipe = Recipe(
        model=str(tiny), classes=[207], num=9, batch_size=3, frontier="none", output=f"{tmp_path}/"
    )
    events = run(recipe)
    next(event for event in events if isinstance(event, Written))
    events.close()
    assert all(read_metadata(path)["kind"] == "image" for path in tmp_path.iterdir())
    assert not [thread for thread in enumerate_threads() if thread.name.startswith("narcli-writer")]


# --- the page and the script of cards -------------------------------------------------------------

ROOT = Path(__file__).parents[1]


def test_the_memory_on_the_page_of_cards_is_the_estimate():
    text = (ROOT / "docs" / "gpu.md").read_text().split("## Memory")[1].split("##")[0]
    rows = [re.findall("[^|`]+", line) for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == 8
    for row in rows:
        name, *told = [cell.strip() for cell in row if cell.strip()]
        networks = networks_of(MODELS[name])
        cases = [(torch.bfloat16, size) for size in (1, 16, 64, 256)] + [(torch.float32, 16)]
        estimates = [
            memory.estimate(networks, dtype, size, device="cuda", encode=False).total for dtype, size in cases
        ]
        assert told == [f"{total / 1e9:.1f}" for total in estimates], name


def test_the_check_of_cards_runs_on_a_cpu_as_far_as_it_can():
    """Also without packages that a machine with a card may lack."""
    code = (
        "import runpy, sys\n"
        "class Lacking:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('typer', 'rich', 'huggingface_hub', 'transformers', 'tqdm',\n"
        "                                  'imageio_ffmpeg', 'ftfy', 'bs4', 'platformdirs'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Lacking())\n"
        "sys.argv = ['gpu_check.py', '--device', 'cpu', '--smoke']\n"
        f"runpy.run_path({str(ROOT / 'benchmarks' / 'gpu_check.py')!r}, run_name='__main__')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    document = json.loads(done.stdout)
    status = {check["name"]: check["status"] for check in document["checks"]}
    assert (done.returncode, document["verdict"]) == (0, "pass"), document
    assert {name for name, said in status.items() if said == "needs a card"} == {
        *("first_picture", "graphs", "synchronisation", "profile", "decoder", "times"),
    }
    assert len(status) == 14 and set(status.values()) == {"passed", "needs a card"}


def test_checks_of_programs_hold_with_a_recorder_in_place_of_graphs(monkeypatch):
    from narcli.kernels import graphs
    from test_program import Recorder

    script = runpy.run_path(str(ROOT / "benchmarks" / "gpu_check.py"))
    monkeypatch.setattr(graphs, "Graphs", partial(graphs.Graphs, recorder=Recorder))
    context = script["Context"](CPU, True, {})
    assert script["graphs"](context) == {"cases": 5}
    assert script["synchronisation"](context) == {"steps": 31 + 31 + 34}

    def wrong(self, index):
        self.steps[index]()
        self.program.tokens[:, -1] = 0

    monkeypatch.setattr(graphs._Kept, "replay", wrong)
    with pytest.raises(script["FailedError"], match="batch 1 of 2 differs"):
        script["graphs"](context)


def test_a_check_of_cards_that_fails_is_told_and_does_not_stop_the_others():
    script = runpy.run_path(str(ROOT / "benchmarks" / "gpu_check.py"))

    def wrong(context):
        script["require"](False, "Something is wrong.")

    def broken(context):
        raise ValueError("no such thing")

    def fine(context):
        return {"figure": 1}

    script["run"].__globals__["CHECKS"] = ((wrong, False), (broken, False), (fine, False), (fine, True))
    done = script["run"](script["Context"](CPU, True, {}))
    assert [each["status"] for each in done] == ["failed", "failed", "passed", "needs a card"]
    assert done[0]["why"] == "Something is wrong." and "no such thing" in done[1]["why"]
    assert done[2]["figure"] == 1
