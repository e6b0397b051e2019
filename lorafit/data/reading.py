"""A source of the recipe: where it is, what shape its rows have, and its store in the cache."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafit.data import cache, workers
from lorafit.data.examples import Example
from lorafit.data.formats import FORMATS, choose_format, convert_rows
from lorafit.data.pipeline import Made, Pipeline
from lorafit.data.rows import MAX_EXAMPLES, Place, Row, problems_error
from lorafit.data.sources import (
    Location,
    RawBlock,
    content_hash,
    open_blocks,
    parse_block,
    read_rows,
    source_files,
)
from lorafit.data.store import Facts, StoreWriter, TokenStore
from lorafit.errors import Problem, UserError
from lorafit.recipe.schema import Data, Source

FIRST_ROWS = 100  # looked at before anything heavy is imported, and to choose the format
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
    chosen, mapping, reason = choose_format(_first_usable(given), given.format, given.columns)
    return Shape(chosen.name, mapping, reason)


def check_source(given: Given) -> None:
    """UserError when a source is missing, empty, or its first rows do not fit the recipe."""
    rows = _first_usable(given)
    chosen, mapping, _ = choose_format(rows, given.format, given.columns)
    _, problems = convert_rows(rows, chosen, mapping)
    if problems and not given.may_drop:
        raise _unusable(problems, len(rows), len(problems))


def _first_usable(given: Given) -> list[Row]:
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


def open_store(given: Given, data: Data, tokenizer: Any,
               watch: Callable[[str, int], None]) -> TokenStore:
    """The tokenised rows of a source, from the cache or made now.

    One process makes them and the others wait. UserError naming every row that does not fit.
    """
    shape = shape_of(given)
    pipeline = Pipeline(data, tokenizer, shape.format, shape.mapping)
    files = names_of(given)
    content = content_hash(given.location, default_split=given.split)
    key = cache.key_of({
        "content": content,
        "limit": given.limit,
        "unusable": data.checks.unusable,
        "format": shape.format, "mapping": shape.mapping,
        "tokenizer": cache.tokenizer_digest(tokenizer),
        "rendering": pipeline.identity(),
    })
    with cache.locked(key) as path:
        store = _intact(path, files)
        if store is None:
            def make(directory: Path) -> dict[str, Any]:
                listed = _make(directory, given, files, shape, pipeline,
                               workers.count(data.workers), watch)
                _refuse_changed(given, content)
                return listed

            cache.write_entry(path, make)
            store = TokenStore(path, files)
    cache.mark_used(path)
    return store


def _refuse_changed(given: Given, content: str) -> None:
    """UserError when the rows that were read may not be those that `content` is a digest of."""
    if content_hash(given.location, default_split=given.split) != content:
        raise UserError("changed while it was read", given.name,
                        "start again when it is complete")


def _intact(path: Path, files: list[str]) -> TokenStore | None:
    """An entry of the cache, None where there is none that can be trusted."""
    try:
        store = TokenStore(path, files)
        return store if store.is_intact() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _make(directory: Path, given: Given, files: list[str], shape: Shape, pipeline: Pipeline,
          processes: int, watch: Callable[[str, int], None]) -> dict[str, Any]:
    """Tokenise a source into a store; return what the cache lists of it."""
    writer = StoreWriter(directory, files)
    tally = Tally(may_drop=pipeline.data.checks.unusable == "drop")
    for made in _through_pipeline(given, pipeline, processes):
        if tally.add(made):
            writer.append(made.rows)
        watch(given.name, tally.rows_read)
    tally.fail_on_problems()
    writer.close(tally.facts(shape))
    return {"source": given.name, "rows": tally.rows, "tokens": writer.tokens}


class Tally:
    """Counts what became of blocks of rows."""

    def __init__(self, *, may_drop: bool) -> None:
        self._may_drop = may_drop
        self._problems: list[Problem] = []
        self._notices: dict[str, None] = {}
        self.rows = self.rows_read = self._not_wanted = self._unusable = 0

    def add(self, made: Made) -> bool:
        """Count a block; whether its rows are still of use."""
        self.rows += len(made.rows)
        self.rows_read += made.rows_read
        self._not_wanted += made.not_wanted
        self._unusable += len(made.problems)
        self._problems = (self._problems + made.problems)[:MAX_EXAMPLES]
        self._notices.update(dict.fromkeys(sorted(made.notices)))
        return self._may_drop or not self._problems

    def fail_on_problems(self) -> None:
        """UserError with the first rows that cannot be used, unless these may be dropped."""
        if self._problems and not self._may_drop:
            raise _unusable(self._problems, self.rows_read, self._unusable)

    def facts(self, shape: Shape) -> Facts:
        unusable = [[problem.where, problem.what] for problem in self._problems]
        return Facts(shape.format, shape.reason, self.rows_read, self._not_wanted, self._unusable,
                     unusable, list(self._notices))


def _unusable(problems: list[Problem], rows: int, affected: int) -> UserError:
    """The first rows that cannot be used, how many there are, and how to leave them out."""
    hint = Problem("rows that cannot be used can be left out", "",
                   "--set data.checks.unusable=drop")
    return UserError(problems=[*problems_error(problems, rows, affected).problems, hint])


def _through_pipeline(given: Given, pipeline: Pipeline, processes: int) -> Iterator[Made]:
    pipeline.renderer  # noqa: B018  a template that cannot be read is found here, not in a process
    blocks = open_blocks(given.location, default_split=given.split, block_rows=BLOCK_ROWS)
    return workers.in_order(pipeline, _first_rows(blocks, given.limit), processes)


def _first_rows(blocks: Iterator[RawBlock], limit: int | None) -> Iterator[RawBlock]:
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

