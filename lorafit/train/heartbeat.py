"""Ranks look after each other beside their collectives, which nothing can interrupt.

A thread of each rank posts where it stands every second, and reads the verdict: why the job ends,
if it does. The first verdict stands. Ranks 0 and 1 read what all posted, and judge who has fallen
silent and whether anybody gets on. A rank that finds a verdict ends within seconds, from a thread
if its main one is stuck in a collective, and one rank says why.
"""

import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from lorafit.data.examples import BadRow
from lorafit.errors import LorafitError, MachineError, RankEnded, lost_a_rank, machine_trouble
from lorafit.last_words import leave
from lorafit.secrets import redacted
from lorafit.train.board import Board
from lorafit.train.display import duration
from lorafit.train.signals import StopRequest
from lorafit.train.standing import WRITING, Standing
from lorafit.train.verdict import LONG_SILENCES, RESUME, Seen, Verdict, hung, silent

RANK_TIMEOUT_S = 600.0
BEAT_S = 1.0
SILENCE_S = 15.0
JUDGES = 2
_GRACE_S = 2.0  # for the main thread to find out by itself
_WRITING_S = 120.0
_COME_TOGETHER_S = 60.0  # at least, for ranks that are still importing
_JOIN_S = 5.0  # for the talking thread, where the main one is at its end


class Clock:
    """Seconds that this process was awake. A job that is suspended as a whole, and goes on later,
    finds nobody dead."""

    LONGEST_S = 2.0  # that count between two looks

    def __init__(self) -> None:
        self._awake_s = 0.0
        self._looked_s = time.monotonic()

    def now_s(self) -> float:
        looked_s = time.monotonic()
        self._awake_s += min(looked_s - self._looked_s, self.LONGEST_S)
        self._looked_s = looked_s
        return self._awake_s


