"""What runs take: the estimate against reality, and runs that are refused before anything is downloaded."""

import json
import os
import re
import shutil
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from conftest import small_transformer
from narcli import limits, memory
from narcli.checkpoints.load import build
from narcli.checkpoints.save import save_model
from narcli.checkpoints.text_encoder import T5Encoder
from narcli.hub.catalog import MODELS
from narcli.hub.sizes import Networks, networks_of, released_config
from narcli.memory import Files, estimate
from narcli.models.blocks import TransformerConfig
from narcli.models.larp import LARPConfig
from narcli.models.vq import VQConfig
from narcli.order import named

#: The estimate is at least this share of what was measured, and at most that.
TOLERANCE = (0.9, 1.4)


@pytest.fixture(scope="module")
def medium(tmp_path_factory):
    """34 M parameters, pictures of 256 pixels: a folder of 200 MB, of which only sizes matter."""
    config = TransformerConfig((16, 16), 384, 8, 6, 16384, 1024, num_classes=1000)
    tokenizer = VQConfig(64, (1, 1, 2, 2, 4), 1, 128)
    parts = []
    for network in (build(config), build(tokenizer)):
        network.to_empty(device="cpu")
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        parts.append(network)
    folder = tmp_path_factory.mktemp("medium") / "medium"
    return save_model(folder, transformer=parts[0], tokenizer=parts[1], classes="imagenet1k")


def peak(process):
    """The most memory of a process and its ffmpeg that no file backs; bytes, seen every 10 ms."""
    most = 0
    while process.poll() is None:
        most = max(most, sum(map(anonymous, [process.pid, *encoders(process.pid)])))
        time.sleep(0.01)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return most, stdout


def anonymous(pid):
    with suppress(OSError):  # it has ended
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


def encoders(pid):
    """Children that are ffmpeg already; before, they share the memory of the process."""
    with suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [child for child in children if "ffmpeg" in str(Path(f"/proc/{child}/exe").readlink())]
    return []


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="measured as Linux tells it")  # noqa: PTH110
@pytest.mark.parametrize(("dtype", "batch_size"), [("float32", 16), ("bfloat16", 1), ("bfloat16", 8)])
def test_the_estimate_is_near_the_memory_that_a_run_really_takes(hub, medium, dtype, batch_size):
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if (dtype, batch_size) == ("bfloat16", 8) and not native:
        pytest.skip("this processor emulates bfloat16, which takes minutes")
    options = ["--class", "1", "--model", medium, "--dtype", dtype, "--num", batch_size]
    options += ["--batch-size", batch_size, "--cfg-scale", "2", "--json"]
    told = told_and_taken(hub, "image", *options)
    files = Files(batch_size, frontier="gif")
    here = estimate(networks_of_folder(medium), getattr(torch, dtype), batch_size, files=files)
    assert told == {**here.document(), "base": told["base"], "total": told["base"] + here.total - here.base}


def told_and_taken(hub, *command):
    """What a run tells that it takes, which is near to what it does."""
    # In a process of its own, as this one holds more than a run begins with.
    needed = json.loads(hub.narcli(*command, "--dry-run"))["memory"]["needed"]
    told = needed["total"]
    taken = 0
    for _ in range(3):  # a busy machine looks away from a short peak
        # Or the second run would find its prompt encoded.
        shutil.rmtree(hub.environment["XDG_CACHE_HOME"], ignore_errors=True)
        taken = max(taken, peak(hub.start(*command))[0])
        if told / taken < TOLERANCE[1]:
            break
    assert TOLERANCE[0] < told / taken < TOLERANCE[1], (told, taken)
    return needed


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="measured as Linux tells it")  # noqa: PTH110
@pytest.mark.parametrize(
    "command",
    [
        "image --class 207 --num 16 --scale 16 --grid --frontier none --no-metadata",
        "image --class 207 --num 16",
        "video --class 5 --scale 8 --format gif --frontier none",
        "video --class 3 --scale 16 --format gif --frontier none",
        "video --class 5 --scale 16 --format mp4 --frontier none",
        "video --class 5 --scale 16 --format webp --frontier none",
        "video --class 5 --frontier mp4 --frontier-mode decode",
    ],
)
def test_the_estimate_is_near_where_pictures_take_more_than_networks(hub, command, tmp_path):
    words = [*command.split(), "--seed", "1", "--dtype", "float32", "--output", f"{tmp_path}/", "--json"]
    told_and_taken(hub, *words)


