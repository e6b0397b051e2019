"""What every section of a recipe has in common."""

import re

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a recipe. Frozen; unknown keys are refused; the text of a field is its help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


def compile_pattern(pattern: str) -> None:
    """ValueError unless `pattern` is a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
