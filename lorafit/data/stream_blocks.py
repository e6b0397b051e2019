"""Blocks of a stream that one process of a machine reads and its neighbours map.

The reader writes a block's stores into a directory, and last where its sources stand then. The
others wait for that file; an error of the reader is theirs too, so that all of them stop at the
same step.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorafit.errors import LorafitError, MachineError, Problem, UserError
from lorafit.run_dir import write_json

_LOOKED_FOR_EVERY_S = 0.01


@dataclass(frozen=True)
class SharedBlocks:
    """directory: the same for all processes of a machine. reads: whether this is the one that
    reads the sources, and removes what is no longer needed."""

    directory: Path
    reads: bool


@contextmanager
def telling(directory: Path, shared: bool) -> Iterator[None]:
    """Tell the neighbours of an error that ends the reading of a block."""
    try:
        yield
    except (LorafitError, OSError) as error:
        if shared:
            problems = [asdict(each) for each in error.problems] if isinstance(error, UserError) \
                else []
            write_json(_failure(directory), {"problems": problems, "said": str(error)})
        raise


def write_cursors(directory: Path, cursors: list[Any]) -> None:
    """Say that a block is there as a whole, and where the sources stand after it."""
    write_json(directory / "cursors.json", [asdict(cursor) for cursor in cursors])


def wait_for_cursors(directory: Path) -> list[dict[str, int]]:
    """What the reader of a block wrote, once it has. Raises the reader's own error."""
    written, failed = directory / "cursors.json", _failure(directory)
    while not written.exists():
        if failed.exists():
            values = json.loads(failed.read_text(encoding="utf-8"))
            if values["problems"]:
                raise UserError(problems=[Problem(**each) for each in values["problems"]])
            raise MachineError(values["said"])
        time.sleep(_LOOKED_FOR_EVERY_S)
    cursors: list[dict[str, int]] = json.loads(written.read_text(encoding="utf-8"))
    return cursors


def _failure(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.failed")
