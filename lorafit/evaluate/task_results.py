"""What tasks of lm-eval gave: values, differences question by question, and runs side by side."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lorafit.errors import UserError
from lorafit.evaluate import statistics
from lorafit.evaluate.contenders import Subject
from lorafit.evaluate.statistics import Interval
from lorafit.run_dir import write_json


@dataclass(frozen=True)
class Value:
    """What one model scored.

    difference: less the first model, None where lm-eval's value is no mean over questions.
    p_value: of McNemar's exact test, where every question is right or wrong.
    """

    model: str
    value: float
    stderr: float | None
    difference: float | None = None
    interval: Interval | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class Measure:
    """A measure of a task, of every model.

    questions: digest of what is asked. answers: of each model, its value of each question; none
    where a question has no single number.
    """

    task: str
    name: str
    rows: int
    higher_is_better: bool | None
    questions: str
    values: list[Value]
    answers: dict[str, list[float]]


@dataclass(frozen=True)
class TasksResult:
    """Everything about an evaluation by tasks."""

    format: int
    kind: str
    name: str
    key: str
    made: str
    seconds: float
    subject: str
    tasks: list[str]
    asked: str
    settings: dict[str, Any]
    task_versions: dict[str, Any]
    versions: dict[str, str]
    remarks: list[str]
    measures: list[Measure]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TasksComparison:
    """Measures that several runs have; the models of `values` are runs, the first is what the
    others are compared with."""

    measures: list[Measure]
    remarks: list[str]


def keep_tasks(result: TasksResult, subject: Subject, name: str | None) -> Path | None:
    """Write the result into the run, under `name` or its own; None where there is no run."""
    if subject.run is None:
        return None
    subject.run.evaluations.mkdir(exist_ok=True)
    path = subject.run.evaluations / f"{name or result.name}.json"
    write_json(path, result.as_dict())
    return path


def against(value: Value, answers: Sequence[float], before: Value,
            answers_before: Sequence[float]) -> Value:
    """The value with its difference from another on the same questions, where it is their mean."""
    if not answers or len(answers) != len(answers_before):
        return value
    a, b = np.array(answers), np.array(answers_before)
    if not (np.isclose(a.mean(), value.value) and np.isclose(b.mean(), before.value)):
        return value
    if set(np.unique(np.concatenate([a, b]))) <= {0.0, 1.0}:
        counts = statistics.paired(b == 1, a == 1)
        return replace(value, difference=counts.difference, interval=statistics.newcombe(counts),
                       p_value=statistics.mcnemar(counts.gained, counts.lost))
    return replace(value, difference=float((a - b).mean()),
                   interval=statistics.bootstrap_mean(a - b, np.ones(len(a))))


def compare_tasks(paths: Sequence[Path], kept: Sequence[Sequence[dict[str, Any]]],
                  tasks: Sequence[str]) -> TasksComparison:
    """Measures of `tasks` that several runs have kept; of each run the newest that has them.

    kept: what each path keeps of tasks. UserError where a run has none of them.
    """
    chosen = []
    for path, each in zip(paths, kept, strict=True):
        having = [values for values in each if set(tasks) <= set(values["tasks"])]
        if not having:
            raise UserError(f"has no evaluation of {', '.join(tasks)}", str(path),
                            f"make one: lorafit eval {path} --tasks {','.join(tasks)}")
        chosen.append(max(having, key=lambda values: values["made"]))
    measures, remarks = [], []
    first = {(m["task"], m["name"]): m for m in chosen[0]["measures"] if m["task"] in tasks}
    for (task, name), base in first.items():
        values: list[Value] = []
        answers: dict[str, list[float]] = {}
        for path, evaluation in zip(paths, chosen, strict=True):
            here = next((m for m in evaluation["measures"]
                         if (m["task"], m["name"]) == (task, name)), None)
            if here is None:
                remarks.append(f"{path}: no {name} of {task}")
                continue
            stored = here["values"][min(1, len(here["values"]) - 1)]
            value = Value(str(path), stored["value"], stored["stderr"])
            answers[str(path)] = here["answers"][stored["model"]]
            reason = _why_not(evaluation, here, chosen[0], base)
            if reason is None and values:
                value = against(value, answers[str(path)], values[0], answers[str(paths[0])])
            elif reason is not None:
                remarks.append(f"{path}: {task} not compared: {reason}")
            values.append(value)
        measures.append(Measure(task, name, base["rows"], base["higher_is_better"],
                                base["questions"], values, answers))
    return TasksComparison(measures, list(dict.fromkeys(remarks)))


def _why_not(evaluation: dict[str, Any], measure: dict[str, Any], first: dict[str, Any],
             base: dict[str, Any]) -> str | None:
    task = measure["task"]
    if measure["questions"] != base["questions"]:
        return f"other questions ({measure['rows']:,}, not {base['rows']:,})"
    for key, what in (("chat", "chat template"), ("n-shot", "examples before each question")):
        here, there = evaluation["settings"][key], first["settings"][key]
        if key == "n-shot":
            here, there = here.get(task), there.get(task)
        if here != there:
            return f"{what}: {here}, not {there}"
    if evaluation["task_versions"].get(task) != first["task_versions"].get(task):
        return "another version of the task"
    return None
