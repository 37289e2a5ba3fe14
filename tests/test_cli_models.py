"""`narcli models` and `narcli classes`."""

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from hub_server import sha256
from narcli.checkpoints.containers import read_tensors
from narcli.cli import app
from narcli.errors import HubError, NarError, UsageError
from narcli.hub import cache, catalog, defaults, download, library, locate, resolve, selection, sources

DATA = Path(__file__).parent / "data"
WEIGHTS, CONFIG = (DATA / "c2i.pt").read_bytes(), (DATA / "c2i.json").read_bytes()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    for module in (defaults, resolve):
        monkeypatch.setattr(module, "_settings_file", lambda: tmp_path / "config" / "models.json")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    for kind in catalog.DEFAULT_KINDS:
        monkeypatch.delenv(resolve.variable(kind), raising=False)
    return tmp_path


def run(*arguments, code=0):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def keep(tmp_path, repo, file, data, commit="a" * 40):
    """Put a file where the Hub's client keeps it."""
    folder = tmp_path / "hf" / "hub" / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    path = folder / "snapshots" / commit / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.fixture
def online(online, here):
    """A Hub with one repository, for the client in this process."""
    online.repos = {"me/one": {"config.json": CONFIG, "last.pt": WEIGHTS}}
    return online


def pull(name="me/one"):
    return json.loads(run("models", "pull", name, "--json"))["models"][0]


def share(tmp_path, path, xet="f" * 64, name=None):
    """Let the cache keep a file as the client does that came by Xet: in a store that repositories share."""
    store = tmp_path / "hf" / "hub" / "blobs"
    entry, own = store / xet[:2] / xet, path.parents[2] / "blobs" / (name or sha256(path.read_bytes()))
    entry.parent.mkdir(parents=True, exist_ok=True)
    (store / ".huggingface-shared-blobs").write_text("1\n")
    own.parent.mkdir(exist_ok=True)
    path.replace(entry)
    own.symlink_to(f"../../blobs/{xet[:2]}/{xet}")
    path.symlink_to(f"../../blobs/{own.name}")
    with entry.with_name(f"{xet}.refs").open("a") as refs:
        refs.write(f"{own.relative_to(store.parent)}\n")
    return entry


# --- models --------------------------------------------------------------------------------------


def test_the_list_says_what_there_is_and_what_it_takes(here):
    path = keep(here, "FoundationVision/LlamaGen", "vq_ds16_c2i.pt", (DATA / "vq.pt").read_bytes())
    text = run("models", "list")
    rows = {line.split()[0]: line for line in text.splitlines() if line}
    assert "522 MB" in rows["nar-b-256"] and "to fetch" in rows["nar-b-256"]
    assert "yes" in rows["vq16-c2i"] and " 1 MB " in rows["vq16-c2i"]
    assert rows["emoji"].startswith("emoji *") and "MIT" in rows["emoji"]
    assert "default text model: emoji-text" in text and "\x1b" not in text

    said = json.loads(run("models", "list", "--json"))
    assert said["defaults"] == BUILT_IN
    models = {row["name"]: row for row in said["models"]}
    assert models.keys() == catalog.MODELS.keys()
    row = models["vq16-c2i"]
    assert (row["on_disk"], row["path"], row["bytes_to_fetch"]) == (True, str(path), 0)
    assert row["bytes"] == path.stat().st_size and row["commit"] == "a" * 40
    assert models["nar-b-256"]["bytes_to_fetch"] == 522_000_000 and not models["nar-b-256"]["on_disk"]


BUILT_IN = {"image": "emoji", "text": "emoji-text", "video": "emoji-video"}


def test_a_damaged_model_does_not_hide_the_others(here):
    folder = keep(here, "hywang66/LARP-L-long-tokenizer", "model.safetensors", b"x").parent
    (folder / "config.json").write_text("{")
    assert "not valid JSON" in run("models", "list")


