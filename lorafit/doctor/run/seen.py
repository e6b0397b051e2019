"""What the parts of an examination learn and others need, and files that come and go."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorafit.doctor.finding import Finding, Section, Verdict, first_line

_AGAIN_AFTER_S = 0.3
_LOOKS = 10


@dataclass
class Seen:
    """recipe: as it ran, None where it cannot be read. result: of a finished run. steps: progress
    of intact checkpoints, by step. damaged: names of the others. is_running: a process trains in
    here. spoilt: whether the result is. needs: what has to be restored before --resume can work."""

    recipe: Any = None
    record: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    steps: dict[int, dict[str, Any]] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    is_running: bool = False
    last_logged_step: int = 0
    spoilt: bool = False
    needs: list[str] = field(default_factory=list)

    @property
    def newest(self) -> int | None:
        return max(self.steps, default=None)


def settled(section: Section, path: Path, examine: Callable[[], Sequence[Finding]], *,
            was_listed: bool = False) -> Sequence[Finding]:
    """The findings on a path. While a run goes on files are replaced and removed: what looks wrong
    is looked at again until nothing moves any more. was_listed: the path was found by listing a
    directory, and is not spoken of if it is gone by now."""
    found = _tried(section, path, examine)
    for _ in range(_LOOKS):
        if found is not None and all(each.verdict is not Verdict.PROBLEM for each in found):
            break
        before = _listing(path)
        time.sleep(_AGAIN_AFTER_S)
        if was_listed and not path.exists():
            return []
        found = _tried(section, path, examine)
        if _listing(path) == before:
            break
    return found or []


def _listing(path: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of a file, or of all in a directory."""
    listing = []
    for file in (path, *(path.iterdir() if path.is_dir() else ())):
        with suppress(OSError):
            there = file.stat()
            listing.append((file.name, there.st_size, there.st_mtime_ns))
    return sorted(listing)


def _tried(section: Section, path: Path, examine: Callable[[], Sequence[Finding]]
           ) -> Sequence[Finding] | None:
    """None where a file is gone. Any other error is what is wrong with the path: content can be
    anything."""
    try:
        return examine()
    except FileNotFoundError:
        return None
    except Exception as error:
        return [section.problem(path.name, f"cannot be read: {first_line(error)}",
                                "restore it from a copy")]


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a directory, as far as they are still there."""
    if path.is_file():
        return path.stat().st_size
    total = 0
    for file in path.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except OSError:
            continue
    return total


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. ValueError with what is wrong; OSError when it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("is no JSON object")
    return value
