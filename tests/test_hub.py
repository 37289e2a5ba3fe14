"""Fetching through the real client of the Hub, against a local server."""

import errno
import inspect
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hub_server import COMMIT, sha256
from narcli.errors import HubError
from narcli.hub.catalog import Model
from narcli.hub.failures import explain
from narcli.hub.selection import choose

DATA = Path(__file__).parent / "data"
WEIGHTS = (DATA / "c2i.pt").read_bytes()
CONFIG = (DATA / "c2i.json").read_bytes()


def tell(name, kind, options):
    """What came of a fetch, as JSON."""
    import json

    from narcli.errors import NarError
    from narcli.hub.locate import fetch
    from narcli.hub.resolve import resolve

    try:
        got = fetch(resolve(name, kind), **options)
    except NarError as error:
        return json.dumps({"error": error.message, "hint": error.hint, "code": error.exit_code})
    about = {"path": str(got.path), "commit": got.commit, "note": got.note, "grid": got.model.grid}
    return json.dumps(about)


ALONE = f"{inspect.getsource(tell)}\nimport json, sys\nprint(tell(*json.loads(sys.argv[1])))"


@pytest.fixture
def fetch(online, capfd):
    """Fetch in this process; with an environment in one of its own, for the client reads that at import."""
    online.repos = {
        "me/one": {"last.pt": WEIGHTS, "README.md": b"hello"},
        "me/sized": {"sub/last.pt": WEIGHTS, "sub/config.json": CONFIG},
        "me/several": {"b.pt": WEIGHTS, "a.pth": WEIGHTS, "c.safetensors": b"x"},
        "me/none": {"README.md": b"hello"},
    }

    def alone(arguments, environment):
        done = subprocess.run(
            [sys.executable, "-c", ALONE, json.dumps(arguments)],
            capture_output=True,
            text=True,
            env=online.environment | environment,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    def run(name="me/one", kind="image", environment=None, **options):
        arguments = (name, kind, options)
        if environment is None:
            stdout, stderr = tell(*arguments), capfd.readouterr().err
        else:
            stdout, stderr = alone(arguments, environment)
        assert stderr == ""  # nothing but results, and no bars into a pipe
        said = json.loads(stdout)
        if "error" in said:
            assert said["hint"] and "Traceback" not in said["error"]
        return said

    return run


def refused(said, expected, code=3):
    assert said.get("code") == code, said
    assert expected in f"{said['error']} {said['hint']}", said


def paths(hub):
    return [path for _, path, _ in hub.requests]


# --- what goes well ------------------------------------------------------------------------------


def test_the_only_weights_file_is_fetched_and_then_used_without_a_network(hub, fetch):
    said = fetch(environment={})
    assert Path(said["path"]).read_bytes() == WEIGHTS and Path(said["path"]).name == "last.pt"
    assert said["commit"] == COMMIT and said["note"] == ""
    assert not any("README" in path or "agent" in path for path in paths(hub))
    hub.requests.clear()
    assert fetch(environment={}) == said
    assert paths(hub) == ["/api/models/me/one/revision/main"]  # one short question, no second download
    hub.requests.clear()
    assert fetch(offline=True) == said
    assert fetch(environment={"HF_HUB_OFFLINE": "1"}) == said
    assert fetch(revision=COMMIT) == said
    assert paths(hub) == []


def test_without_a_network_the_copy_on_disk_is_used_and_said_to_be(hub, fetch):
    fetch()
    hub.close()
    said = fetch(environment={})
    assert Path(said["path"]).read_bytes() == WEIGHTS
    assert "could not be reached" in said["note"] and "copy on this machine" in said["note"]


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_a_hub_that_refuses_is_no_error_while_the_files_are_here(hub, fetch, status):
    path = fetch()["path"]
    hub.status = status
    said = fetch()
    assert said["path"] == path and said["note"]


def test_a_config_comes_along(hub, fetch):
    said = fetch("me/sized")
    assert Path(said["path"]).with_name("config.json").read_bytes() == CONFIG
    assert fetch("me/sized", offline=True) == said


def test_a_narcli_folder_is_fetched_whole(hub, fetch, tmp_path, tiny):
    hub.repos["me/tiny"] = {path.name: path.read_bytes() for path in tiny.iterdir()}
    said = fetch("me/tiny")
    folder = Path(said["path"])
    assert folder.is_dir() and said["grid"] == [4, 4]
    assert {path.name for path in folder.iterdir()} == {path.name for path in tiny.iterdir()}
    assert fetch("me/tiny", offline=True) == said
    shutil.rmtree(tmp_path / "hf")
    folder = Path(fetch("me/tiny", kind="image-tokenizer")["path"])
    assert not (folder / "model.safetensors").exists() and (folder / "tokenizer.safetensors").exists()


def test_a_named_file_of_several_is_fetched(hub, fetch):
    assert Path(fetch("me/several/b.pt")["path"]).name == "b.pt"
    refused(fetch("me/several/z.pt"), "has no file z.pt")


def test_a_new_commit_is_fetched_and_a_pinned_one_stays(hub, fetch):
    old = fetch()
    hub.commit, hub.repos["me/one"]["last.pt"] = "d" * 40, WEIGHTS[:-1]
    new = fetch()
    assert new["commit"] == "d" * 40 and Path(new["path"]).read_bytes() == WEIGHTS[:-1]
    assert fetch(revision=COMMIT) == old


def test_a_damaged_copy_is_fetched_again(hub, fetch):
    path = Path(fetch()["path"]).resolve()
    path.write_bytes(WEIGHTS[:1000])
    assert Path(fetch()["path"]).read_bytes() == WEIGHTS


def test_the_token_is_sent_to_the_hub(hub, fetch):
    fetch(environment={"HF_TOKEN": "hf_secret"})
    assert all(headers.get("authorization") == "Bearer hf_secret" for _, _, headers in hub.requests)


def test_a_dropped_connection_is_taken_up_again(hub, fetch):
    hub.cut, hub.cuts = 0.5, 1
    assert Path(fetch()["path"]).read_bytes() == WEIGHTS
    assert [method for method, _, _ in hub.requests].count("GET") == 3  # the list, half, the rest


def test_a_damaged_file_is_replaced_for_another_commit_that_shares_it(hub, fetch):
    path = Path(fetch()["path"])
    path.resolve().write_bytes(b"x" + WEIGHTS[1:])
    hub.commit = "d" * 40
    new = fetch()
    assert new["commit"] == hub.commit and Path(new["path"]).read_bytes() == WEIGHTS


# --- what goes wrong -----------------------------------------------------------------------------


def test_offline_without_a_copy(hub, fetch):
    refused(fetch(offline=True), "not on this machine")
    refused(fetch(environment={"HF_HUB_OFFLINE": "1"}), "Fetch it once")
    assert hub.requests == []


def test_a_refused_connection_is_quick_and_clear(hub, fetch):
    hub.close()
    began = time.monotonic()
    refused(fetch(environment={}), "could not be reached")
    assert time.monotonic() - began < 12


def test_a_hub_that_hangs_is_given_up_soon(hub, fetch):
    hub.hang = 60
    began = time.monotonic()
    refused(fetch(environment={"HF_HUB_ETAG_TIMEOUT": "1"}), "could not be reached")  # 10 by default
    assert time.monotonic() - began < 20


def test_a_host_that_does_not_exist(fetch):
    refused(fetch(environment={"HF_ENDPOINT": "http://hub.invalid"}), "http://hub.invalid could not be")


def test_an_endpoint_that_is_not_a_hub(hub, fetch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        other.close()
        refused(fetch(environment={"HF_ENDPOINT": f"http://127.0.0.1:{port}"}), "could not be reached")
    hub.repos = {}
    hub.status = 200  # an empty page for everything, as behind a portal
    refused(fetch(), "does not answer as the Hub does")


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (401, "", "no repository me/one, or it is private"),
        (403, "GatedRepo", "is gated"),
        (403, "", "gives no access to me/one"),
        (404, "RepoNotFound", "no repository me/one"),
        (404, "RevisionNotFound", "no revision 'main'"),
        (404, "", "no repository me/one"),
        (429, "", "asked too often"),
        (500, "", "status 500"),
        (503, "", "status 503"),
    ],
)
def test_refusals_say_what_to_do(hub, fetch, status, code, expected):
    hub.status, hub.code = status, code
    refused(fetch(), expected)


