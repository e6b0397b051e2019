"""Which rows are shown, and one row as it is shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorafit.data.checks import FLAGS
from lorafit.data.dataset import TokenisedData
from lorafit.data.selection import Selection
from lorafit.data.store import TokenStore
from lorafit.errors import UserError
from lorafit.preview.pieces import Piece, cut, pieces_of
from lorafit.preview.reading import Part
from lorafit.recipe.schema import Data


@dataclass(frozen=True)
class ShownRow:
    """A row with the text of its tokens. remark: how it differs from the row of the file, or why
    training does not see it; empty otherwise."""

    place: str
    pieces: tuple[Piece, ...]
    tokens: int
    supervised_tokens: int
    remark: str


@dataclass(frozen=True)
class _Stored:
    """A row of a store, from which tokens `start` up to `end` are taken."""

    store: TokenStore
    row: int
    start: int
    end: int

    @property
    def length(self) -> int:
        return int(self.store.lengths[self.row])


def spread_rows(part: Part, count: int, tokenizer: Any) -> list[ShownRow]:
    """`count` rows at equal distances, the first and the last among them."""
    rows = len(part.data)
    chosen = np.unique(np.linspace(0, rows - 1, min(count, rows)).round().astype(int))
    return [_shown(_row(part.data.selection, int(row)), tokenizer) for row in chosen]


def named_rows(part: Part, names: Sequence[str], other: Part | None, data: Data,
               tokenizer: Any) -> list[ShownRow]:
    """The rows called FILE:LINE, or by their number (from 1) among those that are used.

    One that was cut into several is shown in all its pieces; one that is left out is shown too,
    perhaps because it belongs to the `other` part. UserError when there is none.
    """
    return [row for name in names for row in _named(part, name, other, data, tokenizer)]


def _named(part: Part, name: str, other: Part | None, data: Data,
           tokenizer: Any) -> list[ShownRow]:
    file, _, number = name.rpartition(":")
    if not number.isdecimal():
        raise UserError(f"{name!r} names no row", "--row", "write FILE:LINE, or a number from 1")
    if not file:
        if not 1 <= int(number) <= len(part.data):
            raise UserError(f"there is no row {number} among the {len(part.data):,} {part.name} "
                            "rows", "--row", "write FILE:LINE, or a number from 1")
        return [_shown(_row(part.data.selection, int(number) - 1), tokenizer)]
    found = _at_place(part.data, file, int(number))
    if found is None:
        raise UserError(f"no row of the {part.name} data stands at {name}", "--row",
                        "give the file and the line as findings print them; --split chooses "
                        "between training and held-out data")
    store, row = found
    used = _uses(part, store, row)
    if len(used):
        return [_shown(_row(part.data.selection, int(i)), tokenizer) for i in used]
    whole = _Stored(store, row, 0, int(store.lengths[row]))
    why = f"not among these: {other.name}" if other is not None and len(_uses(other, store, row)) \
        else f"left out: {_why_left_out(whole, data)}"
    return [_shown(whole, tokenizer, why)]


def _uses(part: Part, store: TokenStore, row: int) -> np.ndarray:
    """Numbers of the rows of a part that are a store's row, or cut from it."""
    chosen = part.data.selection
    if store not in chosen.stores:
        return np.zeros(0, dtype=int)
    return np.flatnonzero((chosen.store == chosen.stores.index(store)) & (chosen.row == row))


def _at_place(data: TokenisedData, file: str, number: int) -> tuple[TokenStore, int] | None:
    """Store and row there of the row at a place; a file may be given by the end of its path."""
    for store in data.selection.stores:
        for file_number, known in enumerate(store.files):
            if known == file or known.endswith(f"/{file}"):
                rows = np.flatnonzero((store.rows["file"] == file_number)
                                      & (store.rows["number"] == number))
                if len(rows):
                    return store, int(rows[0])
    return None


def _row(selection: Selection, row: int) -> _Stored:
    return _Stored(selection.stores[selection.store[row]], int(selection.row[row]),
                   int(selection.start[row]), int(selection.end[row]))


def _shown(row: _Stored, tokenizer: Any, remark: str = "") -> ShownRow:
    # Decoded as a whole, so that a cut in the middle of a character leaves no broken one.
    whole = row.store.tokens(row.row)
    tokens = whole.cut(row.start, row.end)
    pieces = cut(pieces_of(whole, tokenizer), row.start, row.end)
    if len(tokens) < len(whole):
        remark = f"cut: tokens {row.start + 1:,} to {row.end:,} of {len(whole):,}"
    return ShownRow(str(row.store.place(row.row)), tuple(pieces), len(tokens),
                    tokens.supervised_tokens, remark)


def _why_left_out(row: _Stored, data: Data) -> str:
    record = row.store.rows[row.row]
    found = [check for check, flag in FLAGS.items() if record["flags"] & flag]
    if record["supervised"] == 0:
        found.append("no_supervised_token")
    dropped = [check for check in found if getattr(data.checks, check) == "drop"]
    if dropped:
        return f"dropped by {', '.join(dropped)}"
    if row.length > data.max_length_tokens and data.on_long == "drop":
        return f"longer than {data.max_length_tokens:,} tokens"
    return "what is left of it trains nothing, or it came before or is held out"
