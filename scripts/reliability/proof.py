"""Rows, asked one after the other."""

import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from reliability.row import Row, Setting, Tally

PEERS_SHARE = 0.25  # of a row's count; the peer is beside, not what is proven


@dataclass(frozen=True)
class Proof:
    """A row and what came out. seconds: of lorafit's part; peer: None where it was not asked."""

    row: Row
    wanted: int
    tally: Tally
    seconds: float
    peer: Tally | None = None
    peer_seconds: float = 0.0

    @property
    def is_reached(self) -> bool:
        there_are = self.tally.there_are
        wanted = self.wanted if there_are is None else min(self.wanted, there_are)
        return 0 < wanted <= self.tally.asked == self.tally.passed


def prove(rows: Iterable[Row], *, work: Path | None, seed: int, jobs: int, scale: float,
          peer: bool) -> Iterator[Proof]:
    with ExitStack() as stack:
        folder = work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for row in rows:
            wanted = max(1, round(row.times * scale))
            tally, seconds = _asked(row.ask, _setting(folder / row.name, seed, jobs), wanted)
            beside, beside_s = None, 0.0
            if peer and row.of_peer is not None:
                beside, beside_s = _asked(
                    row.of_peer, _setting(folder / f"{row.name}-peer", seed, jobs),
                    max(1, round(wanted * PEERS_SHARE)))
            yield Proof(row, wanted, tally, seconds, beside, beside_s)


def _setting(work: Path, seed: int, jobs: int) -> Setting:
    work.mkdir(parents=True, exist_ok=True)
    if any(work.iterdir()):
        raise SystemExit(f"{work}: is not empty; name another directory with --work")
    return Setting(work.resolve(), seed, jobs)


def _asked(ask: Callable[[Setting, int], Tally], setting: Setting,
           times: int) -> tuple[Tally, float]:
    started = time.perf_counter()
    try:
        tally = ask(setting, times)
    except Exception:  # a row that cannot be asked is a row that is not reached
        tally = Tally()
        tally.count(traceback.format_exc())
    return tally, time.perf_counter() - started
