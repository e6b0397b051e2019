"""The table of scripts/prove_reliability.py, each row a few times: real processes, really killed.

Counts are small here; `python scripts/prove_reliability.py` asks as often as docs/reliability.md
says.
"""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

from reliability import processes  # noqa: E402
from reliability.faults import Fault, read_trace  # noqa: E402
from reliability.inject import Injection  # noqa: E402
from reliability.processes import forks  # noqa: E402
from reliability.proof import Proof  # noqa: E402
from reliability.report import as_json, page  # noqa: E402
from reliability.row import Row, Setting, Tally  # noqa: E402
from reliability.rows import (  # noqa: E402
    damaged,
    failed_writes,
    five_kills,
    kills,
    nonfinite,
    out_of_memory,
    saving,
    sigterm,
    twice,
    two_processes,
)
from reliability.subject import Lorafit, each, uninterrupted  # noqa: E402

QUICK = (kills, sigterm, damaged, failed_writes, nonfinite, out_of_memory, twice)
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked")


@pytest.fixture(scope="module", autouse=True)
def _server():
    """One for all rows, and gone with them."""
    yield
    processes.close()


@pytest.mark.parametrize("row", [module.ROW for module in QUICK], ids=lambda row: row.name)
def test_row(row: Row, tmp_path: Path) -> None:
    _ask(row, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("row", [five_kills.ROW, two_processes.ROW, saving.COST, saving.RESUME],
                         ids=lambda row: row.name)
def test_longer_row(row: Row, tmp_path: Path) -> None:
    _ask(row, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("row", [module.ROW for module in (kills, five_kills, sigterm, damaged,
                                                          nonfinite, twice)],
                         ids=lambda row: row.name)
def test_the_script_beside_can_be_asked_the_same(row: Row, tmp_path: Path) -> None:
    """What comes out is its own affair; the question must be one that it understands."""
    assert row.of_peer is not None
    tally = row.of_peer(Setting(tmp_path), 2)
    assert tally.asked == 2
    assert not any("Error: " in problem.partition(": ")[2][:30] for problem in tally.problems)


def _ask(row: Row, folder: Path) -> None:
    tally = row.ask(Setting(folder, jobs=2), row.times_in_tests)
    assert tally.problems == []
    assert tally.passed == tally.asked >= row.times_in_tests


def test_a_kill_hits_the_process_at_the_change_that_was_drawn(tmp_path: Path) -> None:
    """Were the faults not to happen, every row would pass."""
    subject = Lorafit(tmp_path, steps=3)
    trace = tmp_path / "trace.txt"
    uninterrupted(subject, fault=Fault(str(tmp_path / "whole"), trace=str(trace)))
    changes = read_trace(trace)
    at = next(c.at for c in changes if c.kind == "r" and c.path.endswith("step-00000002"))
    run = tmp_path / "killed"
    process = subject.start(run, fault=Fault(str(run), at=at))
    assert process.wait() == -signal.SIGKILL
    assert subject.saved_step(run) == 1
    if forks().sees_every_change:
        assert {"w", "s", "r", "c", "m"} <= {change.kind for change in changes}
        assert any(change.path.endswith(".safetensors") for change in changes)


def test_what_is_injected_happens(tmp_path: Path) -> None:
    subject = Lorafit(tmp_path, {"training": {"checkpoint_every": 5}}, steps=2)
    for number, what in enumerate(("loss", "gradient", "update")):
        run = tmp_path / f"run-{number}"
        assert subject.start(run, injection=Injection(what, 1)).wait() == 4, what


def test_a_problem_is_counted_and_shown(tmp_path: Path) -> None:
    def case(number: int) -> str | None:
        if number == 1:
            raise ValueError("went wrong")
        return "other bytes" if number == 2 else None

    tally = each(Setting(tmp_path, jobs=2), 4, case)
    assert (tally.asked, tally.passed) == (4, 2)
    assert tally.problems == ["#1: ValueError: went wrong", "#2: other bytes"]
    row = Row("name", "a title", "whole", 4, 1, lambda setting, times: tally)
    proof = Proof(row, 4, tally, 1.0, Tally(2, 1, ["#0: lost"], []))
    assert not proof.is_reached
    assert "| a title | whole | **2/4** | 1/2 |" in page([proof], 0)
    assert json.loads(as_json([proof]))[0]["reached"] is False


def test_a_row_that_was_asked_too_seldom_is_not_reached() -> None:
    row = Row("name", "a title", "whole", 4, 1, lambda setting, times: Tally(3, 3))
    assert not Proof(row, 4, Tally(3, 3), 1.0).is_reached
    assert Proof(row, 4, Tally(3, 3, there_are=3), 1.0).is_reached
    assert not Proof(row, 4, Tally(0, 0, there_are=0), 1.0).is_reached
