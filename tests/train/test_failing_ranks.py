"""A rank that fails, is killed, hangs, or is only slow, in real jobs."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lorafit.run_dir import RunDir
from tests.train.ranks import by_hand, by_torchrun, write_driver, write_recipe

QUICK = "heartbeat.SILENCE_S = 5.0\n"
GONE_WITHIN_S = 30.0


@pytest.fixture
def job(make_recipe, tmp_path):
    """The arguments of a run of two ranks, with two micro-batches a step each, and its recipe."""
    recipe = make_recipe(training={"steps": 6, "micro_batch_size": 1, "eval_every": 6,
                                   "checkpoint_every": 2})
    return recipe, [write_recipe(tmp_path / "recipe.yaml", recipe)]


def goes_wrong(tmp_path: Path, what: str, rank: int = 1, step: int = 3) -> Path:
    """A driver whose rank `rank` does `what` in a step, counted from 0, and notes when."""
    return write_driver(tmp_path / "driver.py", QUICK + f"""
def wrong(step):
    if RANK == "{rank}" and step == {step}:
        open({str(tmp_path / "went-wrong")!r}, "w").close()
        {what}
""")


def ended(processes: "list[subprocess.Popen[str]]", tmp_path: Path) -> list[tuple[int, str]]:
    """Exit code and standard error of each, after they were gone in time."""
    mark = tmp_path / "went-wrong"
    until = time.monotonic() + 200
    while not mark.exists():
        assert all(each.poll() is None for each in processes), [
            each.communicate()[1] for each in processes if each.poll() is not None]
        assert time.monotonic() < until
        time.sleep(0.05)
    told = [each.communicate(timeout=GONE_WITHIN_S) for each in processes]
    return [(each.returncode, errors) for each, (_, errors) in zip(processes, told, strict=True)]


def go_on(job, tmp_path, train) -> None:
    recipe, _ = job
    assert train(recipe, resume=True).progress.step == 6


def test_a_bug_in_one_rank_is_told_once_and_on_top(job, tmp_path, train):
    driver = goes_wrong(tmp_path, 'raise RuntimeError("the cable is cut")')
    [(code, errors)] = ended([by_torchrun(driver, job[1])], tmp_path)
    assert code == 1
    assert errors.startswith("error: rank 1 on "), errors
    assert "RuntimeError: the cable is cut\nTraceback" in errors
    assert errors.count("the cable is cut") == 3, errors  # what, the line of code, the traceback
    assert "Connection closed" not in errors
    go_on(job, tmp_path, train)


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_rank_finds_is_everybodys(rank, job, tmp_path):
    driver = goes_wrong(tmp_path, 'from lorafit.errors import UserError; '
                        'raise UserError("is no row", "rows:7", "mend it")', rank)
    (first, said), (second, silence) = ended(by_hand(driver, job[1]), tmp_path)
    assert (first, second) == (2, 2)
    where = f"rank 1 on {os.uname().nodename}: " if rank else ""
    assert said == f"error: {where}rows:7: is no row\n    mend it\n"
    assert silence == ""


def test_who_was_killed_is_told_by_the_one_that_is_left(job, tmp_path, train):
    """Started as a scheduler does, so that nothing else looks after them."""
    driver = goes_wrong(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    (code, errors), (killed, _) = ended(by_hand(driver, job[1]), tmp_path)
    assert (code, killed) == (3, -signal.SIGKILL)
    host = os.uname().nodename
    assert errors.startswith(f"error: rank 1 on {host} gave no sign of life for 5 s; it was last "
                             "seen at: "), errors
    assert errors.count("error:") == 1
    assert "Traceback" not in errors
    go_on(job, tmp_path, train)


@pytest.mark.long
def test_the_machine_that_holds_the_store_has_gone(job, tmp_path):
    driver = goes_wrong(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)", rank=0)
    _, (code, errors) = ended(by_hand(driver, job[1]), tmp_path)
    assert code == 3
    assert errors.startswith("error: the store at 127.0.0.1:"), errors
    assert "has gone (rank 0 holds it)" in errors
    assert "was last seen at: " in errors
    assert errors.count("error:") == 1


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.long)])
def test_a_stopped_rank_ends_the_job_with_where_each_stands(rank, job, tmp_path):
    driver = goes_wrong(tmp_path, "os.kill(os.getpid(), signal.SIGSTOP)", rank)
    processes = by_hand(driver, [*job[1], "--rank-timeout", "4s"])
    stopped, other = processes[rank], processes[1 - rank]
    try:
        [(code, errors)] = ended([other], tmp_path)
    finally:
        stopped.kill()
        stopped.communicate()
    assert code == 3
    assert errors.count("error:") == 1
    if rank == 0:  # and with it the store
        assert "does not answer (rank 0 holds it)" in errors
        return
    lines = errors.splitlines()
    assert lines[0] == "error: no rank got on for 4 s (--rank-timeout):"
    assert "rank 1 on " in lines[1]
    assert "last seen at: " in lines[1] or "step 4" in lines[1]
    assert "rank 0 on " in lines[2]
    assert "communicating (gradients), step 4" in lines[2]


@pytest.mark.long
def test_a_slow_rank_is_left_alone_and_the_others_wait_for_it(make_recipe, tmp_path):
    recipe = make_recipe(training={"steps": 2, "micro_batch_size": 1, "eval_every": 2,
                                   "checkpoint_every": 2})
    driver = write_driver(tmp_path / "driver.py", """
