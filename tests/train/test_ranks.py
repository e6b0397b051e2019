"""Several ranks: stopped together, gone on with by other numbers, each with its own memory."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorafit.run_dir import RunDir
from tests.conftest import adapter_tensors, largest_difference

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def losses(recipe: Any) -> list[float]:
    lines = RunDir(Path(recipe.output.dir)).metrics.read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines if '"loss"' in line]


def written(recipe: Any, path: Path) -> str:
    path.write_text(yaml.safe_dump(recipe.model_dump()))
    return str(path)


@pytest.mark.long
def test_two_ranks_are_stopped_by_one_signal_and_one_process_goes_on(make_recipe, train, tmp_path):
    """The same rows in the same order, mid-epoch, under dropout."""
    settings = {"adapter": {"dropout": 0.1}, "training": {
        "steps": 30, "micro_batch_size": 1, "eval_every": 30, "checkpoint_every": 30}}
    part = make_recipe("part", **settings)
    process = subprocess.Popen(
        [sys.executable, "-m", "lorafit", "train", written(part, tmp_path / "part.yaml"),
         "--num-processes", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=ENVIRONMENT)
    log = RunDir(Path(part.output.dir)).metrics
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count('"loss"') >= 3):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert errors.count("error:") == 1, errors
    assert "a checkpoint was committed" in errors
    done = len(losses(part))
    assert 3 <= done < 30
    train(part, resume=True)
    whole = make_recipe("whole", **settings)
    train(whole)
    assert losses(part) == pytest.approx(losses(whole), abs=1e-4)
    assert largest_difference(adapter_tensors(part.output.dir),
                              adapter_tensors(whole.output.dir)) < 1e-3


SECOND_RANK_IS_SMALL = """
import os, sys, torch
from lorafit.model.loss import SummedLoss
real = SummedLoss.forward
def forward(self, input_ids, *rest, **named):
    if input_ids.numel() > 100 and os.environ["RANK"] == "1" and torch.is_grad_enabled():
        raise torch.OutOfMemoryError("CUDA out of memory")
    return real(self, input_ids, *rest, **named)
SummedLoss.forward = forward
from lorafit.cli.main import main
sys.argv = ["lorafit", *sys.argv[1:]]
main()
"""


def test_one_rank_out_of_memory_begins_again_alone(make_recipe, train, tmp_path):
    (tmp_path / "driver.py").write_text(SECOND_RANK_IS_SMALL)
    settings = {"training": {"batch_size": 8, "micro_batch_size": 4, "batching": "padded"}}
    two = make_recipe("two", **settings)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
         str(tmp_path / "driver.py"), "train", written(two, tmp_path / "two.yaml")],
        capture_output=True, text=True, timeout=240, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    whole = make_recipe("whole", **settings)
    train(whole)
    assert losses(two) == pytest.approx(losses(whole), abs=1e-5)
