"""A local stand-in for the Hugging Face hub: the part of its HTTP API that huggingface_hub uses here.

`HubStub` keeps repositories in memory and counts what clients send. Clients read `HF_ENDPOINT` when huggingface_hub is
imported, so scripts run in a process of their own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stub"
LARGE = (".parquet", ".safetensors")  # stored as LFS objects, as the hub stores binary files


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repository:
    """Its states, oldest first: (commit, {path: content})."""

    private: bool
    states: list[tuple[str, dict[str, bytes]]] = field(default_factory=lambda: [("0" * 40, {})])

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.states[-1]
        return next((state for state in self.states if state[0] == revision), None)


class HubStub:
    """Repositories by "models/owner/name" and "datasets/owner/name", and the files that clients sent, in order."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.sent: list[str] = []  # paths in commits
        self.uploaded = 0  # LFS objects
        self.requests: list[str] = []
        self._client: subprocess.Popen[str] | None = None
        stub = self

        class Handler(_Handler):
            hub = stub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def files(self, repository: str) -> dict[str, bytes]:
        return self.repositories[repository].states[-1][1]

    def environment(self) -> dict[str, str]:
        """The variables of a client, which is logged in."""
        root = Path(__file__).resolve().parents[3]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        return {
            **kept,
            "PYTHONPATH": str(root) + os.pathsep + os.environ.get("PYTHONPATH", ""),
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(self.home / "huggingface"),
            "HF_TOKEN": TOKEN,
            "XDG_CACHE_HOME": str(self.home / "user-cache"),
        }

    def run(self, script: str, *arguments: str, token: str | None = TOKEN) -> Any:
        """Runs a Python script in the client's process; returns its last line of output, JSON."""
        answer = self._ask(script, arguments, token)
        assert answer["error"] is None, answer["error"]
        return json.loads(answer["output"].strip().splitlines()[-1])

    def failure(self, script: str, *arguments: str, token: str | None = TOKEN) -> str:
        """Runs a Python script that fails; returns the last line of its error."""
        answer = self._ask(script, arguments, token)
        assert answer["error"] is not None, answer["output"]
        return answer["error"].strip().splitlines()[-1]

    def _ask(self, script: str, arguments: tuple[str, ...], token: str | None) -> dict[str, Any]:
        if self._client is None:  # importing torch takes seconds, so all scripts share one process
            self._client = subprocess.Popen(
                [sys.executable, "-c", _CLIENT],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=self.environment(),
            )
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        self._client.stdin.write(json.dumps({"script": script, "argv": arguments, "token": token}) + "\n")
        self._client.stdin.flush()
        return json.loads(self._client.stdout.readline())

    def close(self) -> None:
        if self._client is not None:
            self._client.communicate()  # closes its input, which ends it
        self.server.shutdown()
        self.server.server_close()


_CLIENT = """
import contextlib, io, json, os, sys, traceback
for line in sys.stdin:
    request = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    if request["token"]:
        os.environ["HF_TOKEN"] = request["token"]
    sys.argv, output, error = ["script", *request["argv"]], io.StringIO(), None
    try:
        with contextlib.redirect_stdout(output):
            exec(request["script"], {"__name__": "__main__"})
    except BaseException:
        error = traceback.format_exc()
    print(json.dumps({"output": output.getvalue(), "error": error}), flush=True)
"""


