"""Work in several processes: in order, bounded, and never waiting for a dead one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorafit.data.workers import count, in_order
from lorafit.errors import MachineError, UserError


def slow_square(number: int) -> tuple[int, int]:
    time.sleep(0.02 * (number % 3))  # later items are done before earlier ones
    return number * number, os.getpid()


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_results_come_in_the_order_of_the_items(processes: int) -> None:
    results = list(in_order(slow_square, range(20), processes))
    assert [square for square, _ in results] == [n * n for n in range(20)]
    own = os.getpid()
    assert {pid == own for _, pid in results} == {processes == 1}


def test_one_item_or_none_is_worked_on_here() -> None:
    assert list(in_order(slow_square, [3], 4)) == [(9, os.getpid())]
    assert list(in_order(slow_square, [], 4)) == []


def test_items_are_taken_as_they_are_needed() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = in_order(slow_square, items(), 2)
    next(results)
    assert len(taken) < 10
    results.close()


def refuse(number: int) -> int:
    if number == 5:
        raise UserError("the sixth is bad", "somewhere", "mend it")
    return number


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_for_the_user_arrives_as_it_is(processes: int) -> None:
    with pytest.raises(UserError, match="somewhere: the sixth is bad\n    mend it"):
        list(in_order(refuse, range(10), processes))


def die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_process_is_an_error_not_a_wait() -> None:
    with pytest.raises(MachineError, match="was killed"):
        list(in_order(die, range(10), 2))


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_processes_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal, sys\n"
        "from lorafit.data.workers import in_order\n"
        "results = in_order(lambda n: os.getpid(), range(100), 2)\n"
        "print(*{next(results) for _ in range(50)}, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n", encoding="utf-8")
    # The workers hold the other end of a pipe, so their end is waited for in a file.
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, script], stdout=out, check=False)
    children = [int(pid) for pid in (tmp_path / "out").read_text().split()]
    assert children
    limit = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() and "Z" not in status(pid) for pid in children):
        assert time.monotonic() < limit, "a worker outlived its parent"
        time.sleep(0.2)


def status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_as_many_processes_as_cores_this_process_may_use() -> None:
    assert count(3) == 3
    available = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}
    assert count("auto") >= len(available) or count("auto") == os.cpu_count()


def test_ranks_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = count("auto")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert count("auto") == whole, "one rank works and the others wait"
    assert count("auto", on_every_rank=True) == max(1, whole // 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert count("auto", on_every_rank=True) == 1
    assert count(3, on_every_rank=True) == 3


def test_processes_that_start_anew_make_the_same_tokens(tmp_path: Path) -> None:
    """As on macOS and Windows, where nothing is forked: all that a process needs is sent to it."""
    from transformers import AutoTokenizer

    from lorafit.data.pipeline import Pipeline
    from lorafit.data.sources import Location, open_blocks
    from lorafit.model.base import TINY
    from lorafit.recipe.schema import Data

    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"question": "q {n}", "answer": "a {n}"}}\n' for n in range(90)))
    pipeline = Pipeline(Data(train=str(path)), AutoTokenizer.from_pretrained(TINY),
                        "prompt_completion", {"prompt": "question", "completion": "answer"})
    here, there = (
        list(in_order(pipeline, open_blocks(Location(str(path)), default_split="train",
                                            block_rows=30), processes, "spawn"))
        for processes in (1, 2))
    assert len(here) == len(there) == 3
    for one, other in zip(here, there, strict=True):
        assert one.rows.ids.tolist() == other.rows.ids.tolist()
        assert one.rows.rows.tolist() == other.rows.rows.tolist()
