"""A row of a source, and the place it stands at."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from lorafit.errors import Problem, UserError

MAX_EXAMPLES = 10  # problems shown in full; the rest are counted


class Place(NamedTuple):
    """Where a row stands: a file (or hub data set) and a number from 1, of a line or of a row."""

    file: str
    number: int
    is_line: bool = True

    def __str__(self) -> str:
        return f"{self.file}:{self.number}" if self.is_line else f"{self.file} row {self.number}"


@dataclass(frozen=True)
class Row:
    """Columns of one row, and where it stands."""

    fields: dict[str, Any]
    place: Place

    @property
    def where(self) -> str:
        return str(self.place)


def problems_error(problems: list[Problem], total_rows: int,
                   affected: int | None = None) -> UserError:
    """One error for many bad rows: the first few in full, and how many there are.

    `affected` is their number where `problems` holds only the first.
    """
    shown = problems[:MAX_EXAMPLES]
    affected = len(problems) if affected is None else affected
    if affected > len(shown):
        shown.append(Problem(f"… {affected} of {total_rows} rows are affected in total"))
    return UserError(problems=shown)
