"""Where ranks stand: what each notes, what the others read, and what is judged from it."""

import signal
import subprocess
import sys
import time

import pytest
import torch

from lorafit.train.board import Board
from lorafit.train.display import Load, Rate
from lorafit.train.standing import Kind, Phase, Standing
from lorafit.train.verdict import Seen, Verdict, hung, silent

CPU = torch.device("cpu")


def test_the_seconds_of_all_kinds_of_work_are_the_time_that_passed():
    begun = time.perf_counter()
    standing = Standing()
    standing.at(Kind.COMPUTE, "forward and backward", 1, 2)
    time.sleep(0.02)
    with standing.reducing(CPU, "communicating (gradients)"):
        time.sleep(0.05)
        with standing.during(Kind.COMMUNICATION, "waiting for the others"):
            time.sleep(0.01)
    with standing.fetching(3, CPU):
        assert str(standing.phase) == "waiting for data, step 3"
        time.sleep(0.03)
    assert standing.phase == Phase(Kind.COMPUTE, "forward and backward", None, 1, 2)
    standing.at(Kind.SAVING, "saving")
    passed = time.perf_counter() - begun
    assert sum(standing.seconds.values()) == pytest.approx(passed, abs=0.005)
    assert standing.communicated_s(CPU) >= 0.06
    assert standing.seconds[Kind.DATA] >= 0.03


def test_every_change_and_every_sign_counts_as_getting_on():
    standing = Standing()
    counted = [standing.moves]
    standing.step = 12
    standing.at(Kind.COMPUTE, "forward and backward", 3, 8)
    counted.append(standing.moves)
    standing.at(Kind.COMPUTE, "forward and backward", 3, 8)
    counted.append(standing.moves)
    standing.moved()
    counted.append(standing.moves)
    assert counted == sorted(set(counted))
    assert str(standing.phase) == "forward and backward of micro-batch 3 of 8, step 12"


def seen(rank: int, phase: str, kind: Kind, moved_s: float = 0.0, heard_s: float = 602.0,
         is_done: bool = False) -> Seen:
    return Seen(rank, f"host{rank}", phase, kind, beat=5, moves=5, is_done=is_done,
                heard_s=heard_s, moved_s=moved_s)


def test_a_hung_job_names_first_who_is_waited_for():
    reducing = "communicating (gradients), step 7"
    ranks = [seen(0, reducing, Kind.COMMUNICATION, 2.0),
             seen(1, "waiting for data, step 7", Kind.DATA),
             seen(2, reducing, Kind.COMMUNICATION, 2.0), seen(3, reducing, Kind.COMMUNICATION, 2.5)]
    verdict = hung(ranks, 602.6, 600.0)
    assert verdict is not None
    assert verdict.code == 3
    lines = str(verdict).splitlines()
    assert lines[0] == "error: no rank got on for 10 min 00 s (--rank-timeout):"
    assert lines[1].strip() == "rank 1 on host1: waiting for data, step 7, for 10 min 03 s"
    assert lines[2].strip() == f"ranks 0, 2, 3: {reducing}, for 10 min 01 s"
    assert "--resume" in lines[3]


def test_of_a_hung_job_a_rank_that_is_silent_comes_first():
    ranks = [seen(0, "evaluation of micro-batch 3 of 3", Kind.EVALUATION),
             seen(1, "communicating (gradients), step 1", Kind.COMMUNICATION, heard_s=593.0)]
    verdict = hung(ranks, 602.0, 600.0)
    assert verdict is not None
    lines = verdict.message.splitlines()
    assert lines[1].strip() == ("rank 1 on host1: no sign of life for 9 s, last seen at: "
                                "communicating (gradients), step 1")
    assert lines[2].strip() == "rank 0 on host0: evaluation of micro-batch 3 of 3, for 10 min 02 s"


def test_one_that_gets_on_speaks_for_all_and_one_that_is_done_does_not_count():
    late = [seen(rank, "evaluating", Kind.EVALUATION, 0.0) for rank in range(3)]
    late[2].moved_s = 95.0
    assert hung(late, 100.0, 10.0) is None
    late[2].is_done = True
    assert hung(late, 100.0, 10.0) is not None
    for each in late:
        each.is_done = True
    assert hung(late, 100.0, 10.0) is None


