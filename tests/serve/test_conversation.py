"""A conversation through pipes: with runs, and with a server."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import KEY, QUESTION, Server


def talk(*arguments: str, said: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lorafit", "chat", *arguments], input=said, text=True,
        capture_output=True, timeout=240, env={**os.environ, **environment})


@pytest.mark.long
def test_a_conversation_with_base_and_adapters(
    run_of: Any, generated: Any, tmp_path: Path,
) -> None:
    saved = tmp_path / "talk.jsonl"
    done = talk(str(run_of("plain")), said="\n".join([
        QUESTION, "/undo", "/with both", QUESTION, f"/save {saved}", "/reset",
        "/with base", QUESTION, "/reset",
        f"/add second={run_of('other')}", QUESTION, "/retry", "/reset",
        '"""How much is', '3 and 3?"""', "/set max_tokens 2", "/tokens Hi",
        f"/load {saved}", "/models", "/quit", "never read"]))
    assert done.returncode == 0, done.stderr
    plain, base, second = generated("plain"), generated("plain", base=True), generated("other")
    lines = done.stdout.splitlines()
    assert lines[0] == plain
    assert lines[2:5] == ["tiny and plain will answer", f"tiny: {base}", f"plain: {plain}"]
    assert lines[7:9] == ["tiny will answer", base]
    assert lines[10:13] == ["second is loaded and will answer", second, second]
    assert lines[14] == generated("other", "How much is\n3 and 3?")
    tokens = [line for line in lines if line.startswith("     ")]
    assert "'<|user|>'" in tokens[0]
    assert lines[-3:] == ["  tiny (base)", "  plain", "* second"]
    assert "never read" not in done.stdout
    rows = [json.loads(line) for line in saved.read_text().splitlines()]
    assert [row["model"] for row in rows] == ["tiny", "plain"]
    assert rows[1]["messages"] == [{"role": "user", "content": QUESTION},
                                   {"role": "assistant", "content": plain}]
    assert "\x1b" not in done.stdout


def test_a_conversation_with_a_server(server: Server, run_of: Any, generated: Any) -> None:
    done = talk("--endpoint", server.url, "--model", "plain", "--api-key-env", "A_KEY",
                A_KEY=KEY, said="\n".join([
        QUESTION, "/reset", "/with base,second", QUESTION, "/reset", "/use plain",
        "/set temperature much", "/nonsense", "/with nobody", "/set stop is", QUESTION,
        "/tokens Hi"]), HTTP_PROXY="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9")
    lines = done.stdout.splitlines()
    assert lines[0] == generated("plain"), done.stderr
    assert lines[3:5] == [f"tiny: {generated('plain', base=True)}",
                          f"second: {generated('other')}"]
    assert lines[8] == generated("plain").split("is")[0]
    assert "'<|user|>'" in done.stdout
    # What could not be done is told beside the answers, and by the exit code.
    assert done.returncode == 2
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error"] * 3
    assert "there are base, adapter, both, tiny" in done.stderr


def test_a_server_that_is_not_there() -> None:
    done = talk("--endpoint", "http://127.0.0.1:9/v1", said="Hi")
    assert done.returncode == 2
    assert "Connection refused" in done.stderr
    assert "Traceback" not in done.stderr
    assert talk(said="").returncode == 2
