"""Tasks of the lm-eval package on the contenders, which are loaded by us and handed over.

lm-eval builds the questions, counts the answers and gives values with standard errors; nothing of
that is done here. What is added: prompts rendered as the run was trained, every contender in one
table, and the difference from the base taken question by question.
"""

import difflib
import hashlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from lorafit.data.chat import Renderer
from lorafit.data.examples import Conversation, Message
from lorafit.data.pipeline import make_renderer
from lorafit.errors import UserError
from lorafit.evaluate.contenders import Loader, Subject
from lorafit.evaluate.evaluation import Progress, versions_here
from lorafit.evaluate.result import FORMAT
from lorafit.evaluate.task_results import Measure, TasksResult, Value, against

_ROWS_AT_ONCE = 8


@dataclass(frozen=True)
class Wanted:
    """Tasks by name or file, and how they are asked. None leaves it to each task, or to us."""

    tasks: list[str]
    include_path: Path | None
    num_fewshot: int | None
    limit: int | None
    batch_size: int | None
    chat_template: bool | None


def run_tasks(subject: Subject, wanted: Wanted, progress: Progress) -> TasksResult:
    """Run tasks on every contender. UserError for tasks that are unknown or cannot be loaded."""
    started = time.perf_counter()
    with _quiet():
        manager = _manager(wanted)
        renderer = make_renderer(subject.recipe.data, subject.tokenizer)
        as_chat = wanted.chat_template if wanted.chat_template is not None \
            else _is_trained_as_chat(subject, renderer)
        if as_chat and renderer.template is None:
            raise UserError("the tokenizer has no chat template", "--chat-template",
                            "leave it out, or give one with --set data.chat_template=chatml")
        found: dict[str, Any] = {}
        loader = Loader()
        for contender in subject.contenders:
            model = _language_model(loader.load(contender), contender.name, subject.tokenizer,
                                    renderer, wanted.batch_size or _ROWS_AT_ONCE, progress)
            found[contender.name] = _evaluated(model, wanted, manager, as_chat)
            del model
        loader.release()
    first = next(iter(found.values()))
    asked = "through the chat template, as trained" if as_chat else "as plain text"
    settings = {"chat": as_chat, "n-shot": first["n-shot"], "limit": wanted.limit}
    names = sorted(first["results"])
    key = hashlib.sha256(json.dumps(
        [settings, first["versions"], {name: _questions(first, name) for name in names}],
        sort_keys=True, default=str).encode()).hexdigest()
    return TasksResult(
        FORMAT, "tasks", "-".join(filter(None, [subject.label, "tasks", key[:8]])), key,
        datetime.now(UTC).isoformat(timespec="seconds"), round(time.perf_counter() - started, 1),
        subject.contenders[-1].path, names, asked, settings, first["versions"],
        {**versions_here(), "lm-eval": metadata.version("lm-eval")},
        _remarks(first), _measures(found))


def _manager(wanted: Wanted) -> Any:
    """lm-eval's index of tasks, after every wanted one could be loaded."""
    from lm_eval.tasks import TaskManager

    if wanted.include_path is not None and not wanted.include_path.is_dir():
        raise UserError("no such directory", f"--include-path {wanted.include_path}",
                        "name a directory with task files (*.yaml)")
    if not wanted.tasks:
        raise UserError("names no task", "--tasks", "for example --tasks gsm8k,arc_easy")
    include = None if wanted.include_path is None else str(wanted.include_path)
    manager = TaskManager(include_path=include)
    for name in wanted.tasks:
        is_file = name.endswith((".yaml", ".yml"))
        if is_file and not Path(name).is_file():
            raise UserError("no such file", f"--tasks {name}", "name a task, or a task's file")
        if not is_file and name not in manager.all_tasks:
            close = difflib.get_close_matches(name, manager.all_tasks, 3, 0.5)
            raise UserError(f"lm-eval {metadata.version('lm-eval')} knows no task {name}",
                            "--tasks", f"did you mean {', '.join(close)}?" if close else
                            "`lm-eval ls tasks` lists them; --include-path names your own")
        try:
            manager.load([name])
        except Exception as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"the task {name} cannot be loaded: {type(error).__name__}: {said}",
                            "--tasks", "its data may have to be fetched from the hub; "
                            "dataset_path: json with data_files reads local ones") from None
    return manager


def _evaluated(model: Any, wanted: Wanted, manager: Any, as_chat: bool) -> Any:
    from lm_eval import simple_evaluate

    try:
        return simple_evaluate(
            model=model, tasks=list(wanted.tasks), task_manager=manager,
            num_fewshot=wanted.num_fewshot, limit=wanted.limit, apply_chat_template=as_chat,
            fewshot_as_multiturn=as_chat, log_samples=True, bootstrap_iters=1000,
            random_seed=0, numpy_random_seed=0, torch_random_seed=0, fewshot_random_seed=0)
    except ValueError as error:
        if "unsafe" in str(error):
            raise UserError(f"a task runs programs that the model writes: {error}", "--tasks",
                            "lorafit does not; use lm-eval itself where that is safe") from None
        raise


