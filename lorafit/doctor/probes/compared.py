"""Results beside references of float64."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Largest relative difference, by norms. Rounding alone gives a third at most, on any device tried;
# float32 allows for TF32, which a GPU may compute products in.
LIMITS = {torch.float32: 2e-3, torch.bfloat16: 3e-2, torch.float16: 5e-3}
DTYPES = tuple(LIMITS)


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def furthest(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest relative difference of a pair, by norms; infinite where a value is not finite."""
    largest = 0.0
    for a, b in zip(got, wanted, strict=True):
        a, b = a.detach().cpu().double(), b.detach().cpu().double()
        if not torch.isfinite(a).all():
            return float("inf")
        largest = max(largest, float((a - b).norm() / b.norm().clamp_min(1e-30)))
    return largest


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers of the standard normal distribution, in float64 on the CPU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