def test_a_wrong_token_is_named(hub, fetch):
    hub.status = 401
    hub.headers = {"X-Error-Message": "Invalid credentials in Authorization header"}
    refused(fetch(environment={"HF_TOKEN": "hf_wrong"}), "did not accept your token")


def test_how_long_to_wait_is_passed_on(hub, fetch):
    hub.status, hub.headers = 429, {"Retry-After": "120"}
    refused(fetch(), "in 120 seconds")


def test_unknown_revisions(fetch):
    refused(fetch(revision="v9"), "no revision 'v9'")
    refused(fetch(revision="a" * 40), "no revision")


def test_repositories_without_one_weights_file(fetch):
    refused(fetch("me/none"), "has no weights file")
    refused(fetch("me/several"), "a.pth, b.pt, c.safetensors")
    refused(fetch("me/several"), "`model=me/several/a.pth`")


def test_a_download_that_is_refused_in_the_middle(hub, fetch):
    hub.status_of = {"/resolve/": 403}
    refused(fetch(), "gives no access")
    hub.status_of = {"/resolve/": 404}
    refused(fetch(), "me/one")


def test_a_body_that_stops_early_is_an_error_and_the_next_run_goes_on_from_there(hub, fetch, tmp_path):
    whole = hub.repos["me/one"]["last.pt"] = os.urandom(24 * 2**20)
    hub.cut = 0.5
    assert fetch()["code"] == 3
    assert not [path for path in (tmp_path / "hf").rglob("*") if path.name in ("last.pt", sha256(whole))]
    hub.cut = 1.0
    hub.requests.clear()
    assert Path(fetch()["path"]).read_bytes() == whole
    # The client writes ten million bytes or so at a time; what was not written yet is asked for again.
    assert "bytes=10485760-" in [headers.get("range") for _, _, headers in hub.requests]
    assert not list((tmp_path / "hf").rglob("*incomplete"))


