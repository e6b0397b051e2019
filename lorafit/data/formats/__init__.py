"""Shapes that rows come in, each a module that turns a row into one internal form.

A new format is one new module with `NAME`, `ROLES`, `REQUIRED`, `recognise` and `convert`, and its
place in FORMATS.
"""

import difflib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from lorafit.data.examples import BadRow, Example
from lorafit.data.formats import (
    alpaca,
    chat,
    judged,
    preference,
    prompt_completion,
    sharegpt,
    text,
)
from lorafit.data.rows import Place, Row
from lorafit.errors import Problem, UserError

Mapping = dict[str, str]  # role of a column -> its name in the file


@dataclass(frozen=True)
class Format:
    """A shape of row: its `roles` with their usual column names, and the conversion.

    required: sets of roles, of which a row needs one. recognise: what a row has, in a few words,
    when its values are this format's. convert: a row in the internal form, or BadRow.
    """

    name: str
    roles: dict[str, tuple[str, ...]]
    required: tuple[tuple[str, ...], ...]
    recognise: Callable[[dict[str, Any], Mapping], str | None]
    convert: Callable[[dict[str, Any], Mapping], Example]

    def mapping(self, first: Collection[str], columns: Collection[str],
                given: Mapping) -> Mapping | None:
        """Which column plays which role; None when the first row lacks a required one.

        A column that is not required may stand in later rows only, after those looked at here:
        its usual name is taken, so that it is not passed over when it comes.
        """
        found = dict(given)
        for role, usual in self.roles.items():
            candidates = first if role in self._needed else columns
            name = next((name for name in usual if name in candidates), None)
            if name is None and role not in self._needed and usual[0] not in given.values():
                name = usual[0]
            if name is not None:
                found.setdefault(role, name)
        return found if any(found.keys() >= set(roles) for roles in self.required) else None

    def example(self, fields: dict[str, Any], mapping: Mapping) -> Example:
        """A row in the internal form. Columns that it may lack, and lacks, are not looked for."""
        here = {role: column for role, column in mapping.items()
                if role in self._needed or column in fields}
        return self.convert(fields, here)

    @property
    def _needed(self) -> set[str]:
        return {role for roles in self.required for role in roles}


FORMATS = {
    module.NAME: Format(module.NAME, module.ROLES, module.REQUIRED, module.recognise,
                        module.convert)
    for module in (preference, judged, chat, sharegpt, alpaca, prompt_completion, text)
}  # the first that fits is taken


def choose_format(rows: Sequence[Row], name: str,
                  given: Mapping) -> tuple[Format, Mapping, str]:
    """The format of a data set by its first row, the column mapping, and the reason.

    `name` is `auto` or a format; `given` is the recipe's column mapping. A format whose values the
    first row has goes before one of which it only has the columns.
    """
    first = rows[0]
    everywhere = dict.fromkeys(column for row in rows for column in row.fields)
    candidates = list(FORMATS.values()) if name == "auto" else [FORMATS[name]]
    _check_given(first, everywhere, candidates, name, given)
    fitting = [
        (candidate, mapping) for candidate in candidates if candidate.roles.keys() >= given.keys()
        and (mapping := candidate.mapping(first.fields, everywhere, given)) is not None
    ]
    if not fitting:
        raise _unknown(first, candidates, name)
    if name != "auto":
        return *fitting[0], "named in the recipe"
    for candidate, mapping in fitting:
        here = {role: column for role, column in mapping.items() if column in everywhere}
        if (has := candidate.recognise(first.fields, here)) is not None:
            return candidate, mapping, f"the rows have {has}"
    candidate, mapping = fitting[0]
    columns = [column for column in dict.fromkeys(mapping.values()) if column in everywhere]
    return candidate, mapping, f"the rows have {', '.join(columns)}"


def convert_rows(rows: Sequence[Row], chosen: Format,
                 mapping: Mapping) -> tuple[list[tuple[Example, Place]], list[Problem]]:
    """Rows in the internal form with their places, and a problem for each that does not fit."""
    examples: list[tuple[Example, Place]] = []
    problems: list[Problem] = []
    for row in rows:
        try:
            examples.append((chosen.example(row.fields, mapping), row.place))
        except BadRow as bad:
            problems.append(Problem(bad.what, row.where, bad.remedy))
    return examples, problems


def _check_given(first: Row, everywhere: Collection[str], candidates: Sequence[Format], name: str,
                 given: Mapping) -> None:
    """UserError for a mapping to a column that no row has, or of a role that nothing uses."""
    for role, column in given.items():
        if column not in everywhere:
            close = difflib.get_close_matches(column, everywhere, 1, 0.6)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"has no column {column}; its columns are {', '.join(first.fields)}",
                            first.where, f"correct data.columns.{role}{hint}")
        if not any(role in candidate.roles for candidate in candidates):
            raise UserError(f"format {name} has no use for the column {column}",
                            f"data.columns.{role}", "leave it out, or change data.format")


def _unknown(first: Row, candidates: Sequence[Format], name: str) -> UserError:
    """The error for columns that fit no candidate, with a mapping to try."""
    columns = ", ".join(first.fields)
    similar = _similar_column(first.fields, candidates)
    if name == "auto":
        example = similar or "prompt=question --set data.columns.completion=answer"
        return UserError(f"no known format has the columns {columns}", first.where,
                         f"map them, for example --set data.columns.{example}")
    required = FORMATS[name].required
    wanted = " or ".join(", ".join(roles) for roles in required)
    example = similar or f"{required[0][0]}=COLUMN"
    return UserError(f"format {name} needs {wanted}, but the columns are {columns}", first.where,
                     f"map them with data.columns.{example}, or change data.format")


def _similar_column(columns: Collection[str], candidates: Sequence[Format]) -> str | None:
    """`role=column` for a column whose name is nearly a usual one of a required role."""
    for candidate in candidates:
        for role in dict.fromkeys(role for roles in candidate.required for role in roles):
            for usual in candidate.roles[role]:
                close = difflib.get_close_matches(usual, columns, 1, 0.8)
                if close and close[0] not in candidate.roles[role]:
                    return f"{role}={close[0]}"
    return None
