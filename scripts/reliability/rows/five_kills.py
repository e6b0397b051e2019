"""kill -9 five times in one run that has everything on: dropout, accumulation, packing, workers."""

import shutil

from reliability.faults import Fault
from reliability.processes import Process, session, wait_until
from reliability.row import Row, Setting, Tally
from reliability.subject import Lorafit, Peer, Subject, each, finish, uninterrupted

KILLS = 5
STEPS = 18
CHANGES_A_STEP = 32  # to files, about
WORKERS_LEAVE_S = 10.0

_EVERYTHING = {
    "data": {"workers": 2, "max_length_tokens": 64},
    # Eight sequences of about 30 tokens in rows of 64, a row at a time: four micro-batches.
    "training": {"batch_size": 8, "micro_batch_size": 1, "batching": "packed"},
}
_STREAMED = {**_EVERYTHING, "data": {**_EVERYTHING["data"], "streaming": True, "shuffle_rows": 16}}


def ask(setting: Setting, times: int) -> Tally:
    """Half of the runs read their rows as they train (workers all along), half before."""
    subjects = [Lorafit(setting.work / "streamed", _STREAMED, STEPS),
                Lorafit(setting.work / "read", _EVERYTHING, STEPS)]
    return _ask(setting, times, subjects)


def of_peer(setting: Setting, times: int) -> Tally:
    settings = {"batch_size": 2, "accumulation": 4, "workers": 2}
    return _ask(setting, times, [Peer(setting.work / "peer", settings, STEPS)])


def _ask(setting: Setting, times: int, subjects: list[Subject]) -> Tally:
    wholes = [uninterrupted(subject) for subject in subjects]
    left_behind: list[int] = []

    def case(number: int) -> str | None:
        subject, whole = subjects[number % len(subjects)], wholes[number % len(subjects)]
        run = subject.folder / f"run-{number}"
        sessions = []
        for kill in range(KILLS):
            process = _killed(setting, number, kill, subject, whole.seconds)
            sessions.append(process.number)
            if process.code == 0:
                return f"it ended before kill {kill + 1}"
            if process.code != -9:
                return f"kill {kill + 1}: ended with {process.code} before"
        problem = finish(subject, run, whole.digest, environment=_own_cache(number, KILLS, subject))
        if problem is not None:
            return problem
        gone = wait_until(lambda: not any(map(session, sessions)), WORKERS_LEAVE_S)
        left_behind.extend(() if gone else [number])
        shutil.rmtree(run)
        return None if gone else f"workers of a killed run live on after {WORKERS_LEAVE_S:.0f} s"

    tally = each(setting, times, case)
    tally.remarks.append(f"{KILLS * tally.asked} kills; workers of killed runs left by themselves "
                         f"within {WORKERS_LEAVE_S:.0f} s in {tally.asked - len(left_behind)} of "
                         f"{tally.asked} runs")
    return tally


def _own_cache(number: int, kill: int, subject: Subject) -> dict[str, str]:
    """A cache that is empty at each start, so that workers have rows to tokenise every time."""
    return {"LORAFIT_CACHE": str(subject.folder / "caches" / f"{number}-{kill}")}


def _killed(setting: Setting, number: int, kill: int, subject: Subject,
            whole_s: float) -> Process:
    """Start, or go on, and be killed after at most three steps more."""
    draw = setting.draw("five kills", number, kill)
    run = subject.folder / f"run-{number}"
    environment = _own_cache(number, kill, subject)
    if draw.random() < 0.5:
        at = draw.randint(1, 2 * CHANGES_A_STEP)
        process = subject.start(run, environment=environment,
                                fault=Fault(str(run), at=at, percent=draw.randrange(100)))
        process.wait()
        return process
    before = subject.saved_step(run)
    process = subject.start(run, environment=environment)
    target = before + draw.randint(0, 2)
    wait_until(lambda: subject.saved_step(run) >= target or not process.is_running(), 120)
    process.kill_after(draw.uniform(0, whole_s / STEPS))
    return process


ROW = Row(
    "five-kills", "five kill -9 in one run: dropout, accumulation 4, packed, 2 workers",
    "the adapter's SHA-256 is the uninterrupted run's", 40, 2, ask, of_peer)
