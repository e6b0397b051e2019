"""What `doctor` prints: a line for each finding as soon as it is there, and the sum of them."""

import textwrap
from collections.abc import Iterable
from typing import Any

from rich.text import Text

from lorafit.cli.show import console, next_commands

_STYLES = {"ok": "green", "note": "dim", "warning": "yellow", "problem": "bold red"}
_NAME_WIDTH, _INDENT = 20, 11
_WIDEST = 110


def findings(found: Iterable[Any]) -> list[Any]:
    """Print them under a heading for each section, and return them."""
    seen: list[Any] = []
    title = None
    for each in found:
        if each.section != title:
            title = each.section
            console.print(Text(title if not seen else f"\n{title}", style="bold"))
        _finding(each)
        seen.append(each)
    return seen


def summary(counts: dict[str, int], commands: list[str] | None = None) -> None:
    """How many findings there are of each kind, and what to type next."""
    problems, warnings = counts["problem"], counts["warning"]
    parts = [f"{counts['ok']} in order"]
    parts += [_count(warnings, "warning")] if warnings else []
    parts += [_count(problems, "problem")] if problems else []
    console.print(f"\n{'verdict':<9} {', '.join(parts)}", markup=False)
    if commands:
        next_commands(commands)


def _finding(each: Any) -> None:
    width = max(50, min(console.width, _WIDEST))
    indent = _INDENT + _NAME_WIDTH + 1
    first, *rest = _wrapped(each.text, width - indent)
    if len(each.name) <= _NAME_WIDTH:
        lines = [f"{each.name:<{_NAME_WIDTH}} {first}"]
    else:
        lines = [each.name, f"{'':<{_NAME_WIDTH + 1}}{first}"]
    lines += [f"{'':<{_NAME_WIDTH + 1}}{line}" for line in rest]
    line = Text("  ").append(f"{each.verdict:<8} ", style=_STYLES[each.verdict])
    console.print(line.append(lines[0]))
    for each_line in lines[1:]:
        console.print(f"{'':<{_INDENT}}{each_line}", markup=False)
    remedy = _wrapped(each.remedy, width - indent - 2) if each.remedy else []
    for number, each_line in enumerate(remedy):
        mark = "→ " if number == 0 else "  "
        console.print(Text(f"{'':<{indent}}{mark}{each_line}",
                           style="" if each.verdict in ("problem", "warning") else "dim"))


def _wrapped(text: str, width: int) -> list[str]:
    """Broken between words; a word that is longer than a line (a path) is left whole."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
