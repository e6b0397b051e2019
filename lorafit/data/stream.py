"""Rows that are read and tokenised while training goes on, for data too large to prepare first.

The stream is cut into blocks of at least `data.shuffle_rows` rows. A block is a small data set of
its own: stores in a temporary directory, checked and cut to length like any other, in a random
order that depends on the seed and the block's number. Sources take turns so that the rows read of
each stay in proportion to their weights, and start again when they end. All of that is a function
of the data and the seed, so a resumed run only needs to know how many rows were read.
"""

import hashlib
import json
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lorafit.data import workers
from lorafit.data.cache import tokenizer_digest
from lorafit.data.dataset import Checked, Checks, Report, TokenisedData, fail_on, ready
from lorafit.data.feed import StepExamples, longest_of
from lorafit.data.given import Given, names_of, shape_of, sources_of
from lorafit.data.order import permutation
from lorafit.data.pipeline import Made, Pipeline
from lorafit.data.reading import Tally
from lorafit.data.sources import RawBlock, open_blocks, source_files
from lorafit.data.store import StoreWriter, TokenStore
from lorafit.data.stream_blocks import SharedBlocks, telling, wait_for_cursors, write_cursors
from lorafit.errors import MachineError, UserError
from lorafit.recipe.schema import Data

RAW_ROWS = 500  # read and tokenised at a time


@dataclass(frozen=True)
class Cursor:
    """Where a source stands: which pass over it, rows read of this pass, rows read of all."""

    passes: int = 0
    rows: int = 0
    total_rows: int = 0


@dataclass(frozen=True)
class Position:
    """Where the stream stands: before which block, at which of its own rows, and the sources.

    read: what became of the rows before, as `Feed.read` gives it.
    """

    block: int
    first_row: int
    cursors: tuple[Cursor, ...]
    read: dict[str, int]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Position":
        cursors = tuple(Cursor(**cursor) for cursor in values["cursors"])
        return cls(values["block"], values["first_row"], cursors, values["read"])


@dataclass(frozen=True)
class _Raw:
    """Raw rows of source number `source`; `before` is where that source stood before them."""

    source: int
    before: Cursor
    block: RawBlock


@dataclass(frozen=True)
class _Block:
    """Rows of one block in their random order, where the stream stood before it."""

    start: Position
    data: TokenisedData
    order: np.ndarray
    directory: Path

    @property
    def end_row(self) -> int:
        return self.start.first_row + len(self.order)


@dataclass(frozen=True)
class _Work:
    """What a process does: raw rows of any source to tokens."""

    pipelines: tuple[Pipeline, ...]

    def __call__(self, raw: _Raw) -> tuple[int, Cursor, Made]:
        made = self.pipelines[raw.source](raw.block)
        before, rows = raw.before, made.rows_read
        after = Cursor(before.passes, before.rows + rows, before.total_rows + rows)
        return raw.source, after, made


