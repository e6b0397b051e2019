"""Two machines, as network namespaces: what is between them is a cable, and nothing else.

They have no route out and names that nothing resolves, so that each process has to find by itself
which interface the other one is behind. The disk is shared.
"""

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.conftest import adapter_tensors, largest_difference
from tests.launch.conftest import Machine, Running, said, steps_logged

SETTINGS: dict[str, Any] = {
    "adapter": {"dropout": 0.1},
    "training": {"steps": 16, "eval_every": 16, "checkpoint_every": 2, "micro_batch_size": 1}}


@pytest.fixture
def written(make_recipe, tmp_path):
    """Writes a recipe and returns its path and its run's directory."""
    def write(name: str, **changes: Any) -> tuple[str, Path]:
        settings = {**SETTINGS, "training": {**SETTINGS["training"], **changes}}
        recipe = make_recipe(name, **settings)
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe.model_dump()))
        return str(path), Path(recipe.output.dir)
    return write


def command(recipe: str, node: int, *options: str) -> list[str]:
    return ["train", recipe, "--nodes", "2", "--node-rank", str(node), "--rendezvous",
            "10.77.0.1:29500", *options]


def start(machines: list[Machine], recipe: str, *options: str) -> list[Running]:
    return [machine.start(*command(recipe, node, *options))
            for node, machine in enumerate(machines)]


def test_two_machines_train_what_one_process_does(machines, written, make_recipe, train):
    recipe, run = written("two", steps=4)
    (code, output, errors), (other_code, other_output, other_errors) = (
        each.end() for each in start(machines, recipe))
    assert (code, other_code) == (0, 0), errors + other_errors
    assert errors == "machines  node-a (1), node-b (1): 2 ranks\n"
    assert "2 processes" in output
    assert (other_output, other_errors) == ("", "")
    one = make_recipe("one", **{**SETTINGS, "training": {**SETTINGS["training"], "steps": 4}})
    train(one)
    assert largest_difference(adapter_tensors(run), adapter_tensors(one.output.dir)) < 1e-5


@pytest.mark.long
@pytest.mark.parametrize("lost", [0, 1])
def test_when_a_machine_vanishes_the_other_ends_and_says_so(machines, written, wait_for, lost):
    recipe, run = written("two", steps=500)
    both = start(machines, recipe)
    wait_for(lambda: steps_logged(run) >= 3, "the third step")
    machines[lost].vanish()
    vanished = time.monotonic()
    code, _, errors = both[1 - lost].end(30)
    assert time.monotonic() - vanished < 30
    assert code == 3
    name = machines[lost].host
    assert said(errors) == [f"error: machine {lost} ({name}) has gone: its launcher was killed, or "
                            "the network to it is down"], errors
    assert "Traceback" not in errors
    code, _, _ = machines[0].start("train", recipe, "--resume", "--set", "training.steps=4").end()
    assert code == 0


@pytest.mark.long
def test_when_the_cable_is_pulled_both_end_within_half_a_minute(machines, written, wait_for):
    """No connection is closed: there is only silence."""
    recipe, run = written("two", steps=500)
    both = start(machines, recipe)
    wait_for(lambda: steps_logged(run) >= 3, "the third step")
    machines[1].unplug()
    pulled = time.monotonic()
    ends = [each.end(40) for each in both]
    assert time.monotonic() - pulled < 31
    for (code, _, errors), other in zip(ends, (1, 0), strict=True):
        assert code == 3
        assert len(said(errors)) == 1, errors
        assert f"machine {other} (" in errors


@pytest.mark.long
@pytest.mark.parametrize("lost", [0, 1])
def test_a_machine_that_comes_back_goes_on_with_the_others(machines, written, wait_for, lost):
    recipe, run = written("two")
    both = start(machines, recipe, "--restarts", "1")
    wait_for(lambda: steps_logged(run) >= 5, "the fifth step")
    machines[lost].vanish()
    both[lost] = machines[lost].start(*command(recipe, lost, "--restarts", "1"))
    ends = [each.end() for each in both]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert "restart 1 of 1: machine" in ends[1 - lost][2]
    assert all("finished after 1 restart" in errors for _, _, errors in ends)
    whole, uninterrupted = written("whole")
    assert [each.end()[0] for each in start(machines, whole)] == [0, 0]
    assert largest_difference(adapter_tensors(run), adapter_tensors(uninterrupted)) == 0


@pytest.mark.long
def test_a_killed_rank_is_named_on_both_machines(machines, written, wait_for):
    recipe, run = written("two", steps=500)
    both = start(machines, recipe)
    wait_for(lambda: steps_logged(run) >= 3, "the third step")
    [rank] = [each for each in psutil.Process(both[1].process.pid).children()
              if each.environ().get("RANK") == "1"]
    rank.kill()
    for running in both:
        code, _, errors = running.end(30)
        assert code == 3
        assert len(said(errors)) == 1, errors
        assert "rank 1 on node-b was killed by SIGKILL" in errors


@pytest.mark.long
def test_one_signal_stops_both_machines_after_the_same_step(machines, written, wait_for):
    recipe, run = written("two", steps=500)
    both = start(machines, recipe, "--restarts", "3")
    wait_for(lambda: steps_logged(run) >= 3, "the third step")
    os.kill(both[1].process.pid, signal.SIGTERM)
    ends = [each.end(60) for each in both]
    assert [code for code, _, _ in ends] == [143, 143], ends
    assert "a checkpoint was committed" in ends[0][2]
    assert not any("restart 1" in errors for _, _, errors in ends)


@pytest.mark.long
def test_machines_with_other_recipes_are_refused_by_name(machines, written):
    recipe, run = written("two")
    other, _ = written("other", learning_rate=0.5)
    ends = [each.end() for each in (machines[0].start(*command(recipe, 0)),
                                    machines[1].start(*command(other, 1)))]
    assert [code for code, _, _ in ends] == [2, 2], ends
    assert len(said(ends[0][2])) == 1, ends
    assert "training.learning_rate: the ranks differ: 0.001 on node-a (rank 0); 0.5 on node-b " \
        "(rank 1)" in ends[0][2]
    assert not run.exists()
