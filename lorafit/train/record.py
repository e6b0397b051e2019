"""What a run writes about itself: what it begins with, its record, its logs, its result."""

import json
import os
import platform
import statistics
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lorafit import __version__
from lorafit.data.chat import resolve_template
from lorafit.errors import MachineError, UserError
from lorafit.model.adapters.facts import AdapterFacts
from lorafit.model.adapters.files import restore_adapter, save_adapter
from lorafit.recipe.auto import Decision
from lorafit.recipe.loading import dump_recipe
from lorafit.recipe.schema import Recipe
from lorafit.run_dir import (
    RunDir,
    committed_directory,
    damage,
    damage_if_listed,
    write_json,
    write_manifest,
    write_text,
)
from lorafit.secrets import without_secrets
from lorafit.train.checkpoint import Progress
from lorafit.train.loop import Plan
from lorafit.train.prepare import Prepared

HELD_OUT_ROWS = 32  # kept in the run directory for verification after export


@dataclass(frozen=True)
class Record:
    """What a run prints at its start and keeps in record.json.

    predicted: memory and time (`train/predicted.py`); None where they cannot be told.
    adapter: None where it can be counted only once the base is loaded. remarks: what the adapter
    section does with this model that a reader may not expect.
    """

    decisions: list[Decision]
    adapter: AdapterFacts | None
    train: dict[str, Any]
    held_out: dict[str, Any] | None
    plan: Plan
    device: str
    processes: int
    skipped_checkpoints: list[str]
    resumed_from: str | None
    base_commit: str | None = None
    remarks: list[str] = field(default_factory=list)
    base_sizes: dict[str, int | str] = field(default_factory=dict)
    base_digest: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    hub_commits: dict[str, str] = field(default_factory=dict)
    predicted: dict[str, Any] | None = None


@dataclass(frozen=True)
class Result:
    """How a run ended. Times in seconds, memory in bytes. read: rows of a stream, counted.
    step_s: the median of its steps but the first; None where there was one."""

    progress: Progress
    kept_step: int
    seconds: float
    first_step_after_s: float
    peak_memory_bytes: int
    read: dict[str, int] | None = None
    step_s: float | None = None


def write_inputs(run: RunDir, recipe: Recipe, prepared: Prepared) -> None:
    """What a run begins with; the recipe last, for it says that there is a run."""
    if recipe.data.chat_template is not None:
        template = resolve_template(recipe.data.chat_template, prepared.tokenizer)
        write_text(run.chat_template, template or "")
    if prepared.held_out is not None:
        rows = [prepared.held_out.tokens(i)
                for i in range(min(len(prepared.held_out), HELD_OUT_ROWS))]
    else:
        first = prepared.feed.step(0)
        rows = [first.tokens(i) for i in range(min(len(first), HELD_OUT_ROWS))]
    write_text(run.held_out, "".join(
        json.dumps({"token_ids": row.ids.tolist(),
                    "supervised": row.supervised.astype(int).tolist()}) + "\n"
        for row in rows
    ))
    write_text(run.recipe, dump_recipe(recipe))


def keep_start(run: RunDir, recipe: Recipe, adapted: Any) -> None:
    """A and B where they were computed from the base or the data: a run that goes on takes them
    from here, to the bit and without computing them again."""
    if recipe.adapter.keeps_start and not run.initial_adapter.exists():
        with committed_directory(run.initial_adapter) as partial:
            save_adapter(partial, adapted)
            write_manifest(partial)


def kept_start(run: RunDir) -> Path | None:
    """Where A and B of the start are kept; None where the run keeps none, or was killed before.

    UserError when they are damaged: what was trained since belongs to them.
    """
    directory = run.initial_adapter
    if not directory.exists():
        return None
    if problem := damage_if_listed(directory):
        raise UserError(f"the start of the adapter is damaged: {problem}", str(directory),
                        "restore it from a copy of the run, or start a new run")
    return directory


def versions_here() -> dict[str, str]:
    """Of lorafit, Python and the libraries that decide what weights become, where installed."""
    names = ("torch", "transformers", "peft", "accelerate", "safetensors", "bitsandbytes",
             "torchao", "compressed-tensors", "gptqmodel", "optimum")
    versions = {"lorafit": __version__, "python": platform.python_version()}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def keep_record(run: RunDir, record: Record, progress: Progress) -> None:
    """Write record.json, and cut the logs back to where a resumed run goes on."""
    values = asdict(record)
    values["machine"] = {"system": platform.platform(), "cpus": os.cpu_count(),
                         "threads": torch.get_num_threads()}
    write_json(run.record, without_secrets(values))
    for log in (run.metrics, run.samples):
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in _lines(log)
                 if _is_done(line, progress)]
        write_text(log, "".join(lines))


def _lines(log: Path) -> list[dict[str, Any]]:
    """The lines of a log that can be read; a kill cuts lines off, a disk spoils them, and no line
    decides what weights become."""
    found = []
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    for line in text.split("\n")[:-1]:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict) and isinstance(values.get("step"), int):
            found.append(values)
    return found


def _is_done(line: dict[str, Any], progress: Progress) -> bool:
    """Whether a line of a log tells of something that a resumed run does not do again."""
    if line["step"] == progress.step and progress.evaluation_due:
        return "loss" in line or "skipped" in line
    if progress.step == 0 and progress.first_eval_loss is None:
        return False
    return line["step"] <= progress.step


def earlier_losses(run: RunDir, progress: Progress) -> list[float]:
    """Of the steps before the one that a resumed run stands at."""
    return [line["loss"] for line in _lines(run.metrics)
            if isinstance(line.get("loss"), float) and line["step"] <= progress.step]


def median_step_s(run: RunDir) -> float | None:
    """Of the steps that were logged, the first of a process left out where others follow."""
    seconds = [line["seconds"] for line in _lines(run.metrics) if "seconds" in line]
    return statistics.median(seconds[1:]) if len(seconds) > 1 else None


def kept_step(recipe: Recipe, progress: Progress) -> int:
    """The step whose weights are the result."""
    if recipe.training.keep == "best" and progress.best_step is not None:
        return progress.best_step
    return progress.step


def write_result(run: RunDir, recipe: Recipe, adapted: Any, result: Result) -> None:
    """The adapter of the kept step, and result.json last: its presence means that all is there."""
    if result.kept_step != result.progress.step:
        best = run.checkpoint(result.kept_step)
        if (problem := damage(best)) is not None:
            raise MachineError(
                f"{best}: the best checkpoint cannot be used: {problem}\n    take the last step "
                "instead: --resume --set training.keep=last"
            )
        restore_adapter(adapted, best)
    with committed_directory(run.adapter, replace=True) as partial:
        save_adapter(partial, adapted)
    write_json(run.result, {"status": "done", **asdict(result)})