def test_defaults_are_shown_chosen_and_forgotten(monkeypatch):
    assert json.loads(run("models", "default", "--json")) == BUILT_IN
    assert run("models", "default", "video", "nar-l-ucf101").split() == ["video", "nar-l-ucf101"]
    assert "nar-l-ucf101" in run("models", "default", "video")
    assert "nar-l-ucf101 *" in run("models", "list")
    assert "emoji-video" in run("models", "default", "video", "none")
    assert "emoji-text" in run("models", "default", "text", "none")
    monkeypatch.setenv("NARCLI_IMAGE_MODEL", "nar-l-256")
    result = CliRunner().invoke(app, ["models", "default", "image", "nar-b-256"])
    assert "NARCLI_IMAGE_MODEL=nar-l-256" in result.stderr and "nar-l-256" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["image", "nar-b"], "nar-b-256"),
        (["image", "nar-l-ucf101"], "model of videos"),
        (["audio"], "The kinds are image, text, video"),
        (["audio", "emoji"], "The kinds are image, text, video"),
    ],
)
def test_unusable_defaults_are_usage_errors(arguments, expected):
    assert expected in run("models", "default", *arguments, code=2)


def test_conversion_makes_a_folder_that_loads(here):
    shutil.copy(DATA / "c2i.pt", "c2i.pt")
    options = ["--config", DATA / "c2i.json", "--dtype", "bfloat16", "--tokenizer", DATA / "vq.pt"]
    assert run("models", "convert", "c2i.pt", "-o", "out", *options) == "out\n"
    assert {str(t.dtype) for t in load_file("out/model.safetensors").values()} == {"torch.bfloat16"}
    said = json.loads(Path("out/config.json").read_text())
    assert said["transformer"]["grid"] == [4, 4] and said["tokenizer"]["codebook_size"] == 96
    assert "already" in run("models", "convert", "c2i.pt", "-o", "out", code=2)
    again = run("models", "convert", "out", "-o", "out2", "--json")
    assert json.loads(again)["files"].keys() == {p.name for p in Path("out").iterdir()}


def test_a_conversion_of_a_file_with_two_models_says_which_one_it_takes():
    tensors = read_tensors(DATA / "c2i.pt")
    torch.save({"model": tensors, "ema": tensors}, "both.pt")
    result = CliRunner().invoke(
        app, ["models", "convert", "both.pt", "-o", "out", "--config", str(DATA / "c2i.json")]
    )
    assert result.exit_code == 0, result.output
    assert "both.pt holds 'model' and 'ema'; 'model' is used" in result.stderr


def test_conversion_refuses_what_is_no_model_and_leaves_nothing():
    Path("page.pt").write_text("<!doctype html>")
    assert "web page" in run("models", "convert", "page.pt", "-o", "out", code=4)
    assert "not a tokenizer" in run(
        "models", "convert", DATA / "c2i.pt", "-o", "out", "--tokenizer", DATA / "c2i.pt", code=4
    )
    assert {p.name for p in Path().iterdir()} == {"page.pt"}


def test_python_lists_describes_verifies_and_removes_models(here):
    path = keep(here, "FoundationVision/LlamaGen", "vq_ds16_c2i.pt", (DATA / "vq.pt").read_bytes())
    entries = {entry.model.name: entry for entry in library.list_models()}
    assert entries["vq16-c2i"].bytes == path.stat().st_size and entries["vq16-c2i"].found.path == path
    assert (entries["emoji"].bytes_to_fetch, entries["nar-b-256"].bytes_to_fetch) == (0, 522_000_000)
    emoji = library.describe("emoji")
    assert emoji.order.cells == 256 and {Path(file.name).name for file in emoji.files} >= {"config.json"}
    (checked,) = library.verify(library.inventory("vq16-c2i"))
    assert checked.error is None and checked.files[0].path == path
    with pytest.raises(UsageError, match="is built in"):
        library.plan_removal(["emoji"])
    removal = library.plan_removal(["vq16-c2i"])
    assert [(model.name, freed) for model, freed in library.remove(removal)] == [
        ("vq16-c2i", checked.files[0].bytes)
    ]
    assert not path.exists()


