"""What the proof found, as a page and as JSON."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_MEANING = (
    "`scripts/prove_engines.py` wrote this page. Adapters were trained by lorafit, exported or "
    "merged by it, and given to each program in an environment of its own. A cell says how many of "
    "the prompts a program continued exactly as lorafit's own model does, base and adapter as they "
    "were trained: token ids, the most likely one at every place, in float32. Refused: lorafit "
    "does not write it so, and says why. An empty cell was not asked: vLLM is given as merged "
    "models only what it cannot have as adapters.")


@dataclass(frozen=True)
class Cell:
    """What came of one adapter in one program.

    equal, of: prompts whose answers are lorafit's own, to the token. moved: prompts that the base
    alone answers otherwise, so that an ignored adapter would show; None where it was not asked.
    refused: why lorafit does not write it for the program. failed: why there are no answers.
    not_run: why nobody asked.
    """

    equal: int = 0
    of: int = 0
    moved: int | None = None
    refused: tuple[str, ...] = ()
    failed: str = ""
    not_run: str = ""

    def as_text(self, notes: list[str]) -> str:
        if self.refused:
            return f"refused{_note('; '.join(self.refused), notes)}"
        if self.failed:
            return f"**failed**{_note(self.failed, notes)}"
        if self.not_run:
            return f"not run{_note(self.not_run, notes)}"
        text = f"{self.equal}/{self.of}"
        return text if self.equal == self.of else f"**{text}**"


def cell(answers: Sequence[Sequence[int]], expected: Sequence[Sequence[int]],
         base: Sequence[Sequence[int]] | None) -> Cell:
    return Cell(sum(list(a) == list(b) for a, b in zip(answers, expected, strict=True)),
                len(expected), None if base is None else
                sum(list(a) != list(b) for a, b in zip(base, expected, strict=True)))


def page(columns: Mapping[str, str], bases: Mapping[str, str], kinds: Sequence[str],
         cells: Mapping[tuple[str, str, str], Cell], how: Sequence[str]) -> str:
    """columns: key to heading. cells: by (base, kind, column)."""
    notes: list[str] = []
    out = [
        "# What the programs that serve it answer",
        "",
        *textwrap.wrap(_MEANING, 100),
        "",
        *how,
        "",
    ]
    for base, title in bases.items():
        found = [kind for kind in kinds if any((base, kind, key) in cells for key in columns)]
        if not found:
            continue
        out += [f"## {title}", "", f"| adapter | {' | '.join(columns.values())} |",
                f"|---|{'---|' * len(columns)}"]
        for kind in found:
            row = [cells[base, kind, key].as_text(notes) if (base, kind, key) in cells else ""
                   for key in columns]
            out.append(f"| {kind} | {' | '.join(row)} |")
        moved = [cell.moved for (of, _, _), cell in cells.items()
                 if of == base and cell.moved is not None]
        if moved:
            out += ["", f"The base alone continues at least {min(moved)} of the prompts otherwise: "
                    "a program that ignored the adapter would show."]
        out.append("")
    out += [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    return "\n".join(out) + "\n"


def _note(text: str, notes: list[str]) -> str:
    """A number that stands for a sentence below the tables."""
    if text not in notes:
        notes.append(text)
    return f" ({notes.index(text) + 1})"


def as_json(cells: Mapping[tuple[str, str, str], Cell]) -> list[dict[str, Any]]:
    return [{"base": base, "adapter": kind, "program": column, **vars(found)}
            for (base, kind, column), found in cells.items()]
