"""Programs of steps, and what replays them, without a graphics card.

A recorder notes the operators of a step and runs them again on the same memory, as a CUDA graph does. A fake
device tells what a step would copy or read back.
"""

import shutil
import weakref
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import narcli
from narcli import sampling
from narcli.checkpoints.load import load_transformer
from narcli.checkpoints.text_encoder import T5Encoder
from narcli.errors import CheckpointError, MemoryLimitError
from narcli.kernels import graphs, prepare, program
from narcli.kernels.graphs import Graphs, choose_runner
from narcli.kernels.program import Batch, Eager, Runner, StepProgram
from narcli.models.blocks import TransformerConfig
from narcli.models.multiscale import MultiscaleConfig, MultiscaleTokenizer
from narcli.models.transformer import NARTransformer
from narcli.models.var import VARConfig, VARTransformer
from narcli.sampling import SamplingSettings, generate, in_raster_order
from narcli.settings import plan_samples

CPU = torch.device("cpu")
DATA = Path(__file__).with_name("data")
#: Grid and sizes of a network for each order and condition.
NETWORKS = {
    "class": ((3, 4), {}),
    "raster": ((3, 3), {"order": "raster"}),
    "zipar": ((4, 4), {"order": "zipar:2"}),
    "par": ((4, 4), {"order": "par:4"}),
    "text": ((3, 4), {"condition": "text", "num_classes": 0, "condition_tokens": 6, "caption_dim": 8}),
    "text-raster": (
        (2, 3),
        {"condition": "text", "num_classes": 0, "condition_tokens": 6, "caption_dim": 8, "order": "raster"},
    ),
    "video": ((2, 2, 3), {"position": "absolute"}),
    "frames": (
        (1, 1, 6),
        {"condition": "frames", "num_classes": 0, "condition_tokens": 7, "position": "absolute"}
        | {"extra_tokens": 1, "order": "raster"},
    ),
    "var": ((3, 3), {}),
}
CODES = 50


def network(name):
    torch.manual_seed(0)
    grid, changes = NETWORKS[name]
    if name == "var":
        model = VARTransformer(VARConfig(grid, (1, 2, 3), 32, 2, 2, CODES, 32, 7))
        model.use(MultiscaleTokenizer(MultiscaleConfig(32, (1, 1), 1, 32, CODES)))
        parameters = [*model.parameters(), *model._tokenizer[0].quantize.parameters()]
    else:
        model = NARTransformer(TransformerConfig(grid, 32, 2, 2, CODES, 64, **{"num_classes": 7} | changes))
        parameters = model.parameters()
    for parameter in parameters:
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def models():
    return {name: network(name) for name in NETWORKS}


def condition_of(model, rows, seed=0):
    """Condition and padding, other ones for each seed."""
    c, generator = model.config, torch.Generator().manual_seed(seed)
    if c.condition == "text":
        features = torch.randn(rows, c.condition_tokens, c.caption_dim, generator=generator)
        return features, torch.arange(c.condition_tokens) < torch.arange(rows)[:, None] + 1 + seed % 2
    if c.condition == "frames":
        return torch.randint(CODES, (rows, c.condition_tokens - 1), generator=generator), None
    return torch.randint(7, (rows,), generator=generator), None


# --- a recorder in place of CUDA graphs ----------------------------------------------------------


