"""What `lorafit eval` prints."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from lorafit.cli.show import console
from lorafit.cli.show_inspect import either as either

_SAID_EVERY_S = 20.0


class _Silent:
    """For scripts that read the standard output."""

    def begin(self, what: str, total: int) -> None:
        pass

    def advance(self, done: int) -> None:
        pass


class _Lines:
    """A line at the beginning of each part, and now and then how long it will take."""

    def __init__(self) -> None:
        self._what, self._total, self._done = "", 0, 0
        self._began = self._said = time.perf_counter()

    def begin(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._began = self._said = time.perf_counter()
        console.print(what, markup=False)

    def advance(self, done: int) -> None:
        from lorafit.train.display import duration

        self._done += done
        now = time.perf_counter()
        if self._done < self._total and now - self._said > _SAID_EVERY_S:
            left = (now - self._began) / self._done * (self._total - self._done)
            console.print(f"{self._what}: {self._done:,} done, {duration(left)} left", markup=False)
            self._said = now


class _Live:
    """A bar on a terminal."""

    def __init__(self, bar: Bar) -> None:
        self._bar, self._task = bar, bar.add_task("reading rows", total=None)

    def begin(self, what: str, total: int) -> None:
        self._bar.remove_task(self._task)
        self._task = self._bar.add_task(what, total=total)

    def advance(self, done: int) -> None:
        self._bar.advance(self._task, done)


@contextmanager
def progress(json_to: Path | None) -> Iterator[Any]:
    """Shows how far an evaluation is, and says after an interruption that it can go on."""
    try:
        if str(json_to) == "-":
            yield _Silent()
        elif sys.stdout.isatty():
            with Bar(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                     TimeRemainingColumn(), console=console, transient=True) as bar:
                yield _Live(bar)
        else:
            yield _Lines()
    except KeyboardInterrupt:
        print("interrupted; answers of a run are kept: the same command goes on", file=sys.stderr)
        raise


def evaluation(result: Any, samples: int, path: Path | None) -> None:
    """A line for each model, a line for each difference, and some answers."""
    console.print(f"rows      {len(result.rows):,} from {result.source}", markup=False)
    if result.settings["pattern"]:
        console.print(f"pattern   {result.settings['pattern']} ({result.settings['take']} match)",
                      markup=False)
    _print(_scores(result))
    for against in dict.fromkeys(each.against for each in result.differences):
        _print(_differences([each for each in result.differences if each.against == against],
                            result.measured_by))
    for remark in result.remarks:
        console.print(f"note      {remark}", markup=False)
    if samples and result.scores[0].rows:
        _print(_samples(result, samples))
    if path is not None:
        console.print(f"kept      {path}", markup=False)


def comparison(result: Any) -> None:
    """Models of several runs, each beside the first."""
    table = Table(title="side by side", title_justify="left")
    for heading in ("run", "model", result.measured_by, "95 %", "loss", "95 %"):
        table.add_column(heading, justify="left" if heading in ("run", "model") else "right",
                         overflow="fold")
    for side in result.sides:
        table.add_row(Text(side.where), side.score.name, *_figures(side.score)[:4])
    _print(table)
    pairs = [side for side in result.sides if side.difference is not None]
    if pairs:
        table = _difference_table(f"less {result.sides[0].where}", result.measured_by, "run")
        for side in pairs:
            table.add_row(Text(side.where), side.score.name, *_change(side.difference))
        _print(table)
    for side in result.sides:
        for reason in side.why_not:
            console.print(f"note      {side.where}: not compared: {reason}", markup=False)
    for source in dict.fromkeys(f"{side.where}: {side.evaluation} of {side.made}"
                                for side in result.sides):
        console.print(f"from      {source}", markup=False)


def tasks(result: Any, path: Path | None) -> None:
    """A line for each task and measure, base beside the others."""
    console.print(f"tasks     {', '.join(result.tasks)}, {result.asked}", markup=False)
    _print(_measures(result.measures, "lm-eval tasks", "model", "less base"))
    for remark in result.remarks:
        console.print(f"note      {remark}", markup=False)
    if path is not None:
        console.print(f"kept      {path}", markup=False)


def task_comparison(result: Any) -> None:
    """A line for each run, under each measure that the first has."""
    first = result.measures[0].values[0].model if result.measures else ""
    _print(_measures(result.measures, "side by side", "run", f"less {first}"))
    for remark in result.remarks:
        console.print(f"note      {remark}", markup=False)


def _measures(measures: list[Any], title: str, who: str, less: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("task", "measure", "rows", who, "value ± stderr", less, "95 %", "p"):
        table.add_column(heading, justify="left" if heading in ("task", "measure", who)
                         else "right", overflow="fold")
    for measure in measures:
        for i, value in enumerate(measure.values):
            stderr = "" if value.stderr is None else f" ± {value.stderr:.4f}"
            change = ["", "", ""] if value.difference is None else [
                f"{value.difference:+.4f}", _bounds(value.interval, "{:+.4f}"),
                "" if value.p_value is None else _p(value.p_value)]
            named = [measure.task, measure.name, f"{measure.rows:,}"] if i == 0 else ["", "", ""]
            table.add_row(*named, Text(value.model), f"{value.value:.4f}{stderr}", *change)
    return table


def _scores(result: Any) -> Table:
    table = Table(title="held-out rows", title_justify="left")
    for heading in ("", result.measured_by, "95 %", "loss (nats per token)", "95 %", "perplexity"):
        table.add_column(heading, justify="left" if not heading else "right")
    for score in result.scores:
        table.add_row(score.name, *_figures(score))
    return table


def _figures(score: Any) -> list[str]:
    answers = ["", ""]
    if score.rows:
        answers = [f"{score.correct}/{score.rows} = {score.accuracy:.1%}",
                   _bounds(score.accuracy_interval, "{:.1%}")]
    return [*answers, f"{score.loss:.4f}", _bounds(score.loss_interval, "{:.4f}"),
            f"{score.perplexity:,.4g}"]


def _differences(differences: list[Any], measured_by: str) -> Table:
    table = _difference_table(f"less {differences[0].against}, row by row", measured_by)
    for each in differences:
        table.add_row(each.name, *_change(each))
    return table


def _difference_table(title: str, measured_by: str, *before: str) -> Table:
    table = Table(title=title, title_justify="left")
    left = [*before, "model" if before else ""]
    for heading in (*left, measured_by, "95 %", "gained / lost", "p", "same answer", "loss",
                    "95 %"):
        table.add_column(heading, justify="left" if heading in left else "right", overflow="fold")
    return table


def _change(each: Any) -> list[str]:
    answers, loss = [""] * 5, ["", ""]
    if each.rows:
        answers = [f"{each.accuracy:+.1%}", _bounds(each.accuracy_interval, "{:+.1%}"),
                   f"{each.gained} / {each.lost}", _p(each.p_value),
                   f"{each.same_answers}/{each.rows}"]
    if each.loss is not None:
        loss = [f"{each.loss:+.4f}", _bounds(each.loss_interval, "{:+.4f}")]
    return [*answers, *loss]


def _bounds(interval: Any, form: str) -> str:
    return f"{form.format(interval.low)} to {form.format(interval.high)}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def _samples(result: Any, samples: int) -> Table:
    """Answers, half of them wrong where there are as many: those of the model evaluated."""
    names = [score.name for score in result.scores]
    judge = names[min(1, len(names) - 1)]
    table = Table(title=f"sample answers (✗ first: {judge} is wrong)", title_justify="left",
                  show_lines=True)
    for heading in ("prompt", "wanted", *names):
        table.add_column(heading, overflow="fold")
    asked = [row for row in result.rows if row.replies[judge].right is not None]
    wrong = [row for row in asked if not row.replies[judge].right]
    right = [row for row in asked if row.replies[judge].right]
    some = max(samples - len(right), min(len(wrong), samples - samples // 2))
    shown = wrong[:some]
    for row in [*shown, *right[: samples - len(shown)]]:
        table.add_row(Text(_clip(row.question)), Text(_clip(row.wanted)),
                      *(Text(f"{'✓' if row.replies[name].right else '✗'} "
                             f"{_clip(row.replies[name].answer)}") for name in names))
    return table


def _print(table: Table) -> None:
    """A terminal folds what is too wide for it; a file does not have to."""
    width = console.width if console.is_terminal else max(console.width, 140)
    Console(width=width, highlight=False).print(table)


def _clip(text: str, width: int = 300) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
