"""A data section of the recipe to rows that are ready for training, everything counted.

Each source is tokenised once into a store (data/store.py) that the cache keeps. What a run sees is
a selection from the stores: checks, hold-out and length policy choose rows and cut them, and none
of them tokenises anything again.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from lorafit.data import selection as selecting
from lorafit.data.checks import FLAGS, RowChecker
from lorafit.data.examples import Trainable, trained_part
from lorafit.data.given import Given, examples_at, sources_of
from lorafit.data.order import Order
from lorafit.data.reading import open_store
from lorafit.data.rows import Place
from lorafit.data.selection import Lengths, Selection
from lorafit.data.store import TokenStore
from lorafit.data.tokens import Tokens
from lorafit.errors import Problem, UserError
from lorafit.recipe.schema import Data

PLACES_SHOWN = 3  # of each finding

Watch = Callable[[str, int], None]  # told a source and how many of its rows are tokenised


@dataclass(frozen=True)
class Finding:
    """Rows in which a check found something: how many, a few places, and the first in words."""

    check: str
    verdict: str
    rows: int
    places: tuple[str, ...]
    example: str


@dataclass(frozen=True)
class Report:
    """What became of the rows. Lengths are in tokens; `findings` before anything was dropped."""

    source: str
    format: str
    format_reason: str
    rows_read: int
    rows_used: int
    rows_not_wanted: int
    rows_dropped_by_checks: int
    rows_dropped_long: int
    rows_truncated: int
    rows_split: int
    rows_dropped_unsupervised: int
    tokens: int
    supervised_tokens: int
    longest_tokens: int
    fingerprint: str
    findings: list[Finding] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TokenisedData:
    """Rows ready for training, where each came from, and the report."""

    given: tuple[Given, ...]
    selection: Selection
    report: Report

    def __len__(self) -> int:
        return len(self.selection)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, shape (rows,)."""
        return self.selection.lengths

    def tokens(self, row: int) -> Tokens:
        chosen = self.selection
        store = chosen.stores[chosen.store[row]]
        return store.tokens(int(chosen.row[row])).cut(int(chosen.start[row]), int(chosen.end[row]))

    def place(self, row: int) -> Place:
        return _place(self.selection, row)

    def order(self, seed: int) -> Order:
        sizes = np.bincount(self.selection.store, minlength=len(self.given))
        return Order(tuple(int(size) for size in sizes),
                     tuple(given.weight for given in self.given), seed)

    def examples(self, rows: Sequence[int]) -> list[Trainable]:
        """Some rows in the internal form, read again from their sources."""
        return _examples(self.given, self.selection, rows)


@dataclass(frozen=True)
class Checked:
    """Rows after the checks, what these found, and how many rows they left out."""

    given: tuple[Given, ...]
    selection: Selection
    findings: tuple[Finding, ...] = ()
    dropped: int = 0


def read_data(data: Data, tokenizer: Any, seed: int,
              watch: Watch = lambda source, rows: None,
              ) -> tuple[TokenisedData, TokenisedData | None]:
    """Training and held-out rows: tokenised or taken from the cache, checked, cut to length.

    UserError naming file and line for whatever is wrong that the recipe does not allow.
    """
    checks = Checks(data, tokenizer)
    train = checks.rows(*_open("train", data, tokenizer, watch))
    train = checks.apply(train, "duplicates", selecting.repeated)
    held_out = None
    if data.eval_fraction > 0:
        train, held_out = _hold_out(train, data, seed)
    else:
        held_out = read_held_out(data, tokenizer, watch)
    if held_out is not None:
        train = checks.overlap(train, held_out)
    fail_on(train, held_out)
    return ready(train, data), None if held_out is None else ready(held_out, data)


def read_held_out(data: Data, tokenizer: Any,
                  watch: Watch = lambda source, rows: None) -> Checked | None:
    """The rows of `data.eval`, checked; None where the recipe has none."""
    if data.eval is None:
        return None
    return Checks(data, tokenizer).rows(*_open("eval", data, tokenizer, watch))


def _open(which: str, data: Data, tokenizer: Any,
          watch: Watch) -> tuple[list[Given], list[TokenStore]]:
    given = sources_of(data, which)
    return given, [open_store(source, data, tokenizer, watch) for source in given]


