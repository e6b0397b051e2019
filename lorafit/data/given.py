"""A source of the recipe: where it is, and what shape its rows have. Needs no tokenizer."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from lorafit.data.examples import Example
from lorafit.data.formats import FORMATS, choose_format, convert_rows
from lorafit.data.rows import Place, Row, problems_error
from lorafit.data.sources import (
    Location,
    RawBlock,
    open_blocks,
    parse_block,
    read_rows,
    source_files,
)
from lorafit.errors import Problem, UserError
from lorafit.recipe.schema import Data, Source

FIRST_ROWS = 100  # looked at to choose the format
BLOCK_ROWS = 1000


@dataclass(frozen=True)
class Given:
    """One source with what the recipe says about it.

    limit: take only its first rows. may_drop: leave out rows that cannot be used.
    """

    location: Location
    split: str
    weight: float
    format: str
    columns: dict[str, str]
    limit: int | None
    may_drop: bool = False

    @property
    def name(self) -> str:
        return self.location.path


@dataclass(frozen=True)
class Shape:
    """How the rows of a source are read: format, column mapping, and why."""

    format: str
    mapping: dict[str, str]
    reason: str


def sources_of(data: Data, which: str) -> list[Given]:
    """The sources of `train` or `eval`; none where the recipe has none."""
    values = getattr(data, which)
    limit = data.max_rows if which == "train" else data.max_eval_rows
    given = []
    for value in values if isinstance(values, list) else [values]:
        if value is None:
            continue
        source = value if isinstance(value, Source) else Source(path=value)
        columns = source.columns or data.columns
        given.append(Given(
            Location(source.path, source.split, source.subset, source.revision),
            "train" if which == "train" else "test", source.weight, source.format or data.format,
            {role: name for role, name in columns.model_dump().items() if name}, limit,
            data.checks.unusable == "drop",
        ))
    return given


def shape_of(given: Given) -> Shape:
    """The format of a source by its first rows. UserError when none fits."""
    chosen, mapping, reason = choose_format(first_usable(given), given.format, given.columns)
    return Shape(chosen.name, mapping, reason)


def first_usable(given: Given) -> list[Row]:
    """Some of the first rows that can be read. UserError when one cannot, unless it may be
    dropped, and when there is none."""
    if given.may_drop:
        for block in open_blocks(given.location, default_split=given.split, block_rows=FIRST_ROWS):
            rows, _ = parse_block(block)
            if rows:
                return rows
    return read_rows(given.location, default_split=given.split, limit=FIRST_ROWS)


def names_of(given: Given) -> list[str]:
    """Names that the places of its rows have: its files, or that of a hub data set."""
    return [str(file) for file in source_files(given.location)] or [given.name]


def examples_at(given: Given, places: Collection[Place]) -> dict[Place, Example]:
    """The rows at some places in the internal form, read again from the source."""
    shape = shape_of(given)
    missing = set(places)
    found: dict[Place, Example] = {}
    for block in open_blocks(given.location, default_split=given.split, block_rows=BLOCK_ROWS):
        rows, _ = parse_block(block)
        rows = [row for row in rows if row.place in missing]
        converted, _ = convert_rows(rows, FORMATS[shape.format], shape.mapping)
        found.update((place, example) for example, place in converted)
        missing -= found.keys()
        if not missing:
            break
    return found


def unusable(problems: list[Problem], rows: int, affected: int) -> UserError:
    """The first rows that cannot be used, how many there are, and how to leave them out."""
    hint = Problem("rows that cannot be used can be left out", "",
                   "--set data.checks.unusable=drop")
    return UserError(problems=[*problems_error(problems, rows, affected).problems, hint])


def first_rows(blocks: Iterator[RawBlock], limit: int | None) -> Iterator[RawBlock]:
    """Blocks up to so many rows; all where there is no limit."""
    if limit is None:
        yield from blocks
        return
    left = limit
    for block in blocks:
        if len(block) >= left:
            yield block.first(left)
            return
        left -= len(block)
        yield block
