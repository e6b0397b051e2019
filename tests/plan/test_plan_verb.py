"""`lorafit plan` as a process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_bad_input import RECIPE, REPOSITORY, ROWS

# Whoever imports torch fails.
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from lorafit.cli.main import main; main()"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "plan", *arguments], cwd=folder, text=True,
        capture_output=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "LORAFIT_CACHE": str(folder / "cache")})


def test_all_of_it_is_told_without_torch(folder):
    done = run(folder, "r.yaml")
    assert done.returncode == 0, done.stderr
    said = {line.split()[0] for line in done.stdout.splitlines() if line[:1].isalpha()}
    assert {"base", "machine", "trained", "rows", "steps", "capacity"} <= said
    assert not (folder / "out").exists()


def test_json_for_scripts(folder):
    done = run(folder, "r.yaml", "--json", "--set", "adapter.rank=2", "--gpu-memory", "24GB",
               "--devices", "2")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["trained"]["parameters"] == 35_840
    assert found["machine"] == {"device": "GPU", "kind": "cuda", "devices": 2,
                                "memory_bytes": 24 * 10**9}
    assert found["tokens"]["steps"] == 1
    assert found["train"]["is_exact"]


def test_formulas_are_printed_on_demand(folder):
    assert "2 bits x trained parameters" in run(folder, "r.yaml", "--sources").stdout
    assert "2 bits x trained parameters" not in run(folder, "r.yaml").stdout


@pytest.mark.parametrize(("arguments", "said"), [
    (["--set", "model.base=./nothing"], "no such base model"),
    (["--set", "adapter.rank=none"], "adapter.rank"),
    (["--set", "data.train=nothing.jsonl"], "nothing.jsonl"),
    (["--gpu-memory", "much"], "'much' is no size"),
    (["--set", "adapter.target_modules=[q_prj]"], "q_prj matches no layer"),
])
def test_bad_input(arguments, said, folder):
    done = run(folder, "r.yaml", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_configuration_that_cannot_be_sized(folder):
    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_text(json.dumps(
        {"model_type": "opt", "hidden_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "vocab_size": 320}))
    done = run(folder, "r.yaml", "--set", "model.base=base")
    assert done.returncode == 2
    assert "Certain is: its embeddings have 20,480 parameters" in done.stderr
