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


class MovingHub:
    """Reads only: repositories whose branch `main` moves on to the next commit each time that
    somebody asks for it. commits: for each repository its commits, oldest first: id and files.
    requests: method and path of what was asked. sent_bytes: of files."""

    def __init__(self) -> None:
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.asked: dict[str, int] = {}
        self.requests: list[tuple[str, str]] = []
        self.sent_bytes = 0
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                self.serve()

            def do_GET(self) -> None:
                self.serve()

            def serve(self) -> None:
                path = self.path.partition("?")[0]
                hub.requests.append((self.command, path))
                status, headers, body = hub.answer(path)
                if status == 200 and (asked := self.headers.get("Range")):
                    first, last = asked.removeprefix("bytes=").split("-")
                    headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
                    status, body = 206, body[int(first):int(last) + 1]
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)
                    hub.sent_bytes += 0 if path.startswith("/api/") else len(body)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if path.startswith("/api/"):
            _, owner, name, *rest = path.removeprefix("/api/").split("/")
            repo = f"{owner}/{name}"
            found = self._at(repo, rest[1] if rest[:1] in (["revision"], ["tree"]) else "main")
            if found is None:
                return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
            commit, files = found
            said: Any = [{"type": "file", "path": file, "size": len(content),
                          "oid": git_blob(content)} for file, content in files.items()]
            if rest[:1] != ["tree"]:
                said = {"id": repo, "sha": commit, "private": False, "tags": [],
                        "downloads": 0, "siblings": [{"rfilename": file} for file in files]}
            return 200, {"Content-Type": "application/json"}, json.dumps(said).encode()
        owner, name, _, revision, *rest = path.strip("/").split("/")
        found = self._at(f"{owner}/{name}", revision)
        if found is None or "/".join(rest) not in found[1]:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        commit, files = found
        content = files["/".join(rest)]
        return 200, {"ETag": f'"{git_blob(content)}"', "X-Repo-Commit": commit}, content

    def _at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.commits.get(repo)
        if commits is None:
            return None
        if revision != "main":
            return next((found for found in commits if found[0] == revision), None)
        number = self.asked[repo] = self.asked.get(repo, -1) + 1
        return commits[min(number, len(commits) - 1)]