class Recorder(TorchDispatchMode):
    """Notes operators and runs them again on the same tensors.

    Memory that nothing refers to after a step was recorded is overwritten after each replay of the step:
    graphs of one pool share it. New memory begins as NaN.
    """

    def __init__(self, device):
        super().__init__()
        assert device == CPU
        self.calls, self.born, self.dead = [], {}, []

    def __call__(self, work):
        self.calls, self.dead = [], []
        with self:
            work()
        for place, (alias, references) in list(self.born.items()):
            if not any(reference() is not None for reference in references):
                self.dead.append(alias)
                del self.born[place]
        calls, dead = self.calls, self.dead

        def replay():
            for func, args, kwargs, outputs in calls:
                if func.overloadpacket.__name__ in ("empty", "empty_like", "new_empty"):
                    for output in outputs:
                        spoil(output)
                    continue
                again = func(*args, **kwargs)
                for output, result in zip(outputs, tree_leaves(again), strict=bool(outputs)):
                    output.copy_(result)
            for alias in dead:
                spoil(alias)

        return replay

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        before = {place(t) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **kwargs)
        outputs = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        fresh = [t for t in outputs if place(t) not in before]
        assert not fresh or len(fresh) == len(outputs)
        for tensor in outputs:
            if fresh or place(tensor) in self.born:
                _, references = self.born.setdefault(place(tensor), (torch.ops.aten.alias(tensor), []))
                references.append(weakref.ref(tensor))
        if fresh or func._schema.is_mutable:
            held = tree_map(lambda t: torch.ops.aten.alias(t) if isinstance(t, torch.Tensor) else t,
                            (func, args, kwargs, fresh))  # fmt: skip
            self.calls.append(held)
        return result


def place(tensor):
    return tensor.untyped_storage().data_ptr()


def spoil(tensor):
    if tensor.is_floating_point():
        tensor.fill_(torch.nan)
    elif tensor.dtype == torch.int64:
        tensor.fill_(2**40)


@pytest.fixture(autouse=True)
def without_numpy(monkeypatch):
    """The k-th largest value as a device finds it: numpy is no operator."""
    monkeypatch.setattr(sampling, "kth_largest_plain", lambda x, k: x.topk(k).values.amin(-1, keepdim=True))


def drawn(model, runner, seed, rows=2, given=None, tell=None, **settings):
    """(steps, tokens) of a batch by a runner; None is the plain generator."""
    condition, padding = condition_of(model, rows, seed)
    run = generate if runner is None else runner.generate
    options = {} if runner is None or tell is None else {"tell": tell}
    seeds = range(seed, seed + rows)
    steps = list(run(model, condition, seeds, SamplingSettings(**settings), padding, given, **options))
    return steps, in_raster_order(model.config.decoding_order, [step.tokens for step in steps])


@pytest.fixture
def folding(monkeypatch):
    """Conditions are folded on a CPU as on other devices."""
    monkeypatch.setattr(NARTransformer, "folds", property(lambda self: self.config.position == "rotary"))


