"""The order of rows: a pure function of the seed, so that a resumed run needs no saved position."""

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=4)  # every step of an epoch asks for the same one
def permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
    """Row numbers of one epoch in random order, shape (rows,).

    Philox's raw stream is fixed by its specification, unlike the shuffles built on it, so the
    order is the same under every numpy version.
    """
    key = [np.uint64(seed), np.uint64(epoch % 2**64)]
    order = np.argsort(np.random.Philox(key=key).random_raw(rows), kind="stable")
    order.flags.writeable = False
    return order


def rows_of_step(step: int, batch_size: int, rows: int, total_rows: int, seed: int) -> np.ndarray:
    """Row numbers of optimizer step `step` (from 0).

    Epochs follow one another without a gap, so a batch may hold the end of one and the start of
    the next; only the last step of a run can be smaller. `total_rows` is epochs × rows.
    """
    positions = np.arange(step * batch_size, min((step + 1) * batch_size, total_rows))
    epochs = positions // rows
    chosen = np.empty(len(positions), dtype=np.int64)
    for epoch in np.unique(epochs):
        inside = epochs == epoch
        chosen[inside] = permutation(rows, seed, int(epoch))[positions[inside] % rows]
    return chosen
