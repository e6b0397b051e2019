"""Rows as a model sees them."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tokens:
    """Token ids of a row and how much each is trained. All have shape (length,).

    weights: factor on each token's loss where some message has one other than 1; None for 1 on
    every supervised token. A token whose weight is 0 is not supervised.
    """

    ids: np.ndarray  # int32
    supervised: np.ndarray  # bool
    weights: np.ndarray | None = None  # float32

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, start: int, end: int) -> "Tokens":
        """The tokens from `start` up to `end`."""
        weights = None if self.weights is None else self.weights[start:end]
        return Tokens(self.ids[start:end], self.supervised[start:end], weights)

    @property
    def supervised_tokens(self) -> int:
        """Tokens that carry a loss: the first of a row is never predicted."""
        return int(self.supervised[1:].sum())
