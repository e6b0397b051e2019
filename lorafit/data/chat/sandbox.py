"""The environment in which a chat template runs: jinja's sandbox, with limits.

Every loop, macro, call, filter and operator that takes time or makes something long asks the budget
first, so that no step can run away. The clock is asked at least at each item of a loop and in each
macro: in between, a template takes only as many steps as are written in it. This needs no signal
and no limit of the process, and so works in every thread and leaves other threads alone.
"""

import json
import re
import time
from collections.abc import Callable, Iterable
from datetime import date
from functools import wraps
from itertools import islice
from types import BuiltinMethodType, GeneratorType
from typing import Any

from jinja2 import TemplateError, ext, pass_context
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lorafit.data.chat.instrument import PREFIX, GenerationTag, Instrument

TIME_S = 5.0
"""Longest time of one rendering, unless a program is given another."""
TEXT_CHARACTERS = 1 << 26
"""Longest rendered text."""
WORK_CHARACTERS = 1 << 28
"""Characters and list items that one rendering may produce on the way, all in all."""
LARGEST_ARGUMENT = 100_000
"""Largest number given to a method or filter, such as a width."""
LARGEST_INTEGER_BITS = 1 << 14
PIECES = 1 << 10  # of text, after which their length is looked at

# What can make much out of little: the product of the sizes bounds the result.
_GROWING = {"batch", "center", "expandtabs", "indent", "join", "ljust",
            "replace", "rjust", "slice", "tojson", "translate", "wordwrap", "xmlattr", "zfill"}

# What makes an object of each word, line or character, which costs far more than its text.
_PIECEWISE = {"list", "title", "urlize", "wordcount", "wordwrap"}
PIECE_CHARACTERS = 60

Mark = Callable[[str, int, Any], str]
"""From what begins or ends, the number of the loop, and its item, to text that is written there."""


class LimitReached(Exception):
    """The template takes too long or makes too much."""


