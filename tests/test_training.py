import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from narcli.checkpoints import save as saving
from narcli.checkpoints.load import load_tokenizer, load_transformer
from narcli.checkpoints.save import check_saveable, save_model
from narcli.cli import app
from narcli.cli.console import Console
from narcli.errors import CheckpointError, NarError, UsageError
from narcli.hub.resolve import resolve
from narcli.media.atomic import write_atomic
from narcli.models.blocks import TransformerConfig
from narcli.models.transformer import NARTransformer
from narcli.models.vq import VQConfig, VQTokenizer
from narcli.sampling import SamplingSettings, generate
from narcli.training.data import Pictures, load_pictures
from narcli.training.loop import (
    SLOW,
    TrainSettings,
    batch_indices,
    check_room,
    optimizers_of,
    save_tensors,
    train,
)
from narcli.training.nar import train_nar
from narcli.training.noise import ROLLOUT_STEPS, Noise, Rollouts
from narcli.training.start import check_output, warn_of_untrained
from narcli.training.stop import deferred
from narcli.training.tokenizer import edges, psnr, train_tokenizer
from narcli.training.tokens import mark_starts, tokenize

SMALL = VQConfig(32, (1, 1), 1, 32, codebook_size=16)


def settings(**changes):
    return TrainSettings(
        **{"steps": 6, "batch_size": 4, "learning_rate": 1e-3, "warmup": 2, "save_every": 3, "compile": False}
        | changes
    )


def check_goes_on(run, place, monkeypatch):
    """Stop a run of ``settings`` in its fifth step: it goes on from the checkpoint, to the same weights."""
    whole, begun, stop = run("whole"), [], True

    def indices(count, chosen, step):
        begun.append(step)
        return batch_indices(count, chosen, 1 / 0 if stop and step == 4 else step)

    monkeypatch.setattr(place, indices)
    with pytest.raises(ZeroDivisionError):
        run("stopped")
    stop = False
    resumed = run("stopped")
    assert begun == [0, 1, 2, 3, 4, 3, 4, 5]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.fixture
def folder(tmp_path):
    """A folder of pictures: two classes of 16 pixels, three pictures each."""
    rng = np.random.default_rng(0)
    for name in ("blue", "red"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(3):
            pixels = rng.integers(0, 256, (16, 16, 4), np.uint8)
            pixels[..., 2 if name == "blue" else 0] = 255
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{index}.png")
    return tmp_path / "pictures"


@pytest.fixture
def clips(tmp_path):
    """Prepared clips: two classes, three clips each of 4 frames of 16 pixels, in which a dark bar moves."""
    folder = tmp_path / "clips"
    folder.mkdir()
    images = np.full((6, 4, 16, 16, 3), 255, np.uint8)
    for clip in range(6):
        images[clip, ..., clip % 2 * 2] = 200
        for frame in range(4):
            images[clip, frame, :, (frame * 4 + clip) % 16, :] = 10
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", np.arange(6) % 2)
    (folder / "classes.txt").write_text("bar\nbeam\n")
    return folder


def command_line(*arguments):
    main = "from narcli.cli import main; raise SystemExit(main())"
    return [sys.executable, "-c", main, *map(str, arguments)]


def narcli(*arguments):
    return subprocess.run(command_line(*arguments), capture_output=True, text=True)


@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 5))
def test_every_item_is_seen_once_an_epoch(count, batch_size, seed):
    chosen = settings(batch_size=batch_size, seed=seed)
    seen = np.concatenate([batch_indices(count, chosen, step) for step in range(2 * count)])
    for start in range(0, len(seen) - count + 1, count):
        assert sorted(seen[start : start + count]) == list(range(count))


def test_the_rate_warms_up_and_ends_at_zero():
    chosen = settings(steps=100, warmup=10, learning_rate=0.5)
    rates = [chosen.rate(step) for step in range(101)]
    assert rates[9] == max(rates) == 0.5
    assert rates[100] == pytest.approx(0, abs=1e-9)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    short = settings(steps=20, warmup=200)
    assert short.rate(19) < short.rate(2)