#: Settings of batches that are one program: other numbers, and those that decide operators alike.
ALIKE = {
    "unguided": [{"temperature": 1.0}, {"temperature": 0.7}, {"temperature": 1.3}],
    "guided": [{"cfg_scale": scale, "cfg_interval": 3, "top_k": 9} for scale in (2.0, 4.0, 1.5)],
    "top-p": [
        {"cfg_scale": 3.0, "top_p": p, "temperature": t} for p, t in ((0.9, 1.0), (0.5, 2.0), (0.8, 0.5))
    ],
    "greedy": [{"cfg_scale": scale, "temperature": 0} for scale in (2.0, 3.0, 1.2)],
}
CASES = [
    (name, "unguided" if name == "frames" else "top-p" if name == "var" else "guided") for name in NETWORKS
]
CASES += [
    ("class", "unguided"),
    ("class", "greedy"),
    ("zipar", "unguided"),
    ("text", "top-p"),
    ("var", "greedy"),
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_replayed_steps_draw_the_tokens_of_the_generator(models, name, kind):
    check_replay(models[name], kind)


@pytest.mark.parametrize("kind", ["guided", "top-p"])
@pytest.mark.parametrize("name", ["text", "text-raster"])
def test_replayed_steps_of_text_without_a_mask_draw_the_tokens_of_the_generator(models, folding, name, kind):
    assert models[name].folds
    check_replay(models[name], kind)


def check_replay(model, kind):
    recorders = []
    runner = Graphs(CPU, lambda device: recorders.append(Recorder(device)) or recorders[-1])
    before, outcomes = [], []
    for number, settings in enumerate(ALIKE[kind]):
        given = None
        if kind == "guided":
            given = torch.full((2, model.config.decoding_order.cells), -1)
            given[0, number::3] = number
        steps, tokens = drawn(model, runner, 10 * number, given=given, **settings)
        assert [step.logits is None for step in steps] == [number > 0] * len(steps)
        expected, wanted = drawn(model, None, 10 * number, given=given, **settings)
        assert torch.equal(tokens, wanted)
        assert [(s.index, s.cells, s.done) for s in steps] == [(s.index, s.cells, s.done) for s in expected]
        outcomes.append(tokens)
        before.append([step.tokens for step in steps])
    assert len(recorders) == 1
    for a, b in pairwise(outcomes):
        assert not torch.equal(a, b)
    for steps, tokens in zip(before, outcomes, strict=True):  # later batches left those of earlier ones
        assert torch.equal(in_raster_order(model.config.decoding_order, steps), tokens)


@pytest.mark.parametrize("name", ["class", "zipar", "text", "var"])
def test_a_program_of_prepared_layers_draws_the_tokens_of_the_generator(name, kernels):
    model = prepare(network(name))
    settings = {"cfg_scale": 2.0, "top_p": 0.9} | ({} if name == "var" else {"cfg_interval": 3})
    assert torch.equal(drawn(model, Eager(), 1, **settings)[1], drawn(model, None, 1, **settings)[1])


def test_steps_have_logits_where_they_are_asked_for(models):
    runner = Graphs(CPU, Recorder)
    for seed in range(3):
        condition, _ = condition_of(models["class"], 2, seed)
        asked = models["class"], condition, [seed, seed + 1], SamplingSettings(cfg_scale=2.0)
        for step, wanted in zip(runner.generate(*asked, logits=True), generate(*asked), strict=True):
            assert torch.equal(step.logits, wanted.logits) and torch.equal(step.tokens, wanted.tokens)


def test_smoothing_runs_without_a_program(models):
    runner, settings = Graphs(CPU, Recorder), {"cfg_scale": 2.0, "more_smooth": True}
    for seed in (1, 2, 3):
        steps, tokens = drawn(models["var"], runner, seed, **settings)
        assert steps[-1].vectors is not None
        assert torch.equal(tokens, drawn(models["var"], None, seed, **settings)[1])


# --- a fake device -------------------------------------------------------------------------------


class OneDevice(TorchDispatchMode):
    """Refuses tensors that are not on the device; the fake device refuses to be read back."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        assert {t.device.type for t in tensors} <= {"cuda"}, func
        self.count += 1
        return result


@pytest.mark.parametrize("settings", [{}, {"cfg_scale": 2.0, "top_k": 5, "top_p": 0.9}, {"temperature": 0}])
@pytest.mark.parametrize("name", NETWORKS)
def test_steps_touch_no_host_memory_and_read_nothing_back(name, settings):
    if name == "frames":
        settings = settings | {"cfg_scale": 1.0}
    with FakeTensorMode(), torch.inference_mode():
        with torch.device("cuda"):
            model = network(name)
        assert next(model.parameters()).device.type == "cuda"
        order = model.config.decoding_order
        condition, padding = condition_of(model, 2)
        given = torch.full((2, order.cells), -1)
        batch = Batch(condition, range(2), SamplingSettings(**settings), None, given, order)
        structure = batch.structure(model)._replace(padded=padding is not None)
        steps = StepProgram(model, 2, structure, order)
        steps.load(replace(batch, padding=padding))
        with OneDevice() as device:
            for index in range(len(order.passes)):
                steps.step(index)
            assert device.count > 30 * len(order.passes)
        assert steps.tokens.device.type == "cuda"


def test_the_fake_device_tells_of_what_steps_may_not_do():
    with FakeTensorMode(), OneDevice():
        here = torch.ones(3, device="cuda")
        for wrong in (
            lambda: here.cpu(),
            lambda: here + torch.ones(()),
            lambda: here.tolist(),
            lambda: bool(here.any()),
            lambda: here[here > 0],
            lambda: here[[0, 1]],
            lambda: torch.tensor([1], device="cuda"),
        ):
            with pytest.raises(Exception, match=r"aten|cuda|dispatch"):
                wrong()


# --- text without a mask -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "order"), [("t2i", None), ("peers/llamagen_t2i", None), ("peers/zipar_t2i", "zipar:2")]
)
def test_text_without_a_mask_gives_the_tokens_of_the_released_code(
    name, order, folding, tmp_path, monkeypatch
):
    source = DATA / f"{name}.pt"
    shutil.copy(source, tmp_path)
    shutil.copy(source.with_suffix(".json"), tmp_path / "config.json")
    model, expected = (
        load_transformer(tmp_path / source.name),
        load_file(source.with_suffix(".expected.safetensors")),
    )
    model.config = model.config.decoded_in(order)
    captions, mask = sorted(key for key in expected if key.startswith("caption"))
    condition, padding = expected[captions], expected[mask] == 0
    assert padding.any()
    seen, attend = [], torch.nn.functional.scaled_dot_product_attention

    def watched(q, k, v, attn_mask=None, **options):
        seen.append((q.shape[2], k.shape[2], attn_mask))
        return attend(q, k, v, attn_mask=attn_mask, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    keys = [key.removeprefix("tokens.") for key in expected if key.startswith("tokens.")]
    keys = [key for key in keys if order is None or key.startswith("w2.")]
    assert keys
    for key in keys:
        scale, _, interval = key.removeprefix("w2.").removeprefix("cfg").partition("_interval")
        settings = SamplingSettings(float(scale), int(interval or -1), temperature=0)
        steps = list(generate(model, condition, range(len(condition)), settings, padding))
        tokens = in_raster_order(model.config.decoding_order, [step.tokens for step in steps])
        assert torch.equal(tokens, expected[f"tokens.{key}"].long())
        logits = torch.cat([step.logits for step in steps], 1)
        torch.testing.assert_close(logits, expected[f"logits.{key}"], rtol=1e-4, atol=5e-4)
    later = [(fed, known, mask) for fed, known, mask in seen if fed != model.config.condition_tokens]
    assert max(known for _, known, _ in later) <= model.config.decoding_order.slots + 1
    assert order or all(mask is None for *_, mask in later)


def test_a_folded_condition_counts_as_many_tokens_as_are_no_padding(folding, monkeypatch):
    """Also in bfloat16, where it is as near to float32 as attention with a mask."""
    features, _ = condition_of(network("text"), 7)
    padding = torch.arange(6) < torch.arange(7)[:, None]  # from none to all
    given = torch.randint(CODES, (7, 12), generator=torch.Generator().manual_seed(1))

    def logits(dtype, folds):
        monkeypatch.setattr(NARTransformer, "folds", folds)
        model, settings = network("text").to(dtype), SamplingSettings(2.0)
        steps = generate(model, features.to(dtype), range(7), settings, padding, given)
        return torch.cat([step.logits for step in steps], 1)

    exact = logits(torch.float32, False)
    torch.testing.assert_close(logits(torch.float32, True), exact, rtol=1e-4, atol=1e-4)
    masked, folded = ((logits(torch.bfloat16, folds) - exact).square().mean() for folds in (False, True))
    assert 0 < folded < 1.5 * masked


# --- what is kept, and what fails ----------------------------------------------------------------


class Failing:
    """Records as ``Recorder``, and fails at a step, or at once."""

    made = 0

    def __init__(self, device, at, error):
        Failing.made += 1
        self.left, self.error, self.recorder = at, error, Recorder(device)
        if at < 0:
            self.fail()

    def __call__(self, work):
        if not self.left:
            self.fail()
        self.left -= 1
        return self.recorder(work)

    def fail(self):
        raise type(self.error)(*self.error.args)  # a new one, which no test holds


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("at", [-1, 0, 3])
def test_after_a_failed_capture_steps_run_one_by_one(models, at, short, monkeypatch):
    error = MemoryError("of 5 GB") if short else RuntimeError("operation not permitted\nin C++")
    made, told, model = [], [], models["class"]
    real = StepProgram.__init__
    monkeypatch.setattr(
        StepProgram, "__init__", lambda self, *args: made.append(weakref.ref(self)) or real(self, *args)
    )
    monkeypatch.setattr(Failing, "made", 0)
    freed = []
    monkeypatch.setattr(graphs, "release", lambda device: freed.append([r() for r in made if r()]))
    runner = Graphs(CPU, lambda device: Failing(device, at, error))
    for seed in range(4):
        steps, tokens = drawn(model, runner, seed, tell=told.append, cfg_scale=2.0)
        assert all(step.logits is not None for step in steps)
        assert torch.equal(tokens, drawn(model, None, seed, cfg_scale=2.0)[1])
    assert Failing.made == 1 and freed == [[]]
    for seed in range(2):  # another kind of batch
        drawn(model, runner, seed, tell=told.append)
    assert Failing.made == 1 + short and freed == [[]] * (1 + short)
    words = "CUDA graphs cannot be used here (operation not permitted): steps are launched one by one."
    assert told == ([] if short else [words])


def test_the_first_error_of_a_failed_capture_is_told(models):
    def fail(work):
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    told, runner = [], Graphs(CPU, lambda device: fail)
    try:
        raise ValueError("of the caller")
    except ValueError:
        for seed in range(2):
            drawn(models["class"], runner, seed, tell=told.append)
    assert "not permitted when stream" in told[0]


class FakeCard:
    """What ``CudaGraphs`` asks of torch."""

    def __init__(self, monkeypatch):
        self.told, self.stream, self.pools, self.faulty = [], "own", 0, False
        for name in ("device", "stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, partial(self.context, name))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", self.pool)
        monkeypatch.setattr(torch.cuda, "Stream", lambda: "side")
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.stream)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", self.Graph)
        monkeypatch.setattr(torch, "zeros", lambda *size, device: None)
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            freed = partial(lambda name, *given: self.told.append((name, *given)), name[6:])
            monkeypatch.setattr(torch._C, name, freed, raising=False)

    class Graph:
        def replay(self):
            return "replayed"

    def pool(self):
        self.pools += 1
        return 0, self.pools

    @contextmanager
    def context(self, name, *given):
        before = self.stream
        if name == "graph":
            self.told.append(("capture", *given[1:]))
            self.stream = given[2]
        yield
        if name == "graph" and self.faulty:
            self.faulty = False
            raise RuntimeError("previous error during capture")  # and the side stream stays
        self.stream = before


def test_steps_are_captured_into_one_pool_on_a_stream_of_their_own(monkeypatch):
    card, ran = FakeCard(monkeypatch), []
    record = graphs.CudaGraphs(torch.device("cuda:1"))
    assert [record(lambda: ran.append(card.stream))() for _ in range(2)] == ["replayed"] * 2
    assert card.told == [("capture", (0, 1), "side", "thread_local")] * 2 and ran == ["side"] * 2


def test_a_capture_that_cannot_end_gives_back_its_pool_and_another_one_ends(monkeypatch):
    card = FakeCard(monkeypatch)
    record = graphs.CudaGraphs(torch.device("cuda:1"))
    card.faulty = True
    with pytest.raises(RuntimeError, match="during capture"):
        record(lambda: None)
    assert card.told == [
        ("capture", (0, 1), "side", "thread_local"),
        ("endAllocateToPool", 1, (0, 1)),
        ("releasePool", 1, (0, 1)),
        ("capture", (0, 2), "side", "thread_local"),
    ]


def test_a_pool_that_torch_gave_back_is_not_given_back_again(monkeypatch):
    card = FakeCard(monkeypatch)

    def fail(*given):
        raise RuntimeError("not recording to that pool")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", fail)
    with pytest.raises(RuntimeError, match="not recording"):
        graphs.CudaGraphs(torch.device("cuda:1"))(fail)
    assert [name for name, *_ in card.told] == ["capture", "capture"]


def counted():
    """A runner, and how many programs it has recorded."""
    recorders = []
    return Graphs(CPU, lambda device: recorders.append(Recorder(device)) or recorders[-1]), recorders


def test_two_kinds_of_batches_are_kept_and_the_one_used_last_stays(models):
    runner, recorders = counted()
    model, counts = models["class"], []
    for rows in (1, 2, 1, 2, 3, 3, 2, 1):
        _, tokens = drawn(model, runner, 5, rows=rows)
        assert torch.equal(tokens, drawn(model, None, 5, rows=rows)[1])
        counts.append(len(recorders))
        assert len(runner._kept) <= graphs.KEPT
    assert counts == [0, 0, 1, 2, 2, 3, 3, 4]
    runner.clear()
    assert not runner._kept
    assert torch.equal(drawn(model, runner, 6)[1], drawn(model, None, 6)[1])


def test_what_decides_operators_makes_another_program_and_numbers_do_not(models):
    model = models["class"]
    order = model.config.decoding_order

    def structure(given=None, padding=None, **settings):
        batch = Batch(torch.tensor([1]), [0], SamplingSettings(**settings), padding, given, order)
        return batch.structure(model)

    plain = structure(cfg_scale=2.0, top_k=3)
    assert structure(cfg_scale=5.0, top_k=3, temperature=0.5) == plain
    assert structure(cfg_scale=2.0, top_k=CODES) == structure(cfg_scale=2.0)
    assert structure(cfg_scale=2.0, top_k=3, padding=torch.zeros(1, 1, dtype=torch.bool)) == plain
    assert structure(temperature=0, top_k=3) == structure(temperature=0, top_p=0.5)
    changes = [
        {"top_k": 4},
        {"top_p": 0.5},
        {"temperature": 0},
        {"cfg_scale": 1.0},
        {"cfg_interval": 2},
        {"given": torch.zeros(1, 12, dtype=torch.int64)},
        {"padding": torch.ones(1, 1, dtype=torch.bool)},
    ]
    others = [structure(**{"cfg_scale": 2.0, "top_k": 3} | change) for change in changes]
    assert len({plain, *others}) == 8


def test_batches_that_go_on_side_by_side_or_end_early_do_not_disturb_each_other(models):
    runner, recorders = counted()
    model, settings = models["class"], SamplingSettings(cfg_scale=2.0)
    for seed in (1, 2):
        drawn(model, runner, seed, cfg_scale=2.0)
    batches = [runner.generate(model, condition_of(model, 2, seed)[0], [seed, seed + 1], settings)
               for seed in (3, 4)]  # fmt: skip
    both = list(zip(*batches, strict=True))
    for number, seed in enumerate((3, 4)):
        tokens = in_raster_order(model.config.decoding_order, [steps[number].tokens for steps in both])
        assert torch.equal(tokens, drawn(model, None, seed, cfg_scale=2.0)[1])
    assert both[0][0].logits is None and both[0][1].logits is not None
    early = runner.generate(model, condition_of(model, 2, 7)[0], [7, 8], settings)
    next(early), next(early)
    early.close()
    steps, tokens = drawn(model, runner, 9, cfg_scale=2.0)
    assert steps[0].logits is None and len(recorders) == 1
    assert torch.equal(tokens, drawn(model, None, 9, cfg_scale=2.0)[1])


@pytest.mark.parametrize(
    ("bad", "settings"),
    [
        (torch.nan, {}),
        (torch.inf, {}),
        (torch.nan, {"temperature": 0}),
        (torch.inf, {"top_k": 5, "top_p": 0.5}),
    ],
)
def test_bad_logits_are_refused_at_the_end_and_tokens_stay_in_the_codebook(bad, settings):
    model, (runner, recorders) = network("class"), counted()
    weight = model.heads["down"].output.weight
    for seed in range(3):  # run, recorded, replayed
        kept = weight.detach().clone()
        with torch.no_grad():
            weight[3] = bad
        walk = runner.generate(model, torch.tensor([1]), [seed], SamplingSettings(**settings))
        steps = [next(walk) for _ in model.config.decoding_order.passes[:-1]]
        assert all(int(step.tokens.min()) >= 0 and int(step.tokens.max()) < CODES for step in steps)
        with pytest.raises(CheckpointError, match="no numbers, or infinite"):
            next(walk)
        with pytest.raises(CheckpointError, match="no numbers, or infinite"):
            list(generate(model, torch.tensor([1]), [seed], SamplingSettings(**settings)))
        with torch.no_grad():
            weight.copy_(kept)
    assert len(recorders) == 1
    steps, tokens = drawn(model, runner, 1, rows=1, **settings)
    assert steps[0].logits is None
    assert torch.equal(tokens, drawn(model, None, 1, rows=1, **settings)[1])


def test_the_runner_of_a_device():
    assert type(choose_runner(CPU)) is Runner
    assert type(choose_runner(torch.device("mps"))) is Eager
    assert type(choose_runner(torch.device("cuda:1"))) is Graphs


# --- the pipeline --------------------------------------------------------------------------------


@pytest.mark.parametrize("runner", [Eager, lambda: Graphs(CPU, Recorder)], ids=["eager", "graphs"])
def test_a_pipeline_of_a_program_makes_the_same_samples(tiny, runner):
    plain = narcli.load(tiny, dtype="float32")
    own = replace(plain, model=load_transformer(tiny), runner=runner())
    expected = list(plain.steps(207, seed=3, num=6, batch_size=2))
    steps = list(own.steps(207, seed=3, num=6, batch_size=2))
    assert [torch.equal(a.tokens, b.tokens) for a, b in zip(steps, expected, strict=True)] == [True] * len(
        steps
    )
    results = [result for progress in steps for result in progress.results]
    wanted = [result for progress in expected for result in progress.results]
    assert [r.metadata for r in results] == [r.metadata for r in wanted]
    assert [r.image.tobytes() for r in results] == [r.image.tobytes() for r in wanted]


def test_a_batch_that_memory_does_not_hold_is_halved(tiny, monkeypatch):
    runner, cleared = Eager(), []
    monkeypatch.setattr(runner, "clear", lambda: bool(cleared.append(True)))
    whole = program.StepProgram.step

    def step(self, index):
        if self.rows > 1 and index == 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 5 GB")
        return whole(self, index)

    monkeypatch.setattr(program.StepProgram, "step", step)
    pipe = replace(narcli.load(tiny, dtype="float32"), runner=runner)
    with pytest.warns(UserWarning, match="Not enough memory for 2 samples"):
        results = pipe.images(207, seed=3, num=2, batch_size=2)
    assert cleared == [True]
    assert [r.seed for r in results] == [3, 4]


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("fixed", [False, True])
def test_what_is_kept_is_freed_before_a_batch_is_halved_or_refused(tiny, monkeypatch, always, fixed):
    runner, told = Graphs(CPU, Recorder), []
    pipe = replace(narcli.load(tiny, dtype="float32"), model=load_transformer(tiny), runner=runner)
    entry = pipe.classes.entry(0)
    expected = pipe.images(entry.id, seed=3, num=6, batch_size=2)
    pipe.images(entry.id, seed=9, num=6, batch_size=3)
    assert len(runner._kept) == 2
    decode = type(pipe).decode

    def short(self, tokens):
        if len(tokens) > 1 and (runner._kept or always):
            raise RuntimeError("CUDA out of memory. Tried to allocate 5 GB")
        return decode(self, tokens)

    monkeypatch.setattr(type(pipe), "decode", short)
    samples = plan_samples([entry], 3, 2)
    run = pipe.run(samples, pipe.defaults, 2, told.append, fixed=fixed)
    if fixed and always:
        with pytest.raises(MemoryLimitError, match="not enough memory"):
            list(run)
        assert not runner._kept
        return
    results = [result for progress in run for result in progress.results]
    assert [r.image for r in results] == [r.image for r in expected[:2]]
    assert told == ["Not enough memory for 2 samples together; going on with 1."] * always


def test_what_is_kept_is_freed_before_the_text_encoder_is_loaded(tiny_text, tmp_path, monkeypatch):
    monkeypatch.setattr("narcli.encoding.cache_folder", lambda: tmp_path)
    runner, kept = Graphs(CPU, Recorder), []
    model = load_transformer(tiny_text)
    pipe = replace(narcli.load(tiny_text, kind="text", dtype="float32"), model=model, runner=runner)
    load = T5Encoder.load
    monkeypatch.setattr(T5Encoder, "load", lambda *given: kept.append(len(runner._kept)) or load(*given))
    for number in range(2):
        pipe.images(prompts=["a red apple", "a house"], num=1, seed=number, batch_size=1)
    assert len(runner._kept) == 1
    pipe.images(prompts="a green tree", seed=1)
    assert kept == [0, 0]
