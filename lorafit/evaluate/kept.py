"""Evaluations on disk, and what can be compared of several."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorafit.errors import UserError
from lorafit.evaluate.contenders import Subject
from lorafit.evaluate.result import (
    FORMAT,
    Asked,
    Difference,
    Evaluation,
    Reply,
    Score,
    difference,
    summary,
)
from lorafit.evaluate.statistics import Interval
from lorafit.json_files import read_object
from lorafit.run_dir import RunDir, write_json


@dataclass(frozen=True)
class Side:
    """One model of one evaluation, beside the first one's.

    difference: less the first evaluation's model, None where the two cannot be compared; why_not
    says why, for the answers and for the losses.
    """

    where: str
    evaluation: str
    made: str
    score: Score
    difference: Difference | None = None
    why_not: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """Several evaluations side by side; the first is what the others are compared with."""

    measured_by: str
    sides: list[Side]


def keep(result: Evaluation, subject: Subject, name: str | None = None) -> Path | None:
    """Write an evaluation into its run, under `name` or its own; None where there is no run."""
    if subject.run is None:
        return None
    subject.run.evaluations.mkdir(exist_ok=True)
    path = subject.run.evaluations / f"{name or result.name}.json"
    write_json(path, result.as_dict())
    if not subject.label:
        write_json(subject.run.evaluation, {**summary(result), "evaluation": str(
            path.relative_to(subject.run.path))})
    return path


def compare(paths: Sequence[Path], name: str | None = None) -> Comparison:
    """Evaluations of several runs (or files written with --json), side by side.

    Without a name it is the newest one that was made of the same rows in the same way in every run;
    where there is none, the newest of each, and what cannot be compared says why.
    """
    found = [evaluations(path, "rows", name) for path in paths]
    common = set.intersection(*({values["key"] for values in each} for each in found))
    chosen = [max((values for values in each if not common or values["key"] in common),
                  key=lambda values: values["made"]) for each in found]
    first = _main_model(chosen[0])
    sides: list[Side] = []
    bases: set[str] = set()
    for path, values in zip(paths, chosen, strict=True):
        scores = {score["name"]: _score(score) for score in values["scores"]}
        base = scores.get("base")
        if base is not None and base.path not in bases:
            bases.add(base.path)
            sides.append(_side(path, values, base, chosen[0], first))
        main = scores[_main_model(values)]
        if values is chosen[0]:
            sides.append(Side(str(path), values["name"], values["made"], main))
        else:
            sides.append(_side(path, values, main, chosen[0], first))
    return Comparison(chosen[0]["measured_by"], sides)


def _side(path: Path, values: dict[str, Any], score: Score, first: dict[str, Any],
          against: str) -> Side:
    why_not = _why_not(values, first)
    found = None
    if values["rows_digest"] == first["rows_digest"]:
        same_tokens = values["tokens_digest"] == first["tokens_digest"]
        found = difference(_rows(values), _rows(first), score.name, against,
                           of_the_same_tokens=same_tokens,
                           of_the_same_answers=values["key"] == first["key"])
    return Side(str(path), values["name"], values["made"], score, found, why_not)


def _why_not(values: dict[str, Any], first: dict[str, Any]) -> list[str]:
    """Why some of two evaluations cannot be compared."""
    if values["rows_digest"] != first["rows_digest"]:
        return [f"other rows: {len(values['rows']):,} from {values['source']}, not "
                f"{len(first['rows']):,} from {first['source']}"]
    reasons = []
    if values["key"] != first["key"]:
        changed = [f"{key} {values['settings'].get(key)!r}, not {given!r}"
                   for key, given in first["settings"].items()
                   if values["settings"].get(key) != given and key not in ("rows", "batch_size")]
        reasons.append(f"answers counted in another way: {'; '.join(changed)}")
    if values["tokens_digest"] != first["tokens_digest"]:
        reasons.append("losses of other tokens: another tokenizer, chat template or mask")
    return reasons


def evaluations(path: Path, kind: str, name: str | None) -> list[dict[str, Any]]:
    """The evaluations that a run keeps, or the one in a file. kind: rows or tasks.

    UserError where there is none.
    """
    folder = RunDir(path).evaluations
    files = [path] if path.is_file() else [
        file for file in sorted(folder.glob("*.json")) if name in (None, file.stem)]
    read = [values for values in map(_read, files) if values["kind"] == kind]
    if not read:
        what = "held-out rows" if kind == "rows" else "tasks"
        called = f" called {name}" if name else ""
        raise UserError(f"has no evaluation of {what}{called}", str(path), "make one: lorafit eval "
                        f"RUN{' --tasks TASK' if kind == 'tasks' else ''}"
                        f"{f' --name {name}' if name else ''}")
    return read


def _read(path: Path) -> dict[str, Any]:
    remedy = "name runs, or files written by `lorafit eval … --json FILE`"
    try:
        values = read_object(path, remedy)
    except UserError as error:
        raise UserError(f"is no evaluation: {error.problems[0].what}", str(path), remedy) from None
    if "kind" not in values:
        raise UserError("is no evaluation", str(path), remedy)
    if values.get("format") != FORMAT:
        raise UserError("was written by another version of lorafit", str(path),
                        "evaluate again with this one")
    return values


def _main_model(values: dict[str, Any]) -> str:
    """The model that an evaluation is about."""
    names = [score["name"] for score in values["scores"]]
    return "adapter" if "adapter" in names else str(names[0])


def _score(values: dict[str, Any]) -> Score:
    intervals = {key: Interval(**values[key]) for key in ("accuracy_interval", "loss_interval")}
    return Score(**{**values, **intervals})


def _rows(values: dict[str, Any]) -> list[Asked]:
    return [Asked(**{**row, "replies": {name: Reply(**reply)
                                        for name, reply in row["replies"].items()}})
            for row in values["rows"]]