def test_silence_is_borne_longer_while_libraries_read_and_write_weights():
    ranks = [seen(0, "saving, step 4", Kind.SAVING, heard_s=80.0),
             seen(3, "forward and backward of micro-batch 3 of 8, step 12", Kind.COMPUTE,
                  heard_s=84.0)]
    verdict = silent(ranks, 100.0, 15.0)
    assert verdict is not None
    assert (verdict.rank, verdict.code) == (3, 3)
    assert "rank 3 on host3 gave no sign of life for 15 s" in verdict.message
    assert "micro-batch 3 of 8, step 12" in verdict.message
    assert silent(ranks, 98.0, 15.0) is None
    assert silent([ranks[0]], 141.0, 15.0) is not None


def test_where_a_rank_lost_another_the_longest_silence_is_not_borne():
    """A rank is killed between two signs: the last one may still say that it loads."""
    gone = seen(1, "loading the model", Kind.LOADING, heard_s=80.0)
    ranks = [seen(0, "step 4", Kind.COMPUTE, heard_s=99.0), gone,
             seen(2, "step 4", Kind.COMPUTE, heard_s=81.0)]
    assert silent(ranks, 96.5, 16.0) is None
    ranks[0].lost_one = True
    verdict = silent(ranks, 98.0, 16.0)
    assert verdict is not None
    assert verdict.rank == 1


AWAKE = """
import sys, time
from lorafit.train.heartbeat import Clock
clock = Clock()
while True:
    print(clock.now_s(), flush=True)
    time.sleep(0.2)
"""


def test_a_job_that_was_suspended_finds_nobody_dead():
    """Time in which this process was stopped does not count."""
    process = subprocess.Popen([sys.executable, "-c", AWAKE], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    before = float(process.stdout.readline())
    process.send_signal(signal.SIGSTOP)
    time.sleep(4.0)
    process.send_signal(signal.SIGCONT)
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        after = float(process.stdout.readline())
    process.kill()
    process.communicate()
    assert 0.2 <= after - before < 3.5


@pytest.fixture
def store(monkeypatch):
    from torch import distributed

    opened = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(opened.port))
    return opened


def joined(rank: int, ranks: int = 2) -> Board:
    board = Board(rank, ranks, list(range(ranks)))
    board.join()
    return board


def test_the_first_verdict_stands_and_one_rank_says_it(store):
    first, second = joined(0), joined(1)
    second.post(beat=1)
    assert first.read() == (None, [{}, {"beat": 1}])
    mine = Verdict(2, "the row is bad", 1, "b", own=True)
    assert second.propose(mine) == mine
    assert first.propose(Verdict(3, "connection closed", 0, "a", own=True)) == mine
    assert first.read()[0] == mine
    assert str(mine) == "error: rank 1 on b: the row is bad"
    assert [first.may_say(), second.may_say()] == [True, False]
    first.said()
    assert second.is_said_soon()


def test_a_job_that_is_started_again_reads_nothing_of_the_last_one(store, monkeypatch):
    joined(1).propose(Verdict(3, "killed", 1, "b"))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert joined(0).read() == (None, [{}, {}])
    monkeypatch.setenv("LORAFIT_RESTARTS", "1")
    again = joined(1)
    again.propose(Verdict(3, "killed again", 1, "b"))
    verdict, _ = again.read()
    assert verdict is not None
    assert verdict.message == "killed again"


def test_a_long_traceback_goes_through_the_store_with_its_end(store):
    verdict = joined(0).propose(Verdict(1, "m", 0, own=True, trace="x" * 100_000 + "ValueError"))
    assert verdict.trace.endswith("ValueError")
    assert len(verdict.trace) < 10_000


def test_the_display_tells_of_several_ranks_only_where_there_are_some():
    alone, several = Rate(), Rate()
    for _ in range(30):
        alone.add(100, 0.5, Load(1, 0.05, 0.0, 3 << 30))
        several.add(100, 0.5, Load(4, 0.05, 0.1, 3 << 30, 2))
    assert str(alone) == "200 tok/s  data 10%  memory 3.00 GiB"
    assert str(several) == ("200 tok/s (50 a device)  data 10%  communication 20%  "
                            "memory 3.00 GiB (rank 2)")
