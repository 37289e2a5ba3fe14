"""Faults of the network, the disk and the user, met by the real command and the real client of the Hub.

Each: the documented exit code, one clear message, nothing under a final name that is not whole, and the next
run works.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from hub_server import git_hash, sha256

DATA = Path(__file__).parent / "data"
WEIGHTS, CONFIG = (DATA / "c2i.pt").read_bytes(), (DATA / "c2i.json").read_bytes()
LARGE = os.urandom(24 * 2**20)  # the client writes 10 MiB at a time


@pytest.fixture(autouse=True)
def repositories(hub):
    hub.repos = {"me/one": {"config.json": CONFIG, "last.pt": WEIGHTS}, "me/large": {"last.pt": LARGE}}


def nothing_half_written(hub):
    """Whatever has a final name, in the cache, is what the name says: its hash."""
    for path in hub.cache.rglob("*"):
        if path.parent.name == "blobs" and path.is_file() and "incomplete" not in path.name:
            assert path.name in (sha256(path.read_bytes()), git_hash(path.read_bytes())), path
        assert not path.is_symlink() or path.exists(), path


def one_message(stderr, *words):
    """An error is one sentence and a hint."""
    lines = stderr.strip().splitlines()
    assert [line.startswith("error:") for line in lines] == [True] + [False] * (len(lines) - 1), stderr
    assert len(lines) <= 2, stderr
    for word in words:
        assert word in stderr, stderr


FAULTS = {
    "hang": ({"hang": 60}, {}, 3, "could not be reached"),
    "name not found": ({}, {"HF_ENDPOINT": "http://hub.invalid"}, 3, "hub.invalid could not be reached"),
    "connection refused": ({}, {"HF_ENDPOINT": "http://127.0.0.1:9"}, 3, "could not be reached"),
    "wrong length": ({"lie": 10}, {}, 3, "arrived with the wrong length"),
    "wrong hash": ({"flip": True}, {}, 3, "did not arrive as the Hub lists it"),
    "401": ({"status_of": {"/resolve/": 401}}, {}, 3, "me/one, or it is private"),
    "wrong token": (
        {"status": 401, "headers": {"X-Error-Message": "Invalid credentials in Authorization header"}},
        {"HF_TOKEN": "hf_wrong"},
        3,
        "did not accept your token",
    ),
    "403 gated": ({"status_of": {"/resolve/": 403}, "code": "GatedRepo"}, {}, 3, "is gated"),
    "404": ({"status": 404, "code": "RepoNotFound"}, {}, 3, "no repository me/one"),
    "404 of a file": ({"status_of": {"/resolve/": 404}, "code": "EntryNotFound"}, {}, 3, "has no file"),
    "429": ({"status": 429, "headers": {"Retry-After": "120"}}, {}, 3, "in 120 seconds"),
    "429 of a file": (
        {"status_of": {"/resolve/": 429}, "headers": {"Retry-After": "120"}},
        {},
        3,
        "in 120 seconds",
    ),
    "500": ({"status": 500}, {}, 3, "status 500"),
    "500 of a file": ({"status_of": {"/resolve/": 500}}, {}, 3, "status 500"),
    "redirect loop": ({"status": 302, "headers": {"Location": "/api/models/me/one"}}, {}, 3, "redirect"),
    "redirect loop of a file": (
        {"status_of": {"/resolve/": 302}, "headers": {"Location": "/me/one/resolve/main/config.json"}},
        {},
        3,
        "redirect",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_hub_that_fails_is_one_message_and_the_next_run_works(hub, fault):
    settings, environment, code, expected = FAULTS[fault]
    well = {name: getattr(hub, name) for name in settings}
    for name, value in settings.items():
        setattr(hub, name, value)
    began = time.monotonic()
    one_message(hub.narcli("models", "pull", "me/one", environment=environment, code=code), expected)
    assert time.monotonic() - began < 60
    nothing_half_written(hub)
    for name, value in well.items():
        setattr(hub, name, value)
    path = Path(hub.narcli("models", "pull", "me/one").strip())
    assert path.read_bytes() == WEIGHTS
    nothing_half_written(hub)


def test_a_connection_reset_in_mid_file_is_taken_up_again_in_the_same_run(hub):
    hub.cut, hub.cuts = 0.7, 1
    path = Path(hub.narcli("models", "pull", "me/large").strip())
    assert path.read_bytes() == LARGE
    assert "bytes=10485760-" in [headers.get("range") for _, _, headers in hub.requests]


def test_a_hang_in_mid_file_is_given_up_and_the_next_run_goes_on_from_there(hub):
    hub.cut, hub.stall = 0.7, 30
    stderr = hub.narcli("models", "pull", "me/large", code=3)
    one_message(stderr, "could not be reached")
    nothing_half_written(hub)
    hub.cut = 1.0
    hub.requests.clear()
    assert Path(hub.narcli("models", "pull", "me/large").strip()).read_bytes() == LARGE
    assert "bytes=10485760-" in [headers.get("range") for _, _, headers in hub.requests]
    nothing_half_written(hub)


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGINT, "Interrupted."), (signal.SIGTERM, "Terminated.")]
)
def test_a_signal_during_a_download_ends_it_and_the_next_run_goes_on_from_there(hub, number, said):
    hub.cut, hub.stall = 0.7, 100
    process = hub.start("models", "pull", "me/large", environment={"HF_HUB_DOWNLOAD_TIMEOUT": "100"})
    wait_for(lambda: [p for p in hub.cache.rglob("*incomplete") if p.stat().st_size], process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr.strip()) == (128 + number, said)
    nothing_half_written(hub)
    hub.cut = 1.0
    hub.requests.clear()
    assert Path(hub.narcli("models", "pull", "me/large").strip()).read_bytes() == LARGE
    assert "bytes=10485760-" in [headers.get("range") for _, _, headers in hub.requests]


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_a_file_size_limit_in_mid_download(hub):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (15 * 2**20, resource.RLIM_INFINITY))

    stderr = hub.narcli("models", "pull", "me/large", code=1, preexec_fn=limit)
    one_message(stderr, "Could not write to the Hub's cache", "HF_HOME")
    nothing_half_written(hub)
    assert Path(hub.narcli("models", "pull", "me/large").strip()).read_bytes() == LARGE


def test_a_disk_that_is_too_small_or_fills_in_mid_download(hub, disk):
    there = {"HF_HOME": str(disk / "hf")}
    stderr = hub.narcli("models", "pull", "me/large", code=1, environment=there)
    one_message(stderr, "to download (me/large)", "free", "HF_HOME")
    assert not [path for _, path, _ in hub.requests if "/resolve/" in path]
    sizes = {"last.pt": {"size": None}}  # so that it may fit
    hub.listing = lambda content: (
        content | {"siblings": [file | sizes.get(file["rfilename"], {}) for file in content["siblings"]]}
    )
    stderr = hub.narcli("models", "pull", "me/large", code=1, environment=there)
    one_message(stderr, "Could not write to the Hub's cache", "no space left")


def test_a_download_that_no_disk_holds_is_refused_before_it_begins(hub):
    hub.repos["yefly/NAR-imagenet-256-XL"] = {"last.pt": WEIGHTS}
    hub.repos["FoundationVision/LlamaGen"] = {"vq_ds16_c2i.pt": (DATA / "vq.pt").read_bytes()}
    hub.lies["yefly/NAR-imagenet-256-XL"] = 10**15
    stderr = hub.narcli("image", "--class", "1", "--model", "nar-xl-256", "--yes", code=1)
    one_message(stderr, "1,000,000.0 GB", "nar-xl-256, vq16-c2i", "smaller models are", "nar-b-256", "emoji")
    assert not [path for _, path, _ in hub.requests if "/resolve/" in path]


def pulled(hub, *options):
    """What a pull says of the one model that it was asked for."""
    (said,) = json.loads(hub.narcli("models", "pull", "me/one", "--json", *options))["models"]
    return said


def test_a_flipped_bit_is_found_and_mended(hub):
    said = pulled(hub)
    assert said["downloaded"] == len(WEIGHTS) + len(CONFIG)
    blob = Path(said["path"]).resolve()
    data = bytearray(WEIGHTS)
    data[len(data) // 2] ^= 4
    blob.write_bytes(data)
    stderr = hub.narcli("models", "verify", "me/one", code=4)
    one_message(stderr, "Damaged: me/one", "narcli models pull me/one")
    said = pulled(hub)
    assert said["downloaded"] == len(WEIGHTS)  # and not what is whole
    assert Path(said["path"]).read_bytes() == WEIGHTS and all(file["ok"] for file in said["files"])
    assert "whole" in hub.narcli("models", "verify", "me/one")
    assert pulled(hub)["downloaded"] == 0


def test_a_pinned_commit_that_is_damaged_is_mended_too(hub):
    path = Path(hub.narcli("models", "pull", "me/one", "--revision", hub.commit).strip())
    path.resolve().write_bytes(WEIGHTS[:-1] + b"x")
    hub.status = 500
    stderr = hub.narcli("models", "pull", "me/one", "--revision", hub.commit, code=4)
    assert "warning: The Hub has a problem" in stderr and "is damaged" in stderr
    hub.status = 0
    again = hub.narcli("models", "pull", "me/one", "--revision", hub.commit).strip()
    assert Path(again).read_bytes() == WEIGHTS


def test_a_cache_folder_that_vanished(hub):
    hub.narcli("models", "pull", "me/one")
    shutil.rmtree(hub.cache.parent)
    one_message(hub.narcli("models", "verify", "me/one", code=3), "not on this machine")
    assert Path(hub.narcli("models", "pull", "me/one").strip()).read_bytes() == WEIGHTS


def test_a_cache_folder_that_vanishes_during_the_download(hub):
    hub.cut, hub.stall, hub.cuts = 0.7, 2, 1
    process = hub.start("models", "pull", "me/large", environment={"HF_HUB_DOWNLOAD_TIMEOUT": "20"})
    wait_for(lambda: [p for p in hub.cache.rglob("*incomplete") if p.stat().st_size], process)
    shutil.rmtree(hub.cache)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1, stderr
    one_message(stderr, "Could not write to the Hub's cache")
    assert Path(hub.narcli("models", "pull", "me/large").strip()).read_bytes() == LARGE


def test_a_read_only_cache_serves_what_it_has_and_refuses_the_rest(hub, disk):
    there = {"HF_HOME": str(disk / "hf")}
    hub.narcli("models", "pull", "me/one", environment=there)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    path = Path(hub.narcli("models", "pull", "me/one", environment=there).strip())
    assert path.read_bytes() == WEIGHTS
    hub.repos["me/small"] = {"last.pt": WEIGHTS[:-1]}
    one_message(hub.narcli("models", "pull", "me/small", environment=there, code=1), "read-only", "HF_HOME")
    one_message(hub.narcli("models", "rm", "me/one", "--yes", environment=there, code=1), "read-only")
    assert path.read_bytes() == WEIGHTS


def test_two_processes_pull_and_use_the_same_model_at_once(hub, tiny, tmp_path):
    hub.repos["me/tiny"] = {path.name: path.read_bytes() for path in tiny.iterdir()} | {"model.bin": LARGE}
    options = ["--model", "me/tiny", "--class", "dog", "--frontier", "none", "--quiet", "--scale", "1"]
    pulls = [hub.start("models", "pull", "me/tiny", "me/large", "--json", "--quiet") for _ in range(2)]
    runs = [hub.start("image", *options, "--seed", "1", "-o", f"out{k}/") for k in range(2)]
    for process in (*pulls, *runs):
        stdout, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr
        assert stderr == "" and stdout
    files = [next((tmp_path / f"out{k}").glob("*.png")).read_bytes() for k in range(2)]
    assert files[0] == files[1]
    nothing_half_written(hub)
    assert not list(hub.cache.rglob("*incomplete"))
    gets = [path for method, path, _ in hub.requests if method == "GET" and path.startswith("/me/large/")]
    assert len(gets) == 1  # the second one waited for the first


def test_a_model_can_be_removed_while_it_is_used_and_pulled_again(hub, tiny):
    hub.repos["me/tiny"] = {path.name: path.read_bytes() for path in tiny.iterdir()}
    hub.narcli("models", "pull", "me/tiny")
    run = hub.start("image", "--model", "me/tiny", "--class", "dog", "--num", "30", "--batch-size", "1")
    wait_for(lambda: list(Path(hub.environment["HF_HOME"]).parent.glob("*.png")), run)
    said = json.loads(hub.narcli("models", "rm", "me/tiny", "--yes", "--json"))
    assert said["freed"] > 0 and not list(hub.cache.glob("models--*"))
    stdout, stderr = run.communicate(timeout=240)
    assert run.returncode == 0 and len(stdout.splitlines()) == 31, stderr
    hub.narcli("models", "pull", "me/tiny")
