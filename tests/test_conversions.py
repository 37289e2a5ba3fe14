"""Weights are converted once, and a copy never has other weights than its file."""

import json
import os
import shutil
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from typer.testing import CliRunner

import narcli
from narcli.checkpoints import conversions
from narcli.checkpoints import convert as checkpoints
from narcli.checkpoints.load import load_tokenizer, load_transformer
from narcli.cli import app
from narcli.hub import cache as hub
from narcli.hub.catalog import Model

BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of the copies; small files and new ones are copied too."""
    monkeypatch.setattr(conversions, "LEAST", 1)
    monkeypatch.setattr(conversions, "SETTLED", -1.0)
    monkeypatch.setattr(conversions, "cache_folder", lambda: tmp_path / "cache" / "weights")
    return tmp_path / "cache" / "weights"


@pytest.fixture
def model(golden, tmp_path):
    """(transformer, tokenizer), released pickles of this test's own."""
    shutil.copytree(golden[0].parent, tmp_path / "golden")
    return tmp_path / "golden" / "c2i.pt", tmp_path / "golden" / "vq" / "vq.pt"


def weights(path, dtype=BF16, load=load_transformer, keep=True):
    return load(path, dtype=dtype, keep=keep).state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a
    )


def copies(cache):
    return sorted(cache.glob("*")) if cache.exists() else []


