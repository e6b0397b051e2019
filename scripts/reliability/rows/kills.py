"""kill -9 once: between two changes to the files, within a write, or by the clock."""

import shutil
import signal
from functools import partial
from pathlib import Path

from reliability.faults import Fault, read_trace
from reliability.row import Row, Setting, Tally
from reliability.subject import Lorafit, Peer, each, finish, uninterrupted


def ask(setting: Setting, times: int, of: type[Lorafit] | type[Peer] = Lorafit) -> Tally:
    subject = of(setting.work)
    whole = uninterrupted(subject)
    traced = subject.folder / "traced"
    trace = subject.folder / "trace.txt"
    uninterrupted(subject, traced.name, fault=Fault(str(traced), trace=str(trace)))
    saves = [change for change in read_trace(trace) if subject.is_saving(change.path)]

    def case(number: int) -> str | None:
        draw = setting.draw("kill", number)
        run = subject.folder / f"run-{number}"
        if number % 2 == 0:
            change = draw.choice(saves)
            percent = draw.randrange(100)
            when = f"at change {change.at} ({change.kind} {Path(change.path).name}, {percent} %)"
            process = subject.start(run, fault=Fault(str(run), at=change.at, percent=percent))
            process.wait()
        else:
            after_s = draw.uniform(0, whole.seconds)
            when = f"after {after_s:.3f} s"
            process = subject.start(run)
            process.kill_after(after_s)
        if process.code not in (-signal.SIGKILL, 0):
            return f"killed {when}: ended with {process.code} instead"
        problem = finish(subject, run, whole.digest)
        if problem is None:
            shutil.rmtree(run)
            return None
        return f"killed {when}: {problem}"

    tally = each(setting, times, case)
    tally.remarks.append(f"{len(saves)} places inside saves to be killed at")
    return tally


ROW = Row(
    "kill", "kill -9 at a random instant, half of them inside a save; the same command again",
    "the adapter's SHA-256 is the uninterrupted run's", 200, 4, ask, partial(ask, of=Peer))
