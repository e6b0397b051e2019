"""`lorafit follow`: a real process writes into a run while it is watched."""

import json
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lorafit.report.follow import News, follow
from lorafit.report.glance import State
from lorafit.report.logs import Growing

# Holds the run's lock as training does, and does what it is told line by line.
_TRAINER = """
import sys, json
from pathlib import Path
from lorafit.run_dir import RunDir, append_jsonl, write_text
from lorafit.run_lock import RunLock
run = RunDir(Path(sys.argv[1]))
with RunLock(run):
    print("holds", flush=True)
    for told in sys.stdin:
        what, value = json.loads(told)
        if what == "append":
            append_jsonl(run.metrics, value)
        elif what == "cut":
            lines = run.metrics.read_text().splitlines(keepends=True)
            write_text(run.metrics, "".join(lines[:value]))
        print("done", flush=True)
"""

Tell = Callable[[str, object], None]


@contextmanager
def trainer(run: Path) -> Iterator[tuple[subprocess.Popen[str], Tell]]:
    process = subprocess.Popen([sys.executable, "-c", _TRAINER, str(run)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"

    def tell(what: str, value: object) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([what, value]) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"

    try:
        yield process, tell
    finally:
        process.kill()
        process.wait()


def test_every_line_is_news_once_and_the_view_ends_with_the_run(stopped: Path) -> None:
    lines = len((stopped / "metrics.jsonl").read_text().splitlines())
    with trainer(stopped) as (process, tell):
        news = follow(stopped, sleep=lambda seconds: None)
        first = next(news)
        assert first.standing.state is State.RUNNING
        assert len(first.lines) == lines
        assert next(news).lines == []
        tell("append", {"step": 7, "loss": 1.5})
        assert [line["step"] for line in next(news).lines] == [7]
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
        last: list[News] = list(news)
    assert [each.standing.state for each in last] == [State.STOPPED]


def test_a_killed_run_ends_the_view_with_what_it_wrote_last(stopped: Path) -> None:
    with trainer(stopped) as (process, tell):
        news = follow(stopped, sleep=lambda seconds: None)
        next(news)
        tell("append", {"step": 7, "loss": 1.5})
        process.send_signal(signal.SIGKILL)
        process.wait()
        last = list(news)
    assert [each.standing.state for each in last] == [State.KILLED]
    assert last[0].lines == [{"step": 7, "loss": 1.5}]


def test_a_log_that_was_cut_back_is_told_from_its_start(stopped: Path) -> None:
    with trainer(stopped) as (_, tell):
        news = follow(stopped, sleep=lambda seconds: None)
        next(news)
        tell("cut", 3)
        tell("append", {"step": 3, "loss": 2.5})
        again = next(news)
        assert again.again
        assert len(again.lines) == 4


def test_half_a_line_is_told_when_it_is_whole(tmp_path: Path) -> None:
    log = Growing(tmp_path / "metrics.jsonl")
    assert log.new() == []
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "loss": 2}\n{"step": 2,')
        file.flush()
        assert [line["step"] for line in log.new()] == [1]
        file.write(' "loss": 1}\n')
        file.flush()
        assert [line["step"] for line in log.new()] == [2]


def test_ctrl_c_ends_the_view_and_leaves_the_run_alone(stopped: Path) -> None:
    before = {path: path.read_bytes() for path in stopped.glob("*.json*")}
    with trainer(stopped) as (process, tell):
        view = subprocess.Popen([sys.executable, "-u", "-m", "lorafit", "follow", str(stopped)],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert view.stdout is not None
        assert "running" in view.stdout.readline()
        time.sleep(0.3)
        view.send_signal(signal.SIGINT)
        _, errors = view.communicate(timeout=20)
        assert view.returncode == 130
        assert "Traceback" not in errors
        tell("append", {"step": 7, "loss": 1.5})  # it still trains
        assert process.poll() is None
    for path, content in before.items():
        assert path.read_bytes()[: len(content)] == content


@pytest.mark.parametrize("ends", ["finished", "killed"])
def test_the_exit_code_says_how_it_ended(finished: Path, ends: str) -> None:
    if ends == "killed":
        (finished / "result.json").unlink()
        (finished / "running.json").write_text(json.dumps({
            "pid": 2**22 + 1, "host": platform.node(), "user": "", "begun": 1.0,
            "command": []}))
    done = subprocess.run([sys.executable, "-m", "lorafit", "follow", str(finished)],
                          capture_output=True, text=True)
    assert done.returncode == (0 if ends == "finished" else 3)
    assert "step 6/6" in done.stdout
    assert ("killed after step 6" in done.stderr) == (ends == "killed")
