"""Requests to a server of the OpenAI API, by the standard library.

Beyond the API itself: vLLM's /tokenize, prompt_logprobs and return_token_ids, and llama.cpp's
/apply-template and /tokenize, each where the server has it.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from lorafit.errors import UserError

_GREEDY = {"temperature": 0, "seed": 0}
# Servers that know more than the API are asked for more; those that refuse it are asked without.
_MORE = {"repetition_penalty": 1.0, "return_token_ids": True}
_LOCAL = {"localhost", "127.0.0.1", "::1"}


class Refused(Exception):
    """The server answered that it does not do what was asked."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


@dataclass(frozen=True)
class Served:
    """A model that a server offers. parent: the base that an adapter is on, where it says so."""

    name: str
    parent: str | None


@dataclass(frozen=True)
class Reply:
    """An answer. ids and prompt_ids: tokens, where the server gives them; prompt_tokens: how many
    it counted in the prompt."""

    text: str
    ids: list[int] | None
    prompt_ids: list[int] | None
    prompt_tokens: int | None


@dataclass(frozen=True)
class BuiltPrompt:
    """What a server makes of messages. ids: its tokens, None where it tells their number alone;
    evidence: how that is known."""

    evidence: str
    ids: list[int] | None
    tokens: int


class Endpoint:
    """A server. `url` with or without /v1; `key` is sent as a bearer token.

    Every method raises UserError when nothing answers and Refused when the server declines.
    """

    def __init__(self, url: str, key: str | None, timeout_s: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError("is no address of a server", f"--endpoint {url}",
                            "for example --endpoint http://localhost:8000")
        self.url = url.rstrip("/").removesuffix("/v1").rstrip("/")
        self._key, self._timeout_s = key, timeout_s
        # A proxy does not reach this machine's own servers.
        proxies = urllib.request.ProxyHandler({} if parts.hostname in _LOCAL else None)
        self._opener = urllib.request.build_opener(proxies)

    def models(self) -> list[Served]:
        """What the server offers."""
        try:
            listed = self._get("/v1/models")
        except Refused as refused:
            raise UserError(f"does not list its models ({refused})", self.url + "/v1/models",
                            "name a server of the OpenAI API") from None
        try:
            return [Served(str(each["id"]), each.get("parent")) for each in listed["data"]]
        except (KeyError, TypeError):
            raise self._no_api("/v1/models") from None

    def complete(self, model: str, ids: Sequence[int], max_tokens: int) -> Reply:
        """The greedy continuation of a prompt that is given as token ids."""
        return self._reply("/v1/completions", {
            "model": model, "prompt": list(ids), "max_tokens": max_tokens},
            lambda choice: choice["text"])

    def chat(self, model: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]],
             max_tokens: int) -> Reply:
        """The greedy answer to messages, whose prompt the server builds."""
        body = {"model": model, "messages": messages, "max_tokens": max_tokens}
        return self._reply("/v1/chat/completions", body | ({"tools": tools} if tools else {}),
                           lambda choice: choice["message"].get("content") or "")

    def built_prompt(self, model: str, messages: list[dict[str, Any]],
                     tools: list[dict[str, Any]], reply: Reply | None) -> BuiltPrompt | None:
        """The prompt that the server builds of messages, by the best evidence that there is.

        `reply` is its answer in chat to the same messages. None where nothing tells.
        """
        if reply is not None and reply.prompt_ids is not None:
            return BuiltPrompt("prompt_token_ids of the answer", reply.prompt_ids,
                               len(reply.prompt_ids))
        more = {"tools": tools} if tools else {}
        try:
            ids = _ids(self._post("/tokenize", {"model": model, "messages": messages,
                                                "add_generation_prompt": True, **more}))
            if ids:  # llama.cpp has a /tokenize that takes no messages
                return BuiltPrompt("/tokenize", ids, len(ids))
        except Refused:
            pass
        try:
            text = self._post("/apply-template", {"messages": messages, **more})["prompt"]
            ids = _ids(self._post("/tokenize", {"content": text, "add_special": True,
                                                "parse_special": True}))
            if ids:
                return BuiltPrompt("/apply-template and /tokenize", ids, len(ids))
        except (Refused, KeyError, TypeError):
            pass
        if reply is not None and reply.prompt_tokens is not None:
            return BuiltPrompt("usage.prompt_tokens, a count alone: weak evidence", None,
                               reply.prompt_tokens)
        return None

    def logprobs(self, model: str, ids: Sequence[int]) -> list[float] | None:
        """The log-probability of each token after the first, in nats; None where the server does
        not tell (prompt_logprobs is vLLM's)."""
        try:
            values = self._post("/v1/completions", {
                "model": model, "prompt": list(ids), "max_tokens": 1, "prompt_logprobs": 0,
                **_GREEDY})
            told = values["choices"][0]["prompt_logprobs"]
            return [float(each[str(token)]["logprob"])
                    for each, token in zip(told[1:], ids[1:], strict=True)]
        except (Refused, KeyError, IndexError, TypeError, ValueError):
            return None

    def _reply(self, path: str, body: dict[str, Any], text_of: Any) -> Reply:
        try:
            values = self._post(path, body | _GREEDY | _MORE)
        except Refused as refused:
            if refused.status not in (400, 422):
                raise
            values = self._post(path, body | _GREEDY)
        try:
            choice = values["choices"][0]
            usage = values.get("usage") or {}
            return Reply(
                str(text_of(choice)), choice.get("token_ids"),
                values.get("prompt_token_ids") or choice.get("prompt_token_ids"),
                usage.get("prompt_tokens"))
        except (KeyError, IndexError, TypeError, AttributeError):
            raise self._no_api(path) from None

    def _get(self, path: str) -> Any:
        return self._send(urllib.request.Request(self.url + path))

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._send(urllib.request.Request(
            self.url + path, data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"}))

    def _send(self, request: urllib.request.Request) -> Any:
        if self._key:
            request.add_header("Authorization", f"Bearer {self._key}")
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise UserError(f"refuses access ({error.code})", self.url,
                                "name the environment variable that holds the key: "
                                "--api-key-env NAME") from None
            raise Refused(error.code, _message(error)) from None
        except TimeoutError:
            raise self._silent() from None
        except (urllib.error.URLError, OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise self._silent() from None
            raise UserError(f"nothing answers there ({_words(reason)})", self.url,
                            "start the server, or correct --endpoint") from None
        except ValueError:
            raise self._no_api(urlsplit(request.full_url).path) from None

    def _silent(self) -> UserError:
        return UserError(f"does not answer within {self._timeout_s:g} s", self.url,
                         "look whether it is still loading, or give it more time: --timeout-s 300")

    def _no_api(self, path: str) -> UserError:
        return UserError("answers otherwise than the OpenAI API", self.url + path,
                         "name a server of that API, such as vLLM, SGLang or llama.cpp's")


def _ids(values: Any) -> list[int]:
    tokens = values.get("tokens") if isinstance(values, dict) else None
    return [int(token) for token in tokens] if isinstance(tokens, list) else []


def _message(error: urllib.error.HTTPError) -> str:
    """What a server says is wrong, in one line."""
    text = error.read(4096).decode("utf-8", "replace").strip()
    try:
        values = json.loads(text)
        found = values.get("message") or values["error"]
        text = str(found.get("message") if isinstance(found, dict) else found)
    except (ValueError, KeyError, AttributeError):
        pass
    return (text.splitlines() or [str(error.reason)])[0][:300]


def _words(reason: Any) -> str:
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return str(text)[:1].lower() + str(text)[1:]
