"""A run that goes on, watched through its directory."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lorafit.report.glance import Glance, State, open_glance
from lorafit.report.logs import Growing, Line
from lorafit.run_dir import RunDir

EVERY_S = 0.5


@dataclass(frozen=True)
class News:
    """What was written down since the last look, and where the run stands. again: the log was cut
    back to a checkpoint that the run goes on from, and `lines` begin at its start."""

    lines: list[Line]
    answers: list[Line]
    standing: Glance
    again: bool


def follow(path: Path, sleep: Callable[[float], None] = time.sleep) -> Iterator[News]:
    """News of a run, the first at once and with all that was logged, until it does not go on any
    more. UserError when there is no run, or it cannot be read."""
    run = RunDir(path)
    metrics, samples = Growing(run.metrics), Growing(run.samples)
    while True:
        # Looked at before the logs: what was written before the end is then among the news.
        standing = open_glance(path)
        yield News(metrics.new(), samples.new(), standing, metrics.restarted)
        if standing.state is not State.RUNNING:
            return
        sleep(EVERY_S)
