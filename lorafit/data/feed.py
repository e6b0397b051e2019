"""Which examples each optimizer step trains on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lorafit.data.dataset import TokenisedData
from lorafit.data.order import Order
from lorafit.data.rows import Place
from lorafit.data.tokens import Tokens


@dataclass(frozen=True)
class StepExamples:
    """The examples of one step over all ranks. `tokens(i)` reads example i, of `lengths[i]`
    tokens; `place(i)` says where it came from."""

    lengths: np.ndarray
    tokens: Callable[[int], Tokens]
    place: Callable[[int], Place]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> Tokens:
        return self.tokens(i)


class Feed(Protocol):
    """Examples by step, and the state that a checkpoint needs to go on after a step.

    `longest` are the longest examples at hand: `rows` of them, or as many as have `tokens` tokens
    together. `read` is what became of all rows so far, where that is not known before training:
    counts of data/dataset.py: Report by name, and rows of each check's findings by its name.
    """

    def step(self, step: int) -> StepExamples: ...

    def longest(self, rows: int, tokens: int) -> StepExamples: ...

    def read(self) -> dict[str, int] | None: ...

    def state(self, step: int) -> dict[str, Any] | None: ...


@dataclass(frozen=True)
class EpochFeed:
    """Rows that are all known before training: a pure function of the step, without any state."""

    data: TokenisedData
    order: Order
    batch_size: int
    total_rows: int

    def step(self, step: int) -> StepExamples:
        rows = self.order.rows_of_step(step, self.batch_size, self.total_rows)
        return StepExamples(self.data.lengths[rows],
                            lambda i: self.data.tokens(int(rows[i])),
                            lambda i: self.data.place(int(rows[i])))

    def longest(self, rows: int, tokens: int) -> StepExamples:
        return longest_of(self.data, rows, tokens)

    def read(self) -> dict[str, int] | None:
        return None

    def state(self, step: int) -> dict[str, Any] | None:
        return None


def longest_of(data: TokenisedData, rows: int, tokens: int) -> StepExamples:
    """The `rows` longest examples, and more until they have `tokens` tokens."""
    order = np.argsort(-data.lengths, kind="stable")
    count = max(rows, int(np.searchsorted(np.cumsum(data.lengths[order]), tokens)) + 1)
    chosen = order[:count]
    return StepExamples(data.lengths[chosen], lambda i: data.tokens(int(chosen[i])),
                        lambda i: data.place(int(chosen[i])))
