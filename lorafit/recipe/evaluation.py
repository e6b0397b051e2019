"""The section `evaluation`: how held-out rows are asked, and when an answer is right."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from lorafit.recipe.section import Section

PositiveInt = Annotated[int, Field(gt=0)]


class Evaluation(Section):
    """How `lorafit eval` asks held-out rows and counts answers. Nothing here changes training."""

    pattern: str = ""
    """Regular expression with one group that finds the answer in a text, for example
    `'#### (-?[\\d,.]+)'` for GSM8K. What it finds in the model's answer is compared with what it
    finds in the row's; numbers as numbers. Without one whole answers are compared."""
    take: Literal["last", "first"] = "last"
    """Which match counts, where the pattern finds several in one text."""
    ignore_case: bool = False
    """Upper and lower case are the same, in the pattern and in what is compared."""
    max_new_tokens: PositiveInt = 128
    """Longest answer, in tokens. Answers that reach it are counted and reported."""
    rows: PositiveInt | None = None
    """Use only the first held-out rows."""
    batch_size: PositiveInt = 32
    """Rows answered at once. Halved by itself where they do not fit into the device's memory."""

    @field_validator("pattern", mode="before")
    @classmethod
    def _written_in_quotes(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("is empty; YAML takes what follows # for a comment, so put the "
                             "pattern in quotes, for example '#### (-?[\\d,.]+)'")
        return value

    @field_validator("pattern")
    @classmethod
    def _usable_pattern(cls, value: str) -> str:
        if value:
            _check_pattern(value)
        return value


def _check_pattern(pattern: str) -> None:
    """ValueError unless `pattern` is a regular expression with exactly one group."""
    import regex

    try:
        compiled = regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    if compiled.groups == 0:
        raise ValueError(f"{pattern!r} has no group, so it does not say what is compared; put the "
                         "answer's part in parentheses, for example '#### (.+)'")
    if compiled.groups > 1:
        raise ValueError(f"{pattern!r} has {compiled.groups} groups, and one is compared; write "
                         "the others as (?:…)")
