"""The compiled functions against PyTorch's, and what is done where they cannot be made or used."""

import copy
import ctypes
import gc
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from zlib import crc32

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from narcli.errors import CheckpointError
from narcli.hub.sizes import Networks
from narcli.kernels import draw, native, prepare, prepare_tokenizer
from narcli.kernels.native import NativeAttention, NativeLinear, NativeTransformer
from narcli.kernels.packed import PackedBlock, PackedLinear, PackedTransformer, can_pack
from narcli.memory import estimate
from narcli.models.blocks import TransformerConfig
from narcli.models.larp import LARPConfig, LARPTokenizer
from narcli.models.transformer import NARTransformer
from narcli.models.vq import VQConfig
from narcli.sampling import draw_plain, filter_logits, generate
from narcli.settings import SamplingSettings

pytest.importorskip("hatchling", reason="hatchling (of the dev extra) builds the library")
from hatch_build import LIBRARY, SOURCE, NativeHook

CPU, ROOT = torch.device("cpu"), Path(__file__).parent.parent
BOTH = [torch.float32, torch.bfloat16]


def needs(dtype):
    if not native.can_run(dtype, CPU):
        pytest.skip(f"this machine has no compiled layers in {dtype}")


def network(dtype=torch.float32, **changes):
    torch.manual_seed(0)
    sizes = {
        "dim": 144,
        "layers": 3,
        "heads": 2,
        "vocab_size": 300,
        "ffn_dim": 80,
        "num_classes": 9,
    } | changes
    model = NARTransformer(TransformerConfig(sizes.pop("grid", (5, 7)), **sizes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model.to(dtype)


TEXT = {"condition": "text", "num_classes": 0, "condition_tokens": 70, "caption_dim": 16}


@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize(("out", "inner"), [(64, 64), (300, 50), (1, 2), (65, 1034)])
def test_a_product_is_that_of_the_rounded_inputs_and_no_row_depends_on_another(dtype, out, inner):
    needs(dtype)
    torch.manual_seed(0)
    weight, x = torch.randn(out, inner).to(dtype), torch.randn(3, 11, inner)
    linear = NativeLinear(weight)
    found = linear(x)
    exact = x.to(dtype).double() @ weight.double().T
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-6 * inner)
    assert linear(x[:0]).shape == (0, 11, out)
    rows = x.flatten(0, 1)
    for n in (1, 2, 5, 6, 7, 12, 13, 32):
        assert torch.equal(linear(rows[:n]), found.flatten(0, 1)[:n])
        assert torch.equal(linear(rows[-n:]), found.flatten(0, 1)[-n:])


KINDS = pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"grid": (3, 4, 6), "position": "absolute"},
        {"grid": (24, 3)},
        TEXT,
        {"dim": 56},
        {"order": "zipar:3"},
    ],
    ids=["images", "videos", "long", "text", "narrow heads", "scattered"],
)


def inputs(sizes, rows=4):
    """(condition, padding) of as many samples, some of whose text is padding."""
    if sizes is not TEXT:
        return torch.arange(rows), None
    generator = torch.Generator().manual_seed(0)
    padding = torch.arange(70) < torch.tensor([0, 5, 64, 69])[torch.arange(rows) % 4, None]
    return torch.randn(rows, 70, 16, generator=generator), padding


def logits_of(model, sizes, tokens=None, rows=slice(None)):
    condition, padding = inputs(sizes)
    condition = condition if sizes is not TEXT else condition.to(model.token_embedding.weight.dtype)
    steps = generate(
        model, condition[rows], list(range(4))[rows], SamplingSettings(cfg_scale=2.0, cfg_interval=20),
        None if padding is None else padding[rows], None if tokens is None else tokens[rows],
    )  # fmt: skip
    return torch.cat([step.logits for step in steps], 1)


@KINDS
def test_logits_are_those_of_the_plain_layers(sizes):
    needs(torch.float32)
    model, tokens = network(**sizes), torch.randint(300, (4, math.prod(sizes.get("grid", (5, 7)))))
    expected = logits_of(model, sizes, tokens)
    fast = prepare(copy.deepcopy(model))
    assert isinstance(fast, NativeTransformer)
    torch.testing.assert_close(logits_of(fast, sizes, tokens), expected, rtol=1e-4, atol=2e-4)


