"""The training loop, top to bottom."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from lorafit.data.batches import Batch, collate
from lorafit.data.dataset import TokenisedData
from lorafit.data.feed import Feed, StepExamples
from lorafit.data.packing import Layout, MicroBatch, split_rows
from lorafit.errors import DivergedError, LorafitError, MachineError
from lorafit.model.adapters.step_rule import StepRule
from lorafit.recipe.schema import Training
from lorafit.run_dir import RunDir, append_jsonl, write_json
from lorafit.train.checkpoint import Progress, save_checkpoint, whole_state
from lorafit.train.diagnosis import Suspect, several
from lorafit.train.display import Display, Load
from lorafit.train.evaluation import held_out_loss
from lorafit.train.memory import Fit, peak_memory_bytes
from lorafit.train.rehearsal import may_run_out, rehearse
from lorafit.train.samples import Sampler
from lorafit.train.schedule import learning_rate_at
from lorafit.train.signals import StopRequest, Wish
from lorafit.train.standing import WRITING, Kind
from lorafit.train.step import NotFinite, StepResult, train_step
from lorafit.train.strategy.strategy import Strategy
from lorafit.train.trackers import NO_TRACKERS, Trackers
from lorafit.train.watch import Watch

MAX_ROWS_NAMED = 8
MAX_HELD_OUT_LOOKED_THROUGH = 500
_WORST_ROWS = 3


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
    """Everything the loop works with. `module` is the summed loss, `adapted` the model in it.

    fit and eval_fit: how micro-batches are cut to fit into memory, in training and evaluation.
    """

    strategy: Strategy
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
    watch: Watch = field(default_factory=Watch)
    fit: Fit = field(default_factory=Fit)
    eval_fit: Fit = field(default_factory=lambda: Fit("evaluation"))
    trackers: Trackers = NO_TRACKERS

    def log(self, line: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl, and tell the trackers: for the main rank alone."""
        append_jsonl(self.run.metrics, line)
        self.trackers.tell(line)


def run_loop(job: Job, progress: Progress) -> Progress:
    """Train from `progress` to the end.

    Raises Stopped after committing a checkpoint, and DivergedError with layer and rows named.
    """
    plan, training, standing = job.plan, job.training, job.strategy.standing
    ahead = _Ahead(job)
    job.display.start(progress.step, plan.total_steps)
    _rehearse(job, progress.step)
    if progress.step == 0 and progress.first_eval_loss is None:
        progress.evaluation_due = True
    if progress.evaluation_due:
        is_best, wish = evaluate(job, progress)
        # At the start also for its own sake: what cannot be saved is found before the first step.
        commit(job, progress)
        _stop_if_asked(job, progress, wish)
    while progress.step < plan.total_steps and not progress.stopped_early:
        started, standing.step = time.perf_counter(), progress.step + 1
        spent = _spent(job)
        try:
            work = ahead.take(progress.step)
        except LorafitError:  # a stream's bad row: what was trained so far is kept
            if progress.step > 0:
                commit(job, progress)
            raise
        learning_rate = learning_rate_at(
            progress.step, plan.total_steps, training, plan.peak_learning_rate
        )
        try:
            result = train_step(
                job.strategy, job.module, job.optimizer, work.batches, step=progress.step,
                learning_rate=learning_rate, seed=training.seed,
                max_grad_norm=training.max_grad_norm, wish=lambda: job.stop.wish, rule=job.rule,
                meanwhile=partial(ahead.prepare, progress.step + 1),
                smaller=partial(_smaller, job, work, progress.step),
                figures=partial(_figures, job, spent),
            )
            wish = result.wish
            progress.step += 1
            _log(job, progress, work, result, learning_rate, time.perf_counter() - started,
                 spent)
        except NotFinite as error:
            _skip(job, progress, work, error)
            wish = error.wish
        if job.strategy.ranks == 1:  # what came since the step looked; ranks must agree
            wish = max(wish, job.stop.wish)
        is_last = progress.step == plan.total_steps
        is_best = False
        if is_last or progress.step % plan.eval_every == 0:
            progress.evaluation_due = True
            if not wish.ends:  # else the resumed run does it
                is_best, asked = evaluate(job, progress)
                wish = max(wish, asked)
        if (is_last or is_best or progress.stopped_early or wish > Wish.NOTHING
                or progress.step % plan.checkpoint_every == 0):
            commit(job, progress)
        if wish is Wish.SAVE:
            job.stop.saved()
            job.display.say(f"a checkpoint of step {progress.step} was committed, as asked")
        if not (is_last or progress.stopped_early) or progress.evaluation_due:
            _stop_if_asked(job, progress, wish)
    return progress


