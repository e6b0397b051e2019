"""What the assistant says in the text of a conversation, exactly.

A turn begins where the prompt for its generation ends, and ends with the token that closes it. What
the template does at inference decides: a token that the prompt already holds is not learnt.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lorafit.data.chat.program import Program
from lorafit.data.chat.trace import Range, Trace, trace
from lorafit.data.examples import BadRow

_MARKS_REMEDY = "give a template with {% generation %} marks in data.chat_template"
_PIECES = re.compile(r"<[^<>\s]+>|.", re.DOTALL)  # tags whole, other characters one by one


@dataclass(frozen=True)
class Turn:
    """A turn of the assistant: stretches of text, and where in the last its closing begins."""

    pieces: tuple[Range, ...]
    closing: int


class Closings:
    """The special tokens of a tokenizer, one of which ends a turn, and `eos` among them."""

    def __init__(self, special: Iterable[str], eos: str | None) -> None:
        self.special, self.eos = tuple(special), eos
        tokens = "|".join(map(re.escape, sorted(self.special, key=len, reverse=True)))
        self.run = re.compile(rf"(?:\s|{tokens})*" if tokens else r"\s*")


class TurnFinder:
    """Finds the turns in one rendered conversation.

    `values` is what the template was given, `found` the trace of its text, and `said` where each
    turn of the assistant shows its content and reasoning. `heading` keeps what was learnt about
    the template from one row to the next.
    """

    def __init__(self, program: Program, values: dict[str, Any], found: Trace,
                 said: dict[int, list[Range]], closings: Closings, heading: dict[str, str]) -> None:
        self.program, self.values, self.found, self.said = program, values, found, said
        self.messages: list[dict[str, Any]] = values["messages"]
        self.text = found.text
        self.special, self.eos, self.closing_run = closings.special, closings.eos, closings.run
        self.heading = heading

    def marked(self, i: int) -> Turn | None:
        """The turn of message `i` as the template marks it; None when nothing of it is marked."""
        if not self.found.turns:
            raise BadRow("the chat template does not go through the messages in a loop, so its "
                         "marks cannot be told apart", "give one that does in data.chat_template")
        mine = [piece for piece in self.found.generated if self._owner(piece) == i]
        if not mine:
            return None
        start = self._start(i, self._stretch(i) or mine[0])
        pieces: list[Range] = []
        for begin, end in mine:
            begin = max(begin, start)
            if pieces and pieces[-1][1] == begin:
                pieces[-1] = pieces[-1][0], end
            elif begin < end:
                pieces.append((begin, end))
        if not pieces:
            return None
        begin, end = pieces[-1]
        turn = self._turn(i, pieces, self._close(begin, self._with_closing(i, end)))
        if self._strangers(i, turn):
            raise BadRow(f"the chat template marks text of another message as generated in message "
                         f"{i + 1}", "correct its {% generation %} marks")
        return turn

    def derived(self, i: int) -> Turn:
        """The turn of message `i` from what the template writes while it stands at the message."""
        stretch = self._stretch(i)
        if stretch is not None and not self._hides_next(i):
            start, end = self._start(i, stretch), stretch[1]
            if i == len(self.messages) - 1 and self._closes(end):
                end = len(self.text)
            turn = self._turn(i, [(start, end)], self._close(start, end))
            if not self._strangers(i, turn):
                return turn
        start, end = self._between_prefixes(i)
        turn = self._turn(i, [(start, end)], self._close(start, end))
        if self._strangers(i, turn):
            raise self._refusal(i)
        return turn

    def _stretch(self, i: int) -> Range | None:
        """The text of message `i`, when it is one stretch."""
        written = [each for each in self.found.turns.get(i, ()) if self.text[slice(*each)].strip()]
        return written[0] if len(written) == 1 else None

    def _hides_next(self, i: int) -> bool:
        """Whether a message that answers turn `i` left no trace, and so may be part of its text."""
        for j in range(i + 1, len(self.messages)):
            if self.messages[j]["role"] == "assistant":
                return False
            if j not in self.found.turns and j not in self.found.contents:
                return True
        return False

    def _owner(self, piece: Range) -> int | None:
        """The message that wrote the marked `piece`, or after which it stands."""
        before = [(start, i) for i, stretches in self.found.turns.items()
                  for start, _ in stretches if start <= piece[0]]
        return max(before)[1] if before else None

    def _start(self, i: int, stretch: Range) -> int:
        """Where message `i` begins in its `stretch`: after what the prompt for it holds."""
        if i == 0:  # many templates cannot render no message at all
            heading = self._usual_heading()
            if not heading:
                raise BadRow("the row starts with the assistant, and the chat template does not "
                             "show where that turn's text begins",
                             f"start the row with a user's message, or {_MARKS_REMEDY}")
            said = min((start for start, _ in self.said[i]), default=stretch[1])
            if (at := self.text.find(heading, stretch[0], said)) >= 0:
                return at + len(heading)
        else:
            before = self._prompt(self.messages[:i])
            heading = before.text[before.tail or 0:]
            if self.text.startswith(before.text) and \
                    stretch[0] <= len(before.text) <= stretch[1]:
                if before.tail == len(before.text):  # a prompt that lacks what the turn has
                    heading = self._usual_heading()
                    if self.text.startswith(heading, before.tail):
                        return before.tail + len(heading)
                return len(before.text)
            if before.tail is None:
                raise self._refusal(i)
        given = _common_start(heading, self.text[slice(*stretch)])
        rest = heading[len(given):]
        names = re.search(r"\w", re.sub(r"<[^<>\s]+>", "", rest))
        if heading and (not given or (names and not re.match(r"<[^<>\s]+>", rest))):
            raise self._refusal(i)  # the turn has another heading than its prompt
        return stretch[0] + len(given)

    def _prompt(self, messages: list[dict[str, Any]]) -> Trace:
        return trace(self.program, {**self.values, "messages": messages,
                                    "add_generation_prompt": True}, None)

    def _usual_heading(self) -> str:
        """What the prompt for an answer to a question adds to the question."""
        if "text" not in self.heading:
            asked = self._prompt([{"role": "user", "content": "-"}])
            self.heading["text"] = asked.text[asked.tail:] if asked.tail is not None else ""
        return self.heading["text"]

    def _between_prefixes(self, i: int) -> Range:
        """Message `i` as what it adds to the prompt for it, where nothing is rewritten later."""
        if i == 0:
            raise self._refusal(i)
        before = self.program.render({**self.values, "messages": self.messages[:i],
                                      "add_generation_prompt": True})
        after = self.program.render({**self.values, "messages": self.messages[: i + 1]})
        if not (self.text.startswith(after) and after.startswith(before)):
            raise self._refusal(i)
        return len(before), len(after)

    def _close(self, start: int, end: int) -> int:
        """Where the turn ends: white space after the closing token belongs to the template."""
        said = self.text[start:end].rstrip()
        if said.endswith(self.special):
            return start + len(said)
        if self.eos and self.text.startswith(self.eos, end):  # written after the turn
            return end + len(self.eos)
        raise BadRow(
            "the chat template does not close the assistant's turn with a special token, so the "
            "model would never learn to stop",
            f"the turn ends with {said[-20:]!r}, of which this tokenizer knows no special token; "
            "give a template that fits in data.chat_template",
        )

    def _with_closing(self, i: int, end: int) -> int:
        """`end`, moved behind the special tokens with which the template closes turn `i` there."""
        if not self.text.startswith(self.special, end):
            return end
        limit = max((stop for _, stop in self.found.turns.get(i, ())), default=end)
        while token := next((each for each in self.special if self.text.startswith(each, end)
                             and end + len(each) <= limit), ""):
            end += len(token)
        return end

    def _closes(self, at: int) -> bool:
        """Whether the text ends after `at` with an end of sequence and nothing else."""
        return self.eos is not None and self.text[at:].strip() == self.eos

    def _turn(self, i: int, pieces: list[Range], end: int) -> Turn:
        """A turn that is proven to hold what the assistant says."""
        pieces[-1] = pieces[-1][0], end
        start = pieces[0][0]
        for begin, stop in self.said[i]:
            begin = max(begin, start)  # what the prompt holds is not learnt
            if begin < stop and not any(a <= begin and stop <= b for a, b in pieces):
                raise self._refusal(i)
        stop = max([stop for _, stop in self.said[i]], default=start)
        if stop > start and self.closing_run.fullmatch(self.text, stop, end):
            return Turn(tuple(pieces), stop)
        return Turn(tuple(pieces), max([end - len(token) for token in self.special if
                                        self.text.startswith(token, end - len(token))],
                                       default=end))

    def _strangers(self, i: int, turn: Turn) -> bool:
        """Whether the text of another message stands in `turn`."""
        return any(start < at < end for where in (self.found.contents, self.found.reasonings)
                   for j, places in where.items() if j != i
                   for at in places for start, end in turn.pieces)

    def _refusal(self, i: int) -> BadRow:
        return BadRow(f"the chat template rewrites earlier turns (at message {i + 1}), so what the "
                      "assistant says cannot be told apart exactly", _MARKS_REMEDY)


def _common_start(heading: str, text: str) -> str:
    """What both begin with. A tag such as <think> is common as a whole or not at all."""
    length = 0
    for one, other in zip(_PIECES.finditer(heading), _PIECES.finditer(text), strict=False):
        if one[0] != other[0]:
            break
        length = one.end()
    return heading[:length]
