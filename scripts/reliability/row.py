"""One row of the table: what is asked how often, and what came out."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Setting:
    """Where and how a row is asked.

    work: an empty directory of the row's own. seed: of everything that is drawn. jobs: processes
    at once.
    """

    work: Path
    seed: int = 0
    jobs: int = 1

    def draw(self, *what: object) -> random.Random:
        """Random numbers that depend on the seed and on what they are for, not on the order in
        which things are asked."""
        return random.Random(f"{self.seed}/{'/'.join(map(str, what))}")


@dataclass
class Tally:
    """What came out. problems: a line for each time that it was not as it must be. remarks:
    figures to be said beside the count. there_are: cases in all, where a row can ask every one."""

    asked: int = 0
    passed: int = 0
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    there_are: int | None = None

    def count(self, problem: str | None) -> None:
        """Count one that was asked: None where it was as it must be."""
        self.asked += 1
        if problem is None:
            self.passed += 1
        else:
            self.problems.append(problem)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    name: on the command line. title: what was done. must: what has to come out. times: how often
    it is asked for the table (every case, where there are fewer); times_in_tests: in the test
    suite, in seconds. ask: does it so many times. of_peer: the same with a plain script of
    transformers' Trainer and peft, where that makes sense.
    """

    name: str
    title: str
    must: str
    times: int
    times_in_tests: int
    ask: Callable[[Setting, int], Tally]
    of_peer: Callable[[Setting, int], Tally] | None = None