# --- models of the Hub ---------------------------------------------------------------------------

LLAMAGEN = "FoundationVision/LlamaGen"
RELEASED = {
    "chenfeng1271/NAR-imagenet-256-B": {"last_version.pt": "c2i.pt", "config.json": "c2i.json"},
    "yefly/NAR-imagenet-256-M": {"model.pt": "c2i.pt", "config.json": "c2i.json"},
    "FoundationVision/LlamaGen": {"vq_ds16_c2i.pt": "vq.pt", "vq_ds8_c2i.pt": "vq.pt"},
}


@pytest.fixture
def released(online):
    """A Hub with small files under the names of released models."""
    files = {
        repo: {name: (DATA / file).read_bytes() for name, file in files.items()}
        for repo, files in RELEASED.items()
    }
    online.repos = files
    return online


def test_a_model_is_pulled_with_its_tokenizer_shown_verified_and_removed(released):
    row = json.loads(run("models", "show", "nar-b-256", "--json"))
    assert not row["on_disk"] and row["license"] == "apache-2.0" and row["commit"] == released.commit
    assert [file["path"] for file in row["files"]] == ["config.json", "last_version.pt"]
    # As the paper says, for the file is not here.
    assert row["parameters"] == {"transformer": 130_551_552, "tokenizer": 71_883_403}
    assert (row["steps"], row["cells"], row["largest_frontier"]) == (31, 256, 16)
    assert (
        row["memory"]["bfloat16"]["batch_size_1"]["total"] < row["memory"]["float32"]["batch_size_1"]["total"]
    )

    said = json.loads(run("models", "pull", "nar-b-256", "nar-m-256", "--json"))["models"]
    assert [part["name"] for part in said] == ["nar-b-256", "vq16-c2i", "nar-m-256"]
    model = said[0]
    assert (model["commit"], model["downloaded"]) == (released.commit, (DATA / "c2i.pt").stat().st_size + 268)
    assert all(file["ok"] and file["hash"] == file["expected"] for part in said for file in part["files"])
    again = json.loads(run("models", "pull", "nar-b-256", "--json"))["models"]
    assert [part["downloaded"] for part in again] == [0, 0]

    released.requests.clear()
    row = json.loads(run("models", "show", "nar-b-256", "--json"))
    assert row["on_disk"] and row["path"] == model["path"] and row["commit"] == released.commit
    assert row["steps"] == 7 and row["parameters"]["transformer"] < 10**6  # those of the file
    text = run("models", "show", "nar-b-256")
    for expected in (
        "images of classes",
        "commit c0ffee",
        "vq16-c2i",
        "7 instead of 16",
        "float32",
        "last_version.pt",
    ):
        assert expected in text, text
    assert "nar-b-256: whole, 915 kB, hashes checked" in run("models", "verify", "nar-b-256")
    checked = json.loads(run("models", "verify", "--json"))
    assert checked["ok"] and {"emoji", "nar-b-256", "nar-m-256", "vq16-c2i"} <= {
        row["name"] for row in checked["models"]
    }
    assert released.requests == []  # what is here is shown and checked without the Hub

    assert "Add --yes" in run("models", "rm", "nar-b-256", code=2)
    assert "nar-b-256, nar-m-256 on this machine need it" in run("models", "rm", "vq16-c2i", "--yes", code=2)
    said = run("models", "rm", "nar-b-256", "--yes")
    assert "removed nar-b-256, 915 kB" in said and "kept vq16-c2i for nar-m-256" in said
    said = json.loads(run("models", "rm", "nar-m-256", "--yes", "--json"))
    assert said["removed"].keys() == {"nar-m-256", "vq16-c2i"} and said["kept"] == {}
    assert said["freed"] == sum(said["removed"].values()) > 10**6
    assert not list(released.cache.glob("models--*"))
    assert "not on this machine" in run("models", "rm", "nar-m-256", "--yes", code=2)


