"""A run from recipe to result: every room once, in order."""

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lorafit import pins
from lorafit.data.local_paths import with_absolute_paths
from lorafit.data.packing import Layout
from lorafit.data.pipeline import make_renderer
from lorafit.data.stream import new_directory
from lorafit.data.stream_blocks import SharedBlocks
from lorafit.errors import LorafitError
from lorafit.model import base as bases
from lorafit.model.adapters.add import add_adapter
from lorafit.model.adapters.facts import describe
from lorafit.model.adapters.files import restore_adapter
from lorafit.model.adapters.step_rule import step_rule
from lorafit.model.base_identity import base_digest
from lorafit.model.context import prove_slices
from lorafit.model.device import device_memory_bytes, find_device
from lorafit.model.fast.speed_up import FastPath, speed_up
from lorafit.model.inventory import found_layers
from lorafit.model.isolation import Packing, settle_packing
from lorafit.model.loss import SummedLoss
from lorafit.model.offload import settle_offloading
from lorafit.model.recompute import recompute_activations, settle_recomputation
from lorafit.recipe.auto import Decision
from lorafit.recipe.schema import Recipe
from lorafit.run_dir import RunDir, clear_left_overs
from lorafit.run_lock import RunLock
from lorafit.train import predicted
from lorafit.train.agreement import agree
from lorafit.train.checkpoint import (
    Progress,
    load_checkpoint,
    newest_good_checkpoint,
    refuse_small_disk,
    saved_progress,
    set_aside_damaged,
)
from lorafit.train.display import Display, make_display
from lorafit.train.heartbeat import RANK_TIMEOUT_S, watched
from lorafit.train.loop import Job, run_loop
from lorafit.train.memory import Fit, fit_of, held_memory_bytes, peak_memory_bytes
from lorafit.train.optimizer import build_optimizer
from lorafit.train.prepare import (
    Prepared,
    first_rows,
    micro_batch_size,
    most_tokens,
    prepare,
)
from lorafit.train.record import (
    Record,
    Result,
    earlier_losses,
    keep_record,
    keep_start,
    kept_start,
    kept_step,
    median_step_s,
    versions_here,
    write_inputs,
    write_result,
)
from lorafit.train.resume import (
    on_other_versions,
    refuse_changes,
    refuse_other_base,
    refuse_other_data,
    with_date,
)
from lorafit.train.samples import Sampler
from lorafit.train.signals import StopRequest
from lorafit.train.standing import WRITING, Kind, Standing
from lorafit.train.strategy.choose import choose
from lorafit.train.strategy.strategy import Strategy
from lorafit.train.strategy.wanted import AUTO, Wanted, refuse_ranks, with_environment
from lorafit.train.trackers import NO_TRACKERS, refuse_missing, start_trackers
from lorafit.train.watch import Watch


def train(recipe: Recipe, *, resume: bool, announce: Callable[[Record], None],
          started_s: float, or_start: bool = False, stop: StopRequest | None = None,
          wanted: Wanted = AUTO, rank_timeout_s: float = RANK_TIMEOUT_S) -> Result:
    """Run a recipe to its end, or go on where it stopped.

    `or_start`: begin where there is nothing to resume. `announce` receives the record once, before
    the first step, on the main process. `started_s` is the perf_counter of the process's start.
    `stop` is what the process is asked for from outside, `wanted` how it is to be spread.
    rank_timeout_s: several ranks end when none of them gets on for so long. Raises the errors of
    lorafit.errors.
    """
    standing, stop = Standing(), stop or StopRequest()
    with watched(standing, stop, rank_timeout_s) as is_set_up:
        return _train_as_rank(recipe, resume, announce, started_s, or_start, stop, wanted,
                              rank_timeout_s, standing, is_set_up)


