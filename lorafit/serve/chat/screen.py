"""Where answers appear: as they come, side by side on a terminal, one after the other in a pipe."""

import sys
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lorafit.serve.chat.speakers import Ended, Event

_ROOM = 4  # lines of a table that are not text
_CUT = " […]"  # after an answer that reached its longest length


class Screen:
    """Prints answers and remarks. is_terminal: whether somebody looks at it as it is written."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty()
        self._console = Console(highlight=False, soft_wrap=True)

    def tell(self, text: str) -> None:
        """What a command has to say."""
        if text:
            self._console.print(text, markup=False, style="dim" if self.is_terminal else None)

    def complain(self, text: str) -> None:
        print(f"error: {text}", file=sys.stderr, flush=True)

    def answers(self, names: Sequence[str], events: Iterator[Event], answers: list[str]) -> None:
        """Show answers as they come, and put what came into `answers`, which stays as it is when
        this is interrupted."""
        if len(names) == 1:
            self._one(events, answers)
        elif self.is_terminal:
            self._beside(names, events, answers)
        else:
            self._after(names, events, answers)

    def _one(self, events: Iterator[Event], answers: list[str]) -> None:
        try:
            for _, event in events:
                if isinstance(event, Ended):
                    self._ended(event)
                    return
                answers[0] += event
                print(event, end="", flush=True)
        finally:
            print(flush=True)

    def _ended(self, event: Ended) -> None:
        if event.reason == "length":
            print(_CUT, end="", flush=True)

    def _beside(self, names: Sequence[str], events: Iterator[Event], answers: list[str]) -> None:
        """A column each. While they grow, the end of what does not fit is what is seen."""
        height = max(3, self._console.height - _ROOM)
        cut = [""] * len(names)
        try:
            with Live(console=self._console, transient=True, auto_refresh=False) as live:
                for index, event in events:
                    if not isinstance(event, Ended):
                        answers[index] += event
                    elif event.reason == "length":
                        cut[index] = _CUT
                    live.update(_table(names, answers, cut, height), refresh=True)
        finally:
            self._console.print(_table(names, answers, cut, None))

    def _after(self, names: Sequence[str], events: Iterator[Event], answers: list[str]) -> None:
        cut = [""] * len(names)
        for index, event in events:
            if not isinstance(event, Ended):
                answers[index] += event
            elif event.reason == "length":
                cut[index] = _CUT
        for name, answer, mark in zip(names, answers, cut, strict=True):
            print(f"{name}: {answer}{mark}", flush=True)


def _table(names: Sequence[str], answers: Sequence[str], marks: Sequence[str],
           height: int | None) -> Table:
    table = Table(expand=True)
    for name in names:
        table.add_column(name, ratio=1, overflow="fold")
    texts = answers if height is None else [
        "\n".join(answer.splitlines()[-height:]) for answer in answers]
    table.add_row(*(Text(text + mark) for text, mark in zip(texts, marks, strict=True)))
    return table