@pytest.fixture(scope="module")
def large_parts(tmp_path_factory):
    """Folders of small transformers, with a LARP of 150 M parameters and a T5 encoder of 154 M; float32."""
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    def filled(network):
        for parameter in network.to_empty(device="cpu").parameters():
            torch.nn.init.constant_(parameter, 0.01)
        return network

    folder, letters = tmp_path_factory.mktemp("parts"), ByT5Tokenizer(extra_ids=0)
    sizes = {"encoder_hidden_size": 1024, "decoder_hidden_size": 1024, "encoder_depth": 8, "decoder_depth": 4}
    larp = build(LARPConfig(256, input_size=64, encoder_num_heads=16, decoder_num_heads=16, **sizes))
    small = small_transformer((4, 8, 8), 4, vocab_size=8192, position="absolute")
    save_model(folder / "video", transformer=small, tokenizer=filled(larp), classes=list("abcd"))
    sizes = {"d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 12, "num_heads": 16}
    with torch.device("meta"):
        t5 = T5EncoderModel(T5Config(vocab_size=len(letters), feed_forward_proj="gated-gelu", **sizes))
    filled(t5).tie_weights()
    text = {"condition": "text", "condition_tokens": 8, "caption_dim": 1024}
    save_model(
        folder / "text",
        transformer=small_transformer((4, 4), 0, **text),
        tokenizer=filled(build(VQConfig(32, (1, 1), 1, 32, codebook_size=96))),
        text_encoder=T5Encoder(t5, letters),
    )
    return folder


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="measured as Linux tells it")  # noqa: PTH110
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("command", ["video --class 1", "image --prompt a"])
def test_the_estimate_is_near_where_larp_or_a_text_encoder_is_the_largest_part(
    hub, large_parts, command, dtype
):
    model = large_parts / ("video" if "video" in command else "text")
    told_and_taken(hub, *command.split(), "--model", model, "--dtype", dtype, "--frontier", "none", "--json")


def networks_of_folder(folder):
    from narcli.hub.resolve import resolve

    return networks_of(resolve(folder, None))


def test_memory_grows_with_the_batch_and_shrinks_with_the_dtype():
    networks = Networks(released_config(MODELS["nar-xl-256"]), VQConfig())
    assert networks.parameters == {"transformer": 815_991_040, "tokenizer": 71_883_403}
    one, sixteen = (estimate(networks, torch.float32, size) for size in (1, 16))
    # Keys and values of 37 layers, guided, 255 cells and the class, without the last.
    rows = 15 * 2
    assert sixteen.sampling - one.sampling > 37 * 2 * rows * 256 * 1280 * 4
    assert estimate(networks, torch.float32, 16, guided=False).sampling < sixteen.sampling
    # The tokenizer's encoder stays in its file, or in its converted copy.
    half, decoder = estimate(networks, torch.bfloat16, 1).weights, one.weights - 4 * 815_991_040
    assert half == one.weights / 2 and 0 < decoder < 4 * 71_883_403
    small = Networks(networks.transformer, VQConfig(32, (1, 1), 1, 32, codebook_size=96))
    assert estimate(small, torch.bfloat16, 1).weights == 2 * sum(small.parameters.values())  # no copy of that
    larp = Networks(networks.transformer, LARPConfig())
    assert estimate(larp, torch.float32, 1).weights == 4 * 815_991_040
    assert estimate(larp, torch.bfloat16, 1).weights == 2 * 815_991_040
    assert estimate(larp, torch.float32, 1, device="cuda").weights == 4 * sum(larp.parameters.values())
    assert estimate(networks, torch.float32, 1, device="cuda").base == 0


RELEASED = {"nar-b-256": 16, "nar-xl-t2i-512": 8, "nar-l-ucf101": 4, "llamagen-b-256": memory.SAMPLES}