def _train_as_rank(recipe: Recipe, resume: bool, announce: Callable[[Record], None],
                   started_s: float, or_start: bool, stop: StopRequest, wanted: Wanted,
                   rank_timeout_s: float, standing: Standing,
                   is_set_up: Callable[[], None]) -> Result:
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

    recipe = with_absolute_paths(recipe)
    refuse_missing(recipe.output)
    run = RunDir(Path(recipe.output.dir))
    device, device_facts = find_device()
    wanted = with_environment(wanted)
    # Told here, because accelerate otherwise takes it from the environment and divides by it.
    once = GradientAccumulationPlugin(num_steps=1)
    # Later than ours, which says where ranks stand.
    patience = InitProcessGroupKwargs(timeout=timedelta(seconds=2 * rank_timeout_s + 1800))
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no",
                              gradient_accumulation_plugin=once, kwargs_handlers=[patience])
    is_set_up()
    with standing.during(Kind.COMMUNICATION, "waiting for the others"):
        agree(accelerator, recipe, device_facts)
    with ExitStack() as held:
        begin = partial(_where_to_begin, recipe, run, resume, or_start, held)
        resume, checkpoint, skipped = _decided_by_main(accelerator, standing, begin)
        return _train(accelerator, with_date(recipe, run, resume), run, held, resume, checkpoint,
                      skipped, announce, started_s, stop, wanted, standing)


def _where_to_begin(recipe: Recipe, run: RunDir, resume: bool, or_start: bool,
                    held: ExitStack) -> tuple[bool, Path | None, list[str]]:
    """Whether a run is resumed, from which checkpoint, and what a reader should know of it.

    A run that is resumed is locked until `held` is closed; a new one once its directory is made, so
    that what is refused leaves nothing behind.
    """
    resume = resume and (run.holds_a_run() or not or_start)
    if resume:
        refuse_changes(with_date(recipe, run, resume), run)
    else:
        run.refuse_taken()
        return False, None, []
    lock = _locked(run, held)
    checkpoint, skipped = newest_good_checkpoint(run)
    if lock.stale is not None:
        skipped.insert(0, f"{lock.stale}, ended without a word")
    return True, checkpoint, skipped


def _locked(run: RunDir, held: ExitStack) -> RunLock:
    """Lock a run, and clear away what a killed process left half done."""
    lock = held.enter_context(RunLock(run))
    for directory in (run.path, run.checkpoints):
        clear_left_overs(directory)
    return lock


def _begin(recipe: Recipe, run: RunDir, prepared: Prepared, held: ExitStack) -> None:
    """Make the directory of a new run, with what it begins with."""
    _locked(run, held)
    run.create()
    write_inputs(run, recipe, prepared)


def _decided_by_main(accelerator: Any, standing: Standing, decide: Callable[[], Any]) -> Any:
    """What the main process decides, on every rank: they must not look at the disk each for
    itself, while one of them changes it. An error of the main process is everyone's."""
    from accelerate.utils import broadcast_object_list

    found: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            found = [decide()]
        except LorafitError as error:
            if accelerator.num_processes == 1:
                raise
            found = [error]
    with standing.during(Kind.COMMUNICATION, "waiting for the others"):
        [decided] = broadcast_object_list(found) if accelerator.num_processes > 1 else found
    if isinstance(decided, LorafitError):
        raise decided
    return decided


def _blocks_of_machine(accelerator: Any, held: ExitStack) -> SharedBlocks | None:
    """Where the ranks of a machine share what the first of them reads; None for a single one."""
    if accelerator.num_processes == 1:
        return None
    reads = accelerator.local_process_index == 0
    directory = str(new_directory()) if reads else ""
    if reads:
        held.callback(shutil.rmtree, directory, ignore_errors=True)
    mine = (accelerator.process_index, directory)
    everyone: list[Any] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(everyone, mine)
    first = accelerator.process_index - accelerator.local_process_index
    return SharedBlocks(Path(dict(everyone)[first]), reads)


