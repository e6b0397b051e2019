"""Shapes that rows come in, each a module that turns a row into one internal form.

A new format is one new module with `NAME`, `ROLES`, `REQUIRED` and `convert`, and its place in
FORMATS.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from lorafit.data.examples import BadRow, Example
from lorafit.data.formats import alpaca, chat, prompt_completion, text
from lorafit.data.sources import Row, problems_error
from lorafit.errors import Problem, UserError

Mapping = dict[str, str]  # role of a column -> its name in the file


@dataclass(frozen=True)
class Format:
    """A shape of row: its `roles` with their usual column names, and the conversion."""

    name: str
    roles: dict[str, tuple[str, ...]]
    required: tuple[str, ...]
    convert: Callable[[dict[str, Any], Mapping], Example]

    def mapping(self, first: Collection[str], columns: Collection[str],
                given: Mapping) -> Mapping | None:
        """Which column plays which role; None when the first row lacks a required one.

        A column that is not required may stand in later rows only.
        """
        found = {}
        for role, usual in self.roles.items():
            candidates = first if role in self.required else columns
            if role in given:
                found[role] = given[role]
            elif name := next((name for name in usual if name in candidates), None):
                found[role] = name
        return found if all(role in found for role in self.required) else None


FORMATS = {
    module.NAME: Format(module.NAME, module.ROLES, module.REQUIRED, module.convert)
    for module in (chat, prompt_completion, alpaca, text)  # the first that fits is taken
}


def choose_format(rows: Sequence[Row], name: str,
                  given: Mapping) -> tuple[Format, Mapping, str]:
    """The format of a data set by its first row, the column mapping, and the reason.

    `name` is `auto` or a format; `given` is the recipe's column mapping.
    """
    row = rows[0]
    columns = ", ".join(row.fields)
    everywhere = dict.fromkeys(column for row in rows for column in row.fields)
    if missing := [column for column in given.values() if column not in everywhere]:
        raise UserError(
            f"has no column {missing[0]}; its columns are {columns}", row.where,
            "correct data.columns",
        )
    candidates = FORMATS.values() if name == "auto" else [FORMATS[name]]
    roles = {role for candidate in candidates for role in (*candidate.roles, "system")}
    if unused := [role for role in given if role not in roles]:
        raise UserError(f"format {name} has no use for the column {given[unused[0]]}",
                        f"data.columns.{unused[0]}", "leave it out, or change data.format")
    for candidate in candidates:
        if not set(given) <= {*candidate.roles, "system"}:
            continue
        mapping = candidate.mapping(row.fields, everywhere, given)
        if mapping is not None:
            if "system" in given:
                mapping["system"] = given["system"]
            named = ", ".join(dict.fromkeys(mapping.values()))
            how = "named in the recipe" if name != "auto" else f"the rows have {named}"
            return candidate, mapping, how
    if name == "auto":
        raise UserError(
            f"no known format has the columns {columns}", row.where,
            "map them, for example --set data.columns.prompt=question "
            "--set data.columns.completion=answer",
        )
    wanted = ", ".join(FORMATS[name].required)
    raise UserError(
        f"format {name} needs {wanted}, but the columns are {columns}", row.where,
        f"map them with data.columns.{FORMATS[name].required[0]}=COLUMN, or change data.format",
    )


def convert_rows(rows: list[Row], chosen: Format, mapping: Mapping) -> list[Example]:
    """Rows in the internal form. UserError naming every row that does not fit."""
    examples: list[Example] = []
    problems: list[Problem] = []
    for row in rows:
        try:
            examples.append(chosen.convert(row.fields, mapping))
        except BadRow as bad:
            problems.append(Problem(bad.what, row.where, bad.remedy))
    if problems:
        raise problems_error(problems, len(rows))
    return examples
