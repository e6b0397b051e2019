"""A connection between two launchers: a JSON object a line, and a sign of life every few seconds.

Nothing that is received is run or unpickled; a line that is no such object ends the connection.
"""

import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

BEAT_S = 3.0
SILENCE_S = 15.0  # without a sign of life for so long, the other side is gone
_LONGEST_BYTES = 1 << 20

Heard = Callable[["Line", dict[str, Any]], None]


class Line:
    """Calls `heard` for each message and `lost` once, when the other side is gone or silent; both
    in a thread of its own."""

    def __init__(self, connection: socket.socket, heard: Heard,
                 lost: Callable[["Line"], None]) -> None:
        self._connection = connection
        self._heard, self._lost = heard, lost
        self._sending = threading.Lock()
        self._closed = threading.Event()
        connection.settimeout(SILENCE_S)
        with suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self) -> None:
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def say(self, **message: Any) -> None:
        """Send a message; nothing where the other side is gone, which `lost` tells."""
        with suppress(OSError), self._sending:
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        """Without `lost` being called any more."""
        self._closed.set()
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_S):
            self.say(beat=True)

    def _listen(self) -> None:
        # KeyError and TypeError: a message without what it is to hold.
        with suppress(OSError, ValueError, KeyError, TypeError), \
                self._connection.makefile("rb") as lines:
            while line := lines.readline(_LONGEST_BYTES):
                message = json.loads(line)
                if not isinstance(message, dict):
                    break
                if "beat" not in message:
                    self._heard(self, message)
        if not self._closed.is_set():
            self.close()
            self._lost(self)
