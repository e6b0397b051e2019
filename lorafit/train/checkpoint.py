"""Checkpoints: complete or absent, checked by digest, without pickle.

A checkpoint is a directory with the adapter as peft reads it, the optimizer's tensors as
safetensors, and the rest of the state as JSON. Random numbers and the position in the data are
functions of the seed and the step, so the step is all that has to be kept of them.
"""

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lorafit.errors import UserError
from lorafit.model.adapters.files import restore_adapter, save_adapter, save_rest
from lorafit.model.adapters.step_rule import StepRule
from lorafit.run_dir import RunDir, committed_directory, damage, write_json, write_manifest

OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
RULE = "rule.safetensors"  # of methods that do more than the optimizer


@dataclass
class Progress:
    """Where a run stands. `step` optimizer steps are done; losses are in nats per token.

    evals_without_gain: evaluations in a row without a new best. data: fingerprint of the rows.
    feed: where a stream of rows stands; None for rows that are found by the step alone.
    """

    step: int = 0
    total_steps: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    evals_without_gain: int = 0
    first_eval_loss: float | None = None
    last_eval_loss: float | None = None
    data: str = ""
    feed: dict[str, Any] | None = None
    stopped_early: bool = False


def save_checkpoint(run: RunDir, adapted: Any, optimizer: Any, progress: Progress,
                    keep: int, rule: StepRule | None = None) -> Path:
    """Commit a checkpoint of `progress.step` and remove those no longer wanted."""
    path = run.checkpoint(progress.step)
    tensors, plain = _flatten(optimizer.state_dict())
    with committed_directory(path, replace=True) as partial:
        save_adapter(partial, adapted)
        save_rest(partial, adapted)
        save_file(tensors, partial / OPTIMIZER)
        if rule is not None:
            save_file(rule.state(), partial / RULE)
        write_json(partial / STATE, {"progress": asdict(progress), "optimizer": plain})
        write_manifest(partial)
    best = None if progress.best_step is None else run.checkpoint(progress.best_step)
    for old in run.list_checkpoints()[:-keep]:
        if old != best:
            shutil.rmtree(old)
    return path


def newest_good_checkpoint(run: RunDir) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are all intact, and what was wrong with newer ones."""
    skipped: list[str] = []
    for path in reversed(run.list_checkpoints()):
        problem = damage(path)
        if problem is None:
            return path, skipped
        skipped.append(f"{path.name}: {problem}")
    return None, skipped


def set_aside_damaged(run: RunDir, good: Path | None) -> None:
    """Rename damaged checkpoints newer than `good`, so that they do not count as kept ones."""
    for path in run.list_checkpoints():
        if good is None or path.name > good.name:
            path.rename(path.with_name(f"damaged-{path.name}-{time.time_ns()}"))


def load_checkpoint(path: Path, adapted: Any, optimizer: Any,
                    rule: StepRule | None = None) -> Progress:
    """Put weights and optimizer state back; the progress is returned."""
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    restore_adapter(adapted, path)
    optimizer.load_state_dict(_unflatten(load_file(path / OPTIMIZER), state["optimizer"]))
    if rule is not None:
        rule.load_state(load_file(path / RULE))
    return saved_progress(path)


def saved_progress(path: Path) -> Progress:
    """Where a run stood when the checkpoint was committed."""
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    try:
        return Progress(**state["progress"])
    except TypeError:
        raise UserError("was written by another version of lorafit", str(path),
                        "resume with the version named in record.json") from None


def _flatten(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], Any]:
    """Tensors by path, and the same structure with their paths in place of them."""
    tensors: dict[str, torch.Tensor] = {}

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, torch.Tensor):
            tensors[path] = value.detach().cpu().clone().contiguous()
            return {"tensor": path}
        if isinstance(value, dict):
            return {"dict": [[key, walk(item, f"{path}/{key}")] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [walk(item, f"{path}/{i}") for i, item in enumerate(value)]}
        return {"value": value}

    return tensors, walk(state, "")


def _unflatten(tensors: dict[str, torch.Tensor], plain: Any) -> Any:
    ((kind, value),) = plain.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _unflatten(tensors, item) for key, item in value}
    if kind == "list":
        return [_unflatten(tensors, item) for item in value]
    if kind == "tuple":
        return tuple(_unflatten(tensors, item) for item in value)
    return value