class Checks:
    """Applies the recipe's checks to rows."""

    def __init__(self, data: Data, tokenizer: Any) -> None:
        self._verdicts = data.checks
        self._checker = RowChecker(tokenizer, data.train_on)

    def rows(self, given: Sequence[Given], stores: Sequence[TokenStore]) -> Checked:
        """Every row of the stores that no check of single rows objects to."""
        rows = Checked(tuple(given), Selection.everything(stores), _unusable(stores))
        rows = self.apply(rows, "no_supervised_token", selecting.unsupervised)
        for check, flag in FLAGS.items():
            rows = self.apply(rows, check, partial(selecting.flagged, flag=flag))
        return self.apply(rows, "language", selecting.in_rare_script)

    def overlap(self, train: Checked, held_out: Checked) -> Checked:
        return self.apply(train, "overlap",
                          lambda rows: selecting.shared(rows, held_out.selection))

    def apply(self, rows: Checked, check: str,
              find: Callable[[Selection], np.ndarray]) -> Checked:
        """Note what `find` finds, and leave it out where the verdict says so."""
        verdict = getattr(self._verdicts, check)
        if verdict == "allow" or not len(rows.selection):
            return rows
        found = find(rows.selection)
        numbers = np.flatnonzero(found)
        if not len(numbers):
            return rows
        places = tuple(str(_place(rows.selection, i)) for i in numbers[:PLACES_SHOWN])
        finding = Finding(check, verdict, len(numbers), places,
                          self._in_words(rows, check, int(numbers[0])))
        kept, dropped = rows.selection, rows.dropped
        if verdict == "drop":
            kept, dropped = kept.take(~found), dropped + len(numbers)
        return Checked(rows.given, kept, (*rows.findings, finding), dropped)

    def _in_words(self, rows: Checked, check: str, row: int) -> str:
        """What is wrong with one row."""
        if check in FLAGS:
            (example,) = _examples(rows.given, rows.selection, [row])
            return self._checker.reason(example, check) or ""
        return {
            "no_supervised_token": "nothing in the row would be trained",
            "duplicates": "the row came before",
            "overlap": "the row is also held out",
            "language": "the row is written in another script than most",
        }[check]


def _unusable(stores: Sequence[TokenStore]) -> tuple[Finding, ...]:
    """Rows that were left out because they cannot be read or rendered."""
    facts = [store.facts for store in stores]
    examples = [example for fact in facts for example in fact.unusable]
    if not examples:
        return ()
    return (Finding("unusable", "drop", sum(fact.rows_unusable for fact in facts),
                    tuple(where for where, _ in examples[:PLACES_SHOWN]), examples[0][1]),)


def ready(rows: Checked, data: Data) -> TokenisedData:
    """The rows cut to length. UserError when the recipe does not allow that, or none is left."""
    if data.on_long == "error":
        _fail_on_long(rows.selection, data)
    cut, lengths = selecting.cut_to_length(rows.selection, data.max_length_tokens, data.on_long)
    if not len(cut):
        facts = [store.facts for store in cut.stores]
        dropped = rows.dropped + sum(fact.rows_unusable for fact in facts)
        raise UserError(
            f"no row is left with a supervised token ({dropped} dropped by checks, "
            f"{sum(fact.rows_not_wanted for fact in facts)} judged unwanted, "
            f"{lengths.dropped} too long, {lengths.unsupervised} without one after cutting)",
            ", ".join(given.name for given in rows.given),
            "look at data.checks, data.max_length_tokens and the labels of judged answers",
        )
    return TokenisedData(rows.given, cut, _report(rows, cut, lengths))


def _hold_out(train: Checked, data: Data, seed: int) -> tuple[Checked, Checked]:
    rows = len(train.selection)
    held_out = max(1, round(rows * data.eval_fraction))
    if held_out >= rows:
        raise UserError(
            f"holding out {data.eval_fraction:g} of {rows} rows leaves none to train on",
            "data.eval_fraction", "give more rows, or a file in data.eval",
        )
    rest, chosen = selecting.hold_out(train.selection, held_out, seed)
    if data.max_eval_rows:
        chosen = chosen.take(np.arange(min(len(chosen), data.max_eval_rows)))
    return (Checked(train.given, rest, train.findings, train.dropped),
            Checked(train.given, chosen, ()))


