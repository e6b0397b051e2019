"""Ranks that die are started again, as often as was said, and where it can help."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from lorafit.launch.rank import RESTARTS
from tests.conftest import adapter_tensors, largest_difference
from tests.launch.conftest import said, steps_logged

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SETTINGS: dict[str, Any] = {
    "adapter": {"dropout": 0.1},
    "training": {"steps": 24, "eval_every": 24, "checkpoint_every": 2, "micro_batch_size": 1}}


def start(recipe: Any, path: Path, *options: str) -> "subprocess.Popen[str]":
    path.write_text(yaml.safe_dump(recipe.model_dump()))
    return subprocess.Popen([sys.executable, "-m", "lorafit", "train", str(path),
                             "--num-processes", "2", *options], text=True, env=ENVIRONMENT,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def rank_of(launcher: int, number: int) -> psutil.Process:
    return next(child for child in psutil.Process(launcher).children()
                if child.environ().get("RANK") == str(number))


@pytest.mark.long
def test_a_killed_rank_is_started_again_and_nothing_is_lost(make_recipe, train, tmp_path, wait_for):
    recipe = make_recipe("two", **SETTINGS)
    process = start(recipe, tmp_path / "two.yaml", "--restarts", "2")
    wait_for(lambda: steps_logged(Path(recipe.output.dir)) >= 5, "the fifth step")
    killed = rank_of(process.pid, 1)
    assert killed.environ()[RESTARTS] == "0"
    killed.kill()
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert errors.splitlines() == [
        "restart 1 of 2: rank 1 was killed by SIGKILL, so the others ended too; out of memory is "
        "a common cause", "finished after 1 restart"]
    assert "resumed   from step-" in output
    assert steps_logged(Path(recipe.output.dir)) == 24
    whole = make_recipe("whole", **SETTINGS)
    assert start(whole, tmp_path / "whole.yaml").wait(240) == 0
    assert largest_difference(adapter_tensors(recipe.output.dir),
                              adapter_tensors(whole.output.dir)) == 0


def test_what_a_restart_cannot_mend_is_not_tried_again(make_recipe, tmp_path):
    recipe = make_recipe("two", training={"learning_rate": 1e30, "steps": 8})
    process = start(recipe, tmp_path / "two.yaml", "--restarts", "3")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 4, errors
    assert "restart 1" not in errors
    assert "gave up" not in errors
    assert len(said(errors)) == 1, errors


@pytest.mark.long
def test_it_gives_up_in_the_end_and_stops_when_asked(make_recipe, tmp_path, wait_for):
    recipe = make_recipe("two", **{**SETTINGS, "training": {**SETTINGS["training"], "steps": 500}})
    run = Path(recipe.output.dir)
    process = start(recipe, tmp_path / "two.yaml", "--restarts", "1")
    for _ in range(2):
        logged = steps_logged(run)
        wait_for(lambda logged=logged: steps_logged(run) >= logged + 3, "another step")
        rank_of(process.pid, 0).kill()
        wait_for(lambda: process.poll() is not None or all(
            child.create_time() > 0 for child in psutil.Process(process.pid).children()), "the end")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "gave up after 1 restart" in errors
    assert len(said(errors)) == 1, errors
    process = start(recipe, tmp_path / "two.yaml", "--restarts", "1", "--resume")
    logged = steps_logged(run)
    wait_for(lambda: steps_logged(run) >= logged + 2, "another step")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors
    assert errors.count("error:") == 1, errors
    assert "a checkpoint was committed" in errors
