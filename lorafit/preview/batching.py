"""What each way of batching would compute for the same steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorafit.data.feed import Feed, StepExamples
from lorafit.data.packing import Layout, split_rows
from lorafit.recipe import auto
from lorafit.recipe.auto import Decision, Device
from lorafit.recipe.schema import Recipe

MOST_STEPS = 200
WAYS = ("padded", "padding_free", "packed")


@dataclass(frozen=True)
class Way:
    """One way of batching over some steps. Tokens and micro-batches are of all of them."""

    batching: str
    micro_batch_size: int
    micro_batches: int
    computed_tokens: int
    real_tokens: int
    supervised_tokens: int

    @property
    def filled(self) -> float:
        """Share of the computed tokens that are tokens of rows, not padding."""
        return self.real_tokens / self.computed_tokens

    @property
    def efficiency(self) -> float:
        """Share of the computed tokens that are trained."""
        return self.supervised_tokens / self.computed_tokens


@dataclass(frozen=True)
class Batching:
    """All ways over the same `steps`, the one that the recipe takes, and on what it would run."""

    ways: tuple[Way, ...]
    chosen: Decision
    steps: int
    batch_size: int
    device: str


def compare(feed: Feed, steps: int, recipe: Recipe, longest_tokens: int, vocabulary: int,
            hidden_size: int | None, device: Device) -> Batching:
    """Lay out the first `steps` steps in every way, on one rank.

    The base is taken to be one whose attention can be replaced, as nearly all are.
    """
    training = recipe.training
    dtype = auto.dtype(recipe.model.dtype, device).value
    attention = auto.attention(recipe.model.attention, device, dtype, True).value
    by_sequence = attention == "sdpa" or attention.startswith("flash_attention")
    examples = [feed.step(step) for step in range(steps)]
    mean = sum(int(step.lengths.sum()) for step in examples) / sum(map(len, examples))
    supervised = sum(step[i].supervised_tokens for step in examples for i in range(len(step)))
    ways = []
    for batching in WAYS:
        row_tokens = recipe.data.max_length_tokens
        micro = auto.micro_batch_size(
            training.micro_batch_size, training.batch_size, 1,
            auto.row_tokens(batching, longest_tokens, mean, row_tokens, device), vocabulary,
            hidden_size, device).value
        layout = Layout(batching, micro, row_tokens, flat=by_sequence)
        ways.append(_lay_out(examples, layout, supervised))
    decision = auto.batching(training.batching, attention, takes_documents=True,
                             keeps_rows_apart=not recipe.adapter.row.why_not_packed)
    return Batching(tuple(ways), decision, steps, training.batch_size, device.name)


def _lay_out(examples: Sequence[StepExamples], layout: Layout, supervised_tokens: int) -> Way:
    computed = real = micro_batches = 0
    for step in examples:
        lengths = np.asarray(step.lengths)
        parts = split_rows(lengths, layout, 1)
        micro_batches += len(parts)
        computed += sum(part.computed_tokens(lengths) for part in parts)
        real += int(lengths.sum())
    return Way(layout.batching, layout.micro_batch_size, micro_batches, computed, real,
               supervised_tokens)
