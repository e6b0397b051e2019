"""Token ids back to text, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenizers.decoders import DecodeStream

from lorafit.data.tokens import Tokens


@dataclass(frozen=True)
class Piece:
    """The text of a token, or of several that share a character: none of these has a text alone.

    is_whole: false where the row was cut in the middle of the character.
    """

    text: str
    ids: tuple[int, ...]
    supervised: bool
    weight: float
    is_special: bool
    is_whole: bool = True


def pieces_of(tokens: Tokens, tokenizer: Any) -> list[Piece]:
    """The pieces of a row: their texts, one after the other, are the row decoded."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    stream = DecodeStream(skip_special_tokens=False)
    pieces = []
    first = 0
    for i, number in enumerate(tokens.ids.tolist()):
        text = stream.step(tokenizer.backend_tokenizer, number)
        if text is not None or i == len(tokens) - 1:
            pieces.append(_piece(tokens, first, i + 1, text, special))
            first = i + 1
    return pieces


def _piece(tokens: Tokens, first: int, end: int, text: str | None, special: set[int]) -> Piece:
    ids = tuple(tokens.ids[first:end].tolist())
    weights = tokens.weights
    return Piece(
        text or "", ids, bool(tokens.supervised[first:end].any()),
        1.0 if weights is None else float(weights[first:end].max()),
        len(ids) == 1 and ids[0] in special, text is not None,
    )


def cut(pieces: Sequence[Piece], start: int, end: int) -> list[Piece]:
    """The pieces of tokens `start` up to `end`; one at an edge may lose some of its tokens."""
    chosen = []
    position = 0
    for piece in pieces:
        first, last = max(start - position, 0), min(end - position, len(piece.ids))
        position += len(piece.ids)
        if first < last:
            ids = piece.ids[first:last]
            chosen.append(replace(piece, ids=ids, is_whole=piece.is_whole and ids == piece.ids))
    return chosen


def runs_of(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Neighbours that are trained alike, together."""
    runs: list[list[Piece]] = []
    for piece in pieces:
        if runs and _trained_alike(runs[-1][-1], piece):
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs


def _trained_alike(one: Piece, other: Piece) -> bool:
    return one.supervised == other.supervised and (
        not one.supervised or one.weight == other.weight)