def fail_on(*parts: Checked | None) -> None:
    """UserError with every finding whose verdict is `error`."""
    problems = [
        Problem(f"{finding.example}; {finding.rows:,} "
                f"{'row is' if finding.rows == 1 else 'rows are'} like that",
                ", ".join(finding.places),
                f"mend {'it' if finding.rows == 1 else 'them'}, or --set "
                f"data.checks.{finding.check}=drop"
                + ("" if finding.check == "no_supervised_token" else " (or warn)"))
        for part in parts if part is not None
        for finding in part.findings if finding.verdict == "error"
    ]
    if problems:
        raise UserError(problems=problems)


def _fail_on_long(rows: Selection, data: Data) -> None:
    limit, lengths = data.max_length_tokens, rows.lengths
    is_long = lengths > limit
    if not is_long.any():
        return
    longest = int(lengths.argmax())
    raise UserError(
        f"{int(is_long.sum())} of {len(rows)} rows are longer than max_length_tokens {limit} "
        f"(by {int((lengths - limit)[is_long].sum())} tokens in total; the longest has "
        f"{int(lengths[longest])})",
        str(_place(rows, longest)),
        f"--set data.max_length_tokens={int(lengths[longest])}, or choose "
        "data.on_long: drop, truncate or split",
    )


def _report(rows: Checked, cut: Selection, lengths: Lengths) -> Report:
    facts = [store.facts for store in cut.stores]
    return Report(
        source=", ".join(given.name for given in rows.given),
        format=", ".join(dict.fromkeys(fact.format for fact in facts)),
        format_reason="; ".join(dict.fromkeys(fact.format_reason for fact in facts)),
        rows_read=sum(fact.rows_read for fact in facts),
        rows_used=len(cut),
        rows_not_wanted=sum(fact.rows_not_wanted for fact in facts),
        rows_dropped_by_checks=rows.dropped + sum(fact.rows_unusable for fact in facts),
        rows_dropped_long=lengths.dropped,
        rows_truncated=lengths.truncated,
        rows_split=lengths.split,
        rows_dropped_unsupervised=lengths.unsupervised,
        tokens=int(cut.lengths.sum()),
        supervised_tokens=_supervised(cut),
        longest_tokens=int(cut.lengths.max()),
        fingerprint=_fingerprint(cut),
        findings=list(rows.findings),
        notices=list(dict.fromkeys(notice for fact in facts for notice in fact.notices)),
    )


def _supervised(rows: Selection) -> int:
    """Tokens that carry a loss; rows that were cut are counted again."""
    whole = np.zeros(len(rows), dtype=bool)
    for number, store in enumerate(rows.stores):
        inside = rows.store == number
        whole[inside] = rows.lengths[inside] == store.lengths[rows.row[inside]]
    total = int(rows.column("supervised")[whole].sum())
    for i in np.flatnonzero(~whole):
        tokens = rows.stores[rows.store[i]].tokens(int(rows.row[i]))
        total += tokens.cut(int(rows.start[i]), int(rows.end[i])).supervised_tokens
    return total


def _fingerprint(rows: Selection) -> str:
    """SHA-256 of every token and mask: equal exactly when a model sees the same."""
    digest = hashlib.sha256()
    for store in rows.stores:
        digest.update(store.fingerprint.encode())
    for column in (rows.store, rows.row, rows.start, rows.end):
        digest.update(np.ascontiguousarray(column, dtype="<i8").tobytes())
    return digest.hexdigest()


def _place(rows: Selection, row: int) -> Place:
    return rows.stores[rows.store[row]].place(int(rows.row[row]))


def _examples(given: Sequence[Given], rows: Selection, numbers: Sequence[int]) -> list[Trainable]:
    """Rows as they were before they were rendered; each source is read once."""
    keys = [(int(rows.store[number]), _place(rows, number)) for number in numbers]
    found: dict[tuple[int, Place], Trainable] = {}
    for store in {store for store, _ in keys}:
        places = {place for other, place in keys if other == store}
        for place, example in examples_at(given[store], places).items():
            part = trained_part(example)
            assert part is not None, "a row that is not trained is in no store"
            found[store, place] = part
    return [found[key] for key in keys]
