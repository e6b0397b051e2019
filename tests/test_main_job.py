"""The main job at its real size: minutes, so run by `make test-long`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


def lorafit(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "lorafit", *arguments], capture_output=True,
                          text=True, cwd=REPOSITORY, env=os.environ.copy())
    assert done.returncode == 0, done.stderr
    return done


def test_the_quickstart_teaches_what_the_base_cannot_do(tmp_path):
    run = tmp_path / "quickstart"
    lorafit("train", "recipes/quickstart.yaml", "--set", f"output.dir={run}")
    lorafit("eval", str(run))
    scores = json.loads((run / "evaluation.json").read_text())
    assert scores["base"]["correct"] < 0.1 * scores["base"]["rows"]
    assert scores["adapter"]["correct"] > 0.9 * scores["adapter"]["rows"]
    lorafit("merge", str(run))
    lorafit("export-adapter", str(run))


def test_real_maths_rows_lower_the_held_out_loss_and_a_resumed_run_has_the_same_bytes(
        tmp_path, gsm8k):
    settings = ["recipes/gsm8k.yaml", "--set", f"data.train={gsm8k / 'train.jsonl'}",
                "--set", f"data.eval={gsm8k / 'test.jsonl'}", "--set", "data.max_eval_rows=200"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    lorafit("train", *settings, "--set", f"output.dir={whole}")
    process = subprocess.Popen(
        [sys.executable, "-m", "lorafit", "train", *settings, "--set", f"output.dir={cut}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=REPOSITORY)
    log = cut / "metrics.jsonl"
    while not (log.exists() and log.read_text().count('"loss"') >= 200):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 143
    lorafit("train", *settings, "--set", f"output.dir={cut}", "--resume")
    name = Path("adapter") / "adapter_model.safetensors"
    assert (whole / name).read_bytes() == (cut / name).read_bytes()
    progress = json.loads((whole / "result.json").read_text())["progress"]
    assert progress["step"] == 468
    assert progress["best_loss"] < 0.5 * progress["first_eval_loss"]
