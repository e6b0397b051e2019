"""Held-out rows: what a model is asked, what it should say, and the tokens that carry the loss."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lorafit.data.dataset import TokenisedData, fail_on, read_data, read_held_out, ready
from lorafit.data.examples import BadRow, Conversation, Exchange, Passage, Trainable
from lorafit.data.pipeline import make_renderer
from lorafit.data.tokens import Tokens
from lorafit.errors import Problem, UserError
from lorafit.recipe.schema import Data


@dataclass(frozen=True)
class Row:
    """One held-out row.

    digest: of what it says, whatever the tokenizer and the chat template. pieces: its numbers in
    the tokenised data, several where it was split. prompt: what the last turn of the assistant
    answers, rendered; None where nothing can be asked, as of plain text. wanted: the row's own
    answer. is_chat: a chat template wrote the prompt's special tokens.
    """

    place: str
    digest: str
    pieces: tuple[int, ...]
    question: str
    prompt: str | None = None
    wanted: str = ""
    is_chat: bool = False


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows, where they are from, and their tokens."""

    source: str
    rows: tuple[Row, ...]
    data: TokenisedData

    def tokens(self, row: Row) -> list[Tokens]:
        return [self.data.tokens(piece) for piece in row.pieces]

    @property
    def digest(self) -> str:
        """SHA-256 of what the rows say, in order."""
        return hashlib.sha256("\n".join(row.digest for row in self.rows).encode()).hexdigest()

    @property
    def tokens_digest(self) -> str:
        """SHA-256 of their tokens, masks and weights: losses are of the same tokens if it is."""
        digest = hashlib.sha256()
        for row in self.rows:
            for tokens in self.tokens(row):
                digest.update(len(tokens).to_bytes(8, "little"))
                digest.update(tokens.ids.astype("<i4").tobytes())
                digest.update(tokens.supervised.tobytes())
                if tokens.weights is not None:
                    digest.update(tokens.weights.astype("<f4").tobytes())
        return digest.hexdigest()


def read_rows(data: Data, tokenizer: Any, seed: int, limit: int | None) -> HeldOut:
    """The rows that `data` holds out, at most the first `limit`.

    UserError when there are none, or when what is wrong with one is not allowed.
    """
    if data.eval_fraction > 0:
        held_out = read_data(data, tokenizer, seed)[1]
    else:
        checked = read_held_out(data, tokenizer)
        fail_on(checked)
        held_out = None if checked is None else ready(checked, data)
    if held_out is None:
        raise UserError("the run has no held-out rows", "data.eval",
                        "name some with --data FILE; or train with data.eval or data.eval_fraction")
    first = held_out.selection.first_pieces()
    bounds = [*first.tolist(), len(held_out)]
    numbers = [tuple(range(bounds[i], bounds[i + 1])) for i in range(len(first))][:limit]
    examples = held_out.examples([pieces[0] for pieces in numbers])
    rows = _asked(held_out, examples, numbers, data, tokenizer)
    return HeldOut(held_out.report.source, tuple(rows), held_out)


def _asked(held_out: TokenisedData, examples: Sequence[Trainable],
           numbers: Sequence[tuple[int, ...]], data: Data, tokenizer: Any) -> list[Row]:
    renderer = make_renderer(data, tokenizer)
    rows, problems = [], []
    for example, pieces in zip(examples, numbers, strict=True):
        place = str(held_out.place(pieces[0]))
        row = Row(place, _digest(example), pieces, _question(example))
        if _has_answer(example):
            try:
                prompt, wanted = renderer.prompt(example)
            except BadRow as bad:
                problems.append(Problem(bad.what, place, bad.remedy))
                continue
            is_chat = isinstance(example, Conversation) or renderer.exchanges_as_chat
            row = Row(place, row.digest, pieces, row.question, prompt, wanted, is_chat)
        rows.append(row)
    if problems:
        raise UserError(problems=problems[:10])
    return rows


def _has_answer(example: Trainable) -> bool:
    """Whether the assistant has a last turn that says something in words."""
    if isinstance(example, Exchange):
        return bool(example.completion.strip())
    if isinstance(example, Passage):
        return False
    spoken = [message for message in example.messages if message.role == "assistant"]
    return bool(spoken) and bool(spoken[-1].content.strip())


def _question(example: Trainable) -> str:
    """What a person sees of a row: the last message before the answer, or the text."""
    if isinstance(example, Exchange):
        return example.prompt
    if isinstance(example, Passage):
        return example.text
    last = max((i for i, message in enumerate(example.messages) if message.role == "assistant"),
               default=len(example.messages))
    return next((message.content for message in reversed(example.messages[:last])
                 if message.role == "user"), "")


def _digest(example: Trainable) -> str:
    said = json.dumps([type(example).__name__, asdict(example)], sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def lengths(held_out: HeldOut) -> np.ndarray:
    """Tokens of each row, its longest piece; shape (rows,)."""
    return np.array([max(held_out.data.lengths[list(row.pieces)]) for row in held_out.rows])
