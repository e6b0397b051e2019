"""Speakers behind OpenAI's API."""

import http.client
import ipaddress
import json
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lorafit.serve.chat.speakers import Ended, Event, Messages, Settings, Trouble
from lorafit.serve.names import split_name

_CONNECT_S = 10.0
_ANSWER_S = 600.0  # the longest silence of a server that computes


class Endpoint:
    """Models of a server with OpenAI's API. `url` ends with the version, as in http://…/v1."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json", "User-Agent": "lorafit"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        # A proxy that is meant for the world does not know this machine.
        local = [urllib.request.ProxyHandler({})] if _is_local(self._url) else []
        self._opener = urllib.request.build_opener(*local)
        self._parents: dict[str, str | None] = {}
        self.names()

    @property
    def base(self) -> str | None:
        """The model that others name as theirs; servers other than vLLM's kind do not say."""
        parents = {parent for parent in self._parents.values() if parent}
        return next(iter(parents)) if len(parents) == 1 else None

    def names(self) -> list[str]:
        listed = self._json("GET", "/models").get("data", [])
        self._parents = {str(each["id"]): each.get("parent") for each in listed}
        return sorted(self._parents, key=lambda name: self._parents[name] is not None)

    def ask(self, asked: Sequence[tuple[str, Messages]], settings: Settings) -> Iterator[Event]:
        events: queue.SimpleQueue[tuple[int, str | Ended | Exception]] = queue.SimpleQueue()
        stopped = threading.Event()
        for index, (name, messages) in enumerate(asked):
            body = {"model": name, "messages": messages, "stream": True, **settings}
            threading.Thread(target=self._stream, args=(index, body, events, stopped),
                             daemon=True).start()
        open_ = len(asked)
        try:
            while open_:
                index, event = events.get()
                if isinstance(event, Exception):
                    raise event
                open_ -= isinstance(event, Ended)
                yield index, event
        finally:
            stopped.set()

    def tokens(self, name: str, messages: Messages) -> list[tuple[int, str]]:
        root = self._url.removesuffix("/v1")
        try:
            said = self._json("POST", "/tokenize", {
                "model": name, "messages": messages, "return_token_strs": True}, root)
        except Trouble as trouble:
            raise Trouble(f"the server does not show its tokens: {trouble}") from None
        return list(zip(said["tokens"], said.get("token_strs") or [""] * len(said["tokens"]),
                        strict=True))

    def add(self, text: str) -> str:
        name, path = split_name(text)
        directory = path / "adapter" if (path / "adapter").is_dir() else path
        self._request("POST", "/load_lora_adapter", {
            "lora_name": name, "lora_path": str(Path(directory).absolute())}).close()
        return name

    def _stream(self, index: int, body: dict[str, Any], events: Any,
                stopped: threading.Event) -> None:
        """Read one answer; the connection is closed when nobody wants it any more."""
        reason, is_whole = "stop", False
        try:
            with self._request("POST", "/chat/completions", body) as response:
                for line in response:
                    if stopped.is_set():
                        return
                    data = line.decode("utf-8", "replace").strip().removeprefix("data:").strip()
                    if not line.startswith(b"data:"):
                        continue
                    if data == "[DONE]":
                        is_whole = True
                        continue
                    chunk = json.loads(data)
                    if "error" in chunk:
                        raise Trouble(str(_message(chunk)))
                    for choice in chunk.get("choices", []):
                        if text := (choice.get("delta") or {}).get("content"):
                            events.put((index, text))
                        if choice.get("finish_reason"):
                            reason, is_whole = choice["finish_reason"], True
            if not is_whole:
                raise Trouble(f"{self._url}: the answer broke off")
            events.put((index, Ended(reason)))
        except Trouble as trouble:
            events.put((index, trouble))
        except (OSError, ValueError, http.client.HTTPException) as error:
            events.put((index, Trouble(f"{self._url}: {error}")))

    def _json(self, method: str, path: str, body: Any = None, root: str | None = None) -> Any:
        with self._request(method, path, body, root) as response:
            try:
                return json.loads(response.read())
            except ValueError:
                raise Trouble(f"{self._url}{path}: the answer is not JSON") from None

    def _request(self, method: str, path: str, body: Any = None, root: str | None = None) -> Any:
        """An open response. Trouble with the server's own words when it refuses."""
        url = (root if root is not None else self._url) + path
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, self._headers, method=method)
        try:
            return self._opener.open(request, timeout=_CONNECT_S if data is None else _ANSWER_S)
        except urllib.error.HTTPError as error:
            with error:
                raise Trouble(f"{url}: {error.code}: {_refusal(error.read())}") from None
        except urllib.error.URLError as error:
            raise Trouble(f"{url}: {error.reason}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise Trouble(f"{url}: {error}") from None


def _refusal(data: bytes) -> str:
    text = data.decode("utf-8", "replace")
    try:
        return str(_message(json.loads(text)) or text)
    except ValueError:
        return text.strip()[:500]


def _message(body: Any) -> Any:
    """OpenAI's `error.message`, or what stands where it should."""
    error = body.get("error", body) if isinstance(body, dict) else body
    return error.get("message") or error.get("detail") if isinstance(error, dict) else error


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