class StreamFeed:
    """A feed that reads ahead of the training loop, from the start or from a saved state.

    Rows that also stand in `held_out` are what the check `overlap` looks for. Several processes of
    a machine with `shared` blocks read and tokenise each row once.
    """

    def __init__(self, data: Data, tokenizer: Any, seed: int, batch_size: int,
                 held_out: Checked | None = None, state: dict[str, Any] | None = None,
                 shared: SharedBlocks | None = None) -> None:
        self._data = data
        self._seed = seed
        self._batch_size = batch_size
        self._held_out = held_out
        self._given = sources_of(data, "train")
        self._shapes = [shape_of(given) for given in self._given]
        self._checks = Checks(data, tokenizer)
        self._next = Position(0, 0, (Cursor(),) * len(self._given), {}) if state is None \
            else Position.from_dict(state["position"])
        self._expected: str | None = None if state is None else state["fingerprint"]
        self._blocks: list[_Block] = []
        pipelines = [Pipeline(data, tokenizer, shape.format, shape.mapping)
                     for shape in self._shapes]
        self.identity = _identity(self._given, pipelines)
        self._made = workers.in_order(
            _Work(tuple(pipelines)), _in_turns(self._given, self._next.cursors),
            workers.count(data.workers))
        self._shared = shared
        self._reads = shared is None or shared.reads
        self.directory = new_directory() if shared is None else shared.directory
        if self._reads:  # however a run ends, its blocks go with it
            weakref.finalize(self, shutil.rmtree, self.directory, ignore_errors=True)

    def step(self, step: int) -> StepExamples:
        """The examples of optimizer step `step` (from 0). Steps are asked for in order."""
        first = step * self._batch_size
        last = first + self._batch_size
        if first < (self._blocks[0].start if self._blocks else self._next).first_row:
            raise ValueError(f"step {step} lies before the part of the stream that is at hand")
        while self._next.first_row < last:
            self._blocks.append(self._next_block())
        # The step before may be asked for again, or its state: it is the one that training is in.
        while self._blocks[0].end_row <= first - self._batch_size:
            done = self._blocks.pop(0)  # every rank has opened it: they meet once a step
            if self._reads:
                shutil.rmtree(done.directory)
        chosen = [(block, int(block.order[row - block.start.first_row]))
                  for row in range(first, last)
                  for block in self._blocks
                  if block.start.first_row <= row < block.end_row]
        lengths = np.array([block.data.lengths[row] for block, row in chosen])
        return StepExamples(lengths, lambda i: chosen[i][0].data.tokens(chosen[i][1]),
                            lambda i: chosen[i][0].data.place(chosen[i][1]))

    def state(self, step: int) -> dict[str, Any]:
        """What a feed needs to start again at `step`, the one after the last that was asked for."""
        first = step * self._batch_size
        for block in self._blocks:
            if block.start.first_row <= first < block.end_row:
                return {"position": asdict(block.start),
                        "fingerprint": block.data.report.fingerprint}
        if first < self._next.first_row:
            raise ValueError(f"step {step} lies before the part of the stream that is at hand")
        return {"position": asdict(self._next), "fingerprint": None}

    def longest(self, rows: int, tokens: int) -> StepExamples:
        return longest_of(self.first_block(), rows, tokens)

    def read(self) -> dict[str, int]:
        """What became of all rows so far, those of the block in use included."""
        return self._next.read

    def report(self) -> Report:
        """What became of the rows of a block; the fingerprint tells this stream from others."""
        report = self.first_block().report
        return replace(report, fingerprint=self.identity, notices=[
            *report.notices,
            f"streaming: a block of {report.rows_read:,} rows was read; duplicates are not looked "
            "for",
        ])

    def first_block(self) -> TokenisedData:
        """Rows of the first block that is at hand; it goes when later steps are asked for."""
        while not self._blocks:
            self._blocks.append(self._next_block())
        return self._blocks[0].data

    def close(self) -> None:
        self._made.close()
        if self._reads:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _next_block(self) -> _Block:
        """The next block. UserError when a row does not fit or a check objects, MachineError when
        the disk refuses."""
        try:
            return self._read_block()
        except OSError as error:  # the sources' own are UserErrors
            raise MachineError(
                f"{self.directory}: rows of the stream cannot be written: "
                f"{error.strerror or error}\n    make room, or set the environment variable TMPDIR "
                "to another directory") from None

    def _read_block(self) -> _Block:
        start = self._next
        directory = self.directory / str(start.block)
        if self._reads:
            with telling(directory, self._shared is not None):
                cursors = self._write_block(directory, start)
        else:
            cursors = [Cursor(**values) for values in wait_for_cursors(directory)]
        data = self._select([TokenStore(directory / str(n)) for n in range(len(self._given))])
        if self._expected not in (None, data.report.fingerprint):
            raise UserError("the rows changed since the run was started",
                            ", ".join(given.name for given in self._given),
                            "restore the files, or start a new run in another output.dir")
        self._expected = None
        self._next = Position(start.block + 1, start.first_row + len(data), tuple(cursors),
                              _added(start.read, data.report))
        return _Block(start, data, permutation(len(data), self._seed, start.block), directory)

    def _write_block(self, directory: Path, start: Position) -> list[Cursor]:
        """Fill the stores of a block; where the sources stand after it."""
        writers, tallies = [], []
        for number, given in enumerate(self._given):
            (directory / str(number)).mkdir(parents=True)
            writers.append(StoreWriter(directory / str(number), names_of(given)))
            tallies.append(Tally(may_drop=self._data.checks.unusable == "drop"))
        cursors = list(start.cursors)
        while sum(tally.rows_read for tally in tallies) < self._data.shuffle_rows:
            source, cursors[source], made = next(self._made)
            tallies[source].add(made)
            tallies[source].fail_on_problems()
            writers[source].append(made.rows)
        for writer, tally, shape in zip(writers, tallies, self._shapes, strict=True):
            writer.close(tally.facts(shape))
        write_cursors(directory, cursors)
        return cursors

    def _select(self, stores: Sequence[TokenStore]) -> TokenisedData:
        rows = self._checks.rows(self._given, stores)
        if self._held_out is not None:
            rows = self._checks.overlap(rows, self._held_out)
        fail_on(rows)
        return ready(rows, self._data)


def new_directory() -> Path:
    """Where blocks go, for whoever reads them."""
    return Path(tempfile.mkdtemp(prefix="lorafit-stream-"))


def _added(before: dict[str, int], report: Report) -> dict[str, int]:
    """Counts of rows so far, with those of one more block."""
    counts = Counter(before)
    counts.update({name: value for name, value in report.as_dict().items()
                   if isinstance(value, int) and not name.startswith("longest")})
    counts.update({finding.check: finding.rows for finding in report.findings})
    return dict(counts)


def _identity(sources: Sequence[Given], pipelines: Sequence[Pipeline]) -> str:
    """A digest of what decides the stream and is known without reading it: names and sizes of the
    files, and how rows become tokens."""
    parts = [
        [[[file.name, file.stat().st_size] for file in source_files(given.location)],
         given.name.rpartition("/")[2], given.weight, pipeline.format, pipeline.mapping,
         tokenizer_digest(pipeline.tokenizer), pipeline.identity()]
        for given, pipeline in zip(sources, pipelines, strict=True)
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _in_turns(sources: Sequence[Given], cursors: Sequence[Cursor]) -> Iterator[_Raw]:
    """Raw rows of all sources without end: next comes the source that is furthest behind its
    share, the first of them where several are."""
    at = list(cursors)
    readers = [_blocks_from(given, cursor.rows)
               for given, cursor in zip(sources, cursors, strict=True)]
    while True:
        source = min(range(len(sources)), key=lambda n: at[n].total_rows / sources[n].weight)
        block = next(readers[source], None)
        if block is None:
            at[source] = Cursor(at[source].passes + 1, 0, at[source].total_rows)
            readers[source] = _blocks_from(sources[source], 0)
            block = next(readers[source])
        yield _Raw(source, at[source], block)
        before = at[source]
        at[source] = Cursor(before.passes, before.rows + len(block),
                            before.total_rows + len(block))


def _blocks_from(given: Given, rows: int) -> Iterator[RawBlock]:
    return open_blocks(given.location, default_split=given.split, block_rows=RAW_ROWS,
                       skip_rows=rows, streaming=True)
