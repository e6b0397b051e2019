"""One evaluation: every contender answers the same rows; losses are of the same tokens."""

import hashlib
import json
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Protocol

import numpy as np

from lorafit import __version__
from lorafit.evaluate import statistics
from lorafit.evaluate.answers import Kept, answers_of, key_of
from lorafit.evaluate.contenders import Contender, Loader, Subject
from lorafit.evaluate.loss import row_losses, weight_of
from lorafit.evaluate.matching import Matcher, without_thoughts
from lorafit.evaluate.rows import HeldOut, Row, read_rows
from lorafit.evaluate.statistics import Interval
from lorafit.model.device import find_device
from lorafit.model.generate import Answered
from lorafit.recipe.evaluation import Evaluation as Section

FORMAT = 1  # of what is kept; read by kept.py


class Progress(Protocol):
    """Is told how far an evaluation is."""

    def begin(self, what: str, total: int) -> None: ...
    def advance(self, done: int) -> None: ...


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


def evaluate(subject: Subject, progress: Progress, pattern_at: str = "evaluation.pattern",
             ) -> Evaluation:
    """Ask and measure every contender. `pattern_at` names where the pattern was given.

    UserError before any model is loaded where no answer could be right or no row is there. Answers
    are kept in the run while they are given: interrupted, the same evaluation goes on.
    """
    started = time.perf_counter()
    recipe, section = subject.recipe, subject.recipe.evaluation
    matcher = Matcher(section, pattern_at)
    held_out = read_rows(recipe.data, subject.tokenizer, recipe.training.seed, section.rows)
    can_be_asked = [row for row in held_out.rows if row.prompt is not None]
    matcher.refuse_finding_nothing([row.wanted for row in can_be_asked])
    asked = [row for row in can_be_asked if matcher.found(row.wanted) is not None]
    device, facts = find_device()
    kept = Kept(None if subject.run is None else subject.run.evaluations, key_of(
        asked, subject.contenders, section.max_new_tokens, section.batch_size, facts.name))
    answers, nats = {}, {}
    loader = Loader()
    for contender in subject.contenders:
        answers[contender.name], nats[contender.name] = _measure(
            loader.load(contender), contender, subject, held_out, asked, kept, progress)
    loader.release()
    rows = _outcomes(held_out, asked, matcher, answers, nats)
    names = [contender.name for contender in subject.contenders]
    digest = held_out.digest
    key = _key(section, digest)
    result = Evaluation(
        FORMAT, "rows", _name(subject, key), key, datetime.now(UTC).isoformat(timespec="seconds"),
        round(time.perf_counter() - started, 1), subject.contenders[-1].path, held_out.source,
        digest, held_out.tokens_digest, section.model_dump(), matcher.name, str(device),
        versions_here(), _remarks(held_out, can_be_asked, asked, answers, subject),
        [_score(contender, rows) for contender in subject.contenders],
        [difference(rows, rows, name, against) for i, against in enumerate(names[:2])
         for name in names[i + 1 :]], rows)
    kept.discard()
    return result


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


def _measure(model: Any, contender: Contender, subject: Subject, held_out: HeldOut,
             asked: Sequence[Row], kept: Kept, progress: Progress,
             ) -> tuple[list[Answered], np.ndarray]:
    """A contender's answers to the rows asked, and its nats of every row, (rows,)."""
    section = subject.recipe.evaluation
    pieces = [(i, tokens) for i, row in enumerate(held_out.rows) for tokens in held_out.tokens(row)]
    progress.begin(f"{contender.name}: loss of {len(held_out.rows):,} rows", len(pieces))
    losses = row_losses(model, [tokens for _, tokens in pieces],
                        subject.tokenizer.pad_token_id or 0, progress.advance)
    nats = np.bincount([i for i, _ in pieces], weights=losses, minlength=len(held_out.rows))
    if not asked:
        return [], nats
    progress.begin(f"{contender.name}: answers to {len(asked):,} rows", len(asked))
    return answers_of(model, contender.name, subject.tokenizer, asked, section.max_new_tokens,
                      section.batch_size, kept, progress.advance), nats


def _outcomes(held_out: HeldOut, asked: Sequence[Row], matcher: Matcher,
              answers: dict[str, list[Answered]], nats: dict[str, np.ndarray]) -> list[Asked]:
    number = {row.pieces: i for i, row in enumerate(asked)}
    outcomes = []
    for i, row in enumerate(held_out.rows):
        wanted = matcher.found(row.wanted) if row.pieces in number else None
        replies = {}
        for name in nats:
            said = answers[name][number[row.pieces]] if row.pieces in number else None
            if said is None:
                replies[name] = Reply(None, None, None, False, float(nats[name][i]))
                continue
            found = matcher.found(without_thoughts(said.text, row.wanted))
            replies[name] = Reply(said.text, found, matcher.same(found, wanted), said.is_cut,
                                  float(nats[name][i]))
        outcomes.append(Asked(row.place, row.digest, row.question, row.wanted.strip(), wanted,
                              sum(map(weight_of, held_out.tokens(row))), replies))
    return outcomes


def _score(contender: Contender, rows: Sequence[Asked]) -> Score:
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


def _remarks(held_out: HeldOut, can_be_asked: Sequence[Row], asked: Sequence[Row],
             answers: dict[str, list[Answered]], subject: Subject) -> list[str]:
    """What a reader of the table must know."""
    remarks = []
    limit = subject.recipe.evaluation.max_new_tokens
    silent = len(held_out.rows) - len(can_be_asked)
    if silent:
        remarks.append(f"{silent:,} of {len(held_out.rows):,} rows have no answer in words: they "
                       "count for the loss alone")
    if len(asked) < len(can_be_asked):
        known = {row.pieces for row in asked}
        first = next(row for row in can_be_asked if row.pieces not in known)
        remarks.append("the pattern finds nothing in the own answer of "
                       f"{len(can_be_asked) - len(asked):,} rows ({first.place} for one): they "
                       "were not asked")
    longer = sum(len(subject.tokenizer(row.wanted)["input_ids"]) > limit for row in asked)
    if longer:
        remarks.append(f"{longer:,} of the rows' own answers are longer than max_new_tokens "
                       f"{limit}; raise it with --max-new-tokens")
    remarks += [f"{cut:,} of {len(replies):,} answers of {name} were cut at {limit} tokens"
                for name, replies in answers.items()
                if (cut := sum(reply.is_cut for reply in replies))]
    return remarks


def _key(section: Section, rows_digest: str) -> str:
    settings = section.model_dump(exclude={"rows", "batch_size"})
    return hashlib.sha256(json.dumps([settings, rows_digest]).encode()).hexdigest()


def _name(subject: Subject, key: str) -> str:
    return f"{subject.label or 'held-out'}-{key[:8]}"


def versions_here() -> dict[str, str]:
    """The versions that figures depend on."""
    versions = {"lorafit": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "peft", "bitsandbytes"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def summary(result: Evaluation) -> dict[str, Any]:
    """What `evaluation.json` of a run holds: a score for each contender, and the answers."""
    scores = {score.name: {"correct": score.correct, "rows": score.rows, "loss": score.loss,
                           "perplexity": score.perplexity} for score in result.scores}
    answers = [{"prompt": row.question, "wanted": row.wanted,
                **{name: reply.answer for name, reply in row.replies.items()}}
               for row in result.rows if row.wanted]
    return {**scores, "evaluation": f"evaluations/{result.name}.json", "answers": answers}

