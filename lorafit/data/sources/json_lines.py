"""JSON lines: one object a line."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorafit.data.rows import Place, Row
from lorafit.data.sources.blocks import Blocks, Malformed, RawBlock, gather, json_kind
from lorafit.data.sources.compression import open_text
from lorafit.data.sources.json_values import NotJson, decode_at, skip_whitespace
from lorafit.data.sources.lines import decode, filled_lines
from lorafit.errors import Problem, UserError

REMEDY = "each line must be one JSON object"


def read(path: Path, block_rows: int, skip_rows: int) -> Blocks:
    file = str(path)
    with open_text(path) as stream:
        return (yield from gather(_lines(stream, file), "json_lines", file, block_rows, skip_rows))


def _lines(stream: io.BufferedReader, file: str) -> Iterator[tuple[int, bytes, int]]:
    for number, line, size_bytes in filled_lines(stream, file):
        if number == 1 and line.strip() == b"[":
            raise UserError("a JSON array, not JSON lines", f"{file}:1",
                            "name the file .json, or write one object a line")
        yield number, line, size_bytes


def parse(block: RawBlock) -> tuple[list[Row], list[Problem]]:
    rows, problems = [], []
    for number, line in zip(block.numbers, block.payload, strict=True):
        place = Place(block.file, number)
        value = value_of(line)
        if isinstance(value, Malformed):
            problems.append(Problem(value.what, str(place), value.remedy))
        else:
            rows.append(Row(value, place))
    return rows, problems


def value_of(line: bytes) -> dict[str, Any] | Malformed:
    """The one object that a line holds, or what is wrong with it."""
    text = decode(line)
    if isinstance(text, Malformed):
        return text
    try:
        value, end = decode_at(text, skip_whitespace(text, 0))
    except NotJson as error:
        return Malformed(error.what, REMEDY)
    if skip_whitespace(text, end) < len(text):
        return Malformed("not JSON: Extra data", REMEDY)
    if isinstance(value, dict | Malformed):
        return value
    return Malformed(f"a JSON {json_kind(value)}, not an object", REMEDY)