class Heartbeat:
    """This rank among several: what it posts, what it finds, and how it ends then.

    stop: what it is asked for from outside.
    """

    def __init__(self, standing: Standing, stop: StopRequest, rank_timeout_s: float) -> None:
        self.rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._host = platform.node()
        self._standing, self._stop = standing, stop
        self._rank_timeout_s = rank_timeout_s
        self._seen = [Seen(rank) for rank in (range(ranks) if self.rank < JUDGES else (0,))]
        self._board = Board(self.rank, ranks, [seen.rank for seen in self._seen])
        self._work = _Work()
        self._beat = self._signs = 0
        self._mine: Verdict | None = None  # what this rank's own error is to others
        self._verdict: Verdict | None = None
        self._store_is_gone = self._lost_one = False
        self._may_talk = threading.Event()
        self._found = threading.Event()
        self._wake = threading.Event()
        self._is_done = False
        self._end = threading.Lock()  # taken by the thread that ends this process
        self._main_ends = threading.Event()
        self._talker = threading.Thread(target=self._talk, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._talker.start()
        threading.Thread(target=self._guard, name="heartbeat guard", daemon=True).start()

    def talk(self) -> None:
        """The environment is left alone from here on, so the store may be talked to.

        accelerate empties the environment and fills it again while it is set up. A connection that
        is opened meanwhile reads it too, in C: what it finds is nothing, or memory that is gone.
        """
        self._may_talk.set()

    def done(self) -> None:
        """This rank has come to its good end, and is not missed any more."""
        self._is_done = True
        self._wake.set()
        self._talker.join(_JOIN_S)

    # The thread that talks to the store.

    def _talk(self) -> None:
        self._may_talk.wait()
        clock = Clock()
        try:
            self._board.join()
            while self._verdict is None:
                is_done = self._is_done
                self._post(is_done)
                if is_done:
                    self._board.leave()
                    return
                self._look(clock.now_s())
                self._wake.wait(0 if self._mine else BEAT_S)
        except RuntimeError:  # torch's errors of a store
            if self._board.is_joined and not self._is_done:
                self._find_store_gone("has gone")

    def _post(self, is_done: bool) -> None:
        phase = self._standing.phase
        if phase.kind in LONG_SILENCES:
            self._signs += self._work.goes_on()
        self._beat += 1
        self._board.post(host=self._host, beat=self._beat, moves=self._standing.moves + self._signs,
                         kind=phase.kind, phase=str(phase), is_done=is_done,
                         lost_one=self._lost_one)

    def _look(self, now_s: float) -> None:
        verdict, posts = self._board.read()
        for seen, post in zip(self._seen, posts, strict=True):
            if post:
                seen.hear(post, now_s)
        if verdict is None and self._mine is not None:
            verdict = self._board.propose(self._mine)
        if verdict is None and self.rank < JUDGES:
            verdict = (hung(self._seen, now_s, self._rank_timeout_s)
                       or silent(self._seen, now_s, SILENCE_S))
            verdict = None if verdict is None else self._board.propose(verdict)
        if verdict is not None:
            self._find(verdict)

    def _find(self, verdict: Verdict) -> None:
        self._verdict = self._verdict or verdict
        self._found.set()

    def _find_store_gone(self, how: str) -> None:
        self._store_is_gone = True
        held = "torch's launcher on that machine holds it"
        where = ""
        if not self._board.is_launchers:
            first = self._seen[0]
            held = "rank 0 holds it"
            where = f"\n    rank 0 on {first.host} was last seen at: {first.phase}"
        self._find(Verdict(MachineError.exit_code, (
            f"the store at {self._board.place}, where ranks meet, {how} ({held}){where}\n    what "
            "held it was killed (out of memory is a common cause), or its machine or the network "
            f"to it is down; {RESUME}"), 0))

    # The thread that sees to it that this process ends.

    def _guard(self) -> None:
        clock, heard, heard_s = Clock(), 0, 0.0
        while not self._found.wait(BEAT_S / 2):
            if self._is_done:
                return
            now_s = clock.now_s()
            patience_s = max(self._rank_timeout_s, _COME_TOGETHER_S)
            if not self._may_talk.is_set() and now_s > patience_s:
                self._find(Verdict(MachineError.exit_code, (
                    f"the ranks did not come together within {duration(patience_s)} "
                    f"(--rank-timeout): rank {self.rank} on {self._host} waits for the others at "
                    f"{self._board.place}\n    start all of them, and check that they reach each "
                    "other there"), -1, is_hung=True))
            if self._beat != heard:
                heard, heard_s = self._beat, now_s
            elif heard and now_s - heard_s > SILENCE_S:
                self._find_store_gone("does not answer")
        verdict = self._verdict
        assert verdict is not None
        if self._main_ends.wait(_GRACE_S) or not self._end.acquire(blocking=False):
            return
        if not verdict.is_hung:
            self._let_write()
        if sys.stdout.isatty():
            sys.stdout.write("\x1b[?25h\n")  # the cursor, which a live bar hides
        self._tell(verdict, str(verdict), is_echo=verdict.own)
        sys.stdout.flush()
        os._exit(verdict.code)

    def _let_write(self) -> None:
        """Let the main thread write what it is at. What is cut off all the same does no harm: a
        checkpoint gets its name once all of it is on the disk, and the lock of a run goes with its
        process."""
        until_s = time.monotonic() + _WRITING_S
        while self._standing.phase.what == WRITING and time.monotonic() < until_s:
            time.sleep(0.05)

    # What is said in the end, by whichever thread ends this process.

    def ended_by(self, error: Exception) -> Exception:
        """What the main thread is to raise in place of an error of its own: that of the rank that
        failed first has been said by then."""
        if not self._end.acquire(blocking=False):
            threading.Event().wait()  # the other thread is ending this process
        self._main_ends.set()
        self.talk()
        until_s = time.monotonic() + _JOIN_S
        while not self._board.is_joined:  # the others are there, or there is nobody to tell
            if time.monotonic() > until_s or not self._talker.is_alive():
                return error
            time.sleep(0.1)
        patience_s = SILENCE_S + 5.0
        if lost_a_rank(error):  # what became of it is found by its silence, or by a launcher
            self._lost_one = True
            until_s = time.monotonic() + patience_s
            while not self._found.wait(0.1) and time.monotonic() < until_s:
                if self._stop.wish.ends:
                    break
        else:
            self._mine = _verdict_on(error, self.rank, self._host)
            self._wake.set()
            self._found.wait(patience_s)
        mine = self._mine or _verdict_on(error, self.rank, self._host)
        verdict = self._verdict or mine
        # All ranks find some mistakes alike; then it is no other rank's.
        if (verdict.code, verdict.message) == (mine.code, mine.message):
            self._tell(verdict, mine.in_own_words, is_echo=lost_a_rank(error))
        else:
            self._tell(verdict, str(verdict), is_echo=verdict.own)
        return RankEnded(verdict.code)

    def _tell(self, verdict: Verdict, text: str, *, is_echo: bool) -> None:
        """Say why this job ends, if no other rank does, and no launcher. is_echo: it is another
        rank's error."""
        if not verdict.trace and leave(redacted(text.removeprefix("error: ")), verdict.code,
                                       is_echo=is_echo):
            return
        if not self._board.is_joined:
            _print(text)
            return
        if self._store_is_gone:
            # One on each machine, as far as that can be told; the first one's rank 0 is gone.
            local = int(os.environ.get("LOCAL_RANK", self.rank))
            if local == (1 if local == self.rank else 0):
                _print(text)
            return
        # Rank 0 speaks, unless it is the one that fell silent.
        speaker = 1 if verdict.rank == 0 and not verdict.own else 0
        with suppress(RuntimeError):
            if (self.rank == speaker or not self._board.is_said_soon()) and self._board.may_say():
                _print(text)
                self._board.said()
            self._board.leave()


def _print(text: str) -> None:
    print(redacted(text), file=sys.stderr, flush=True)


def _verdict_on(error: Exception, rank: int, host: str) -> Verdict:
    if isinstance(error, LorafitError):
        return Verdict(error.exit_code, str(error), rank, host, own=True)
    if isinstance(error, BadRow):
        return Verdict(2, f"{error.what}\n    {error.remedy}", rank, host, own=True)
    if (message := machine_trouble(error)) is not None:
        return Verdict(MachineError.exit_code, message, rank, host, own=True)
    return Verdict(1, f"{type(error).__name__}: {error}", rank, host, own=True,
                   trace="".join(traceback.format_exception(error)))


class _Work:
    """Signs that a process computes, reads or writes: libraries that load and save weights tell
    nothing of how far they are."""

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        self._before: list[float] = [0.0]

    def goes_on(self) -> bool:
        """Whether it did since this was asked last."""
        times = self._process.cpu_times()
        counted: list[float] = [times.user + times.system]
        with suppress(Exception):  # not on every system, and not for everybody
            io = self._process.io_counters()
            counted += [io.read_bytes, io.write_bytes]
        before, self._before = self._before, counted
        # This thread itself takes a few milliseconds a second.
        return counted[0] - before[0] > 0.05 or counted[1:] != before[1:]


@contextmanager
def watched(standing: Standing, stop: StopRequest,
            rank_timeout_s: float) -> Iterator[Callable[[], None]]:
    """Look after the other ranks within the block, if there are any.

    Yields what is to be called once the environment is no longer changed (`Heartbeat.talk`). An
    error in it becomes everybody's: RankEnded with its exit code, once one rank has said it.
    """
    if (int(os.environ.get("WORLD_SIZE", "1")) < 2
            or any(name not in os.environ for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"))):
        yield lambda: None
        return
    heartbeat = Heartbeat(standing, stop, rank_timeout_s)
    heartbeat.start()
    try:
        yield heartbeat.talk
    except Exception as error:
        ended = heartbeat.ended_by(error)
        if ended is error:
            raise
        raise ended from None
    heartbeat.done()