def test_a_pinned_revision_is_what_is_used_and_told(released):
    old = released.commit
    pulled = json.loads(run("models", "pull", "nar-b-256", "--revision", old, "--json"))["models"][0]
    released.commit = "d" * 40
    assert pulled["commit"] == old
    row = json.loads(run("models", "show", "nar-b-256", "--revision", old, "--json"))
    assert (row["on_disk"], row["commit"], row["revision"]) == (True, old, old)
    run("models", "pull", "nar-b-256", "--quiet")
    row = json.loads(run("models", "show", "nar-b-256", "--json"))
    assert (row["commit"], row["revision"]) == ("d" * 40, "main")


def test_what_cannot_be_pulled_shown_or_removed_says_so(released):
    assert "Did you mean nar-b-256" in run("models", "pull", "nar-b", code=2)
    assert "one model of the Hub" in run("models", "pull", "emoji", "--revision", "v1", code=2)
    assert "is built in" in run("models", "rm", "emoji", "--yes", code=2)
    assert "not on this machine" in run("models", "verify", "nar-b-256", code=3)
    assert "no repository no/body" in run("models", "show", "no/body", code=3)


def test_a_repository_stays_while_anything_on_disk_needs_it(here):
    keep(here, "chenfeng1271/NAR-imagenet-256-B", "last_version.pt", b"x")
    vq16 = keep(here, LLAMAGEN, "vq_ds16_c2i.pt", b"xx")
    vq8 = keep(here, LLAMAGEN, "vq_ds8_c2i.pt", b"xxx")
    refused = run("models", "rm", f"{LLAMAGEN}/vq_ds8_c2i.pt", "--yes", code=2)
    assert f"{LLAMAGEN} goes as a whole, and nar-b-256 on this machine needs it" in refused
    said = run("models", "rm", "nar-b-256", "--yes")
    assert f"kept vq16-c2i for {LLAMAGEN}/vq_ds8_c2i.pt" in said and "freed 1 bytes" in said
    assert vq16.is_file() and vq8.is_file()
    assert "vq_ds8_c2i.pt on this machine needs it" in run("models", "rm", "vq16-c2i", "--yes", code=2)
    said = json.loads(run("models", "rm", "vq16-c2i", f"{LLAMAGEN}/vq_ds8_c2i.pt", "--yes", "--json"))
    assert said["freed"] == 5 and not list((here / "hf" / "hub").glob("models--*"))


def test_a_repository_that_is_named_goes_with_all_that_is_in_it(here):
    for name in ("vq_ds16_c2i.pt", "vq_ds8_c2i.pt"):
        keep(here, LLAMAGEN, name, b"x")
    assert "freed 2 bytes" in run("models", "rm", LLAMAGEN, "--yes")


def test_what_was_removed_is_told_where_the_next_one_cannot_be(here, monkeypatch):
    for repo in ("me/one", "me/two"):
        keep(here, repo, "last.pt", b"x")
    remove = cache.remove

    def fail(model):
        if model.name == "me/two":
            raise NarError("Could not remove me/two.")
        return remove(model)

    monkeypatch.setattr(cache, "remove", fail)
    result = CliRunner().invoke(app, ["models", "rm", "me/one", "me/two", "--yes"])
    assert result.exit_code == 1 and "removed me/one, 1 bytes\nfreed 1 bytes" in result.stdout
    assert "Could not remove me/two" in result.stderr


def test_files_that_repositories_share_are_checked_and_removed_as_others(here):
    data = (DATA / "vq.pt").read_bytes()
    keep(here, "chenfeng1271/NAR-imagenet-256-B", "last_version.pt", b"x")
    entry = share(here, keep(here, LLAMAGEN, "vq_ds16_c2i.pt", data))
    (file,) = json.loads(run("models", "verify", "vq16-c2i", "--json"))["models"][0]["files"]
    assert file["ok"] and file["expected"] == file["hash"] == sha256(data)
    assert "nar-b-256 on this machine needs it" in run("models", "rm", "vq16-c2i", "--yes", code=2)
    share(here, keep(here, "me/copy", "last.pt", data))
    said = json.loads(run("models", "rm", "nar-b-256", "--yes", "--json"))
    assert said["removed"] == {"nar-b-256": 1, "vq16-c2i": 0} and entry.read_bytes() == data
    assert json.loads(run("models", "rm", "me/copy", "--yes", "--json"))["freed"] == len(data)
    assert not entry.exists()


