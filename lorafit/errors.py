"""Errors a person is meant to read, and the exit codes of the command line.

Every error says what is wrong, where (a file and line, or a recipe key) and what to do about it.
The command line prints these without a traceback; anything else that escapes is a bug of lorafit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

MAX_SHOWN = 30  # problems of one message
_MAX_CHARACTERS = 1000  # of each part of a problem, which may quote what was given

EXIT_CODES = {
    0: "done",
    1: "a bug in lorafit (the traceback is shown); of plan: it will not fit",
    2: "the input is wrong: command line, recipe, data, model or directory",
    3: "the machine failed: no space, a file that cannot be written, out of memory",
    4: "training stopped because a loss, a gradient or a weight was not finite",
    5: "verification failed: what was written differs from what was trained",
    6: "the time of --stop-after is over; a checkpoint was committed, --resume goes on",
    130: "interrupted (SIGINT); a checkpoint was committed if training had started",
    143: "terminated (SIGTERM); a checkpoint was committed if training had started",
}

DEADLINE_EXIT_CODE = 6


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `what`, `where` it stands and the `remedy`."""

    what: str
    where: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        what, where, remedy = map(_readable, (self.what, self.where, self.remedy))
        head = f"{where}: {what}" if where else what
        return f"{head}\n    {remedy}" if remedy else head


def _readable(text: str) -> str:
    """A text without what would break a terminal, and no longer than a person reads."""
    if len(text) > _MAX_CHARACTERS:
        half = _MAX_CHARACTERS // 2
        text = f"{text[:half]} … {text[-half:]}"
    return "".join(character if (character >= " " and character != "\x7f") or character == "\n"
                   else ascii(character)[1:-1] for character in text)


class LorafitError(Exception):
    """Base of every error that is shown to the user as a message."""

    exit_code = 1


class UserError(LorafitError):
    """The input is wrong. Carries every problem found, not only the first."""

    exit_code = 2

    def __init__(self, what: str = "", where: str = "", remedy: str = "", *,
                 problems: Sequence[Problem] = ()) -> None:
        self.problems = list(problems) or [Problem(what, where, remedy)]
        shown = [str(problem) for problem in self.problems[:MAX_SHOWN]]
        if len(self.problems) > MAX_SHOWN:
            shown.append(f"… and {len(self.problems) - MAX_SHOWN:,} more")
        super().__init__("\n".join(shown))


class MachineError(LorafitError):
    """The machine could not do what was asked: disk, memory, a device."""

    exit_code = 3


class DivergedError(LorafitError):
    """A loss, a gradient or a weight is not finite; nothing of it was kept."""

    exit_code = 4


class VerificationError(LorafitError):
    """An artifact was written but does not compute what was trained."""

    exit_code = 5


class Stopped(LorafitError):
    """Training was asked to stop; raised after the checkpoint has been committed, if there was
    anything to commit. exit_code: which of EXIT_CODES."""

    def __init__(self, exit_code: int, message: str) -> None:
        self.exit_code = exit_code
        super().__init__(message)


class RankEnded(LorafitError):
    """Ends a rank of a job that ends, with the exit code of the rank that failed first. Has no
    message: one of the ranks has said it."""

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__()


# How gloo and NCCL say that a process at the other end has gone.
_LOST_RANK = ("Connection closed by peer", "Connection reset by peer", "connectFullMesh failed",
              "remote process exited", "ncclRemoteError", "ncclSystemError")


def lost_a_rank(error: BaseException) -> bool:
    """Whether an error only says that another rank of the job is gone."""
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _LOST_RANK)


def machine_trouble(error: BaseException) -> str | None:
    """A message for what the machine refused, None for anything else."""
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return ("out of memory\n    lower training.micro_batch_size, set "
                "training.activation_checkpointing=full, or quantise the base "
                "(model.quantization=nf4)")
    if lost_a_rank(error):
        return ("another rank of this job is gone; what it said itself tells why\n    the last "
                "checkpoint is intact: go on with --resume")
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}"
    return None
