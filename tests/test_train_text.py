"""Training on captions: the encoder learns with the transformer, and inference sees what training saw."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from narcli.checkpoints.load import load_transformer
from narcli.checkpoints.text_encoder import T5Encoder, left_pad
from narcli.cli import app
from narcli.errors import CheckpointError, UsageError
from narcli.models.blocks import TransformerConfig
from narcli.models.transformer import NARTransformer
from narcli.models.vq import VQConfig, VQTokenizer
from narcli.sampling import SamplingSettings, generate
from narcli.training.captions import CaptionNoise, SoftTargets, load_captions, pick
from narcli.training.loop import TrainSettings, batch_indices, optimizers_of
from narcli.training.noise import ROLLOUT_STEPS
from narcli.training.text import Reader, TextNAR, begin, byte_encoder, learn_to_read, looks_of, train_text

VQ = VQConfig(32, (1, 1), 1, 32, codebook_size=16)
CLASSES = TransformerConfig((2, 2), 32, 2, 2, 16, 64, num_classes=3, position="absolute")


def settings(**changes):
    return TrainSettings(
        **{
            "steps": 4,
            "batch_size": 4,
            "learning_rate": 3e-3,
            "warmup": 2,
            "save_every": 50,
            "compile": False,
        }
        | changes
    )


def start(position="absolute"):
    torch.manual_seed(0)
    model = NARTransformer(replace(CLASSES, position=position))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return byte_encoder(64, 1)


def test_muon_takes_blocks_and_projections_and_nothing_of_the_encoder(encoder):
    config = replace(CLASSES, condition="text", num_classes=0, condition_tokens=4, caption_dim=64)
    model = TextNAR(begin(start(), config), encoder.model)
    _, muon = optimizers_of(model, settings(muon=True), "encoder.")
    taken = {id(p) for group in muon.param_groups for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in taken}
    matrices = {name for name, p in model.named_parameters() if p.ndim == 2}
    hidden = tuple(f"nar.{part}" for part in ("layers.", "condition.fc1.", "condition.fc2."))
    assert names == {name for name in matrices if name.startswith(hidden)} and len(names) > 5
    assert any(name.startswith("encoder.") for name in matrices)


@pytest.mark.parametrize("position", ["absolute", "rotary"])
def test_the_blocks_start_from_the_model_of_classes(position):
    old = start(position)
    sizes = {"condition": "text", "num_classes": 0, "condition_tokens": 5, "caption_dim": 64}
    new = begin(old, replace(old.config, **sizes))
    before, after = old.state_dict(), new.state_dict()
    shared = {name for name in before if not name.startswith(("condition.", "position_embedding"))}
    assert len(shared) > 10 and all(torch.equal(before[name], after[name]) for name in shared)
    assert new.condition.uncond_embedding.shape == (5, 64) and new.condition.uncond_embedding.std() > 0.5
    if position == "absolute":
        old_places, new_places = before["position_embedding"], after["position_embedding"]
        assert torch.equal(new_places[:, 5:], old_places[:, 1:])
        assert all(torch.equal(new_places[0, k], old_places[0, 0]) for k in range(5))


def test_a_model_of_text_goes_on_as_it_is():
    sizes = {"condition": "text", "num_classes": 0, "condition_tokens": 5, "caption_dim": 64}
    old = begin(start(), replace(CLASSES, **sizes))
    before, after = old.state_dict(), begin(old, old.config).state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("position", ["absolute", "rotary"])
def test_a_model_of_text_keeps_its_last_condition_tokens_where_it_takes_fewer(position):
    sizes = {"condition": "text", "num_classes": 0, "condition_tokens": 5, "caption_dim": 64}
    old = begin(start(position), replace(CLASSES, position=position, **sizes))
    torch.nn.init.normal_(old.condition.uncond_embedding)
    before, after = old.state_dict(), begin(old, replace(old.config, condition_tokens=3)).state_dict()
    assert torch.equal(after["condition.uncond_embedding"], before["condition.uncond_embedding"][2:])
    if position == "absolute":
        assert torch.equal(after["position_embedding"], before["position_embedding"][:, 2:])
    same = before.keys() - {"condition.uncond_embedding", "position_embedding"}
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in same)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.floats(0, 2), st.integers(0, 99))
def test_caption_noise_keeps_places_and_the_items_asked_for(subjects, most, seed):
    torch.manual_seed(seed)
    tokens = torch.arange(len(subjects))[:, None] * 100 + torch.arange(50)  # (item, place), told apart
    items = torch.randint(len(subjects), (7,))
    noisy = CaptionNoise(tokens, torch.tensor(subjects), most)(items)
    assert torch.equal(noisy % 100, tokens[items] % 100)
    assert most or torch.equal(noisy, tokens[items])


def test_half_of_the_caption_noise_is_from_one_other_picture_of_the_subject():
    torch.manual_seed(0)
    subjects = (torch.arange(1000) // 2 * 3)[torch.randperm(1000)]  # pairs, with gaps between the numbers
    tokens = torch.arange(1000)[:, None].expand(1000, 40)
    noisy = CaptionNoise(tokens, subjects, 2.0)(torch.arange(1000))
    whole = (noisy != tokens).all(1)  # nothing of the picture itself left
    donors = noisy[whole]
    single = (donors == donors[:, :1]).all(1)
    # Half of the shares are 1 or more. If a picture could be its own donor, fewer rows would change wholly.
    assert whole.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert single.float().mean().item() == pytest.approx(0.5, abs=0.06)
    assert torch.equal(subjects[donors[single, 0]], subjects[whole][single])
    assert (subjects[donors[~single]] == subjects[whole][~single, None]).float().mean() < 0.05
    assert torch.equal(CaptionNoise(tokens, subjects, 0.0)(torch.arange(1000)), tokens)


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return VQTokenizer(VQ).eval()


def test_without_smoothing_the_loss_is_cross_entropy(tokenizer):
    logits, tokens = torch.randn(5, 16), torch.tensor([0, 3, 3, 15, 7])
    expected = torch.nn.functional.cross_entropy(logits, tokens)
    assert torch.equal(SoftTargets(tokenizer, 0.0).loss(logits, tokens), expected)


@torch.no_grad()
def test_codes_that_look_alike_share_the_probability_of_a_target():
    torch.manual_seed(0)
    tokenizer = VQTokenizer(replace(VQ, codebook_size=40)).eval()
    vectors = tokenizer.quantize(torch.arange(40))
    distances = torch.cdist(vectors, vectors)
    unit = distances.masked_fill(torch.eye(40, dtype=torch.bool), torch.inf).min(1).values.median()
    shares = torch.exp(-distances.square() / (2 * (0.6 * unit) ** 2))
    shares[distances > distances.topk(16, largest=False).values[:, -1:]] = 0
    shares /= shares.sum(1, keepdim=True)
    tokens = torch.tensor([3, 0, 39, 3])
    assert (shares.argmax(1) == torch.arange(40)).all() and (shares > 0).sum(1).eq(16).all()
    assert (shares[tokens].topk(2).values[:, 1] > 0.001).all()
    logits = 5 * torch.randn(4, 40)
    found = SoftTargets(tokenizer, 0.6).loss(logits, tokens)
    assert torch.allclose(found, -(shares[tokens] * logits.log_softmax(1)).sum(1).mean(), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("width", [0.01, 1e-50])
def test_a_little_smoothing_is_nearly_none(width, tokenizer):
    logits, tokens = torch.randn(5, 16), torch.tensor([0, 3, 3, 15, 7])
    expected = torch.nn.functional.cross_entropy(logits, tokens)
    assert torch.allclose(SoftTargets(tokenizer, width).loss(logits, tokens), expected)


@torch.no_grad()
def test_codes_that_are_the_same_share_alike(tokenizer):
    codes = tokenizer.quantize.embedding.weight
    codes[:] = codes[:1].clone()
    logits = torch.randn(5, 16)
    found = SoftTargets(tokenizer, 0.6).loss(logits, torch.arange(5))
    assert torch.allclose(found, -logits.log_softmax(1).mean(), atol=1e-5)


@pytest.mark.parametrize("width", [-0.1, 10.1, float("nan"), float("inf")])
def test_widths_out_of_range_are_refused(width, tokenizer):
    with pytest.raises(UsageError, match="code_smoothing is"):
        SoftTargets(tokenizer, width)


def test_the_first_caption_is_taken_half_of_the_time():
    found = [pick("abcd", number) for number in (0.0, 0.3, 0.499, 0.5, 0.62, 0.63, 0.76, 0.88, 0.9999)]
    assert found == ["a", "a", "a", "a", "a", "b", "c", "d", "d"]
    assert [pick("a", number) for number in (0.0, 0.5, 0.9999)] == ["a", "a", "a"]


def test_a_picture_alone_of_its_subject_gets_tokens_of_any():
    torch.manual_seed(0)
    tokens = torch.arange(100)[:, None].expand(100, 40)
    noisy = CaptionNoise(tokens, torch.arange(100), 2.0)(torch.arange(100))
    changed = noisy != tokens
    assert changed.float().mean().item() == pytest.approx(0.74, abs=0.06)  # a share of 0 to 2, at most 1
    assert all(
        len(row[other].unique()) > 1 for row, other in zip(noisy, changed, strict=True) if other.sum() > 9
    )


def test_training_sees_what_inference_gives(encoder):
    nar = NARTransformer(replace(CLASSES, condition="text", condition_tokens=12, caption_dim=64))
    texts = ["a red dot", "é", "blue"]
    ids = [torch.tensor(encoder.tokenizer(text).input_ids) for text in texts]
    encoder.model.eval()
    with torch.no_grad():
        trained = TextNAR(nar, encoder.model).features(ids)
    asked = left_pad([encoder.encode(text, 12).features for text in texts], 12)
    torch.testing.assert_close(trained[0], asked[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(trained[1], asked[1]) and (~trained[1]).sum(1).tolist() == [10, 3, 5]


def test_captions_are_learned_by_both_networks(tmp_path):
    torch.manual_seed(0)
    tokens = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]])
    captions = [["red dot", "a red dot"], ["blue dot"], ["no dot"]]
    encoder = byte_encoder(64, 1)
    before = encoder.model.shared.weight.detach().clone()
    model, encoder = train_text(
        tokens, captions, torch.arange(3), torch.eye(3, 256), VQTokenizer(VQ).eval(), start(), encoder, 12,
        settings(steps=80, batch_size=12, learning_rate=1e-2, bfloat16=False), tmp_path, dropout=0.0,
        rollouts=0.5, quiet=True,
    )  # fmt: skip
    drawn = torch.load(tmp_path / "state.pt", weights_only=True)["memory"]["drawn"]
    chosen = settings(batch_size=12)
    items = [batch_indices(3, chosen, 60 + ahead)[:6] for ahead in range(ROLLOUT_STEPS)]
    assert (drawn == tokens[torch.tensor(np.array(items))]).float().mean() > 0.9  # samples of their captions
    assert not torch.equal(before, encoder.model.shared.weight)
    texts = ["a red dot", "no dot", "blue dot"]
    condition, padding = left_pad([encoder.encode(text, 12).features for text in texts], 12)
    found = torch.empty(3, 4, dtype=torch.int64)
    for step in generate(model, condition, [0, 0, 0], SamplingSettings(temperature=0), padding):
        found[:, list(step.cells)] = step.tokens
    assert torch.equal(found, tokens[[0, 2, 1]])
    with Image.open(tmp_path / "sample-000080.png") as sheet:
        assert sheet.size == (40, 16)
    with pytest.raises(CheckpointError, match="differs in: data"):
        train_text(
            tokens, [["x"], ["y"], ["z"]], torch.arange(3), torch.eye(3, 256), VQTokenizer(VQ), start(),
            byte_encoder(64, 1), 12,
            settings(steps=80, batch_size=12, learning_rate=1e-2, bfloat16=False), tmp_path, dropout=0.0,
            rollouts=0.5,
        )  # fmt: skip


def test_the_encoder_learns_in_a_step_that_began_with_samples(tmp_path):
    torch.manual_seed(0)
    tokens, texts = torch.randint(0, 16, (3, 4)), [["red dot"], ["blue dot"], ["no dot"]]
    encoder = byte_encoder(64, 1)
    before = {name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}
    train_text(
        tokens, texts, torch.arange(3), None, VQTokenizer(VQ).eval(), start(), encoder, 12,
        settings(steps=1, warmup=0), tmp_path, rollouts=1.0, quiet=True,
    )  # fmt: skip
    after = encoder.model.state_dict()
    assert not any(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_looks_tell_pictures_apart_also_by_details():
    images = np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3), np.uint8)
    images[1] = images[0]
    images[1, 8:12, 8:12] = 255 - images[0, 8:12, 8:12]
    looks = looks_of(images)
    assert looks.shape == (300, 256)
    torch.testing.assert_close(looks.norm(dim=1), torch.ones(300))
    alike = looks @ looks.T
    assert (
        torch.equal(alike.argmax(1), torch.arange(300)) and alike[0].argsort()[-2] == 1 and alike[0, 1] < 0.99
    )


def test_an_encoder_learns_which_caption_is_of_which_picture(tmp_path):
    torch.manual_seed(0)
    encoder, looks = (
        byte_encoder(64, 1),
        looks_of(np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)),
    )
    texts = [["red dot", "a red dot"], ["blue dot"], ["no dot"], ["a fox"], ["a house"], ["two houses"]]
    ids = [[torch.tensor(encoder.tokenizer(text).input_ids) for text in of_one] for of_one in texts]
    learn_to_read(encoder, ids, looks, settings(steps=60, bfloat16=False), tmp_path, "", quiet=True)
    assert not encoder.model.training
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    reader = Reader(encoder)
    reader.load_state_dict(state["model"] | state["average"])
    assert reader([row for rows in ids for row in rows], looks).argmax(1).tolist() == [0, 0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("where", ["while the encoder learns", "between", "after"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(where, tmp_path, monkeypatch):
    tokens = torch.randint(0, 16, (3, 4), generator=torch.Generator().manual_seed(0))
    texts = [["red dot", "a red dot"], ["blue dot"], ["no dot"]]

    def run(folder):
        torch.manual_seed(0)
        return train_text(
            tokens, texts, torch.tensor([0, 0, 1]), torch.eye(3, 256), VQTokenizer(VQ).eval(), start(),
            byte_encoder(64, 1), 12, settings(save_every=2), tmp_path / folder, encoder_steps=4,
            token_noise=1.5, code_smoothing=0.6, rollouts=0.5, quiet=True,
        )  # fmt: skip

    whole = run("whole")
    steps = {"while the encoder learns": 3, "between": 4, "after": 7}[where]
    seen, original = [], TrainSettings.rate

    def rate(self, step):
        if seen[-1:] != [step]:
            seen.append(step)
        if len(seen) > steps:
            raise KeyboardInterrupt
        return original(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(TrainSettings, "rate", rate)
        with pytest.raises(KeyboardInterrupt):
            run("stopped")
    again = run("stopped")
    for one, other in zip(whole, again, strict=True):
        model, same = (getattr(each, "model", each) for each in (one, other))
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, same.state_dict()[name]), name


def test_captions_that_are_too_long_are_refused(encoder, tmp_path):
    tokens, captions = torch.zeros(1, 4, dtype=torch.int64), [["twelve bytes"]]
    arguments = (tokens, captions, torch.zeros(1, dtype=torch.int64), torch.eye(1, 256), VQTokenizer(VQ))
    with pytest.raises(UsageError, match="13 tokens, and `caption_tokens` is 12") as caught:
        train_text(*arguments, start(), encoder, 12, settings(), tmp_path)
    assert "`caption_tokens=13`" in caught.value.hint


def test_captions_are_read_line_by_line_and_cleaned(tmp_path):
    with pytest.raises(UsageError, match=r"no captions\.tsv"):
        load_captions(tmp_path, 2)
    (tmp_path / "captions.tsv").write_text("A Red Dot\tred   dot\nnothing\n")
    assert load_captions(tmp_path, 2) == [["a red dot", "red dot"], ["nothing"]]
    with pytest.raises(CheckpointError, match="2 lines, and there are 3"):
        load_captions(tmp_path, 3)
    (tmp_path / "captions.tsv").write_text("red\t\nblue\n")
    with pytest.raises(CheckpointError, match="line 1: a caption is empty"):
        load_captions(tmp_path, 2)


@pytest.mark.parametrize("line", ["\x01", "x" * 10_001, "\t", "https://a.com"])
def test_an_unusable_caption_is_told_with_its_line_and_not_as_a_prompt(line, tmp_path):
    text = f"red\u2028green\x0c\r\nblue\r{line}\n"
    (tmp_path / "captions.tsv").write_bytes(text.encode("utf-8-sig"))
    with pytest.raises(CheckpointError, match="line 3: ") as caught:
        load_captions(tmp_path, 3)
    assert "`" not in f"{caught.value.message} {caught.value.hint}" and "prompt" not in caught.value.message


def test_a_mark_at_the_beginning_is_no_part_of_a_caption(tmp_path):
    (tmp_path / "captions.tsv").write_bytes("red\u2028one\r\nblue\r".encode("utf-8-sig"))
    assert [len(texts) for texts in load_captions(tmp_path, 2)] == [1, 1]
    assert load_captions(tmp_path, 2)[0][0].startswith("red")


def test_from_captions_to_a_picture(tiny, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    np.save(data / "images.npy", np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8))
    (data / "captions.tsv").write_text("red dot\nblue dot\nno dot\n")
    main = "from narcli.cli import main; raise SystemExit(main())"

    def narcli(*arguments):
        return subprocess.run(
            [sys.executable, "-c", main, *map(str, arguments)], capture_output=True, text=True
        )

    run = narcli(
        "train", "text", data, "-o", tmp_path / "run", "--start", tiny, "--steps", 2, "--encoder-dim", 64,
        "--encoder-layers", 1, "--encoder-steps", 2, "--caption-tokens", 12, "--batch-size", 2, "-q",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    folder = Path(run.stdout.strip())
    said = json.loads((folder / "config.json").read_text())
    assert said["kind"] == "text" and said["transformer"]["condition_tokens"] == 12
    assert load_transformer(folder, kind="text").config.caption_dim == 64
    assert T5Encoder.load(folder / "text_encoder").width == 64
    run = narcli("image", "--model", folder, "--prompt", "red dot", "-o", tmp_path / "red.png", "-q")
    assert run.returncode == 0, run.stderr
    with Image.open(tmp_path / "red.png") as picture:
        assert picture.size == (256, 256)
    run = narcli("train", "text", data, "-o", tmp_path / "run", "--start", tiny, "--encoder-dim", 100)
    assert run.returncode == 2 and "multiple of 64" in run.stderr


@pytest.fixture
def captioned(tmp_path):
    """Pictures of 8 pixels with captions and subjects."""
    data = tmp_path / "captioned"
    data.mkdir()
    np.save(data / "images.npy", np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8))
    (data / "captions.tsv").write_text("red dot\nblue dot\nno dot\n")
    np.save(data / "labels.npy", np.array([7, 7, 9]))
    return data


def train(data, start, output, *more):
    command = ("train", "text", data, "--start", start, "-o", output, *more, "-q")
    return CliRunner().invoke(app, list(map(str, command)))


def test_a_model_of_text_and_its_encoder_go_on(captioned, tiny_text, tmp_path):
    command = (captioned, tiny_text, tmp_path / "run", "--steps", 2, "--token-noise", 1.5)
    run = train(*command)
    assert run.exit_code == 0, run.stderr
    after = Path(run.stdout.strip())
    said = [json.loads((folder / "config.json").read_text()) for folder in (tiny_text, after)]
    assert said[0]["transformer"] == said[1]["transformer"] and said[0]["defaults"] == said[1]["defaults"]
    assert not (tmp_path / "run" / "encoder").exists()  # it has learned to read already
    encoders = [
        T5Encoder.load(folder / "text_encoder", None).model.state_dict() for folder in (tiny_text, after)
    ]
    models = [load_transformer(folder, dtype=None).state_dict() for folder in (tiny_text, after)]
    for old, new in (encoders, models):
        moved = [(old[name] - new[name]).abs().max().item() for name in old]
        assert all(tensor.dtype == torch.float32 for tensor in new.values())
        assert 0 < max(moved) < 0.01  # steps of the learning rate, no fresh weights
    np.save(captioned / "labels.npy", np.array([7, 9, 9]))
    run = train(*command)
    assert run.exit_code == 4 and "differs in: subjects" in run.stderr


def test_smoothing_reaches_the_loss_and_the_checkpoint(captioned, tiny_text, tmp_path):
    lines = []
    for width in (0, 0.6):
        folder = tmp_path / f"run-{width}"
        run = train(captioned, tiny_text, folder, "--steps", 1, "--code-smoothing", width)
        assert run.exit_code == 0, run.stderr
        assert torch.load(folder / "state.pt")["about"].get("code_smoothing", 0) == width
        lines.append(json.loads((folder / "log.jsonl").read_text()))
    assert lines[0]["loss"] != lines[1]["loss"]
    run = train(captioned, tiny_text, folder, "--steps", 1)
    assert run.exit_code == 4 and "differs in: code_smoothing" in run.stderr


@pytest.mark.parametrize(
    "option", ["--encoder-dim=64", "--encoder-layers=1", "--encoder-steps=0", "--caption-tokens=12"]
)
def test_what_is_for_a_new_encoder_is_refused_when_a_model_goes_on(option, captioned, tiny_text, tmp_path):
    run = train(captioned, tiny_text, tmp_path / "run", option)
    assert run.exit_code == 2 and "is for a new network, and --start brings one" in run.stderr
    assert not (tmp_path / "run").exists()


def test_a_model_of_text_goes_on_with_another_encoder(captioned, tiny_text, tmp_path):
    folder = tmp_path / "encoder"
    torch.manual_seed(0)
    small = T5Encoder.load(tiny_text / "text_encoder", torch.float32)
    for parameter in small.model.parameters():
        torch.nn.init.normal_(parameter)
    small.save(folder)
    options = ("--caption-tokens", 12, "--text-encoder", folder)
    run = train(captioned, tiny_text, tmp_path / "run", "--steps", 1, *options)
    assert run.exit_code == 0, run.stderr
    after = Path(run.stdout.strip())
    assert json.loads((after / "config.json").read_text())["transformer"]["condition_tokens"] == 12
    learned = T5Encoder.load(after / "text_encoder", None).model.state_dict()
    # It learned for a step, at a tenth of the rate.
    states = small.model.state_dict().items()
    assert all(torch.allclose(learned[name], tensor, atol=0.01) for name, tensor in states)
    assert not all(torch.equal(learned[name], tensor) for name, tensor in states)
    run = train(captioned, tiny_text, tmp_path / "none", "--text-encoder", tmp_path / "nothing")
    assert run.exit_code == 4 and "There is no text encoder in" in run.stderr


def test_models_that_cannot_go_on_are_refused(captioned, tiny_text, tiny_video, tmp_path):
    broken = shutil.copytree(tiny_text, tmp_path / "broken")
    shutil.rmtree(broken / "text_encoder")
    run = train(captioned, broken, tmp_path / "run")
    assert run.exit_code == 4 and "There is no text encoder in" in run.stderr
    byte_encoder(64, 1).save(broken / "text_encoder")
    run = train(captioned, broken, tmp_path / "run")
    assert run.exit_code == 4 and "features of 64 numbers, and the model takes 16" in run.stderr
    run = train(captioned, tiny_video, tmp_path / "run")
    assert run.exit_code == 4 and "kind 'video', expected 'image' or 'text'" in run.stderr
    run = train(captioned, tiny_text / "model.safetensors", tmp_path / "run")
    assert run.exit_code == 4 and "is not a model in narcli's own format" in run.stderr
    assert not (tmp_path / "run").exists()
    (captioned / "captions.tsv").write_text(f"red dot\nblue dot\n{'d' * 24}\n")
    run = train(captioned, tiny_text, tmp_path / "run", "--steps", 1)
    assert run.exit_code == 2 and "25 tokens, and the model takes 24" in run.stderr


# --- the captions of the built-in model ----------------------------------------------------------


@pytest.fixture
def prepare(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts")
    import prepare_emoji_text

    return prepare_emoji_text


def people(prepare):
    jobs, tones = ("astronaut", "cook", "judge", "pilot", "singer"), prepare.TONES
    items = []
    for job in jobs:
        for word in ("man ", "woman ", ""):
            for tone in ((), *((tone,) for tone in tones)):
                key = f"{word}{job}{tone}"
                items.append(prepare.Item(key, key, f"{word}{job}", f"{word}{job}", tones=tone, group="1"))
    for shape in ("square", "circle", "heart", "star"):
        for colour in ("red", "green", "light blue", "blue"):
            label = f"{colour} {shape}"
            items.append(prepare.Item(label, label, label, label, group="8"))
    prepare.split_attributes(items)
    return items


def test_subjects_are_what_is_left_without_attributes(prepare):
    items = {item.key: item for item in people(prepare)}
    one = items["woman cook('dark',)"]
    assert (one.subject, one.attributes, one.kind) == ("cook", ("woman", "dark"), "gender and tone")
    assert items["cook()"].attributes == ("person",) and items["cook()"].kind == ""
    assert (items["light blue heart"].subject, items["light blue heart"].colour) == ("heart", "light blue")


def test_labels_are_shared_by_different_pictures_of_a_subject_only(prepare):
    names = [("a", "x"), ("b", "y"), ("c", "x"), ("d", "z"), ("d", "z")]  # d is there twice
    found = prepare.labels_of([prepare.Item(key, key, key, subject) for key, subject in names]).tolist()
    assert found[0] == found[2] and len(set(found)) == 4


def test_every_part_of_what_is_set_aside_is_seen_elsewhere(prepare, monkeypatch):
    monkeypatch.setattr(prepare, "SET_ASIDE", {"gender and tone": 12, "colour": 3})
    items = people(prepare)
    held = prepare.set_aside(items)
    kinds = [item.kind for item in items if item.key in held]
    assert (kinds.count("gender and tone"), kinds.count("colour")) == (12, 3)
    seen = {part for item in items if item.key not in held for part in prepare.parts(item)}
    for item in items:
        if item.key in held:
            assert set(prepare.parts(item)) <= seen
            if item.tones:
                assert ("gender man", "tone dark") in seen and len(prepare.parts(item)) == 6


def test_captions_say_the_attributes_in_several_ways(prepare):
    items = {item.key: item for item in people(prepare)}
    texts = prepare.captions(items["woman astronaut('dark',)"], {})
    assert texts[0] == "woman astronaut, dark skin tone" and len(texts) == len(set(texts)) > 8
    assert {"female astronaut with dark skin", "dark-skinned woman astronaut"} <= set(texts)
    assert all("dark" in text and "astronaut" in text for text in texts)
    texts = prepare.captions(items["blue heart"], {})
    assert {"blue heart", "a blue heart", "heart, blue", "a heart in blue"} <= set(texts)
    flag = prepare.Item("x", "x", "flag: Japan", "flag: Japan")
    assert {"flag of Japan", "Japan flag"} <= set(prepare.captions(flag, {}))
    texts = prepare.captions(items["astronaut('dark',)"], {})
    assert texts[0] == "person astronaut, dark skin tone" and "astronaut, dark skin tone" in texts