def test_a_run_that_was_stopped_ends_with_the_same_weights(folder, tmp_path, monkeypatch):
    pictures = load_pictures(folder, 16)
    monkeypatch.setattr("narcli.training.tokenizer.RESEED_EVERY", 2)
    whole = train_tokenizer(pictures, SMALL, settings(), tmp_path / "whole", quiet=True)

    import narcli.training.loop as loop

    original = loop.batch_indices

    def stop_at_five(count, chosen, step):
        if step == 4:
            raise KeyboardInterrupt
        return original(count, chosen, step)

    monkeypatch.setattr("narcli.training.tokenizer.batch_indices", stop_at_five)
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(pictures, SMALL, settings(), tmp_path / "stopped", quiet=True)
    assert torch.load(tmp_path / "stopped" / "state.pt", weights_only=True)["step"] == 3
    monkeypatch.setattr("narcli.training.tokenizer.batch_indices", original)
    resumed = train_tokenizer(pictures, SMALL, settings(), tmp_path / "stopped", quiet=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_run_goes_on_where_the_processor_has_no_bfloat16(folder, tmp_path):
    pictures = load_pictures(folder, 16)
    here = settings(steps=3, bfloat16=True)
    first = train_tokenizer(pictures, SMALL, here, tmp_path / "run", quiet=True)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    state["about"]["bfloat16"] = True  # as earlier versions wrote it
    torch.save(state, tmp_path / "run" / "state.pt")
    there = settings(steps=3, bfloat16=False)
    second = train_tokenizer(pictures, SMALL, there, tmp_path / "run", quiet=True)
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


def test_other_settings_or_another_model_do_not_go_on_with_a_run(folder, tmp_path):
    pictures = load_pictures(folder, 16)
    train_tokenizer(pictures, SMALL, settings(steps=3), tmp_path / "run", quiet=True)
    with pytest.raises(CheckpointError, match="differs in: learning_rate"):
        train_tokenizer(pictures, SMALL, settings(steps=3, learning_rate=1.0), tmp_path / "run", quiet=True)
    wider = VQConfig(64, (1, 1), 1, 32, codebook_size=16)
    with pytest.raises(CheckpointError, match="differs in: tokenizer"):
        train_tokenizer(pictures, wider, settings(steps=3), tmp_path / "run", quiet=True)
    others = Pictures(255 - pictures.images, pictures.labels)
    with pytest.raises(CheckpointError, match="differs in: data"):
        train_tokenizer(others, SMALL, settings(steps=3), tmp_path / "run", quiet=True)
    (tmp_path / "run" / "state.pt").write_bytes(b"PK half a file")
    with pytest.raises(CheckpointError, match=r"state\.pt"):
        train_tokenizer(pictures, SMALL, settings(steps=3), tmp_path / "run", quiet=True)


def test_a_tokenizer_learns_its_pictures(folder, tmp_path):
    for path in folder.rglob("*.png"):  # plain colours, a half each
        pixels = np.full((16, 16, 3), 255, np.uint8)
        pixels[:, 8:] = (0, 0, 255) if path.parent.name == "blue" else (255, 0, 0)
        Image.fromarray(pixels).save(path)
    pictures = load_pictures(folder, 16)
    torch.manual_seed(0)
    before = float(psnr(VQTokenizer(SMALL).eval(), pictures).mean())
    model = train_tokenizer(pictures, SMALL, settings(steps=80, save_every=80), tmp_path / "run", quiet=True)
    assert float(psnr(model, pictures).mean()) > before + 8


def test_a_decoder_that_learns_on_keeps_the_codes(folder, tmp_path):
    pictures = load_pictures(folder, 16)
    first = train_tokenizer(pictures, SMALL, settings(steps=3), tmp_path / "first", quiet=True)
    chosen = settings(steps=40, save_every=40)
    model = train_tokenizer(pictures, SMALL, chosen, tmp_path / "second", start=first, quiet=True)
    images = pictures.batch(np.arange(len(pictures)))
    assert torch.equal(model.encode(images), first.encode(images))
    for name, tensor in first.state_dict().items():
        learns = name.startswith(("decoder.", "post_quant_conv."))
        assert torch.equal(tensor, model.state_dict()[name]) is not learns, name
    assert psnr(model, pictures).mean() > psnr(first, pictures).mean()
    with pytest.raises(CheckpointError, match="differs in: start"):
        train_tokenizer(pictures, SMALL, chosen, tmp_path / "second", quiet=True)


def test_further_blocks_of_a_decoder_begin_without_effect_and_learn(folder, tmp_path):
    pictures = load_pictures(folder, 16)
    first = train_tokenizer(pictures, SMALL, settings(steps=3), tmp_path / "first", quiet=True)
    deeper = replace(SMALL, decoder_blocks=2)
    images = pictures.batch(np.arange(len(pictures)))
    codes = first.encode(images)
    untouched = settings(steps=1, learning_rate=0.0)
    same = train_tokenizer(pictures, deeper, untouched, tmp_path / "same", start=first, quiet=True)
    assert torch.equal(same.decode(codes, (8, 8)), first.decode(codes, (8, 8)))
    chosen = settings(steps=20, save_every=20, muon=True)
    model = train_tokenizer(pictures, deeper, chosen, tmp_path / "second", start=first, quiet=True)
    assert torch.equal(model.encode(images), codes)
    learnt, ahead = model.decode(codes, (8, 8)), float(psnr(model, pictures).mean())
    assert ahead > psnr(first, pictures).mean()
    for block in model.decoder.mid[3:]:  # each has an effect of its own
        kernel = block.conv2.weight.detach().clone()
        torch.nn.init.zeros_(block.conv2.weight)
        assert (model.decode(codes, (8, 8)) - learnt).abs().max() > 1e-4
        block.conv2.weight.data.copy_(kernel)


def test_a_tokenizer_of_other_sizes_is_no_start(folder, tmp_path):
    pictures = load_pictures(folder, 16)
    deeper = replace(SMALL, decoder_blocks=1)
    for start, config in ((deeper, SMALL), (SMALL, replace(deeper, num_res_blocks=2))):
        with pytest.raises(UsageError, match=r"`start` has the sizes .* expected"):
            train_tokenizer(pictures, config, settings(), tmp_path, start=VQTokenizer(start), quiet=True)


def test_a_run_of_before_further_blocks_goes_on(folder, tmp_path):
    pictures = load_pictures(folder, 16)
    whole = train_tokenizer(pictures, SMALL, settings(), tmp_path, quiet=True)
    about = torch.load(tmp_path / "state.pt", weights_only=True)["about"]
    assert set(about["tokenizer"]) == {field.name for field in fields(VQConfig)} - {"decoder_blocks"}
    again = train_tokenizer(pictures, SMALL, settings(), tmp_path, quiet=True)
    assert all(map(torch.equal, whole.state_dict().values(), again.state_dict().values()))
    with pytest.raises(CheckpointError, match="differs in: tokenizer"):
        train_tokenizer(pictures, replace(SMALL, decoder_blocks=1), settings(), tmp_path, quiet=True)


def test_a_tokenizer_gets_further_blocks_by_the_command_and_loses_none(folder, tmp_path):
    def run(*words, code=0):
        words = ["train", "tokenizer", folder, "--size", 16, "--steps", 2, "--quiet", *words]
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == code, result.stderr
        return result.stderr

    sizes = ["--channels", 32, "--multipliers", "1,1", "--codes", 16, "--patch", 1, "--decoder-blocks", 1]
    run("-o", tmp_path / "new", *sizes)
    start = ["--start", tmp_path / "new" / "model"]
    run("-o", tmp_path / "same", *start, "--muon")
    run("-o", tmp_path / "deeper", *start, "--decoder-blocks", 3, "--learning-rate", 0)
    for name, blocks in (("new", 1), ("same", 1), ("deeper", 3)):
        made = tmp_path / name / "model"
        assert json.loads((made / "config.json").read_text())["tokenizer"]["decoder_blocks"] == blocks
        assert load_tokenizer(made).config.decoder_blocks == blocks
        about = torch.load(tmp_path / name / "state.pt", weights_only=True)["about"]
        assert about["muon"] == (name == "same")
    codes = torch.randint(0, 16, (2, 64))
    old, new = (load_tokenizer(tmp_path / name / "model").decode(codes, (8, 8)) for name in ("new", "deeper"))
    assert torch.equal(old, new)
    said = run("-o", tmp_path / "fewer", *start, "--decoder-blocks", 0, code=2)
    assert "--decoder-blocks is 0" in said and "has 1" in said and "as many or more" in said
    assert not (tmp_path / "fewer").exists()


def test_compile_is_for_both_halves_of_a_tokenizer(folder, tmp_path, monkeypatch):
    ran = []

    def noted(function):
        return lambda *given: ran.append(function.__name__) or function(*given)

    monkeypatch.setattr(torch, "compile", noted)
    sizes = ["--channels", 32, "--multipliers", "1,1", "--codes", 16, "--patch", 1]
    start = ["--start", tmp_path / "fast" / "model"]
    for name, more, expected in (
        ("plain", sizes, []),
        ("fast", [*sizes, "--compile"], ["features", "decode_vectors"]),
        ("on", [*start, "--compile"], ["decode_vectors"]),
    ):
        words = ["train", "tokenizer", folder, "--size", 16, "--steps", 2, "--quiet", "-o", tmp_path / name]
        result = CliRunner().invoke(app, [str(word) for word in [*words, *more]])
        assert result.exit_code == 0, result.stderr
        assert ran == expected * 2
        ran.clear()


@pytest.mark.parametrize("muon", [False, True], ids=["AdamW", "Muon"])
def test_a_transformer_learns_its_tokens_by_heart_and_generates_them(muon, tmp_path):
    torch.manual_seed(0)
    tokens, labels = torch.randint(0, 16, (3, 16)), torch.arange(3)
    config = TransformerConfig((4, 4), 64, 2, 2, 16, 128, num_classes=3)
    chosen = settings(
        steps=120, batch_size=12, learning_rate=3e-3, warmup=10, save_every=120, ema=0.9, muon=muon
    )
    model = train_nar(tokens, labels, VQTokenizer(SMALL), config, chosen, tmp_path, dropout=0.0, quiet=True)
    generated = torch.empty_like(tokens)
    for step in generate(model, labels, range(3), SamplingSettings(cfg_scale=1.5)):
        generated[:, list(step.cells)] = step.tokens
    assert (generated == tokens).float().mean() > 0.95
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 120 and log[-1]["loss"] < 1
    with Image.open(tmp_path / "sample-000120.png") as sheet:
        assert sheet.size == (80, 32)


def test_muon_takes_the_layers_matrices_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    tokens, labels = torch.randint(0, 16, (6, 16)), torch.arange(6)
    config = TransformerConfig((4, 4), 32, 1, 2, 16, 64, num_classes=6)
    adamw, muon = optimizers_of(NARTransformer(config), settings(muon=True))
    assert sum(len(group["params"]) for group in muon.param_groups) == 2 * 5  # qkv, out, gate, up, down
    together = [p for optimizer in (adamw, muon) for group in optimizer.param_groups for p in group["params"]]
    assert len(together) == len(list(NARTransformer(config).parameters()))

    tokenizer = VQTokenizer(SMALL)

    def run(folder):
        return train_nar(
            tokens, labels, tokenizer, config, settings(muon=True), tmp_path / folder, quiet=True
        )

    check_goes_on(run, "narcli.training.nar.batch_indices", monkeypatch)


def test_the_picture_that_a_sample_is_nearest_to():
    torch.manual_seed(0)
    tokens, labels = torch.randint(0, 16, (6, 16)), torch.tensor([1, 0, 1, 0, 1, 0])
    noise, items = Noise(tokens, labels, 0.0), torch.arange(6)
    near = tokens.clone()
    near[:, :5] = 0
    assert torch.equal(noise.nearest(near, (items + 2) % 6), items)  # whichever of the class was asked for
    assert torch.equal(labels[noise.nearest(near, 5 - items)], labels[5 - items])  # never of another class
    assert torch.equal(noise.nearest(torch.full_like(tokens, 99), items), items)


def test_samples_are_the_input_of_a_share_of_examples():
    tokens = torch.randint(0, 16, (6, 16))
    model = NARTransformer(TransformerConfig((4, 4), 32, 1, 2, 16, 64, num_classes=2))
    asked = []

    def sampled(network, items, seeds):
        assert not torch.is_grad_enabled() and not network.training
        asked.extend(seeds.tolist())
        return tokens[items] + 100

    chosen = settings(steps=100, batch_size=4, seed=2**32 - 1)
    rollout = Rollouts(model, tokens, sampled, chosen, 0.5)
    parts = []
    for step in range(2 * ROLLOUT_STEPS):
        right = tokens[torch.from_numpy(batch_indices(6, chosen, step))]
        mixed = rollout(step, right + 50, right)
        assert torch.equal(mixed[2:], right[2:] + 50)
        assert ((mixed[:2] == right[:2] + 100) | (mixed[:2] == right[:2])).all()
        parts += (mixed[:2] > 50).float().mean(1).tolist()
    assert 0.35 < sum(part == 1 for part in parts) / len(parts) < 0.65
    assert 0.2 < sum(part for part in parts if part < 1) / sum(part < 1 for part in parts) < 0.8
    assert len(set(asked)) == 2 * ROLLOUT_STEPS * 2  # none twice
    for share, count in ((0.0, 0), (0.01, 1), (1.0, 4)):
        assert Rollouts(model, tokens, sampled, chosen, share).count == count
    noisy = tokens[:4] + 50
    assert torch.equal(Rollouts(model, tokens, sampled, chosen, 0.0)(3, noisy, tokens[:4]), noisy)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="from 0 to 1"):
            Rollouts(model, tokens, sampled, chosen, share)


