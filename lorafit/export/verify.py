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
    positions = sum(len(a) for a in reference)
    squares = sum(float((a - b).double().square().sum())
                  for a, b in zip(reference, other, strict=True))
    norm = sum(float(a.double().square().sum()) for a in reference)
    kl = sum(
        float(F.kl_div(F.log_softmax(b, -1), F.log_softmax(a, -1), log_target=True,
                       reduction="sum"))
        for a, b in zip(reference, other, strict=True)
    )
    return Agreement(
        max_difference=max(float((a - b).abs().max())
                           for a, b in zip(reference, other, strict=True)),
        relative_rms=(squares / max(norm, 1e-30)) ** 0.5,
        top1=sum(int((a.argmax(-1) == b.argmax(-1)).sum())
                 for a, b in zip(reference, other, strict=True)) / positions,
        mean_kl=max(0.0, kl / positions),
        positions=positions,
        bit_equal=all(torch.equal(a, b) for a, b in zip(reference, other, strict=True)),
    )


def using(load: Callable[[], Any], rows: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """Logits of a model that is loaded for this and let go again."""
    model = load()
    logits = logits_of(model, rows)
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return logits
