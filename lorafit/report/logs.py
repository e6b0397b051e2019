"""metrics.jsonl as it is while it grows: its last lines, its evaluations, and what is new in it."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeGuard

Line = dict[str, Any]
RATE_STEPS = 20
"""Steps that a rate is taken over, as in what training prints."""
_TAIL_LINES = 3 * RATE_STEPS


class Damaged(Exception):
    """A line that is no JSON object; says which."""


def parsed(line: bytes, where: str) -> Line:
    """A line of a log. Damaged unless it is a JSON object that names its step."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not _is_count(value.get("step")):
        raise Damaged(f"{where} is no JSON object with a step")
    return value


class Log:
    """metrics.jsonl, read as far as it is written. A last line without an end is left out."""

    def __init__(self, path: Path) -> None:
        """Damaged when it cannot be read. One that is not there holds nothing."""
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            text = b""
        except OSError as error:
            raise Damaged(f"{path.name} cannot be read: {error.strerror or error}") from None
        self._name = path.name
        self._lines = text.split(b"\n")[:-1]

    def tail(self) -> list[Line]:
        """The last lines, enough of them for a rate."""
        return self._read(range(max(0, len(self._lines) - _TAIL_LINES), len(self._lines)))

    def evaluations(self) -> list[Line]:
        """The lines of evaluations, wherever they stand: the others are not parsed."""
        return self._read(i for i, line in enumerate(self._lines) if b'"held_out_loss"' in line)

    def all(self) -> list[Line]:
        return self._read(range(len(self._lines)))

    def _read(self, numbers: Iterable[int]) -> list[Line]:
        return [parsed(self._lines[i], f"line {i + 1} of {self._name}") for i in numbers
                if self._lines[i]]


class Growing:
    """What was added to a log since the last look. A log that was cut back, as a resumed run does,
    is read again from its start: `restarted` says so."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at_bytes = 0
        self._inode = 0
        self.restarted = False

    def new(self) -> list[Line]:
        self.restarted = False
        try:
            there = self._path.stat()
            if there.st_ino != self._inode or there.st_size < self._at_bytes:
                self.restarted, self._at_bytes = self._inode != 0, 0
                self._inode = there.st_ino
            with self._path.open("rb") as file:
                file.seek(self._at_bytes)
                text = file.read()
        except OSError:  # not written yet, or just being replaced
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._at_bytes += len(whole)
        return [parsed(line, f"a line of {self._path.name}")
                for line in whole.split(b"\n") if line]


def steps_of(lines: Iterable[Line]) -> list[Line]:
    """The lines of steps that were taken."""
    return [line for line in lines if is_number(line.get("loss"))]


def tokens_per_s(lines: Sequence[Line]) -> float | None:
    """Supervised tokens per second over the last steps; None where no step says it."""
    last = [line for line in lines
            if is_number(line.get("supervised_tokens")) and is_number(line.get("seconds"))]
    last = last[-RATE_STEPS:]
    seconds = sum(line["seconds"] for line in last)
    return sum(line["supervised_tokens"] for line in last) / seconds if seconds > 0 else None


def best_evaluation(lines: Iterable[Line]) -> tuple[int, float] | None:
    """Step and loss of the lowest held-out loss that is finite, the one before training left out:
    it chooses no weights."""
    found = [(line["held_out_loss"], line["step"]) for line in lines
             if is_number(line.get("held_out_loss")) and math.isfinite(line["held_out_loss"])
             and line["step"] > 0]
    if not found:
        return None
    loss, step = min(found)
    return step, loss


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
