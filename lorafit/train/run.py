"""A run from recipe to result: every room once, in order."""

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lorafit import __version__, pins
from lorafit.data.batches import collate
from lorafit.data.chat import resolve_template
from lorafit.data.dataset import Report, TokenisedData, read_data, read_held_out, ready
from lorafit.data.feed import EpochFeed, Feed
from lorafit.data.packing import Layout, split_rows
from lorafit.data.pipeline import make_renderer
from lorafit.data.stream import StreamFeed
from lorafit.errors import LorafitError, MachineError, UserError
from lorafit.model import base as bases
from lorafit.model.adapters.add import add_adapter, refuse_misfit
from lorafit.model.adapters.facts import AdapterFacts, describe
from lorafit.model.adapters.files import restore_adapter, save_adapter
from lorafit.model.adapters.starts import Samples
from lorafit.model.adapters.step_rule import step_rule
from lorafit.model.base_identity import base_digest
from lorafit.model.device import device_memory_bytes, find_device
from lorafit.model.fast.speed_up import FastPath, speed_up
from lorafit.model.isolation import settle_packing
from lorafit.model.loss import SummedLoss
from lorafit.model.offload import refuse_offloading, settle_offloading
from lorafit.model.recompute import recompute_activations, settle_recomputation
from lorafit.model.stored import refuse_misfit as refuse_misfit_on_stored
from lorafit.model.stored import stored_as
from lorafit.model.targets import resolve_targets
from lorafit.recipe import auto
from lorafit.recipe.auto import Decision
from lorafit.recipe.loading import dump_recipe
from lorafit.recipe.schema import Recipe
from lorafit.run_dir import (
    RunDir,
    clear_left_overs,
    committed_directory,
    damage,
    read_jsonl,
    write_json,
    write_text,
)
from lorafit.run_lock import RunLock
from lorafit.secrets import without_secrets
from lorafit.train.checkpoint import (
    Progress,
    load_checkpoint,
    newest_good_checkpoint,
    refuse_small_disk,
    saved_progress,
    set_aside_damaged,
)
from lorafit.train.display import Display, make_display
from lorafit.train.loop import Job, Plan, run_loop
from lorafit.train.memory import Fit, fit_of
from lorafit.train.optimizer import build_optimizer
from lorafit.train.resume import (
    on_other_versions,
    refuse_changes,
    refuse_other_base,
    refuse_other_data,
    with_absolute_paths,
    with_date,
)
from lorafit.train.samples import Sampler
from lorafit.train.signals import StopRequest
from lorafit.train.watch import Watch

HELD_OUT_ROWS = 32  # kept in the run directory for verification after export

@dataclass(frozen=True)
class Prepared:
    """What is known before any weight is loaded. `check` stops here; `train` goes on."""

    tokenizer: Any
    config: Any
    device: torch.device
    feed: Feed
    train: Report
    held_out: TokenisedData | None
    decisions: list[Decision]
    plan: Plan
    remarks: list[str]
    longest_tokens: int

    def decided(self, key: str) -> Any:
        return self.decision(key).value

    def decision(self, key: str) -> Decision:
        return next(decision for decision in self.decisions if decision.key == key)

    def laid_out(self, batching: Decision, micro: Decision) -> "Prepared":
        """The same with another layout, where the loaded model asked for one."""
        changed = {decision.key: decision for decision in (batching, micro)}
        return replace(self, plan=replace(self.plan, micro_batch_size=micro.value),
                       decisions=[changed.get(d.key, d) for d in self.decisions])