def _train(accelerator: Any, recipe: Recipe, run: RunDir, held: ExitStack, resume: bool,
           checkpoint: Path | None, skipped: list[str], announce: Callable[[Record], None],
           started_s: float, stop: StopRequest, wanted: Wanted, standing: Standing) -> Result:
    display = make_display(accelerator.is_main_process)
    digest = base_digest(recipe.model.base)
    if resume and digest is not None:
        refuse_other_base(run, digest)

    def rows_tokenised(source: str, rows: int) -> None:
        standing.moved()
        display.rows_tokenised(source, rows)

    slices = wanted.context_parallel
    refuse_ranks(wanted, accelerator.num_processes, recipe.training.batch_size)
    shared = _blocks_of_machine(accelerator, held) if recipe.data.streaming else None
    standing.at(Kind.LOADING, "reading data")
    prepared = prepare(recipe, accelerator.num_processes // slices, slices=slices,
                       watch=rows_tokenised, shared=shared,
                       feed_state=None if checkpoint is None else saved_progress(checkpoint).feed)
    strategy, spread = choose(wanted, recipe, accelerator, prepared.base_bytes, prepared.why_whole)
    strategy.standing = standing
    standing.at(Kind.LOADING, "loading the model")
    before_bytes = held_memory_bytes(prepared.device)
    adapted = _load(recipe, run, prepared, strategy, resume)
    _same_on_all_ranks(accelerator, adapted)
    facts = describe(adapted)
    if strategy.is_main:
        refuse_small_disk(run, adapted, recipe.training.keep_checkpoints)
        if resume:
            keep_start(run, recipe, adapted)
            set_aside_damaged(run, checkpoint)
    strategy.wait()
    if checkpoint is not None:
        restore_adapter(adapted, checkpoint)

    summed_loss = SummedLoss(adapted)
    layers = found_layers(adapted)
    strategy.place(summed_loss, layers)
    built = strategy.run(summed_loss, partial(_settle, recipe, prepared, summed_loss, strategy))
    prepared = built.prepared
    if strategy.ranks > 1:  # whatever is computed with the model shows that this rank gets on
        (layers or [adapted])[0].register_forward_pre_hook(lambda *_: standing.moved())
    if not resume:
        _decided_by_main(accelerator, standing, partial(_begin, recipe, run, prepared, held))
        with strategy.whole(adapted):
            if strategy.is_main:
                keep_start(run, recipe, adapted)
    optimizer = build_optimizer(adapted.named_parameters(), recipe.training, prepared.device)
    rule = step_rule(adapted)
    fingerprint = prepared.train.fingerprint
    progress = Progress(total_steps=prepared.plan.total_steps, data=fingerprint)
    if checkpoint is not None:
        progress = load_checkpoint(checkpoint, optimizer, rule, strategy)
        refuse_other_data(progress, fingerprint, run)
        progress.total_steps = prepared.plan.total_steps
        patience = recipe.training.early_stopping  # may have changed
        progress.stopped_early = patience is not None and progress.evals_without_gain >= patience
    layout = Layout(built.packing.batching.value, prepared.plan.micro_batch_size,
                    recipe.data.max_length_tokens, flat=built.packing.flat)
    fit, learnt = fit_of(run, layout, prepared.device) if resume else (Fit(), [])
    versions = versions_here()
    record = Record(
        [*([spread] if spread else []), *built.decisions], facts, prepared.train.as_dict(),
        prepared.held_out.report.as_dict() if prepared.held_out else None, prepared.plan,
        str(prepared.device), strategy.ranks, skipped,
        checkpoint.name if checkpoint else None,
        getattr(prepared.config, "_commit_hash", None),
        [*prepared.remarks, *built.remarks, *learnt,
         *(on_other_versions(run, versions) if resume else [])],
        bases.sizes(prepared.config), digest, versions, pins.commits(),
        predicted.as_dict(predicted.predict(recipe, prepared, strategy, layout, built.decisions,
                                            before_bytes)) if strategy.is_main else None,
    )
    losses = earlier_losses(run, progress) if resume else []
    strategy.wait()  # read by all before one of them writes
    if strategy.is_main:
        keep_record(run, record, progress)
        announce(record)

    trackers = start_trackers(recipe, run, progress.step, display.say) \
        if strategy.is_main else NO_TRACKERS
    timer = _FirstStep(display, started_s)
    stop.training()
    job = Job(
        strategy, summed_loss, adapted, optimizer, prepared.feed, prepared.held_out, layout,
        prepared.tokenizer.pad_token_id or 0, recipe.training, prepared.plan, run, timer,
        Sampler(recipe.training.sample_prompts, make_renderer(recipe.data, prepared.tokenizer),
                recipe.training.sample_tokens),
        stop, rule, Watch(losses), fit, trackers=trackers,
    )
    try:
        progress = run_loop(job, progress)
    finally:
        trackers.finish()
        display.stop()
    result = Result(
        progress, kept_step(recipe, progress), time.perf_counter() - started_s,
        timer.first_step_after_s, peak_memory_bytes(prepared.device), prepared.feed.read(),
        median_step_s(run),
    )
    standing.at(Kind.SAVING, "saving the result")
    with strategy.whole(adapted):
        if strategy.is_main:
            with standing.during(Kind.SAVING, WRITING):
                write_result(run, recipe, adapted, result)
    strategy.wait()
    accelerator.end_training()
    return result


