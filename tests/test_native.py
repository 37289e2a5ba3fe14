"""The compiled functions against PyTorch's, and what is done where they cannot be made or used."""

import copy
import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hatch_build import LIBRARY, NativeHook
from hypothesis import given
from hypothesis import strategies as st

from narcli.models import native
from narcli.models.native import NativeLayers, NativeLinear
from narcli.models.packed import PackedBlock, PackedLinear, can_pack, pack
from narcli.models.transformer import NARTransformer, TransformerConfig
from narcli.sampling import draw, filter_logits, generate
from narcli.sampling import sample as sample_batch
from narcli.settings import SamplingSettings

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


@pytest.mark.parametrize(
    "sizes",
    [{}, {"grid": (3, 4, 6), "position": "absolute"}, {"grid": (24, 3)}, TEXT, {"dim": 56, "heads": 2}],
    ids=["images", "videos", "long", "text", "narrow heads"],
)
def test_logits_are_those_of_the_plain_layers(sizes):
    needs(torch.float32)
    model = network(**sizes)
    condition, padding = torch.arange(4), None
    if sizes is TEXT:
        condition, padding = torch.randn(4, 70, 16), torch.arange(70) < torch.tensor([[0], [5], [64], [69]])
    settings = SamplingSettings(cfg_scale=2.0, cfg_interval=20)
    tokens = sample_batch(model, condition, range(4), settings, padding)
    expected = list(generate(model, condition, range(4), settings, padding, given=tokens))
    packed = pack(copy.deepcopy(model))
    assert isinstance(packed.fused, NativeLayers) and not packed.layers
    found = list(generate(packed, condition, range(4), settings, padding, given=tokens))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-4, atol=2e-4)


def test_bfloat16_is_nearer_to_float32_than_the_plain_layers_are():
    needs(torch.bfloat16)
    exact = network()
    classes, settings = torch.arange(4), SamplingSettings()
    tokens = sample_batch(exact, classes, range(4), settings)

    def error(model):
        steps = zip(
            generate(exact, classes, range(4), settings, given=tokens),
            generate(model, classes, range(4), settings, given=tokens),
            strict=True,
        )
        return torch.cat([(right.logits - found.logits).flatten() for right, found in steps]).norm().item()

    plain = copy.deepcopy(exact).bfloat16()
    assert 0 < error(pack(copy.deepcopy(plain))) < error(plain)


@pytest.mark.parametrize("dtype", BOTH, ids=str)
def test_infinite_and_wrong_numbers_are_not_hidden(dtype):
    needs(dtype)
    model = pack(network(dtype))
    with torch.no_grad():
        model.condition.embedding.weight[3, 5] = torch.nan
    (first, *_) = generate(model, torch.tensor([3, 4]), [0, 0], SamplingSettings(temperature=0))
    assert first.logits[0].isnan().all() and first.logits[1].isfinite().all()


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_nothing(threads):
    needs(torch.float32)
    model, before = pack(network()), torch.get_num_threads()
    expected = [s.logits for s in generate(model, torch.arange(3), range(3), SamplingSettings())]
    try:
        torch.set_num_threads(threads)
        found = [s.logits for s in generate(model, torch.arange(3), range(3), SamplingSettings())]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


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
        expected = draw(logits, uniform, settings)
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


def test_draws_have_the_probabilities_of_the_logits():
    needs(torch.float32)
    torch.manual_seed(0)
    logits = torch.randn(16384) * 2
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
    model = pack(network())
    assert (model.fused is not None) == (kernels == "native")
    assert isinstance(model.outputs, NativeLinear if kernels == "native" else PackedLinear)
    if kernels == "packed":
        assert all(isinstance(layer, PackedBlock) for layer in model.layers)


@pytest.fixture
def afresh():
    """What was found is forgotten afterwards."""
    yield
    native.library.cache_clear()


@pytest.mark.parametrize("fault", ["missing", "not a library", "of another processor", "of an older source"])
def test_a_library_that_cannot_be_used_is_left_alone(afresh, fault, monkeypatch, tmp_path):
    file = tmp_path / "libnative.so"
    if fault == "not a library":
        file.write_bytes(b"\x7fELF and no more")
    elif fault == "of another processor":
        file.write_bytes(native.LIBRARY.read_bytes() if native.LIBRARY.exists() else b"")
        monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: False)
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
    assert pack(network()).fused is None


@pytest.mark.parametrize(("bf16", "amx"), [(False, False), (True, True)])
def test_bfloat16_is_left_to_torch_where_that_is_better_or_the_processor_has_none(bf16, amx, monkeypatch):
    needs(torch.float32)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert native.can_run(torch.float32, CPU)
    assert not native.can_run(torch.bfloat16, CPU)


def test_only_what_it_is_made_for_is_run():
    assert not native.can_run(torch.float16, CPU)
    assert not native.can_run(torch.float32, torch.device("meta"))


def test_there_is_one_pool_of_threads():
    """Two OpenMP libraries would fight for the processors."""
    needs(torch.float32)
    code = (
        "import torch; from narcli.models import native; torch.randn(999, 999) @ torch.randn(999, 999);"
        "native.draw(torch.randn(4, 4, 99), torch.rand(4, 4), 1.0, 0);"
        "print({l.split()[-1] for l in open('/proc/self/maps') if 'omp' in l.split()[-1]})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count(".so") == 1, done.stdout


# --- building ------------------------------------------------------------------------------------


class App:
    """What hatchling shows warnings with."""

    def __init__(self):
        self.warnings = []

    def display_warning(self, text):
        self.warnings.append(text)


def build(root):
    (root / LIBRARY.parent).mkdir(parents=True)
    (root / LIBRARY.parent / "native.cpp").write_bytes((ROOT / LIBRARY.parent / "native.cpp").read_bytes())
    app, data = App(), {"artifacts": [], "pure_python": True}
    NativeHook(str(root), {}, None, None, str(root), "wheel", app).initialize("standard", data)
    return app, data


def on_linux():
    import platform

    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("nothing is compiled on this system")


def test_the_library_is_built_into_a_wheel_of_this_platform(tmp_path):
    on_linux()
    app, data = build(tmp_path)
    if app.warnings:
        pytest.skip(f"no compiler here: {app.warnings}")
    assert data == {"artifacts": [str(LIBRARY)], "pure_python": False, "tag": "py3-none-linux_x86_64"}
    assert ctypes.CDLL(str(tmp_path / LIBRARY)).narcli_draw
    assert sorted(file.name for file in (tmp_path / LIBRARY.parent).iterdir()) == [
        "libnative.so",
        "native.cpp",
    ]


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_the_wheel_has_no_library_and_says_so(compiler, monkeypatch, tmp_path):
    on_linux()
    monkeypatch.setenv("CXX", compiler)
    app, data = build(tmp_path)
    assert data == {"artifacts": [], "pure_python": True}
    assert len(app.warnings) == 1 and compiler in app.warnings[0]
    assert [file.name for file in (tmp_path / LIBRARY.parent).iterdir()] == ["native.cpp"]
