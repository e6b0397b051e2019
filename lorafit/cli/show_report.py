"""What `runs` and `follow` print."""

import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorafit.cli.show import console
from lorafit.preview.visible import safe
from lorafit.report.follow import News
from lorafit.report.glance import Glance, State
from lorafit.report.logs import RATE_STEPS, Line, best_evaluation, is_number, steps_of
from lorafit.train.display import Display, Load

_STYLES = {State.RUNNING: "green", State.KILLED: "red", State.DAMAGED: "red", State.NEWER: "yellow"}


def runs(seen: Sequence[Glance], directory: Path) -> None:
    """A row a run. A table that has no room is folded, not cut."""
    table = Table(title=f"runs in {safe(str(directory))}", title_justify="left")
    for name in ("run", "state"):
        table.add_column(name, overflow="fold")
    for name in ("step", "loss", "held-out at best", "tokens/s", "last written"):
        table.add_column(name, justify="right")
    table.add_column("", overflow="fold")
    for each in seen:
        name = os.path.relpath(each.path, directory)
        best = _loss(each.held_out_loss) + (
            f" (step {each.best_step:,})" if each.best_step is not None else "")
        table.add_row(
            Text(safe(Path(each.path).name if name == "." else name)),
            Text(each.state, style=_STYLES.get(each.state, "")), _step(each), _loss(each.loss),
            best, "" if each.tokens_per_s is None else f"{each.tokens_per_s:,.0f}", _when(each.at),
            Text(safe(_remark(each))))
    Console(width=max(console.width, 120), highlight=False).print(table)


def _step(each: Glance) -> str:
    if each.state in (State.DAMAGED, State.NEWER):
        return ""
    return f"{each.step:,}" + (f" of {each.total_steps:,}" if each.total_steps else "")


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _when(at: float | None) -> str:
    return "" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def _remark(each: Glance) -> str:
    goes_on = each.state in (State.STOPPED, State.KILLED) and each.checkpoint is not None
    return "; ".join(filter(None, (each.remark, f"--resume goes on from step {each.checkpoint:,}"
                                   if goes_on else "")))


def followed(news: Iterator[News], display: Display, processes: int) -> Glance:
    """Show a run as it shows itself where it was started; how it stood at the end."""
    try:
        best = math.inf
        standing = None
        for new in news:
            lines, answers = new.lines, new.answers
            if standing is None or new.again:
                if standing is not None:
                    display.say("the run goes on from a checkpoint")
                best = _joined(lines, new.standing, display, processes)
                lines, answers = [], answers[-1:]
            standing = new.standing
            for line in lines:
                best = _told(line, best, display, processes)
            for answer in answers:
                display.sample(_shown(answer.get("prompt")), _shown(answer.get("answer")))
        assert standing is not None
        return standing
    finally:
        display.stop()


def _joined(lines: Sequence[Line], standing: Glance, display: Display, processes: int) -> float:
    """Show where a run stands whose earlier steps were not watched; its best held-out loss."""
    best = best_evaluation(lines)
    display.say(f"{standing.path}: {standing.state}, {_step(standing) or 'no'} steps"
                + (f"; {standing.remark}" if standing.remark else ""))
    if best is not None:
        display.say(f"held-out loss {best[1]:.4f} at best (step {best[0]:,})")
    steps = steps_of(lines)[-RATE_STEPS:]
    display.start(max(0, standing.step - len(steps)), standing.total_steps or standing.step or 1)
    for line in steps:
        _told(line, math.inf, display, processes)
    return math.inf if best is None else best[1]


def _told(line: Line, best: float, display: Display, processes: int) -> float:
    """Show a line of the log; the best held-out loss so far."""
    step = line["step"]
    if is_number(line.get("loss")):
        load = Load(processes, _number(line, "seconds_data"),
                    _number(line, "seconds_communication"), int(_number(line, "memory_bytes")))
        display.step(step, line["loss"], _number(line, "learning_rate"),
                     int(_number(line, "supervised_tokens")), _number(line, "seconds"), load)
    elif is_number(line.get("held_out_loss")):
        loss = line["held_out_loss"]
        is_best = step > 0 and loss < best
        display.evaluation(step, loss, is_best)
        return loss if is_best else best
    elif said := line.get("warning") or line.get("skipped"):
        display.say(safe(f"warning: step {step}: {said}"))
    return best


def _shown(text: object) -> str:
    return safe(" ".join(str(text).split()))


def _number(line: Line, key: str) -> float:
    value: Any = line.get(key)
    return value if is_number(value) else 0.0


def over(standing: Glance) -> None:
    """How a run ended, and what to type next."""
    path = standing.path
    if standing.state is State.FINISHED:
        console.print(f"finished after step {standing.step:,}"
                      + (f"; {standing.remark}" if standing.remark else ""), markup=False)
        console.print(f"next      lorafit report {path}", markup=False)
    else:
        console.print(f"{standing.state} after step {_step(standing)}", markup=False)
        console.print(f"next      lorafit train {path}/recipe.yaml --resume", markup=False)


def written(page: Path, plots: Sequence[Path]) -> None:
    console.print(f"{page} written ({page.stat().st_size / 1e3:,.0f} kB)", markup=False)
    if plots:
        console.print(f"{len(plots)} plots in {plots[0].parent}", markup=False)
