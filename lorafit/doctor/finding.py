"""What an examination finds."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """OK: it was tried and works. NOTE: a fact that nothing hangs on. WARNING: works, but may not
    do what is expected. PROBLEM: does not work."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at (`name`, within a `section`), what was found, and the `remedy`
    where something is to be done."""

    section: str
    name: str
    verdict: Verdict
    text: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


class Absent(Exception):
    """What a probe tries is not installed and need not be: what builds on it is not tried."""


@dataclass(frozen=True)
class Section:
    """Makes findings of one section."""

    title: str

    def ok(self, name: str, text: str) -> Finding:
        return Finding(self.title, name, Verdict.OK, text)

    def note(self, name: str, text: str, remedy: str = "") -> Finding:
        return Finding(self.title, name, Verdict.NOTE, text, remedy)

    def warning(self, name: str, text: str, remedy: str = "") -> Finding:
        return Finding(self.title, name, Verdict.WARNING, text, remedy)

    def problem(self, name: str, text: str, remedy: str = "") -> Finding:
        return Finding(self.title, name, Verdict.PROBLEM, text, remedy)

    def failed(self, name: str, error: BaseException, remedy: str = "") -> Finding:
        return self.problem(name, first_line(error), remedy)


@dataclass
class Examination:
    """All findings on a `subject`, in the order in which they were made. facts: what a script may
    want besides, as JSON values."""

    subject: str
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    @property
    def problems(self) -> list[Finding]:
        return [found for found in self.findings if found.verdict is Verdict.PROBLEM]

    @property
    def verdict(self) -> Verdict:
        """The worst there is."""
        worst = max((list(Verdict).index(found.verdict) for found in self.findings), default=0)
        return Verdict.OK if worst < 2 else list(Verdict)[worst]

    def counts(self) -> dict[str, int]:
        counted = Counter(found.verdict for found in self.findings)
        return {verdict.value: counted[verdict] for verdict in Verdict}

    def as_dict(self) -> dict[str, Any]:
        return {"subject": self.subject, "verdict": self.verdict.value, "counts": self.counts(),
                "findings": [found.as_dict() for found in self.findings], **self.facts}


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    said = str(error).strip()
    kind = type(error).__name__
    return f"{kind}: {said.splitlines()[0]}" if said else kind


def size(size_bytes: float) -> str:
    """Bytes for people, in binary units from a MiB on."""
    for unit, one in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if size_bytes >= one:
            return f"{size_bytes / one:,.1f} {unit}"
    return f"{size_bytes:,.0f} B" if size_bytes < 1000 else f"{size_bytes / 1000:,.1f} kB"
