"""Steps as a run will lay them out, of rows that were looked at."""

from dataclasses import dataclass

import numpy as np

from lorafit.data.estimate import Amount
from lorafit.data.packing import Layout, MicroBatch, split_rows
from lorafit.plan.work import Rows

_STEPS = 64  # that are drawn
_ROWS_AT_ONCE = 32  # about as many as an evaluation computes


@dataclass(frozen=True)
class Steps:
    """rows: what a step computes on the mean, over all devices. largest_tokens: of a micro-batch,
    with padding, and largest_supervised: of its tokens those with a loss; the most that was drawn.
    """

    rows: Rows
    largest_tokens: int
    largest_supervised: int


def draw_steps(amount: Amount, batch_size: int, layout: Layout, seed: int = 0) -> Steps:
    """Draw steps of `batch_size` rows from those that were looked at, laid out as in training."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    found = []
    largest = (0, 0)
    in_step = max(1, min(batch_size, amount.rows))
    for _ in range(_STEPS):
        chosen = generator.choice(len(amount.lengths), in_step,
                                  replace=in_step > len(amount.lengths))
        lengths, supervised = amount.lengths[chosen], amount.supervised[chosen]
        parts = split_rows(lengths, layout, 1)
        computed = [part.computed_tokens(lengths) for part in parts]
        trained = [int(supervised[list(part.examples)].sum()) for part in parts]
        largest = max(largest, *zip(computed, trained, strict=True))
        found.append((sum(computed), sum(trained),
                      sum(_squares(part, lengths, layout) for part in parts), len(parts)))
    tokens, with_loss, squares, count = np.mean(found, axis=0).tolist()
    return Steps(Rows(tokens, with_loss, squares, count), *largest)


def evaluation_rows(lengths: np.ndarray, rows: int, supervised_tokens: int) -> Rows:
    """What an evaluation of `rows` rows computes, of which those that were looked at are `lengths`
    tokens long."""
    mean = float(lengths.mean())
    mean_square = float((lengths.astype(np.float64) ** 2).mean())
    return Rows(rows * mean, supervised_tokens, rows * mean_square, -(-rows // _ROWS_AT_ONCE))


def _squares(part: MicroBatch, lengths: np.ndarray, layout: Layout) -> float:
    """Attention sees each document alone, or each padded row as a whole."""
    if layout.batching == "padded":
        return len(part.rows) * float(max(lengths[list(part.examples)])) ** 2
    return float((lengths[list(part.examples)].astype(np.float64) ** 2).sum())