def change(path):
    """Other weights, the same size and modification time, in place."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    stored = torch.load(path, weights_only=True)["model"]["tok_embeddings.weight"]
    place = bytes(data).index(stored.numpy().tobytes())
    data[place : place + 4] = bytes(4)
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)


@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
def test_the_copy_has_the_weights_of_the_file_and_is_what_later_loads_read(model, cache, dtype):
    for part, load in zip(model, (load_transformer, load_tokenizer), strict=True):
        expected = weights(part, dtype, load, keep=False)
        assert not copies(cache)
        assert same(weights(part, dtype, load), expected)
        (copy,) = copies(cache)
        assert copy.stat().st_size < part.stat().st_size * 0.6 and not list(cache.glob("*.part"))
        written = copy.stat().st_ino
        assert same(weights(part, dtype, load), expected)
        assert copy.stat().st_ino == written  # not written again
        loaded = load(part, dtype=dtype, keep=True)
        storages = {parameter.untyped_storage().data_ptr() for parameter in loaded.parameters()}
        maps = Path("/proc/self/maps").read_text().splitlines()
        mapped = [line.split()[0].split("-") for line in maps if copy.name in line]
        assert mapped and all(any(int(a, 16) <= s < int(b, 16) for a, b in mapped) for s in storages)
        copy.unlink()


def test_a_run_uses_copies_and_its_samples_are_the_same(model, cache, monkeypatch):
    def run(dtype):
        pipe = narcli.load(model[0], tokenizer=model[1], dtype=dtype)
        (result,) = pipe.images(1, seed=3, cfg_scale=2.0)
        return result.tokens.tolist(), result.image.tobytes(), result.metadata

    whole = run("float32")
    assert not copies(cache)  # never of a float32 run
    with monkeypatch.context() as patched:
        patched.setattr(conversions, "of", lambda *_: None)
        without = run("bfloat16")
    assert run("bfloat16") == without == run("bfloat16") and len(copies(cache)) == 2
    assert run("float32") == whole  # nor used by one


def test_what_is_small_or_has_just_changed_or_is_narrow_is_not_copied(model, cache, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(conversions, "LEAST", model[0].stat().st_size + 1)
        weights(model[0])
    with monkeypatch.context() as patched:
        patched.setattr(conversions, "SETTLED", 3600.0)
        weights(model[0])
    weights(model[0], torch.float32)
    weights(model[0], None)
    folder = checkpoints.convert(model[0], model[0].parent / "half", dtype=BF16)
    weights(folder)
    assert not copies(cache)


def test_a_file_that_changes_gets_another_copy(model, cache):
    before = weights(model[0])
    (old,) = copies(cache)
    change(model[0])
    after = weights(model[0])
    assert same(after, weights(model[0], keep=False)) and not same(after, before)
    assert old not in copies(cache) and len(copies(cache)) == 1  # the one that is of no use has gone
    with_more = model[0].with_name("config.json")
    with_more.write_text(json.dumps(json.loads(with_more.read_text()) | {"grid": [4, 5]}))
    assert load_transformer(model[0], dtype=BF16, keep=True).config.grid == (4, 5)


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "header", "folder"])
def test_a_damaged_copy_is_written_anew(model, cache, damage):
    expected = weights(model[0])
    (copy,) = copies(cache)
    data = copy.read_bytes()
    copy.unlink()
    if damage == "folder":
        copy.mkdir()
        (copy / "x").touch()
    else:
        copy.write_bytes(
            {
                "cut": data[:-1],
                "empty": b"",
                "noise": os.urandom(len(data)),
                "header": data.replace(b"heads.right.norm.weight", b"heads.rigth.norm.weight"),
            }[damage]
        )
    assert same(weights(model[0]), expected)
    assert damage == "folder" or copy.read_bytes() == data


def test_a_link_that_is_changed_meanwhile_does_not_mix_files_up(model, cache, monkeypatch):
    link, other = model[0].with_name("link.pt"), model[0].with_name("other.pt")
    shutil.copy(model[0], other)
    change(other)
    link.symlink_to(model[0])
    find = conversions.of

    def then_change(*given):
        found = find(*given)
        link.unlink()
        link.symlink_to(other)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(conversions, "of", then_change)
        weights(link)
    assert conversions.copies(model[0])
    for path in (model[0], other, link):
        assert same(weights(path), weights(path, keep=False))
    link.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(narcli.errors.CheckpointError, match=r"link\.pt is cut off"):
        weights(link)


def test_a_file_has_settled_before_it_is_read_not_while(model, cache, monkeypatch):
    monkeypatch.setattr(conversions, "SETTLED", 3600.0)
    key = conversions.of(model[0], "bfloat16")
    monkeypatch.setattr(conversions, "SETTLED", -1.0)  # reading took an hour
    tensors = {"x": torch.zeros(2)}
    assert key.converted(tensors) is tensors and not copies(cache)
    assert conversions.of(model[0], "bfloat16").converted(tensors) is not tensors


def test_what_changes_while_it_is_copied_is_not_kept(model, cache, monkeypatch):
    write = conversions.write_atomic

    def changing(path, fill, **options):
        def filled(part):
            change(model[0])
            fill(part)

        return write(path, filled, **options)

    expected = weights(model[0], keep=False)
    monkeypatch.setattr(conversions, "write_atomic", changing)
    found = weights(model[0])
    assert not copies(cache)
    assert not same(found, expected)  # mapped, and the file is another now: as without copies


def test_without_room_or_a_folder_to_write_to_everything_works(model, cache, monkeypatch):
    expected = weights(model[0], keep=False)
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patched:
        patched.setattr(conversions.shutil, "disk_usage", lambda path: usage(10, 10, 1000))
        assert same(weights(model[0]), expected) and not copies(cache)
    with monkeypatch.context() as patched:
        patched.setattr(
            conversions.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left"))
        )
        assert same(weights(model[0]), expected) and not copies(cache)  # no part of one either
    shutil.rmtree(cache)
    cache.parent.rmdir()
    cache.parent.write_text("a file")
    assert same(weights(model[0]), expected)


def test_copies_of_files_that_are_gone_and_parts_left_behind_are_removed(model, cache):
    for part, load in zip(model, (load_transformer, load_tokenizer), strict=True):
        weights(part, load=load)
    left, new = cache / ".narcli-old.part", cache / ".narcli-new.part"
    for path in (left, new, cache / "notes.txt"):
        path.write_bytes(b"123")
    os.utime(left, (0, 0))
    assert len(copies(cache)) == 5
    size = conversions.copies(model[0])[0].stat().st_size
    (kept,) = conversions.copies(model[1])
    model[0].unlink()
    assert conversions.prune() == size + 6 and copies(cache) == sorted([new, kept])


def test_the_oldest_go_beyond_a_limit(model, cache):
    weights(model[0])
    weights(model[1], load=load_tokenizer)
    (old,), (new,) = map(conversions.copies, model)
    os.utime(old, (1, 1))
    os.utime(new, (2, 2))
    weights(model[0])  # used again
    part = cache / ".narcli-of-another-process.part"
    part.write_bytes(b"123")
    os.utime(part, (time.time() - 60,) * 2)
    conversions.prune(most=old.stat().st_size)
    assert copies(cache) == sorted([part, old])
    conversions.prune(most=0)
    assert copies(cache) == [part]


def test_what_would_go_at_once_is_not_written(model, cache, monkeypatch):
    monkeypatch.setattr(conversions, "MOST", conversions.HEADER)
    monkeypatch.setattr(conversions, "write_atomic", lambda *_, **__: pytest.fail("written"))
    assert same(weights(model[0]), weights(model[0], keep=False))


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_models_list_counts_copies_and_rm_removes_them(model, cache, tmp_path, monkeypatch, shared):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--chenfeng1271--NAR-imagenet-256-B"
    (folder / "blobs").mkdir(parents=True)
    shutil.copy(model[0], blob := folder / "blobs" / ("a" * 64))
    if shared:  # with what is elsewhere, and stays
        blob.replace(tmp_path / "elsewhere")
        blob.symlink_to(tmp_path / "elsewhere")
    snapshot = folder / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "last_version.pt").symlink_to(Path("../../blobs") / ("a" * 64))
    shutil.copy(model[0].with_name("config.json"), snapshot)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("c" * 40)

    def listed():
        document = json.loads(CliRunner().invoke(app, ["models", "list", "--json"]).stdout)
        rows = {row["name"]: row["bytes_converted"] for row in document["models"]}
        assert document["converted"] == {"folder": str(cache), "bytes": sum(rows.values())}
        return rows["nar-b-256"]

    assert listed() == 0 and "converted" not in CliRunner().invoke(app, ["models", "list"]).stdout
    weights(snapshot / "last_version.pt")
    (copy,) = copies(cache)
    (cache / ".narcli-new.part").write_bytes(b"123")
    assert listed() == copy.stat().st_size
    assert conversions.held([copy, cache / "gone.safetensors"]) == copy.stat().st_size
    (cache / ".narcli-new.part").unlink()
    assert f"in {cache}" in CliRunner().invoke(app, ["models", "list"]).stdout
    CliRunner().invoke(app, ["models", "verify", "nar-b-256"])
    assert not copies(cache)
    weights(snapshot / "last_version.pt")
    weights(model[1], load=load_tokenizer)  # whose file goes too, but was not asked for
    model[1].unlink()
    sizes = [copy, snapshot / "config.json"] + [blob] * (not shared)
    size = sum(path.stat().st_size for path in sizes)
    freed = hub.remove(Model("nar-b-256", "image", "chenfeng1271/NAR-imagenet-256-B"))
    assert not copies(cache) and freed == size and not folder.exists()