def _rehearse(job: Job, step: int) -> None:
    """Compute the longest rows at hand once, where running out of memory can be caught."""
    if not may_run_out(job.strategy.device):
        return
    before = job.fit.halvings
    parameters = [p for group in job.optimizer.param_groups for p in group["params"]]
    most = rehearse(job.strategy, job.module, parameters, job.feed, job.layout, job.pad_id,
                    job.fit, job.training.seed,
                    partial(_again_or_end, job, step, "the longest rows"))
    if job.fit.halvings > before:
        job.display.say(f"the longest rows do not fit into memory together: micro-batches are cut "
                        f"to {most}")
        if job.strategy.is_main:
            _keep_memory(job, step)


@dataclass(frozen=True)
class _Work:
    """The examples of a step, and this rank's micro-batches of them as they were laid out, and as
    they are computed."""

    examples: StepExamples
    parts: Sequence[MicroBatch]
    batches: Sequence[Batch]


class _Ahead:
    """The work of a step, made while the device still computes the step before. An error in it is
    raised when it is taken."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._step = -1
        self._made: _Work | LorafitError | None = None

    def prepare(self, step: int) -> None:
        if step == self._step or step >= self._job.plan.total_steps:
            return
        self._step = step
        try:
            self._made = self._make(step)
        except LorafitError as error:
            self._made = error

    def take(self, step: int) -> _Work:
        self.prepare(step)
        assert self._step == step
        made, self._made = self._made, None
        if isinstance(made, LorafitError):
            raise made
        assert made is not None
        return made

    def _make(self, step: int) -> _Work:
        with self._job.strategy.standing.fetching(step + 1, self._job.strategy.device):
            return self._made_of(self._job, step)

    def _made_of(self, job: Job, step: int) -> _Work:
        examples = job.feed.step(step)
        parts = split_rows(examples.lengths, job.layout, job.strategy.shares)
        shares = [parts[share :: job.strategy.shares] for share in range(job.strategy.shares)]
        mine = shares[job.strategy.share]
        passes = 0
        if job.strategy.in_lockstep:  # a share whose micro-batches were cut has more of them
            passes = max(len(job.fit.pieces(share)) for share in shares)
        return _Work(examples, mine, _batches(job, examples, mine, passes))


def _batches(job: Job, examples: StepExamples, parts: Sequence[MicroBatch],
             passes: int = 0) -> list[Batch]:
    """The micro-batches as tensors, with empty ones behind them up to a number of `passes`."""
    pieces = job.fit.pieces(parts)
    pieces += [MicroBatch()] * (passes - len(pieces))
    batches = [job.strategy.mine(collate(examples.tokens, part, job.layout, job.pad_id))
               for part in pieces]
    if job.strategy.device.type == "cuda":
        batches = [batch.pinned() for batch in batches]
    return batches


def _smaller(job: Job, work: _Work, step: int) -> list[Batch]:
    """The step's micro-batches after memory ran out. MachineError where they cannot be cut."""
    job.fit.halve(work.parts, work.examples.lengths)
    most = job.fit.most_examples(work.parts)
    _again_or_end(job, step, f"step {step + 1}", most)
    job.display.say(f"out of memory in step {step + 1}: micro-batches are cut to {most} "
                    f"row{'s' if most > 1 else ''} from now on; the step is taken again")
    if job.strategy.is_main:
        _keep_memory(job, step)
    return _batches(job, work.examples, work.parts)


def _again_or_end(job: Job, step: int, where: str, most: int) -> None:
    """After memory ran out, once micro-batches are cut to `most` rows: MachineError where other
    ranks already wait for this one within the pass, after what was learnt is kept for a restart."""
    if not job.strategy.in_lockstep:
        return
    _keep_memory(job, step)
    raise MachineError(f"rank {job.strategy.rank} is out of memory in {where}; ranks that "
                       f"compute together cannot take it again\n    with --resume (or --restarts) "
                       f"micro-batches are cut to {most} row{'s' if most > 1 else ''}; the last "
                       "checkpoint is intact")


