"""From a location to blocks, and from blocks to rows."""

import hashlib
from collections.abc import Iterator

from lorafit.data.rows import Row, problems_error
from lorafit.data.sources import hub
from lorafit.data.sources.blocks import RawBlock
from lorafit.data.sources.compression import endings
from lorafit.data.sources.kinds import PARSERS, READERS
from lorafit.data.sources.locations import Location, source_files, unreadable
from lorafit.errors import Problem, UserError

BLOCK_ROWS = 1000


def open_blocks(location: Location, *, default_split: str, block_rows: int = BLOCK_ROWS,
                skip_rows: int = 0, streaming: bool = False) -> Iterator[RawBlock]:
    """Raw records in blocks of up to `block_rows`, without the first `skip_rows`.

    Holds one block at a time. A block never spans two files. `streaming` is for hub data sets:
    rows come as they are asked for. UserError when a file cannot be read, or at the place from
    which on it makes no sense.
    """
    files = source_files(location)
    if location.has_splits:
        split = location.split or default_split
        yield from hub.read(location, split, block_rows, skip_rows, streaming=streaming)
        return
    for path in files:
        kind, _ = endings(path)
        try:
            skip_rows = yield from READERS[kind](path, block_rows, skip_rows)
        except OSError as error:
            raise UserError(problems=[unreadable(error, str(path))]) from None


def parse_block(block: RawBlock) -> tuple[list[Row], list[Problem]]:
    """The rows of a block, and what is wrong with each record that is none."""
    return PARSERS[block.kind](block)


def read_rows(location: Location, *, default_split: str, limit: int | None = None) -> list[Row]:
    """Every row, or the first `limit`. UserError when there is none, or when one is malformed."""
    rows: list[Row] = []
    problems: list[Problem] = []
    total = 0
    try:
        for block in _first_blocks(location, default_split, limit):
            found, wrong = parse_block(block)
            rows += found
            problems += wrong
            total += len(block)
    except UserError as error:
        if not problems:
            raise
        raise problems_error([*problems, *error.problems], total) from None
    if problems:
        raise problems_error(problems, total)
    if not rows:
        raise UserError("the data set is empty", location.path, "give a file with rows")
    return rows


def _first_blocks(location: Location, default_split: str,
                  limit: int | None) -> Iterator[RawBlock]:
    if limit is None:
        yield from open_blocks(location, default_split=default_split)
        return
    # A slice of a split is known only with the whole split at hand.
    streaming = not any(mark in (location.split or default_split) for mark in "[+")
    for block in open_blocks(location, default_split=default_split,
                             block_rows=min(limit, BLOCK_ROWS), streaming=streaming):
        yield block.first(limit)
        limit -= len(block)
        if limit <= 0:
            return


def content_hash(location: Location, *, default_split: str) -> str:
    """A digest that changes whenever the rows may: of the bytes of all files in their order.

    Names are no part of it, but endings are, because they say how the bytes are read.
    """
    files = source_files(location)
    if location.has_splits:
        return hub.content_hash(location, location.split or default_split)
    digest = hashlib.blake2b(digest_size=32)
    for path in files:
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "blake2b").digest()
        except OSError as error:
            raise UserError(problems=[unreadable(error, str(path))]) from None
        digest.update("".join(endings(path)).encode() + b"\0" + content)
    return digest.hexdigest()