def test_a_run_with_samples_goes_on_where_it_stopped(tmp_path, monkeypatch):
    tokens, labels = torch.randint(0, 16, (6, 16)), torch.arange(6)
    config = TransformerConfig((4, 4), 32, 1, 2, 16, 64, num_classes=6)
    tokenizer = VQTokenizer(SMALL)

    def run(folder, rollouts=0.5):
        return train_nar(
            tokens, labels, tokenizer, config, settings(), tmp_path / folder, rollouts=rollouts, quiet=True
        ).state_dict()

    whole = run("whole")
    original = Rollouts.__call__

    def stop(rollout, step, *tokens):
        return original(rollout, step if step < 4 else 1 / 0, *tokens)

    monkeypatch.setattr(Rollouts, "__call__", stop)
    with pytest.raises(ZeroDivisionError):
        run("stopped")
    monkeypatch.setattr(Rollouts, "__call__", original)
    resumed = run("stopped")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    with pytest.raises(CheckpointError, match="differs in: rollouts"):
        run("stopped", 0.25)


def test_samples_of_a_class_lead_to_the_picture_that_they_are_of(tmp_path):
    torch.manual_seed(0)
    tokens, labels = torch.randint(0, 16, (4, 16)), torch.tensor([0, 0, 1, 1])
    config = TransformerConfig((4, 4), 64, 2, 2, 16, 128, num_classes=2)
    chosen = settings(steps=61, batch_size=12, learning_rate=3e-3, warmup=10, save_every=61, ema=0.9)
    train_nar(
        tokens, labels, VQTokenizer(SMALL), config, chosen, tmp_path, dropout=0.0, rollouts=0.5, quiet=True
    )
    drawn = torch.load(tmp_path / "state.pt", weights_only=True)["memory"]["drawn"]
    assert drawn.shape == (ROLLOUT_STEPS, 6, 16)
    asked = [batch_indices(4, chosen, 60 + ahead)[:6] for ahead in range(ROLLOUT_STEPS)]
    items = torch.from_numpy(np.stack(asked))
    own, other = ((drawn == tokens[each]).sum(-1) for each in (items, items ^ 1))
    assert (own >= other).all()  # one of the other picture gave way to the right tokens
    assert (own < 16).any()  # not all did
    assert own.float().mean() > 10  # of any network it would be some 9


def test_muon_leaves_learned_positions_to_adamw():
    config = TransformerConfig((4, 4), 32, 1, 2, 16, 64, num_classes=6, position="absolute")
    model = NARTransformer(config)
    adamw, _ = optimizers_of(model, settings(muon=True))
    assert any(p is model.position_embedding for group in adamw.param_groups for p in group["params"])


