"""Plain text: a row for each line that is not blank."""

from pathlib import Path

from lorafit.data.rows import Place, Row
from lorafit.data.sources.blocks import Blocks, Malformed, RawBlock, gather
from lorafit.data.sources.compression import open_text
from lorafit.data.sources.lines import decode, filled_lines
from lorafit.errors import Problem


def read(path: Path, block_rows: int, skip_rows: int) -> Blocks:
    file = str(path)
    with open_text(path) as stream:
        return (yield from gather(filled_lines(stream, file), "text", file, block_rows, skip_rows))


def parse(block: RawBlock) -> tuple[list[Row], list[Problem]]:
    rows, problems = [], []
    for number, line in zip(block.numbers, block.payload, strict=True):
        place = Place(block.file, number)
        text = decode(line)
        if isinstance(text, Malformed):
            problems.append(Problem(text.what, str(place), text.remedy))
        else:
            rows.append(Row({"text": text.rstrip("\r\n")}, place))
    return rows, problems
