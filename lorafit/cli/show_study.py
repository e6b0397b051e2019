"""What `lorafit sweep` and `lorafit regret` print."""

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lorafit.cli.show import console
from lorafit.cli.show_inspect import either as either


class Progress:
    """A line for each run that ends, and after the first how long the others will take.

    To the standard error where the standard output is a script's.
    """

    def __init__(self, json_to: Path | None, expected: int) -> None:
        self._file = sys.stderr if str(json_to) == "-" else sys.stdout
        self._expected, self._done, self._before = expected, 0, 0
        self._said: dict[str, float] = {}

    def begin(self, text: str) -> None:
        print(text, file=self._file, flush=True)

    def known(self, trials: int) -> None:
        if self._done == 0:
            self._before += trials

    def ended(self, outcome: Any, seconds: float, left: int, jobs: int) -> None:
        from lorafit.train.display import duration

        self._done += 1
        if outcome.problem is not None:
            told = outcome.problem.splitlines()[0]
        else:
            told = f"held-out loss {outcome.loss:.4f}"
        print(f"{self._done:>4}  {outcome.name}: {told} ({duration(seconds)})", file=self._file,
              flush=True)
        if self._done == 1:
            ahead = max(left, self._expected - self._before - 1)
            if ahead:
                print(f"      about {duration(seconds * ahead / jobs)} for {ahead} more",
                      file=self._file, flush=True)

    def waits(self, name: str) -> None:
        now = time.monotonic()
        if now - self._said.get(name, -1e9) > 60:
            self._said[name] = now
            print(f"      {name} is still trained by a process of before: waiting for it",
                  file=self._file, flush=True)


def as_values(found: Any) -> dict[str, Any]:
    return asdict(found)


def regret(found: Any) -> None:
    """The table of arms, remarks and the sentence."""
    from lorafit.study.pages import REGRET_HEADINGS, regret_rows

    _table(REGRET_HEADINGS, regret_rows(found))
    _remarks(found)
    if not found.is_complete:
        _line("not whole", "the same command goes on")
    _line("written", f"{found.directory}/regret.md, regret.svg, regret.json")
    console.print()
    console.print(found.sentence, markup=False)


def sweep(found: Any) -> None:
    """The table of combinations, best first, and how to go on."""
    from lorafit.study.sweep import headings, table_rows

    _table(headings(found), table_rows(found))
    _remarks(found)
    if found.missing:
        _line("not whole", f"{found.missing} of {found.runs} runs are missing; the same command "
              "goes on")
    _line("written", f"{found.directory}/sweep.md, sweep.svg, sweep.json")
    if found.best_recipe:
        _line("best", f"{found.best_run}, with the recipe {found.best_recipe}")
        _line("next", f"lorafit eval {found.best_run}")


def _table(headings: Any, rows: list[list[str]]) -> None:
    table = Table()
    kept = [number for number in range(len(headings)) if any(row[number] for row in rows)]
    for number in kept:
        table.add_column(headings[number], justify="left" if number in (0, len(headings) - 1)
                         else "right", overflow="fold")
    for row in rows:
        table.add_row(*(row[number] for number in kept))
    Console(width=max(console.width, 150), highlight=False, markup=False).print(table)


def _remarks(found: Any) -> None:
    for remark in found.remarks:
        _line("note", remark)


def _line(name: str, text: str) -> None:
    console.print(f"{name:<9} {text}", markup=False)