def test_revisions_share_what_is_the_same_in_them_and_it_is_freed_once(online):
    old, online.commit = pull(), "d" * 40
    online.repos["me/one"]["config.json"] = CONFIG + b"\n"
    new = pull()
    assert new["commit"] == "d" * 40 and new["downloaded"] == len(CONFIG) + 1
    assert Path(old["path"]) != Path(new["path"]) and Path(old["path"]).samefile(new["path"])
    held = len(WEIGHTS) + 2 * len(CONFIG) + 1
    assert f"me/one {held / 1000:.0f} kB" in run("models", "rm", "me/one", code=2)
    assert json.loads(run("models", "rm", "me/one", "--yes", "--json"))["freed"] == held
    assert not list(online.cache.glob("models--*"))


def test_a_shared_file_that_is_damaged_is_left_to_the_others(online, here):
    path = Path(pull()["path"]).with_name("config.json")
    blob = path.resolve()
    path.unlink()
    blob.replace(path)
    entry = share(here, path, name=blob.name)
    copy = keep(here, "me/copy", "config.json", CONFIG)
    assert share(here, copy, name=blob.name) == entry
    damaged = CONFIG[:-1] + b"x"
    entry.write_bytes(damaged)
    online.commit = "d" * 40  # the new revision takes what the cache has of the old one
    said = pull()
    assert said["downloaded"] == len(CONFIG) and all(file["ok"] for file in said["files"])
    assert Path(said["path"]).with_name("config.json").read_bytes() == CONFIG
    assert copy.read_bytes() == entry.read_bytes() == damaged  # which a pull of me/copy would mend


