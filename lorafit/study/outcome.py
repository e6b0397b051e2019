"""What became of a trial, read from its run directory."""

import hashlib
import json
import math
from dataclasses import dataclass
from statistics import median
from typing import Any

from lorafit.run_dir import RunDir, read_json, read_jsonl
from lorafit.study.folder import StudyDir, Trial

DIVERGED_EXIT_CODE = 4  # errors.DivergedError
_FIRST_STEPS = 2  # slower than the others, while libraries settle


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    loss: held-out, in nats per supervised token, of the weights that are the run's result; None
    where there is none, and `problem` says why. start_loss: before the first step. step_s: median.
    rows, held_out: digests of what each step was trained on, and of the held-out rows.
    diverged: a number was not finite, which it would not be again.
    """

    name: str
    seed: int
    loss: float | None = None
    start_loss: float | None = None
    steps: int = 0
    step_s: float | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    trained_parameters: int | None = None
    supervised_tokens: int = 0
    rows: str = ""
    held_out: str = ""
    learning_rate: float | None = None
    problem: str | None = None
    diverged: bool = False


def outcome_of(folder: StudyDir, trial: Trial) -> Outcome | None:
    """None where the trial is not over: not begun, stopped or killed in the middle."""
    run = folder.run(trial.name)
    if run.result.exists():
        return _finished(run, trial)
    if folder.failure(trial.name).exists():
        failure = read_json(folder.failure(trial.name))
        return Outcome(trial.name, trial.seed, problem=str(failure["said"]),
                       diverged=failure["exit_code"] == DIVERGED_EXIT_CODE)
    return None


def _finished(run: RunDir, trial: Trial) -> Outcome:
    result, record = read_json(run.result), read_json(run.record)
    progress = result["progress"]
    lines = [line for line in read_jsonl(run.metrics) if "loss" in line]
    of_best = result["kept_step"] != progress["step"] or progress["best_step"] == progress["step"]
    loss = progress["best_loss"] if of_best else progress["last_eval_loss"]
    is_finite = loss is not None and math.isfinite(loss)
    times = [line["seconds"] for line in lines]
    return Outcome(
        trial.name, trial.seed,
        loss=loss if is_finite else None,
        start_loss=progress["first_eval_loss"],
        steps=progress["step"],
        step_s=median(times[_FIRST_STEPS:] or times) if times else None,
        seconds=result["seconds"],
        peak_memory_bytes=result["peak_memory_bytes"],
        trained_parameters=(record["adapter"] or {}).get("trainable_parameters"),
        supervised_tokens=sum(line["supervised_tokens"] for line in lines),
        rows=_digest([progress["data"], [(line["step"], line["tokens"], line["supervised_tokens"])
                                         for line in lines]]),
        held_out=_digest((record["held_out"] or {}).get("fingerprint")),
        learning_rate=record["plan"]["peak_learning_rate"],
        problem=None if is_finite else "diverged: the held-out loss is not finite",
        diverged=not is_finite,
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
