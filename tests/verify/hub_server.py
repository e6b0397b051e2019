"""The minimum of the hub's API: who is asking, repositories, and commits of regular files."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

TOKEN = "hf_" + "a" * 34


class FakeHub:
    """repos: for each its visibility and files. spoil: a file that is stored wrongly. requests:
    what was asked: method, path and user agent."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.spoil = ""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.serve(b"")

            def do_POST(self) -> None:
                length = self.headers.get("Content-Length")
                if length is not None:
                    body = self.rfile.read(int(length))
                else:
                    body = b""
                    while size := int(self.rfile.readline(), 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                self.serve(body)

            def serve(self, body: bytes) -> None:
                hub.requests.append((self.command, self.path, self.headers.get("User-Agent", "")))
                status, value = hub.answer(self.path.partition("?")[0], body,
                                           self.headers.get("Authorization"))
                data = json.dumps(value).encode()
                self.send_response(status)
                if status == 404:
                    self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, path: str, body: bytes, token: str | None) -> tuple[int, Any]:
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials"}
        if path == "/api/whoami-v2":
            return 200, {"name": "me", "type": "user", "orgs": []}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            private = asked.get("visibility") == "private" or asked.get("private", False)
            self.repos[name] = {"private": private, "files": {}}
            return 200, {"url": f"{self.url}/{name}", "name": name}
        name, _, rest = path.removeprefix("/api/models/").partition("/")
        end, _, rest = rest.partition("/")
        repo = self.repos.get(name := f"{name}/{end}")
        if repo is None:
            return 404, {"error": "Repository not found"}
        if rest.startswith("preupload/"):
            return 200, {"files": [{"path": file["path"], "uploadMode": "regular",
                                    "shouldIgnore": False, "oid": None}
                                   for file in json.loads(body)["files"]]}
        if rest.startswith("commit/"):
            for line in body.decode().splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    content = base64.b64decode(item["value"]["content"])
                    if item["value"]["path"] == self.spoil:
                        content += b"?"
                    repo["files"][item["value"]["path"]] = content
            return 200, {"commitUrl": f"{self.url}/{name}/commit/{'0' * 40}",
                         "commitOid": "0" * 40, "hookOutput": ""}
        if rest.startswith("paths-info/"):
            asked = parse_qs(body.decode())["paths"]
            return 200, [{"type": "file", "path": file, "size": len(repo["files"][file]),
                          "oid": git_blob(repo["files"][file])}
                         for file in asked if file in repo["files"]]
        return 200, {"id": name, "private": repo["private"], "sha": "0" * 40, "siblings": [
            {"rfilename": file} for file in repo["files"]], "tags": [], "downloads": 0}


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
