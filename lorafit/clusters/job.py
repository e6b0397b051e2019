"""What is asked of a cluster, whichever it is."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields

from lorafit.errors import Problem, UserError
from lorafit.secrets import secret_in

PORT = 29400  # of the rendezvous, as torch's launcher has it
ENDS_BY_ITSELF = (2, 4, 5, 6, 130, 143)
"""Exit codes of lorafit that come from every rank, and that trying again does not change."""

_SHORTEST_S = 300
_WORD = re.compile(r"[A-Za-z0-9./][A-Za-z0-9_.:/@+,-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HOST = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:]+\])(?::\d{1,5})?")


@dataclass(frozen=True)
class Job:
    """A run and the machines that it wants. Texts are checked by `check`, and empty or None where
    nothing was asked.

    name: of the job, fit for a host name. command: that wrote the file, for its first lines.
    directory: that the run is started in; recipe, run_dir: as they are reached from there.
    overrides, options: further --set values and options of `lorafit train`.
    nodes: machines; processes: ranks on each, one a GPU. cpus: for each rank. memory_gib: of each
    machine. setup: lines of shell that come before. environment: names of variables that are
    handed through. volume: a claim or volume that all machines see. rendezvous: HOST:PORT.
    """

    name: str
    command: str
    directory: str
    recipe: str
    run_dir: str
    overrides: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    nodes: int = 1
    processes: int = 1
    restarts: int = 0
    time_s: int | None = None
    memory_gib: int | None = None
    cpus: int | None = None
    gpu_type: str = ""
    partition: str = ""
    account: str = ""
    image: str = ""
    volume: str = ""
    rendezvous: str = ""
    setup: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()

    @property
    def margin_s(self) -> int:
        """How long before its time limit a run ends itself: for a step, and for saving."""
        return min(600, max(60, (self.time_s or 0) // 10))

    @property
    def stop_after_s(self) -> int | None:
        return None if self.time_s is None else self.time_s - self.margin_s

    def train(self, *more: str) -> list[str]:
        """The command of a rank, or of what starts the ranks of a machine."""
        overrides = [word for each in self.overrides for word in ("--set", each)]
        return ["lorafit", "train", self.recipe, *overrides, *self.options, "--auto-resume", *more]


OPTIONS = {
    "restarts": "--restarts", "time_s": "--time", "memory_gib": "--memory",
    "cpus": "--cpus-per-device", "gpu_type": "--gpu-type", "partition": "--partition",
    "account": "--account", "image": "--image", "volume": "--volume",
    "rendezvous": "--rendezvous", "setup": "--setup", "environment": "--env",
}
"""What not every target takes, and the option that asks for it."""


def check(job: Job) -> None:
    """UserError with everything about a job that cannot stand in a file, or must not."""
    problems = list(_misspelt(job))
    if job.time_s is not None and job.time_s < _SHORTEST_S:
        problems.append(Problem(f"a run cannot load, train and save in {job.time_s} s", "--time",
                                "give it five minutes or more"))
    for option, texts in (("--setup", job.setup), ("--set", job.overrides), ("--", job.options)):
        problems += [Problem(f"holds what looks like {what}; it would stand in the file for "
                             "everybody to read", option,
                             "hand it through by the name of a variable: --env NAME")
                     for text in texts if (what := secret_in(text))]
    if problems:
        raise UserError(problems=problems)


def _misspelt(job: Job) -> Iterable[Problem]:
    for field in fields(job):
        if field.name in ("gpu_type", "partition", "account", "image", "volume"):
            text = getattr(job, field.name)
            if text and not _WORD.fullmatch(text):
                yield Problem(f"{text!r} has characters that no such name has",
                              OPTIONS[field.name], "give the name alone")
    for name in job.environment:
        if "=" in name:
            yield Problem("a value would stand in the file for everybody to read",
                          f"--env {name.partition('=')[0]}", "give the variable's name alone")
        elif not _VARIABLE.fullmatch(name):
            yield Problem(f"{name!r} is no name of a variable", "--env", "use letters, digits, _")
    if job.rendezvous and not _HOST.fullmatch(job.rendezvous):
        yield Problem(f"{job.rendezvous!r} is no HOST:PORT", "--rendezvous",
                      f"name the first machine, for example node1:{PORT}")
    texts = [("--setup", job.setup), ("--set", job.overrides), ("--", job.options),
             ("output.dir", (job.run_dir,)),
             ("the recipe's path", (job.recipe,)), ("the working directory", (job.directory,))]
    for where, given in texts:
        if any(not text.isprintable() for text in given):
            yield Problem("has line breaks or other characters that cannot be printed", where,
                          "write it without; --setup may be repeated, a line each time")