@pytest.mark.parametrize("started", [False, True])
def test_muon_takes_convolutions_as_matrices_and_goes_on_where_it_stopped(
    started, folder, tmp_path, monkeypatch
):
    kernel, matrix = torch.randn(6, 4, 3, 3), torch.nn.Parameter(torch.empty(6, 36))
    convolution = torch.nn.Conv2d(4, 6, 3)
    convolution.weight.data.copy_(kernel)
    matrix.data.copy_(kernel.flatten(1))
    adamw, muon = optimizers_of(convolution, settings(muon=True, learning_rate=0.01))
    assert [p is convolution.bias for group in adamw.param_groups for p in group["params"]] == [True]
    alone = torch.optim.Muon([matrix], lr=0.01, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    for _ in range(2):
        gradient = torch.randn(6, 4, 3, 3)
        convolution.weight.grad, matrix.grad = gradient, gradient.flatten(1).clone()
        muon.step()
        alone.step()
    assert torch.equal(convolution.weight.flatten(1), matrix) and not torch.equal(convolution.weight, kernel)

    pictures = load_pictures(folder, 16)
    start = VQTokenizer(SMALL).eval() if started else None
    config = replace(SMALL, decoder_blocks=started)

    def run(name):
        return train_tokenizer(pictures, config, settings(muon=True), tmp_path / name, start, quiet=True)

    check_goes_on(run, "narcli.training.tokenizer.batch_indices", monkeypatch)


def test_slow_parts_learn_with_adamw_at_a_share_of_the_rate(tmp_path):
    model = torch.nn.ModuleDict(
        {name: torch.nn.ModuleDict({"layers": torch.nn.Linear(4, 4)}) for name in ("fast", "slow")}
    )
    adamw, muon = optimizers_of(model, settings(muon=True), "slow.")
    assert [p is model["fast"]["layers"].weight for p in muon.param_groups[0]["params"]] == [True]
    shares = {id(p): group["share"] for group in adamw.param_groups for p in group["params"]}
    slow = model["slow"]["layers"]
    assert shares == {id(model["fast"]["layers"].bias): 1.0, id(slow.weight): SLOW, id(slow.bias): SLOW}

    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss_of = lambda step: (sum(p.sum() for p in model.parameters()), {})  # noqa: E731
    train(
        model,
        loss_of,
        settings(steps=1, warmup=0, ema=0.0),
        tmp_path,
        lambda *_: None,
        slow="slow.",
        quiet=True,
    )
    moved = {name: (p - before[name]).abs().max().item() for name, p in model.named_parameters()}
    assert moved["slow.layers.bias"] == pytest.approx(SLOW * moved["fast.layers.bias"], rel=1e-3)


def test_tokens_are_kept_for_the_same_pictures_and_tokenizer_only(folder, tmp_path):
    pictures = load_pictures(folder, 16)
    torch.manual_seed(0)
    first, second = VQTokenizer(SMALL).eval(), VQTokenizer(SMALL).eval()
    tokens = tokenize(pictures, first, tmp_path)
    assert torch.equal(tokens, first.encode(pictures.batch(np.arange(6))))
    assert torch.equal(tokenize(pictures, first, tmp_path), tokens)
    assert len(list(tmp_path.glob("tokens-*.npy"))) == 1
    assert torch.equal(tokenize(pictures, second, tmp_path), second.encode(pictures.batch(np.arange(6))))
    others = Pictures(255 - pictures.images, pictures.labels)
    assert torch.equal(tokenize(others, first, tmp_path), first.encode(others.batch(np.arange(6))))


def test_the_first_token_says_where_a_loop_begins():
    torch.manual_seed(0)
    tokenizer = VQTokenizer(SMALL)
    codes = tokenizer.quantize(torch.arange(SMALL.codebook_size)).detach()
    near = (codes - codes[5]).norm(dim=1).argsort().tolist()
    assert near[0] == 5
    clips = [[5, 5, near[1], 5], [5] * 4, [1, 2, 3, 4]]
    tokens = torch.cat([torch.tensor(clips).view(-1, 1), torch.randint(0, 16, (12, 63))], 1)
    before = tokens.clone()
    marked = mark_starts(tokens, 4, tokenizer)
    # One that no start before has is left alone, and no other is moved to it.
    assert marked[:, 0].view(3, 4).tolist() == [[5, near[2], near[1], near[3]], near[:4], clips[2]]
    assert torch.equal(marked[:, 1:], tokens[:, 1:]) and torch.equal(tokens, before)
    with pytest.raises(UsageError, match="`loop_starts` is 17, and the tokenizer has 16 codes"):
        mark_starts(tokens[:1].expand(17, -1), 17, tokenizer)


@pytest.mark.parametrize("starts", [1, 3])
def test_samples_begin_with_the_token_that_says_where_the_loop_begins(tmp_path, starts):
    torch.manual_seed(0)
    tokens = torch.randint(0, 16, (6, 16))
    tokens[:, 0] = 5
    tokenizer = VQTokenizer(SMALL)
    config = TransformerConfig((4, 4), 32, 1, 2, 16, 64, num_classes=6)
    chosen = settings()
    # A class each, so that no sample is left out.
    train_nar(
        tokens, torch.arange(6), tokenizer, config, chosen, tmp_path, loop_starts=starts, rollouts=1.0,
        quiet=True,
    )  # fmt: skip
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["about"].get("loop_starts", 1) == starts
    drawn = state["memory"]["drawn"]
    items = torch.from_numpy(np.stack([batch_indices(6, chosen, step) for step in range(ROLLOUT_STEPS)]))
    marked = mark_starts(tokens, starts, tokenizer)
    assert len(marked[:, 0].unique()) == starts
    assert torch.equal(drawn[..., 0], marked[items][..., 0]) == (starts > 1)
    assert (drawn[..., 1:] == marked[items][..., 1:]).float().mean() < 0.5


@given(st.integers(0, 99), st.floats(0, 2))
def test_noise_exchanges_tokens_for_those_of_the_same_place(seed, most):
    torch.manual_seed(seed)
    labels = torch.tensor([2, 0, 1, 0, 2, 2])
    tokens = torch.arange(6)[:, None] * 100 + torch.arange(50)  # (item, place), told apart
    noisy = Noise(tokens, labels, most)(tokens, labels)
    assert torch.equal(noisy % 100, tokens % 100)
    kept = Noise(tokens, labels, most, keep_first=True)(tokens, labels)
    assert torch.equal(kept[:, 0], tokens[:, 0])
    assert torch.equal(kept % 100, tokens % 100)
    assert (noisy != tokens).float().mean(1).max() <= min(most + 0.25, 1)


def test_noise_comes_from_the_same_class_half_of_the_time():
    torch.manual_seed(0)
    labels = torch.arange(1000) // 10  # 100 classes, ten items each
    tokens = torch.arange(1000)[:, None].expand(1000, 40)
    noisy = Noise(tokens, labels, 1.0)(tokens, labels)
    changed = noisy != tokens
    assert changed.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (labels[noisy] == labels[tokens])[changed].float().mean().item() == pytest.approx(0.48, abs=0.05)
    assert torch.equal(Noise(tokens, labels, 0.0)(tokens, labels), tokens)


def test_from_a_folder_of_pictures_to_a_picture(folder, tmp_path):
    run = narcli(
        "train", "tokenizer", folder, "-o", tmp_path / "tok", "--size", 16, "--steps", 2, "--channels", 32,
        "--multipliers", "1,1", "--codes", 16, "--patch", 1, "--heldout", folder, "--json", "-q",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    assert said["heldout_psnr_db"] > 0
    run = narcli(
        "train", "nar", folder, "-o", tmp_path / "nar", "--tokenizer", said["model"], "--size", 16,
        "--steps", 2, "--dim", 32, "--layers", 1, "--heads", 2, "-q",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    model = run.stdout.strip()
    assert load_transformer(model).config.num_classes == 2
    assert load_tokenizer(model).config == SMALL
    run = narcli("image", "--model", model, "--class", "red", "-o", tmp_path / "red.png", "-q")
    assert run.returncode == 0, run.stderr
    with Image.open(tmp_path / "red.png") as picture:
        assert picture.size == (256, 256)


def test_a_killed_run_goes_on_and_gives_the_same_model(folder, tmp_path):
    def command(name):
        return [
            "train", "tokenizer", folder, "-o", tmp_path / name, "--size", 16, "--steps", 40, "-q",
            "--channels", 32, "--multipliers", "1,1", "--codes", 16, "--patch", 1, "--save-every", 2,
        ]  # fmt: skip

    assert narcli(*command("whole")).returncode == 0
    process = subprocess.Popen(
        command_line(*command("killed")), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not (tmp_path / "killed" / "state.pt").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert torch.load(tmp_path / "killed" / "state.pt", weights_only=True)["step"] < 40
    run = narcli(*command("killed"))
    assert run.returncode == 0, run.stderr
    whole, resumed = (
        load_file(tmp_path / name / "model" / "tokenizer.safetensors") for name in ("whole", "killed")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


# --- clips ---------------------------------------------------------------------------------------

CLIP = VQConfig(32, (1, 1), 1, 32, codebook_size=16, frames=2)


def test_items_of_clips_are_their_frames_from_each_start_on(clips):
    data = load_pictures(clips)
    assert (len(data), data.frames, data.num_classes) == (6, 4, 2)
    loops = data.loops(4)
    assert len(loops) == 24 and loops.item_labels.tolist() == [c % 2 for c in range(6) for _ in range(4)]
    for clip, start in ((0, 0), (5, 3), (2, 1)):
        (found,) = loops.pixels(np.array([4 * clip + start]))
        assert np.array_equal(found, np.roll(data.images[clip], -start, axis=0))
    pieces = data.pieces(2)
    assert len(pieces) == 12
    assert np.array_equal(pieces.pixels(np.array([0, 1, 7])), np.stack(
        [data.images[0, :2], data.images[0, 2:], data.images[3, 2:]]))  # fmt: skip
    around = loops.pieces(2)
    assert len(around) == 24
    (found,) = around.pixels(np.array([4 * 2 + 3]))
    assert np.array_equal(found, data.images[2, [3, 0]])
    assert data.batch(np.array([1])).shape == (1, 3, 4, 16, 16)
    assert len({d.digest() for d in (data, loops, pieces, around)}) == 4
    with pytest.raises(UsageError, match="`loop_starts` is 3, and there are clips of 4 frames"):
        data.loops(3)


def test_pictures_have_no_loops(folder):
    with pytest.raises(UsageError, match="no clips"):
        load_pictures(folder, 16).loops(2)


def test_changes_in_time_count_in_the_loss():
    still = torch.zeros(1, 3, 4, 8, 8)
    flickering = still.clone()
    flickering[:, :, ::2] = 0.5
    assert edges(still, still) == 0
    assert edges(flickering, still).item() == pytest.approx(0.5)
    assert edges(flickering[:, :, 0], still[:, :, 0]) == 0


def test_a_tokenizer_learns_its_clips(clips, tmp_path):
    data = load_pictures(clips).loops(2)
    torch.manual_seed(0)
    before = float(psnr(VQTokenizer(CLIP).eval(), data).mean())
    chosen = settings(steps=80, save_every=80)
    model = train_tokenizer(data, CLIP, chosen, tmp_path / "run", quiet=True)
    after = psnr(model, data)
    assert after.shape == (12,) and float(after.mean()) > before + 6
    with Image.open(tmp_path / "run" / "sample-000080.png") as sheet:
        assert sheet.size == (8 * 16, 2 * 6 * 16)  # 24 pieces of 2 frames, 4 a row, each with its original


def test_codes_of_clips_that_fall_out_of_use_are_seeded_anew(clips, tmp_path, monkeypatch):
    monkeypatch.setattr("narcli.training.tokenizer.RESEED_EVERY", 2)
    data = load_pictures(clips)
    config = replace(CLIP, codebook_size=512)  # more codes than one step can use
    torch.manual_seed(settings().seed)
    fresh = VQTokenizer(config)
    torch.nn.init.normal_(fresh.quantize.embedding.weight)
    start = fresh.quantize.embedding.weight.detach().clone()
    still = settings(steps=4, learning_rate=0.0, ema=0.0)
    model = train_tokenizer(data, config, still, tmp_path, quiet=True)
    moved = (model.quantize.embedding.weight - start).abs().amax(1) > 0
    assert moved.sum() > 100
    seeded = torch.nn.functional.normalize(model.quantize.embedding.weight[moved], dim=-1)
    features = model.features(data.batch(np.arange(6))).flatten(0, -2)
    assert (seeded @ features.T).amax(1).min() > 0.98  # each is a feature of the clips


def test_from_clips_to_a_video(clips, tmp_path, monkeypatch):
    """The commands, in one process."""

    def command(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.stderr
        return result.stdout

    small = ["--steps", 2, "--loop-starts", 2]
    said = json.loads(command(
        "train", "tokenizer", clips, "-o", tmp_path / "tok", *small, "--channels", 32, "--multipliers", "1,1",
        "--codes", 16, "--patch", 1, "--frames", 2, "--heldout", clips, "--json", "-q",
    ))  # fmt: skip
    assert said["heldout_psnr_db"] > 0 and load_tokenizer(said["model"]).config == CLIP
    more = command(
        "train", "tokenizer", clips, "-o", tmp_path / "more", *small, "--start", said["model"], "-q"
    ).strip()
    assert load_tokenizer(more).config == CLIP
    model = command(
        "train", "nar", clips, "-o", tmp_path / "nar", "--tokenizer", more, *small, "--dim", 32,
        "--layers", 1, "--heads", 2, "-q",
    ).strip()  # fmt: skip
    config = load_transformer(model).config
    assert (config.grid, config.position, config.num_classes) == ((2, 8, 8), "absolute", 2)
    with Image.open(tmp_path / "nar" / "sample-000002.png") as sheet:
        assert sheet.size == (4 * 16, 8 * 16)
    (tokens,) = (tmp_path / "nar").glob("tokens-*.npy")
    assert np.load(tokens).shape == (12, 128)
    assert torch.load(tmp_path / "nar" / "state.pt", weights_only=True)["about"]["loop_starts"] == 2
    command("video", "--model", model, "--class", "beam", "--frames", 4, "-o", tmp_path / "a.gif", "-q")
    with Image.open(tmp_path / "a.gif") as clip:
        assert clip.size == (256, 256)


@pytest.fixture
def trained(tmp_path):
    """A model of the clips' two classes, with random weights in float16."""
    torch.manual_seed(1)
    config = TransformerConfig((2, 8, 8), 32, 1, 2, 16, 64, num_classes=2, position="absolute")
    return save_model(
        tmp_path / "trained", transformer=NARTransformer(config), tokenizer=VQTokenizer(CLIP),
        classes=["bar", "beam"], defaults={"cfg_scale": 1.5, "temperature": 0.4}, dtype=torch.float16,
    )  # fmt: skip


def train_nar_command(*arguments):
    return CliRunner().invoke(app, ["train", "nar", *map(str, arguments), "-q"])


def test_a_model_of_classes_goes_on(clips, trained, tmp_path):
    before = load_transformer(trained).state_dict()
    moved = {}
    for rate in (0, 1e-3):
        command = (clips, "--start", trained, "-o", tmp_path / f"{rate}", "--steps", 2)
        run = train_nar_command(*command, "--learning-rate", rate)
        assert run.exit_code == 0, run.stderr
        after = load_transformer(run.stdout.strip(), dtype=None).state_dict()
        assert all(tensor.dtype == torch.float32 for tensor in after.values())
        moved[rate] = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert moved[0] == 0 < moved[1e-3] < 0.01  # steps of the learning rate, no fresh weights
    folders = trained, Path(run.stdout.strip())
    was, now = (json.loads((path / "config.json").read_text()) for path in folders)
    assert all(was[part] == now[part] for part in ("transformer", "tokenizer", "classes", "defaults"))
    was, now = (load_tokenizer(path).state_dict() for path in folders)
    assert all(torch.equal(was[name], now[name]) for name in was)
    command = (clips, "--start", run.stdout.strip(), "-o", tmp_path / "0", "--steps", 2)
    run = train_nar_command(*command, "--learning-rate", 0)
    assert run.exit_code == 4 and "differs in: start" in run.stderr


def test_what_a_run_was_told_is_in_its_state(clips, trained, tmp_path):
    run = train_nar_command(
        clips, "--start", trained, "-o", tmp_path, "--steps", 1, "--dropout", 0.3, "--token-noise", 0.7,
        "--rollouts", 0.2,
    )  # fmt: skip
    assert run.exit_code == 0, run.stderr
    about = torch.load(tmp_path / "state.pt", weights_only=True)["about"]
    assert (about["dropout"], about["token_noise"], about["rollouts"]["share"]) == (0.3, 0.7, 0.2)


def test_models_that_do_not_fit_the_clips_do_not_go_on(clips, trained, tmp_path):
    def says(*arguments):
        run = train_nar_command(*arguments, "-o", tmp_path / "run")
        assert run.exit_code == 2, run.output
        return run.stderr

    assert "--layers is for a new network" in says(clips, "--start", trained, "--layers", 1)
    assert "--tokenizer is for a new network" in says(clips, "--start", trained, "--tokenizer", trained)
    assert "--tokenizer is missing" in says(clips)
    (clips / "classes.txt").write_text("bar\nbean\n")
    assert "is 'bean', that of" in says(clips, "--start", trained)
    (clips / "classes.txt").unlink()
    np.save(clips / "labels.npy", np.arange(6) % 3)
    assert "has 2 classes, the labels 3" in says(clips, "--start", trained)
    np.save(clips / "images.npy", np.zeros((6, 2, 16, 16, 3), np.uint8))
    assert "makes a grid of 1x8x8 tokens" in says(clips, "--start", trained)
    assert "Invalid value for '--rollouts'" in says(clips, "--start", trained, "--rollouts", "nan")
    np.save(clips / "images.npy", np.zeros((6, 16, 16, 3), np.uint8))
    run = train_nar_command(clips, "--start", trained, "-o", tmp_path / "run")
    assert run.exit_code == 4 and "kind 'video', expected 'image'" in run.stderr
    other = VQTokenizer(replace(CLIP, codebook_size=17))
    shutil.copy(save_model(tmp_path / "codes", tokenizer=other) / "tokenizer.safetensors", trained)
    said = json.loads((trained / "config.json").read_text())
    said["tokenizer"]["codebook_size"] = 17
    (trained / "config.json").write_text(json.dumps(said))
    np.save(clips / "images.npy", np.zeros((6, 4, 16, 16, 3), np.uint8))
    np.save(clips / "labels.npy", np.arange(6) % 2)
    run = train_nar_command(clips, "--start", trained, "-o", tmp_path / "run")
    assert run.exit_code == 4 and "draws from 16 codes, and the tokenizer has 17" in run.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tokenizer", "clips", "--frames", 3], "The clips have 4 frames, not a multiple of 3"),
        (["tokenizer", "pictures", "--size", 16, "--frames", 2], "holds no clips"),
        (["tokenizer", "pictures", "--size", 16, "--loop-starts", 2], "--loop-starts is 2"),
        (
            ["tokenizer", "clips", "--start", "tok", "--codes", 16],
            "--codes is for a new network, and --start brings one",
        ),
        (["nar", "clips", "--position", "rotary", "--tokenizer", "tok"], "--position is rotary"),
        (["nar", "pictures", "--size", 16, "--tokenizer", "tok"], "The tokenizer is one of clips"),
        (["nar", "clips", "--tokenizer", "larp"], "is a LARP tokenizer"),
    ],
)
def test_what_does_not_go_with_clips_is_refused(clips, folder, larp, tmp_path, arguments, says, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model("tok", tokenizer=VQTokenizer(CLIP))
    Path("larp").symlink_to(larp[1])
    result = CliRunner().invoke(app, ["train", *map(str, arguments), "-o", "run"])
    assert result.exit_code == 2 and says in result.stderr
    assert not Path("run").exists()


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [10**5, 2**62])
def test_labels_that_no_model_could_have_are_refused(label, clips, tmp_path):
    (clips / "classes.txt").unlink()
    np.save(clips / "labels.npy", np.array([0, 1, 2, 3, 4, label]))
    run = train_nar_command(clips, "--tokenizer", tmp_path / "tok", "-o", tmp_path / "run")
    assert run.exit_code == 2 and f"reach {label:,}, expected below 100,000" in run.stderr


@pytest.mark.parametrize(
    ("make", "options", "says"),
    [
        (lambda p: p.mkdir(), (), "No pictures"),
        (lambda p: None, (), "not a folder"),
        (lambda p: (p.mkdir(), (p / "a.png").write_bytes(b"no")), (), "cannot be read as a picture"),
        (lambda p: (p.mkdir(), np.save(p / "images.npy", np.zeros((2, 8, 8)))), (), "uint8"),
        (
            lambda p: (p.mkdir(), np.save(p / "images.npy", np.zeros((2, 9, 9, 3), np.uint8))),
            ("9",),
            "multiple of",
        ),
    ],
)
def test_unusable_data_is_refused_with_a_reason(tmp_path, make, options, says):
    make(tmp_path / "data")
    size = options or ("16",)
    run = narcli(
        "train", "tokenizer", tmp_path / "data", "-o", tmp_path / "run", "--size", *size, "--steps", "1"
    )
    assert run.returncode in (2, 4)
    assert says in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "run" / "model").exists()


def test_pictures_are_fitted_on_white(tmp_path):
    (tmp_path / "p").mkdir()
    pixels = np.zeros((20, 40, 4), np.uint8)  # all transparent
    pixels[:, 10:30, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "p" / "a.png")
    pictures = load_pictures(tmp_path / "p", 10)
    assert pictures.images.shape == (1, 10, 10, 3)
    assert pictures.images[0, 5, 2:8].max() < 8  # the opaque middle fills the crop
    assert pictures.labels is None
    with pytest.raises(UsageError, match="size"):
        load_pictures(tmp_path / "p")


def test_prepared_arrays_are_read_with_their_labels(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((3, 8, 8, 3), np.uint8))
    np.save(tmp_path / "labels.npy", np.array([0, 2, 1]))
    pictures = load_pictures(Path(tmp_path))
    assert pictures.num_classes == 3
    assert pictures.batch(np.array([2, 0])).shape == (2, 3, 8, 8)
    np.save(tmp_path / "labels.npy", np.array([0, 2, 1], np.uint8))
    assert load_pictures(tmp_path).labels.dtype == np.int64
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(CheckpointError, match="2 names"):
        load_pictures(tmp_path)
    np.save(tmp_path / "labels.npy", np.array([0, -1, 1]))
    with pytest.raises(CheckpointError, match="-1"):
        load_pictures(tmp_path)
    np.save(tmp_path / "labels.npy", np.array([0, 2]))
    with pytest.raises(CheckpointError, match="labels"):
        load_pictures(tmp_path)


# --- data ----------------------------------------------------------------------------------------


def told(path, size=16):
    """The pictures of a folder, and all that is told of it."""
    said = []
    return load_pictures(path, size, said.append), "\n".join(said)


def test_a_link_to_a_class_folder_is_a_class_and_loops_end(folder, tmp_path):
    shutil.move(folder / "red", tmp_path / "elsewhere")
    (folder / "red").symlink_to(tmp_path / "elsewhere")
    (folder / "blue" / "up").symlink_to(folder)
    (folder / "blue" / "top").symlink_to("/")
    (folder / "alias").symlink_to(folder / "blue")
    pictures, said = told(folder)
    assert pictures.names == ("blue", "red") and np.bincount(pictures.labels).tolist() == [3, 3]
    assert all(f"{folder / name} is a link" in said for name in ("blue/up", "blue/top", "alias"))
    (folder / "gone").symlink_to(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="gone is a link to nothing"):
        load_pictures(folder, 16)


def test_what_may_be_a_mistake_of_the_folders_is_told(folder):
    for name in ("empty", "run", "Red", ".hidden", "blue/dark"):
        (folder / name).mkdir()
    (folder / "run" / "state.pt").write_bytes(b"")
    for name in ("run/sample-000500.png", "Red/0.png", ".hidden/0.png", "blue/dark/0.png"):
        shutil.copy(folder / "red" / "0.png", folder / name)
    (folder / "red" / "notes.txt").write_text("")
    pictures, said = told(folder)
    assert pictures.names == ("Red", "blue", "red") and len(pictures) == 8
    expected = (
        "run is the folder of a training run", "without pictures are no classes: empty.",
        "single picture: Red.", "the class: blue/dark.", "'Red', 'red'", "1 .txt",
    )  # fmt: skip
    assert all(words in said for words in expected), said
    assert ".hidden" not in said and "_hidden" not in said


def test_parts_of_a_data_set_are_no_classes(folder, tmp_path):
    for name in ("train", "Val"):
        shutil.copytree(folder, tmp_path / "both" / name)
    with pytest.raises(UsageError, match="parts of a data set, not classes: Val, train") as caught:
        load_pictures(tmp_path / "both", 16)
    assert str(tmp_path / "both" / "train") in caught.value.hint
    assert load_pictures(tmp_path / "both" / "train", 16).names == ("blue", "red")
    (folder / "blue").rename(folder / "train")  # as in trains and cars
    pictures, said = told(folder)
    assert pictures.names == ("red", "train") and "The folder train is taken" in said


@pytest.mark.parametrize(
    ("first", "second"),
    [("train2017", "val2017"), ("train_images", "test_images"), ("train-set", "test-set"),
     ("training_set", "test_set"), ("Train Data", "Valid")],
)  # fmt: skip
def test_parts_of_a_data_set_are_known_by_their_first_word(first, second, folder, tmp_path):
    for name in (first, second):
        shutil.copytree(folder, tmp_path / "both" / name)
    with pytest.raises(UsageError, match="parts of a data set, not classes") as caught:
        load_pictures(tmp_path / "both", 16)
    assert str(tmp_path / "both" / first) in caught.value.hint
    for old, new in (("blue", "test tube"), ("red", "train-driver")):
        (folder / old).rename(folder / new)
    assert told(folder)[0].names == ("test tube", "train-driver")


def test_a_run_in_place_of_pictures_is_refused(folder, tmp_path):
    run = tmp_path / "run"
    train_tokenizer(load_pictures(folder, 16), SMALL, settings(steps=1), run, quiet=True)
    assert list(run.glob("sample-*.png"))
    with pytest.raises(UsageError, match="is the folder of a training run, not of pictures"):
        load_pictures(run, 16)


def sparse(path, dtype, shape):
    """Write the header of an array that is larger than memory, and a hole in place of its values."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        )
        file.truncate(file.tell() + np.dtype(dtype).itemsize * int(np.prod(shape)))


def test_large_arrays_in_place_of_labels_or_tokens_are_not_copied(folder, tmp_path, monkeypatch):
    np.save(tmp_path / "images.npy", np.zeros((2, 16, 16, 3), np.uint8))
    sparse(tmp_path / "labels.npy", np.int64, (2**37,))
    with pytest.raises(CheckpointError, match=r"labels\.npy in .* is int64 \(137438953472,\)"):
        load_pictures(tmp_path)
    pictures, tokenizer = load_pictures(folder, 16), VQTokenizer(SMALL).eval()
    codes = tokenize(pictures, tokenizer, tmp_path / "run")
    (cache,) = (tmp_path / "run").iterdir()
    sparse(cache, np.int32, (len(pictures), 2**35))
    assert torch.equal(tokenize(pictures, tokenizer, tmp_path / "run"), codes)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.write_bytes(b""), r"images\.npy is empty"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "damaged"),
        (lambda path: np.save(path, np.array([None, "x"], object), allow_pickle=True), "damaged, or not"),
        (lambda path: np.savez(path.open("wb"), a=np.zeros(3)), r"an \.npz archive"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "FIFO"),
        (lambda path: (path.unlink(), path.mkdir()), "a folder"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"(2, ", b"(9999999999, ")), "damaged"),
    ],
)
@pytest.mark.parametrize("name", ["images.npy", "labels.npy"])
def test_an_array_that_cannot_be_read_is_one_sentence(name, make, says, tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((2, 16, 16, 3), np.uint8))
    np.save(tmp_path / "labels.npy", np.arange(2)[:, None])
    make(tmp_path / name)
    result = CliRunner().invoke(app, ["train", "tokenizer", str(tmp_path), "-o", str(tmp_path / "run")])
    assert result.exit_code == 4 and "Aborted" not in result.output
    with pytest.raises(CheckpointError, match=says.replace("images", name[:6])):
        load_pictures(tmp_path)


def test_arrays_of_any_layout_are_the_same_pictures(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    known = []
    for name, array, labels in (
        ("plain", images, np.arange(3)),
        ("fortran", np.asfortranarray(images), np.arange(3).astype(">i2")),
        ("third", images, np.arange(3, dtype=np.uint64)),
    ):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "images.npy").open("wb") as file:
            np.lib.format.write_array(file, array, (3, 0) if name == "third" else None)
        np.save(tmp_path / name / "labels.npy", labels)
        pictures = load_pictures(tmp_path / name)
        assert torch.equal(pictures.batch(np.array([2, 0])), Pictures(images, None).batch(np.array([2, 0])))
        known.append(pictures.digest())
    assert len(set(known)) == 1


def test_tokens_that_were_damaged_on_disk_are_made_again(folder, tmp_path):
    pictures, tokenizer = load_pictures(folder, 16), VQTokenizer(SMALL).eval()
    codes = tokenize(pictures, tokenizer, tmp_path / "run")
    (cache,) = (tmp_path / "run").iterdir()
    whole = cache.read_bytes()
    for damage in (b"", whole[:-3], whole[:-4] + b"\xff\xff\xff\x7f", b"PK"):
        cache.write_bytes(damage)
        assert torch.equal(tokenize(pictures, tokenizer, tmp_path / "run"), codes)
        assert cache.read_bytes() == whole


def test_names_of_classes_are_checked_before_training(folder, tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((2, 16, 16, 3), np.uint8))
    np.save(tmp_path / "labels.npy", np.arange(2))
    names = tmp_path / "classes.txt"
    names.write_bytes("\ufeffcat a\r\nd\xf6g \n\n\n".encode())
    assert load_pictures(tmp_path).names == ("cat a", "dög")
    for content, says in (
        (b"cat\n\ndog\n", "Line 2 of"),
        (b"cat\nd\xf6g\n", r"not UTF-8 text \(line 2\)"),
        (b"cat\n" + b"x" * 200, r"Line 2 of .*classes\.txt has 200 characters"),
        (b"cat\nd\x1bg", "unprintable"),
        ("cat\u2028a\ndog".encode(), "Line 1 of .* has unprintable characters"),
        (b"cat\x0ca\ndog", "Line 1 of .* has unprintable characters"),
    ):
        names.write_bytes(content)
        with pytest.raises(CheckpointError, match=says):
            load_pictures(tmp_path)
    names.write_bytes(b"cat\ndog\ncat\n")  # ImageNet has two cranes
    told = []
    load_pictures(tmp_path, tell=told.append)
    assert any("Lines 1 and 3 of" in text and "are both 'cat'" in text for text in told)
    (folder / "red").rename(folder / ("r" * 200))
    with pytest.raises(CheckpointError, match="class 1 has 200 characters"):
        load_pictures(folder, 16)


def test_a_result_that_could_not_be_saved_is_refused_at_once(tmp_path):
    config = TransformerConfig((2, 2), 32, 2, 2, 16, 64, num_classes=99_999)
    check_saveable(tmp_path / "run" / "model", config, SMALL, ["a name"] * 9)
    assert list((tmp_path / "run").iterdir()) == []
    with pytest.raises(CheckpointError, match="class names"):
        check_saveable(tmp_path / "run" / "model", config, SMALL, ["a name" * 5] * 99_999)
    (tmp_path / "run" / "model").mkdir()
    (tmp_path / "run" / "model" / "notes.txt").write_text("")
    with pytest.raises(UsageError, match="holds something else"):
        check_saveable(tmp_path / "run" / "model", config, SMALL)
    with pytest.raises(NarError, match="a file, not a folder"):
        check_saveable(tmp_path / "run" / "model" / "notes.txt" / "model", config, SMALL)


# --- what ends a run early -----------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["mkdir", "write_text", "save_file", "rename", "rename again", "rmtree"])
def test_a_process_killed_while_it_writes_the_result_loses_nothing(stage, folder, tmp_path, monkeypatch):
    run, pictures = tmp_path / "run", load_pictures(folder, 16)
    before = train_tokenizer(pictures, SMALL, settings(steps=1), run, quiet=True)
    save_model(run / "model", tokenizer=before)
    name, _, again = stage.partition(" ")
    owner = {"save_file": saving, "rmtree": saving.tempfile._shutil}.get(name, Path)
    original, calls = getattr(owner, name), []

    def killed(*arguments, **named):
        calls.append(name)
        if len(calls) > bool(again):
            os._exit(9)
        return original(*arguments, **named)

    child = os.fork()
    if not child:
        try:
            monkeypatch.setattr(owner, name, killed)
            save_model(run / "model", tokenizer=before, overwrite=True)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    after = train_tokenizer(pictures, SMALL, settings(steps=1), run, quiet=True)
    assert not list(run.glob(".narcli-*"))
    for there in (load_tokenizer(run), after):  # the result before, and what the same command makes again
        assert all(torch.equal(t, there.state_dict()[k]) for k, t in before.state_dict().items())
    save_model(run / "model", tokenizer=after, overwrite=True)


def test_a_signal_writes_the_state_of_the_last_whole_step(folder, tmp_path, monkeypatch, capsys):
    pictures, chosen = load_pictures(folder, 16), settings(save_every=100)
    whole = train_tokenizer(pictures, SMALL, chosen, tmp_path / "whole", quiet=True)
    original = batch_indices

    def interrupted(count, chosen, step):
        if step == 1:
            signal.raise_signal(signal.SIGINT)
        return original(count, chosen, step)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("narcli.training.tokenizer.batch_indices", interrupted)
        train_tokenizer(pictures, SMALL, chosen, tmp_path / "run")
    said = capsys.readouterr().err
    assert "step 1/6: loss " in said and "Stopped after 2 of 6 steps; the same command goes on." in said
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == 2
    resumed = train_tokenizer(pictures, SMALL, chosen, tmp_path / "run", quiet=True)
    assert all(torch.equal(t, resumed.state_dict()[k]) for k, t in whole.state_dict().items())


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGQUIT", "SIGXCPU", "SIGUSR1", "SIGUSR2", "SIGALRM"])
def test_every_signal_to_end_writes_the_state_also_where_nobody_reads_what_is_said(name, folder, tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(
        command_line(
            *("train", "tokenizer", folder, "-o", run, "--size", 16, "--steps", 9_999, "--channels", 32),
            *("--multipliers", "1,1", "--codes", 16, "--patch", 1),
        ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr.readline().startswith(b"step 1/9999: loss ")
    if closed := name == "SIGHUP":
        process.stderr.close()
    process.send_signal(getattr(signal, name))
    said = b"" if closed else process.stderr.read()
    assert process.wait(60) == 128 + getattr(signal, name)
    assert torch.load(run / "state.pt", weights_only=True)["step"] >= 1
    assert closed or b"the same command goes on.\nTerminated.\n" in said


def test_a_pipe_that_nobody_reads_does_not_end_a_training(folder, tmp_path, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr("narcli.training.loop.TOLD_EVERY", 0)
    with os.fdopen(writer, "w", buffering=1) as closed, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", closed)
        train_tokenizer(load_pictures(folder, 16), SMALL, settings(), tmp_path / "run")
        with suppress(BrokenPipeError):
            closed.close()
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == 6


def test_a_signal_with_a_handler_of_its_own_does_not_end_a_training(folder, tmp_path):
    came = []
    before = signal.signal(signal.SIGUSR1, lambda *about: came.append(about))
    try:
        with deferred(quiet=True) as stop:
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(came) == 1 and not stop


@pytest.mark.parametrize("muon", [False, True])
def test_a_run_that_fits_the_disk_is_not_refused(muon, tmp_path, monkeypatch):
    model = NARTransformer(TransformerConfig((2, 2), 32, 2, 2, 16, 64, num_classes=2))
    optimizers = optimizers_of(model, settings(muon=muon))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    weights = sum(p.numel() * 4 for p in model.parameters())
    moments = sum(
        tensor.numel() * 4
        for optimizer in optimizers
        for state in optimizer.state.values()
        for tensor in state.values()
        if tensor.ndim
    )
    usage = shutil.disk_usage

    def check(free, done):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage("/")._replace(free=free))
        check_room(tmp_path, model, {}, None, optimizers, done)

    needed = 2 * (2 * weights + moments)
    check(needed, done=False)
    check(weights, done=True)
    for free, done in ((needed - 1, False), (weights - 1, True)):
        with pytest.raises(NarError, match="takes"):
            check(free, done)


def test_a_disk_that_is_full_is_one_sentence_and_the_state_before_stays(folder, tmp_path, monkeypatch):
    import resource

    pictures = load_pictures(folder, 16)
    train_tokenizer(pictures, SMALL, settings(steps=3), tmp_path / "run", quiet=True)
    state = (tmp_path / "run" / "state.pt").read_bytes()
    model = load_tokenizer(save_model(tmp_path / "model", tokenizer=VQTokenizer(SMALL)))
    larger = partial(save_tensors, {"a": torch.ones(99_999)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        for write in (
            lambda: train_tokenizer(pictures, SMALL, settings(steps=3), tmp_path / "other", quiet=True),
            lambda: save_model(tmp_path / "model", tokenizer=model, overwrite=True),
            lambda: write_atomic(tmp_path / "run" / "state.pt", larger, overwrite=True),
        ):  # fmt: skip
            with pytest.raises(NarError, match="the file would be larger than allowed here"):
                write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "run" / "state.pt").read_bytes() == state and load_tokenizer(tmp_path / "model")
    assert not list(tmp_path.rglob(".narcli-*"))
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=99_999))
    with pytest.raises(NarError, match=r"takes \d+ MB, and the disk has 0 MB free"):
        train_tokenizer(pictures, SMALL, settings(), tmp_path / "third", quiet=True)


def test_a_run_means_its_result_and_a_state_is_called_so(folder, tmp_path):
    pictures, run = load_pictures(folder, 16), tmp_path / "run"
    model = train_tokenizer(pictures, SMALL, settings(steps=1), run, quiet=True)
    with pytest.raises(CheckpointError, match="training run that has no result yet"):
        resolve(run, None)
    with pytest.raises(CheckpointError, match="training run that has no result yet"):
        load_tokenizer(run)
    save_model(run / "model", tokenizer=model)
    assert resolve(run, None).path == run / "model" and load_tokenizer(run)
    shutil.copy(run / "state.pt", tmp_path / "renamed.pth")
    torch.save({"state": {}, "param_groups": []}, tmp_path / "optimizer.pt")
    for path, of in ((run / "state.pt", "a training run"), (tmp_path / "renamed.pth", "a training run"),
                     (tmp_path / "optimizer.pt", "an optimiser")):  # fmt: skip
        for use in (lambda p: resolve(p, "image"), load_tokenizer, load_transformer):
            with pytest.raises(CheckpointError, match=f"is the state of {of}, not a model"):
                use(path)


def test_a_part_of_a_run_names_the_result_of_the_run(tmp_path):
    run = tmp_path / "run"
    part = run / "encoder"
    part.mkdir(parents=True)
    for path in (part / "state.pt", part / "log.jsonl", run / "tokens-0123.npy"):
        path.touch()
    for makes, says in (
        (lambda: None, f"it goes on, and writes {run / 'model'}."),
        (
            lambda: save_model(run / "model", tokenizer=VQTokenizer(SMALL)),
            f"Give {run / 'model'}, its result.",
        ),
    ):
        makes()
        with pytest.raises(CheckpointError) as caught:
            resolve(part, None)
        assert says in caught.value.hint
    (run / "tokens-0123.npy").unlink()  # a run that has this name by chance
    with pytest.raises(CheckpointError) as caught:
        resolve(part, None)
    assert f"writes {part / 'model'}." in caught.value.hint


def test_other_steps_are_refused_with_what_to_do(folder, tmp_path):
    pictures = load_pictures(folder, 16)
    train_tokenizer(pictures, SMALL, settings(steps=1), tmp_path / "run", quiet=True)
    with pytest.raises(CheckpointError, match=r"differs in: steps \(1 there, 9 now\)") as caught:
        train_tokenizer(pictures, SMALL, settings(steps=9), tmp_path / "run", quiet=True)
    assert "same number" in caught.value.hint


def test_classes_without_pictures_are_told(clips, capsys):
    np.save(clips / "labels.npy", np.array([1, 2, 4, 1, 2, 4]))
    (clips / "classes.txt").unlink()
    pictures = load_pictures(clips)
    warn_of_untrained(pictures, pictures.num_classes, Console(quiet=True).warn)
    said = capsys.readouterr().err
    assert "Classes without pictures stay untrained: 0, 3. Labels count from 0." in said
    warn_of_untrained(Pictures(pictures.images, np.arange(6)), 6, Console().warn)
    assert not capsys.readouterr().err


def test_a_run_is_not_written_among_its_pictures(folder):
    for command in (["tokenizer"], ["nar", "--tokenizer", "none"], ["text", "--start", "none"]):
        result = CliRunner().invoke(app, ["train", *command, str(folder), "-o", f"{folder}/../{folder.name}"])
        assert result.exit_code == 2 and "the folder of the pictures" in result.output


def test_a_run_is_not_written_into_a_folder_of_pictures_inside_of_the_data(folder):
    for inside in (folder / "red", folder):
        result = CliRunner().invoke(app, ["train", "tokenizer", str(inside.parent), "-o", str(inside)])
        assert result.exit_code == 2 and "which holds pictures of" in result.output
        assert not (inside / "state.pt").exists()
    (folder / "run").mkdir()
    (folder / "run" / "state.pt").touch()
    (folder / "run" / "sample-000001.png").touch()
    for fine in (folder / "run", folder / "new", folder.parent / "other"):
        check_output(fine, folder)


def test_an_early_end_of_a_file_is_not_called_aborted(folder, monkeypatch):
    monkeypatch.setattr("narcli.training.data.load_pictures", raise_eof)
    result = CliRunner().invoke(
        app, ["train", "tokenizer", str(folder), "-o", f"{folder}-run", "--size", "16"]
    )
    assert result.exit_code == 1 and "EOFError" in result.output and "Aborted" not in result.output


def raise_eof(*_):
    raise EOFError
