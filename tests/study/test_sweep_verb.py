"""`lorafit sweep` as a person types it: real processes, killed and started again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorafit.recipe.loading import dump_recipe, load_recipe
from lorafit.run_dir import read_json

OVER = ["--over", "adapter.rank=2,4", "--over", "training.learning_rate=1e-3"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "lorafit", "sweep", *arguments]


def sweep(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=240)


@pytest.fixture
def recipe_file(tmp_path: Path, make_recipe: Callable[..., Any]) -> Path:
    recipe = make_recipe(data={"date": "2026-01-31"}, training={"steps": 2})
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    return path


def figures(directory: Path) -> list[dict[str, Any]]:
    """The rows of a sweep without what depends on the machine's mood."""
    return [{key: row[key] for key in ("settings", "losses", "loss", "trained_parameters", "state")}
            for row in read_json(directory / "sweep.json")["rows"]]


def test_a_sweep_that_is_killed_goes_on_to_the_runs_one_would_start_by_hand(
        recipe_file: Path, tmp_path: Path, train: Callable[..., Any]) -> None:
    directory = tmp_path / "sweep"
    arguments = [str(recipe_file), *OVER, "-o", str(directory)]
    killed = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(directory.glob("runs/002*/recipe.yaml")):  # in the middle of the second
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (directory / "sweep.json").exists()
    first = next(directory.glob("runs/001*")) / "result.json"
    finished = first.stat().st_mtime_ns

    done = sweep(*arguments)
    assert done.returncode == 0, done.stderr
    assert first.stat().st_mtime_ns == finished, "what is over is not run again"
    table = figures(directory)
    assert [row["settings"]["adapter.rank"] for row in table] == [
        row["settings"]["adapter.rank"] for row in sorted(table, key=lambda r: r["loss"]["mean"])]

    for number, rank in enumerate((2, 4), start=1):
        by_hand = load_recipe(recipe_file, [f"adapter.rank={rank}",
                                            f"output.dir={tmp_path / f'by-hand-{rank}'}"])
        train(by_hand)
        run = next(directory.glob(f"runs/{number:03d}*"))
        assert (run / "adapter/adapter_model.safetensors").read_bytes() == (
            tmp_path / f"by-hand-{rank}/adapter/adapter_model.safetensors").read_bytes()
        loss = read_json(tmp_path / f"by-hand-{rank}/result.json")["progress"]["best_loss"]
        assert next(row for row in table if row["settings"]["adapter.rank"] == rank)[
            "losses"] == {"0": loss}

    best = load_recipe(directory / "best.yaml")
    assert best.adapter.rank == table[0]["settings"]["adapter.rank"]
    assert best.output.dir == str(directory / "best")
    assert "<svg" in (directory / "sweep.svg").read_text()
    again = sweep(*arguments, "--json", "-")
    assert json.loads(again.stdout)["missing"] == 0
    assert figures(directory) == table

    other = sweep(*arguments, "--over", "training.warmup=0,1")
    assert other.returncode == 2
    assert "over.training.warmup: was left out, is 0,1" in other.stderr
    other = sweep(*arguments, "--set", "training.weight_decay=0.5")
    assert other.returncode == 2
    assert "recipe.training.weight_decay: was 0.0, is 0.5" in other.stderr
    assert figures(directory) == table


@pytest.mark.long
def test_a_run_that_fails_is_a_row_that_says_why(recipe_file: Path, tmp_path: Path) -> None:
    directory = tmp_path / "sweep"
    done = sweep(str(recipe_file), "--over", "adapter.target_modules=all-linear,[no_such_layer]",
                 "-o", str(directory), "--budget", "2m", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    good, bad = figures(directory)
    assert good["loss"] is not None
    assert bad["loss"] is None
    assert "no_such_layer" in bad["state"]
    assert load_recipe(directory / "best.yaml").adapter.target_modules == "all-linear"


@pytest.mark.parametrize(("arguments", "told"), [
    (["--over", "adapter.rank=4,0"], "--over adapter.rank=0: adapter.rank: "),
    (["--over", "adapter.rank"], "not of the form section.key=value,value,…"),
    (["--over", "training.learning_rate=1e-5..1e-3"], "a grid has no ranges"),
    (["--over", "data.train=nowhere.jsonl"], "nowhere.jsonl"),
    (["--over", "adapter.rank=4", "--set", "data.eval=null"], "--set data.eval_fraction=0.05"),
    (["--over", "adapter.rank=4", "--budget", "2"], "no length of time"),
    (["--over", "adapter.rank=4", "-o", "{taken}"], "already exists"),
])
def test_what_is_wrong_is_told_before_any_run(recipe_file: Path, tmp_path: Path,
                                              arguments: list[str], told: str) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    done = sweep(str(recipe_file), *(each.format(taken=taken) for each in arguments))
    assert done.returncode == 2, done.stdout + done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_budget_that_is_over_stops_what_is_under_way(recipe_file: Path, tmp_path: Path) -> None:
    directory = tmp_path / "sweep"
    done = sweep(str(recipe_file), *OVER, "-o", str(directory), "--budget", "1s")
    assert done.returncode == 0, done.stderr
    assert "2 of 2 runs are missing; the same command goes on" in done.stdout
    assert not list((directory / "failures").glob("*")) if (directory / "failures").exists() else 1
    assert not (directory / "best.yaml").exists()
    left = [line for line in os.popen("ps -eo args").read().splitlines() if str(directory) in line]
    assert not left, "nothing goes on behind it"
