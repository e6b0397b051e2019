"""What a process knows of itself as one of several ranks, whoever started it."""

import os
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from lorafit.errors import UserError
from lorafit.last_words import LAUNCHER, has_own_launcher
from lorafit.launch import slurm
from lorafit.launch.network import interface_between_machines

RESTARTS = "LORAFIT_RESTARTS"


@dataclass(frozen=True)
class Rank:
    """This process among the ranks of a job. by: who started it. is_own: lorafit's launcher did."""

    number: int
    world: int
    by: str
    is_own: bool = False

    def __str__(self) -> str:
        return f"rank {self.number} of {self.world}, started by {self.by}"


def recognise() -> Rank | None:
    """Which rank this process is; None where nobody has started it as one.

    For a task of srun the variables that torch's launchers set are set here. UserError for values
    of them that make no sense.
    """
    environment = os.environ
    by = _launcher_of(environment)
    if not is_rank(environment):
        if not slurm.is_task(environment):
            return None
        by = "Slurm's srun"
        environment.update(slurm.torch_environment(environment))
    number, world = _number("RANK"), _number("WORLD_SIZE")
    if not number < world:
        raise UserError(f"is no rank of {world}", f"RANK: {number}",
                        "unset RANK and WORLD_SIZE, or let the launcher set them")
    environment.setdefault("LOCAL_RANK", str(number))
    environment.setdefault("LOCAL_WORLD_SIZE", str(world))
    return Rank(number, world, by, is_own=LAUNCHER in environment)


def is_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is already a rank of accelerate launch, torchrun or lorafit itself."""
    return "RANK" in environment and "WORLD_SIZE" in environment


def is_main_rank() -> bool:
    """Whether this process speaks for the job."""
    return os.environ.get("RANK", "0") == "0"


def restarts() -> int:
    """How often the ranks of this job were started again before."""
    return max(_count(RESTARTS), _count("TORCHELASTIC_RESTART_COUNT"))


def settle() -> None:
    """What a rank sees to before it begins: that it ends with lorafit's launcher, and that ranks of
    several machines find each other."""
    _end_with_launcher()
    quiet_sockets()
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        return
    if "GLOO_SOCKET_IFNAME" not in os.environ and "MASTER_ADDR" in os.environ:
        with suppress(OSError):
            address = socket.getaddrinfo(os.environ["MASTER_ADDR"], None)[0][4][0]
            if name := interface_between_machines(str(address)):
                os.environ["GLOO_SOCKET_IFNAME"] = name


def quiet_sockets() -> None:
    """No lines of torch's about names it cannot find; to be called before torch is imported."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _end_with_launcher() -> None:
    """Have this rank asked to stop when lorafit's launcher dies, however that happens (Linux)."""
    if not has_own_launcher() or sys.platform != "linux":
        return
    import ctypes

    with suppress(OSError, AttributeError):
        set_on_parent_death = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
        ctypes.CDLL(None, use_errno=True).prctl(set_on_parent_death, signal.SIGTERM, 0, 0, 0)


def _launcher_of(environment: Mapping[str, str]) -> str:
    if LAUNCHER in environment:
        return "lorafit"
    if any(name.startswith("ACCELERATE_") for name in environment):
        return "accelerate launch"
    if "TORCHELASTIC_RUN_ID" in environment:
        return "torchrun"
    return "a launcher that sets RANK and WORLD_SIZE"


def _number(name: str) -> int:
    text = os.environ[name]
    if not (text.isascii() and text.isdigit()):
        raise UserError("is no number", f"{name}: {text}",
                        "unset RANK and WORLD_SIZE, or let the launcher set them")
    return int(text)


def _count(name: str) -> int:
    text = os.environ.get(name, "0")
    return int(text) if text.isascii() and text.isdigit() else 0
