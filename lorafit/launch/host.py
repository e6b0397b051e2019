"""Machine 0's side of the meeting: it gathers the others, tells them what happens, and judges."""

import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from lorafit.errors import UserError
from lorafit.launch import outcome as outcomes
from lorafit.launch.line import Line
from lorafit.launch.meeting import OPTION, Machine, Round
from lorafit.launch.network import is_here, listen
from lorafit.launch.outcome import Outcome, Verdict
from lorafit.launch.request import Request

# Ranks have so long to end after those of another machine: torch's launcher kills after 30.
_STRAGGLERS_S = 40.0
_LINGER_S = 3.0  # what the host waits for the others to hear the end


class Host:
    """Machine 0, or the only one."""

    def __init__(self, request: Request, machine: Machine, open_store: Callable[[], int],
                 say: Callable[[str], None]) -> None:
        self.trouble, self.reason = threading.Event(), ""
        self._request, self._machine, self._open_store = request, machine, open_store
        self._say = say
        self._change = threading.Condition()
        self._guests: dict[Line, Machine] = {}
        self._at_work: dict[Line, Machine] = {}  # of the guests those that the round began with
        self._outcomes: dict[int, Outcome] = {}
        self._lost: dict[int, str] = {}
        self._refusal: UserError | None = None
        self._is_running = False
        self._door: socket.socket | None = None
        if request.place is not None:
            self._door = listen(request.place, OPTION)
            threading.Thread(target=self._welcome, args=(self._door,), daemon=True).start()

    def gather(self, used: int) -> Round:
        self._machine = replace(self._machine, used=used)
        with self._change:
            self._lost = {}  # who has gone may have come back
        self._wait_for_all()
        with self._change:
            machines = sorted([self._machine, *self._guests.values()], key=lambda each: each.node)
            place = self._request.place
            begun = Round(uuid.uuid4().hex, self._open_store(),
                          max(each.used for each in machines), [each.host for each in machines])
            self.trouble.clear()
            self.reason = ""
            self._outcomes = {}
            self._is_running = True
            self._at_work = dict(self._guests)
            for line in self._at_work:
                line.say(begin=asdict(begun))
        if place is not None:
            self._say(f"machines  {', '.join(f'{m.host} ({m.processes})' for m in machines)}: "
                      f"{sum(m.processes for m in machines)} ranks")
        return begun

    def _wait_for_all(self) -> None:
        begun = time.monotonic()
        has_said = False
        while True:
            with self._change:
                missing = self._missing()
                if self._refusal is not None:
                    raise self._refusal
            if not missing:
                return
            waited = time.monotonic() - begun
            if waited > self._request.timeout_s:
                raise self._refuse_all(self._never_came(missing))
            if waited > self._request.patience_s and not has_said:
                has_said = True
                self._say(f"waiting for machine {_listed(missing)} of {self._request.nodes} at "
                          f"{self._request.place}, {self._request.timeout_s:.0f} s at most")
            time.sleep(0.05)

    def _missing(self) -> list[int]:
        here = {0} | {each.node for each in self._guests.values()}
        return [node for node in range(self._request.nodes) if node not in here]

    def _never_came(self, missing: list[int]) -> UserError:
        here = sorted([self._machine, *self._guests.values()], key=lambda each: each.node)
        place = self._request.place
        assert place is not None
        elsewhere = "" if is_here(place.resolve(OPTION)) else \
            f"; {place.host} is no address of this machine, which is to be machine 0"
        return UserError(
            f"machine {_listed(missing)} of {self._request.nodes} did not come within "
            f"{self._request.timeout_s:.0f} s; {', '.join(map(str, here))} "
            f"{'is' if len(here) == 1 else 'are'} here{elsewhere}", f"{OPTION} {place}",
            f"start the same command there with --node-rank {missing[0]}; check that it reaches "
            f"{place} (no firewall in between), or wait longer with --rendezvous-timeout")

    def finish(self, outcome: Outcome, left: int) -> Verdict:
        deadline = None
        with self._change:
            self._outcomes[0] = outcome
            while True:
                waited_for = [each.node for each in self._at_work.values()
                              if each.node not in self._outcomes]
                failed = any(each.failures or each.ended_for for each in self._outcomes.values())
                if (failed or self._lost) and deadline is None:
                    deadline = time.monotonic() + _STRAGGLERS_S
                    self._alarm(outcome, but=None)
                if not waited_for or (deadline is not None and time.monotonic() > deadline):
                    break
                self._change.wait(0.5)
            silent = [(each.node, each.host) for each in self._at_work.values()
                      if each.node not in self._outcomes]
            verdict = outcomes.judge(list(self._outcomes.values()),
                                     [*self._lost.items(), *silent], left)
            self._is_running = False
            for line in self._at_work:  # who came back meanwhile waits for the next round
                line.say(verdict=verdict.as_dict())
        return verdict

    def _alarm(self, outcome: Outcome, but: Line | None) -> None:
        """Have the ranks of all other machines ended."""
        reason = f"the ranks on {outcome.host} have ended"
        for line in self._at_work:
            if line is not but:
                line.say(trouble=reason)

    def close(self) -> None:
        if self._door is None:
            return
        self._door.close()
        deadline = time.monotonic() + _LINGER_S
        with self._change:  # who has heard the end hangs up
            while self._guests and time.monotonic() < deadline:
                self._change.wait(0.1)
            for line in list(self._guests):
                line.close()

    def _welcome(self, door: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = door.accept()
                Line(connection, self._hear, self._lose).start()

    def _hear(self, line: Line, message: dict[str, Any]) -> None:
        with self._change:
            if "machine" in message:
                self._take_in(line, Machine.of(message["machine"]))
            elif line in self._at_work and "outcome" in message:
                told = Outcome.of(message["outcome"])
                self._outcomes[self._at_work[line].node] = told
                if told.failures or told.ended_for:
                    self._raise_alarm(f"the ranks on {told.host} have ended", line)
            self._change.notify_all()

    def _take_in(self, line: Line, machine: Machine) -> None:
        others = [self._machine, *(each for at, each in self._guests.items() if at is not line)]
        problem = _disagreement(self._machine, machine, self._request)
        if problem is None and (twin := [each for each in others if each.node == machine.node]):
            problem = UserError(f"{machine.host} and {twin[0].host} both say that they are machine "
                                f"{machine.node}", f"--node-rank {machine.node}",
                                "give each machine a number of its own")
        if problem is not None and self._is_running:  # a stranger to a job that is under way
            line.say(refuse=_parts(problem))
            return
        self._guests[line] = machine
        if problem is not None:
            self._refuse_all(problem)

    def _refuse_all(self, problem: UserError) -> UserError:
        self._refusal = problem
        for line in self._guests:
            line.say(refuse=_parts(problem))
        return problem

    def _lose(self, line: Line) -> None:
        with self._change:
            self._guests.pop(line, None)
            machine = self._at_work.pop(line, None)
            if machine is not None and self._is_running and machine.node not in self._outcomes:
                self._lost[machine.node] = machine.host
                self._raise_alarm(f"{machine} has gone", line)
            self._change.notify_all()

    def _raise_alarm(self, reason: str, but: Line) -> None:
        if not self.trouble.is_set():
            self.reason = reason
            self.trouble.set()
            for line in self._at_work:
                if line is not but:
                    line.say(trouble=reason)


def _disagreement(host: Machine, guest: Machine, request: Request) -> UserError | None:
    """What two machines were told differently."""
    for what, ours, theirs in (("--nodes", host.nodes, guest.nodes),
                               ("version of lorafit", host.version, guest.version)):
        if ours != theirs:
            return UserError(f"the machines differ: {ours} on {host.host}, {theirs} on "
                             f"{guest.host}", what, "give every machine the same")
    if not 0 < guest.node < request.nodes:
        return UserError(f"{guest.host} says that it is machine {guest.node} of {request.nodes}",
                         "--node-rank", f"number them 0 to {request.nodes - 1}")
    if host.options != guest.options:
        here = [each for each in host.options if each not in guest.options]
        there = [each for each in guest.options if each not in host.options]
        return UserError(
            f"the machines were started differently: {' '.join(here) or 'without'} on "
            f"{host.host}, {' '.join(there) or 'without'} on {guest.host}", "options",
            "give the same command on every machine, but for --node-rank")
    return None


def _parts(error: UserError) -> list[str]:
    problem = error.problems[0]
    return [problem.what, problem.where, problem.remedy]


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return shown + (", …" if len(numbers) > 8 else "")