def _keep_memory(job: Job, step: int) -> None:
    write_json(job.run.memory, {"halvings": job.fit.halvings, "since_step": step + 1,
                                "micro_batch_size": job.layout.micro_batch_size,
                                "batching": job.layout.batching,
                                "device": job.strategy.device.type})


def _log(job: Job, progress: Progress, work: _Work, result: StepResult, learning_rate: float,
         seconds: float, before: tuple[float, float]) -> None:
    load = _load(job, result, before)
    warnings = job.watch.step(result.loss, result.grad_norm, result.supervised_tokens,
                              partial(_worst_rows, job, work, progress.step - 1))
    if job.strategy.is_main:
        job.log({
            "step": progress.step, "loss": result.loss, "learning_rate": learning_rate,
            "grad_norm": result.grad_norm, "supervised_tokens": result.supervised_tokens,
            "tokens": result.tokens, "computed_tokens": result.computed_tokens,
            "seconds": round(seconds, 6), **load.as_dict(),
        })
        for warning in warnings:
            job.log({"step": progress.step, "warning": warning})
    job.display.step(progress.step, result.loss, learning_rate, result.supervised_tokens, seconds,
                     load)
    for warning in warnings:
        job.display.say(f"warning: step {progress.step}: {warning}")


def _spent(job: Job) -> tuple[float, float]:
    """Seconds of waiting for data and of communication, on this rank and so far."""
    strategy = job.strategy
    return (strategy.standing.seconds[Kind.DATA],
            strategy.standing.communicated_s(strategy.device))


def _figures(job: Job, before: tuple[float, float]) -> tuple[float, ...]:
    """What ranks tell each other of a step: seconds of waiting for data, bytes of memory."""
    return _spent(job)[0] - before[0], float(peak_memory_bytes(job.strategy.device))


def _load(job: Job, result: StepResult, before: tuple[float, float]) -> Load:
    strategy = job.strategy
    memory, rank = max((int(told[1]), -number) for number, told in enumerate(result.figures))
    return Load(strategy.ranks, max(told[0] for told in result.figures),
                _spent(job)[1] - before[1], memory, -rank)


def _skip(job: Job, progress: Progress, work: _Work, error: NotFinite) -> None:
    """Leave a step out, where the recipe allows it; else DivergedError, with the run as it was
    before the step committed."""
    causes = _causes(job, progress.step, work, error)
    job.optimizer.zero_grad()
    may_skip = error.what != "weight" and progress.skipped_steps < job.training.skip_nonfinite
    if not may_skip:
        kept = "the last checkpoint is intact"
        if error.what != "weight" and progress.step > 0:
            commit(job, progress)
            kept = f"a checkpoint of step {progress.step} was committed"
        raise DivergedError(_told(error, causes, work.examples, kept)) from None
    progress.skipped_steps += 1
    progress.step += 1
    told = f"{error}; the step is left out ({progress.skipped_steps} of " \
           f"{job.training.skip_nonfinite}): {'; '.join(causes) or 'no cause was found'}"
    if job.strategy.is_main:
        job.log({"step": progress.step, "skipped": told})
    job.display.say(f"warning: {told}")


def _causes(job: Job, step: int, work: _Work, error: NotFinite) -> list[str]:
    """Where the number comes from, found on every rank and told by the main one."""
    suspect = _suspect(job, work, step)
    mine: list[str] = []
    if error.what == "weight":
        mine = suspect.of_weight()
    else:
        mine = suspect.of_loss(_looked_into(job, work))
        if not mine and error.what == "gradient":
            mine = suspect.of_gradient()
    return list(dict.fromkeys(job.strategy.all_of(mine)))


def _worst_rows(job: Job, work: _Work, step: int) -> str:
    mine = [number for part in work.parts for number in part.examples]
    if job.strategy.in_lockstep:
        mine = list(range(len(work.examples)))
    rows = job.strategy.all_of(_suspect(job, work, step).rows(mine))
    worst = sorted(rows, key=lambda row: -row[1])[:_WORST_ROWS]
    return ", ".join(f"{place} ({loss:.2f})" for place, loss in worst)


def _looked_into(job: Job, work: _Work) -> Sequence[Batch]:
    """The micro-batches that this rank looks into: its own; those of all where none can compute
    alone."""
    if not job.strategy.in_lockstep:
        return work.batches
    return _batches(job, work.examples, split_rows(work.examples.lengths, job.layout, 1))


