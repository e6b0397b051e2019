"""Errors a person is meant to read, and the exit codes of the command line.

Every error says what is wrong, where (a file and line, or a recipe key) and what to do about it.
The command line prints these without a traceback; anything else that escapes is a bug of lorafit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

EXIT_CODES = {
    0: "done",
    1: "a bug in lorafit (the traceback is shown)",
    2: "the input is wrong: command line, recipe, data, model or directory",
    3: "the machine failed: no space, a file that cannot be written, out of memory",
    4: "training stopped because a loss or a gradient was not finite",
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
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n    {self.remedy}" if self.remedy else head


class LorafitError(Exception):
    """Base of every error that is shown to the user as a message."""

    exit_code = 1


class UserError(LorafitError):
    """The input is wrong. Carries every problem found, not only the first."""

    exit_code = 2

    def __init__(self, what: str = "", where: str = "", remedy: str = "", *,
                 problems: Sequence[Problem] = ()) -> None:
        self.problems = list(problems) or [Problem(what, where, remedy)]
        super().__init__("\n".join(str(problem) for problem in self.problems))


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
