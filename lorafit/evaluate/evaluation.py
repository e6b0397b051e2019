"""One evaluation: every contender answers the same rows; losses are of the same tokens."""

import hashlib
import json
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Protocol

import numpy as np

from lorafit import __version__
from lorafit.evaluate.answers import Kept, answers_of, key_of
from lorafit.evaluate.contenders import Contender, Loader, Subject
from lorafit.evaluate.loss import row_losses, weight_of
from lorafit.evaluate.matching import Matcher, without_thoughts
from lorafit.evaluate.result import (
    FORMAT,
    Asked,
    Evaluation,
    Reply,
    difference,
    score_of,
)
from lorafit.evaluate.rows import HeldOut, Row, read_rows
from lorafit.model.device import find_device
from lorafit.model.generate import Answered
from lorafit.recipe.evaluation import Evaluation as Section
from lorafit.run_dir import read_jsonl


class Progress(Protocol):
    """Is told how far an evaluation is."""

    def begin(self, what: str, total: int) -> None: ...
    def advance(self, done: int) -> None: ...


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
        [score_of(contender, rows) for contender in subject.contenders],
        [difference(rows, rows, name, against) for i, against in enumerate(names[:2])
         for name in names[i + 1 :]], rows)
    kept.discard()
    return result


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


def _remarks(held_out: HeldOut, can_be_asked: Sequence[Row], asked: Sequence[Row],
             answers: dict[str, list[Answered]], subject: Subject) -> list[str]:
    """What a reader of the table must know."""
    remarks = _chosen_by_these_rows(subject)
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


def _chosen_by_these_rows(subject: Subject) -> list[str]:
    """Weights that were chosen by their loss on some rows look a little better on these."""
    if subject.run is None or subject.label or subject.recipe.training.keep != "best":
        return []
    times = sum("held_out_loss" in line and line["step"] > 0
                for line in read_jsonl(subject.run.metrics))
    if times < 2:
        return []
    return [f"the adapter is the best of {times} evaluations on these rows (training.keep: best), "
            "which flatters it a little; rows that chose nothing: --data FILE"]


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
