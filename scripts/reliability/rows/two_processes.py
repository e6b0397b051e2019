"""Two ranks, one of them killed: nobody waits for the dead, and the run goes on as it was."""

import os
import shutil
import signal
import time

from reliability.processes import alive, children, session, wait_until
from reliability.row import Row, Setting, Tally
from reliability.subject import Lorafit, each, finish, uninterrupted

RANKS = 2
GONE_WITHIN_S = 30.0


def ask(setting: Setting, times: int) -> Tally:
    subject = Lorafit(setting.work, options=("--num-processes", str(RANKS)))
    whole = uninterrupted(subject, ranks=RANKS)
    took_s: list[float] = []

    def case(number: int) -> str | None:
        draw = setting.draw("two processes", number)
        run = subject.folder / f"run-{number}"
        process = subject.start(run, ranks=RANKS)
        begun: list[int] = []

        def have_begun() -> bool:
            begun[:] = [rank for rank in children(process.number) if rank in session(rank)]
            return len(begun) == RANKS or not process.is_running()

        if not wait_until(have_begun, 60) or len(begun) < RANKS:
            return f"the ranks did not begin\n{process.said()[-500:]}"
        after_s = draw.uniform(0, 0.8 * whole.seconds)
        wait_until(lambda: not process.is_running(), after_s)
        if not alive(begun):
            return f"it ended before one could be killed after {after_s:.2f} s"
        victim = draw.randrange(RANKS)
        os.kill(begun[victim], signal.SIGKILL)
        killed_s = time.monotonic()
        where = f"rank {victim} killed after {after_s:.2f} s"
        if not wait_until(lambda: not process.is_running() and not alive(begun),
                          GONE_WITHIN_S):
            for left in alive(begun):
                os.kill(left, signal.SIGKILL)
            process.send(signal.SIGKILL)
            return f"{where}: not gone within {GONE_WITHIN_S:.0f} s"
        took_s.append(time.monotonic() - killed_s)
        if process.code == 0:
            return f"{where}: exit 0"
        problem = finish(subject, run, whole.digest, ranks=RANKS)
        if problem is None:
            shutil.rmtree(run)
            return None
        return f"{where}: {problem}"

    tally = each(setting, times, case)
    if took_s:
        tally.remarks.append(f"the other rank and the launcher were gone after {max(took_s):.1f} s "
                             "at most")
    return tally


ROW = Row(
    "two-processes", "2 processes, one killed at random; the same command again",
    "both gone within 30 s, the same bytes as the uninterrupted run of 2", 30, 1, ask)