@contextmanager
def hub_stub(home: Path) -> Iterator[HubStub]:
    """Starts a stub, whose clients keep their caches in `home`."""
    stub = HubStub(home)
    thread = threading.Thread(target=stub.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: HubStub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append(f"{method} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = path.split("/")
        if method == "PUT" and parts[0] == "lfs-objects":
            assert hashlib.sha256(body).hexdigest() == parts[1]
            self.hub.objects[parts[1]] = body
            self.hub.uploaded += 1
            return self._send(200, b"")
        if path == "api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == "api/repos/create":
            return self._create(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        if "resolve" in parts:
            place = parts.index("resolve")
            kind = parts[0] if parts[0] == "datasets" else "models"
            name = "/".join(parts[place - 2 : place])
            return self._file(f"{kind}/{name}", parts[place + 1], "/".join(parts[place + 2 :]), method)
        if parts[0] == "api" and len(parts) >= 4:
            return self._api("/".join(parts[1:4]), parts[4:], body)
        return self._json({"error": f"no route {path}"}, 500)

    def _repository(self, key: str) -> Repository | None:
        found = self.hub.repositories.get(key)
        if found is None or (found.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            self._json({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
            return None
        return found

    def _create(self, record: dict[str, Any]) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid credentials"}, 401)
        kind = f"{record.get('type') or 'model'}s"
        key = f"{kind}/{record['organization']}/{record['name']}"
        prefix = "datasets/" if kind == "datasets" else ""
        url = {"url": f"{self.hub.url}/{prefix}{record['organization']}/{record['name']}"}
        if key in self.hub.repositories:
            return self._json({"error": "You already created this repo", **url}, 409)
        private = record.get("private") is True or record.get("visibility") == "private"
        self.hub.repositories[key] = Repository(private)
        return self._json(url)

    def _batch(self, record: dict[str, Any]) -> None:
        objects = []
        for one in record["objects"]:
            href = {"upload": {"href": f"{self.hub.url}/lfs-objects/{one['oid']}"}}
            objects.append({**one, **({} if one["oid"] in self.hub.objects else {"actions": href})})
        self._json({"objects": objects, "transfer": "basic"})

    def _api(self, key: str, rest: list[str], body: bytes) -> None:
        repository = self._repository(key)
        if repository is None:
            return None
        action, revision = (rest[0], rest[1]) if rest else ("revision", "main")
        state = repository.at(revision)
        if state is None:
            return self._json({"error": "Revision not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
        commit, files = state
        if action == "revision":
            siblings = [{"rfilename": path, "size": len(data)} for path, data in files.items()]
            name = key.partition("/")[2]
            return self._json({"id": name, "sha": commit, "private": repository.private, "siblings": siblings})
        if action == "tree":
            return self._json([_entry(path, data) for path, data in files.items()])
        if action == "preupload":
            asked = json.loads(body)["files"]
            return self._json({"files": [_upload_mode(one["path"], files) for one in asked]})
        if action == "commit":
            return self._commit(key, repository, files, body)
        return self._json({"error": f"no action {action}"}, 500)

    def _commit(self, key: str, repository: Repository, files: dict[str, bytes], body: bytes) -> None:
        new = dict(files)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                assert value["encoding"] == "base64"
                new[value["path"]] = base64.b64decode(value["content"])
                self.hub.sent.append(value["path"])
            elif line["key"] == "lfsFile":
                new[value["path"]] = self.hub.objects[value["oid"]]
                self.hub.sent.append(value["path"])
            elif line["key"] == "deletedFile":
                del new[value["path"]]
        commit = hashlib.sha1(repr(sorted(new.items())).encode() + bytes([len(repository.states)])).hexdigest()
        repository.states.append((commit, new))
        path = key.removeprefix("models/")
        self._json({"commitUrl": f"{self.hub.url}/{path}/commit/{commit}", "commitOid": commit, "success": True})

    def _file(self, key: str, revision: str, path: str, method: str) -> None:
        repository = self._repository(key)
        if repository is None:
            return None
        state = repository.at(revision)
        if state is None or path not in state[1]:
            return self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        data = state[1][path]
        etag = hashlib.sha256(data).hexdigest() if path.endswith(LARGE) else blob_id(data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": state[0]}
        return self._send(200, data, headers, head=method == "HEAD")

    def _json(self, record: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        extra = {"Content-Type": "application/json", **(headers or {})}
        if isinstance(record, dict) and "error" in record:
            extra["X-Error-Message"] = str(record["error"])
        self._send(status, json.dumps(record).encode(), extra, head=self.command == "HEAD")

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None, *, head: bool = False) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not head:
            self.wfile.write(data)


def _entry(path: str, data: bytes) -> dict[str, Any]:
    lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return {
        "type": "file",
        "path": path,
        "size": len(data),
        "oid": blob_id(data),
        **({"lfs": lfs} if path.endswith(LARGE) else {}),
    }


def _upload_mode(path: str, files: dict[str, bytes]) -> dict[str, Any]:
    mode = "lfs" if path.endswith(LARGE) else "regular"
    oid = blob_id(files[path]) if path in files else None
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}