def wrong(step):
    if RANK == "1":
        time.sleep(3)
""")
    processes = by_hand(driver, [write_recipe(tmp_path / "recipe.yaml", recipe),
                                 "--rank-timeout", "5s"])
    (said, errors), _ = [each.communicate(timeout=240) for each in processes]
    assert [each.returncode for each in processes] == [0, 0], errors
    lines = [json.loads(line) for line
             in RunDir(Path(recipe.output.dir)).metrics.read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 2
    for step in steps:
        assert step["seconds_communication"] > 5.0  # rank 0 waits for rank 1
        assert step["seconds_data"] >= 0
        assert step["seconds_data"] + step["seconds_communication"] <= step["seconds"]
        assert step["memory_bytes"] > 10 << 20
    [first, *_] = [line for line in said.splitlines() if line.startswith("step 1/2")]
    assert " a device)  data " in first
    assert float(first.split("communication ")[1].split("%")[0]) > 50
    assert "(rank " in first


def test_one_process_tells_nothing_of_ranks(make_recipe, train, capsys):
    recipe = make_recipe()
    train(recipe)
    lines = [json.loads(line) for line
             in RunDir(Path(recipe.output.dir)).metrics.read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert all("seconds_communication" not in step for step in steps)
    assert all(0 <= step["seconds_data"] <= step["seconds"] for step in steps)
    said = capsys.readouterr().out
    assert " a device" not in said
    assert "communication" not in said
    assert "data " in said


def test_ranks_that_do_not_come_together_say_so(job, tmp_path):
    driver = write_driver(tmp_path / "driver.py", "heartbeat._COME_TOGETHER_S = 2.0\n"
                          "def wrong(step): pass")
    [alone] = by_hand(driver, [*job[1], "--rank-timeout", "2s"], missing=[1])
    _, errors = alone.communicate(timeout=120)
    assert alone.returncode == 3
    assert errors.startswith("error: the ranks did not come together within 2 s"), errors
    assert errors.count("error:") == 1


def test_the_environment_is_not_emptied_while_the_store_is_talked_to(job, tmp_path):
    """accelerate empties it while it is set up. Whoever opens a connection then reads it in C, from
    memory that may be gone: a rank in some hundred jobs was killed by SIGSEGV."""
    driver = write_driver(tmp_path / "driver.py", f"""
from lorafit.train.board import Board
began = []
real_join = Board.join
def join(self):
    began.append(1)
    real_join(self)
Board.join = join
def hook(event, args):
    if event == "os.unsetenv" and args[0] == b"RANK":
        open({str(tmp_path)!r} + ("/late" if began else "/early"), "w").close()
sys.addaudithook(hook)
def wrong(step): pass
""")
    process = by_torchrun(driver, job[1])
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert (tmp_path / "early").exists()  # else there is nothing to be seen here
    assert not (tmp_path / "late").exists()
