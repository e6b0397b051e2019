"""What a recipe will need and do on a machine, told before anything is loaded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lorafit.data.estimate import Amount, estimate
from lorafit.data.packing import Layout
from lorafit.errors import UserError
from lorafit.plan.calibration import Key, kept
from lorafit.plan.capacity import Capacity, capacity
from lorafit.plan.fitting import Fitting, fit_into
from lorafit.plan.load import Load
from lorafit.plan.machine import Machine
from lorafit.plan.remarks import Remark, Run, remarks_on
from lorafit.plan.shapes import Shapes, shapes_of
from lorafit.plan.step_time import Course, Time, evaluations, predict_time
from lorafit.plan.steps import Steps, draw_steps, evaluation_rows
from lorafit.plan.tokenizer import fast_tokenizer
from lorafit.plan.trained import Trained, trained_of
from lorafit.recipe import auto
from lorafit.recipe.auto import Decision
from lorafit.recipe.schema import Recipe


@dataclass(frozen=True)
class Tokens:
    """What a run reads. rows, steps, epochs: of the whole run. tokens_a_step and supervised_a_step:
    without padding, in the mean. longest: of the rows that were looked at. seen_supervised: tokens
    of rows that the run comes to, each counted once."""

    rows: int
    steps: int
    epochs: float
    tokens_a_step: float
    supervised_a_step: float
    longest_tokens: int
    seen_supervised_tokens: int


@dataclass(frozen=True)
class Plan:
    """The answer to `lorafit plan`. train, tokens: None where the base brings no tokenizer.json to
    count with. memory: None for a method whose parameters are not counted from shapes. decisions:
    what `auto` means on this machine."""

    recipe: Recipe
    machine: Machine
    shapes: Shapes
    trained: Trained
    train: Amount | None
    held_out: Amount | None
    tokens: Tokens | None
    decisions: tuple[Decision, ...]
    capacity: Capacity | None
    memory: Fitting | None
    time: Time | None
    remarks: tuple[Remark, ...]


def plan(recipe: Recipe, machine: Machine, *,
         measure_loss: Callable[[Recipe], float] | None = None) -> Plan:
    """Look at the base's headers and at the data, and work out the rest.

    measure_loss: the base's loss on a sample of the training rows, in nats a supervised token,
    where it was asked for. UserError for what is wrong with base, adapter or rows.
    """
    shapes = shapes_of(recipe.model)
    trained = trained_of(shapes, recipe.adapter)
    tokenizer = fast_tokenizer(recipe.model)
    train: Amount | None = None
    held_out: Amount | None = None
    tokens: Tokens | None = None
    if tokenizer is not None:
        train, held_out = estimate(recipe.data, tokenizer, recipe.training.seed)
        tokens = tokens_of(recipe, train)
        _refuse_too_long(shapes, tokens.longest_tokens)
    decisions = decide(recipe, shapes, machine, tokens)
    chosen = {decision.key: decision.value for decision in decisions}
    steps = None if train is None else draw_steps(train, recipe.training.batch_size, Layout(
        chosen["training.batching"], chosen["training.micro_batch_size"],
        recipe.data.max_length_tokens, flat=True))
    memory = fit_into(machine, recipe, shapes, trained,
                      _load(recipe, chosen, machine, tokens, steps))
    held: Capacity | None = None
    if tokens is not None:
        loss = None if measure_loss is None else measure_loss(recipe)
        held = capacity(tokens.seen_supervised_tokens, trained, recipe.adapter.rank, loss)
    time = None
    if steps is not None and tokens is not None:
        recomputation = "none" if memory is None else memory.recomputation.value
        time = time_of(recipe, shapes, trained, machine, chosen, steps, held_out, tokens,
                       recomputation)
    run = Run(recipe, shapes, trained, held, None if tokens is None else tokens.steps,
              None if tokens is None else tokens.tokens_a_step, _fits_unquantised(memory))
    return Plan(recipe, machine, shapes, trained, train, held_out, tokens, decisions, held,
                memory, time, tuple(remarks_on(run)))


def tokens_of(recipe: Recipe, train: Amount) -> Tokens:
    training = recipe.training
    rows = auto.total_rows(training.epochs, training.steps, training.batch_size, train.rows)
    epochs = rows / train.rows
    mean = float(train.lengths.mean()) if len(train.lengths) else 0.0
    supervised = float(train.supervised.mean()) if len(train.lengths) else 0.0
    in_a_step = min(training.batch_size, rows)
    return Tokens(rows, -(-rows // training.batch_size), epochs, in_a_step * mean,
                  in_a_step * supervised,
                  int(train.lengths.max()) if len(train.lengths) else 0,
                  round(train.supervised_tokens * min(1.0, epochs)))


def time_of(recipe: Recipe, shapes: Shapes, trained: Trained, machine: Machine,
            chosen: Mapping[str, Any], steps: Steps, held_out: Amount | None,
            tokens: Tokens, recomputation: str) -> Time | None:
    """Of the run, by what was measured of the device or is on its data sheet."""
    every = auto.eval_every(recipe.training.eval_every, tokens.steps).value
    course = Course(tokens.steps, evaluations(tokens.steps, every),
                    None if held_out is None else evaluation_rows(
                        held_out.lengths, held_out.rows, held_out.supervised_tokens))
    quantised = recipe.model.quantization != "none"
    calibration = kept(Key.of(machine, chosen["model.dtype"], recipe.model.quantization)) \
        if machine.is_here else None
    return predict_time(
        shapes, trained, steps.rows, course,
        recomputation=recomputation, quantised=quantised,
        devices=machine.devices, calibration=calibration, device=machine.device.name)


def _load(recipe: Recipe, chosen: Mapping[str, Any], machine: Machine, tokens: Tokens | None,
          steps: Steps | None) -> Load:
    """The largest micro-batch; of the longest rows that the recipe allows where none was seen."""
    rows = chosen["training.micro_batch_size"]
    limit = recipe.data.max_length_tokens
    longest = limit if tokens is None else tokens.longest_tokens
    largest = rows * longest if steps is None else steps.largest_tokens
    supervised = largest if steps is None else steps.largest_supervised
    return Load(chosen["model.dtype"], largest, supervised, rows, longest, machine.device.kind,
                recipe.model.quantization, recipe.model.double_quantization,
                chosen["model.attention"], chosen["training.batching"],
                optimizer=recipe.training.optimizer)


def _fits_unquantised(memory: Fitting | None) -> bool | None:
    """Whether the base in 16 bits fits too."""
    if memory is None:
        return None
    return any(other.fits for other in memory.alternatives
               if other.name in ("bfloat16", "float16"))


def decide(recipe: Recipe, shapes: Shapes, machine: Machine,
           tokens: Tokens | None) -> tuple[Decision, ...]:
    """What training decides too, from what can be known without loading a library."""
    device, sizes = machine.device, shapes.sizes
    dtype = auto.dtype(recipe.model.dtype, device)
    attention = auto.attention(recipe.model.attention, device, dtype.value, supports_sdpa=True)
    row = recipe.adapter.row
    batching = auto.batching(recipe.training.batching, attention.value,
                             takes_documents=not row.calls_layers,
                             keeps_rows_apart=not row.why_not_packed)
    rate = auto.learning_rate(recipe.training.learning_rate, sizes.model_type, sizes.hidden_size,
                              recipe.adapter.method)
    limit = recipe.data.max_length_tokens
    longest = limit if tokens is None else tokens.longest_tokens
    mean = longest if tokens is None else tokens.tokens_a_step / min(
        recipe.training.batch_size, tokens.rows)
    micro = auto.micro_batch_size(
        recipe.training.micro_batch_size, recipe.training.batch_size, machine.devices,
        auto.row_tokens(batching.value, longest, mean, limit, device), sizes.vocabulary,
        sizes.hidden_size, device)
    return dtype, attention, rate, batching, micro


def _refuse_too_long(shapes: Shapes, longest_tokens: int) -> None:
    limit = shapes.sizes.context_tokens
    if limit and longest_tokens > limit:
        raise UserError(
            f"rows of {longest_tokens} tokens are longer than the base's context of {limit}",
            "data.max_length_tokens", f"set it to at most {limit} and choose data.on_long")
