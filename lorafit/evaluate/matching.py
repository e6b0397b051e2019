"""When an answer is right: the same text, or the same by what a pattern finds in both."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

import regex

from lorafit.errors import UserError
from lorafit.recipe.evaluation import Evaluation

MATCH_LIMIT_S = 1.0  # for one text; a pattern that needs longer tries exponentially many ways

_NUMBER = regex.compile(r"[+-]?([0-9]{1,3}(,[0-9]{3})+|[0-9]+)?(\.[0-9]*)?")
_CURRENCY = "$€£¥₹"
_END_OF_THOUGHT = "</think>"


@dataclass(frozen=True)
class Matcher:
    """Compares answers as the recipe's section says. `where` names its pattern in messages."""

    section: Evaluation
    where: str = "evaluation.pattern"

    @property
    def name(self) -> str:
        return "match by pattern" if self.section.pattern else "exact match"

    def found(self, text: str) -> str | None:
        """What is compared of a text; None where there is nothing.

        UserError when the pattern takes longer than MATCH_LIMIT_S on it.
        """
        if not self.section.pattern:
            return text.strip()
        try:
            groups = [match[1] for match in self._compiled.finditer(text, timeout=MATCH_LIMIT_S)]
        except TimeoutError:
            raise UserError(
                f"the pattern takes over {MATCH_LIMIT_S:g} s on a text of {len(text):,} "
                "characters: it repeats what repeats itself, which can be tried in endlessly many "
                "ways",
                self.where, "write repetitions that cannot overlap: (a+)+ as a+") from None
        said = [group.strip() for group in groups if group is not None and group.strip()]
        if not said:
            return None
        return said[-1] if self.section.take == "last" else said[0]

    def same(self, answer: str | None, wanted: str | None) -> bool:
        """Whether what was found in an answer is what was found in the row's."""
        if answer is None or wanted is None:
            return False
        if self.section.ignore_case:
            answer, wanted = answer.casefold(), wanted.casefold()
        if not self.section.pattern:
            return answer == wanted
        return normalised(answer) == normalised(wanted)

    def refuse_finding_nothing(self, wanted: Sequence[str]) -> None:
        """UserError when no row's own answer holds what the pattern looks for."""
        if wanted and not any(self.found(text) is not None for text in wanted):
            shown = wanted[0].strip()
            shown = shown if len(shown) <= 80 else "…" + shown[-79:]
            raise UserError(
                f"the pattern {self.section.pattern!r} finds nothing in any of the {len(wanted):,} "
                "answers of the rows themselves, so no answer could ever be right", self.where,
                f"an answer of the rows: {shown!r}")

    @cached_property
    def _compiled(self) -> Any:
        flags = regex.IGNORECASE if self.section.ignore_case else 0
        return regex.compile(self.section.pattern, flags)


def normalised(text: str) -> Decimal | str:
    """A number where the text is one, otherwise the text with single spaces.

    Signs of currency and per cent, commas between thousands and a full stop at the end say nothing
    of a number's value: `$1,200.` is 1200, as `1200.00` is. `3,5` is no number here, for it could
    be read in two ways.
    """
    text = " ".join(text.split())
    number = text.replace("\u2212", "-").rstrip(".,;:").strip()
    sign = ""
    if number[:1] in ("+", "-"):
        sign, number = number[0], number[1:].lstrip()
    number = sign + number.lstrip(_CURRENCY).rstrip("%" + _CURRENCY).strip()
    if any(character in "0123456789" for character in number) and _NUMBER.fullmatch(number):
        return Decimal(number.replace(",", "")).normalize() + 0  # + 0 makes -0 the 0 that it is
    return text


def without_thoughts(answer: str, wanted: str) -> str:
    """An answer without what was thought before it, where the row's answer has no such part."""
    if _END_OF_THOUGHT in answer and _END_OF_THOUGHT not in wanted:
        return answer.rpartition(_END_OF_THOUGHT)[2]
    return answer