@pytest.mark.parametrize("name", RELEASED)
def test_a_batch_size_is_chosen_by_use_memory_and_samples(name, monkeypatch):
    networks, most = networks_of(MODELS[name]), RELEASED[name]

    def chosen(room, samples=None, guided=True):
        monkeypatch.setattr(memory, "available", lambda device, own: room)
        cpu = torch.device("cpu")
        return memory.choose_batch_size(networks, torch.bfloat16, cpu, samples, guided=guided)

    assert chosen(10**12) == chosen(None) == most  # None: not known
    assert [chosen(10**12, samples) for samples in (1, 3, 1000)] == [1, 3, most]
    needed = [estimate(networks, torch.bfloat16, size, encode=False).total for size in range(1, most + 1)]
    for total in needed:
        room = round(total / memory.ROOM) + 1
        size = chosen(room)
        assert total <= needed[size - 1] <= memory.ROOM * room
        assert size == most or needed[size] > memory.ROOM * room  # the largest that fits
        assert chosen(room, guided=False) >= size
    assert chosen(round(needed[0] / memory.ROOM) + 1) < most  # what decoding takes would hold some
    assert chosen(needed[0] // 2) == 1  # which `check` then refuses


def test_a_program_that_has_the_weights_shares_what_is_left_only(monkeypatch):
    networks, asked = networks_of(MODELS["nar-b-256"]), []
    own = estimate(networks, torch.bfloat16, 4, encode=False)
    room = max(own.sampling, own.decoding) / memory.ROOM + 1

    def available(device, own):
        asked.append(own)
        return room

    monkeypatch.setattr(memory, "available", available)
    cpu = torch.device("cpu")
    assert memory.choose_batch_size(networks, torch.bfloat16, cpu, loaded=True) >= 4
    assert memory.choose_batch_size(networks, torch.bfloat16, cpu) == 1
    assert asked == [False, True]
    monkeypatch.undo()
    if os.path.exists("/proc/self/status"):  # noqa: PTH110
        assert limits.available(cpu) - limits.available(cpu, own=False) > 50e6  # torch alone takes more


def test_text_encoders_come_before_the_other_weights():
    text = networks_of(MODELS["nar-xl-t2i-256"])
    assert text.encoder == 1_223_527_424
    taken = estimate(text, torch.bfloat16, 1)
    assert taken.base == memory.base() + memory.TRANSFORMERS
    assert estimate(text, torch.bfloat16, 1, encode=False).base == memory.base()
    assert estimate(text, torch.float32, 1).encoding == 0  # stored in float32, it stays in its files
    assert estimate(text, torch.float32, 1, device="cuda").encoding == 4 * text.encoder
    assert taken.total == taken.base + max(
        2 * text.encoder, taken.weights + taken.sampling, taken.weights + taken.decoding
    )


@pytest.fixture
def asked_anew(monkeypatch):
    """A process that has not been asked for its base."""
    monkeypatch.setattr(memory, "base", cache(memory.base.__wrapped__))


def test_the_estimate_begins_with_what_the_build_of_torch_takes(monkeypatch, asked_anew):
    networks = networks_of(MODELS["nar-b-256"])
    monkeypatch.setattr(memory, "sizes_told", lambda path: {"RssAnon": 987_000_000})
    assert estimate(networks, torch.float32, 1).base == 987_000_000 + memory.LATER
    monkeypatch.setattr(memory, "sizes_told", lambda path: {"RssAnon": 5_000_000_000})
    assert memory.base() == 987_000_000 + memory.LATER  # a model that is loaded later counts as itself


def test_where_the_system_does_not_tell_the_estimate_begins_with_a_cpu_build(monkeypatch, asked_anew):
    for sizes in ({}, OSError()):
        memory.base.cache_clear()
        monkeypatch.setattr(memory, "sizes_told", Mock(return_value=sizes, side_effect=[sizes]))
        assert memory.base() == memory.IMPORTED + memory.LATER


def test_pictures_kept_and_on_their_way_to_files_count():
    networks = networks_of(MODELS["nar-b-256"])  # pictures of 256 x 256
    one = 4 * 256 * 256

    def parts(**files):
        taken = estimate(networks, torch.float32, 4, files=Files(40, **files))
        assert taken.total == taken.base + taken.weights + taken.pictures + max(
            taken.sampling, taken.decoding, taken.writing
        )
        return taken.pictures, taken.writing

    assert parts()[0] == 4 * one  # a batch
    assert parts(frontier="png")[0] == 20 * one  # and those that the frontier shows
    assert parts(sheet=True)[0] == 40 * one  # and all
    assert parts(sheet=True, scale=16)[1] > 40 * one * 256 > parts(sheet=True, scale=8)[1]
    assert parts(scale=16)[1] > one * 256 > parts(scale=8)[1]
    assert parts(frontier="gif", partials=True)[1] - parts(frontier="gif")[1] == 31 * 16 * one
    # Long orders are shown in 100 steps, and scales are always decoded.
    for name, steps, partials in (("raster", 100, True), ("var", 10, False)):
        order = named(name, (16, 16))
        most, least = (
            memory._files(Files(1, frontier="gif", partials=shown), networks.tokenizer, order, 1)[1]
            for shown in (True, False)
        )
        assert most - least == (steps * one if partials else 0)
        assert most > steps * one
    assert parts(frontier="png", partials=True)[1] - parts(frontier="png")[1] == 6 * 16 * one
    video = networks_of(MODELS["nar-l-ucf101"])
    gif, mp4, webp, frames = (
        estimate(video, torch.float32, 1, files=Files(suffix=suffix, scale=8)).writing
        for suffix in (".gif", ".mp4", ".webp", "")
    )
    assert min(gif, mp4) > webp > frames > 16 * 4 * 1024 * 1024
    short = estimate(video, torch.float32, 1, files=Files(suffix=".gif", scale=8, frames=2)).writing
    assert frames < short < gif


CONTROL_GROUPS = {
    "version 2": (
        "0::/user/run\n",
        {"user/run/memory.max": "max", "user/memory.max": "3000", "user/memory.stat": "anon 100\nfile 9"},
        [(3000, 100)],
    ),
    "version 2, what a container sees": (
        "0::/\n",
        {"memory.max": "3000", "memory.stat": "anon 100\nshmem 20\n"},
        [(3000, 120)],
    ),
    "version 1": (
        "5:cpu,cpuacct:/a\n4:memory:/a/b\n1:name=systemd:/a\n",
        {
            "memory/a/b/memory.limit_in_bytes": "5000",
            "memory/a/b/memory.stat": "cache 7\nrss 10\ntotal_cache 70\ntotal_rss 100\n",
            "memory/a/memory.limit_in_bytes": "3000",
            "memory/a/memory.stat": "rss 0\ntotal_rss 200\n",
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "memory/memory.stat": "total_rss 900\n",
        },
        [(5000, 100), (3000, 200), (9223372036854771712, 900)],
    ),
    "version 1, what a container sees": (
        "4:memory:/docker/1f2e\n",
        {"memory/memory.limit_in_bytes": "3000\n", "memory/memory.stat": "total_rss 100\n"},
        [(3000, 100)],
    ),
    "both, memory of version 1": (
        "4:cpuset,memory:/a:b\n0::/a\n",
        {"memory/a:b/memory.limit_in_bytes": "3000", "memory/a:b/memory.stat": "total_rss 1\n"},
        [(3000, 1)],
    ),
    "a name outside of what is seen": ("0::/../x\n", {"memory.max": "7", "memory.stat": "anon 1"}, [(7, 1)]),
    "damaged": ("4:memory:/a\n", {"memory/a/memory.limit_in_bytes": "lots"}, []),
    "none": ("", {}, []),
}


@pytest.mark.parametrize("case", CONTROL_GROUPS)
def test_limits_of_control_groups_are_found_in_both_versions(case, tmp_path, monkeypatch):
    lines, files, expected = CONTROL_GROUPS[case]
    for name, text in (
        {f"sys/fs/cgroup/{file}": files[file] for file in files} | {"proc/self/cgroup": lines}
    ).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(limits, "Path", lambda path: tmp_path / path[1:])
    assert limits._control_groups() == expected


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="as Linux tells it")  # noqa: PTH110
def test_the_tightest_control_group_bounds_what_is_available(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(limits, "_control_groups", lambda: [(2**63, 5), (3000, 100), (4000, 3900)])
    assert limits.available(cpu, own=False) == 100


def test_every_released_model_can_be_estimated():
    for row in MODELS.values():
        assert networks_of(row).runs == (row.kind in ("image", "text", "video", "frames")), row.name


def test_what_no_memory_holds_is_refused_before_the_download_and_what_fits_is_named(hub):
    hub.repos["yefly/NAR-imagenet-256-XL"] = {"model.pt": b"x"}
    hub.repos["FoundationVision/LlamaGen"] = {"vq_ds16_c2i.pt": b"x"}
    options = ["--model", "nar-xl-256", "--dtype", "float32", "--batch-size", "3000", "--num", "3000"]
    stderr = hub.narcli("image", "--class", "1", *options, code=5)
    assert "nar-xl-256 needs about" in stderr and "What fits: --batch-size" in stderr
    assert not [path for _, path, _ in hub.requests if "/resolve/" in path]
    stderr = hub.narcli("image", "--class", "1", *options, "--dry-run", code=5)
    assert "nar-xl-256 needs about" in stderr
    assert not list(hub.cache.rglob("*.pt"))


def test_a_dtype_and_a_smaller_model_that_fit_are_named(monkeypatch):
    networks = networks_of(MODELS["nar-xl-256"])
    monkeypatch.setattr(memory, "base", lambda: 220 * 10**6)  # the process of the tests holds more
    monkeypatch.setattr(memory, "available", lambda device: 3 * 10**9)
    with pytest.raises(memory.MemoryLimitError) as refused:
        memory.check(MODELS["nar-xl-256"], networks, torch.float32, 1, torch.device("cpu"))
    assert "4." in refused.value.message and "3.0 GB are available" in refused.value.message
    assert "`dtype=bfloat16` (2." in refused.value.hint and "`model=nar-l-256` (" in refused.value.hint
    memory.check(MODELS["nar-xl-256"], networks, torch.bfloat16, 1, torch.device("cpu"))


def test_files_that_fit_are_named(monkeypatch):
    networks, cpu = networks_of(MODELS["nar-b-256"]), torch.device("cpu")
    files = Files(40, scale=16, sheet=True)  # 40 pictures of 4096 x 4096
    least = estimate(networks, torch.float32, 1, files=Files(40, scale=16)).total
    monkeypatch.setattr(memory, "available", lambda device: least + 10**8)
    with pytest.raises(memory.MemoryLimitError) as refused:
        memory.check(MODELS["nar-b-256"], networks, torch.float32, 1, cpu, files=files)
    assert "`scale=1` (" in refused.value.hint and "no `sheet` (" in refused.value.hint
    assert "frontier" not in refused.value.hint and "batch_size" not in refused.value.hint
    memory.check(MODELS["nar-b-256"], networks, torch.float32, 1, cpu, files=Files(40, scale=16))


def test_the_limit_of_the_address_space_counts(hub, tmp_path):
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))

    options = ["--class", "1", "--model", "nar-xxl-256", "--dtype", "float32", "--yes"]
    hub.repos["chenfeng1271/NAR-imagenet-256-XXL"] = {"model.pt": b"x"}
    hub.repos["FoundationVision/LlamaGen"] = {"vq_ds16_c2i.pt": b"x"}
    stderr = hub.narcli("image", *options, code=5, preexec_fn=limit)
    assert "--model nar-" in stderr


