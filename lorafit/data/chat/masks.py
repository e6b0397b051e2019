"""Rendered rows to token ids, and from characters that are trained to tokens that are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lorafit.data.chat.encoder import Encoder
from lorafit.data.tokens import Tokens


class Span(NamedTuple):
    """Characters from `start` up to `end`, and the weight of their loss."""

    start: int
    end: int
    weight: float = 1.0


@dataclass(frozen=True)
class Rendered:
    """Text of a row, what is trained of it, and how to tokenise it.

    Where spans overlap, the later one decides. `is_chat`: the template wrote all special tokens;
    otherwise the tokenizer adds its own and an end-of-sequence token closes the row.
    """

    text: str
    spans: tuple[Span, ...]
    is_chat: bool


def tokenise(rendered: Sequence[Rendered], encoder: Encoder, train_end: bool) -> list[Tokens]:
    """Token ids and masks; a token is trained when it holds a character of a span.

    `train_end`: whether the token that closes plain text is trained.
    """
    result: list[Tokens | None] = [None] * len(rendered)
    eos = encoder.tokenizer.eos_token_id
    for is_chat in (True, False):
        chosen = [i for i, row in enumerate(rendered) if row.is_chat == is_chat]
        encoded = encoder([rendered[i].text for i in chosen], add_special_tokens=not is_chat)
        for i, (ids, encoding) in zip(chosen, encoded, strict=True):
            spans = rendered[i].spans
            weights = _weights_at_ends(spans, encoding, len(ids))
            if weights is None:
                weights = weights_by_offsets(spans, encoding.offsets)
            token_ids = np.fromiter(ids, np.int32, len(ids))
            if not is_chat and eos is not None:
                token_ids, weights = _ended(token_ids, weights, eos, train_end)
            result[i] = _tokens(token_ids, weights, all(span.weight in (0, 1) for span in spans))
    return [tokens for tokens in result if tokens is not None]


def _weights_at_ends(spans: Sequence[Span], encoding: Any, length: int) -> np.ndarray | None:
    """What `weights_by_offsets` finds, from the tokens at both ends of each span alone.

    None where an end stands in no token: some tokenizers trim spaces off a token's characters.
    """
    weights = np.zeros(length, dtype=np.float32)
    for start, end, weight in spans:
        if start == end:
            continue
        first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
        if first is None or last is None:
            return None
        # A character may be spread over several tokens, of which the first is found.
        while last + 1 < length and (next_ := encoding.token_to_chars(last + 1)) is not None \
                and next_[0] < end:
            last += 1
        weights[first : last + 1] = weight
    return weights


def weights_by_offsets(spans: Sequence[Span], offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Weight of each token, shape (length,), from the characters of all tokens."""
    positions = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    ends = positions[:, 1]
    # Some tokenizers trim the spaces off a token's offsets, so that a token of spaces alone seems
    # empty: a token starts where the one before it ends.
    before = np.maximum.accumulate(np.concatenate([[0], ends]))[:-1]
    starts = np.minimum(positions[:, 0], before)
    weights = np.zeros(len(positions), dtype=np.float32)
    for start, end, weight in spans:
        if start < end:
            weights[(starts < end) & (ends > start) & (ends > starts)] = weight
    return weights


def _ended(ids: np.ndarray, weights: np.ndarray, eos: int,
           train_end: bool) -> tuple[np.ndarray, np.ndarray]:
    if not (len(ids) and ids[-1] == eos):
        ids, weights = np.append(ids, np.int32(eos)), np.append(weights, np.float32(0))
    weights[-1] = 1.0 if train_end else 0.0
    return ids, weights


def _tokens(ids: np.ndarray, weights: np.ndarray, are_plain: bool) -> Tokens:
    """`are_plain`: whether all weights are 0 or 1."""
    supervised = weights > 0
    if are_plain or not (weights[supervised] != 1).any():
        return Tokens(ids, supervised)
    return Tokens(ids, supervised, weights)
