"""A small server that speaks as much of the Hub's protocol as its client needs."""

import gzip
import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "c0de"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def git_hash(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(name):
    """Whether the Hub would keep a file outside of git, and list its SHA-256."""
    return name.endswith((".pt", ".pth", ".safetensors", ".bin"))


class Server(ThreadingHTTPServer):
    """Clients that go away are none of its business."""

    daemon_threads = True

    def handle_error(self, *arguments):
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*arguments)


class HubServer:
    """Serves ``repos[name][file] -> bytes`` and misbehaves on request.

    ``status`` answers everything with that status, and ``code`` as the Hub's X-Error-Code; ``status_of`` does
    so for paths that contain the key. ``cut`` sends that share of a file and closes, ``cuts`` times. ``lie``
    adds to the sizes told, ``lies`` to those of a repository. ``hang`` is in seconds; ``stall`` too, where a
    file was cut. ``flip`` serves files with their first byte changed.

    A hostile one: ``listing`` changes the answer that lists files, ``told`` headers of files (None drops
    one), ``more`` is sent after a file, ``packed`` sends it as gzip, ``redirects`` sends paths that contain
    the key elsewhere, ``error_body`` goes along with ``status``. ``sent`` counts the bytes of whole answers.
    """

    def __init__(self, repos):
        self.repos, self.commit = repos, COMMIT
        self.status, self.code, self.headers = 0, "", {}
        self.status_of, self.cut, self.cuts, self.lie, self.hang = {}, 1.0, 10**9, 0, 0.0
        self.stall, self.flip, self.lies = 0.0, False, {}
        self.listing, self.told, self.more, self.packed = lambda content: content, {}, b"", False
        self.redirects, self.error_body, self.sent = {}, b"", 0
        self.requests = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                self.answer(body=True)

            def answer(self, body):
                path = unquote(urlsplit(self.path).path)
                outer.requests.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
                if outer.hang:
                    threading.Event().wait(outer.hang)
                status = next((s for part, s in outer.status_of.items() if part in path), outer.status)
                if status:
                    headers = {"X-Error-Code": outer.code} | outer.headers
                    return self.send(status, outer.error_body, headers, body)
                if to := next((to for part, to in outer.redirects.items() if part in path), None):
                    return self.send(302, b"", {"Location": to}, body)
                if path.startswith("/api/models/"):
                    repo, _, revision = path.removeprefix("/api/models/").partition("/revision/")
                    return self.info(repo, revision or "main", body)
                repo, _, rest = path[1:].partition("/resolve/")
                revision, _, name = rest.partition("/")
                return self.file(repo, revision, name, body)

            def info(self, repo, revision, body):
                if repo not in outer.repos:
                    return self.send(404, b"", {"X-Error-Code": "RepoNotFound"})
                if revision not in ("main", outer.commit):
                    return self.send(404, b"", {"X-Error-Code": "RevisionNotFound"})
                files = []
                for name, data in outer.repos[repo].items():
                    size = len(data) + outer.lie + outer.lies.get(repo, 0)
                    about = {"rfilename": name, "size": size, "blobId": git_hash(data)}
                    if is_large(name):
                        about["lfs"] = {"sha256": sha256(data), "size": size, "pointerSize": 130}
                    files.append(about)
                content = {"id": repo, "modelId": repo, "sha": outer.commit, "siblings": files, "tags": []}
                content |= {"private": False, "downloads": 0, "cardData": {"license": "apache-2.0"}}
                content = outer.listing(content)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                return self.send(200, data, {"Content-Type": "application/json"}, body)

            def file(self, repo, revision, name, body):
                data = outer.repos.get(repo, {}).get(name)
                if data is None:
                    code = "EntryNotFound" if repo in outer.repos else "RepoNotFound"
                    return self.send(404, b"", {"X-Error-Code": code})
                headers = {
                    "ETag": f'"{(sha256 if is_large(name) else git_hash)(data)}"',
                    "X-Repo-Commit": outer.commit,
                    "X-Linked-Size": str(len(data)),
                    "Accept-Ranges": "bytes",
                }
                headers |= outer.told
                if body:
                    data += outer.more
                if outer.packed and body:
                    data, headers["Content-Encoding"] = gzip.compress(data), "gzip"
                if outer.flip:
                    data = bytes([data[0] ^ 1]) + data[1:]
                first = 0
                if given := self.headers.get("Range"):
                    first = int(given.removeprefix("bytes=").split("-")[0])
                    headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
                whole = outer.cut == 1 or outer.cuts <= 0
                outer.cuts -= body
                end = len(data) if whole else int(len(data) * outer.cut)
                return self.send(206 if first else 200, data[first:], headers, body, max(0, end - first))

            def send(self, status, data, headers, body=True, end=None):
                self.send_response(status)
                for key, value in headers.items():
                    if value:
                        self.send_header(key, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if body:
                    self.wfile.write(data[:end])
                    outer.sent += len(data[:end])
                    self.close_connection = end is not None and end < len(data)
                    if self.close_connection and outer.stall:
                        threading.Event().wait(outer.stall)

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
