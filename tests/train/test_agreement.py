"""Ranks that were started with different things do not train together."""

import os
import subprocess
import sys
from typing import Any

import pytest
import yaml

from lorafit.errors import UserError
from lorafit.recipe.auto import Device
from lorafit.train.agreement import compare, facts_here, options_of

CPU = Device("cpu", "this CPU", has_bfloat16=True)


def facts(recipe: Any, host: str, rank: int, device: Device = CPU, **others: str) -> dict[str, Any]:
    found = facts_here(recipe, device)
    return {"host": host, "rank": rank, "facts": {**found["facts"], **others}}


def test_ranks_alike(make_recipe):
    compare([facts(make_recipe(), host, rank) for rank, host in enumerate("aabb")])


def test_every_difference_is_named_with_its_machines(make_recipe):
    ranks = [facts(make_recipe(), "a", 0), facts(make_recipe(), "a", 1),
             facts(make_recipe(training={"learning_rate": 0.5}), "b", 2,
                   **{"version of peft": "0.1"}),
             facts(make_recipe(), "c", 3, Device("cuda", "H100", has_bfloat16=True))]
    with pytest.raises(UserError) as refused:
        compare(ranks)
    said = str(refused.value)
    assert "version of peft: the ranks differ: " in said
    assert "on a (ranks 0, 1) and c (rank 3); 0.1 on b (rank 2)" in said
    assert "training.learning_rate: the ranks differ: 0.001 on" in said
    assert "0.5 on b (rank 2)" in said
    assert "kind of device: the ranks differ: cpu on a (ranks 0, 1) and b (rank 2); cuda on c" \
        in said
    assert len(refused.value.problems) == 3


def test_many_differences_are_counted(make_recipe):
    first = facts(make_recipe(), "a", 0)
    other = {**first, "rank": 1, "facts": dict.fromkeys(first["facts"], "x")}
    with pytest.raises(UserError, match="more differences"):
        compare([first, other])


def test_options_that_must_be_alike():
    assert options_of(["train", "a.yaml", "--set", "x=1", "--node-rank", "3", "--nodes", "4",
                       "--resume", "--set=y=2", "--node-rank=2"]) \
        == ["train", "--nodes", "4", "--resume"]


RANK_1_IS_TOLD_OTHERWISE = """
import os, sys
if os.environ["RANK"] == "1":
    sys.argv += ["--set", "training.learning_rate=0.5"]
sys.argv[0] = "lorafit"
from lorafit.cli.main import main
main()
"""


def test_real_ranks_say_it_once_and_load_nothing(make_recipe, tmp_path):
    (tmp_path / "driver.py").write_text(RANK_1_IS_TOLD_OTHERWISE)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(make_recipe("run").model_dump()))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
         str(tmp_path / "driver.py"), "train", str(tmp_path / "run.yaml")],
        capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode != 0
    assert done.stderr.count("error: training.learning_rate: the ranks differ: 0.001 on ") == 1
    assert "exitcode  : 2" in done.stderr
    assert done.stdout == "rank 0 of 2, started by torchrun\n"
    assert not (tmp_path / "run").exists()
