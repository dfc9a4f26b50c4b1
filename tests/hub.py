"""A model hub on this machine: as much of its HTTP API as pushing and pulling a profile needs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

TOKEN = "hf_of_the_tests"
OWN = "me"  # the name for which the token may write


@dataclass
class Hub:
    """What the hub holds, and what it was asked."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def instead_of_the_real_one(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        """Ask this hub from now on, with a token that may write; keep its files in a folder."""
        patch.setattr(constants, "ENDPOINT", self.url)
        pages = f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", pages)
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub-cache"))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
        patch.setenv("HF_TOKEN", TOKEN)

    def commit_id(self, name: str) -> str:
        """The newest commit of a repository, named for its contents."""
        files = self.repositories[name]
        return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers at `url` until the context ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Asked", (_Request,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Request(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def reply(self, status: int, body: object, **headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def refuse(self, status: int, code: str) -> None:
        self.reply(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_POST(self) -> None:
        raw = self.body()
        self.hub.asked.append(f"POST {self.path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(401, "Unauthorized")
        if self.path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            return self.create(json.loads(raw))
        found = re.fullmatch(r"/api/models/(\w+/[\w-]+)/(preupload|commit)/main", self.path)
        assert found, self.path
        name, step = found.groups()
        if step == "preupload":
            files = json.loads(raw)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular"} for f in files]
            return self.reply(200, {"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        for line in raw.splitlines():
            part = json.loads(line)
            if part["key"] == "file":
                content = base64.b64decode(part["value"]["content"])
                self.hub.repositories[name][part["value"]["path"]] = content
        commit = self.hub.commit_id(name)
        return self.reply(
            200, {"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit}
        )

    def create(self, wanted: dict[str, str]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] != OWN:
            return self.refuse(403, "Forbidden")
        status = 409 if name in self.hub.repositories else 200
        if status == 200:
            self.hub.repositories[name] = {}
            hidden = wanted.get("private") or wanted.get("visibility") == "private"
            self.hub.private |= {name} if hidden else set()
        return self.reply(status, {"url": f"{self.hub.url}/{name}"})

    def do_GET(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        name = re.sub(r"^/(api/models/)?", "", self.path)
        name = "/".join(name.partition("?")[0].split("/")[:2])
        if name not in self.hub.repositories:
            return self.refuse(404, "RepoNotFound")
        files, commit = self.hub.repositories[name], self.hub.commit_id(name)
        if "/tree/" in self.path:
            listed = [
                {"type": "file", "path": p, "size": len(raw), "oid": hashlib.sha1(raw).hexdigest()}
                for p, raw in files.items()
            ]
            return self.reply(200, listed)
        if "/resolve/" in self.path:
            raw = files[self.path.rpartition("/")[2]]
            tag = f'"{hashlib.sha1(raw).hexdigest()}"'
            return self.reply(200, raw, ETag=tag, X_Repo_Commit=commit)
        siblings = [{"rfilename": path} for path in files]
        return self.reply(200, {"id": name, "sha": commit, "siblings": siblings})

    do_HEAD = do_GET
