"""Where a rank stands: what it is at, in which step, and how long each kind of work took so far.

Written by the thread that trains, several times a micro-batch, and read by others: an assignment
and a clock, no lock, nothing that can fail or wait.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, NamedTuple

import torch


class Kind(StrEnum):
    """What time is spent on."""

    LOADING = "loading"
    DATA = "data"
    COMPUTE = "compute"
    COMMUNICATION = "communication"
    EVALUATION = "evaluation"
    SAVING = "saving"


class Phase(NamedTuple):
    """what: as a person reads it. step: counted from 1; None before the first. part of parts: a
    micro-batch, counted from 1."""

    kind: Kind
    what: str
    step: int | None = None
    part: int = 0
    parts: int = 0

    def __str__(self) -> str:
        what = self.what
        if self.part:
            what += f" of micro-batch {self.part}" + (f" of {self.parts}" if self.parts else "")
        return what if self.step is None else f"{what}, step {self.step}"


WRITING = "saving (writing to disk)"


class Standing:
    """A rank's own notion of what it is at.

    seconds: spent on each kind of work, up to the last change. moves: how often anything changed,
    by which others see that this rank is getting on. step: the one that is under way, from 1.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self.moves = 0
        self.seconds = dict.fromkeys(Kind, 0.0)
        self.phase = Phase(Kind.LOADING, "starting")
        self._since_s = time.perf_counter()
        self._timed: list[tuple[Any, Any]] = []
        self._on_device_s = 0.0

    def at(self, kind: Kind, what: str, part: int = 0, parts: int = 0) -> None:
        """From now on, this rank is at `what`."""
        self._enter(Phase(kind, what, self.step, part, parts))

    def moved(self) -> None:
        """Still at the same, and getting on with it."""
        self.moves += 1

    @contextmanager
    def during(self, kind: Kind, what: str, step: int | None = None) -> Iterator[None]:
        """At `what` within the block, and afterwards at what it was before. step: if it is for
        another one than that which is under way."""
        before = self.phase
        self._enter(Phase(kind, what, step or self.step))
        try:
            yield
        finally:
            self._enter(before)

    @contextmanager
    def fetching(self, step: int, device: torch.device) -> Iterator[None]:
        """Waiting for the data of a step within the block. What a GPU computes meanwhile is no
        waiting; it counts as that if the GPU is through before the data is there."""
        before_s = self.seconds[Kind.DATA]
        with self.during(Kind.DATA, "waiting for data", step):
            yield
        if device.type == "cuda" and not torch.cuda.current_stream(device).query():
            hidden_s = self.seconds[Kind.DATA] - before_s
            self.seconds[Kind.DATA] -= hidden_s
            self.seconds[Kind.COMPUTE] += hidden_s

    @contextmanager
    def reducing(self, device: torch.device, what: str) -> Iterator[None]:
        """Communicating within the block, which a GPU does later than the host asks for it: there
        the device's own clock is read, once it has got so far."""
        events = None
        if device.type == "cuda":
            new: Any = torch.cuda.Event
            events = (new(enable_timing=True), new(enable_timing=True))
            events[0].record()
        with self.during(Kind.COMMUNICATION, what):
            yield
        if events is not None:
            events[1].record()
            self._timed.append(events)

    def communicated_s(self, device: torch.device) -> float:
        """Seconds of communication so far, waiting for other ranks included. On a GPU those within
        `reducing` that it is through with."""
        if device.type != "cuda":
            return self.seconds[Kind.COMMUNICATION]
        while self._timed and self._timed[0][1].query():
            start, end = self._timed.pop(0)
            self._on_device_s += start.elapsed_time(end) / 1000
        return self._on_device_s

    def _enter(self, phase: Phase) -> None:
        now = time.perf_counter()
        self.seconds[self.phase.kind] += now - self._since_s
        self._since_s = now
        self.moves += 1
        self.phase = phase
