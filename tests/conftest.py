"""Small models, made once a session: what they draw means nothing, but everything about them works."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the processors
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from typer.testing import CliRunner

import browser as chromium
import narcli
from hub_server import HubServer
from narcli.checkpoints.save import save_model
from narcli.classes import load_table
from narcli.kernels import native
from narcli.models.blocks import TransformerConfig
from narcli.models.transformer import NARTransformer
from narcli.models.vq import VQConfig, VQTokenizer

MAIN = "import sys; from narcli.cli import main; sys.exit(main())"
DATA = Path(__file__).with_name("data")


def small_transformer(grid, num_classes, **changes):
    """Random weights, reproducible."""
    torch.manual_seed(0)
    sizes = {"dim": 64, "layers": 2, "heads": 2, "vocab_size": 96, "ffn_dim": 128} | changes
    transformer = NARTransformer(TransformerConfig(grid=grid, num_classes=num_classes, **sizes))
    transformer.init_weights(std=0.3)
    for head in transformer.heads.values():  # otherwise zero, and every token as likely as any other
        torch.nn.init.normal_(head.output.weight, std=0.3)
    return transformer


def command(*words, code=0):
    """Run narcli in this process: stdout, or stderr where another exit code is expected."""
    from narcli.cli import app

    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    return result.stdout if code == 0 else result.stderr


def hold_at_most(monkeypatch, rows, error):
    """From the third step on more rows, those of guidance included, fail; the numbers of rows seen."""
    seen, whole = [], NARTransformer.feed

    def feed(self, state, index, tokens):
        seen.append(state.rows)
        if index > 2 and state.rows > rows:
            raise error
        return whole(self, state, index, tokens)

    monkeypatch.setattr(NARTransformer, "feed", feed)
    return seen


@pytest.fixture(params=["native", "packed"])
def kernels(request, monkeypatch):
    """``pack`` makes of a transformer what this machine is best at, and what it does without the library."""
    if request.param == "packed":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("this machine has no compiled layers")
    return request.param


@pytest.fixture
def hub(tmp_path):
    """A local server that speaks the Hub's protocol; ``hub.narcli(...)`` runs the real command against it.

    ``hub.environment`` is that of the command, ``hub.cache`` where the client keeps its files.
    """
    server = HubServer({})
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "XDG_", "NARCLI_"))}
    server.cache = tmp_path / "hf" / "hub"
    server.environment = plain | {
        "PYTHONPATH": str(Path(narcli.__file__).parents[1]),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": server.url,
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "NO_PROXY": "*",
        "HF_HUB_ETAG_TIMEOUT": "3",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
    }

    def start(*arguments, environment=None, **options):
        return subprocess.Popen(
            [sys.executable, "-c", MAIN, *map(str, arguments)],
            env=server.environment | (environment or {}),
            cwd=tmp_path,
            text=True,
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options,
        )

    def run(*arguments, code=0, **options):
        process = start(*arguments, **options)
        stdout, stderr = process.communicate(timeout=240)
        assert process.returncode == code, (process.returncode, stdout, stderr)
        assert "Traceback" not in stderr, stderr
        return stdout if code == 0 else stderr

    server.start, server.narcli = start, run
    yield server
    server.close()


@pytest.fixture
def online(hub, monkeypatch):
    """The same server, for the client in this process."""
    from huggingface_hub import constants

    settings = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(hub.cache),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_ETAG_TIMEOUT": 3,
        "HF_HUB_DOWNLOAD_TIMEOUT": 1,
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return hub


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Headless Chromium, one for all tests of pages."""
    if not chromium.CHROMIUM or not chromium.DRIVER:
        pytest.skip("no Chromium and chromedriver here: Debian's packages chromium and chromium-driver")
    made = chromium.Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture
def disk(tmp_path):
    """A file system of 20 MiB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only root mounts; limits of a file's size stand for the full disk in other tests")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A narcli folder: emoji classes, 4x4 grid, pictures of 8 pixels, random weights."""
    transformer = small_transformer((4, 4), len(load_table("emoji")))
    vq = VQTokenizer(VQConfig(32, (1, 1), 1, 32, codebook_size=96))
    return save_model(
        tmp_path_factory.mktemp("models") / "tiny",
        transformer=transformer,
        tokenizer=vq,
        classes="emoji",
        defaults={"cfg_scale": 1.5, "top_k": 50},
    )


@pytest.fixture(scope="session")
def tiny_text(tiny, tmp_path_factory):
    """A narcli folder: images from text, 4x4 grid, 24 condition tokens, an encoder of bytes."""
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    from narcli.checkpoints.load import load_tokenizer
    from narcli.checkpoints.text_encoder import T5Encoder

    torch.manual_seed(1)
    letters = ByT5Tokenizer(extra_ids=0)
    encoder = T5EncoderModel(
        T5Config(vocab_size=len(letters), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    )
    sizes = TransformerConfig(
        *((4, 4), 64, 2, 2, 96, 128), condition="text", condition_tokens=24, caption_dim=16
    )
    transformer = NARTransformer(sizes)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return save_model(
        tmp_path_factory.mktemp("models") / "tiny-text",
        transformer=transformer,
        tokenizer=load_tokenizer(tiny),
        text_encoder=T5Encoder(encoder, letters),
        defaults={"cfg_scale": 2.5},
    )


@pytest.fixture(scope="session")
def tiny_video(tmp_path_factory):
    """A narcli folder: four classes, 2x4x4 grid, clips of 6 frames of 8 pixels, random weights."""
    transformer = small_transformer((2, 4, 4), 4, position="absolute")
    vq = VQTokenizer(VQConfig(32, (1, 1), 1, 32, codebook_size=96, frames=3))
    return save_model(
        tmp_path_factory.mktemp("models") / "tiny-video",
        transformer=transformer,
        tokenizer=vq,
        classes=["bouncing ball", "waving flag", "flying bat", "rain"],
        defaults={"cfg_scale": 1.25},
    )


@pytest.fixture(scope="session")
def larp(tmp_path_factory):
    """(model, tokenizer): a model of 2x2x2 grids, and the golden LARP with 8 holistic tokens."""
    folder = tmp_path_factory.mktemp("larp")
    transformer = small_transformer((2, 2, 2), 101, vocab_size=64, position="absolute")
    model = save_model(folder / "ucf", transformer=transformer, classes="ucf101")
    (folder / "tokenizer").mkdir()
    shutil.copy(DATA / "larp.config.json", folder / "tokenizer" / "config.json")
    shutil.copy(DATA / "larp.safetensors", folder / "tokenizer" / "model.safetensors")
    return model, folder / "tokenizer"


@pytest.fixture(scope="session")
def golden(tmp_path_factory):
    """(model, tokenizer): released files with random weights, a config.json beside the model."""
    folder = tmp_path_factory.mktemp("golden")
    sizes = json.loads((DATA / "c2i.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: sizes[key] for key in ("grid", "n_head")}))
    shutil.copy(DATA / "c2i.pt", folder)
    (folder / "vq").mkdir()
    content = torch.load(DATA / "vq.pt", weights_only=True)
    codes = content["model"]["quantize.embedding.weight"]
    content["model"]["quantize.embedding.weight"] = codes[: sizes["vocab_size"]].clone()
    torch.save(content, folder / "vq" / "vq.pt")
    return folder / "c2i.pt", folder / "vq" / "vq.pt"
