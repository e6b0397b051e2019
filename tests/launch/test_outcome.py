"""Who is to blame, and whether another try makes sense."""

import signal

import pytest

from lorafit.launch.outcome import Failure, Outcome, Verdict, judge

KILL, TERM = -signal.SIGKILL, -signal.SIGTERM


def outcome(node: int, *failures: tuple[int, int, int], asked: int = 0, for_: str = "") -> Outcome:
    return Outcome(node, f"host{node}", [Failure(*each) for each in failures], asked, for_)


def test_all_well():
    assert judge([outcome(0), outcome(1)], [], 3) == Verdict(0)


def test_a_killed_rank_comes_before_those_that_missed_it():
    verdict = judge([outcome(0, (0, 3, 100)), outcome(1, (1, KILL, 101))], [], 0)
    assert verdict.code == 3
    assert "rank 1 on host1 was killed by SIGKILL" in verdict.why
    assert not verdict.again
    assert not verdict.is_said


def test_ranks_that_the_launcher_had_to_kill_are_not_the_cause():
    verdict = judge([outcome(0, (1, 2, 100), (0, KILL, 130))], [], 1)
    assert (verdict.code, verdict.again) == (2, False)
    assert verdict.why.startswith("rank 1 ")
    ended = judge([outcome(0, (0, KILL, 100), for_="another"), outcome(1, (1, 1, 200))], [], 0)
    assert ended.code == 1


def test_a_rank_that_says_more_than_a_broken_connection_comes_first():
    verdict = judge([outcome(0, (0, 3, 100)), outcome(1, (1, 4, 105))], [], 5)
    assert (verdict.code, verdict.again, verdict.of_node) == (4, False, 1)


def test_a_machine_that_has_gone():
    verdict = judge([outcome(0, (0, 3, 100))], [(1, "host1")], 1)
    assert "machine 1 (host1) has gone" in verdict.why
    assert verdict.again
    # Its ranks, left without a launcher, stopped and took the others along.
    stopped = judge([outcome(0, (0, 143, 100))], [(1, "host1")], 1)
    assert (stopped.code, stopped.again) == (3, True)


@pytest.mark.parametrize(("code", "again"), [
    (1, True), (2, False), (3, True), (4, False), (6, False), (130, False), (143, False),
    (KILL, True), (-signal.SIGSEGV, True), (TERM, False)])
def test_what_another_try_may_mend(code: int, again: bool):
    assert judge([outcome(0, (0, code, 1))], [], 1).again is again
    assert not judge([outcome(0, (0, code, 1))], [], 0).again


def test_whoever_was_asked_to_stop_is_not_started_again():
    verdict = judge([outcome(0, (0, KILL, 1), asked=signal.SIGTERM)], [], 5)
    assert not verdict.again
    before = judge([outcome(0, (0, TERM, 1), asked=signal.SIGTERM)], [], 5)
    assert (before.code, before.why) == (143, "stopped before the first step")
    assert judge([outcome(0, (0, TERM, 1))], [], 5).code == 143


def test_the_words_of_a_rank_are_everyones():
    mine = Failure(1, 3, 5, "no space left")
    echo = Failure(0, 3, 4, "another is gone", is_echo=True)
    verdict = judge([Outcome(0, "a", [echo, mine])], [], 0)
    assert (verdict.why, verdict.is_whole) == ("rank 1: no space left", True)
    verdict = judge([Outcome(0, "a", [echo]), Outcome(1, "b", [mine])], [], 0)
    assert verdict.why == "rank 1 on b: no space left"
    alike = [Failure(rank, 2, 9, "wrong recipe") for rank in (1, 0)]
    assert judge([Outcome(0, "a", alike)], [], 0).why == "wrong recipe"
    alone = judge([Outcome(0, "a", [echo])], [], 0)
    assert (alone.code, alone.why) == (3, "another is gone")
