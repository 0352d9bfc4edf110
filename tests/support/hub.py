"""A hub on this machine: as much of its interface as folds take."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants


class Hub:
    """Repositories by name: revisions, each with its files, and which of them a branch is."""

    def __init__(self) -> None:
        self.revisions: dict[str, dict[str, dict[str, bytes]]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.private: set[str] = set()
        self.asked: list[str] = []
        self.token: str | None = None

    def create(self, name: str, private: bool) -> None:
        self.revisions[name] = {"0" * 40: {}}
        self.branches[name] = {"main": "0" * 40}
        if private:
            self.private.add(name)

    def revision(self, name: str, revision: str) -> str | None:
        branches = self.branches.get(name, {})
        known = branches.get(revision, revision)
        return known if known in self.revisions.get(name, {}) else None

    def commit(self, name: str, branch: str, lines: list[dict[str, Any]]) -> str:
        files = dict(self.revisions[name][self.branches[name][branch]])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        text = json.dumps({path: base64.b64encode(data).decode() for path, data in files.items()})
        oid = hashlib.sha1(f"{len(self.revisions[name])}{text}".encode()).hexdigest()
        self.revisions[name][oid] = files
        self.branches[name][branch] = oid
        return oid


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def send(self, status: int, data: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def json(self, value: Any, status: int = 200) -> None:
            self.send(status, json.dumps(value).encode(), Content_Type="application/json")

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                data = b""
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return data
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def do_POST(self) -> None:
            path, body = unquote(urlsplit(self.path).path), self.body()
            hub.asked.append(f"POST {path}")
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                self.json({"error": "Invalid username or password."}, 401)
                return
            parts = path.strip("/").split("/")
            if path == "/api/repos/create":
                asked = json.loads(body)
                name = (
                    f"{asked['organization']}/{asked['name']}"
                    if asked.get("organization")
                    else (asked["name"])
                )
                if name in hub.revisions:
                    self.json({"error": "exists", "url": f"{constants.ENDPOINT}/{name}"}, 409)
                    return
                hub.create(name, bool(asked.get("private")) or asked.get("visibility") == "private")
                self.json({"url": f"{constants.ENDPOINT}/{name}", "name": name})
                return
            if path == "/api/validate-yaml":
                self.json({"errors": [], "warnings": []})
                return
            name, verb, revision = "/".join(parts[2:4]), parts[4], "/".join(parts[5:])
            if verb == "branch":
                if revision in hub.branches[name]:
                    self.json({"error": "exists"}, 409)
                    return
                hub.branches[name][revision] = hub.branches[name]["main"]
                self.json({})
            elif verb == "preupload":
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                self.json({"files": files})
            elif verb == "commit":
                lines = [json.loads(line) for line in body.decode().splitlines()]
                oid = hub.commit(name, revision, lines)
                url = f"{constants.ENDPOINT}/{name}/commit/{oid}"
                self.json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})
            else:
                self.json({"error": path}, 404)

        def do_GET(self) -> None:
            split = urlsplit(self.path)
            path, asked = unquote(split.path), parse_qs(split.query)
            hub.asked.append(f"{self.command} {path}")
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                name, verb = "/".join(parts[2:4]), (parts[4:] or ["revision"])[0]
                oid = hub.revision(name, "/".join(parts[5:]) or "main")
                if oid is None:
                    known = name in hub.revisions
                    code = "RevisionNotFound" if known else "RepoNotFound"
                    self.send(404, b'{"error": "not found"}', X_Error_Code=code)
                    return
                files = hub.revisions[name][oid]
                if verb == "tree":
                    rows = [
                        {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}
                        for path, data in files.items()
                    ]
                    self.json(rows)
                else:
                    siblings = [{"rfilename": path} for path in files]
                    info = {"id": name, "modelId": name, "sha": oid, "siblings": siblings}
                    self.json(info | {"private": name in hub.private, "tags": [], "downloads": 0})
                return
            name = "/".join(parts[:2])
            if parts[2:3] == ["resolve"]:
                oid = hub.revision(name, parts[3])
                data = hub.revisions.get(name, {}).get(oid or "", {}).get("/".join(parts[4:]))
                if oid is None or data is None:
                    self.send(404, X_Error_Code="EntryNotFound")
                    return
                self.send(200, data, X_Repo_Commit=oid, ETag=f'"{_oid(data)}"')
                return
            self.json({"error": path, "asked": asked}, 404)

        do_HEAD = do_GET  # noqa: N815

    return Handler


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextmanager
def hub_here(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """A hub that the hub's library takes for the real one, and a cache of its own."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "secret")
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
