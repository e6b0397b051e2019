"""A job: rounds of ranks, until the work is done or cannot be."""

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from lorafit.launch.guest import Guest
from lorafit.launch.host import Host
from lorafit.launch.meeting import Machine, Meeting
from lorafit.launch.outcome import FINAL_CODES, Verdict
from lorafit.launch.ranks import handing_on, run_ranks
from lorafit.launch.request import Request


def launch(arguments: Sequence[str], request: Request) -> int:
    """Run `python -m lorafit ARGUMENTS` in all ranks of a job; return the exit code.

    Ranks that failed by what another try may mend are started again, `request.restarts` times at
    most, and go on from the newest checkpoint. UserError when the machines do not come together.
    """
    stores = _Stores()
    used = 0
    with handing_on() as asked, \
            closing(meet(request, shared(arguments), stores.open, _say)) as meeting:
        while True:
            begun = meeting.gather(used)
            outcome = run_ranks(arguments, request, begun, meeting, asked)
            verdict = meeting.finish(outcome, request.restarts - begun.restarts)
            used = begun.restarts
            if not verdict.again:
                break
            used += 1
            _say(f"restart {used} of {request.restarts}: {verdict.why.splitlines()[0]}")
    _say_end(verdict, request, used)
    return verdict.code


def meet(request: Request, options: Sequence[str], open_store: Callable[[], int],
         say: Callable[[str], None]) -> Meeting:
    """This machine's side of the meeting. options: of the command line, alike on all machines.
    open_store: begins a new store for ranks on the host, and returns its port. say: to a person."""
    machine = Machine.this(request, options)
    if request.place is not None and request.node > 0:
        return Guest(request, request.place, machine, say)
    return Host(request, machine, open_store, say)


def shared(arguments: Sequence[str]) -> list[str]:
    """The part of a command line that is the same on all machines: without the number of the
    machine, and the recipe's place, which is compared by what it says."""
    left: list[str] = []
    given = iter(arguments)
    for argument in given:
        if argument == "--node-rank":
            next(given, None)
        elif not argument.startswith("--node-rank=") and not argument.endswith((".yaml", ".yml")):
            left.append(argument)
    return left


def _say_end(verdict: Verdict, request: Request, used: int) -> None:
    """What no rank of this machine has said."""
    restarts = f"{used} restart{'' if used == 1 else 's'}"
    if verdict.code == 0:
        if used:
            _say(f"finished after {restarts}")
        return
    if not (verdict.is_said and verdict.of_node == request.node):
        remedy = "" if verdict.is_whole or verdict.code in FINAL_CODES else \
            "\n    the last checkpoint is intact: go on with --resume"
        _say(f"error: {verdict.why}{remedy}")
    if used:
        _say(f"gave up after {restarts}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _Stores:
    """The store of torch that the ranks of a round meet at. Each round has a new one, so that
    nothing of an earlier round is read."""

    def __init__(self) -> None:
        self._store: Any = None

    def open(self) -> int:
        from torch import distributed

        open_store: Any = distributed.TCPStore  # type: ignore[attr-defined]
        self._store = open_store("127.0.0.1", 0, is_master=True, multi_tenant=True,
                                 wait_for_workers=False)
        return int(self._store.port)
