"""The order of rows: a pure function of the seed, so that a resumed run needs no saved position."""

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Order:
    """Which rows each step takes from sources that lie one after the other.

    sizes: rows of each source. weights: how often each of its rows is seen in an epoch; the part
    that is not whole goes to other rows in each epoch, so that over the epochs all are seen
    equally often (but for one).
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int

    @property
    def rows_per_epoch(self) -> int:
        return sum(self._counts())

    def rows_of_step(self, step: int, batch_size: int, total_rows: int) -> np.ndarray:
        """Row numbers of optimizer step `step` (from 0).

        Epochs follow one another without a gap, so a batch may hold the end of one and the start
        of the next; only the last step of a run can be smaller. `total_rows` is over all epochs.
        """
        positions = np.arange(step * batch_size, min((step + 1) * batch_size, total_rows))
        epochs = positions // self.rows_per_epoch
        chosen = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            order = permutation(self.rows_per_epoch, self.seed, int(epoch))
            places = order[positions[inside] % self.rows_per_epoch]
            if self._is_plain:
                chosen[inside] = places
            else:
                chosen[inside] = _rows_of_epoch(self, int(epoch))[places]
        return chosen

    @property
    def _is_plain(self) -> bool:
        return all(weight == 1 for weight in self.weights)

    def _counts(self) -> list[int]:
        """Rows that each source gives to an epoch."""
        return [max(1, round(size * weight)) if size else 0
                for size, weight in zip(self.sizes, self.weights, strict=True)]


@lru_cache(maxsize=2)
def _rows_of_epoch(order: Order, epoch: int) -> np.ndarray:
    """The rows of an epoch before they are shuffled, each as often as its weight says."""
    parts, first = [], 0
    for number, (size, count) in enumerate(zip(order.sizes, order._counts(), strict=True)):
        whole, rest = divmod(count, max(1, size))
        parts.append(np.tile(np.arange(first, first + size), whole))
        # A fixed order of the source, gone through `rest` rows an epoch.
        taken = (epoch * rest + np.arange(rest)) % max(1, size)
        parts.append(first + permutation(size, order.seed, -2 - number)[taken])
        first += size
    return np.concatenate(parts)

