"""SIGINT and SIGTERM ask for a stop after the current step; a second SIGINT stops at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """The signal number received, 0 for none. The loop looks at it between steps."""

    def __init__(self) -> None:
        self.signal_number = 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = number


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Install the handlers, and put the old ones back afterwards."""
    request = StopRequest()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, request.handle) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
