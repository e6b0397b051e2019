"""What a rank has to say at its end, left for lorafit's launcher, which says one thing for all.

Ranks fail together: one by its own mistake, the others because it is missing. None of them knows
which it is, and one that is late is ended before it has spoken. The launcher reads what all have
left in a folder whose name it handed down.
"""

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

FOLDER = "LORAFIT_LAST_WORDS"
LAUNCHER = "LORAFIT_LAUNCHER_PID"


@dataclass(frozen=True)
class Words:
    """message: what a person reads. code: the exit code. is_echo: it only tells that another rank
    is missing. at: seconds since 1970."""

    rank: int
    message: str
    code: int
    is_echo: bool
    at: float


def has_own_launcher() -> bool:
    """Whether lorafit's launcher watches over this rank, and says what becomes of it."""
    return os.environ.get(LAUNCHER) == str(os.getppid())


def leave(message: str, code: int, *, is_echo: bool = False) -> bool:
    """Leave a message instead of printing it; False where nobody would read it, or not in full."""
    folder, rank = os.environ.get(FOLDER), os.environ.get("RANK", "")
    if not folder or not rank.isdigit() or not has_own_launcher():
        return False
    words = {"rank": int(rank), "message": message, "code": code, "is_echo": is_echo,
             "at": time.time()}
    path = Path(folder) / f"rank-{rank}.json"
    try:
        part = path.with_suffix(".part")
        part.write_text(json.dumps(words), encoding="utf-8")
        part.replace(path)
    except OSError:
        return False
    return True


def read(folder: Path) -> list[Words]:
    """What ranks have left, the first one first."""
    found = []
    for path in folder.glob("rank-*.json"):
        with suppress(OSError, ValueError, TypeError):
            found.append(Words(**json.loads(path.read_text(encoding="utf-8"))))
    return sorted(found, key=lambda words: words.at)
