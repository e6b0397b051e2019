"""The HTTP side of the small server: OpenAI's API, and vLLM's additions for adapters and tokens."""

import hmac
import ipaddress
import json
import select
import socket
import sys
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lorafit import __version__
from lorafit.errors import UserError
from lorafit.serve.trial import requests
from lorafit.serve.trial.models import Entry, Models
from lorafit.serve.trial.replies import Form, Reply
from lorafit.serve.trial.requests import Model, Refused
from lorafit.serve.trial.sampling import Wanted
from lorafit.serve.trial.worker import Replies

BODY_BYTES = 4 * 2**20  # of a request at most
_IDLE_S = 60.0  # how long a connection may say nothing in the middle of a request
_LOOK_S = 0.2  # how often it is looked whether a client is still there

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error",
          500: "server_error"}


class TrialServer(ThreadingHTTPServer):
    """A server that has its port, and answers once it is given its models.

    api_key: what clients must bring; None for nothing. may_load: whether clients may load
    adapters from this machine's files. UserError when the address cannot be had.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, api_key: str | None) -> None:
        self.models: Models
        self.api_key = api_key
        self.may_load = is_local(host) or api_key is not None
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), _Handler, bind_and_activate=False)
            self.server_bind()
        except (OSError, OverflowError) as error:
            raise UserError(
                f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}",
                "--host and --port", "choose another port, or 0 for any that is free") from None

    @property
    def url(self) -> str:
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def run(self, models: Models, ready: Callable[[], None]) -> None:
        """Answer until the process is interrupted; `ready` is called when clients can connect."""
        self.models = models
        try:
            self.server_activate()
            ready()
            self.serve_forever(poll_interval=0.1)
        finally:
            self.server_close()
            models.worker.stop()

    def server_bind(self) -> None:
        # Without HTTPServer's look-up of the host's full name, which can take seconds.
        socket.socket.setsockopt(self.socket, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no news; anything else is a bug that should be seen."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: TrialServer
    protocol_version = "HTTP/1.1"
    server_version = f"lorafit/{__version__}"
    timeout = _IDLE_S
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._dispatch({
            "/health": lambda _: self._send({"status": "ok"}),
            "/version": lambda _: self._send({"version": f"lorafit {__version__}"}),
            "/v1/models": lambda _: self._send(
                {"object": "list", "data": [self._model(name, entry) for name, entry in
                                            self.server.models.entries().items()]}),
        })

    def do_POST(self) -> None:
        self._dispatch({
            "/v1/chat/completions": self._chat, "/v1/completions": self._completions,
            "/tokenize": self._tokenize, "/detokenize": self._detokenize,
            "/v1/load_lora_adapter": self._load, "/v1/unload_lora_adapter": self._unload,
        })

    def _dispatch(self, routes: dict[str, Callable[[Any], None]]) -> None:
        path = urlsplit(self.path).path.rstrip("/") or "/"
        self._streaming = False
        self._looked_s = time.monotonic()
        try:
            body = self._body() if self.command == "POST" else None
            self._check_key(path)
            if self.command == "GET" and path.startswith("/v1/models/"):
                self._one_model(unquote(path.removeprefix("/v1/models/")))
            elif path not in routes:
                raise Refused(f"there is no {self.command} {path}", 404)
            else:
                routes[path](body)
        except Refused as refused:
            self._refuse(refused)
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def _body(self) -> Any:
        """The JSON of a request."""
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            length = -1
        if length < 0:
            self.close_connection = True
            raise Refused("the request has no Content-Length", 411)
        if length > BODY_BYTES:
            self._pass_over(length)
            raise Refused(f"the request has {length} bytes; {BODY_BYTES} are taken at most", 413)
        data = self.rfile.read(length)
        # A web page can send anything else to this machine without being asked.
        if self.headers.get_content_type() != "application/json":
            raise Refused("only Content-Type: application/json is read", 415)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Refused(f"the body is not JSON: {error}") from None

    def _pass_over(self, length: int) -> None:
        """Read what will not be used, so that the client gets to see why; not without end."""
        self.close_connection = True
        left = min(length, 16 * BODY_BYTES)
        while left and (data := self.rfile.read(min(left, 2**16))):
            left -= len(data)

    def _check_key(self, path: str) -> None:
        key = self.server.api_key
        if key is None or path == "/health":
            return
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), key.encode()):
            raise Refused("no or a wrong API key: send Authorization: Bearer KEY", 401)

    def _chat(self, body: Any) -> None:
        form = requests.read(requests.ChatForm, body)
        model = self.server.models.find(form.model)
        self._answer(form, model,
                     [requests.wanted_by_chat(form, model, self.server.models.defaults)])

    def _completions(self, body: Any) -> None:
        form = requests.read(requests.CompletionForm, body)
        model = self.server.models.find(form.model)
        self._answer(form, model,
                     requests.wanted_by_completion(form, model, self.server.models.defaults))

    def _answer(self, form: Form, model: Model, wanted: Sequence[Wanted]) -> None:
        started_s = time.perf_counter()
        replies = self.server.models.worker.submit(wanted)
        reply = Reply(form, model, wanted)
        try:
            (self._stream if form.stream else self._gather)(reply, replies)
        except BaseException:
            replies.cancel()
            raise
        usage = reply.usage()
        self._log(f"{form.model}: {usage['prompt_tokens']} + {usage['completion_tokens']} tokens "
                  f"in {time.perf_counter() - started_s:.2f} s")

    def _gather(self, reply: Reply, replies: Replies) -> None:
        while replies.open:
            if (event := self._next(replies)) is not None:
                reply.add(*event)
        self._send(reply.whole())

    def _stream(self, reply: Reply, replies: Replies) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._streaming = True
        while replies.open:
            if (event := self._next(replies)) is not None:
                reply.add(*event)
                for chunk in reply.chunks(*event):
                    self._event(json.dumps(chunk, ensure_ascii=False))
        if (last := reply.last_chunk()) is not None:
            self._event(json.dumps(last))
        self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _next(self, replies: Replies) -> Any:
        """The next event; ConnectionError when nobody waits for it any more."""
        event = replies.next(_LOOK_S)
        now_s = time.monotonic()
        if now_s - self._looked_s >= _LOOK_S:
            self._looked_s = now_s
            if self._has_gone():
                raise ConnectionAbortedError
        return event

    def _has_gone(self) -> bool:
        if not select.select([self.connection], [], [], 0)[0]:
            return False
        try:
            return self.connection.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            return True

    def _event(self, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))

    def _tokenize(self, body: Any) -> None:
        form = requests.read(requests.TokenizeForm, body)
        model = self.server.models.find(form.model)
        ids = requests.tokenised(form, model)
        said: dict[str, Any] = {"count": len(ids), "max_model_len": model.limit_tokens,
                                "tokens": ids, "token_strs": None}
        if form.return_token_strs:
            said["token_strs"] = model.prompts.tokenizer.convert_ids_to_tokens(ids)
        self._send(said)

    def _detokenize(self, body: Any) -> None:
        form = requests.read(requests.DetokenizeForm, body)
        model = self.server.models.find(form.model)
        if not all(0 <= token < model.vocabulary for token in form.tokens):
            raise Refused(f"token ids go from 0 to {model.vocabulary - 1}")
        self._send({"prompt": model.prompts.decode(form.tokens)})

    def _load(self, body: Any) -> None:
        form = requests.read(requests.LoadForm, body)
        self._check_loading()
        self.server.models.load(form.lora_name, Path(form.lora_path), form.load_inplace)
        self._log(f"loaded {form.lora_name} from {form.lora_path}")
        self._send_text(f"Success: LoRA adapter '{form.lora_name}' added successfully.")

    def _unload(self, body: Any) -> None:
        form = requests.read(requests.UnloadForm, body)
        self._check_loading()
        self.server.models.unload(form.lora_name)
        self._log(f"unloaded {form.lora_name}")
        self._send_text(f"Success: LoRA adapter '{form.lora_name}' removed successfully.")

    def _check_loading(self) -> None:
        if not self.server.may_load:
            raise Refused("adapters are loaded for clients of this machine, or with an API key "
                          "(--api-key-env)", 403)

    def _one_model(self, name: str) -> None:
        self.server.models.find(name)
        self._send(self._model(name, self.server.models.entries()[name]))

    def _model(self, name: str, entry: Entry) -> dict[str, Any]:
        lineup = self.server.models
        is_base = entry.source is None
        return {
            "id": name, "object": "model", "created": entry.since_s, "owned_by": "lorafit",
            "root": name if entry.source is None else str(entry.source.directory),
            "parent": None if is_base else lineup.base_name,
            "max_model_len": entry.model.limit_tokens,
        }

    def _refuse(self, refused: Refused) -> None:
        body = {"error": {"message": refused.message, "param": None,
                          "type": _TYPES.get(refused.status, "invalid_request_error"),
                          "code": refused.code or refused.status}}
        self._log(f"{refused.status} {self.command} {self.path}: {refused.message}")
        if self._streaming:  # the status has gone out
            self._event(json.dumps(body))
            self.wfile.write(b"0\r\n\r\n")
            return
        self._send(body, refused.status)

    def _send(self, body: Any, status: int = 200) -> None:
        self._send_bytes(json.dumps(body, ensure_ascii=False).encode("utf-8", "backslashreplace"),
                         "application/json", status)

    def _send_text(self, text: str) -> None:
        self._send_bytes(text.encode(), "text/plain; charset=utf-8", 200)

    def _send_bytes(self, data: bytes, kind: str, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *values: Any) -> None:
        """The lines of `_log` say more."""

    def _log(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
