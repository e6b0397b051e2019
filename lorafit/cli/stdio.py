"""Standard output and error that no encoding and no reader can break."""

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Lasting(io.FileIO):
    """A stream whose reader may leave, as in `lorafit … | head`: what follows goes nowhere, and the
    work goes on."""

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if isinstance(error, BrokenPipeError):
                return memoryview(data).nbytes
            raise OSError(error.errno, error.strerror, "standard output") from None


def settle() -> None:
    """Make this process's output last; characters that its encoding lacks are written as escapes.

    A run of days must not end because of an `é` or a pager that was closed.
    """
    sys.stdout, sys.stderr = _settled(sys.stdout), _settled(sys.stderr)


def _settled(stream: TextIO | None) -> TextIO:
    if stream is None:  # closed by whoever started us; its number may be another file's by now
        return open(os.devnull, "w", encoding="utf-8")
    raw = _Lasting(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=stream.encoding,
                            errors="backslashreplace", line_buffering=True)
