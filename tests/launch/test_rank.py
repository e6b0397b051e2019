"""What a process takes itself for, by what launchers leave in its environment."""

import os

import pytest

from lorafit import last_words
from lorafit.errors import UserError
from lorafit.launch import rank
from lorafit.launch.network import interface_between_machines

OF_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_", "SLURM_",
                "TORCHELASTIC_", "ACCELERATE_", "LORAFIT_LAUNCHER", "LORAFIT_RESTARTS")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in list(os.environ):
        if name.startswith(OF_LAUNCHERS):
            monkeypatch.delenv(name)
    # What is set below is taken away again, whatever recognise() adds.
    kept = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(kept)


def test_a_plain_process_is_no_rank():
    assert rank.recognise() is None
    assert rank.is_main_rank()
    assert rank.restarts() == 0


@pytest.mark.parametrize(("left", "by"), [
    ({"TORCHELASTIC_RUN_ID": "x"}, "torchrun"),
    ({"TORCHELASTIC_RUN_ID": "x", "ACCELERATE_MIXED_PRECISION": "no"}, "accelerate launch"),
    ({"LORAFIT_LAUNCHER_PID": "1"}, "lorafit"),
    ({}, "a launcher that sets RANK and WORLD_SIZE")])
def test_who_has_started_a_rank(left, by):
    os.environ.update({"RANK": "1", "WORLD_SIZE": "4", **left})
    found = rank.recognise()
    assert str(found) == f"rank 1 of 4, started by {by}"
    assert found.is_own == (by == "lorafit")
    assert not rank.is_main_rank()
    assert os.environ["LOCAL_RANK"] == "1"


def test_a_task_of_srun_becomes_a_rank():
    os.environ.update({
        "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "4",
        "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_TASKS_PER_NODE": "2(x2)",
        "SLURM_JOB_NODELIST": "n[1-2]"})
    assert str(rank.recognise()) == "rank 3 of 4, started by Slurm's srun"
    assert (os.environ["MASTER_ADDR"], os.environ["LOCAL_WORLD_SIZE"]) == ("n1", "2")


@pytest.mark.parametrize("values", [("4", "4"), ("x", "4"), ("0", "x"), ("-1", "4"), ("0", "0")])
def test_numbers_that_cannot_be(values):
    os.environ.update(dict(zip(("RANK", "WORLD_SIZE"), values, strict=True)))
    with pytest.raises(UserError, match=r"RANK|WORLD_SIZE"):
        rank.recognise()


@pytest.mark.parametrize("name", ["LORAFIT_RESTARTS", "TORCHELASTIC_RESTART_COUNT"])
def test_ranks_that_were_started_again_know_it(name):
    os.environ[name] = "2"
    assert rank.restarts() == 2


def test_the_interface_towards_this_machine_itself_is_never_the_loopback():
    import psutil

    name = interface_between_machines("127.0.0.1")
    assert name is None or all(
        not each.address.startswith("127.") for each in psutil.net_if_addrs()[name])


def test_last_words_are_for_ones_own_launcher(tmp_path, monkeypatch):
    os.environ.update({"RANK": "1", last_words.FOLDER: str(tmp_path), last_words.LAUNCHER: "1"})
    assert not last_words.leave("lost", 3)
    os.environ[last_words.LAUNCHER] = str(os.getppid())
    assert last_words.leave("lost", 3, is_echo=True)
    os.environ["RANK"] = "0"
    assert last_words.leave("a ünicode message\nwith a remedy", 2)
    (tmp_path / "rank-7.json").write_text("{")
    first, second = last_words.read(tmp_path)
    assert (first.rank, first.message, first.code, first.is_echo) == (1, "lost", 3, True)
    assert (second.rank, second.message) == (0, "a ünicode message\nwith a remedy")
    os.environ[last_words.FOLDER] = str(tmp_path / "gone")
    assert not last_words.leave("lost", 3)
