"""Giving a module of a model another forward pass, and taking it back.

The module's class becomes a subclass of its own that has the form mixed in, so everything but the
forward pass stays what it was, and the form can hand what is unusual to the class's own.
"""

from collections.abc import Callable
from functools import cache
from typing import Any


def take_form(module: Any, form: type, **attributes: Any) -> Callable[[], None]:
    """Mix `form` into a module's class and set its attributes. What is returned undoes it."""
    before: Any = type(module)
    module.__class__ = _with_form(before, form)
    for name, value in attributes.items():
        setattr(module, name, value)

    def undo() -> None:
        module.__class__ = before
        for name in [name for name in vars(module) if name.startswith("lorafit_")]:
            del module.__dict__[name]

    return undo


@cache
def _with_form(kind: type, form: type) -> type:
    return type(kind.__name__, (form, kind), {})
