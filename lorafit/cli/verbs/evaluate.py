"""What `lorafit eval` does."""

import importlib.util
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lorafit.cli import show_eval
from lorafit.cli.before import refuse_taken_json, settle_hub_for
from lorafit.errors import UserError
from lorafit.names import is_name
from lorafit.recipe.evaluation import Evaluation


@dataclass(frozen=True)
class Asked:
    """What was typed. beside: models to measure too, of which `merged` is called merged."""

    trained: list[Path]
    data: Path | None
    beside: list[Path]
    merged: Path | None
    base: str | None
    pattern: str | None
    rows: int | None
    max_new_tokens: int | None
    batch_size: int | None
    overrides: list[str]
    name: str | None

    @property
    def path(self) -> Path:
        if len(self.trained) > 1:
            raise UserError("only one run is evaluated at a time", str(self.trained[1]),
                            "put a second one beside it with --also, or compare what was kept with "
                            "--compare")
        return self.trained[0]

    def all_overrides(self) -> list[str]:
        """The options that set a key of the recipe, as --set would; typed last, they go last."""
        keys = {"rows": self.rows, "max_new_tokens": self.max_new_tokens,
                "batch_size": self.batch_size}
        options = [f"evaluation.{key}={value}" for key, value in keys.items() if value is not None]
        if self.pattern is not None:
            options.append(f"evaluation.pattern={json.dumps(self.pattern, ensure_ascii=False)}")
        return [*self.overrides, *options]


def held_out(asked: Asked, samples: int, json_to: Path | None, given: dict[str, Any]) -> None:
    """Measure on held-out rows."""
    _refuse_given(given, "is of --tasks", "leave it out, or name tasks")
    _check(asked, json_to)
    if asked.data is not None and not asked.data.exists():
        raise UserError("no such file", f"--data {asked.data}", "check the path")
    settle_hub_for(asked.path, asked.base, overrides=asked.all_overrides())
    from lorafit.evaluate.evaluation import evaluate
    from lorafit.evaluate.kept import keep

    subject = _subject(asked)
    with show_eval.progress(json_to) as progress:
        result = evaluate(subject, progress, _pattern_at(asked, subject))
    path = keep(result, subject, asked.name)
    show_eval.either(json_to, result, lambda it: show_eval.evaluation(it, samples, path))


def tasks(asked: Asked, names: str, include_path: Path | None, num_fewshot: int | None,
          chat_template: bool | None, json_to: Path | None) -> None:
    """Run tasks of the lm-eval package."""
    _check(asked, json_to)
    _refuse_given({"--data": asked.data, "--pattern": asked.pattern},
                  "is of held-out rows", "leave it out, or leave out --tasks")
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("--tasks needs the lm-eval package, which is not installed", "--tasks",
                        "pip install 'lorafit[lm-eval]'")
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    settle_hub_for(asked.path, asked.base, overrides=asked.all_overrides(),
                   also=not all(map(_reads_local_files, _names(names))))
    from lorafit.evaluate.harness import Wanted, run_tasks
    from lorafit.evaluate.task_results import keep_tasks

    wanted = Wanted(_names(names), include_path, num_fewshot, asked.rows, asked.batch_size,
                    chat_template)
    subject = _subject(asked, needs_rows=False)
    with show_eval.progress(json_to) as progress:
        result = run_tasks(subject, wanted, progress)
    path = keep_tasks(result, subject, asked.name)
    show_eval.either(json_to, result, lambda it: show_eval.tasks(it, path))


def _reads_local_files(task: str) -> bool:
    """Whether a task is a file that takes its questions from files."""
    try:
        text = Path(task).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return re.search(r"^dataset_path:\s*[\"']?(json|csv|parquet|arrow|text)\b", text,
                     re.MULTILINE) is not None


def compare(paths: list[Path], name: str | None, tasks: str | None, json_to: Path | None,
            given: dict[str, Any]) -> None:
    """Put kept evaluations side by side."""
    _refuse_given(given, "evaluates, and --compare does not", "leave one of them out")
    refuse_taken_json(json_to)
    from lorafit.evaluate.kept import compare as side_by_side
    from lorafit.evaluate.kept import evaluations

    if tasks is not None:
        from lorafit.evaluate.task_results import compare_tasks

        result = compare_tasks(paths, [evaluations(path, "tasks", name) for path in paths],
                               _names(tasks))
        show_eval.either(json_to, result, show_eval.task_comparison)
        return
    show_eval.either(json_to, side_by_side(paths, name), show_eval.comparison)


def _check(asked: Asked, json_to: Path | None) -> None:
    """What can be known to be wrong before anything heavy is imported."""
    refuse_taken_json(json_to)
    if asked.name is not None and (not is_name(asked.name) or asked.name.startswith(("-", "."))):
        raise UserError("is no name for a file", f"--name {asked.name}",
                        "use up to 64 letters, digits, dots, hyphens and underscores")
    if asked.pattern is not None:
        try:
            Evaluation(pattern=asked.pattern)
        except ValidationError as error:
            raise UserError(str(error.errors()[0]["ctx"]["error"]), "--pattern",
                            "in a shell, put it in single quotes") from None


def _subject(asked: Asked, *, needs_rows: bool = True) -> Any:
    from dataclasses import replace

    from lorafit.evaluate.contenders import beside, open_subject

    subject = open_subject(asked.path, asked.base, asked.all_overrides(), asked.data,
                           needs_rows=needs_rows)
    if asked.name is not None and subject.run is None:
        raise UserError("is no run, so nothing is kept in it", f"--name {asked.name}",
                        "keep the result with --json FILE")
    for path in asked.beside:
        contender = beside(subject, path, "merged" if path == asked.merged else None)
        subject = replace(subject, contenders=(*subject.contenders, contender))
    return subject


def _pattern_at(asked: Asked, subject: Any) -> str:
    """Where the pattern that answers are compared by was given."""
    from lorafit.recipe.loading import place_of

    if asked.pattern is not None:
        return "--pattern"
    for each in reversed(asked.overrides):
        if each.startswith("evaluation.pattern"):
            return f"--set {each}"
    return place_of(subject.run.recipe, "evaluation", "pattern") if subject.run else ""


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _refuse_given(given: dict[str, Any], what: str, remedy: str) -> None:
    for option, value in given.items():
        if value not in (None, []):
            raise UserError(what, option, remedy)
