"""What a run will need, told before its first step by the same functions as `lorafit plan`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lorafit.data.estimate import Amount
from lorafit.data.packing import Layout, MicroBatch, split_rows
from lorafit.errors import UserError
from lorafit.plan.calibration import Key, kept
from lorafit.plan.load import Load
from lorafit.plan.machine import this_machine
from lorafit.plan.memory import libraries_bytes, predict_memory
from lorafit.plan.shapes import shapes_of
from lorafit.plan.step_time import Course, evaluations, predict_time
from lorafit.plan.steps import draw_steps, evaluation_rows
from lorafit.plan.trained import trained_of
from lorafit.plan.work import Rows
from lorafit.recipe.auto import Decision
from lorafit.recipe.schema import Recipe
from lorafit.train.prepare import Prepared, most_tokens
from lorafit.train.strategy.strategy import Strategy

_STEPS_LOOKED_AT = 200


@dataclass(frozen=True)
class Predicted:
    """Of a rank. memory_bytes: of training, by kind. peak_memory_bytes: of the whole run. step_s,
    total_s: None where this device was never measured (`lorafit plan --calibrate`). based_on: where
    rates are from."""

    memory_bytes: dict[str, int]
    peak_memory_bytes: int
    step_s: float | None
    total_s: float | None
    based_on: str


def predict(recipe: Recipe, prepared: Prepared, strategy: Strategy, layout: Layout,
            decisions: Sequence[Decision], before_bytes: int) -> Predicted | None:
    """None where a base cannot be sized or what is trained cannot be counted from shapes.

    before_bytes: that the process had taken before the model was loaded.
    """
    try:
        shapes = shapes_of(recipe.model)
        trained = trained_of(shapes, recipe.adapter)
    except UserError:
        return None
    if trained.parameters is None:
        return None
    load = _load(recipe, prepared, strategy, layout, decisions)
    memory = predict_memory(shapes, trained, recipe.adapter, load,
                            overhead_bytes=before_bytes + libraries_bytes(load.device))
    kinds, peak = memory.by_kind(), memory.peak_bytes
    time = None
    key = Key.of(this_machine(), load.dtype, recipe.model.quantization)
    if not recipe.data.streaming and (rates := kept(key)) is not None:
        plan = prepared.plan
        held_out = prepared.held_out
        course = Course(plan.total_steps, evaluations(plan.total_steps, plan.eval_every),
                        None if held_out is None else evaluation_rows(
                            held_out.lengths, len(held_out), held_out.report.supervised_tokens))
        time = predict_time(shapes, trained, _rows(recipe, prepared, layout), course,
                            recomputation=load.recomputation,
                            quantised=recipe.model.quantization != "none",
                            devices=strategy.ranks, calibration=rates, device=key.device)
    if time is None:
        return Predicted(kinds, peak, None, None, "shapes; this device was never measured")
    return Predicted(kinds, peak, time.step_s[0], time.total_s[0], time.source)


def _rows(recipe: Recipe, prepared: Prepared, layout: Layout) -> Rows:
    """What a step computes, over all ranks, as a plan draws it from the rows' lengths."""
    report = prepared.train
    lengths = np.concatenate([prepared.feed.step(step).lengths for step in range(
        min(prepared.plan.total_steps, _STEPS_LOOKED_AT))])
    share = report.supervised_tokens / max(1, report.tokens)
    amount = Amount(report.rows_used, lengths, np.rint(share * lengths).astype(lengths.dtype),
                    True, "the run's own steps")
    return draw_steps(amount, recipe.training.batch_size, layout).rows


def beside(predicted: dict[str, Any], peak_memory_bytes: int, step_s: float | None) -> str:
    """`memory 1.02 GB (predicted 1.05), 0.41 s a step (predicted 0.38)`."""
    said = (f"memory {peak_memory_bytes / 1e9:,.3g} GB (predicted "
            f"{predicted['peak_memory_bytes'] / 1e9:,.3g})")
    if step_s is None:
        return said
    said += f", {step_s:,.3g} s a step"
    return said if predicted["step_s"] is None else f"{said} (predicted {predicted['step_s']:,.3g})"


def as_dict(predicted: Predicted | None) -> dict[str, Any] | None:
    return None if predicted is None else asdict(predicted)


def _load(recipe: Recipe, prepared: Prepared, strategy: Strategy, layout: Layout,
          decisions: Sequence[Decision]) -> Load:
    """The largest micro-batch that a rank computes in the first steps."""
    decided = {decision.key: decision.value for decision in decisions}
    slices = 1 if strategy.own is None else strategy.own.parts
    rows, longest, supervised = layout.micro_batch_size, prepared.longest_tokens, 0
    tokens = most_tokens(prepared, recipe)
    report = prepared.train
    if not recipe.data.streaming:
        for step in range(min(prepared.plan.total_steps, _STEPS_LOOKED_AT)):
            examples = prepared.feed.step(step)
            parts = split_rows(examples.lengths, layout, strategy.shares)
            largest: MicroBatch = max(
                parts, key=lambda part: part.computed_tokens(examples.lengths))
            size = largest.computed_tokens(examples.lengths)
            if step == 0 or size > tokens:
                tokens, rows = size, len(largest.examples)
                longest = max(int(examples.lengths[i]) for i in largest.examples)
                supervised = sum(examples.tokens(i).supervised_tokens for i in largest.examples)
    supervised = supervised or round(tokens * report.supervised_tokens / max(1, report.tokens))
    return Load(
        decided["model.dtype"], -(-tokens // slices), -(-supervised // slices), rows, longest,
        prepared.device.type, recipe.model.quantization, recipe.model.double_quantization,
        decided["model.attention"], layout.batching,
        decided["training.activation_checkpointing"], recipe.training.optimizer,
        strategy.ranks if strategy.cuts_up else 1)
