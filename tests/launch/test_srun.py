"""Tasks of Slurm's srun, by the variables that it sets."""

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import adapter_tensors, largest_difference

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def srun(recipe: Path, tasks: int, *options: str) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each task."""
    common = {"SLURM_JOB_ID": str(random.SystemRandom().randrange(10 ** 6)), "SLURM_STEP_ID": "0",
              "SLURM_NTASKS": str(tasks), "SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_NODEID": "0",
              "SLURM_STEP_TASKS_PER_NODE": str(tasks), "SLURM_STEP_NODELIST": "localhost",
              "SLURM_JOB_NODELIST": "localhost"}
    processes = [subprocess.Popen(
        [sys.executable, "-m", "lorafit", "train", str(recipe), *options], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**ENVIRONMENT, **common, "SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)})
        for n in range(tasks)]
    ended = []
    for process in processes:
        output, errors = process.communicate(timeout=240)
        ended.append((process.returncode, output, errors))
    return ended


def written(recipe: Any, path: Path) -> Path:
    path.write_text(yaml.safe_dump(recipe.model_dump()))
    return path


def test_two_tasks_train_as_one_process_does(make_recipe, train, tmp_path):
    two = make_recipe("two")
    first, second = srun(written(two, tmp_path / "two.yaml"), 2)
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert first[1].startswith("rank 0 of 2, started by Slurm's srun\n")
    assert second[1] == ""
    one = make_recipe("one")
    train(one)
    assert largest_difference(adapter_tensors(two.output.dir),
                              adapter_tensors(one.output.dir)) < 1e-5


@pytest.mark.parametrize("option", [("--num-processes", "2"), ("--nodes", "1")])
def test_what_srun_has_decided_is_refused_by_one_task(make_recipe, tmp_path, option):
    first, second = srun(written(make_recipe("two"), tmp_path / "two.yaml"), 2, *option)
    assert (first[0], second[0]) == (2, 2)
    assert first[2].count("error:") == 1
    assert "started by Slurm's srun, which has decided that" in first[2]
    assert second[2] == ""
