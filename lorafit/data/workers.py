"""Blocks of rows through several processes, in order, with a bounded number in flight."""

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any, TypeVar

from lorafit.errors import MachineError

Given = TypeVar("Given")
Made = TypeVar("Made")

BLOCK_TIMEOUT_S = 600.0  # the limit for one render is far lower; this one is for a stuck process


def count(requested: int | str, *, on_every_rank: bool = False) -> int:
    """How many processes: as requested, or one for each core that this process may use.

    on_every_rank: the ranks of this machine (LOCAL_WORLD_SIZE, as torch's launchers set it) do the
    same at the same time, so they share the cores.
    """
    if isinstance(requested, int):
        return requested
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") \
        else os.cpu_count() or 1
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or 1) if on_every_rank else 1
    return max(1, cores // ranks)


def in_order(work: Callable[[Given], Made], items: Iterable[Given], processes: int,
             method: str | None = None) -> Generator[Made, None, None]:
    """`work(item)` for each item, in the order of the items.

    A single item, or a single process, is worked on here. Items and results must be picklable, and
    `work` too where processes are not forked: `method` is how they start, as multiprocessing names
    it. Raises what `work` raises, and MachineError when a process dies or does not come back.
    """
    waiting = iter(items)
    first = list(islice(waiting, 2))
    if processes == 1 or len(first) < 2:
        yield from map(work, chain(first, waiting))
        return
    # A fork costs milliseconds and inherits `work`; elsewhere each process starts anew.
    method = method or ("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context(method),
                               initializer=_begin, initargs=(work,))
    try:
        yield from _through(pool, chain(first, waiting), 2 * processes)
    except BrokenProcessPool:
        raise MachineError("a process that prepares the data was killed, perhaps for lack of "
                           "memory\n    lower data.workers") from None
    except FutureTimeout:
        for process in multiprocessing.active_children():
            process.kill()
        raise MachineError(f"preparing a block of rows took longer than {BLOCK_TIMEOUT_S:.0f} s"
                           ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _through(pool: ProcessPoolExecutor, items: Iterator[Given], in_flight: int) -> Iterator[Made]:
    pending: deque[Future[Made]] = deque()
    for item in items:
        pending.append(pool.submit(_work_on, item))
        if len(pending) >= in_flight:
            yield pending.popleft().result(BLOCK_TIMEOUT_S)
    while pending:
        yield pending.popleft().result(BLOCK_TIMEOUT_S)


_WORK: Callable[[Any], Any] | None = None  # of this process, set when it begins


def _begin(work: Callable[[Any], Any]) -> None:
    global _WORK
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes share the cores already
    gc.freeze()  # what was inherited is not looked through again, and its pages stay shared
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    _WORK = work


def _end_with(parent: int) -> None:
    """Leave when the parent was killed: nobody would ever send work or collect it."""
    while os.getppid() == parent:
        time.sleep(2)
    os._exit(1)


def _work_on(item: Any) -> Any:
    assert _WORK is not None
    return _WORK(item)
