"""What the verb that looks for what is wrong does."""

from collections.abc import Iterable
from pathlib import Path

from lorafit.cli import show_doctor
from lorafit.cli.before import refuse_taken_json
from lorafit.cli.show_inspect import either
from lorafit.doctor.finding import Examination, Finding
from lorafit.errors import MachineError, UserError, VerificationError


def doctor(run: Path | None, *, ranks: bool, json_to: Path | None) -> None:
    if run is not None and ranks:
        raise UserError("is about this machine, and a run directory is named", "--ranks",
                        "leave out one of them")
    refuse_taken_json(json_to)
    if run is None:
        _machine(ranks, json_to)
    else:
        _run(run, json_to)


def _machine(ranks: bool, json_to: Path | None) -> None:
    from lorafit.doctor.machine import examine_machine

    found = Examination("this machine", _made(examine_machine(with_ranks=ranks), json_to))
    either(json_to, found, lambda made: show_doctor.summary(made.counts()))
    if found.problems:
        raise MachineError(f"not in order: {_names(found.problems)}")


def _run(path: Path, json_to: Path | None) -> None:
    from lorafit.doctor.run import RunExamination

    examination = RunExamination(path)
    found = Examination(str(path), _made(examination, json_to))
    found.facts["standing"] = examination.standing.as_dict()
    either(json_to, found, lambda made: show_doctor.summary(
        made.counts(), examination.standing.next))
    if found.problems:
        raise VerificationError(f"{path}: damaged: {_names(found.problems)}")


def _made(findings: Iterable[Finding], json_to: Path | None) -> list[Finding]:
    """All findings, shown one by one unless they go to a script."""
    return show_doctor.findings(findings) if json_to is None else list(findings)


def _names(problems: list[Finding]) -> str:
    names = list(dict.fromkeys(found.name for found in problems))
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