@KINDS
def test_bfloat16_is_nearer_to_float32_than_the_plain_layers_are(sizes):
    needs(torch.bfloat16)
    exact, tokens = network(**sizes), torch.randint(300, (4, math.prod(sizes.get("grid", (5, 7)))))
    expected = logits_of(exact, sizes, tokens)
    plain = copy.deepcopy(exact).bfloat16()
    far = (logits_of(plain, sizes, tokens) - expected).norm()
    assert 0 < (logits_of(prepare(plain), sizes, tokens) - expected).norm() < far


@pytest.mark.parametrize("dtype", BOTH, ids=str)
@KINDS
def test_logits_do_not_depend_on_the_batch_or_the_threads(sizes, dtype):
    needs(dtype)
    model, before = prepare(network(dtype, **sizes)), torch.get_num_threads()
    together = logits_of(model, sizes)
    for rows in (slice(0, 1), slice(1, 4), slice(3, 4)):
        assert torch.equal(logits_of(model, sizes, rows=rows), together[rows])
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(logits_of(model, sizes), together)
            assert torch.equal(logits_of(model, sizes, rows=slice(1, 4)), together[1:4])
    finally:
        torch.set_num_threads(before)


def test_fewer_threads_than_asked_for_are_enough():
    needs(torch.float32)
    code = (
        "import torch; from narcli.kernels import native; torch.manual_seed(0); torch.set_num_threads(4);"
        "linear = native.NativeLinear(torch.randn(999, 60)); x = torch.randn(9, 60);"
        "y = linear(x); tokens = native.draw(y[None], torch.rand(1, 9), 1.0, 9);"
        "print(y.double().sum().item(), tokens.tolist())"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | limit, capture_output=True, text=True, check=True
        ).stdout
        for limit in ({}, {"OMP_THREAD_LIMIT": "1"})
    ]
    assert found[0] and found[0] == found[1]


def test_several_python_threads_may_use_one_model():
    needs(torch.float32)
    model = prepare(network(grid=(12, 12), dim=256, ffn_dim=512))
    expected = [logits_of(model, {}, rows=slice(row, row + 1)) for row in range(4)]
    with ThreadPoolExecutor(4) as pool:
        rows = [slice(k % 4, k % 4 + 1) for k in range(16)]
        found = list(pool.map(lambda row: logits_of(model, {}, rows=row), rows))
    assert all(torch.equal(one, expected[k % 4]) for k, one in enumerate(found))


@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("part", ["condition", "token"])
def test_what_is_no_number_is_not_hidden(dtype, number, part):
    """In the class, the only key of the first pass; and in every token, later."""
    needs(dtype)
    model = prepare(network(dtype))
    with torch.no_grad():
        if part == "condition":
            model.condition.embedding.weight[3, 5] = number
        else:
            model.token_embedding.weight[:, 5] = number
    with torch.inference_mode():
        state = model.start(model.condition(torch.tensor([3, 4])), 2)
        first, tokens = model.predict(state, 0), torch.tensor([[5], [6]]).repeat(1, 35)
        model.feed(state, 1, tokens)
        second = model.predict(state, 1)
    if part == "condition":
        assert first[0].isnan().all() and second[0].isnan().all()
        assert first[1].isfinite().all() and second[1].isfinite().all()
    else:
        assert first.isfinite().all() and second.isnan().all()


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("settings", [{}, {"top_k": 5}, {"top_p": 0.9}, {"temperature": 0}], ids=str)
def test_no_token_is_drawn_from_what_is_no_number(kernels, number, settings):
    logits = torch.randn(1, 3, 70)
    logits[0, 1, 66] = number
    with pytest.raises(CheckpointError, match="no numbers"):
        draw(logits, torch.rand(1, 3), SamplingSettings(**settings))
    logits[0, 1] = -torch.inf
    with pytest.raises(CheckpointError, match="no numbers"):
        draw(logits, torch.rand(1, 3), SamplingSettings(**settings))
    logits[0, 1, 66] = 0  # minus infinity is as good as never
    assert draw(logits, torch.rand(1, 3), SamplingSettings(**settings))[0, 1] == 66


