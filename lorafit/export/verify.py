"""How far two models are apart, measured on real rows."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Agreement:
    """Difference of two models' logits over all positions of some rows.

    max_difference: largest |Δlogit|. relative_rms: ‖Δ‖ / ‖reference‖ over all logits.
    top1: share of positions with the same most likely token. mean_kl: KL(reference ‖ other),
    nats per position.
    """

    max_difference: float
    relative_rms: float
    top1: float
    mean_kl: float
    positions: int
    bit_equal: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Tally:
    """Adds up two models' differences row by row, so that nobody has to keep every logit."""

    def __init__(self) -> None:
        self._positions = self._same_top = 0
        self._squares = self._norm = self._kl = self._largest = 0.0
        self._bit_equal = True

    def add(self, reference: torch.Tensor, other: torch.Tensor) -> None:
        """The logits of one row by both models, each (length, vocabulary)."""
        self._positions += len(reference)
        self._squares += float((reference - other).double().square().sum())
        self._norm += float(reference.double().square().sum())
        self._kl += float(F.kl_div(F.log_softmax(other, -1), F.log_softmax(reference, -1),
                                   log_target=True, reduction="sum"))
        self._largest = max(self._largest, float((reference - other).abs().max()))
        self._same_top += int((reference.argmax(-1) == other.argmax(-1)).sum())
        self._bit_equal = self._bit_equal and torch.equal(reference, other)

    def agreement(self) -> Agreement:
        return Agreement(
            max_difference=self._largest,
            relative_rms=(self._squares / max(self._norm, 1e-30)) ** 0.5,
            top1=self._same_top / self._positions,
            mean_kl=max(0.0, self._kl / self._positions),
            positions=self._positions,
            bit_equal=self._bit_equal,
        )


@torch.inference_mode()
def logits_of(model: Any, rows: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """Logits of each row, float32 on the CPU, shape (length, vocabulary)."""
    device = next(model.parameters()).device
    result = []
    for row in rows:
        ids = torch.as_tensor(row, dtype=torch.long, device=device)[None]
        result.append(model(input_ids=ids, use_cache=False).logits[0].float().cpu())
    return result


def compare(reference: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> Agreement:
    """Agreement of two models' logits on the same rows."""
    tally = Tally()
    for a, b in zip(reference, other, strict=True):
        tally.add(a, b)
    return tally.agreement()


def using(load: Callable[[], Any], rows: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """Logits of a model that is loaded for this and let go again."""
    model = load()
    logits = logits_of(model, rows)
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return logits
