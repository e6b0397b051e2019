"""Which module reads which kind of file, and which one parses its blocks."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from lorafit.data.rows import Row
from lorafit.data.sources import delimited, json_array, json_lines, tables, text
from lorafit.data.sources.blocks import Blocks, RawBlock, parse_values
from lorafit.errors import Problem

Reader = Callable[[Path, int, int], Blocks]
"""Path, records of a block and records to skip, to blocks."""

READERS: dict[str, Reader] = {
    ".jsonl": json_lines.read,
    ".ndjson": json_lines.read,
    ".json": json_array.read,
    ".csv": partial(delimited.read, delimiter=","),
    ".tsv": partial(delimited.read, delimiter="\t"),
    ".txt": text.read,
    ".parquet": tables.read_parquet,
    ".arrow": tables.read_arrow,
}

PARSERS: dict[str, Callable[[RawBlock], tuple[list[Row], list[Problem]]]] = {
    "json_lines": json_lines.parse,
    "delimited": delimited.parse,
    "text": text.parse,
    "values": parse_values,
}
