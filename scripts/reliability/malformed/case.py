"""One thing that a person got wrong, and what a refusal of it has to look like."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from random import Random

RECIPE = "r.yaml"
ROWS = "rows.jsonl"
MAX_MESSAGE_BYTES = 16_000  # whatever the input holds

GOOD_ROWS = (b'{"prompt": "1+1?", "completion": "2"}\n{"prompt": "2+2?", "completion": "4"}\n'
             b'{"prompt": "3+3?", "completion": "6"}\n')
GOOD_RECIPE = f"""\
model:
  base: tiny
adapter:
  rank: 4
data:
  train: {ROWS}
training:
  steps: 1
  batch_size: 2
output:
  dir: out
"""


class Special(Enum):
    """What may stand where a file is expected."""

    DIRECTORY = "directory"
    PIPE = "pipe"
    DANGLING_LINK = "dangling link"


Files = Mapping[str, bytes | Special]


@dataclass(frozen=True)
class Case:
    """A working directory and a command line that must be refused.

    files: by their path in it. place: what the message must name: a file with its line or row where
    that is certain, a file, a key or an override. arguments: after the recipe. needs_model: the
    rows are well formed, and only a tokenizer or the model's layers show what is wrong.
    """

    files: Files
    place: str
    arguments: tuple[str, ...] = ()
    needs_model: bool = False


Kind = Callable[[Random], Case]


@dataclass(frozen=True)
class Outcome:
    """How a process ended. Times in seconds: by the clock, and of the processors."""

    code: int
    stdout: str
    stderr: str
    seconds: float = 0.0
    cpu_s: float = 0.0
    written: list[str] = field(default_factory=list)


def lay_out(case: Case, folder: Path) -> None:
    """Make the working directory of a case in an empty directory."""
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is Special.DIRECTORY:
            path.mkdir()
        elif content is Special.PIPE:
            os.mkfifo(path)
        elif content is Special.DANGLING_LINK:
            path.symlink_to("gone")
        elif isinstance(content, bytes):
            path.write_bytes(content)


def with_recipe(recipe: bytes | Special, place: str, **more: bytes) -> Case:
    """A case of a recipe beside good rows."""
    return Case({ROWS: GOOD_ROWS, RECIPE: recipe, **more}, place)


def with_rows(files: Files, place: str, train: str, *arguments: str,
              needs_model: bool = False) -> Case:
    """A case of data under a good recipe whose `data.train` is `train`."""
    recipe = GOOD_RECIPE.replace(f"train: {ROWS}", f"train: {train}")
    return Case({RECIPE: recipe.encode(), **files}, place, arguments, needs_model)


def fault_of(case: Case, outcome: Outcome) -> str | None:
    """What is wrong with a refusal; None when it is as it must be."""
    said = outcome.stderr
    if outcome.code != 2:
        return f"exit code {outcome.code}: {said[-300:] or outcome.stdout[-300:]}"
    if "Traceback" in said + outcome.stdout:
        return f"a traceback: {said[-300:]}"
    if written := [path for path in outcome.written if not (case.needs_model and _is_kept(path))]:
        return f"written: {', '.join(written[:5])}"
    # A slow machine says how many rows it has tokenised.
    if not all(line.endswith("rows tokenised") for line in outcome.stdout.splitlines()):
        return f"said on the standard output: {outcome.stdout[:300]}"
    return fault_of_message(said, case.place)


def _is_kept(path: str) -> bool:
    """Whether it is of rows that could be tokenised: well formed, and refused for something that
    the recipe may allow the next time, so the cache keeps them by design."""
    return path.startswith("cache/tokens/")


def fault_of_message(said: str, place: str) -> str | None:
    """What is wrong with the text of a refusal: one message, of which each problem has a place and
    a remedy below it, and one names `place`."""
    lines = said.splitlines()
    if not said.startswith("error: ") or sum(line.startswith("error: ") for line in lines) != 1:
        return f"not one message: {said[:300]}"
    if len(said.encode("utf-8", "replace")) > MAX_MESSAGE_BYTES:
        return f"{len(said):,} characters: {said[:300]}"
    if place not in said:
        return f"does not name {place}: {said[:300]}"
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("… "):  # how many more there are
            continue
        if not line.startswith("    ") and not below.startswith("    "):
            return f"no remedy below {line[:200]!r}"
    return None
