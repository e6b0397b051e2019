"""A first look at the recipe's data: what is wrong is said before anything heavy is imported.

Nothing here needs a tokenizer, and no source is read as a whole: a file of many gigabytes is read
once, when its rows are tokenised (data/reading.py).
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

from lorafit.data.answers import empty_answer, nothing_trained
from lorafit.data.examples import Example, trained_part
from lorafit.data.formats import choose_format, convert_rows
from lorafit.data.given import (
    FIRST_ROWS,
    Given,
    first_rows,
    first_usable,
    sources_of,
    unusable,
)
from lorafit.data.rows import MAX_EXAMPLES, Place
from lorafit.data.sources import RawBlock, open_blocks, parse_block, source_files
from lorafit.errors import Problem, UserError
from lorafit.recipe.schema import Data

LOOK_ROWS = 5000  # of each source
LOOK_S = 0.5  # for all sources together, and at least the first block of each
PLACES_SHOWN = 3

_CHECKS = {"empty_answer": empty_answer, "no_supervised_token": nothing_trained}


def look_at(data: Data, *, checks: bool = True) -> list[Problem]:
    """What is wrong with the sources of a recipe, as far as their first rows show it.

    Each that is no hub data set is looked for, its format chosen, and up to LOOK_ROWS of its rows
    read and converted. Without `checks` only FIRST_ROWS of each, and nothing that the recipe's
    checks of rows are about.
    """
    until_s = time.monotonic() + LOOK_S
    problems: list[Problem] = []
    for given in (*sources_of(data, "train"), *sources_of(data, "eval")):
        if given.location.is_hub:
            continue
        try:
            problems += _look(given, data if checks else None, until_s)
        except UserError as error:
            problems += error.problems
    if problems or not checks:
        return list(dict.fromkeys(problems))
    return _held_out_and_trained(data)


def _look(given: Given, data: Data | None, until_s: float) -> list[Problem]:
    """What the checks of single rows object to, by the recipe's section, where it is given.

    UserError when the source is missing, empty, or one of its first rows does not fit.
    """
    chosen, mapping, _ = choose_format(first_usable(given), given.format, given.columns)
    if given.location.has_splits:
        return []
    problems: list[Problem] = []
    found: dict[str, list[tuple[Place, str]]] = defaultdict(list)
    rows = 0
    try:
        for block in _blocks(given, FIRST_ROWS if data is None else LOOK_ROWS, until_s):
            parsed, unread = parse_block(block)
            examples, misfits = convert_rows(parsed, chosen, mapping)
            problems += unread + misfits
            rows += len(block)
            if data is not None:
                _check(examples, data, found)
    except UserError as error:
        if given.may_drop or not problems:
            raise
        raise UserError(problems=[*problems[:MAX_EXAMPLES], *error.problems]) from None
    if problems and not given.may_drop:
        raise unusable(problems, rows, len(problems))
    return [_finding(check, rows_found) for check, rows_found in found.items()]


def _blocks(given: Given, most_rows: int, until_s: float) -> Iterator[RawBlock]:
    blocks = open_blocks(given.location, default_split=given.split, block_rows=FIRST_ROWS)
    limit = most_rows if given.limit is None else min(most_rows, given.limit)
    for block in first_rows(blocks, limit):
        yield block
        if time.monotonic() > until_s:
            return


def _check(examples: Sequence[tuple[Example, Place]], data: Data,
           found: dict[str, list[tuple[Place, str]]]) -> None:
    """Note the rows to which a check objects that stops the run."""
    for example, place in examples:
        part = trained_part(example)
        for check, find in _CHECKS.items():
            if part is not None and getattr(data.checks, check) == "error" \
                    and (why := find(part, data.train_on)) is not None:
                found[check].append((place, why))


def _finding(check: str, rows: Sequence[tuple[Place, str]]) -> Problem:
    several = "row is" if len(rows) == 1 else "of the first rows are"
    also = "" if check == "no_supervised_token" else " (or warn)"
    return Problem(f"{rows[0][1]}; {len(rows):,} {several} like that",
                   ", ".join(str(place) for place, _ in rows[:PLACES_SHOWN]),
                   f"mend {'it' if len(rows) == 1 else 'them'}, or "
                   f"--set data.checks.{check}=drop{also}")


def _held_out_and_trained(data: Data) -> list[Problem]:
    """Files that are given twice, to train on and to hold out, read in the same way."""
    if data.checks.overlap != "error":
        return []

    def files(which: str) -> dict[tuple[str, str, str], str]:
        return {(str(file.resolve()), given.format, str(given.columns)): str(file)
                for given in sources_of(data, which) if not given.location.is_hub
                for file in source_files(given.location)}

    trained, held_out = files("train"), files("eval")
    return [Problem("the file is trained on and held out", trained[key],
                    "hold out others, or a part: data.eval_fraction=0.05 instead of data.eval "
                    "(or --set data.checks.overlap=drop)")
            for key in trained.keys() & held_out.keys()]
