"""Where a run stands, from a few small reads: for a table of many, and before one is reported."""

import math
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from lorafit import __version__
from lorafit.errors import UserError
from lorafit.json_files import read_object
from lorafit.report.logs import Damaged, Log, best_evaluation, is_number, steps_of, tokens_per_s
from lorafit.run_dir import RunDir
from lorafit.run_lock import BEAT_S, Holder, holder_of

_SILENT_S = 6 * BEAT_S  # a holder on another machine that has not touched its file for so long


class State(StrEnum):
    """running: a process trains in it. finished: its result is there. stopped: it ended as it
    should before its end. killed: it ended without a word. damaged, newer: it cannot be read."""

    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    KILLED = "killed"
    DAMAGED = "damaged"
    NEWER = "newer"


@dataclass(frozen=True)
class Glance:
    """A run in a line.

    step: the last that was logged. checkpoint: the newest one, which --resume goes on from. at:
    when it last wrote something, in seconds since 1970. tokens_per_s: supervised ones, over the
    last steps. remark: who trains, or what is wrong.
    """

    path: str
    state: State
    step: int = 0
    total_steps: int | None = None
    loss: float | None = None
    held_out_loss: float | None = None
    best_step: int | None = None
    checkpoint: int | None = None
    tokens_per_s: float | None = None
    at: float | None = None
    remark: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Without numbers that JSON has no word for."""
        return {key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in asdict(self).items()}


def find_runs(directory: Path) -> Iterator[Path]:
    """Run directories in a tree. Nothing is looked for inside of a run, behind symbolic links, or
    in hidden directories. UserError where there is no such directory."""
    if not directory.is_dir():
        raise UserError("is no directory" if directory.exists() else "no such directory",
                        str(directory), "name a directory that holds runs: output.dir of a recipe, "
                        "or one above it")
    yield from _runs_below(directory)


def _runs_below(directory: Path) -> Iterator[Path]:
    if looks_like_a_run(directory):
        yield directory
        return
    try:
        inside = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in inside:
        if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
            yield from _runs_below(Path(entry.path))


def looks_like_a_run(path: Path) -> bool:
    """Whether a directory holds what runs write: a recipe alone may lie anywhere."""
    run = RunDir(path)
    wrote = (run.checkpoints, run.record, run.metrics, run.running)
    return sum(each.exists() for each in (run.recipe, *wrote)) >= 2


def glance(path: Path) -> Glance:
    """Where a run stands. Never fails: what cannot be read is its state."""
    run = RunDir(path)
    last = Glance(str(path), State.DAMAGED, at=_written_s(run), checkpoint=_newest(run))
    try:
        if (newer := newer_version(run)) is not None:
            return _but(last, State.NEWER, f"of lorafit {newer}, and this is {__version__}")
        return _read(run, last)
    except (UserError, Damaged) as error:
        said = error.problems[0] if isinstance(error, UserError) else None
        remark = str(error) if said is None else f"{Path(said.where).name} {said.what}"
        return _but(last, State.DAMAGED, remark)
    except (OSError, TypeError, ValueError, KeyError, AttributeError) as error:
        return _but(last, State.DAMAGED, f"cannot be read: {error}")


def open_glance(path: Path) -> Glance:
    """The same for a run that was asked for by name. UserError where it cannot be read."""
    if not path.is_dir():
        raise UserError("no such run" if not path.exists() else "is no directory", str(path),
                        "name a run directory; lorafit runs lists those below a directory")
    if not looks_like_a_run(path):
        raise UserError("holds no run", str(path), "name a run directory: output.dir of a recipe "
                        "that was trained; lorafit runs lists those below a directory")
    seen = glance(path)
    if seen.state is State.NEWER:
        raise UserError(f"is a run {seen.remark}", str(path),
                        "read it with that version, or a newer one")
    if seen.state is State.DAMAGED:
        raise UserError(f"is damaged: {seen.remark}", str(path),
                        f"lorafit doctor {path} says what is, and what can be done")
    return seen


def _but(last: Glance, state: State, remark: str) -> Glance:
    return Glance(last.path, state, checkpoint=last.checkpoint, at=last.at, remark=remark)


def _read(run: RunDir, last: Glance) -> Glance:
    record = read_object(run.record) if run.record.exists() else {}
    log = Log(run.metrics)
    tail = log.tail()
    steps = steps_of(tail)
    best = best_evaluation(log.evaluations())
    state, remark = _state(run)
    total = record.get("plan", {}).get("total_steps")
    return Glance(
        last.path, state, max((line["step"] for line in tail), default=0),
        int(total) if is_number(total) else None, steps[-1]["loss"] if steps else None,
        best[1] if best else None, best[0] if best else None, last.checkpoint,
        tokens_per_s(steps), last.at, remark)


def _state(run: RunDir) -> tuple[State, str]:
    holder = holder_of(run)
    if holder is not None and is_at_work(run, holder):
        return State.RUNNING, f"process {holder.pid} on {holder.host}"
    if not run.recipe.exists():
        return State.DAMAGED, f"{run.recipe.name} is missing"
    if run.result.exists():
        result = read_object(run.result)
        if not run.adapter.is_dir():
            return State.DAMAGED, "adapter is missing, and result.json says that it is there"
        early = result.get("progress", {}).get("stopped_early") is True
        return State.FINISHED, "stopped early: no gain on the held-out rows" if early else ""
    if run.running.exists():
        who = "" if holder is None else f"process {holder.pid} on {holder.host}"
        return State.KILLED, f"{who} ended without a word".strip()
    return State.STOPPED, ""


def is_at_work(run: RunDir, holder: Holder) -> bool:
    """Whether who says that it trains here still does. On this machine by its process, which must
    not be younger than what it wrote; elsewhere by running.json, which it touches."""
    if holder.host != platform.node():
        try:
            return time.time() - run.running.stat().st_mtime < _SILENT_S
        except OSError:
            return False
    import psutil

    try:
        process = psutil.Process(holder.pid)
        is_there = process.status() != psutil.STATUS_ZOMBIE
        return is_there and process.create_time() <= holder.begun + 1.0
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # somebody else's
        return True


def newer_version(run: RunDir) -> str | None:
    """The version of lorafit that a run was made with, where it is a later one than this: 0.2 than
    0.1. What a run directory holds stays the same between patches."""
    if not run.record.exists():
        return None
    versions = read_object(run.record).get("versions")
    version = versions.get("lorafit") if isinstance(versions, dict) else None
    if not isinstance(version, str) or _minor(version) <= _minor(__version__):
        return None
    return version


def _minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _newest(run: RunDir) -> int | None:
    numbers = [path.name.removeprefix("step-") for path in run.list_checkpoints()]
    return max((int(number) for number in numbers if number.isdigit()), default=None)


def _written_s(run: RunDir) -> float | None:
    times = []
    for path in (run.metrics, run.result, run.latest, run.recipe, run.record):
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return max(times, default=None)
