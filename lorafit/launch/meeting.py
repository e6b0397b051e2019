"""Where the launchers of several machines agree when to start, and what came of it.

Machine 0 is the host: it listens at the rendezvous, the others are guests that connect to it. A
round begins when all are there. In it they hear of each other what torch's launcher does not tell:
that a machine has gone, or that its ranks have failed. After it the host judges for all. All that
is left to torch's launcher is to number the ranks, in the order of the machines.
"""

import platform
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lorafit import __version__
from lorafit.launch.outcome import Outcome, Verdict
from lorafit.launch.request import Request

OPTION = "--rendezvous"


@dataclass(frozen=True)
class Machine:
    """What a launcher says of itself. used: restarts that it has taken part in."""

    node: int
    nodes: int
    host: str
    processes: int
    options: list[str]
    version: str
    used: int

    @classmethod
    def this(cls, request: Request, options: Sequence[str]) -> "Machine":
        return cls(request.node, request.nodes, platform.node(), request.processes,
                   list(options), __version__, 0)

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Machine":
        return cls(int(values["node"]), int(values["nodes"]), str(values["host"]),
                   int(values["processes"]), [str(each) for each in values["options"]],
                   str(values["version"]), int(values["used"]))

    def __str__(self) -> str:
        return f"machine {self.node} ({self.host})"


@dataclass(frozen=True)
class Round:
    """What all machines start with. port: of the host's store, which ranks meet at. restarts: how
    many came before."""

    id: str
    port: int
    restarts: int
    machines: list[str]


class Meeting(Protocol):
    """A machine's side of it."""

    trouble: threading.Event
    reason: str
    """Why ranks here are to end, once `trouble` is set: another machine's have, or it has gone."""

    def gather(self, used: int) -> Round:
        """Wait for all machines, and begin a round. UserError when that cannot be."""

    def finish(self, outcome: Outcome, left: int) -> Verdict:
        """Tell how the ranks here ended; what all machines do now."""

    def close(self) -> None: ...