@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize(("n", "width"), [(1, 2), (131, 64), (64, 72), (203, 16)])
def test_attention_is_that_of_torch_and_no_head_depends_on_another(dtype, n, width):
    needs(dtype)
    torch.manual_seed(0)
    qkv = torch.randn(3, n, 3, 5, width).to(dtype)

    def attend(qkv):
        found = native.attend(qkv.flatten(2), qkv.shape[3])
        assert found.dtype == dtype and found.shape == (*qkv.shape[:2], qkv.shape[3] * width)
        return found.unflatten(2, (-1, width)).transpose(1, 2)

    found = attend(qkv)
    expected = F.scaled_dot_product_attention(*qkv.double().permute(2, 0, 3, 1, 4))
    error = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(found.double(), expected, rtol=error, atol=error)
    assert torch.equal(attend(qkv[1:2, :, :, 2:4]), found[1:2, 2:4])
    qkv[0, n // 2, 2, 0], qkv[0, n // 2, 1, 1] = torch.nan, torch.nan  # a value and a key
    found = attend(qkv)
    assert found[0, :2].isnan().all() and found[0, 2:].isfinite().all() and found[1:].isfinite().all()


def test_the_attention_of_larp_is_compiled_but_for_odd_heads():
    needs(torch.float32)
    torch.manual_seed(0)
    sizes = {"encoder_num_heads": 4, "decoder_num_heads": 4, "encoder_depth": 1, "decoder_depth": 1}
    for width, compiled in ((12, True), (11, False)):
        hidden = {"encoder_hidden_size": 4 * width, "decoder_hidden_size": 4 * width}
        tokenizer = LARPTokenizer(LARPConfig(8, 64, 8, input_size=16, frame_num=4, **sizes | hidden)).eval()
        codes = torch.randint(64, (2, 8))
        with torch.inference_mode():
            expected = tokenizer.decode(codes)
            prepare_tokenizer(tokenizer)
            torch.testing.assert_close(tokenizer.decode(codes), expected, rtol=1e-4, atol=1e-5)
        assert any(isinstance(part, NativeAttention) for part in tokenizer.modules()) == compiled


@pytest.mark.parametrize(
    ("settings", "compiled"), [({}, 1), ({"top_k": 3}, 1), ({"top_p": 0.9}, 0), ({"temperature": 0}, 0)]
)
def test_draws_are_compiled_where_nothing_has_to_be_sorted(settings, compiled, monkeypatch):
    needs(torch.float32)
    calls, drawn = [], native.draw
    monkeypatch.setattr(native, "draw", lambda *a: calls.append(a) or drawn(*a))
    logits, uniform = torch.randn(2, 3, 40), torch.rand(2, 3)
    tokens = draw(logits, uniform, SamplingSettings(**settings))
    assert len(calls) == compiled
    assert torch.equal(draw(logits, uniform.double(), SamplingSettings(**settings)), tokens)


@pytest.mark.parametrize("sizes", [{}, {"dim": 576, "heads": 8}, {"grid": (8, 16)}], ids=str)
def test_the_estimate_of_memory_knows_how_keys_and_values_lie(sizes):
    needs(torch.float32)
    model = network(**sizes)
    networks = Networks(model.config, VQConfig(32, (1, 1), 1, 32, codebook_size=300))
    told = [estimate(networks, torch.float32, rows, guided=False).sampling for rows in (1, 9)]
    slots = model.plan().length
    held = [prepare(copy.deepcopy(model)).empty_cache(rows, slots).nbytes for rows in (1, 9)]
    assert held[0] < told[0] and held[1] - held[0] < told[1] - told[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda: None)
        plain = estimate(networks, torch.float32, 9, guided=False).sampling
        assert told[1] - plain == held[1] - model.empty_cache(9, slots).nbytes


@given(
    columns=st.integers(1, 700),
    top_k=st.integers(0, 800),
    temperature=st.sampled_from([1e-40, 0.01, 0.7, 1.0, 50.0]),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 30.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_draw_is_that_of_torch(columns, top_k, temperature, scale, seed):
    needs(torch.float32)
    generator = torch.Generator().manual_seed(seed)
    # Coarse numbers: many are equal, and both signs occur.
    logits = (torch.randn(2, 9, columns, generator=generator) * 4).round() / 4 * scale
    uniform = torch.rand(2, 9, generator=generator)
    uniform[0, :2] = torch.tensor([0.0, 1 - 2**-24])
    settings = SamplingSettings(temperature=temperature, top_k=top_k)
    found = draw(logits, uniform, settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda: None)
        expected = draw_plain(logits, uniform, settings)
    scaled = (logits - logits.amax(-1, keepdim=True)) / max(temperature, 1e-30)
    probabilities = filter_logits(scaled, top_k).double().softmax(-1)
    assert (probabilities.gather(-1, found[..., None]) > 0).all()
    # Another token only where the number lies on the border of two, as near as sums in float32 can tell.
    ends = probabilities.cumsum(-1)
    for token, other, u, end in zip(
        found.flatten(), expected.flatten(), uniform.flatten(), ends.flatten(0, 1), strict=True
    ):
        between = end[min(token, other) : max(token, other)]
        assert ((between - u).abs() < 1e-5).all()


@pytest.mark.parametrize("columns", [1, 15, 64, 1000])
def test_the_kth_largest_value_is_that_of_a_sort(columns):
    needs(torch.float32)
    values = torch.randn(7, columns, generator=torch.Generator().manual_seed(columns)).round(decimals=1)
    values[2], values[3, 0] = -torch.inf, torch.inf
    ranked = values.sort(descending=True).values
    for k in {1, (columns + 1) // 2, columns}:
        assert torch.equal(native.kth_largest(values, k), ranked[:, k - 1 : k])


def test_draws_have_the_probabilities_of_the_logits():
    needs(torch.float32)
    torch.manual_seed(0)
    logits = torch.randn(2000) * 2
    tokens = native.draw(logits.expand(1, 4000, -1), torch.rand(1, 4000), 1.0, 3)
    kept = logits.topk(3)
    counts = torch.stack([(tokens == index).sum() for index in kept.indices])
    assert counts.sum() == 4000
    torch.testing.assert_close(counts / 4000, kept.values.softmax(-1), rtol=0, atol=0.03)


def test_a_step_that_finds_no_memory_is_a_shortage_of_memory(monkeypatch):
    needs(torch.float32)
    linear = NativeLinear(torch.randn(4, 2))

    class Refuses:
        narcli_linear_float32 = staticmethod(lambda *a: 1)

    monkeypatch.setattr(native, "library", Refuses)
    with pytest.raises(MemoryError, match="narcli_linear_float32"):
        linear(torch.randn(1, 2))


# --- where there is no library -------------------------------------------------------------------


def test_without_the_library_layers_are_packed(kernels):
    if not can_pack(torch.float32):
        pytest.skip("this machine has no packed layers")
    model = prepare(network())
    assert type(model) is (NativeTransformer if kernels == "native" else PackedTransformer)
    assert isinstance(model.outputs, NativeLinear if kernels == "native" else PackedLinear)
    if kernels == "packed":
        assert all(isinstance(layer, PackedBlock) for layer in model.layers)


@pytest.fixture
def afresh():
    """What was found is forgotten afterwards."""
    yield
    native.library.cache_clear()
    native._works.cache_clear()


def test_a_library_is_whole_only_with_its_hash_at_the_end(tmp_path):
    content = b"\x7fELF" + bytes(range(256)) * 100
    whole = content + sha256(content).digest()
    file = tmp_path / "libnative.so"
    file.write_bytes(whole)
    assert native.is_whole(file)
    changed = bytearray(whole)
    changed[500] ^= 1
    for damaged in (
        whole[:-1],
        whole[:4096],
        content,
        whole + b"x",
        bytes(changed),
        b"",
        bytes(31),
        bytes(32),
    ):
        file.write_bytes(damaged)
        assert not native.is_whole(file)
    file.unlink()
    assert not native.is_whole(file)
    os.mkfifo(file)
    assert not native.is_whole(file)


@pytest.mark.parametrize(
    "fault", ["missing", "not a library", "another library", "of another processor", "of an older source"]
)
def test_a_library_that_cannot_be_used_is_left_alone(afresh, fault, monkeypatch, tmp_path):
    file = tmp_path / "libnative.so"
    if fault == "of an older source":
        needs(torch.float32)  # asked before the processor is made up: another one would run AVX-512
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    if fault == "not a library":
        file.write_bytes(b"\x7fELF and no more")
    elif fault == "another library":
        (other,) = list(Path(torch.__file__).parent.glob("lib/libtorch_global_deps*"))[:1] or [file]
        file.write_bytes(other.read_bytes() if other.exists() else b"")
    elif fault == "of another processor":
        file.write_bytes(native.LIBRARY.read_bytes() if native.LIBRARY.exists() else b"")
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    elif fault == "of an older source":
        needs(torch.float32)
        file.write_bytes(native.LIBRARY.read_bytes())
        source = tmp_path / "native.cpp"
        source.write_text("// changed since")
        monkeypatch.setattr(native, "SOURCE", source)
    monkeypatch.setattr(native, "LIBRARY", file)
    native.library.cache_clear()
    assert native.library() is None
    assert not native.can_run(torch.float32, CPU)
    assert not isinstance(prepare(network()), NativeTransformer)


@pytest.mark.parametrize(("bf16", "amx"), [(False, False), (True, True)])
def test_bfloat16_is_left_to_torch_where_that_is_better_or_the_processor_has_none(
    bf16, amx, afresh, monkeypatch
):
    needs(torch.float32)
    native._works.cache_clear()
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert native.can_run(torch.float32, CPU)
    assert not native.can_run(torch.bfloat16, CPU)


def test_a_trial_that_fails_leaves_everything_to_torch(afresh, monkeypatch):
    needs(torch.float32)
    native._works.cache_clear()
    monkeypatch.setattr(native.NativeLinear, "forward", lambda self, x: x.new_zeros(len(x), 70))
    assert not native.can_run(torch.float32, CPU) and not isinstance(prepare(network()), NativeTransformer)


@pytest.mark.parametrize("sizes", [{"dim": 30, "position": "absolute"}, {"ffn_dim": 81}])
def test_sizes_that_do_not_go_in_pairs_are_left_to_torch(sizes):
    assert not isinstance(prepare(network(**sizes)), NativeTransformer)


def test_only_what_it_is_made_for_is_run():
    assert not native.can_run(torch.float16, CPU)
    assert not native.can_run(torch.float32, torch.device("meta"))


def test_there_is_one_pool_of_threads():
    """Two OpenMP libraries would fight for the processors."""
    needs(torch.float32)
    code = (
        "import torch; from narcli.kernels import native; torch.randn(999, 999) @ torch.randn(999, 999);"
        "native.draw(torch.randn(4, 4, 99), torch.rand(4, 4), 1.0, 0);"
        "print(*{l.split()[-1] for l in open('/proc/self/maps')}, sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = [Path(line).name for line in done.stdout.splitlines()]
    assert "libnative.so" in names
    assert len([name for name in names if name.startswith(("libgomp", "libomp", "libiomp"))]) == 1, names


# --- building ------------------------------------------------------------------------------------


class App:
    """What hatchling shows warnings with."""

    def __init__(self):
        self.warnings = []

    def display_warning(self, text):
        self.warnings.append(text)


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Run the hook on a copy of the source: (warnings, build data); nothing of it stays where it compiles."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("nothing is compiled on this system")
    root, scratch = tmp_path / "root", tmp_path / "scratch"
    (root / LIBRARY.parent).mkdir(parents=True)
    scratch.mkdir()
    (root / SOURCE).write_bytes((ROOT / SOURCE).read_bytes())
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))

    def run(version):
        app, data = App(), {"force_include": {}, "pure_python": True}
        hook = NativeHook(str(root), {}, None, None, str(root), "wheel", app)
        hook.initialize(version, data)
        included = {name: Path(file).read_bytes() for file, name in data.pop("force_include").items()}
        del hook
        gc.collect()
        assert not list(scratch.iterdir())
        return app.warnings, data, included, {file.name for file in (root / LIBRARY.parent).iterdir()}

    run.root = root
    return run


needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no compiler here")


@needs_compiler
def test_the_library_is_built_into_a_wheel_of_this_platform(build, tmp_path):
    warnings, data, included, files = build("standard")
    assert data == {"pure_python": False, "tag": "py3-none-linux_x86_64"}
    assert (warnings, files) == ([], {"native.cpp"})
    assert included.keys() == {"narcli/kernels/libnative.so"}
    (tmp_path / "found.so").write_bytes(included["narcli/kernels/libnative.so"])
    assert native.is_whole(tmp_path / "found.so")
    library = ctypes.CDLL(str(tmp_path / "found.so"))
    assert library.narcli_source() & 0xFFFFFFFF == crc32((ROOT / SOURCE).read_bytes())


@needs_compiler
def test_the_library_is_built_beside_the_source_of_an_editable_installation(build):
    (build.root / LIBRARY).write_bytes(b"an older one")
    warnings, data, included, files = build("editable")
    assert (warnings, data, included) == ([], {"pure_python": True}, {})
    assert files == {"native.cpp", "libnative.so"}
    assert (build.root / LIBRARY).read_bytes().startswith(b"\x7fELF")


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false", "'"])
@pytest.mark.parametrize("version", ["standard", "editable"])
def test_without_a_compiler_the_wheel_has_no_library_and_says_so(build, version, compiler, monkeypatch):
    monkeypatch.setenv("CXX", compiler)
    warnings, data, included, files = build(version)
    assert (data, included, files) == ({"pure_python": True}, {}, {"native.cpp"})
    assert len(warnings) == 1 and "without its compiled part" in warnings[0]
