"""A small HTTP server that answers what huggingface_hub asks of the hub."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest


@dataclass
class Hub:
    """A stand-in for the hub: datasets as {repository: {revision: {path: contents}}}."""

    datasets: dict[str, dict[str, dict[str, bytes]]]
    branches: dict[str, str] = field(default_factory=dict)
    gated: int | None = None
    status: int | None = None
    downloads: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        self.requests.append(path)
        if self.status:
            return self.status, {}, b"out of order"
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "datasets"]:
            repository, kind, revision = "/".join(parts[2:4]), parts[4], parts[5]
        else:
            repository, kind, revision = "/".join(parts[1:3]), parts[3], parts[4]
        if repository not in self.datasets:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        commit = self.branches.get(revision, revision)
        files = self.datasets[repository].get(commit)
        if files is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if kind == "revision":
            siblings = [{"rfilename": name} for name in files]
            info = {"id": repository, "sha": commit, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
            return 200, {}, json.dumps(info).encode()
        if kind == "tree":
            tree = [{"type": "file", "path": name, "size": len(text), "oid": "0" * 40} for name, text in files.items()]
            return 200, {}, json.dumps(tree).encode()
        if self.gated:
            return self.gated, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}, b""
        name = "/".join(parts[5:])
        if name not in files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        return 200, {"ETag": f'"{abs(hash((commit, name))):040x}"', "X-Repo-Commit": commit}, files[name]


@contextmanager
def running(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running stand-in, which huggingface_hub takes for the hub, with its cache in a folder."""
    state = Hub({})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            status, headers, body = state.answer(path)
            if with_body and "/resolve/" in path:
                state.downloads.append(path.split("/", 6)[-1])
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def do_GET(self) -> None:
            self.reply(with_body=True)

        def do_HEAD(self) -> None:
            self.reply(with_body=False)

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # What HF_ENDPOINT and the like set, had they been there when huggingface_hub was imported.
    monkeypatch.setattr(constants, "ENDPOINT", state.url)
    template = state.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