def _language_model(model: Any, name: str, tokenizer: Any, renderer: Renderer, batch_size: int,
                    progress: Progress) -> Any:
    """A loaded model as lm-eval calls it, which renders conversations as training did."""
    from lm_eval.models.huggingface import HFLM

    class Told:
        """Stands where lm-eval's cache of answers does, and is told of each one."""

        def add_partial(self, kind: str, request: Any, answer: Any) -> None:
            progress.advance(1)

    class AsTrained(HFLM):  # type: ignore[misc, unused-ignore]
        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            turns = [Message(turn["role"], turn["content"]) for turn in chat_history]
            if not add_generation_prompt:  # the model goes on with what the last turn begins
                return renderer.begun(Conversation(tuple(turns)))
            return renderer.prompt(Conversation((*turns, Message("assistant", "-"))))[0]

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            progress.begin(f"{name}: {len(requests):,} answers", len(requests))
            return super().generate_until(requests, disable_tqdm=True)

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            progress.begin(f"{name}: {len(requests):,} likelihoods", len(requests))
            return super().loglikelihood(requests, disable_tqdm=True)

    inner = model if hasattr(model, "tie_weights") else model.get_base_model()
    with _tied_as_it_is(inner):
        wrapped = AsTrained(pretrained=inner, tokenizer=tokenizer, batch_size=batch_size,
                            backend="causal")
    wrapped.cache_hook = Told()
    return wrapped


@contextmanager
def _tied_as_it_is(model: Any) -> Iterator[None]:
    """lm-eval ties weights anew, which would undo an output layer that was trained by itself."""
    model.tie_weights = lambda *_, **__: None
    try:
        yield
    finally:
        del model.tie_weights


def _is_trained_as_chat(subject: Subject, renderer: Renderer) -> bool:
    """Whether training rendered its rows in the chat template."""
    if renderer.template is None:
        return False
    formats = subject.recipe.data.format
    if subject.run is not None and subject.run.record.exists():
        record = json.loads(subject.run.record.read_text(encoding="utf-8"))
        formats = (record.get("train") or {}).get("format") or formats
    if "text" in formats.split(", "):
        return False
    return renderer.exchanges_as_chat or "chat" in formats or "sharegpt" in formats


def _measures(found: dict[str, Any]) -> list[Measure]:
    """Every measure of every task, with the difference of each model from the first."""
    names = list(found)
    first = found[names[0]]
    scores = {name: {**results["results"], **results.get("groups", {})}
              for name, results in found.items()}
    measures = []
    for task in sorted(scores[names[0]]):
        for key in scores[names[0]][task]:
            metric, comma, way = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            answers = {name: _answers(found[name], task, metric, way) for name in names}
            values: list[Value] = []
            for name in names:
                stderr = scores[name][task].get(f"{metric}_stderr,{way}")
                plain = Value(name, float(scores[name][task][key]),
                              float(stderr) if isinstance(stderr, int | float) else None)
                values.append(plain if name == names[0] else against(
                    plain, answers[name], values[0], answers[names[0]]))
            better = first.get("higher_is_better", {}).get(task, {}) or {}
            measures.append(Measure(
                task, metric if way == "none" else f"{metric}, {way}",
                _rows(first, task), better.get(metric), _questions(first, task), values, answers))
    return measures


def _answers(results: Any, task: str, metric: str, way: str) -> list[float]:
    """A model's value of each question, in order; none where a question has no single number."""
    values = [(sample["doc_id"], sample.get(metric)) for sample in results["samples"].get(task, [])
              if sample["filter"] == way]
    values.sort(key=lambda pair: pair[0])
    numbers = [value for _, value in values]
    if not all(isinstance(value, int | float | np.number) for value in numbers):
        return []
    return [float(value) for value in numbers]


def _rows(results: Any, task: str) -> int:
    """Questions of a task, or of all in a group."""
    if task in results["n-samples"]:
        return int(results["n-samples"][task]["effective"])
    return sum(_rows(results, each) for each in results["group_subtasks"].get(task, []))


def _questions(results: Any, task: str) -> str:
    """A digest of what a task asks, in order."""
    hashes = [sample["doc_hash"] for sample in results["samples"].get(task, [])]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _remarks(results: Any) -> list[str]:
    shots = {task: shots for task, shots in results["n-shot"].items() if shots}
    return [f"{task}: {count} examples before each question" for task, count in shots.items()]


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave the terminal to lorafit while lm-eval works."""
    import datasets
    import lm_eval.evaluator as evaluator

    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    # What it notes of the machine: by programs that it starts, whose complaints would be seen.
    notes = {name: getattr(evaluator, name) for name in ("get_git_commit_hash", "add_env_info")
             if hasattr(evaluator, name)}
    for name in notes:
        setattr(evaluator, name, lambda *_: None)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, function in notes.items():
            setattr(evaluator, name, function)