def test_a_file_of_another_length_than_told(hub, fetch):
    hub.lie = 10
    refused(fetch(), "arrived with the wrong length")
    hub.lie = 0
    assert Path(fetch()["path"]).read_bytes() == WEIGHTS


@pytest.mark.skipif(
    os.geteuid() == 0, reason="root may write anywhere; a read-only disk stands for it in test_faults.py"
)
def test_a_cache_that_cannot_be_written(fetch, tmp_path):
    (tmp_path / "hf").mkdir(mode=0o500)
    refused(fetch(), "HF_HOME", code=1)


def test_a_cache_that_is_a_file(fetch, tmp_path):
    (tmp_path / "hf").write_text("")
    refused(fetch(), "HF_HOME", code=1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES])
def test_a_disk_that_names_no_file_is_still_the_disk(number):
    error = explain(OSError(number, os.strerror(number)), Model("x", "image", "a/b"))
    assert not isinstance(error, HubError) and "Hub's cache" in error.message and "HF_HOME" in error.hint
    assert (
        "could not be reached" in explain(OSError(errno.ECONNRESET, "x"), Model("x", "image", "a/b")).message
    )


def test_a_repository_without_the_tokenizer_that_is_wanted_is_refused_before_the_download(hub, fetch, tiny):
    refused(fetch(tokenizer=True), "does not bring its tokenizer", code=2)
    assert paths(hub) == ["/api/models/me/one/revision/main"]
    hub.repos["me/tiny"] = {path.name: path.read_bytes() for path in tiny.iterdir()}
    assert Path(fetch("me/tiny", tokenizer=True)["path"]).is_dir()


