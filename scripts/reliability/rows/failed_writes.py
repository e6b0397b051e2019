"""A disk that is full, broken or read-only, from any write on."""

import errno
import re
import shutil
from dataclasses import dataclass

from reliability.faults import Change, Fault, read_trace
from reliability.row import Row, Setting, Tally
from reliability.subject import Lorafit, each, finish, last_words, uninterrupted

# What fails, and which changes: as faults.c names them. A full disk still renames and removes; one
# that was mounted again for reading does neither.
KINDS = {
    "no space": (errno.ENOSPC, "cwms"),
    "I/O error": (errno.EIO, "cowtsrm"),
    "read-only": (errno.EROFS, "cowtrmu"),
}
STEPS = 3
SHARE = 0.2  # of the cases after which the run is resumed to the end
MANY = 10_000  # more than there are


@dataclass(frozen=True)
class Case:
    what: str
    change: Change
    committed: int  # step of the newest checkpoint at that moment, −1 before the first

    def __str__(self) -> str:
        return f"{self.what} at {self.change.kind} {'/'.join(self.change.path.split('/')[-2:])} " \
               f"(change {self.change.at})"


def ask(setting: Setting, times: int) -> Tally:
    from lorafit.errors import EXIT_CODES
    from lorafit.run_dir import RunDir, damage

    subject = Lorafit(setting.work, {
        "data": {"eval": str(setting.work / "eval.jsonl")},
        "training": {"keep_checkpoints": 1, "sample_prompts": ["How much is 1 and 2?"],
                     "sample_tokens": 2}}, STEPS)
    whole = uninterrupted(subject)
    trace = setting.work / "trace.txt"
    uninterrupted(subject, "traced", fault=Fault(str(setting.work / "traced"), trace=str(trace)))
    cases = _cases(read_trace(trace))
    chosen = cases if times >= len(cases) else setting.draw("writes").sample(cases, times)
    codes: dict[int, int] = {}

    def case(number: int) -> str | None:
        asked = chosen[number]
        draw = setting.draw("failed write", asked)
        run = setting.work / f"run-{number}"
        error, kinds = KINDS[asked.what]
        process = subject.start(run, fault=Fault(
            str(run), at=asked.change.at, error=error, kinds=kinds, lasting=True,
            percent=draw.randrange(100)))
        code = process.wait()
        codes[code] = codes.get(code, 0) + 1
        problem = _ended_well(asked, code, process.errors())
        good = [path for path in RunDir(run).list_checkpoints() if damage(path) is None]
        newest = max((int(path.name[5:]) for path in good), default=-1)
        if problem is None and newest < asked.committed:
            problem = f"the checkpoint of step {asked.committed} is lost, {newest} is left"
        if problem is None and draw.random() < SHARE:
            problem = finish(subject, run, whole.digest)
        if problem is None:
            shutil.rmtree(run, ignore_errors=True)
            return None
        return f"{asked}: {problem}: {last_words(process)}"

    tally = each(setting, len(chosen), case)
    tally.there_are = len(cases)
    said = ", ".join(f"{code} ({count}×: {EXIT_CODES.get(code, 'not documented')})"
                     for code, count in sorted(codes.items()))
    tally.remarks.append(f"{len(chosen)} of {len(cases)} writes that can fail; exit codes: {said}")
    return tally


def _ended_well(case: Case, code: int, errors: str) -> str | None:
    """Exit code and message. What only clears away may fail unnoticed."""
    if "Traceback" in errors:
        return f"exit {code} with a traceback"
    if code == 0:
        return None if case.change.kind == "u" else "exit 0 although a write failed"
    makes_directory = case.committed < 0 and case.change.kind == "m"
    if code != 3 and not (code == 2 and makes_directory):
        return f"exit {code}"
    if not re.search(r"^error: .*\S", errors, re.MULTILINE):
        return "no message"
    return None


def _cases(changes: list[Change]) -> list[Case]:
    cases = []
    committed = -1
    for change in changes:
        cases += [Case(what, change, committed)
                  for what, (_, kinds) in KINDS.items() if change.kind in kinds]
        if change.kind == "r" and (match := re.search(r"/step-(\d+)$", change.path)):
            committed = int(match[1])
    return cases


ROW = Row(
    "failed-writes", "no space, I/O error, read-only, each from every write of a run on",
    "exit 3 with a message, the last good checkpoint intact, the run can go on", MANY, 8, ask)
