"""The largest micro-batch of a run, from the lengths of its rows."""

from dataclasses import dataclass

import numpy as np

from lorafit.data.packing import Layout, split_rows

_STEPS_DRAWN = 64


@dataclass(frozen=True)
class Largest:
    """tokens: computed, with padding. rows, longest_tokens: the sequences in it. a_step: how many
    micro-batches a rank computes of a step, in the mean."""

    tokens: int
    supervised_tokens: int
    rows: int
    longest_tokens: int
    a_step: float


def largest_drawn(lengths: np.ndarray, supervised: np.ndarray, layout: Layout, batch_size: int,
                  steps: int, ranks: int = 1) -> Largest:
    """Of as many steps as a run has, up to 64, drawn as its epochs are: each row once before any
    comes again. lengths, supervised: tokens of each row. The same for the same rows."""
    random = np.random.Generator(np.random.Philox(key=0))
    waiting = np.empty(0, dtype=np.int64)
    counts, largest = [], Largest(0, 0, 0, 0, 0.0)
    for _ in range(min(steps, _STEPS_DRAWN)):
        while len(waiting) < batch_size:
            waiting = np.concatenate([waiting, random.permutation(len(lengths))])
        chosen, waiting = waiting[:batch_size], waiting[batch_size:]
        of_step = lengths[chosen]
        parts = split_rows(of_step, layout, ranks)
        counts.append(len(parts) / ranks)
        part = max(parts, key=lambda each: each.computed_tokens(of_step))
        if (size := part.computed_tokens(of_step)) > largest.tokens:
            rows = chosen[list(part.examples)]
            largest = Largest(size, int(supervised[rows].sum()), len(rows),
                              int(lengths[rows].max()), 0.0)
    return Largest(largest.tokens, largest.supervised_tokens, largest.rows, largest.longest_tokens,
                   float(np.mean(counts)) if counts else 0.0)
