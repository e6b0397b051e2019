"""The data of a recipe as training would see it, and what would keep training from starting."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lorafit.data.dataset import Checked, TokenisedData, fail_on, read_data, read_held_out, ready
from lorafit.data.feed import EpochFeed, Feed
from lorafit.data.stream import StreamFeed
from lorafit.errors import Problem, UserError
from lorafit.recipe.schema import Data, Recipe

TRAIN, HELD_OUT = "train", "held out"
NO_LIMIT_TOKENS = 2**31 - 1

Watch = Callable[[str, int], None]


@dataclass(frozen=True)
class Part:
    """Training or held-out rows.

    data: as training would see them; uncut where the length policy would not let it start.
    uncut_lengths: tokens of each row before that policy, shape (rows,).
    """

    name: str
    data: TokenisedData
    uncut_lengths: np.ndarray


@dataclass(frozen=True)
class Reading:
    """What was read. problems: what training would stop at, in its own words. feed: the rows of
    each step."""

    train: Part
    held_out: Part | None
    problems: tuple[Problem, ...]
    feed: Feed

    @property
    def parts(self) -> list[Part]:
        return [self.train] if self.held_out is None else [self.train, self.held_out]


@contextmanager
def reading(recipe: Recipe, tokenizer: Any, watch: Watch) -> Iterator[Reading]:
    """Read what a recipe names. With data.streaming: its first block, which lasts as long as this.

    UserError for rows that do not fit their format, as everywhere.
    """
    data, training = recipe.data, recipe.training
    patient = _without_stops(data)
    problems: list[Problem] = []
    if not data.streaming:
        train, held_out = read_data(patient, tokenizer, training.seed, watch)
        parts = _parts(train, held_out, data, problems)
        order = parts[0].data.order(training.seed)
        feed = EpochFeed(parts[0].data, order, training.batch_size, order.rows_per_epoch)
        yield Reading(parts[0], parts[1], tuple(problems), feed)
        return
    checked = read_held_out(patient, tokenizer, watch)
    stream = StreamFeed(patient, tokenizer, training.seed, training.batch_size, checked)
    try:
        held_out = None if checked is None else ready(checked, patient)
        block = replace(stream.first_block(), report=stream.report())
        first, other = _parts(block, held_out, data, problems)
        yield Reading(first, other, tuple(problems), stream)
    finally:
        stream.close()


def _without_stops(data: Data) -> Data:
    """The section with `error` lowered to `warn` for every row that can be shown, whatever its
    length."""
    # Copied, not validated: a row without supervised tokens is kept here, and only here.
    checks = data.checks.model_copy(update={
        name: "warn" for name, verdict in data.checks
        if verdict == "error" and name != "unusable"
    })
    return data.model_copy(update={"checks": checks, "max_length_tokens": NO_LIMIT_TOKENS,
                                   "on_long": "drop"})


def _parts(train: TokenisedData, held_out: TokenisedData | None, data: Data,
           problems: list[Problem]) -> tuple[Part, Part | None]:
    return (_part(TRAIN, train, data, problems),
            None if held_out is None else _part(HELD_OUT, held_out, data, problems))


def _part(name: str, patient: TokenisedData, data: Data, problems: list[Problem]) -> Part:
    """The rows with the recipe's own verdicts and length policy; adds what these object to."""
    findings = tuple(replace(finding, verdict=getattr(data.checks, finding.check))
                     for finding in patient.report.findings)
    report = replace(patient.report, findings=list(findings))
    unusable = sum(store.facts.rows_unusable for store in patient.selection.stores)
    rows = Checked(patient.given, patient.selection, findings,
                   report.rows_dropped_by_checks - unusable)
    seen = replace(patient, report=report)
    for step in (lambda: fail_on(rows), lambda: ready(rows, data)):
        try:
            seen = step() or seen
        except UserError as error:
            problems += error.problems
    report = replace(seen.report, notices=report.notices)  # a stream adds one of its own
    return Part(name, replace(seen, report=report), patient.lengths)
