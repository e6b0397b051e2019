"""Runs a chat template: a program that came with somebody's model."""

import re
import threading
from datetime import date
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from lorafit.data.chat.sandbox import TEXT_CHARACTERS, TIME_S, Mark, Sandbox, TookTooLong
from lorafit.data.examples import BadRow
from lorafit.errors import UserError

MOST_LATE = 3
"""Rows in succession for which a template may take too long: each of them costs all its time."""


class Program:
    """A compiled chat template. `today` is what it is told when it asks for the date, `time_s` the
    longest time of one rendering.

    The first rendering compiles it, so that a broken template is found where a row needs it.
    """

    def __init__(self, source: str, today: date, time_s: float = TIME_S) -> None:
        self.has_marks = bool(re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", source))
        self._source = source
        self._sandbox = Sandbox(today, time_s)
        self._compiled: Any = None
        self._lock = threading.Lock()
        self._late = 0

    def broken(self) -> str | None:
        """Why it cannot be compiled, None when it can."""
        try:
            self._sandbox.compiled(self._source)
        except Exception as error:
            return f"{_reason(error)}{_line(error)}"
        return None

    def render(self, values: dict[str, Any], mark: Mark | None = None) -> str:
        """The text for `values` (messages, tools and so on). BadRow when the template fails.

        `mark` writes something at the beginning of each turn of a loop and at its end, and around
        what the template itself marks as generated.
        """
        with self._lock:
            try:
                self._sandbox.begin(mark)
                if self._compiled is None:
                    self._compiled = self._sandbox.compiled(self._source)
                    self._globals = dict(self._sandbox.globals)
                context = self._compiled.new_context({**self._globals, **values}, shared=True)
                text = self._sandbox.concat(self._compiled.root_render_func(context),
                                            TEXT_CHARACTERS)
                self._late = 0
                return text
            except Exception as error:
                self._late += isinstance(error, TookTooLong)
                if self._late == MOST_LATE:
                    raise UserError(
                        f"the chat template is too slow in row after row: {_reason(error)}"
                        f"{_line(error)}", "data.chat_template", "give another template",
                    ) from None
                raise BadRow(
                    f"the chat template refuses the row: {_reason(error)}{_line(error)}",
                    "mend the row, or give another template in data.chat_template",
                ) from None
            finally:
                self._sandbox.end()


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it calls itself too often"
    if isinstance(error, MemoryError):
        return "it takes too much memory"
    return (error.message if isinstance(error, TemplateError) else str(error)) \
        or type(error).__name__


def _line(error: Exception) -> str:
    """Where in the template, as far as jinja knows."""
    line = error.lineno if isinstance(error, TemplateSyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        template = trace.tb_frame.f_globals.get("__jinja_template__")
        if template is not None:
            line = template.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    return f" (line {line} of the template)" if line else ""