def _suspect(job: Job, work: _Work, step: int) -> Suspect:
    shares, share = job.strategy.shares, job.strategy.share
    if job.strategy.in_lockstep:
        shares, share = 1, 0
    return Suspect(job.strategy, job.module, job.adapted, work.examples, job.layout, job.pad_id,
                   job.training.seed, step, lambda k: k * shares + share)


def evaluate(job: Job, progress: Progress) -> tuple[bool, Wish]:
    """Answer the sample prompts and measure the held-out loss; whether it is a new best.

    What somebody asked for meanwhile comes with it: then the evaluation stays due.
    """
    if job.sampler.prompts and (job.strategy.is_main or job.strategy.in_lockstep):
        _answer(job, progress.step)
    if job.held_out is None:
        progress.evaluation_due = False
        return False, Wish.NOTHING
    # Ranks that compute together cut alike: as training, which needs more, was learnt to fit.
    fit = job.fit if job.strategy.in_lockstep else job.eval_fit
    loss = held_out_loss(job.strategy, job.module, job.held_out, job.layout, job.pad_id, fit,
                         job.stop, partial(_again_or_end, job, progress.step, "an evaluation"))
    if isinstance(loss, Wish):
        return False, loss
    progress.evaluation_due = False
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
    if job.strategy.is_main:
        job.log({"step": progress.step, "held_out_loss": loss})
    job.display.evaluation(progress.step, loss, is_best)
    if not math.isfinite(loss) and (job.strategy.is_main or job.strategy.in_lockstep):
        warning = f"the held-out loss is {loss}, and no best step can be told: " + _bad_rows(job)
        if job.strategy.is_main:
            job.log({"step": progress.step, "warning": warning})
        job.display.say(f"warning: step {progress.step}: {warning}")
    return is_best, Wish.NOTHING


def _answer(job: Job, step: int) -> None:
    job.strategy.standing.at(Kind.EVALUATION, "answering sample prompts")
    answers = job.strategy.run(job.module, partial(job.sampler.answers, job.adapted))
    if job.strategy.is_main:
        for prompt, answer in answers:
            job.display.sample(prompt, answer)
            append_jsonl(job.run.samples, {"step": step, "prompt": prompt, "answer": answer})


def _bad_rows(job: Job) -> str:
    """The held-out rows that give no finite loss, as far as they are looked through."""
    data = job.held_out
    assert data is not None
    examples = StepExamples(data.lengths, data.tokens, data.place)
    suspect = Suspect(job.strategy, job.module, job.adapted, examples, job.layout, job.pad_id,
                      0, 0, lambda k: k)
    looked = min(len(data), MAX_HELD_OUT_LOOKED_THROUGH)
    bad = [place for place, loss in suspect.rows(range(looked)) if not math.isfinite(loss)]
    return f"in {several(bad)}" if bad else f"none of the first {looked} rows alone"


def commit(job: Job, progress: Progress) -> None:
    """Write a checkpoint from the main process; the others wait for it."""
    job.strategy.standing.at(Kind.SAVING, "saving")
    progress.feed = job.feed.state(progress.step)
    state = whole_state(job.optimizer, job.strategy)
    with job.strategy.whole(job.adapted):
        if job.strategy.is_main:
            with job.strategy.standing.during(Kind.SAVING, WRITING):
                save_checkpoint(job.run, job.adapted, state, progress,
                                job.training.keep_checkpoints, job.rule)
    job.strategy.wait()


def _stop_if_asked(job: Job, progress: Progress, wish: Wish) -> None:
    if wish.ends:
        raise wish.stopped(f"stopped after step {progress.step} of {job.plan.total_steps}; a "
                           "checkpoint was committed. Continue with --resume")


def _told(error: NotFinite, causes: Sequence[str], examples: StepExamples, kept: str) -> str:
    places = [str(examples.place(i)) for i in range(min(len(examples), MAX_ROWS_NAMED))]
    more = f" and {len(examples) - len(places)} more" if len(examples) > len(places) else ""
    remedy = ("go on from the last checkpoint with --resume, or start again with a lower "
              "training.learning_rate" if error.what == "weight" else
              "lower training.learning_rate, use model.dtype bfloat16 or float32 instead of "
              "float16, look at these rows, or leave such steps out with "
              "training.skip_nonfinite")
    return "\n    ".join([str(error), *causes,
                          f"rows of this step: {', '.join(places)}{more}", f"{remedy}; {kept}"])
