"""Answers waiting requests, batch by batch, in a thread of its own.

What waits when a batch is over goes into the next one together: rows of different adapters too,
where their adapters can share a batch. A row leaves when it ends, or when whoever asked has gone;
the batch ends with its last row.
"""

import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from lorafit.model.several import SeveralAdapters
from lorafit.serve.trial.sampling import (
    TokenLogprob,
    Wanted,
    draw,
    generator_of,
    logprob_of,
)
from lorafit.serve.trial.text import TextStream

_GATHER_S = 0.005  # requests that were sent at the same time come in one after the other
Result = TypeVar("Result")


@dataclass(frozen=True)
class Piece:
    """More of an answer: tokens, their probabilities where asked for, and the text they complete.

    Text lags behind tokens where a character or a stop text may not be complete.
    """

    text: str
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


@dataclass(frozen=True)
class Finish:
    """Why an answer is over: `stop`, `length`, `cancelled` or `error`.

    stop_reason: the text or token that stopped it, None for the model's own end. message: of an
    error, for whoever asked.
    """

    reason: str
    stop_reason: str | int | None = None
    message: str = ""


class Replies:
    """What comes back for some requests that were made together."""

    def __init__(self, count: int) -> None:
        self._events: queue.SimpleQueue[tuple[int, Piece | Finish]] = queue.SimpleQueue()
        self.open = count
        self.cancelled = False

    def next(self, timeout_s: float | None = None) -> tuple[int, Piece | Finish] | None:
        """The next event and the number of its request; None when nothing came in time."""
        try:
            index, event = self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None
        self.open -= isinstance(event, Finish)
        return index, event

    def cancel(self) -> None:
        """Nobody reads the answers any more: their rows end at the next token."""
        self.cancelled = True

    def put(self, index: int, event: Piece | Finish) -> None:
        self._events.put((index, event))


@dataclass(eq=False)
class _Row:
    """An answer in the making."""

    wanted: Wanted
    replies: Replies
    index: int
    stream: TextStream
    end_tokens: frozenset[int]
    generator: torch.Generator
    answered: list[int] = field(default_factory=list)
    over: bool = False

    def take(self, token: int, logprobs: list[TokenLogprob]) -> None:
        """One more token of the answer."""
        self.answered.append(token)
        wanted = self.wanted
        ends = token in self.end_tokens and not wanted.ignore_eos
        if ends or token in wanted.stop_tokens:
            self._end(token, logprobs, None if ends else token)
            return
        text = self.stream.add(token)
        self.replies.put(self.index, Piece(text, [token], logprobs))
        if self.stream.stopped_by is not None:
            self.finish(Finish("stop", self.stream.stopped_by))
        elif len(self.answered) >= wanted.max_tokens:
            self._rest()
            by = self.stream.stopped_by
            self.finish(Finish("length") if by is None else Finish("stop", by))

    def finish(self, event: Finish) -> None:
        self.over = True
        self.replies.put(self.index, event)

    def _end(self, token: int, logprobs: list[TokenLogprob], reason: int | None) -> None:
        """The token ends the answer and is no part of its text."""
        self.replies.put(self.index, Piece("", [token], logprobs))
        self._rest()
        self.finish(Finish("stop", self.stream.stopped_by or reason))

    def _rest(self) -> None:
        if rest := self.stream.finish():
            self.replies.put(self.index, Piece(rest))


class _Batch:
    """Chooses the tokens of rows that are computed together."""

    def __init__(self, rows: Sequence[_Row], pad_id: int, stopping: Callable[[], bool]) -> None:
        self.rows, self.pad_id, self.stopping = rows, pad_id, stopping

    def choose(self, logits: Tensor) -> list[int]:
        likeliest = logits.argmax(-1).tolist()
        return [self.pad_id if row.over else self._chosen(row, logits[i], likeliest[i])
                for i, row in enumerate(self.rows)]

    def over(self) -> list[bool]:
        for row in self.rows:
            if not row.over and (row.replies.cancelled or self.stopping()):
                row.finish(Finish("cancelled"))
        return [row.over for row in self.rows]

    def _chosen(self, row: _Row, logits: Tensor, likeliest: int) -> int:
        wanted = row.wanted
        token = likeliest if wanted.is_greedy else draw(logits, wanted, row.answered, row.generator)
        row.take(token, [] if wanted.logprobs is None
                 else [logprob_of(logits, token, wanted.logprobs)])
        return token