def test_everything_on_disk_is_verified_in_every_revision(released, here, tiny, tiny_text):
    online, old = released, released.commit
    online.repos["me/tiny"] = {path.name: path.read_bytes() for path in tiny.iterdir()}
    online.repos["me/vq"] = {"vq.pt": (DATA / "vq.pt").read_bytes()}
    online.repos["me/t5"] = {path.name: path.read_bytes() for path in (tiny_text / "text_encoder").iterdir()}
    for name, kind in (
        ("nar-b-256", "image"),
        ("me/tiny", "image"),
        ("me/vq", "image"),
        ("me/t5", "text-encoder"),
    ):
        locate.fetch(resolve.resolve(name, kind))
    keep(here, "you/bert", "config.json", b'{"model_type": "bert"}')
    keep(here, "you/bert", "model.safetensors", (DATA / "t2i.expected.safetensors").read_bytes())
    online.commit = "d" * 40
    online.repos["chenfeng1271/NAR-imagenet-256-B"]["config.json"] += b"\n"
    locate.fetch(catalog.MODELS["nar-b-256"])
    said = json.loads(run("models", "verify", "--json"))
    assert said["ok"] and said["others"] == ["you/bert"]
    rows = [(row["name"], row["commit"]) for row in said["models"] if row["commit"]]
    new = [("nar-b-256", "d" * 40), ("nar-b-256", old)]
    assert rows == [*new, ("me/t5", old), ("me/tiny", old), ("me/vq", old)]
    assert {row["name"] for row in said["models"]} - {name for name, _ in rows} == set(BUILT_IN.values())
    for name in ("me/tiny", "me/vq", "me/vq/vq.pt", "me/t5"):
        for revision in ([], ["--revision", old]):
            (row,) = json.loads(run("models", "verify", name, *revision, "--json"))["models"]
            assert (row["ok"], row["commit"]) == (True, old)
    for number in (1, 2):
        keep(here, "you/shards", f"model-0000{number}-of-00002.safetensors", b"x")
    for name in ("you/bert", "you/shards"):
        out = run_both("models", "verify", name, code=0)
        assert f"Not checked, for narcli does not read them: {name}." in out
    out = run_both("models", "verify", "you/bert", "--revision", "e" * 40, code=3)
    assert "you/bert is not on this machine" in out
    shutil.rmtree(next(online.cache.glob("models--you--shards")))

    (file,) = (file for row in said["models"] if row["commit"] == old for file in row["files"]
               if row["name"] == "nar-b-256" and file["path"].endswith(".json"))  # fmt: skip
    Path(file["path"]).resolve().write_bytes(b"{}")
    model = next(online.cache.glob("models--me--tiny/snapshots/*/model.safetensors"))
    model.resolve().write_bytes(b"x" * 100)
    out = run_both("models", "verify", code=4)
    assert "nar-b-256: whole" in out and f"nar-b-256 at {old}: " in out and "me/tiny: " in out
    assert "Damaged: nar-b-256, me/tiny." in out
    assert "Not checked, for narcli does not read them: you/bert." in out
    assert f"narcli models pull nar-b-256 --revision {old}" in out

    def damage(pattern, data=b""):
        path = next(online.cache.glob(pattern)).resolve()
        whole = path.read_bytes()
        path.write_bytes(data or whole[: len(whole) // 2])
        return path, whole

    def verified():
        result = CliRunner().invoke(app, ["models", "verify", "--json"])
        said = json.loads(result.stdout)
        assert (result.exit_code == 4) is not said["ok"]
        return {row["name"] for row in said["models"] if not row["ok"]}, said["others"], result.stderr

    online.commit = old
    run("models", "pull", "me/tiny")
    Path(file["path"]).resolve().write_bytes(DATA.joinpath("c2i.json").read_bytes())
    assert verified()[:2] == (set(), ["you/bert"])
    t5 = [
        f"me--t5/snapshots/*/{name}" for name in ("config.json", "model.safetensors", "tokenizer_config.json")
    ]
    for pattern in ("me--vq/snapshots/*/vq.pt", *t5):
        for data in (b"", b"{}"):
            path, whole = damage(f"models--{pattern}", data)
            broken, others, hint = verified()
            name = pattern.split("/")[0].replace("--", "/")
            assert (broken, others) == ({name}, ["you/bert"])
            path.write_bytes(b"")
            if "narcli models pull" in hint:
                run("models", "pull", name)
            else:
                assert f"narcli models rm {name}" in hint
                path.write_bytes(whole)
            assert verified()[0] == set()


def test_what_narcli_does_not_read_is_named_and_not_hashed(online, here, tiny, monkeypatch):
    online.repos["me/tiny"] = {path.name: path.read_bytes() for path in tiny.iterdir()}
    locate.fetch(resolve.resolve("me/tiny", None))
    online.repos["you/bert"] = {"config.json": b'{"model_type": "bert"}', "model.safetensors": WEIGHTS}
    online.repos["chenfeng1271/NAR-imagenet-256-B"] = {"config.json": CONFIG, "last_version.pt": WEIGHTS}
    locate.fetch(resolve.resolve("you/bert", None))
    locate.fetch(catalog.MODELS["nar-b-256"])
    next(online.cache.glob("models--chenfeng1271*/snapshots/*/last_version.pt")).unlink()
    online.commit, online.repos["me/tiny"] = "d" * 40, {"config.json": CONFIG, "weights.pt": b"notes" * 100}
    locate.fetch(resolve.resolve("me/tiny", None), revision="d" * 40)
    hashed, hash_file = [], cache.hash_file
    monkeypatch.setattr(cache, "hash_file", lambda *given: hashed.append(given[0]) or hash_file(*given))
    said = json.loads(run("models", "verify", "--json"))
    assert said["ok"] and said["incomplete"] == ["chenfeng1271/NAR-imagenet-256-B"]
    assert said["others"] == [f"me/tiny at {'d' * 40}", "you/bert"]
    assert not [path for path in hashed if "bert" in str(path) and path.suffix == ".safetensors"]
    out = run_both("models", "verify", code=0)
    assert "interrupted download leaves it: chenfeng1271/NAR-imagenet-256-B." in out
    next(online.cache.glob(f"models--me--tiny/snapshots/{'d' * 40}/weights.pt")).resolve().write_bytes(b"x")
    assert f"me/tiny at {'d' * 40}: " in run_both("models", "verify", code=4)


def test_a_branch_that_moves_during_a_download_is_one_commit_or_none(online, monkeypatch):
    old, whole = online.commit, locate._download

    def fail(repo, file, *options, **more):
        if file.name == "last.pt":
            online.commit = "d" * 40
            raise HubError("cut")
        return whole(repo, file, *options, **more)

    with monkeypatch.context() as patch:
        patch.setattr(locate, "_download", fail)
        run("models", "pull", "me/one", code=3)
    asked = [path for _, path, _ in online.requests if "/resolve/" in path]
    assert asked and all(f"/resolve/{old}/" in path for path in asked)
    assert selection.cached(resolve.resolve("me/one", None)) is None  # main is not known to be anything
    assert pull()["commit"] == "d" * 40
    assert selection.cached(resolve.resolve("me/one", None)).commit == "d" * 40


def test_a_damaged_file_counts_as_missing_and_what_came_is_told(online):
    assert pull()["downloaded"] == len(WEIGHTS) + len(CONFIG)
    (path,) = (file["path"] for file in pull()["files"] if file["path"].endswith(".pt"))
    Path(path).resolve().write_bytes(WEIGHTS[:1000])
    model = resolve.resolve("me/one", None)
    assert locate.locate(model).missing == len(WEIGHTS)
    assert pull()["downloaded"] == len(WEIGHTS)
    Path(path).resolve().write_bytes(WEIGHTS[:-1] + b"x")  # found only by its hash
    assert pull()["downloaded"] == len(WEIGHTS) and pull()["downloaded"] == 0


def test_a_part_that_is_complete_is_not_downloaded_again(online):
    model = replace(resolve.resolve("me/one", None), size=10**15)
    pull("me/one")
    blob = next(
        path for path in (Path("hf", "hub") / "models--me--one" / "blobs").iterdir() if len(path.name) == 64
    )
    blob.rename(blob.with_name(f"{blob.name}.narcli.incomplete"))
    found = locate.locate(model)
    assert found.missing == 0 and found.here is None


def test_a_pull_hashes_each_file_once(online, monkeypatch):
    seen, hash_file = [], cache.hash_file
    monkeypatch.setattr(cache, "hash_file", lambda *given: seen.append(given[0].name) or hash_file(*given))
    assert all(file["ok"] and file["hash"] == file["expected"] for file in pull()["files"])
    assert len(seen) == 2
    seen.clear()
    assert pull()["downloaded"] == 0 and len(seen) == 2


def test_another_revision_than_the_one_on_disk_is_to_fetch(online):
    pull()
    new, online.commit, online.repos["me/one"]["last.pt"] = "d" * 40, "d" * 40, WEIGHTS + b"x"
    said = json.loads(run("models", "show", "me/one", "--revision", new, "--json"))
    assert (said["on_disk"], said["bytes_to_fetch"], said["path"]) == (False, len(WEIGHTS) + 1, None)


def test_a_wait_for_another_process_is_told(tmp_path):
    from huggingface_hub.utils import WeakFileLock

    told, held, released = [], threading.Event(), threading.Event()

    def hold():
        with WeakFileLock(tmp_path / "lock"):
            held.set()
            released.wait(10)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(10)
    with download._locked(tmp_path / "lock", lambda: (told.append("waiting"), released.set())):
        assert told == ["waiting"]
    other.join()
    with download._locked(tmp_path / "lock", lambda: told.append("again")):
        assert told == ["waiting"]


def test_the_estimate_uses_what_the_folder_on_disk_says(online, tiny):
    online.repos["me/tiny"] = {path.name: path.read_bytes() for path in tiny.iterdir()}
    options = [
        "--model",
        "me/tiny",
        "--class",
        "dog",
        "--batch-size",
        "4",
        "--num",
        "4",
        "--dry-run",
        "--json",
    ]
    pull("me/tiny")
    own = json.loads(run("image", *options))["memory"]["needed"]
    guided, plain = (
        json.loads(run("image", *options, "--cfg-scale", scale))["memory"]["needed"] for scale in (1.5, 1)
    )
    assert own == guided and own["sampling"] > plain["sampling"]


def test_an_encoder_in_the_models_folder_counts_only_while_prompts_are_not_encoded(here, tiny_text):
    source = sources.choose("text", tiny_text)
    assert source.locate().encode and not source.locate(known=lambda encoder: encoder.own).encode


def test_a_released_model_is_shown_without_a_hub(here):
    result = CliRunner().invoke(app, ["models", "show", "nar-xxl-256", "--offline"])
    assert result.exit_code == 0 and "transformer 1.46 B, tokenizer 72 M" in result.stdout
    assert "narcli is offline" in result.stderr and "no" in result.stdout


def test_a_file_without_a_tokenizer_is_shown_too():
    said = json.loads(run("models", "show", DATA / "c2i.pt", "--json"))
    assert said["parameters"].keys() == {"transformer"} and said["memory"] is None and said["steps"] == 31


def test_text_encoders_are_verified_by_their_shapes(tiny_text, tmp_path):
    shutil.copytree(tiny_text, tmp_path / "text")
    assert "no hashes to compare with" in run("models", "verify", "text")
    assert "text_encoder 0.0 M" in run("models", "show", "text")
    config = tmp_path / "text" / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"num_layers": 2', '"num_layers": 3'))
    said = run_both("models", "verify", "text", code=4)
    assert "lacks encoder.block.2" in said and "Get it again" in said and "pull" not in said


def run_both(*arguments, code):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.output


# --- classes -------------------------------------------------------------------------------------


def test_the_built_in_models_classes_are_listed_with_the_ids_that_lead_to_them():
    lines = run("classes").splitlines()
    assert any("🐕 dog" in line and "151-" in line for line in lines)
    said = json.loads(run("classes", "--json"))
    assert (said["model"], said["table"]) == ("emoji", "emoji") and len(said["classes"]) == len(lines)
    dog = next(row for row in said["classes"] if row["name"] == "dog")
    assert 207 in dog["ids"] and dog["emoji"] == "🐕"


def test_search_shows_what_stands_for_what():
    assert "207  golden retriever → 🐕 dog" in run("classes", "search", "golden").splitlines()
    said = json.loads(run("classes", "search", "golden", "--json"))["classes"]
    assert {row["stands_for"] for row in said if 207 in row["ids"]} == {"golden retriever"}
    assert "Did you mean" in run("classes", "search", "retreiver", code=2)


def test_classes_of_other_models(here, tiny):
    assert run("classes", "search", "crane", "--model", "nar-b-256").splitlines() == [
        "134  crane",
        "517  crane",
    ]
    assert "YoYo" in run("classes", "--model", "nar-l-ucf101")
    assert "🐕 dog" in run("classes", "--model", tiny)
    shutil.copy(DATA / "c2i.pt", "c2i.pt")
    assert run("classes", "--model", "c2i.pt").splitlines()[9] == "9  class 9"


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["search"], 2, "no word"),
        (["dog"], 2, "narcli classes search dog"),
        (["--model", "nar-xl-t2i-256"], 2, "takes a prompt"),
        (["--model", "vq16-c2i"], 2, "is a tokenizer"),
        (["--model", "some/body"], 1, "known once"),
        (["--model", "nonsense"], 2, "There is no model"),
    ],
)
def test_models_without_known_classes(arguments, code, expected):
    assert expected in run("classes", *arguments, code=code)