# --- a server that means harm --------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path):
    """The files outside of the cache, which nothing may change; bytes inside the cache."""

    def look():
        files = [path for path in tmp_path.parent.rglob("*") if path.is_file() and not path.is_symlink()]
        inside = [path for path in files if path.is_relative_to(tmp_path / "hf")]
        return set(files) - set(inside), sum(path.stat().st_size for path in inside)

    before, _ = look()
    yield look
    assert look()[0] == before


BAD_NAMES = [
    *("../up.pt", "a/../../up.pt", "/up.pt", "..", ".", "", "a//b.pt", "a/./b.pt", ".a.pt", "a/.git/b.pt"),
    *("..\\up.pt", "a\\b.pt", "C:up.pt", "C:/up.pt", "nul\0.pt", "line\n.pt", "esc\x1b[2J.pt", "\u202etp.pt"),
    *("x" * 300 + ".pt", "a/" * 300 + "b.pt", "trailing./b.pt", "space /b.pt", "\ud800.pt"),
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_listed_name_that_leaves_its_folder_is_no_file(hub, fetch, outside, name):
    assert choose(Model("x", "image", "a/b"), [name, "good.pt"]) == ["good.pt"]
    hub.repos["me/bad"] = {"README.md": b""}
    entry = {"rfilename": name, "size": 4, "blobId": "0" * 40}
    hub.listing = lambda content: content | {"siblings": [entry]}
    refused(fetch("me/bad"), "has no weights file")
    assert not any("/resolve/" in path for path in paths(hub))


@pytest.mark.parametrize(
    "etag", ['"../../../../up"', '"/tmp/up"', '"x"', f'"{"0" * 64}"', 'W/"../up"', '"' + "y" * 5000 + '"']
)
@pytest.mark.parametrize("name", ["last.pt", "config.json"])
def test_an_etag_other_than_the_listed_hash_is_refused(hub, fetch, outside, etag, name):
    hub.repos["me/one"]["config.json"] = CONFIG
    hub.told = {"ETag": etag}
    refused(fetch(), "ETag")
    hub.told = {"X-Linked-Etag": etag}
    refused(fetch(), "ETag")


def test_an_etag_that_is_weak_or_missing_is_no_harm_where_the_hash_is_listed(hub, fetch):
    hub.told = {"ETag": f'W/"{sha256(WEIGHTS)}"'}
    assert Path(fetch()["path"]).read_bytes() == WEIGHTS
    shutil.rmtree(hub.cache)
    hub.told = {"ETag": None}
    assert Path(fetch()["path"]).read_bytes() == WEIGHTS


def without_hashes(content):
    files = [{"rfilename": file["rfilename"]} for file in content["siblings"]]
    return content | {"siblings": files}


def test_what_the_list_does_not_tell_is_taken_from_the_file_if_that_is_a_hash(hub, fetch, outside):
    hub.listing = without_hashes
    assert Path(fetch()["path"]).read_bytes() == WEIGHTS
    shutil.rmtree(hub.cache)
    hub.told = {"ETag": '"../../../up"'}
    refused(fetch(), "ETag")
    hub.told = {"ETag": None}
    refused(fetch(), "does not answer as the Hub does")


@pytest.mark.parametrize("packed", [False, True])
def test_no_more_bytes_are_taken_than_listed(hub, fetch, outside, packed):
    hub.more, hub.packed = bytes(5 * 2**20), packed
    refused(fetch(), "sends more than")
    assert outside()[1] <= len(WEIGHTS)
    hub.listing = without_hashes
    refused(fetch(), "sends more than")
    assert outside()[1] <= len(WEIGHTS)
    hub.more, hub.listing = b"", lambda content: content
    assert Path(fetch()["path"]).read_bytes() == WEIGHTS


def test_bytes_of_another_hash_than_listed_are_not_kept(hub, fetch, outside):
    hub.flip = True
    refused(fetch(), "did not arrive as the Hub lists it")
    assert outside()[1] == 0


@pytest.mark.parametrize(
    "commit",
    [
        None,
        7,
        "",
        "main",
        "../../up",
        "C0FFEE" * 6 + "C0DE",
        "c" * 39,
        "c" * 41,
        "c" * 64,
        ["c" * 40],
        "/" * 40,
    ],
)
def test_a_commit_that_is_not_40_digits_is_refused(hub, fetch, outside, commit):
    hub.listing = lambda content: content | {"sha": commit}
    refused(fetch(), "commit")
    assert not hub.cache.exists()


def test_a_commit_other_than_the_one_asked_for_or_listed_is_refused(hub, fetch, outside):
    hub.listing = lambda content: content | {"sha": "d" * 40}
    refused(fetch(revision=COMMIT), "asked for commit")
    hub.listing = lambda content: content
    for commit in ("d" * 40, "../../up"):
        hub.told = {"X-Repo-Commit": commit}
        refused(fetch(), "is of commit")


@pytest.mark.parametrize("size", [-1, 2**63, 10**30, 1.5, "12", True, [1], {}])
def test_a_size_that_is_none_is_refused(hub, fetch, outside, size):
    hub.listing = lambda content: content | {"siblings": [{"rfilename": "last.pt", "size": size}]}
    refused(fetch(), "the size")


def test_a_size_larger_than_the_disk_is_refused_before_the_download(hub, fetch, outside):
    hub.listing = lambda content: content | {"siblings": [{"rfilename": "last.pt", "size": 2**62}]}
    refused(fetch(), "to download", code=1)
    assert not any("/resolve/" in path for path in paths(hub))


@pytest.mark.parametrize("hash", ["../../up", "", "x" * 64, "A" * 64, "0" * 63, 7, ["0" * 40]])
def test_a_hash_of_odd_shape_is_refused(hub, fetch, outside, hash):
    for entry in ({"blobId": hash}, {"lfs": {"sha256": hash, "size": 4}}):
        hub.listing = lambda content, entry=entry: (
            content | {"siblings": [{"rfilename": "last.pt", "size": 4} | entry]}
        )
        refused(fetch(), "the hash")


@pytest.mark.parametrize(
    "answer",
    [
        *(b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b"[]", b'"x"', b"1" * 5000, b"<html>"),
        *(b'{"siblings": 7}', b'{"siblings": {}}', b'{"siblings": [7]}', b'{"siblings": [{}]}'),
        *(b'{"siblings": [{"rfilename": null}]}', b'{"siblings": null}'),
    ],
)
def test_a_list_of_another_type_is_refused(hub, fetch, outside, answer):
    answer = answer.replace(b'{"', b'{"sha": "' + COMMIT.encode() + b'", "', 1)
    hub.listing = lambda content: answer
    refused(fetch(), "does not answer as the Hub does")


def test_a_list_without_end_is_not_read_to_its_end(hub, fetch, outside, monkeypatch):
    from narcli.hub import locate as module

    monkeypatch.setattr(module, "MAX_LISTING", 2**20)
    entries = [{"rfilename": f"{number}.txt", "size": 1} for number in range(50_000)]
    hub.listing = lambda content: content | {"siblings": entries}
    refused(fetch(), "is longer than 1,048,576 bytes")


def test_files_that_differ_in_case_only_or_are_too_many_are_refused(hub, fetch, outside, tiny):
    names = ["model.safetensors", "config.json", "text_encoder/a.json", "text_encoder/A.json"]
    hub.repos["me/case"] = dict.fromkeys(names, b"{}")
    refused(fetch("me/case"), "several files of one name")
    hub.repos["me/many"] = dict.fromkeys([names[0], *(f"text_encoder/{k}" for k in range(1001))], b"")
    refused(fetch("me/many"), "1,002 files")
    assert not any("/resolve/" in path for path in paths(hub))


def test_an_error_with_a_long_body_is_not_read(hub, fetch):
    hub.status_of, hub.error_body = {"/api/": 404}, bytes(2**27)
    refused(fetch(), "no repository me/one")
    assert hub.sent < 2**27


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x", "http:///", "//"])
@pytest.mark.parametrize("path", ["/api/", "/resolve/"])
def test_a_redirect_to_another_scheme_is_not_followed(hub, fetch, outside, to, path):
    hub.redirects = {path: to}
    nowhere = "Connection refused" if path == "/api/" else "has no file last.pt"
    words = {"http:///": nowhere, "//": "redirects"}
    refused(fetch(), words.get(to, "unsupported protocol"))


def test_a_redirect_to_itself_ends(hub, fetch, outside):
    hub.redirects = {"/api/": f"{hub.url}/api/models/me/one"}
    refused(fetch(), "could not be reached")


@pytest.mark.parametrize("path", ["/api/", "/resolve/"])
def test_the_token_is_not_sent_to_another_host_after_a_redirect(hub, fetch, outside, path):
    other = type(hub)(hub.repos)
    try:
        # Another name of this machine is another host.
        elsewhere = other.url.replace("127.0.0.1", "localhost")
        target = "api/models/me/one/revision/main" if path == "/api/" else f"me/one/resolve/{COMMIT}/last.pt"
        hub.redirects = {path: f"{elsewhere}/{target}"}
        hub.told = other.told = {}
        fetch(environment={"HF_TOKEN": "hf_secret"})
        assert hub.requests[0][2]["authorization"] == "Bearer hf_secret"
        assert not any("authorization" in headers for _, _, headers in other.requests)
        assert other.requests
    finally:
        other.close()


@pytest.mark.parametrize(
    "revision", ["../x", "..", "a/../../x", "/etc", "a\\b", "C:x", "-\n", "x" * 600, ".git", "a//b"]
)
def test_a_revision_that_leaves_its_folder_is_refused(hub, fetch, outside, revision):
    refused(fetch(revision=revision), "cannot be a revision", code=2)
    refused(fetch(revision=revision, offline=True), "cannot be a revision", code=2)
    assert "/../" not in "".join(paths(hub))


@pytest.mark.parametrize("file", [None, "nar-00002-of-00002.safetensors"])
def test_a_repository_of_shards_is_called_that(file):
    shards = [f"nar-0000{number}-of-00002.safetensors" for number in (1, 2)]
    with pytest.raises(HubError, match="a/b has a model in 2 shards") as caught:
        choose(Model("x", "image", "a/b", file), shards)
    assert "Name one" not in caught.value.hint
    with pytest.raises(HubError) as caught:
        choose(Model("x", "image", "a/b"), [*shards, "whole.pt"])
    assert caught.value.hint == "Name one: `model=a/b/whole.pt`"
    alone = ["nar-00001-of-00001.safetensors"]
    assert choose(Model("x", "image", "a/b"), alone) == alone


def test_names_that_leave_the_folder_are_not_files():
    model = Model("x", "image", "a/b")
    assert choose(model, ["../evil.pt", "/etc/x.pt", "good.pt"]) == ["good.pt"]
    with pytest.raises(HubError):
        choose(model, ["../evil.pt"])


def test_a_mistyped_path_is_said_to_be_nowhere_before_the_hub_is_blamed(hub, fetch, tmp_path, monkeypatch):
    (tmp_path / "runs" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for options in ({}, {"offline": True}):
        said = fetch("runs/modle", **options)
        refused(said, "There is no file or folder runs/modle here.")
        assert said["hint"].startswith("Did you mean runs/model?")
    hub.close()
    refused(fetch("runs/modle"), "There is no file or folder runs/modle here.")


def test_a_dry_run_estimates_a_known_model_that_is_nowhere(hub):
    for options in (["--offline"], []):
        hub.status = 503
        said = json.loads(
            hub.narcli("image", "--class", "1", "--model", "nar-b-256", "--dry-run", "--json", *options)
        )
        assert said["download"]["bytes"] == 522_000_000 + 288_000_000 and said["steps"] == 31
    assert "not on this machine" in hub.narcli(
        "image", "--class", "1", "--model", "nar-b-256", "--offline", code=3
    )
    hub.narcli("image", "--class", "1", "--model", "me/unknown", "--dry-run", "--offline", code=3)
