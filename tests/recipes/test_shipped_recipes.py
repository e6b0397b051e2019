"""Every recipe in recipes/ is valid and runs: training, merge and export, on a shrunken model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lorafit.recipe.loading import load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
NAMES = [path.stem for path in RECIPES]


def test_recipes_are_found():
    assert {"gsm8k", "lesson-general", "lesson-low-memory", "lesson-high-capacity"} <= set(NAMES)


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_recipe_loads(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(path)
    assert recipe.output.dir == f"runs/{path.stem}"  # no two recipes share a run directory


@pytest.mark.parametrize(("name", "rank", "alpha", "targets", "dropout"), [
    ("lesson-general", 16, 16, "all-linear", 0.0),
    ("lesson-low-memory", 8, 16, ["q_proj", "v_proj"], 0.0),
    ("lesson-high-capacity", 64, 128, "all-linear", 0.05),
])
def test_lesson_configurations(name, rank, alpha, targets, dropout):
    adapter = load_recipe(ROOT / "recipes" / f"{name}.yaml").adapter
    assert (adapter.rank, adapter.alpha) == (rank, alpha)
    assert (adapter.target_modules, adapter.dropout) == (targets, dropout)


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_recipe_runs_as_smoke_test(path, tmp_path):
    working, temporary = tmp_path / "working", tmp_path / "temporary"
    working.mkdir()
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "lorafit", "train", str(path), "--smoke"],
        cwd=working, capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TMPDIR": str(temporary)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "smoke test passed: training, merge" in done.stdout
    assert list(working.iterdir()) == []
    assert list(temporary.glob("lorafit-smoke-*")) == []
