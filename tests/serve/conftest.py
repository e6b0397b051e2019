"""A server process with adapters that were trained, and a client that shows what came back."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.export.conftest import run_of  # noqa: F401

QUESTION = "How much is 7 and 7?"
KEY = "a secret"
WITH_KEY = {"Authorization": f"Bearer {KEY}"}
JSON = {"Content-Type": "application/json", **WITH_KEY}


class Server:
    """A `lorafit serve` process, and requests to it."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "lorafit", "serve", *arguments, "--port", "0",
             "--api-key-env", "THE_KEY"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "THE_KEY": KEY})
        self.log: list[str] = []
        threading.Thread(target=self._read_log, daemon=True).start()
        self.said: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith("serving"):
                self.url = line.split()[1]
                self.port = int(self.url.rsplit(":", 1)[1].removesuffix("/v1"))
                break
        else:
            raise AssertionError("".join(self.said) + "".join(self.log))
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        self.log += iter(self.process.stderr.readline, "")

    def send(self, method: str, path: str, body: Any = None,
             headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Status and body, read as JSON where it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data,
                           JSON if headers is None else headers)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        kind = response.headers.get_content_type()
        return response.status, json.loads(text) if kind == "application/json" else text

    def post(self, path: str, **body: Any) -> Any:
        status, answer = self.send("POST", path, body)
        assert status == 200, answer
        return answer

    def chat(self, model: str, said: str = QUESTION, **body: Any) -> Any:
        """The choice of an answer; greedy unless asked otherwise."""
        return self.post("/v1/chat/completions", **{
            "model": model, "messages": [{"role": "user", "content": said}], "temperature": 0,
            "max_tokens": 24, "return_token_ids": True, **body})["choices"][0]

    def stream(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The chunks of a streamed answer."""
        status, text = self.send("POST", path, {**body, "stream": True})
        assert status == 200, text
        events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        assert events[-1] == "[DONE]"
        return [json.loads(event) for event in events[:-1]]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=30)


@pytest.fixture(scope="session")
def server(run_of: Any) -> Iterator[Server]:  # noqa: F811
    """The base with adapters that share batches, and some that cannot."""
    it = Server(str(run_of("plain")), f"second={run_of('other')}", str(run_of("rslora")),
                str(run_of("dora")))
    yield it
    assert it.stop() == 130
    assert "Traceback" not in "".join(it.log)
    assert any("for trying, not for production" in line for line in it.said)


@pytest.fixture(scope="session")
def generated(run_of: Any) -> Any:  # noqa: F811
    """What transformers' own generate answers with a run, the prompt alone in its batch."""
    from lorafit.data.examples import Exchange
    from lorafit.data.pipeline import make_renderer
    from lorafit.model.adapters.files import load_adapter
    from lorafit.model.base import load_for_inference
    from lorafit.model.generate import Sampling, answer
    from lorafit.model.trained import open_adapter

    models: dict[str, Any] = {}

    def text(run: str, said: str = QUESTION, tokens: int = 24, base: bool = False) -> str:
        source = open_adapter(Path(run_of(run)))
        tokenizer = source.tokenizer()
        assert source.data is not None
        key = "base" if base else run
        if key not in models:
            model = load_for_inference(source.model)
            models[key] = model if base else load_adapter(model, source.directory)
        prompt, _ = make_renderer(source.data, tokenizer).prompt(Exchange(said, "-"))
        return answer(models[key], tokenizer, [prompt], Sampling(tokens), is_chat=True)[0]

    return text
