"""The Hugging Face Hub as users meet it: the cache that its library leaves, and a server that answers as it does."""

import contextlib
import hashlib
import http.server
import json
import os
import threading
import urllib.parse
from pathlib import Path

HASH = "0123456789abcdef0123456789abcdef01234567"


def cached(cache, repo_id, source, *, names=("main",), commit=HASH, only=""):
    """Lays a dataset into a cache as huggingface_hub does: content in blobs/, links to it in snapshots/<commit>/."""
    folder = Path(cache) / f"datasets--{repo_id.replace('/', '--')}"
    for name in names:
        (folder / "refs" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "refs" / name).write_text(commit)
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    root = folder / "snapshots" / commit
    for path in Path(source).rglob("*"):
        place = root / path.relative_to(source)
        if not path.is_file() or not str(path.relative_to(source)).startswith(only):
            continue
        content = path.read_bytes()
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(blob, place.parent))
    return root


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        address = urllib.parse.urlsplit(self.path)
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        key = "sizes" if "blobs" in address.query else "refs" if address.path.endswith("/refs") else "info"
        answer = self.server.answers[key]
        if answer == "hangs":
            self.server.released.wait()
            return
        status, headers, body = answer if isinstance(answer, tuple) else (200, {}, answer)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(**answers):
    """A Hub on this machine; yields its address and the list of what it was asked, as (path, authorization)."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.answers, server.asked, server.released = answers, [], threading.Event()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", server.asked
        finally:
            server.released.set()
            server.shutdown()
            thread.join()


def refusal(status, code="", message=""):
    """An error as the Hub words it: in headers."""
    return status, {"X-Error-Code": code, "X-Error-Message": message}, {"error": message}


def info(*files, **more):
    """The Hub's answer about a dataset."""
    siblings = [{"rfilename": name} for name in files]
    return {"id": "lab/g1", "sha": HASH, "private": False, "gated": False, "siblings": siblings} | more


def sizes(**by_name):
    """The answer with sizes; a file's name has no dots here."""
    return info() | {"siblings": [{"rfilename": name, "size": size} for name, size in by_name.items()]}


def refs(branches=("main",), tags=()):
    """The answer about branches and tags."""

    def named(kind, names):
        return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": HASH} for name in names]

    return {"branches": named("heads", branches), "converts": [], "tags": named("tags", tags)}
