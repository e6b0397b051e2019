"""Requests to stop, or to save and go on: signals and a deadline.

SIGTERM and SIGINT end a run after the optimizer step that is under way, SIGUSR1 commits a
checkpoint and goes on, and so does `--stop-after` end it. Before the first step, while libraries,
data and weights are loaded, there is nothing to keep: a signal then ends the process at once, and
so does a second SIGINT at any time. One of several ranks leaves SIGTERM to the system until then:
it may be waiting, deep inside a library, for a rank that has died, where no handler runs.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from functools import partial
from types import FrameType
from typing import Any

from lorafit.errors import DEADLINE_EXIT_CODE, Stopped

_REMEDY = "Continue with --resume"


class Wish(IntEnum):
    """What somebody asks of a run. Ranks that are asked for different things do the largest."""

    NOTHING = 0
    SAVE = 1
    DEADLINE = 2
    INTERRUPT = 3
    TERMINATE = 4

    @property
    def ends(self) -> bool:
        return self > Wish.SAVE

    def stopped(self, where: str) -> Stopped:
        """The error that ends a run: `where` says how far it got and what was kept."""
        code = {Wish.DEADLINE: DEADLINE_EXIT_CODE, Wish.INTERRUPT: 128 + signal.SIGINT,
                Wish.TERMINATE: 128 + signal.SIGTERM}[self]
        why = "the time of --stop-after is over: " if self is Wish.DEADLINE else ""
        return Stopped(code, f"{why}{where}")


_OF_SIGNAL = {signal.SIGINT: Wish.INTERRUPT, signal.SIGTERM: Wish.TERMINATE}
if hasattr(signal, "SIGUSR1"):
    _OF_SIGNAL[signal.SIGUSR1] = Wish.SAVE


class StopRequest:
    """What this process was asked for.

    deadline_s: perf_counter at which the run is to end; None for never.
    """

    def __init__(self, deadline_s: float | None = None,
                 on_training: Callable[[], None] = lambda: None) -> None:
        self._is_training = False
        self._on_training = on_training
        self._deadline_s = deadline_s
        self._asked = Wish.NOTHING

    @property
    def wish(self) -> Wish:
        if self._deadline_s is not None and time.perf_counter() >= self._deadline_s:
            return max(self._asked, Wish.DEADLINE)
        return self._asked

    def training(self) -> None:
        """From now on the loop looks at what is asked."""
        self._is_training = True
        self._on_training()

    def saved(self) -> None:
        """A checkpoint was committed, so that it is no longer asked for."""
        if self._asked is Wish.SAVE:
            self._asked = Wish.NOTHING

    def handle(self, number: int, frame: FrameType | None) -> None:
        asked = _OF_SIGNAL[signal.Signals(number)]
        if asked is Wish.INTERRUPT is self._asked:
            raise KeyboardInterrupt
        # Kept even when it ends the process here: an exception is lost where nobody may raise one.
        self._asked = max(self._asked, asked)
        if asked.ends and not self._is_training:
            raise asked.stopped("stopped before the first step")


@contextmanager
def listening(deadline_s: float | None = None, *, is_rank: bool = False) -> Iterator[StopRequest]:
    """Install the handlers, and put the old ones back afterwards. is_rank: one of several."""
    before: dict[int, Any] = {}

    def install(number: int) -> None:
        before[number] = signal.signal(number, request.handle)

    request = StopRequest(deadline_s, partial(install, signal.SIGTERM) if is_rank else lambda: None)
    for number in _OF_SIGNAL:
        if not (is_rank and number == signal.SIGTERM):
            install(number)
    try:
        yield request
    finally:
        for installed, handler in before.items():
            signal.signal(installed, handler)
