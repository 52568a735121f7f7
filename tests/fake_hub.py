"""A Hub on this machine: what huggingface_hub asks a server for, answered from folders.
Repositories may move, be gated or renamed.
"""

import contextlib
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_onlyForTheTests"


@dataclass
class Repository:
    """commits: {hash: folder}; branches: {name: hash}; gated: files want TOKEN; renamed: its id
    now.
    """

    commits: dict[str, Path]
    branches: dict[str, str]
    gated: bool = False
    renamed: str | None = None


@dataclass
class Hub:
    """A server of {(kind, id): Repository}; `asked` has every path in order."""

    repositories: dict[tuple[str, str], Repository]
    url: str = ""
    asked: list[str] = field(default_factory=list)


@contextlib.contextmanager
def serve(repositories):
    hub = Hub(repositories)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urlsplit(self.path).path
        self.hub.asked.append(unquote(path))
        words = path.strip("/").split("/")
        api = words[0] == "api"
        kind = "dataset" if words[int(api)] == "datasets" else "model"
        words = words[int(api) + (api or kind == "dataset") :]
        name = "/".join(words[:2])
        words = [unquote(word) for word in words[2:]]
        repository = self.hub.repositories.get((kind, name))
        if self.headers.get("Authorization", f"Bearer {TOKEN}") != f"Bearer {TOKEN}":
            return self.answer(
                401, b"{}", **{"X-Error-Message": "Invalid credentials in Authorization header"}
            )
        if repository is None:
            return self.refuse(404, "RepoNotFound")
        if repository.renamed:
            return self.answer(
                307, b"", Location=self.hub.url + self.path.replace(name, repository.renamed, 1)
            )
        revision = words[1] if len(words) > 1 else "main"
        at = repository.branches.get(revision, revision)
        if at not in repository.commits:
            return self.refuse(404, "RevisionNotFound")
        folder = repository.commits[at]
        if not api:  # resolve/<revision>/<file>
            if repository.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.refuse(401, "GatedRepo")
            file = folder.joinpath(*words[2:])
            if not file.is_file():
                return self.refuse(404, "EntryNotFound")
            body = file.read_bytes()
            return self.answer(
                200, body, ETag=f'"{hashlib.sha1(body).hexdigest()}"', **{"X-Repo-Commit": at}
            )
        if words[:1] == ["tree"]:
            below = folder.joinpath(*words[2:])
            if not below.is_dir():
                return self.refuse(404, "EntryNotFound")
            found = below.rglob("*") if "recursive=true" in self.path.lower() else below.iterdir()
            entries = [
                {
                    "type": "file" if f.is_file() else "directory",
                    "path": f.relative_to(folder).as_posix(),
                    "oid": "0" * 40,
                    "size": f.stat().st_size,
                }
                for f in sorted(found)
            ]
            return self.answer(200, json.dumps(entries).encode())
        return self.answer(
            200,
            json.dumps(
                {"id": name, "sha": at, "private": False, "tags": [], "downloads": 0, "likes": 0}
            ).encode(),
        )

    def refuse(self, status, code):
        self.answer(status, b"{}", **{"X-Error-Code": code})

    def answer(self, status, body, **headers):
        self.send_response(status)
        for key, value in (
            {"Content-Length": str(len(body)), "Content-Type": "application/json"} | headers
        ).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
