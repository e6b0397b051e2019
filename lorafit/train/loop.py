"""The training loop, top to bottom."""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from lorafit.data.batches import Batch, collate
from lorafit.data.dataset import TokenisedData
from lorafit.data.feed import Feed, StepExamples
from lorafit.data.packing import Layout, split_rows
from lorafit.errors import DivergedError, LorafitError, StoppedBySignal
from lorafit.model.adapters.step_rule import StepRule
from lorafit.recipe.schema import Training
from lorafit.run_dir import RunDir, append_jsonl
from lorafit.train.checkpoint import Progress, save_checkpoint
from lorafit.train.display import Display
from lorafit.train.evaluation import held_out_loss
from lorafit.train.samples import Sampler
from lorafit.train.schedule import learning_rate_at
from lorafit.train.signals import StopRequest
from lorafit.train.step import train_step

MAX_ROWS_NAMED = 8


@dataclass(frozen=True)
class Plan:
    """The numbers that a run goes by, all decided before it starts.

    total_rows: None where the number of rows is not known (streaming).
    """

    total_rows: int | None
    total_steps: int
    micro_batch_size: int
    peak_learning_rate: float
    eval_every: int
    checkpoint_every: int


@dataclass(frozen=True)
class Job:
    """Everything the loop works with. `module` is the wrapped loss, `adapted` the model in it."""

    accelerator: Any
    module: nn.Module
    adapted: Any
    optimizer: Any
    feed: Feed
    held_out: TokenisedData | None
    layout: Layout
    pad_id: int
    training: Training
    plan: Plan
    run: RunDir
    display: Display
    sampler: Sampler
    stop: StopRequest
    rule: StepRule | None = None


def run_loop(job: Job, progress: Progress) -> Progress:
    """Train from `progress` to the end.

    Raises StoppedBySignal after committing a checkpoint, and DivergedError with the rows named.
    """
    plan, training = job.plan, job.training
    ahead = _Ahead(job)
    job.display.start(progress.step, plan.total_steps)
    if progress.step == 0:
        evaluate(job, progress)
    while progress.step < plan.total_steps and not progress.stopped_early:
        started = time.perf_counter()
        try:
            examples, batches = ahead.take(progress.step)
        except LorafitError:  # a stream's bad row: what was trained so far is kept
            if progress.step > 0:
                commit(job, progress)
            raise
        learning_rate = learning_rate_at(
            progress.step, plan.total_steps, training, plan.peak_learning_rate
        )
        try:
            result = train_step(
                job.accelerator, job.module, job.optimizer, batches, step=progress.step,
                learning_rate=learning_rate, seed=training.seed,
                max_grad_norm=training.max_grad_norm, stop_signal=job.stop.signal_number,
                rule=job.rule, meanwhile=partial(ahead.prepare, progress.step + 1),
            )
        except DivergedError as error:
            raise DivergedError(_with_rows(error, examples)) from None
        progress.step += 1
        seconds = time.perf_counter() - started
        if job.accelerator.is_main_process:
            append_jsonl(job.run.metrics, {
                "step": progress.step, "loss": result.loss, "learning_rate": learning_rate,
                "grad_norm": result.grad_norm, "supervised_tokens": result.supervised_tokens,
                "tokens": result.tokens, "computed_tokens": result.computed_tokens,
                "seconds": round(seconds, 6),
            })
        job.display.step(progress.step, result.loss, learning_rate, result.supervised_tokens,
                         seconds)
        is_last = progress.step == plan.total_steps
        is_best = False
        if is_last or progress.step % plan.eval_every == 0:
            is_best = evaluate(job, progress)
        if (is_last or is_best or progress.stopped_early or result.stop_signal
                or progress.step % plan.checkpoint_every == 0):
            commit(job, progress)
        if result.stop_signal and not is_last:
            raise StoppedBySignal(
                result.stop_signal,
                f"stopped after step {progress.step} of {plan.total_steps}; a checkpoint was "
                "committed. Continue with --resume",
            )
    return progress


class _Ahead:
    """The examples of a step and this rank's micro-batches, made while the device still computes
    the step before. An error in them is raised when they are taken."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._step = -1
        self._made: tuple[StepExamples, list[Batch]] | LorafitError | None = None

    def prepare(self, step: int) -> None:
        if step == self._step or step >= self._job.plan.total_steps:
            return
        self._step = step
        try:
            self._made = self._make(step)
        except LorafitError as error:
            self._made = error

    def take(self, step: int) -> tuple[StepExamples, list[Batch]]:
        self.prepare(step)
        assert self._step == step
        made, self._made = self._made, None
        if isinstance(made, LorafitError):
            raise made
        assert made is not None
        return made

    def _make(self, step: int) -> tuple[StepExamples, list[Batch]]:
        job = self._job
        examples = job.feed.step(step)
        parts = split_rows(examples.lengths, job.layout, job.accelerator.num_processes)
        mine = parts[job.accelerator.process_index :: job.accelerator.num_processes]
        batches = [collate(examples.tokens, part, job.layout, job.pad_id) for part in mine]
        if job.accelerator.device.type == "cuda":
            batches = [batch.pinned() for batch in batches]
        return examples, batches


def evaluate(job: Job, progress: Progress) -> bool:
    """Measure the held-out loss and answer the sample prompts; True when it is a new best."""
    if job.sampler.prompts and job.accelerator.is_main_process:
        for prompt, answer in job.sampler.answers(job.adapted):
            job.display.sample(prompt, answer)
            append_jsonl(job.run.samples,
                         {"step": progress.step, "prompt": prompt, "answer": answer})
    if job.held_out is None:
        return False
    loss = held_out_loss(job.accelerator, job.module, job.held_out, job.layout, job.pad_id)
    is_best = progress.step > 0 and (progress.best_loss is None or loss < progress.best_loss)
    progress.last_eval_loss = loss
    if progress.first_eval_loss is None:
        progress.first_eval_loss = loss
    if is_best:
        progress.best_loss, progress.best_step = loss, progress.step
        progress.evals_without_gain = 0
    elif progress.step > 0:
        progress.evals_without_gain += 1
    patience = job.training.early_stopping
    progress.stopped_early = patience is not None and progress.evals_without_gain >= patience
    if job.accelerator.is_main_process:
        append_jsonl(job.run.metrics, {"step": progress.step, "held_out_loss": loss})
    job.display.evaluation(progress.step, loss, is_best)
    return is_best


def commit(job: Job, progress: Progress) -> None:
    """Write a checkpoint from the main process; the others wait for it."""
    progress.feed = job.feed.state(progress.step)
    if job.accelerator.is_main_process:
        save_checkpoint(job.run, job.adapted, job.optimizer, progress,
                        job.training.keep_checkpoints, job.rule)
    job.accelerator.wait_for_everyone()


def _with_rows(error: DivergedError, examples: StepExamples) -> str:
    places = [str(examples.place(i)) for i in range(min(len(examples), MAX_ROWS_NAMED))]
    more = f" and {len(examples) - len(places)} more" if len(examples) > len(places) else ""
    return (f"{error}\n    rows of this step: {', '.join(places)}{more}\n"
            "    lower training.learning_rate, use model.dtype bfloat16 or float32 instead of "
            "float16, or look at these rows; the last checkpoint is intact")