@dataclass(frozen=True)
class Record:
    """What a run prints at its start and keeps in record.json.

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


@dataclass(frozen=True)
class Result:
    """How a run ended. Times in seconds, memory in bytes. read: rows of a stream, counted."""

    progress: Progress
    kept_step: int
    seconds: float
    first_step_after_s: float
    peak_memory_bytes: int
    read: dict[str, int] | None = None


def prepare(recipe: Recipe, ranks: int, *, feed_state: dict[str, Any] | None = None,
            watch: Callable[[str, int], None] = lambda source, rows: None) -> Prepared:
    """Read and tokenise the data and decide everything that is left open.

    `feed_state` is where a resumed run's stream goes on; `watch` is told how many rows of a source
    are tokenised. UserError for whatever is wrong with the data, the base's configuration or the
    adapter.
    """
    training, data = recipe.training, recipe.data
    config = bases.load_config(recipe.model)
    stored = stored_as(config)
    shapes = bases.meta_model(config, trust_remote_code=recipe.model.trust_remote_code)
    refuse_misfit_on_stored(recipe.adapter, stored, shapes)
    packed = (stored.label if stored is not None and not stored.unpacked
              else recipe.model.quantization)
    targets = resolve_targets(shapes, recipe.adapter, packed)
    remarks = list(targets.remarks)
    refuse_misfit(shapes, recipe.adapter)
    device, facts = find_device()
    refuse_offloading(training.activation_offloading, device, shapes)
    tokenizer = bases.load_tokenizer(recipe.model)
    train_data: TokenisedData | None = None
    if data.streaming:
        checked = read_held_out(data, tokenizer, watch)
        held_out = None if checked is None else ready(checked, data)
        stream = StreamFeed(data, tokenizer, training.seed, training.batch_size, checked,
                            feed_state)
        report, longest = stream.report(), data.max_length_tokens
    else:
        train_data, held_out = read_data(data, tokenizer, training.seed, watch)
        report, longest = train_data.report, train_data.report.longest_tokens
    longest = max(longest, held_out.report.longest_tokens if held_out else 0)
    _refuse_too_long(config, longest)

    text_config = config.get_text_config()
    dtype = auto.dtype(recipe.model.dtype, facts)
    attention = auto.attention(recipe.model.attention, facts, dtype.value,
                               bases.supports_sdpa(config))
    batching = auto.batching(training.batching, attention.value,
                             takes_documents=not recipe.adapter.row.calls_layers
                             and bases.takes_attention_functions(config),
                             keeps_rows_apart=not recipe.adapter.row.why_not_packed)
    rate = auto.learning_rate(training.learning_rate, text_config.model_type,
                              getattr(text_config, "hidden_size", None), recipe.adapter.method)
    micro = _micro_batch_size(recipe, batching.value, report, longest, ranks, config)
    rows: int | None = None
    feed: Feed
    if train_data is None:
        steps, feed = training.steps or 0, stream
    else:
        order = train_data.order(training.seed)
        rows = auto.total_rows(training.epochs, training.steps, training.batch_size,
                               order.rows_per_epoch)
        steps = -(-rows // training.batch_size)
        feed = EpochFeed(train_data, order, training.batch_size, rows)
    eval_every = auto.eval_every(training.eval_every, steps)
    checkpoint_every = auto.checkpoint_every(training.checkpoint_every, eval_every.value)
    decisions = [dtype, attention, rate, batching, micro, eval_every, checkpoint_every]
    if stored is not None:
        decisions.insert(0, stored.decision(dtype.value))
    plan = Plan(rows, steps, micro.value, rate.value, eval_every.value, checkpoint_every.value)
    return Prepared(tokenizer, config, device, feed, report, held_out, decisions, plan, remarks,
                    longest)


def _micro_batch_size(recipe: Recipe, batching: str, report: Report, longest_tokens: int,
                      ranks: int, config: Any) -> Decision:
    _, facts = find_device()
    tokens_a_row = auto.row_tokens(batching, longest_tokens, report.tokens / report.rows_used,
                                   recipe.data.max_length_tokens, facts)
    training, sizes = recipe.training, config.get_text_config()
    return auto.micro_batch_size(training.micro_batch_size, training.batch_size, ranks,
                                 tokens_a_row, sizes.vocab_size,
                                 getattr(sizes, "hidden_size", None), facts)


def train(recipe: Recipe, *, resume: bool, announce: Callable[[Record], None],
          started_s: float, or_start: bool = False, stop: StopRequest | None = None) -> Result:
    """Run a recipe to its end, or go on where it stopped.

    `or_start`: begin where there is nothing to resume. `announce` receives the record once, before
    the first step, on the main process. `started_s` is the perf_counter of the process's start.
    `stop` is what the process is asked for from outside. Raises the errors of lorafit.errors.
    """
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin

    recipe = with_absolute_paths(recipe)
    run = RunDir(Path(recipe.output.dir))
    device, _ = find_device()
    refuse_other_engines()
    # Told here, because accelerate otherwise takes it from the environment and divides by it.
    once = GradientAccumulationPlugin(num_steps=1)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no",
                              gradient_accumulation_plugin=once)
    with ExitStack() as held:
        begin = partial(_where_to_begin, recipe, run, resume, or_start, held)
        resume, checkpoint, skipped = _decided_by_main(accelerator, begin)
        return _train(accelerator, with_date(recipe, run, resume), run, resume, checkpoint, skipped,
                      announce, started_s, stop or StopRequest())


def refuse_other_engines() -> None:
    """UserError when the environment asks accelerate for an engine that is not supported, as
    `accelerate launch` with a configuration of it does: it would be taken silently."""
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("1", "true", "yes"):
            raise UserError(f"{name} is not supported: each rank holds the whole base",
                            f"ACCELERATE_USE_{name}",
                            "unset it, or choose a plain configuration of accelerate")


def _where_to_begin(recipe: Recipe, run: RunDir, resume: bool, or_start: bool,
                    held: ExitStack) -> tuple[bool, Path | None, list[str]]:
    """Whether a run is resumed, from which checkpoint, and what a reader should know of it.

    Takes the lock until `held` is closed, and clears away what a killed process left half done.
    """
    resume = resume and (run.holds_a_run() or not or_start)
    if resume:
        refuse_changes(with_date(recipe, run, resume), run)
    else:
        run.refuse_taken()
    lock = held.enter_context(RunLock(run))
    for directory in (run.path, run.checkpoints):
        clear_left_overs(directory)
    if not resume:
        return False, None, []
    checkpoint, skipped = newest_good_checkpoint(run)
    if lock.stale is not None:
        skipped.insert(0, f"{lock.stale}, ended without a word")
    return True, checkpoint, skipped


def _decided_by_main(accelerator: Any, decide: Callable[[], Any]) -> Any:
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
    [decided] = broadcast_object_list(found) if accelerator.num_processes > 1 else found
    if isinstance(decided, LorafitError):
        raise decided
    return decided


def _train(accelerator: Any, recipe: Recipe, run: RunDir, resume: bool, checkpoint: Path | None,
           skipped: list[str], announce: Callable[[Record], None], started_s: float,
           stop: StopRequest) -> Result:
    display = make_display(accelerator.is_main_process)
    digest = base_digest(recipe.model.base)
    if resume and digest is not None:
        refuse_other_base(run, digest)
    prepared = prepare(recipe, accelerator.num_processes, watch=display.rows_tokenised,
                       feed_state=None if checkpoint is None else saved_progress(checkpoint).feed)
    base = bases.load_base(recipe.model, prepared.decided("model.dtype"),
                           prepared.decided("model.attention"), prepared.device)
    if recipe.training.activation_checkpointing == "full":
        recompute_activations(base)
    base.config.use_cache = False
    packing = settle_packing(base, prepared.decision("training.batching"),
                             prepared.decided("model.attention"),
                             hands_documents_on=not recipe.adapter.row.calls_layers)
    if packing.batching.value != prepared.decided(packing.batching.key):
        prepared = prepared.laid_out(packing.batching, _micro_batch_size(
            recipe, packing.batching.value, prepared.train, prepared.longest_tokens,
            accelerator.num_processes, prepared.config))
    decisions = list(prepared.decisions)
    adapted = add_adapter(base, recipe.adapter, recipe.training.seed,
                          bases.resolve_base(recipe.model.base),
                          total_steps=prepared.plan.total_steps,
                          samples=_first_rows(prepared, recipe),
                          start=run.initial_adapter if resume and run.initial_adapter.exists()
                          else None)
    _same_on_all_ranks(accelerator, adapted)
    optimizer = build_optimizer(adapted.named_parameters(), recipe.training, prepared.device)
    rule = step_rule(adapted)
    if accelerator.is_main_process:
        refuse_small_disk(run, adapted, recipe.training.keep_checkpoints)
        if not resume:
            run.create()
            _write_inputs(run, recipe, prepared)
        _keep_start(run, recipe, adapted)
    accelerator.wait_for_everyone()

    fingerprint = prepared.train.fingerprint
    progress = Progress(total_steps=prepared.plan.total_steps, data=fingerprint)
    if resume and accelerator.is_main_process:
        set_aside_damaged(run, checkpoint)
    if checkpoint is not None:
        progress = load_checkpoint(checkpoint, adapted, optimizer, rule)
        refuse_other_data(progress, fingerprint, run)
        progress.total_steps = prepared.plan.total_steps
        patience = recipe.training.early_stopping  # may have changed
        progress.stopped_early = patience is not None and progress.evals_without_gain >= patience
    fast = speed_up(adapted)
    decisions += fast.decisions
    summed_loss = SummedLoss(adapted, fast.head)
    offloads = recipe.training.activation_offloading
    recomputation = settle_recomputation(
        summed_loss, recipe.training.activation_checkpointing, _most_tokens(prepared, recipe),
        prepared.device, device_memory_bytes(prepared.device),
        may_run_layers_again=not recipe.adapter.row.why_not_recomputed, offloads=offloads)
    decisions += [recomputation, *settle_offloading(adapted, offloads, prepared.device)]
    layout = Layout(packing.batching.value, prepared.plan.micro_batch_size,
                    recipe.data.max_length_tokens, flat=packing.flat)
    fit, learnt = fit_of(run, layout, prepared.device) if resume else (Fit(), [])
    versions = _versions()
    record = Record(
        decisions, describe(adapted), prepared.train.as_dict(),
        prepared.held_out.report.as_dict() if prepared.held_out else None, prepared.plan,
        str(prepared.device), accelerator.num_processes, skipped,
        checkpoint.name if checkpoint else None,
        getattr(prepared.config, "_commit_hash", None),
        [*prepared.remarks, *_on_copies(fast, recomputation), *learnt,
         *(on_other_versions(run, versions) if resume else [])],
        bases.sizes(prepared.config), digest, versions, pins.commits(),
    )
    losses = _losses(run, progress) if resume else []
    accelerator.wait_for_everyone()  # read by all before one of them writes
    if accelerator.is_main_process:
        _keep_record(run, record, progress)
        announce(record)

    timer = _FirstStep(display, started_s)
    stop.is_training = True
    job = Job(
        accelerator, summed_loss, adapted, optimizer, prepared.feed, prepared.held_out, layout,
        prepared.tokenizer.pad_token_id or 0, recipe.training, prepared.plan, run, timer,
        Sampler(recipe.training.sample_prompts, make_renderer(recipe.data, prepared.tokenizer),
                recipe.training.sample_tokens),
        stop, rule, Watch(losses), fit,
    )
    try:
        progress = run_loop(job, progress)
    finally:
        display.stop()
    result = Result(
        progress, _kept_step(recipe, progress), time.perf_counter() - started_s,
        timer.first_step_after_s, peak_memory_bytes(prepared.device), prepared.feed.read(),
    )
    if accelerator.is_main_process:
        _write_result(run, recipe, adapted, result)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return result


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


def _losses(run: RunDir, progress: Progress) -> list[float]:
    """Of the steps before the one that a resumed run stands at."""
    return [line["loss"] for line in read_jsonl(run.metrics)
            if "loss" in line and line["step"] <= progress.step]


def _on_copies(fast: FastPath, recomputation: Decision) -> list[str]:
    """What is remarked where peft adds A and B to weights in each step."""
    if not fast.copied_weights or recomputation.value == "full":
        return []
    return [f"{fast.copied_weights:,} weights are kept a second time for the backward pass, with "
            "the adapter added; training.activation_checkpointing: full keeps one layer's at a "
            "time"]


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory used so far: of the device, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _most_tokens(prepared: Prepared, recipe: Recipe) -> int:
    """Tokens of the largest micro-batch that there can be."""
    longest = prepared.longest_tokens
    if recipe.data.streaming or prepared.decided("training.batching") == "packed":
        longest = recipe.data.max_length_tokens
    return prepared.plan.micro_batch_size * longest


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


def _refuse_too_long(config: Any, longest_tokens: int) -> None:
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit and longest_tokens > limit:
        raise UserError(
            f"rows of {longest_tokens} tokens are longer than the base's context of {limit}",
            "data.max_length_tokens", f"set it to at most {limit} and choose data.on_long",
        )


def _write_inputs(run: RunDir, recipe: Recipe, prepared: Prepared) -> None:
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


def _keep_start(run: RunDir, recipe: Recipe, adapted: Any) -> None:
    """A and B where they were computed from the base or the data: a run that goes on takes them
    from here, to the bit and without computing them again."""
    if recipe.adapter.keeps_start and not run.initial_adapter.exists():
        with committed_directory(run.initial_adapter) as partial:
            save_adapter(partial, adapted)


def _first_rows(prepared: Prepared, recipe: Recipe) -> Samples:
    """The first rows in the order of training, padded together, for a start that looks at data.

    Which rows, and how many lie together, does not depend on batch size, layout or ranks.
    """
    def batches(together: int) -> list[dict[str, Any]]:
        assert isinstance(prepared.feed, EpochFeed)  # streams are refused with the recipe
        data, order = prepared.feed.data, prepared.feed.order
        rows = min(recipe.adapter.init_rows, order.rows_per_epoch)
        examples = EpochFeed(data, order, rows, rows).step(0)
        parts = split_rows(examples.lengths, Layout("padded", together, 0), 1)
        pad_id = prepared.tokenizer.pad_token_id or 0
        return [collate(examples.tokens, part, Layout("padded", together, 0), pad_id).inputs
                for part in parts]

    return batches


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "peft", "accelerate", "safetensors", "bitsandbytes",
             "torchao", "compressed-tensors", "gptqmodel", "optimum")
    versions = {"lorafit": __version__, "python": platform.python_version()}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _keep_record(run: RunDir, record: Record, progress: Progress) -> None:
    """Write record.json, and cut the logs back to where a resumed run goes on."""
    values = asdict(record)
    values["machine"] = {"system": platform.platform(), "cpus": os.cpu_count(),
                         "threads": torch.get_num_threads()}
    write_json(run.record, without_secrets(values))
    for log in (run.metrics, run.samples):
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in read_jsonl(log)
                 if _is_done(line, progress)]
        write_text(log, "".join(lines))


def _is_done(line: dict[str, Any], progress: Progress) -> bool:
    """Whether a line of a log tells of something that a resumed run does not do again."""
    if line["step"] == progress.step and progress.evaluation_due:
        return "loss" in line or "skipped" in line
    if progress.step == 0 and progress.first_eval_loss is None:
        return False
    return line["step"] <= progress.step


def _kept_step(recipe: Recipe, progress: Progress) -> int:
    if recipe.training.keep == "best" and progress.best_step is not None:
        return progress.best_step
    return progress.step


def _write_result(run: RunDir, recipe: Recipe, adapted: Any, result: Result) -> None:
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
