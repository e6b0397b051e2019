"""Any other machine's side of the meeting: it comes to machine 0, and does as that says."""

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from lorafit.errors import UserError
from lorafit.launch import outcome as outcomes
from lorafit.launch.line import Line
from lorafit.launch.meeting import OPTION, Machine, Round
from lorafit.launch.network import Place
from lorafit.launch.outcome import Outcome, Verdict
from lorafit.launch.request import Request


class Guest:
    """A machine that is not the first."""

    def __init__(self, request: Request, place: Place, machine: Machine,
                 say: Callable[[str], None]) -> None:
        self.trouble, self.reason = threading.Event(), ""
        self._request, self._place, self._machine, self._say = request, place, machine, say
        self._change = threading.Condition()
        self._line: Line | None = None
        self._heard: dict[str, Any] = {}
        self._host = place.host

    def gather(self, used: int) -> Round:
        begun = time.monotonic()
        self._machine = replace(self._machine, used=used)
        has_said = False
        if (line := self._line) is not None:  # the host is to know how far this machine has come
            line.say(machine=asdict(self._machine))
        while True:
            if self._line is None:
                self._connect(begun)
            with self._change:
                if "refuse" in self._heard:
                    raise UserError(*self._heard["refuse"])
                if "begin" in self._heard:
                    told = self._heard.pop("begin")
                    self._host = str(told["machines"][0])
                    return Round(**told)
            waited = time.monotonic() - begun
            # The host tells who is missing; it is asked for a little longer than it waits itself.
            if waited > self._request.timeout_s + 2 * self._request.patience_s:
                raise UserError(
                    f"something answers at {self._place}, but began nothing within {waited:.0f} s",
                    OPTION, "check that it is the launcher of machine 0, and what that says; "
                    "--rendezvous-timeout waits longer")
            if waited > self._request.patience_s and not has_said:
                has_said = True
                self._say(f"waiting for the other machines at {self._place}")
            time.sleep(0.05 if self._line is not None else 0.5)

    def _connect(self, begun: float) -> None:
        """Reach the host, or end in a UserError when the time is over."""
        has_said = False
        while True:
            try:  # with all addresses of the name, which may be found again after a moment
                connection = socket.create_connection((self._place.host, self._place.port), 2.0)
                break
            except OSError as error:
                waited = time.monotonic() - begun
                if waited > self._request.timeout_s:
                    raise self._unreachable(error) from None
                if waited > self._request.patience_s and not has_said:
                    has_said = True
                    self._say(f"waiting for machine 0 at {self._place}, "
                              f"{self._request.timeout_s:.0f} s at most")
                time.sleep(0.2)
        with self._change:
            self._heard = {}
        self._line = line = Line(connection, self._hear, self._lose)
        line.start()
        line.say(machine=asdict(self._machine))

    def _unreachable(self, error: OSError) -> UserError:
        why = error.strerror or str(error)
        return UserError(
            f"machine 0 cannot be reached at {self._place}: {why}; tried for "
            f"{self._request.timeout_s:.0f} s", OPTION,
            "check that the command runs there with --node-rank 0, that "
            f"{self._place.host} is that machine, and that no firewall is before port "
            f"{self._place.port}; "
            "--rendezvous-timeout waits longer")

    def finish(self, outcome: Outcome, left: int) -> Verdict:
        if (line := self._line) is not None:
            line.say(outcome=outcome.as_dict())
        with self._change:
            while "verdict" not in self._heard and self._line is not None:
                self._change.wait(0.5)
            if "verdict" in self._heard:
                return Verdict.of(self._heard.pop("verdict"))
        # Without the host there is nobody to judge but this machine.
        return outcomes.judge([outcome], [(0, self._host)], left)

    def close(self) -> None:
        if (line := self._line) is not None:
            line.close()

    def _hear(self, line: Line, message: dict[str, Any]) -> None:
        with self._change:
            self._heard.update(message)
            if "begin" in message:
                self.reason = ""
                self.trouble.clear()
            if "trouble" in message:
                self.reason = str(message["trouble"])
                self.trouble.set()
            self._change.notify_all()

    def _lose(self, line: Line) -> None:
        with self._change:
            self._line = None
            if not self.reason:
                self.reason = f"machine 0 ({self._host}) has gone"
            self.trouble.set()
            self._change.notify_all()
