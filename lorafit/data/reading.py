"""A source of the recipe as a store of tokenised rows in the cache."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lorafit.data import cache, workers
from lorafit.data.given import (
    BLOCK_ROWS,
    Given,
    Shape,
    first_rows,
    names_of,
    shape_of,
    unusable,
)
from lorafit.data.pipeline import Made, Pipeline
from lorafit.data.rows import MAX_EXAMPLES
from lorafit.data.sources import content_hash, open_blocks
from lorafit.data.store import Facts, StoreWriter, TokenStore
from lorafit.errors import Problem, UserError
from lorafit.recipe.schema import Data


def open_store(given: Given, data: Data, tokenizer: Any,
               watch: Callable[[str, int], None]) -> TokenStore:
    """The tokenised rows of a source, from the cache or made now.

    One process makes them and the others wait. UserError naming every row that does not fit.
    """
    shape = shape_of(given)
    pipeline = Pipeline(data, tokenizer, shape.format, shape.mapping)
    files = names_of(given)
    content = content_hash(given.location, default_split=given.split)
    key = _key(given, data, tokenizer, shape, pipeline, content)
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


def is_tokenised(given: Given, data: Data, tokenizer: Any) -> bool:
    """Whether the cache holds the rows of a source, so that `open_store` reads them from there."""
    shape = shape_of(given)
    pipeline = Pipeline(data, tokenizer, shape.format, shape.mapping)
    content = content_hash(given.location, default_split=given.split)
    return cache.has_entry(_key(given, data, tokenizer, shape, pipeline, content))


def _key(given: Given, data: Data, tokenizer: Any, shape: Shape, pipeline: Pipeline,
         content: str) -> str:
    return cache.key_of({
        "content": content,
        "limit": given.limit,
        "unusable": data.checks.unusable,
        "format": shape.format, "mapping": shape.mapping,
        "tokenizer": cache.tokenizer_digest(tokenizer),
        "rendering": pipeline.identity(),
    })


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
            raise unusable(self._problems, self.rows_read, self._unusable)

    def facts(self, shape: Shape) -> Facts:
        unusable = [[problem.where, problem.what] for problem in self._problems]
        return Facts(shape.format, shape.reason, self.rows_read, self._not_wanted, self._unusable,
                     unusable, list(self._notices))


def _through_pipeline(given: Given, pipeline: Pipeline, processes: int) -> Iterator[Made]:
    pipeline.renderer  # noqa: B018  a template that cannot be read is found here, not in a process
    blocks = open_blocks(given.location, default_split=given.split, block_rows=BLOCK_ROWS)
    return workers.in_order(pipeline, first_rows(blocks, given.limit), processes)
