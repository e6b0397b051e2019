"""Checkpoints: complete or absent, checked by digest, without pickle.

A checkpoint is a directory with the adapter as peft reads it, the optimizer's tensors as
safetensors, and the rest of the state as JSON. Random numbers and the position in the data are
functions of the seed and the step, so the step is all that has to be kept of them.
"""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lorafit.errors import DivergedError, UserError
from lorafit.model.adapters.files import CONFIG, WEIGHTS, save_adapter, save_rest
from lorafit.model.adapters.step_rule import StepRule
from lorafit.run_dir import (
    MANIFEST,
    RunDir,
    committed_directory,
    damage,
    read_json,
    refuse_full_disk,
    remove_directory,
    sha256,
    size_bytes,
    write_json,
    write_manifest,
    write_text,
)
from lorafit.train.strategy.strategy import ALONE, Strategy

OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
RULE = "rule.safetensors"  # of methods that do more than the optimizer
_LATEST = re.compile(r"(?P<name>step-\d{8,}) (?P<digest>[0-9a-f]{64})\n")
_TEXTS_BYTES = 1 << 20  # more than the files beside the tensors take


@dataclass
class Progress:
    """Where a run stands. `step` optimizer steps are done; losses are in nats per token.

    evals_without_gain: evaluations in a row without a new best. data: fingerprint of the rows.
    feed: where a stream of rows stands; None for rows that are found by the step alone.
    evaluation_due: the held-out rows are still to be evaluated at this step. skipped_steps: those
    that were left out because their loss or gradient was not finite.
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
    evaluation_due: bool = False
    skipped_steps: int = 0


def whole_state(optimizer: Any, strategy: Strategy = ALONE) -> dict[str, Any]:
    """The optimizer's state_dict, of which the main rank has the tensors whole. All ranks together.
    """
    def whole(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            gathered = strategy.whole_tensor(value)
            return gathered.detach().cpu() if strategy.is_main else None
        if isinstance(value, dict):
            return {key: whole(item) for key, item in value.items()}
        return value

    state: dict[str, Any] = optimizer.state_dict()
    return {**state, "state": whole(state["state"])}


def save_checkpoint(run: RunDir, adapted: Any, optimizer_state: dict[str, Any],
                    progress: Progress, keep: int, rule: StepRule | None = None) -> Path:
    """Commit a checkpoint of `progress.step` and remove those no longer wanted. The weights in
    `adapted` and the optimizer's state are whole.

    MachineError when there is no room or the disk refuses, DivergedError when a number in it is
    not finite; the checkpoints before it stay as they are.
    """
    path = run.checkpoint(progress.step)
    tensors, plain = _flatten(optimizer_state)
    own = {} if rule is None else rule.state()
    _refuse_not_finite(adapted, tensors | own, progress.step)
    good = run.list_checkpoints()
    kept = f"; {good[-1].name} is intact" if good else ""
    refuse_full_disk(run.checkpoints, needed_bytes(adapted, tensors | own), f"a checkpoint of step "
                     f"{progress.step}", f"make room and continue with --resume{kept}")
    with committed_directory(path, replace=True) as partial:
        save_adapter(partial, adapted)
        save_rest(partial, adapted)
        save_file(tensors, partial / OPTIMIZER)
        if rule is not None:
            save_file(own, partial / RULE)
        write_json(partial / STATE, {"progress": asdict(progress), "optimizer": plain})
        write_manifest(partial)
    write_text(run.latest, f"{path.name} {sha256(path / MANIFEST)}\n")
    best = None if progress.best_step is None else run.checkpoint(progress.best_step)
    for old in run.list_checkpoints()[:-keep]:
        if old != best:
            remove_directory(old)
    return path


def needed_bytes(adapted: Any, tensors: Mapping[str, torch.Tensor]) -> int:
    """About what a checkpoint takes on disk: the trained weights, and `tensors` beside them."""
    trained = sum(p.nbytes for p in adapted.parameters() if p.requires_grad)
    return int(trained + sum(t.nbytes for t in tensors.values()) + _TEXTS_BYTES)


def refuse_small_disk(run: RunDir, adapted: Any, keep: int) -> None:
    """MachineError unless a whole run has room: its checkpoints with two numbers of optimizer state
    for each weight, the best one, one being written, and the result."""
    trained = sum(p.nbytes for p in adapted.parameters() if p.requires_grad)
    each = 3 * trained + _TEXTS_BYTES
    held = size_bytes(run.path) if run.path.exists() else 0
    refuse_full_disk(run.path, (keep + 2) * each + trained - held, "the checkpoints of this run",
                     "make room, lower training.keep_checkpoints, or choose another directory with "
                     "--set output.dir=DIR")


def _refuse_not_finite(adapted: Any, tensors: Mapping[str, torch.Tensor], step: int) -> None:
    named = {name: p for name, p in adapted.named_parameters() if p.requires_grad} | dict(tensors)
    for name, tensor in named.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise DivergedError(
                f"{name} is not finite after step {step}, so nothing of it was kept\n    lower "
                "training.learning_rate and start again, or go on from the last checkpoint with "
                "--resume")


def newest_good_checkpoint(run: RunDir) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are all intact, and what was wrong with newer ones, and
    with the file that names the newest."""
    skipped: list[str] = []
    found = run.list_checkpoints()
    for path in reversed(found):
        problem = _damage(path)
        if problem is None:
            return path, [*_disagreement(run, path, found[-1]), *skipped]
        skipped.append(f"{path.name}: {problem}")
    return None, [*_disagreement(run, None, None), *skipped]


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint. Its manifest has to know every file that is needed."""
    if (problem := damage(path)) is not None:
        return problem
    known = read_json(path / MANIFEST)
    return next((f"{MANIFEST} does not know {name}" for name in (WEIGHTS, CONFIG, OPTIMIZER, STATE)
                 if name not in known), None)


def _disagreement(run: RunDir, good: Path | None, newest: Path | None) -> list[str]:
    """What speaks against the file that names the newest checkpoint.

    It is written after the checkpoint that it names, so a process that was killed between the two
    leaves an older name: that is no damage.
    """
    name = run.latest.name
    try:
        text = run.latest.read_text(encoding="utf-8")
    except FileNotFoundError:
        # A first checkpoint alone: killed before its name was written.
        return [f"{name}: is missing"] if good is not None and len(run.list_checkpoints()) > 1 \
            else []
    except (OSError, ValueError) as error:
        return [f"{name}: cannot be read: {error}"]
    match = _LATEST.fullmatch(text)
    if match is None:
        return [f"{name}: is damaged"]
    named = run.checkpoints / match["name"]
    if newest is None or named.name > newest.name:
        return [f"{name}: names {named.name}, which is not there"]
    try:
        if named.is_dir() and sha256(named / MANIFEST) != match["digest"]:
            return [f"{name}: names another {named.name} than there is"]
    except OSError:
        pass  # the checkpoint's own damage, which is said of it
    return []


def set_aside_damaged(run: RunDir, good: Path | None) -> None:
    """Rename damaged checkpoints newer than `good`, so that they do not count as kept ones."""
    for path in run.list_checkpoints():
        if good is None or path.name > good.name:
            path.rename(path.with_name(f"damaged-{path.name}-{time.time_ns()}"))
    if good is None:
        run.latest.unlink(missing_ok=True)
    else:
        write_text(run.latest, f"{good.name} {sha256(good / MANIFEST)}\n")


def load_checkpoint(path: Path, optimizer: Any, rule: StepRule | None = None,
                    strategy: Strategy = ALONE) -> Progress:
    """Put back all but the weights (`restore_adapter`); the progress is returned."""
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    values = _unflatten(load_file(path / OPTIMIZER), state["optimizer"])
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, of_one in values["state"].items():
        p = parameters[number]
        for name, value in of_one.items():
            if isinstance(value, torch.Tensor) and value.shape == p.shape:
                of_one[name] = strategy.part_of(value, p)
    optimizer.load_state_dict(values)
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
