"""One round: the ranks of this machine, from start to end, by torch's elastic launcher."""

import logging
import os
import platform
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from lorafit.errors import MachineError
from lorafit.last_words import FOLDER, LAUNCHER, Words, read
from lorafit.launch.meeting import Meeting, Round
from lorafit.launch.outcome import Failure, Outcome
from lorafit.launch.rank import RESTARTS
from lorafit.launch.request import Request

_JOIN_S = 60  # all machines are there when a round begins
# Ranks that another machine's failure leaves waiting, until they are asked, and until they are made
# to end: with the 15 s of silence after which a machine counts as gone, less than 30 s in all.
_GRACE_S, _TERM_S = 3.0, 10.0


class Asked:
    """The signal that this launcher was sent and has handed on to its ranks; 0 for none."""

    number = 0


@contextmanager
def handing_on() -> Iterator[Asked]:
    """Hand SIGTERM, SIGINT and SIGUSR1 on to the ranks, which know what to do.

    The launcher itself would kill ranks that need longer for a step than it waits; here they take
    the time they need, and their exit codes end the launcher. Without ranks it ends at once.
    """
    asked = Asked()

    def hand_on(number: int, frame: FrameType | None) -> None:
        is_end = number != getattr(signal, "SIGUSR1", None)
        if is_end:
            asked.number = number
        if not _send(number) and is_end:
            sys.exit(128 + number)

    numbers = [signal.SIGTERM, signal.SIGINT]
    if hasattr(signal, "SIGUSR1"):
        numbers.append(signal.SIGUSR1)
    before = {number: signal.signal(number, hand_on) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_ranks(arguments: Sequence[str], request: Request, begun: Round, meeting: Meeting,
              asked: Asked) -> Outcome:
    """Run `python -m lorafit ARGUMENTS` in the ranks of this machine, and say how they ended."""
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import SignalException

    if "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, (os.cpu_count() or 1) // request.processes)
        os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ[RESTARTS] = str(begun.restarts)
    # A rank says itself what went wrong; the launcher's own account of it only buries that.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    failures: list[Failure] = []
    with TemporaryDirectory(prefix="lorafit-") as folder, _ended_with_others(meeting):
        os.environ[FOLDER] = folder
        try:
            failures = _in_their_words(_run(arguments, request, begun), read(Path(folder)))
        except SignalException as error:  # SIGHUP or SIGQUIT, from which the agent has ended them
            asked.number = int(error.sigval)
        except DistError:  # the host's store has gone before the ranks began
            failures = [Failure(-1, MachineError.exit_code)]
    return Outcome(request.node, platform.node(), failures, asked.number,
                   meeting.reason if meeting.trouble.is_set() else "")


def _run(arguments: Sequence[str], request: Request, begun: Round) -> list[Failure]:
    from torch.distributed.elastic.agent.server.api import WorkerSpec
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGHUP,SIGQUIT"  # those that are not handed on
    host = request.place.host if request.place is not None else "127.0.0.1"
    handler = StaticTCPRendezvous(host, begun.port, request.node, request.nodes, begun.id, _JOIN_S)
    spec = WorkerSpec(role="lorafit", local_world_size=request.processes, rdzv_handler=handler,
                      entrypoint=sys.executable, args=("-m", "lorafit", *arguments), max_restarts=0,
                      master_addr=host, master_port=begun.port)
    # The meeting waits for the other machines, and hears when one has gone; the agent would not.
    agent = LocalElasticAgent(spec, DefaultLogsSpecs(), exit_barrier_timeout=1)
    result = agent.run()
    return [Failure(rank, failure.exitcode, int(failure.timestamp))
            for rank, failure in result.failures.items()]


def _in_their_words(failures: Sequence[Failure], left: Sequence[Words]) -> list[Failure]:
    """Failures with what the ranks have left to say. One that was ended after it had spoken failed
    by what it said."""
    spoken = {words.rank: Failure(words.rank, words.code, int(words.at), words.message,
                                  words.is_echo) for words in left}
    return [*spoken.values(), *(each for each in failures if each.rank not in spoken)]


@contextmanager
def _ended_with_others(meeting: Meeting) -> Iterator[None]:
    """End the ranks here once another machine's have ended or it has gone: they would wait for it
    until a time-out, or for ever."""
    is_over = threading.Event()

    def watch() -> None:
        while not meeting.trouble.wait(0.5):
            if is_over.is_set():
                return
        for number, wait_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, _TERM_S)):
            if is_over.wait(wait_s):
                return
            _send(number)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()


def _send(number: int) -> bool:
    """Whether there were ranks to send a signal to."""
    import psutil

    ranks = psutil.Process().children()
    for rank in ranks:
        with suppress(psutil.Error):
            rank.send_signal(number)
    return bool(ranks)
