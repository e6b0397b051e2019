"""What an evaluation found: scores, differences, every row with every reply."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lorafit.evaluate import statistics
from lorafit.evaluate.contenders import Contender
from lorafit.evaluate.statistics import Interval

FORMAT = 1  # of what is kept; read by kept.py


@dataclass(frozen=True)
class Score:
    """How one contender did. loss: nats per supervised token; perplexity is its exponential.

    correct of rows: answers that are right; rows is 0 where nothing could be asked. cut: answers
    that reached max_new_tokens. supervised_tokens: what the loss is the mean over.
    """

    name: str
    path: str
    correct: int
    rows: int
    accuracy: float
    accuracy_interval: Interval
    cut: int
    loss: float
    loss_interval: Interval
    perplexity: float
    supervised_tokens: float


@dataclass(frozen=True)
class Difference:
    """One contender less another, on the same rows.

    gained: rows that it has right and the other wrong; lost: the reverse. p_value: of McNemar's
    exact test. same_answers: rows that both answered with the same text. loss is None where the two
    losses are not of the same tokens.
    """

    name: str
    against: str
    rows: int
    gained: int
    lost: int
    accuracy: float
    accuracy_interval: Interval
    p_value: float
    same_answers: int
    loss: float | None
    loss_interval: Interval | None


@dataclass(frozen=True)
class Reply:
    """What a contender said to a row. found: what was compared. nats: its loss, summed."""

    answer: str | None
    found: str | None
    right: bool | None
    is_cut: bool
    nats: float


@dataclass(frozen=True)
class Asked:
    """One row with every reply. tokens: what its nats are divided by."""

    place: str
    digest: str
    question: str
    wanted: str
    found: str | None
    tokens: float
    replies: dict[str, Reply]


@dataclass(frozen=True)
class Evaluation:
    """Everything that two evaluations are compared by.

    key: equal when rows and settings are, so that right answers can be compared row by row;
    tokens_digest: equal when losses can be.
    """

    format: int
    kind: str
    name: str
    key: str
    made: str
    seconds: float
    subject: str
    source: str
    rows_digest: str
    tokens_digest: str
    settings: dict[str, Any]
    measured_by: str
    device: str
    versions: dict[str, str]
    remarks: list[str]
    scores: list[Score]
    differences: list[Difference]
    rows: list[Asked]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def score_of(contender: Contender, rows: Sequence[Asked]) -> Score:
    """How one contender did, from what it said to the rows."""
    replies = [row.replies[contender.name] for row in rows]
    right = [reply.right for reply in replies if reply.right is not None]
    nats, tokens = np.array([reply.nats for reply in replies]), np.array([r.tokens for r in rows])
    loss = float(nats.sum() / tokens.sum())
    return Score(
        contender.name, contender.path, sum(right), len(right), sum(right) / max(1, len(right)),
        statistics.wilson(sum(right), len(right)), sum(reply.is_cut for reply in replies), loss,
        _loss_interval(nats, tokens), math.exp(min(loss, 700)), float(tokens.sum()))


def _loss_interval(nats: np.ndarray, tokens: np.ndarray) -> Interval:
    """Rows without a supervised token say nothing of a loss, and are not drawn."""
    counts = tokens > 0
    return statistics.bootstrap_mean(nats[counts], tokens[counts])


def difference(rows: Sequence[Asked], others: Sequence[Asked], name: str, against: str, *,
               of_the_same_tokens: bool = True, of_the_same_answers: bool = True) -> Difference:
    """`name` in `rows` less `against` in `others`, which are the same rows in the same order.

    Without of_the_same_answers no answer is compared (rows is 0), without of_the_same_tokens no
    loss.
    """
    now, before = [row.replies[name] for row in rows], [row.replies[against] for row in others]
    scored = [i for i in range(len(rows)) if of_the_same_answers and now[i].right is not None]
    counts = statistics.paired(np.array([before[i].right for i in scored], bool),
                               np.array([now[i].right for i in scored], bool))
    tokens = np.array([row.tokens for row in rows])
    change = np.array([a.nats - b.nats for a, b in zip(now, before, strict=True)])
    loss, interval = None, None
    if of_the_same_tokens:
        loss, interval = float(change.sum() / tokens.sum()), _loss_interval(change, tokens)
    return Difference(
        name, against, counts.rows, counts.gained, counts.lost, counts.difference,
        statistics.newcombe(counts), statistics.mcnemar(counts.gained, counts.lost),
        sum(now[i].answer == before[i].answer for i in scored), loss, interval)


def summary(result: Evaluation) -> dict[str, Any]:
    """What `evaluation.json` of a run holds: a score for each contender, and the answers."""
    scores = {score.name: {"correct": score.correct, "rows": score.rows, "loss": score.loss,
                           "perplexity": score.perplexity} for score in result.scores}
    answers = [{"prompt": row.question, "wanted": row.wanted,
                **{name: reply.answer for name, reply in row.replies.items()}}
               for row in result.rows if row.wanted]
    return {**scores, "evaluation": f"evaluations/{result.name}.json", "answers": answers}

