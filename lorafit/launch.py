"""Starting several ranks on this machine, by torch's elastic launcher (what accelerate uses)."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from lorafit.errors import MachineError


def started_by_a_launcher() -> bool:
    """Whether this process is already a rank of accelerate launch, torchrun or lorafit itself."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_main_rank() -> bool:
    """Whether this process speaks for the job."""
    return os.environ.get("RANK", "0") == "0"


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `python -m lorafit ARGUMENTS` in `processes` ranks; return the exit code.

    The first rank that failed decides the code; the launcher ends the others.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # A rank says itself what went wrong; the launcher's own account of it only buries that.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // processes))
    os.environ[_LAUNCHER] = str(os.getpid())
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0,
        signals_to_handle="SIGHUP,SIGQUIT",
    )
    try:
        with _handing_on():
            elastic_launch(config, sys.executable)("-m", "lorafit", *arguments)
    except ChildFailedError as error:
        return _code_of(list(error.failures.values()))
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def _code_of(failures: Sequence[Any]) -> int:
    """The exit code of a job by how its ranks failed, the first of them first. What a rank could
    not say itself, because it was killed, is said here."""
    failures = sorted(failures, key=lambda failure: failure.timestamp)
    killed = [each for each in failures if each.exitcode < 0]
    unasked = [each for each in killed if -each.exitcode not in (signal.SIGTERM, signal.SIGINT)]
    if unasked:
        print(f"error: rank {unasked[0].local_rank} was killed by "
              f"{signal.Signals(-unasked[0].exitcode).name}, so the others ended too; "
              "out of memory is a common cause\n    the last checkpoint is intact: go on with "
              "--resume", file=sys.stderr)
        return MachineError.exit_code
    if killed == failures:  # asked to stop before they had anything to keep
        print("error: stopped before the first step", file=sys.stderr)
        return 128 - int(failures[0].exitcode)
    return next(int(each.exitcode) for each in failures if each.exitcode > 0)


_LAUNCHER = "LORAFIT_LAUNCHER_PID"


@contextmanager
def _handing_on() -> Iterator[None]:
    """Hand SIGTERM, SIGINT and SIGUSR1 on to the ranks, which know what to do.

    The launcher itself would kill ranks that need longer for a step than it waits; here they take
    the time they need, and their exit codes end the launcher.
    """
    def hand_on(number: int, frame: FrameType | None) -> None:
        import psutil

        ranks = psutil.Process().children()
        for rank in ranks:
            with suppress(psutil.Error):
                rank.send_signal(number)
        if not ranks and number != getattr(signal, "SIGUSR1", None):
            sys.exit(128 + number)

    numbers = [signal.SIGTERM, signal.SIGINT]
    if hasattr(signal, "SIGUSR1"):
        numbers.append(signal.SIGUSR1)
    before = {number: signal.signal(number, hand_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_launcher() -> None:
    """Have this rank asked to stop when lorafit's launcher dies, however that happens (Linux)."""
    if os.environ.get(_LAUNCHER) != str(os.getppid()) or sys.platform != "linux":
        return
    import ctypes

    with suppress(OSError, AttributeError):
        set_on_parent_death = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
        ctypes.CDLL(None, use_errno=True).prctl(set_on_parent_death, signal.SIGTERM, 0, 0, 0)
