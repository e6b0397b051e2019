"""SIGTERM at any step: the step is committed, the exit code says so, and nothing is lost."""

import shutil
import signal

from reliability.processes import wait_until
from reliability.row import Row, Setting, Tally
from reliability.subject import Lorafit, Peer, Subject, each, finish, uninterrupted

SELDOM = 1000  # nothing but the signal makes a checkpoint


def ask(setting: Setting, times: int) -> Tally:
    subject = Lorafit(setting.work, {"training": {"checkpoint_every": SELDOM}}, steps=30)
    return _ask(setting, times, subject, last=25, is_lorafit=True)


def of_peer(setting: Setting, times: int) -> Tally:
    """With enable_jit_checkpoint, which waits for 3 s before it saves: it is not asked how soon it
    saves, nor for an exit code, only for a checkpoint and the same result."""
    settings = {"save_steps": SELDOM, "save_at_signal": 1}
    return _ask(setting, times, Peer(setting.work, settings, steps=120), last=60, is_lorafit=False)


def _ask(setting: Setting, times: int, subject: Subject, last: int, *,
         is_lorafit: bool) -> Tally:
    whole = uninterrupted(subject)

    def case(number: int) -> str | None:
        draw = setting.draw("sigterm", number)
        run = subject.folder / f"run-{number}"
        step = draw.randint(1, last)
        process = subject.start(run)
        if not wait_until(lambda: subject.steps_done(run) >= step or not process.is_running(),
                          120):
            return f"did not reach step {step}"
        # Anywhere within the step that follows.
        wait_until(lambda: False, draw.uniform(0, whole.seconds / subject.steps))
        process.send(signal.SIGTERM)
        known = subject.steps_done(run)
        code = process.wait()
        saved = subject.saved_step(run)
        if is_lorafit and code != 128 + signal.SIGTERM:
            return f"step {known}: exit {code} in place of 143"
        if is_lorafit and not known <= saved <= known + 1:
            return f"SIGTERM after step {known}: committed at {saved}, not within a step"
        if saved < known:
            return f"SIGTERM after step {known}: the newest checkpoint is of step {saved}"
        problem = finish(subject, run, whole.digest)
        if problem is None:
            shutil.rmtree(run)
            return None
        return f"SIGTERM after step {known}, saved at {saved}: {problem}"

    return each(setting, times, case)


ROW = Row(
    "sigterm", "SIGTERM at a random step; the same command again",
    "committed within one optimizer step, exit 143, the same bytes in the end", 50, 3, ask,
    of_peer)