def _load(recipe: Recipe, run: RunDir, prepared: Prepared, strategy: Strategy,
          resume: bool) -> Any:
    """The base with the adapter as it is before the first step: on the device, or where its weights
    lie until they are cut up."""
    adapter = recipe.adapter
    base = bases.load_base(
        recipe.model, prepared.decided("model.dtype"), prepared.decided("model.attention"),
        None if strategy.cuts_up else prepared.device,
        quantises_later=adapter.method == "lora" and not adapter.dora and not adapter.keeps_start)
    if recipe.training.activation_checkpointing == "full":
        recompute_activations(base)
    base.config.use_cache = False
    return add_adapter(base, adapter, recipe.training.seed, bases.resolve_base(recipe.model.base),
                       total_steps=prepared.plan.total_steps, samples=first_rows(prepared, recipe),
                       start=kept_start(run) if resume else None)


@dataclass(frozen=True)
class _Built:
    """What was settled once the model was there to be looked at."""

    prepared: Prepared
    packing: Packing
    decisions: list[Decision]
    remarks: list[str]


def _settle(recipe: Recipe, prepared: Prepared, summed_loss: SummedLoss,
            strategy: Strategy) -> _Built:
    """How rows are laid out, what is computed fast and what again, by trying it on the model."""
    adapted: Any = summed_loss.model
    slices = 1 if strategy.own is None else strategy.own.parts
    packing = settle_packing(adapted.get_base_model(), prepared.decision("training.batching"),
                             prepared.decided("model.attention"),
                             hands_documents_on=not recipe.adapter.row.calls_layers)
    if packing.batching.value != prepared.decided(packing.batching.key):
        prepared = prepared.laid_out(packing.batching, micro_batch_size(
            recipe, packing.batching.value, prepared.train, prepared.longest_tokens,
            strategy.shares, prepared.config, slices))
    proven = [] if strategy.own is None else [
        prove_slices(adapted, packing, strategy.own, strategy.all_of)]
    fast = speed_up(adapted, strategy.at_hand)
    summed_loss.head = fast.head
    offloads = recipe.training.activation_offloading
    recomputation = settle_recomputation(
        summed_loss, recipe.training.activation_checkpointing,
        most_tokens(prepared, recipe, slices), prepared.device,
        device_memory_bytes(prepared.device),
        may_run_layers_again=not recipe.adapter.row.why_not_recomputed, offloads=offloads)
    decisions = [*proven, *prepared.decisions, *fast.decisions, recomputation,
                 *settle_offloading(adapted, offloads, prepared.device)]
    return _Built(prepared, packing, decisions, _on_copies(fast, recomputation))


@torch.no_grad()
def _same_on_all_ranks(accelerator: Any, adapted: Any) -> None:
    """Take the main process's values of all that is trained, should another rank have drawn or
    computed other ones."""
    if accelerator.num_processes == 1:
        return
    from accelerate.utils import broadcast

    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.copy_(broadcast(parameter.detach().clone()))


def _on_copies(fast: FastPath, recomputation: Decision) -> list[str]:
    """What is remarked where peft adds A and B to weights in each step."""
    if not fast.copied_weights or recomputation.value == "full":
        return []
    return [f"{fast.copied_weights:,} weights are kept a second time for the backward pass, with "
            "the adapter added; training.activation_checkpointing: full keeps one layer's at a "
            "time"]


class _FirstStep:
    """Passes everything on to a display and notes when the first step was done."""

    def __init__(self, display: Display, started_s: float) -> None:
        self._display = display
        self._started_s = started_s
        self.first_step_after_s = 0.0

    def step(self, *what: Any) -> None:
        if not self.first_step_after_s:
            self.first_step_after_s = time.perf_counter() - self._started_s
        self._display.step(*what)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._display, name)