class TookTooLong(LimitReached):
    """The time of one rendering has run out."""


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one template, with a budget of time and text for each rendering."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, today: date, time_s: float) -> None:
        self._time_s = time_s
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False,
                         finalize=self.written, extensions=[GenerationTag, ext.loopcontrols])
        self.filters = {name: self._bounded(name, each) for name, each in self.filters.items()}
        self.filters["tojson"] = self._bounded("tojson", _to_json)
        self.filters |= {PREFIX + each.__name__: each
                         for each in (self.mark, self.timed, self.concatenated, self.cut)}
        self.globals.pop("lipsum")
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda form: self.counted(today.strftime(form))
        self.end()

    def begin(self, mark: Mark | None) -> None:
        self._write_mark = mark
        self._deadline_s = time.monotonic() + self._time_s
        self._work_left = WORK_CHARACTERS

    def end(self) -> None:
        self._write_mark = None
        self._deadline_s, self._work_left = float("inf"), WORK_CHARACTERS

    def compiled(self, source: str) -> Any:
        tree = Instrument().visit(self.parse(source))
        code = self.compile(tree)
        return self.template_class.from_code(self, code, {})

    def spend(self, amount: int) -> None:
        """Take `amount` from the budget. LimitReached when it, or the time, has run out."""
        self._work_left -= amount
        if self._work_left < 0:
            raise LimitReached("it produces too much text")
        if time.monotonic() > self._deadline_s:
            raise TookTooLong(f"it takes longer than {self._time_s:g} s")

    def counted(self, value: Any) -> Any:
        """`value`, with the length of its text taken from the budget."""
        if isinstance(value, str):
            self.spend(len(value) + 1)
        elif isinstance(value, dict):
            self.spend(1)
            for key, item in value.items():
                self.counted(key)
                self.counted(item)
        elif isinstance(value, list | tuple | set | frozenset):
            self.spend(1)
            for item in value:
                self.counted(item)
        else:
            self.spend(len(value) if isinstance(value, range) else 1)
        return value

    def written(self, value: Any) -> Any:
        """`counted`, sooner for text: the clock is left to the loop that the text is written in."""
        if type(value) is not str:
            return self.counted(value)
        self._work_left -= len(value) + 1
        if self._work_left < 0:
            self.spend(0)
        return value

    def concat(self, pieces: Iterable[str], limit: int = WORK_CHARACTERS) -> str:
        kept: list[str] = []
        length = 0
        waiting = iter(pieces)
        while some := list(islice(waiting, PIECES)):
            length += sum(map(len, some))
            if length > limit:
                raise LimitReached(f"its text is longer than {limit} characters")
            kept += some
            if len(some) < PIECES:
                break
        self.spend(length)
        return "".join(kept)

    # What the instrumented template calls. With a context, they are never called to find constants.

    @pass_context
    def mark(self, _: Any, kind: str, loop: int = 0, item: Any = None) -> str:
        if time.monotonic() > self._deadline_s:
            self.spend(0)
        return self._write_mark(kind, loop, item) if self._write_mark else ""

    @pass_context
    def timed(self, _: Any, value: Any) -> Any:
        self.spend(1)
        return value

    @pass_context
    def concatenated(self, _: Any, *parts: Any) -> str:
        return "".join([str(self.written(part)) for part in parts])

    @pass_context
    def cut(self, _: Any, value: Any, start: Any, stop: Any, step: Any) -> Any:
        part = value[start:stop:step]
        self.spend(len(part) + 1)
        return part

    # What jinja's sandbox calls

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            self._work_left -= len(left) + len(right)
            if self._work_left < 0:
                self.spend(0)
            return left + right
        whole = isinstance(left, int) and isinstance(right, int)
        if operator == "+" and not whole:
            self.spend(_length(left) + _length(right))
        elif operator == "*" and whole:
            _check_bits(left.bit_length() + right.bit_length())
        elif operator == "*":
            self.spend(_size_of_factor(left) * _size_of_factor(right))
        elif operator == "**" and whole:
            _check_bits(left.bit_length() * abs(right))
        elif operator == "%" and isinstance(left, str):
            self._check_format(left, (right,))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        if isinstance(method, BuiltinMethodType):
            args = tuple(list(arg) if isinstance(arg, GeneratorType) else arg for arg in args)
            owner = method.__self__
            if method.__name__ in ("format", "format_map"):
                __self._check_format(str(owner), (*args, *kwargs.values()))
            elif method.__name__ in _GROWING:
                __self._check_growth(owner, (*args, *kwargs.values()))
            elif method.__name__ in ("split", "rsplit", "splitlines") and isinstance(owner, str):
                __self.spend(len(owner) + PIECE_CHARACTERS * _pieces(owner, *args[:1]))
            else:
                _check_arguments((*args, *kwargs.values()))
                __self.spend(_length(owner) + 1)
        return super().call(__context, __obj, *args, **kwargs)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        raise SecurityError(f"it may not look at {attribute!r}")

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The filter `function` with its work taken from the budget."""
        position = 1 if hasattr(function, "jinja_pass_arg") else 0  # of the value

        @wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            value, others = args[position], (*args[position + 1:], *kwargs.values())
            if isinstance(value, GeneratorType):
                value = list(value)
                args = (*args[:position], value, *args[position + 1:])
            if name in _PIECEWISE and isinstance(value, str):
                self.spend(PIECE_CHARACTERS * len(value))
            if name == "format":
                self._check_format(str(value), others)
            elif name in _GROWING:
                self._check_growth(value, others)
            else:
                _check_arguments(others)
                self.counted(value)
            return function(*args, **kwargs)

        return bounded

    def _check_growth(self, value: Any, arguments: Iterable[Any]) -> None:
        """Take from the budget what a growing operation on `value` can make at most."""
        arguments = tuple(arguments)
        _check_arguments(arguments)
        before = self._work_left
        self.counted(value)
        bound = before - self._work_left
        for argument in arguments:
            before = self._work_left
            self.counted(argument)
            size = before - self._work_left
            bound *= max(1, size, argument if isinstance(argument, int) else 1)
        self.spend(bound)

    def _check_format(self, form: str, arguments: Iterable[Any]) -> None:
        self.spend(sum(int(width[:9]) for width in re.findall(r"\d+", form)))
        self._check_growth(form, arguments)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple | dict) else 0


def _pieces(text: str, separator: Any = None) -> int:
    """About how many pieces a text is split into, at most."""
    if isinstance(separator, str) and separator:
        return text.count(separator) + 1
    return len(text) // 4


def _size_of_factor(value: Any) -> int:
    return max(0, value) if isinstance(value, int) else _length(value)


def _check_arguments(arguments: Iterable[Any]) -> None:
    for argument in arguments:
        if isinstance(argument, int) and abs(argument) > LARGEST_ARGUMENT:
            raise LimitReached(f"it asks for {argument} of something")


def _check_bits(bits: int) -> None:
    if bits > LARGEST_INTEGER_BITS:
        raise LimitReached("it computes with numbers that are too large")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
             separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    """JSON without the escapes for HTML that jinja's own filter makes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)
