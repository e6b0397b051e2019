"""What Slurm's srun tells a task, in the words of torch's launchers."""

import itertools
import re
from collections.abc import Iterator, Mapping

from lorafit.errors import UserError

_MOST_HOSTS = 100_000
# Steps that are no srun of the user: a batch script, a job's external step, an interactive shell.
_SPECIAL_STEPS_FROM = 0xFFFFFFF0
_FIRST_PORT, _PORTS = 10_000, 20_000  # below the ports that systems hand out by themselves


def is_task(environment: Mapping[str, str]) -> bool:
    """Whether this process is one of several tasks of an srun.

    A batch script, or a shell that salloc or `srun --pty` opened, is none: it has one task, or the
    number of a step that is no srun.
    """
    step = environment.get("SLURM_STEP_ID", environment.get("SLURM_STEPID", ""))
    return step.isascii() and step.isdigit() and int(step) < _SPECIAL_STEPS_FROM \
        and "SLURM_PROCID" in environment and "SLURM_PTY_PORT" not in environment \
        and _tasks(environment) > 1


def torch_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE and the like of a task. What the user has set of MASTER_ADDR and
    MASTER_PORT stays. UserError for values that Slurm does not write."""
    world = _tasks(environment)
    rank = _number(environment, "SLURM_PROCID")
    here = tasks_per_node(environment.get(
        "SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE", "")))
    node = _number(environment, "SLURM_NODEID", "0")
    local_world = here[node] if node < len(here) else \
        _number(environment, "SLURM_NTASKS_PER_NODE", str(world))
    return {
        "RANK": str(rank), "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(_number(environment, "SLURM_LOCALID")),
        "LOCAL_WORLD_SIZE": str(local_world),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_host(environment),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(_port(environment)),
    }


def hosts(text: str) -> list[str]:
    """The names in Slurm's short form of a list: `node[01-03,7],login` is node01, node02, node03,
    node7 and login. UserError for anything else."""
    found: list[str] = []
    for entry in _split(text):
        pieces = [_choices(piece) for piece in re.split(r"(\[[^][]*\])", entry) if piece]
        many = 1
        for piece in pieces:
            many *= len(piece)
        if many + len(found) > _MOST_HOSTS:
            raise _no_list(text)
        found += ["".join(parts) for parts in itertools.product(*pieces)]
    if not found:
        raise _no_list(text)
    return found


def _split(text: str) -> Iterator[str]:
    """The entries between commas outside of brackets."""
    entries = re.findall(r"(?:[^][,\s]|\[[^][\s]*\])+", text)
    if ",".join(entries) != text:
        raise _no_list(text)
    return iter(entries)


def _choices(piece: str) -> list[str]:
    """What may stand for a piece of a name: itself, or each number of its ranges."""
    if not piece.startswith("["):
        return [piece]
    numbers: list[str] = []
    for part in piece[1:-1].split(","):
        match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", part, re.ASCII)
        if match is None:
            raise _no_list(piece)
        first, last = match[1], match[2] or match[1]
        if not 0 <= int(last) - int(first) < _MOST_HOSTS:
            raise _no_list(piece)
        numbers += [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return numbers


def tasks_per_node(text: str) -> list[int]:
    """How many tasks each node has: `2(x3),1` is 2, 2, 2 and 1; nothing for an empty text."""
    counts: list[int] = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"([0-9]+)(?:\(x([0-9]+)\))?", part, re.ASCII)
        if match is None or int(match[2] or 1) > _MOST_HOSTS:
            raise UserError("is not how Slurm counts tasks", f"SLURM_TASKS_PER_NODE: {text}",
                            "unset it, or start with torchrun")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _first_host(environment: Mapping[str, str]) -> str:
    """Where rank 0 is: the first machine of the step. The one that srun was called on is asked for
    only where there is no list, because it may be a login node."""
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"):
        if environment.get(name):
            return hosts(environment[name])[0]
    if address := environment.get("SLURM_LAUNCH_NODE_IPADDR"):
        return address
    raise UserError("is not set, so that rank 0 cannot be found", "SLURM_JOB_NODELIST",
                    "set MASTER_ADDR to the machine of rank 0")


def _port(environment: Mapping[str, str]) -> int:
    """The same on every task, and another one for another step of the same machine."""
    job = _number(environment, "SLURM_JOB_ID", environment.get("SLURM_JOBID", "0"))
    step = _number(environment, "SLURM_STEP_ID", environment.get("SLURM_STEPID", "0"))
    return _FIRST_PORT + (job * 7 + step) % _PORTS


def _tasks(environment: Mapping[str, str]) -> int:
    name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    return _number(environment, name, "1")


def _number(environment: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = environment.get(name, default)
    if text is None or not (text.isascii() and text.isdigit()):
        raise UserError("is no number" if text else "is not set, though srun sets it",
                        name if text is None else f"{name}: {text}",
                        "start with srun, or unset SLURM_STEP_ID")
    return int(text)


def _no_list(text: str) -> UserError:
    return UserError("is no list of machines in Slurm's form", f"SLURM_JOB_NODELIST: {text[:200]}",
                     "set MASTER_ADDR to the machine of rank 0")
