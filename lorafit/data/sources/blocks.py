"""Blocks of raw records: what a reader yields and another process can parse."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from lorafit.data.rows import Place, Row
from lorafit.errors import Problem, UserError

# Longest line, JSON value or CSV row. No row of text for a model is near it, and without a limit
# a file that lost its line breaks, or some kilobytes that unpack to terabytes, fill the memory.
MAX_LINE_BYTES = 64 << 20
# A block ends here even when it has few records: 1000 long documents need not be held at once.
BLOCK_BYTES = 16 << 20

Blocks = Generator["RawBlock", None, int]
"""What a reader returns: blocks, and at the end how many rows are still to be skipped."""


@dataclass(frozen=True)
class RawBlock:
    """Consecutive records of one file. Blank lines are no records.

    kind: how `payload` is parsed. numbers: of the line or row at which each record starts, from 1.
    payload: a line of bytes, a list of CSV values, or a decoded value for each record. header:
    names of the columns, for CSV and TSV.
    """

    kind: str
    file: str
    numbers: Sequence[int]
    payload: Sequence[Any]
    header: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.numbers)

    def first(self, records: int) -> "RawBlock":
        """The block without what follows its first `records`."""
        return replace(self, numbers=self.numbers[:records], payload=self.payload[:records])


@dataclass(frozen=True)
class Malformed:
    """Stands in a payload for a value that a reader found to be wrong."""

    what: str
    remedy: str


def gather(records: Iterator[tuple[int, Any, int]], kind: str, file: str, block_rows: int,
           skip_rows: int, header: tuple[str, ...] = ()) -> Blocks:
    """Blocks of `records`, each a number, a payload and its size in bytes.

    When the source breaks in the middle of a block, the part before is yielded first, so that
    every row and every problem up to there is seen.
    """
    for _ in islice(records, skip_rows):
        skip_rows -= 1
    numbers: list[int] = []
    payload: list[Any] = []
    size_bytes = 0
    try:
        for number, content, content_bytes in records:
            numbers.append(number)
            payload.append(content)
            size_bytes += content_bytes
            if len(numbers) >= block_rows or size_bytes >= BLOCK_BYTES:
                yield RawBlock(kind, file, numbers, payload, header)
                numbers, payload, size_bytes = [], [], 0
    except (UserError, OSError):
        if numbers:
            yield RawBlock(kind, file, numbers, payload, header)
        raise
    if numbers:
        yield RawBlock(kind, file, numbers, payload, header)
    return skip_rows


def parse_values(block: RawBlock) -> tuple[list[Row], list[Problem]]:
    """Rows of values that the reader has decoded: JSON arrays, tables and hub data sets."""
    rows, problems = [], []
    for number, value in zip(block.numbers, block.payload, strict=True):
        place = Place(block.file, number, is_line=False)
        if isinstance(value, dict):
            rows.append(Row(value, place))
        elif isinstance(value, Malformed):
            problems.append(Problem(value.what, str(place), value.remedy))
        else:
            problems.append(Problem(f"a JSON {json_kind(value)}, not an object", str(place),
                                    "the file must hold a list of objects"))
    return rows, problems


def json_kind(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
