"""What came of a round of ranks, and what follows from it."""

import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lorafit.errors import DEADLINE_EXIT_CODE, DivergedError, MachineError, UserError

# What another try would only do again, or what somebody has asked for.
FINAL_CODES = frozenset({UserError.exit_code, DivergedError.exit_code, DEADLINE_EXIT_CODE,
                         128 + signal.SIGINT, 128 + signal.SIGTERM})
_BUG = 1  # whose traceback a rank shows itself
_TOGETHER_S = 10  # ranks that end for the same reason do so within that time


@dataclass(frozen=True)
class Failure:
    """A rank that did not end well. code: its exit code, −N after signal N. at: seconds since 1970,
    to the second. message: what it left to say. is_echo: it only missed another rank."""

    rank: int
    code: int
    at: int = 0
    message: str = ""
    is_echo: bool = False

    @property
    def was_killed(self) -> bool:
        """By a signal that nobody here has sent."""
        return self.code < 0 and -self.code not in (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Outcome:
    """How the ranks of one machine ended. asked: the signal that their launcher had got, 0 without.

    ended_for: what another machine had done, where its ranks were ended for that.
    """

    node: int
    host: str
    failures: list[Failure] = field(default_factory=list)
    asked: int = 0
    ended_for: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Outcome":
        failures = [Failure(int(each["rank"]), int(each["code"]), int(each["at"]),
                            str(each["message"]), bool(each["is_echo"]))
                    for each in values["failures"]]
        return cls(int(values["node"]), str(values["host"]), failures, int(values["asked"]),
                   str(values["ended_for"]))


@dataclass(frozen=True)
class Verdict:
    """What all launchers do after a round: end with `code`, or start again.

    why: for people. is_said: it was said on machine `of_node` already, in more words. is_whole:
    it has its own remedy.
    """

    code: int
    why: str = ""
    again: bool = False
    of_node: int = 0
    is_said: bool = False
    is_whole: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Verdict":
        return cls(int(values["code"]), str(values["why"]), bool(values["again"]),
                   int(values["of_node"]), bool(values["is_said"]), bool(values["is_whole"]))


def judge(outcomes: Sequence[Outcome], lost: Sequence[tuple[int, str]], left: int) -> Verdict:
    """One verdict on a round.

    outcomes: of the machines that told theirs. lost: number and host of those that have gone.
    left: how many restarts are.
    """
    several = len(outcomes) + len(lost) > 1
    verdict = _cause(outcomes, lost, several)
    is_asked = any(outcome.asked for outcome in outcomes)
    if verdict.code == 0 or verdict.code in FINAL_CODES or is_asked or left <= 0:
        return verdict
    return replace(verdict, again=True)


def _cause(outcomes: Sequence[Outcome], lost: Sequence[tuple[int, str]],
           several: bool) -> Verdict:
    """What came first, as far as that can be told: a rank that was killed or a machine that has
    gone makes others fail, and never the other way round."""
    failed = sorted(((each, outcome) for outcome in outcomes for each in outcome.failures),
                    key=lambda pair: pair[0].at)
    for failure, outcome in failed:
        late = failure.at - failed[0][0].at > _TOGETHER_S  # killed by the launcher, for not ending
        if failure.was_killed and not late and not outcome.ended_for:
            name = signal.Signals(-failure.code).name
            where = f" on {outcome.host}" if several else ""
            return Verdict(MachineError.exit_code,
                           f"rank {failure.rank}{where} was killed by {name}, so the others ended "
                           "too; out of memory is a common cause", of_node=outcome.node)
    if lost:
        node, host = lost[0]
        return Verdict(MachineError.exit_code,
                       f"machine {node} ({host}) has gone: its launcher was killed, or the network "
                       "to it is down", of_node=node)
    # What ends a rank whose neighbour has failed is the machine's failure, so that comes last.
    failed.sort(key=lambda pair: (pair[0].is_echo, pair[0].code == MachineError.exit_code
                                  and not pair[0].message))
    for failure, outcome in failed:
        if failure.code > 0:
            return _of_rank(failure, outcome, [each for each, _ in failed], several)
    for outcome in outcomes:
        if outcome.asked:
            return Verdict(128 + outcome.asked, "stopped before the first step",
                           of_node=outcome.node)
    for failure, outcome in failed:  # asked to stop before they had anything to keep
        if not outcome.ended_for:
            return Verdict(128 - failure.code, "stopped before the first step",
                           of_node=outcome.node)
    return Verdict(0)


def _of_rank(failure: Failure, outcome: Outcome, failed: Sequence[Failure],
             several: bool) -> Verdict:
    """A rank's own error is everyone's: in its own words, with its name unless rank 0 says the
    same."""
    name = f"rank {failure.rank} on {outcome.host}" if several else f"rank {failure.rank}"
    first = [each for each in failed if each.rank == 0 and each.code == failure.code]
    if failure.message:
        is_common = any(each.message == failure.message for each in first)
        why = failure.message if is_common else f"{name}: {failure.message}"
        return Verdict(failure.code, why, of_node=outcome.node, is_whole=True)
    return Verdict(failure.code, f"{name} ended with exit code {failure.code}",
                   of_node=outcome.node, is_said=failure.code == _BUG or bool(first))