class Worker:
    """A base with adapters, and the thread that answers with them.

    end_tokens: ids that end an answer. max_batch: rows of a batch at most.
    """

    def __init__(self, several: SeveralAdapters, decode: Callable[[Sequence[int], bool], str],
                 end_tokens: Sequence[int], pad_id: int, max_batch: int) -> None:
        self._several = several
        self._decode = decode
        self._end_tokens = frozenset(end_tokens)
        self._pad_id = pad_id
        self._max_batch = max_batch
        self._waiting: list[_Row] = []
        self._errands: list[Callable[[], None]] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)
        self.batches: list[int] = []  # rows of the last batches, the newest last
        self._thread.start()

    def submit(self, wanted: Sequence[Wanted]) -> Replies:
        """Ask for answers; they come as events of one `Replies`, numbered as they are asked."""
        replies = Replies(len(wanted))
        rows = [self._row(each, replies, i) for i, each in enumerate(wanted)]
        with self._changed:
            self._waiting += rows
            self._changed.notify()
        return replies

    def load(self, name: str, directory: Any) -> None:
        """Add an adapter between two batches. UserError when it does not fit."""
        self._between_batches(lambda: self._several.load(name, directory))

    def unload(self, name: str) -> None:
        """Remove an adapter between two batches; requests that still wait for it fail."""
        self._between_batches(lambda: self._several.unload(name))

    def stop(self) -> None:
        """End all answers and the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout=30)

    def _row(self, wanted: Wanted, replies: Replies, index: int) -> _Row:
        stream = TextStream(lambda ids: self._decode(ids, wanted.skip_special_tokens),
                            wanted.stop, wanted.keep_stop)
        return _Row(wanted, replies, index, stream, self._end_tokens, generator_of(wanted))

    def _between_batches(self, errand: Callable[[], Result]) -> Result:
        done = threading.Event()
        result: list[Result] = []
        trouble: list[BaseException] = []

        def run() -> None:
            try:
                result.append(errand())
            except BaseException as error:
                trouble.append(error)
            finally:
                done.set()

        with self._changed:
            self._errands.append(run)
            self._changed.notify()
        done.wait()
        if trouble:
            raise trouble[0]
        return result[0]

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._errands or self._waiting or self._stopping):
                    self._changed.wait()
                errands, self._errands = self._errands, []
                if self._stopping:
                    rows, self._waiting = self._waiting, []
                    for row in rows:
                        row.finish(Finish("cancelled"))
            for errand in errands:
                errand()
            if self._stopping:
                return
            if self._waiting:
                time.sleep(_GATHER_S)
                if rows := self._next_batch():
                    self._answer(rows)

    def _next_batch(self) -> list[_Row]:
        """The longest waiting request, and those that can share its batch."""
        with self._changed:
            ready: list[_Row] = []
            loaded = set(self._several.names())
            for row in self._waiting:
                if row.replies.cancelled:
                    row.finish(Finish("cancelled"))
                elif row.wanted.adapter is not None and row.wanted.adapter not in loaded:
                    row.finish(Finish("error", message=f"{row.wanted.adapter} was unloaded"))
                else:
                    ready.append(row)
            group = self._several.group(ready[0].wanted.adapter) if ready else ""
            most = self._several.rows_at_once(group) or self._max_batch
            chosen = [row for row in ready
                      if self._several.group(row.wanted.adapter) == group][:most]
            self._waiting = [row for row in ready if row not in chosen]
            return chosen

    def _answer(self, rows: list[_Row]) -> None:
        self.batches = [*self.batches[-99:], len(rows)]
        batch = _Batch(rows, self._pad_id, lambda: self._stopping)
        try:
            self._several.answer(
                [row.wanted.adapter for row in rows], [row.wanted.prompt for row in rows], batch,
                pad_id=self._pad_id, longest=max(row.wanted.max_tokens for row in rows))
        except Exception as error:  # the next batch may still be answered
            traceback.print_exc()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            message = "out of memory" if isinstance(error, torch.OutOfMemoryError | MemoryError) \
                else f"the model failed: {type(error).__name__}: {error}"
            for row in rows:
                if not row.over:
                    row.finish(Finish("error", message=message))
