"""Real data sets through the commands that people type: preview, then training."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


def lorafit(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "lorafit", *arguments], capture_output=True,
                          text=True, timeout=240)


def write_recipe(path: Path, data: dict[str, object]) -> Path:
    path.write_text(yaml.safe_dump({
        "model": {"base": "tiny", "dtype": "float32"}, "adapter": {"rank": 4},
        "data": data, "training": {"steps": 12, "batch_size": 8, "eval_every": 12},
        "output": {"dir": str(path.parent / "run")},
    }), encoding="utf-8")
    return path


def train(recipe: Path, *settings: str) -> dict[str, float]:
    done = lorafit("train", str(recipe), *settings)
    assert done.returncode == 0, done.stderr
    return json.loads((recipe.parent / "run" / "result.json").read_text())["progress"]


@pytest.mark.parametrize("streaming", [False, True], ids=["prepared", "streamed"])
def test_gsm8k(gsm8k: Path, tmp_path: Path, streaming: bool) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", {
        "train": str(gsm8k / "train.jsonl"), "eval": str(gsm8k / "test.jsonl"),
        "max_eval_rows": 16, "streaming": streaming})
    seen = lorafit("preview", str(recipe))
    assert seen.returncode == 0, seen.stderr
    assert "nothing found" in seen.stdout
    assert "Natalia sold 48+24 = <<48+24=72>>72 clips" in seen.stdout or streaming
    progress = train(recipe)
    assert progress["last_eval_loss"] < progress["first_eval_loss"] - 1


def test_hh_rlhf(hh_rlhf: Path, tmp_path: Path) -> None:
    """Three rows have no answer at all and one has an empty turn: nothing goes on before the
    recipe says what to do with them."""
    recipe = write_recipe(tmp_path / "r.yaml", {
        "train": str(hh_rlhf), "eval_fraction": 0.01, "max_length_tokens": 512,
        "on_long": "drop"})
    refused = lorafit("train", str(recipe))
    assert refused.returncode == 2
    assert refused.stderr.count("the assistant says nothing") == 3
    unusable = ["--set", "data.checks.unusable=drop"]
    seen = lorafit("preview", str(recipe), *unusable)
    assert seen.returncode == 2
    assert "would stop training" in seen.stdout
    assert "empty_answer" in seen.stdout
    accepted = [*unusable, "--set", "data.checks.empty_answer=drop"]
    assert lorafit("preview", str(recipe), *accepted).returncode == 0
    progress = train(recipe, *accepted)
    assert progress["last_eval_loss"] < progress["first_eval_loss"] - 1
