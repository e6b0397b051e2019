"""`lorafit runs`: every state a run can be in, and the figures of its logs."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from lorafit.errors import UserError
from lorafit.report.glance import State, find_runs, glance, open_glance
from lorafit.run_lock import Holder


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def dead_holder() -> Holder:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return replace(Holder.this(), pid=ended.pid)


def test_figures_are_those_of_the_logs(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    losses = {line["held_out_loss"]: line["step"] for line in lines
              if "held_out_loss" in line and line["step"] > 0}
    seen = glance(finished)
    assert seen.state is State.FINISHED
    assert (seen.step, seen.total_steps, seen.checkpoint) == (6, 6, 6)
    assert seen.loss == steps[-1]["loss"]
    assert (seen.held_out_loss, seen.best_step) == (min(losses), losses[min(losses)])
    assert seen.tokens_per_s == pytest.approx(
        sum(line["supervised_tokens"] for line in steps) / sum(line["seconds"] for line in steps))


def test_a_run_is_stopped_killed_or_running_by_who_holds_it(stopped: Path) -> None:
    assert glance(stopped).state is State.STOPPED
    holder = dead_holder()
    (stopped / "running.json").write_text(json.dumps(asdict(holder)))
    killed = glance(stopped)
    assert killed.state is State.KILLED
    assert str(holder.pid) in killed.remark
    (stopped / "running.json").write_text(json.dumps(asdict(Holder.this())))
    assert glance(stopped).state is State.RUNNING
    # A process of that number which began later is another one.
    (stopped / "running.json").write_text(json.dumps(asdict(replace(Holder.this(), begun=1.0))))
    assert glance(stopped).state is State.KILLED


def test_a_holder_elsewhere_is_at_work_while_it_touches_its_file(stopped: Path) -> None:
    file = stopped / "running.json"
    file.write_text(json.dumps(asdict(replace(Holder.this(), host="elsewhere"))))
    assert glance(stopped).state is State.RUNNING
    os.utime(file, (1, 1))
    assert glance(stopped).state is State.KILLED


@pytest.mark.parametrize(("broken", "said"), [
    (lambda run: (run / "result.json").write_text('{"sta'), "result.json"),
    (lambda run: (run / "record.json").write_text("[]"), "record.json"),
    (lambda run: (run / "recipe.yaml").unlink(), "recipe.yaml is missing"),
    (lambda run: (run / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n'), "line 2"),
    (lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\n"), "line 1"),
])
def test_a_damaged_run_is_a_row_and_an_error_where_it_is_asked_for(
        finished: Path, broken: Any, said: str) -> None:
    broken(finished)
    seen = glance(finished)
    assert seen.state is State.DAMAGED
    assert said in seen.remark
    with pytest.raises(UserError, match="is damaged") as raised:
        open_glance(finished)
    assert "lorafit doctor" in str(raised.value)


def test_a_line_without_an_end_is_being_written(finished: Path) -> None:
    before = glance(finished)
    with (finished / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    assert glance(finished).loss == before.loss


def test_a_newer_version_is_a_row_and_an_error_where_it_is_asked_for(finished: Path) -> None:
    edit(finished / "record.json", versions={"lorafit": "99.1.0"})
    assert glance(finished).state is State.NEWER
    with pytest.raises(UserError, match=r"of lorafit 99\.1\.0"):
        open_glance(finished)


def test_runs_are_found_wherever_they_lie(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("a recipe that lies beside runs is no run")
    (finished.parent / ".hidden").mkdir()
    (finished.parent / "link").symlink_to(tmp_path)
    assert list(find_runs(tmp_path)) == [finished]
    assert list(find_runs(finished)) == [finished]
    with pytest.raises(UserError, match="no such directory"):
        list(find_runs(tmp_path / "nowhere"))


def test_the_verb_lists_all_as_json_without_torch(finished: Path) -> None:
    two = finished.parent / "two"
    two.mkdir()
    (two / "record.json").write_text("{")
    (two / "metrics.jsonl").write_text("")
    program = ("import sys; sys.argv = ['lorafit', 'runs', sys.argv[1], '--sort', 'loss', '--json',"
               " '-']; from lorafit.cli.main import _run; code = _run(); "
               "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules); sys.exit(code)")
    done = subprocess.run([sys.executable, "-c", program, str(finished.parent)],
                          capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)["runs"]
    assert [(Path(row["path"]).name, row["state"]) for row in rows] == [
        ("one", "finished"), ("two", "damaged")]


@pytest.mark.parametrize(("arguments", "said"), [
    (["runs", "{}", "--sort", "colour"], "--sort"), (["runs", "{}/nowhere"], "no such directory"),
    (["follow", "{}"], "holds no run"), (["report", "{}/nowhere"], "no such run"),
])
def test_wrong_arguments_are_one_message(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lorafit", *(each.format(tmp_path) for each in arguments)],
        capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
