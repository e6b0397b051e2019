"""Runs trials as processes of `lorafit train`, some at a time, and knows which are over.

A trial whose run has a result is not run again. One that was begun goes on from its newest
checkpoint. One that diverged is over; one that failed otherwise (out of memory, a full disk) is
tried again when the study is started again. A run that a killed study left training is waited for.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from filelock import FileLock, Timeout

from lorafit.errors import DEADLINE_EXIT_CODE, Stopped
from lorafit.recipe.loading import dump_recipe
from lorafit.run_dir import RunDir, write_json, write_text
from lorafit.study.folder import StudyDir, Trial
from lorafit.study.outcome import Outcome, outcome_of

_LOOK_S = 0.1
_ENDED_FROM_OUTSIDE = {130, 143, DEADLINE_EXIT_CODE}


class Watcher(Protocol):
    """Is told how a study gets on. known: trials that were over before."""

    def known(self, trials: int) -> None: ...
    def ended(self, outcome: Outcome, seconds: float, left: int, jobs: int) -> None: ...
    def waits(self, name: str) -> None: ...


@dataclass
class Runner:
    """Runs trials of one study. jobs: processes at a time. deadline_s: the perf_counter at which
    nothing more is begun, and what is under way is stopped, with a checkpoint."""

    folder: StudyDir
    jobs: int
    deadline_s: float | None
    watcher: Watcher
    is_out_of_time: bool = field(default=False, init=False)
    _tried: set[str] = field(default_factory=set, init=False)

    def run(self, trials: Sequence[Trial]) -> dict[str, Outcome]:
        """Outcomes by name; fewer than trials where time ran out. Raises Stopped on a signal."""
        outcomes: dict[str, Outcome] = {}
        waiting = []
        for trial in trials:
            outcome = self._known(trial)
            if outcome is None:
                waiting.append(trial)
            else:
                outcomes[trial.name] = outcome
        self.watcher.known(len(outcomes))
        running: list[_Process] = []
        with _asked_to_end() as asked:
            try:
                while (waiting or running) and not asked:
                    if self._is_late():
                        self.is_out_of_time = True
                        break
                    while len(running) < self.jobs and (
                            following := self._next(waiting, outcomes)):
                        running.append(self._begin(following, running))
                    for process in [each for each in running if each.is_over()]:
                        running.remove(process)
                        outcome = process.outcome()
                        outcomes[outcome.name] = outcome
                        self._tried.add(outcome.name)
                        self.watcher.ended(outcome, process.seconds, len(waiting) + len(running),
                                           self.jobs)
                    time.sleep(_LOOK_S)
            finally:
                for process in running:
                    process.end()
                for process in running:
                    process.wait(asked)
        if asked:
            raise Stopped(128 + asked[0], "stopped; what is under way was committed, and the same "
                          "command goes on")
        return outcomes

    def _known(self, trial: Trial) -> Outcome | None:
        outcome = outcome_of(self.folder, trial)
        is_final = outcome is not None and (
            outcome.problem is None or outcome.diverged or trial.name in self._tried)
        return outcome if is_final else None

    def _is_late(self) -> bool:
        return self.deadline_s is not None and time.perf_counter() > self.deadline_s

    def _next(self, waiting: list[Trial], outcomes: dict[str, Outcome]) -> Trial | None:
        """The first trial that nobody trains. One that an earlier study left training may be over
        by now."""
        for trial in list(waiting):
            if _is_trained(self.folder.run(trial.name)):
                self.watcher.waits(trial.name)
                continue
            waiting.remove(trial)
            if (known := self._known(trial)) is None:
                return trial
            outcomes[trial.name] = known
        return None

    def _begin(self, trial: Trial, running: Sequence["_Process"]) -> "_Process":
        taken = {process.slot for process in running}
        slot = next(slot for slot in range(self.jobs) if slot not in taken)
        return _Process(self.folder, trial, slot, _environment(slot, self.jobs))


class _Process:
    """A trial that trains."""

    def __init__(self, folder: StudyDir, trial: Trial, slot: int,
                 environment: Mapping[str, str]) -> None:
        self._folder, self._trial, self.slot = folder, trial, slot
        for path in (folder.recipe(trial.name), folder.log(trial.name)):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_text(folder.recipe(trial.name), dump_recipe(trial.recipe))
        folder.failure(trial.name).unlink(missing_ok=True)
        self._began_s = time.perf_counter()
        with folder.log(trial.name).open("w", encoding="utf-8") as log:
            # A group of its own: Ctrl-C reaches the study, which ends its runs.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lorafit", "train", str(folder.recipe(trial.name)),
                 "--auto-resume"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=environment, start_new_session=True)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began_s

    def is_over(self) -> bool:
        return self._process.poll() is not None

    def end(self) -> None:
        with suppress(ProcessLookupError):
            self._process.terminate()

    def wait(self, asked: Sequence[int]) -> None:
        """Until it has committed; it is killed when somebody asks a second time."""
        while self._process.poll() is None:
            if len(asked) > 1:
                self._process.kill()
            time.sleep(_LOOK_S)

    def outcome(self) -> Outcome:
        """Of a process that is over; how it failed is kept."""
        code = self._process.returncode
        if code != 0 or not self._folder.run(self._trial.name).result.exists():
            failure = self._folder.failure(self._trial.name)
            failure.parent.mkdir(parents=True, exist_ok=True)
            write_json(failure, {"exit_code": code, "said": self._said(code)})
        outcome = outcome_of(self._folder, self._trial)
        assert outcome is not None
        return outcome

    def _said(self, code: int) -> str:
        text = self._folder.log(self._trial.name).read_text(encoding="utf-8", errors="replace")
        told = [line.strip() for line in text.splitlines() if line.startswith("error: ")]
        if told:
            return told[-1].removeprefix("error: ")
        if code < 0:
            return f"killed by {signal.Signals(-code).name} (out of memory?)"
        if code in _ENDED_FROM_OUTSIDE:
            return f"ended from outside (exit code {code})"
        return f"ended with exit code {code}; see logs/{self._trial.name}.log"


def _environment(slot: int, jobs: int) -> dict[str, str]:
    """Of the process in a place of several: a GPU by itself where there are any, and its share of
    the cores."""
    variables = dict(os.environ)
    if jobs > 1:
        from lorafit.model.device import gpu_count

        named = variables.get("CUDA_VISIBLE_DEVICES")
        gpus = named.split(",") if named else [str(number) for number in range(gpu_count())]
        if gpus:
            variables["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        variables.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    return variables


def _is_trained(run: RunDir) -> bool:
    if not run.lock.exists():
        return False
    try:
        with FileLock(run.lock, timeout=0):
            return False
    except Timeout:
        return True


@contextmanager
def _asked_to_end() -> Iterator[list[int]]:
    """The signals that asked to end, as they come."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before: Mapping[int, Any] = {
        number: signal.signal(number, lambda number, frame: asked.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
