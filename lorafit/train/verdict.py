"""Why a job of several ranks ends: what one rank found, or what the signs of all of them say."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lorafit.errors import MachineError
from lorafit.train.display import duration
from lorafit.train.standing import Kind

# A library may hold Python's lock for long while it reads or writes weights; no thread speaks then.
LONG_SILENCES = (Kind.LOADING, Kind.SAVING)
_LONGER = 4
_QUIET_S = 4.0  # a rank not heard of for so long is where it was last seen, or further on
_MOST_LINES = 12
_MOST_NUMBERS = 16
_MOST_CHARACTERS = 8000  # of a message that goes through the store

RESUME = "the last checkpoint is intact: go on with --resume"
_SLOW = ("if that was only slow, give --rank-timeout more; what stands first is what the others "
         "wait for")


@dataclass(frozen=True)
class Verdict:
    """What ends a job. code: of all its ranks. rank: whom it is about, -1 for none.

    own: `rank` found an error itself, so that it can tell it too. trace: of a bug. is_hung: no rank
    gets on.
    """

    code: int
    message: str
    rank: int
    host: str = ""
    own: bool = False
    trace: str = ""
    is_hung: bool = False

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self)
        for key in ("message", "trace"):
            text = values[key]
            values[key] = text if len(text) <= _MOST_CHARACTERS else "… " + text[-_MOST_CHARACTERS:]
        return values

    @property
    def in_own_words(self) -> str:
        """As the rank says it that it is about."""
        return self.trace.rstrip() or f"error: {self.message}"

    def __str__(self) -> str:
        """As another rank says it."""
        if not self.own:
            return f"error: {self.message}"
        trace = f"\n{self.trace.rstrip()}" if self.trace else ""
        return f"error: rank {self.rank} on {self.host}: {self.message}{trace}"


@dataclass
class Seen:
    """What is known of a rank. beat and moves: its counters. heard_s, moved_s: when they last
    changed, by the clock of the rank that looks. lost_one: its connection to another rank broke.
    """

    rank: int
    host: str = ""
    phase: str = ""
    kind: str = ""
    beat: int = -1
    moves: int = -1
    is_done: bool = False
    lost_one: bool = False
    heard_s: float = 0.0
    moved_s: float = 0.0

    def hear(self, post: dict[str, Any], now_s: float) -> None:
        """Take in what a rank has posted."""
        if post["beat"] != self.beat:
            self.heard_s = now_s
        if post["moves"] != self.moves:
            self.moved_s = now_s
        self.beat, self.moves, self.host = post["beat"], post["moves"], post["host"]
        self.phase, self.kind = post["phase"], post["kind"]
        self.is_done, self.lost_one = post["is_done"], post["lost_one"]


def silent(ranks: Sequence[Seen], now_s: float, limit_s: float) -> Verdict | None:
    """A verdict on the rank that gave no sign of life for so long, and longest; None where all did.

    Where a rank has lost another, one of them is gone, whatever it was at.
    """
    is_one_gone = any(seen.lost_one for seen in ranks)
    for seen in sorted(ranks, key=lambda seen: seen.heard_s):
        is_borne = seen.kind in LONG_SILENCES and not is_one_gone
        patience_s = limit_s * (_LONGER if is_borne else 1)
        if seen.beat < 0 or seen.is_done or now_s - seen.heard_s <= patience_s:
            continue
        return Verdict(MachineError.exit_code, (
            f"rank {seen.rank} on {seen.host} gave no sign of life for {duration(patience_s)}; it "
            f"was last seen at: {seen.phase}\n    it was killed (out of memory is a common cause), "
            f"or its machine or the network to it is down; {RESUME}"), seen.rank, seen.host)
    return None


def hung(ranks: Sequence[Seen], now_s: float, limit_s: float) -> Verdict | None:
    """A verdict on ranks none of which got on for so long; None where one did."""
    left = [seen for seen in ranks if not seen.is_done]
    if not left or any(now_s - seen.moved_s <= limit_s for seen in left):
        return None
    lines = _lines(left, now_s)
    return Verdict(MachineError.exit_code, "\n    ".join(
        [f"no rank got on for {duration(limit_s)} (--rank-timeout):", *lines, f"{_SLOW}; {RESUME}"]
    ), -1, is_hung=True)


def _lines(ranks: Sequence[Seen], now_s: float) -> list[str]:
    """Where ranks stand, those at the same place together, those that others wait for first."""
    groups: dict[tuple[bool, bool, str], list[Seen]] = {}
    for seen in ranks:
        is_heard = now_s - seen.heard_s <= _QUIET_S
        groups.setdefault((is_heard, is_heard and seen.kind == Kind.COMMUNICATION, seen.phase),
                          []).append(seen)
    ordered = sorted(groups.items(), key=lambda item: (*item[0][:2], len(item[1])))
    lines = [f"{_names(group)}: {_place(group, now_s, is_heard)}"
             for (is_heard, _, _), group in ordered]
    if len(lines) > _MOST_LINES:
        lines = [*lines[:_MOST_LINES], f"… and {len(lines) - _MOST_LINES} more places"]
    return lines


def _place(group: Sequence[Seen], now_s: float, is_heard: bool) -> str:
    phase = group[0].phase
    if not phase:
        return "not heard of yet"
    if not is_heard:
        silent_s = max(now_s - seen.heard_s for seen in group)
        return f"no sign of life for {duration(silent_s)}, last seen at: {phase}"
    return f"{phase}, for {duration(max(now_s - seen.moved_s for seen in group))}"


def _names(group: Sequence[Seen]) -> str:
    """`rank 1 on b`, or `ranks 0, 2, 3`."""
    if len(group) == 1:
        return f"rank {group[0].rank}" + (f" on {group[0].host}" if group[0].host else "")
    numbers = [str(seen.rank) for seen in group[:_MOST_NUMBERS]]
    more = len(group) - len(numbers)
    return f"ranks {', '.join(numbers)}" + (f" and {more} more" if more else "")
