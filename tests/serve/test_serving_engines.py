"""Starting an engine: a stand-in on PATH shows what a real one would be given."""

from pathlib import Path
from typing import Any

import pytest

from lorafit.cli import main as cli

# Where the engine itself is at hand, docs/serve.md says what it answered.
_STAND_IN = """#!/bin/sh
printf '%s\\n' "$@" > "$SEEN"
echo "key $VLLM_API_KEY" >> "$SEEN"
ls "$WORK/plain" >> "$SEEN"
exit 7
"""


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`lorafit serve` in this process, with a program called vllm; its exit code."""
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(_STAND_IN)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    for name, value in (("SEEN", tmp_path / "seen"), ("WORK", tmp_path / "work")):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("THE_KEY", "a secret")

    def run(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["lorafit", "serve", *arguments])
        return cli._run()

    return run


def test_an_engine_is_given_checked_adapters_and_the_template(
    serve: Any, run_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    command = [str(run_of("plain")), f"second={run_of('rslora')}", "--engine", "vllm", "--work",
               str(tmp_path / "work"), "--api-key-env", "THE_KEY", "--", "--seed", "3"]
    assert serve(*command[:-3], "--dry-run", *command[-3:]) == 0
    dry = capsys.readouterr().out
    assert not (tmp_path / "work").exists()
    assert serve(*command) == 7, "the engine's own exit code"
    first = capsys.readouterr().out
    assert "a secret" not in dry + first
    arguments = (tmp_path / "seen").read_text().splitlines()
    shown = next(line for line in dry.splitlines() if line.startswith("command"))
    assert all(word in shown for word in arguments if word.startswith("--"))
    at = arguments.index("--lora-modules")
    assert arguments[at + 1 : at + 5] == [
        f"plain={tmp_path / 'work' / 'plain'}", f"second={tmp_path / 'work' / 'second'}",
        "--seed", "3"]
    assert arguments[arguments.index("--max-lora-rank") + 1] == "8"
    assert "key a secret" in arguments
    assert "adapter_model.safetensors" in arguments
    template = Path(arguments[arguments.index("--chat-template") + 1])
    assert "<|assistant|>" in template.read_text()
    assert serve(*command) == 7
    again = capsys.readouterr().out
    assert again.count("reused") == 2
    assert "exporting" not in again


def test_what_an_engine_cannot_serve_is_refused_before_anything_is_written(
    serve: Any, run_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    assert serve(str(run_of("plain")), str(run_of("dora")), "--engine", "vllm", "--work",
                 str(tmp_path / "work")) == 2
    said = capsys.readouterr().err
    assert "dora" in said
    assert "DoRA" in said
    assert "--engine transformers" in said
    assert not (tmp_path / "work").exists()
    assert serve(str(run_of("plain")), "--engine", "sglang") == 2
    assert "sglang is not here" in capsys.readouterr().err
    assert serve(str(run_of("plain")), "--engine", "transformers", "--", "--seed", "3") == 2
    assert serve("--engine", "transformers", "--", str(run_of("plain"))) == 2
    assert serve(str(run_of("plain")), "--api-key-env", "NOT_SET") == 2
    assert "NOT_SET" in capsys.readouterr().err
    assert serve(str(tmp_path / "nothing")) == 2