def test_a_dry_run_says_what_would_happen_and_does_nothing(hub, tiny, tmp_path):
    hub.repos["me/tiny"] = {path.name: path.read_bytes() for path in tiny.iterdir()}
    before = sorted(tmp_path.iterdir())
    options = ["--model", "me/tiny", "--class", "dog", "--num", "3", "--seed", "5", "--dry-run"]
    about = json.loads(hub.narcli("image", *options, "--json"))
    size = sum(path.stat().st_size for path in tiny.iterdir())
    assert about["download"]["parts"] == {"me/tiny": size} and about["download"]["bytes"] == size
    assert about["steps"] is None and about["files"] is None  # a repository that narcli does not know
    assert about["batch_size"] is None and about["memory"]["needed"] is None
    assert not [path for _, path, _ in hub.requests if "/resolve/" in path]
    hub.narcli("models", "pull", "me/tiny")
    about = json.loads(hub.narcli("image", *options, "--json"))
    assert about["download"]["bytes"] == 0 and about["commit"] == hub.commit
    assert (about["steps"], about["cells"], about["largest_frontier"]) == (7, 16, 4)
    assert about["memory"]["needed"]["total"] < about["memory"]["available"]
    assert [name[-6:] for name in about["files"]] == ["s5.png", "s6.png", "s7.png", "er.gif"]
    many = json.loads(
        hub.narcli("image", *options[:4], *options[6:], "--json", "--num", "100", "--batch-size", "auto")
    )
    assert about["batch_size"] == 3 and many["batch_size"] == memory.SAMPLES
    text = hub.narcli("image", *options)
    assert "nothing" in text and "batches of 3" in text and "7 instead of 16" in text and "_s6.png" in text
    assert {path.name for path in tmp_path.iterdir()} - {path.name for path in before} == {"hf"}
    made = hub.narcli("image", *options[:-1], "--frontier", "none").split()
    assert made == about["files"][:3]
