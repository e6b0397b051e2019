"""What the verb that looks for what is wrong does."""

from collections.abc import Iterator
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

    found = _collected("this machine", examine_machine(with_ranks=ranks), json_to)
    if json_to is None:
        show_doctor.summary(found.counts())
    if found.problems:
        raise MachineError(_named(found.problems, "does not work", "do not work"))


def _run(path: Path, json_to: Path | None) -> None:
    from lorafit.doctor.run import examine_run, standing

    found = _collected(str(path), examine_run(path), None if json_to is None else json_to,
                       facts_of=path)
    if json_to is None:
        show_doctor.summary(found.counts(), standing(path, found.findings).next_commands)
    if found.problems:
        raise VerificationError(f"{path}: " + _named(found.problems, "is damaged", "are damaged"))


def _named(problems: list[Finding], is_one: str, are_several: str) -> str:
    names = list(dict.fromkeys(found.name for found in problems))
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return f"{shown} {is_one if len(names) == 1 else are_several}"


def _collected(subject: str, findings: Iterator[Finding], json_to: Path | None,
               facts_of: Path | None = None) -> Examination:
    if json_to is None:
        return Examination(subject, show_doctor.findings(findings))
    examination = Examination(subject, list(findings))
    if facts_of is not None:
        from lorafit.doctor.run import standing

        examination.facts["standing"] = standing(facts_of, examination.findings).as_dict()
    either(json_to, examination, lambda _: None)
    return examination
