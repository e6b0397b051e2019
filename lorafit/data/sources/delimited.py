"""CSV and TSV: a header and rows, whose quoted values may hold separators and line breaks."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from lorafit.data.rows import Place, Row
from lorafit.data.sources.blocks import MAX_LINE_BYTES, Blocks, Malformed, RawBlock, gather
from lorafit.data.sources.compression import open_text
from lorafit.data.sources.lines import decode, too_long
from lorafit.errors import Problem, UserError

_LINE_BREAK = re.compile(r"\r\n?|\n")


def read(path: Path, block_rows: int, skip_rows: int, *, delimiter: str) -> Blocks:
    file = str(path)
    csv.field_size_limit(MAX_LINE_BYTES)  # of the process; `_Lines` counts whole rows
    with open_text(path) as stream:
        lines = _Lines(stream, file)
        records = _records(lines, delimiter)
        first = next(records, None)
        if first is None:
            return skip_rows
        header = _check_header(first[1], f"{file}:{first[0]}")
        filled = (record for record in records if record[1])
        return (yield from gather(filled, "delimited", file, block_rows, skip_rows, header))


def parse(block: RawBlock) -> tuple[list[Row], list[Problem]]:
    rows, problems = [], []
    for number, values in zip(block.numbers, block.payload, strict=True):
        place = Place(block.file, number)
        if len(values) != len(block.header):
            problems.append(Problem(
                f"{len(values)} columns where the header has {len(block.header)}", str(place),
                "quote values that contain the separator or a line break"))
        elif problem := _bad_characters(values, place):
            problems.append(problem)
        else:
            rows.append(Row(dict(zip(block.header, values, strict=True)), place))
    return rows, problems


def _records(lines: "_Lines", delimiter: str) -> Iterator[tuple[int, list[str], int]]:
    """First line, values and size in characters of each row. UserError at the row it breaks at."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.begin_row()
        try:
            values = next(reader, None)
        except csv.Error as error:
            raise UserError(f"not valid CSV: {error}", lines.row,
                            "check the quotes in the row that starts here") from None
        if values is None:
            return
        yield lines.row_number, values, lines.row_characters


class _Lines:
    """Lines of text for the csv module, with a limit on what one row may hold.

    Bytes that are not UTF-8 become lone surrogates, which UTF-8 cannot spell, so that `parse` finds
    them in their row.
    """

    def __init__(self, stream: io.BufferedReader, file: str) -> None:
        self._text = io.TextIOWrapper(stream, "utf-8", "surrogateescape", newline="")
        self._file = file
        self._number = 0
        self.begin_row()

    def begin_row(self) -> None:
        self.row_number = self._number + 1
        self.row_characters = 0

    @property
    def row(self) -> str:
        return f"{self._file}:{self.row_number}"

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._text.readline(MAX_LINE_BYTES + 1)
        if not line:
            raise StopIteration
        self._number += 1
        self.row_characters += len(line)
        if self.row_characters > MAX_LINE_BYTES:
            raise too_long("row", self.row)
        return line


def _check_header(names: list[str], where: str) -> tuple[str, ...]:
    for name in names:
        text = decode(name.encode("utf-8", "surrogateescape"))
        if isinstance(text, Malformed):
            raise UserError(text.what, where, text.remedy)
        if names.count(name) > 1:
            raise UserError(f"a column name stands twice: {name}", where, "rename one of them")
    if "" in names:
        raise UserError(f"column {names.index('') + 1} of {len(names)} has no name", where,
                        "name every column in the first line; an index column of pandas is left "
                        "out by to_csv(index=False)")
    return tuple(names)


def _bad_characters(values: list[str], place: Place) -> Problem | None:
    for position, value in enumerate(values):
        if value.isascii() and "\0" not in value:
            continue
        text = decode(value.encode("utf-8", "surrogateescape"))
        if isinstance(text, Malformed):
            bad = next(m.start() for m in re.finditer("[\0\udc80-\udcff]", value))
            before = "".join(values[:position]) + value[:bad]
            line = place.number + len(_LINE_BREAK.findall(before))
            return Problem(text.what, str(Place(place.file, line)), text.remedy)
    return None
