"""A small stand-in for the Hub on the loopback address: as much of it as pushing and loading a model touch.

It keeps every commit, wants a token that may write, stores large files by their sha256 and asks for each once, and
checks the head of a page. What it cannot tell is how the real Hub differs.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml


USER, TOKEN = "tester", "hf_loopback"
FIRST_COMMIT = "0" * 40


class Refusal(Exception):
    """An answer other than 200: status, message, what the Hub's client tells cases apart by, and more to read."""

    def __init__(self, status: int, message: str, code: str = "", **more: str):
        super().__init__(message)
        self.status, self.code, self.content = status, code, {"error": message, **more}


@dataclass
class Repository:
    """Commits by their number, and the one that `main` is."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {FIRST_COMMIT: {".gitattributes": b""}})
    main: str = FIRST_COMMIT
    private: bool = False

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.main]

    def commit(self, files: dict[str, bytes]) -> str:
        digest = hashlib.sha1(self.main.encode())
        for name, data in sorted(files.items()):
            digest.update(f"{name} {hashlib.sha256(data).hexdigest()}".encode())
        self.main = digest.hexdigest()
        self.commits[self.main] = files
        return self.main


class LoopbackHub:
    """Repositories, stored large files, and what was asked.

    Attributes:
        requests (list of `str`): method and path, in order.
        refuse (callable, *optional*): (method, path) -> whether this request fails; for tests of broken pushes.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.refuse: Callable[[str, str], bool] = lambda method, path: False
        self.url = ""

    def find(self, name: str) -> Repository:
        if name not in self.repositories:
            raise Refusal(404, "no such repository", "RepoNotFound")
        return self.repositories[name]

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> dict | tuple[bytes, str]:
        """JSON, or a file's contents and its commit."""
        self.requests.append(f"{method} {path}")
        if self.refuse(method, path):
            raise Refusal(400, "refused by the test")
        for methods, pattern, name in ROUTES:
            if method in methods and (found := re.fullmatch(pattern, path)):
                # Places for large files are handed out to those that may write.
                if method == "POST":
                    self.check_token(token)
                return getattr(self, name)(*found.groups(), body=body)
        raise Refusal(404, f"no answer to {method} {path}")

    def check_token(self, token: str | None) -> None:
        if token != f"Bearer {TOKEN}":
            raise Refusal(401, "no such token")

    def create(self, body: bytes) -> dict:
        wanted = json.loads(body)
        owner = wanted.get("organization") or USER
        name = f"{owner}/{wanted['name']}"
        if owner != USER:
            raise Refusal(403, "not yours")
        if name in self.repositories:
            raise Refusal(409, "it is there already", url=f"{self.url}/{name}")
        self.repositories[name] = Repository(private=wanted.get("visibility") == "private")
        return {"url": f"{self.url}/{name}", "name": name, "id": name}

    def validate(self, body: bytes) -> dict:
        head = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], flags=re.DOTALL)
        data = None if head is None else yaml.safe_load(head[1])
        if not isinstance(data, dict):
            raise Refusal(400, "the head of the page is no mapping")
        return {"errors": [], "warnings": []}

    def announce(self, name: str, revision: str, body: bytes) -> dict:
        """How each file is to come: weights by their sha256, others inside the commit."""
        there = self.find(name).files
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": hash_blob(there[file["path"]], file["path"]) if file["path"] in there else None,
                }
                for file in json.loads(body)["files"]
            ]
        }

    def list_missing(self, name: str, body: bytes) -> dict:
        """Where to put large files; nothing for those that are stored."""
        self.find(name)
        objects = [{"oid": item["oid"], "size": item["size"]} for item in json.loads(body)["objects"]]
        for item in objects:
            if item["oid"] not in self.stored:
                item["actions"] = {"upload": {"href": f"{self.url}/large/{item['oid']}", "header": {}}}
        return {"transfer": "basic", "objects": objects}

    def store(self, oid: str, body: bytes) -> dict:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal(400, "another file than announced")
        self.stored[oid] = body
        return {}

    def commit(self, name: str, revision: str, body: bytes) -> dict:
        repository = self.find(name)
        files = dict(repository.files)
        for line in body.decode().splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header" and value.get("parentCommit") not in (None, repository.main):
                raise Refusal(412, "another commit came first")
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if operation["key"] == "lfsFile":
                files[value["path"]] = self.stored[value["oid"]]
            if operation["key"] == "deletedFile":
                del files[value["path"]]
        commit = repository.commit(files)
        return {"success": True, "commitOid": commit, "commitUrl": f"{self.url}/{name}/commit/{commit}"}

    def describe(self, name: str, revision: str | None, body: bytes) -> dict:
        repository = self.find(name)
        commit = repository.main if revision in (None, "main") else revision
        files = [{"rfilename": file} for file in repository.commits[commit]]
        return {
            "id": name,
            "modelId": name,
            "sha": commit,
            "private": repository.private,
            "tags": [],
            "siblings": files,
        }

    def list_tree(self, name: str, revision: str, body: bytes) -> list:
        return [{"type": "file", "path": file, "size": len(data), "oid": hash_blob(data, file)}
                for file, data in self.find(name).files.items()]  # fmt: skip

    def resolve(self, name: str, revision: str, file: str, body: bytes) -> tuple[bytes, str]:
        repository = self.find(name)
        commit = repository.main if revision == "main" else revision
        if file not in repository.commits.get(commit, {}):
            raise Refusal(404, "no such file", "EntryNotFound")
        return repository.commits[commit][file], commit


# Methods, path, and who answers.
REPOSITORY = r"([^/]+/[^/]+)"
ROUTES = (
    (("POST",), "/api/repos/create", "create"),
    (("POST",), "/api/validate-yaml", "validate"),
    (("POST",), rf"/api/models/{REPOSITORY}/preupload/(.+)", "announce"),
    (("POST",), rf"/{REPOSITORY}\.git/info/lfs/objects/batch", "list_missing"),
    (("PUT",), r"/large/(\w+)", "store"),
    (("POST",), rf"/api/models/{REPOSITORY}/commit/(.+)", "commit"),
    (("GET",), rf"/api/models/{REPOSITORY}/tree/([^/]+)", "list_tree"),
    (("GET",), rf"/api/models/{REPOSITORY}(?:/revision/(.+))?", "describe"),
    (("GET", "HEAD"), rf"/{REPOSITORY}/resolve/([^/]+)/(.+)", "resolve"),
)


def hash_blob(data: bytes, name: str) -> str:
    """What the Hub knows a file by: git's number, of large files the sha256."""
    if name.endswith(".safetensors"):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def make_handler(hub: LoopbackHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            """Nothing is printed."""

        def read_body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def serve(self):
            path, body = unquote(urlsplit(self.path).path), self.read_body()
            status, headers = 200, {"Content-Type": "application/json"}
            try:
                found = hub.answer(self.command, path, body, self.headers.get("Authorization"))
                data = json.dumps(found).encode() if isinstance(found, dict | list) else found[0]
                if isinstance(found, tuple):
                    tag = f'"{hash_blob(data, path)}"'
                    headers = {"ETag": tag, "X-Repo-Commit": found[1], "Accept-Ranges": "bytes"}
            except Refusal as refusal:
                status, data = refusal.status, json.dumps(refusal.content).encode()
                headers |= {"X-Error-Code": refusal.code} if refusal.code else {}
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = do_PUT = serve

    return Handler


@contextmanager
def serve_hub() -> Iterator[LoopbackHub]:
    """A hub at `hub.url` until the block is left."""
    hub = LoopbackHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
