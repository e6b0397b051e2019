"""Products of a wide tensor with a thin one, the two kinds that an adapter adds to a layer.

Wide tensors hold a row a token and are in the model's dtype; thin ones hold a few numbers a token,
or are an A or B, and are float32 (float64 for a float64 model). All sums are in the thin dtype,
and a wide 16-bit tensor is never converted as a whole:

- On CUDA a thin factor is written as the sum of two bfloat16 tensors side by side, so that the
  product runs on the tensor cores with 16 bits of mantissa instead of 8. It is as wide as 2 or 3
  ranks then, which costs next to nothing while reading the wide tensor is what takes the time.
- Elsewhere the wide tensor is taken in blocks of rows that stay in the cache. Dropout goes the same
  way, so no tensor of dropped inputs is written to memory.

Letters: T tokens, I inputs, O outputs, R rank.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Numbers of a wide tensor that are taken at once: in float32 a mebibyte, half of a core's cache.
_BLOCK_NUMBERS = 2**18


@dataclass(frozen=True)
class Kept:
    """Which inputs of the adapters are not dropped: bool, (T, I), and the share they were drawn
    with, which the rest is divided by."""

    mask: Tensor
    probability: float

    def of(self, x: Tensor) -> Tensor:
        return (x * self.mask.view(torch.uint8)).div_(self.probability)

    def rows(self, start: int, stop: int) -> Tensor:
        """The part of the mask for some tokens, as 0 and 1: bytes multiply faster than bools."""
        return self.mask[start:stop].view(torch.uint8)


def draw_kept(tokens: int, inputs: int, drop_probability: float, device: torch.device) -> Kept:
    """Inputs that are not dropped, from torch's generator.

    16 random bits serve an input. The probability is rounded to a multiple of 2⁻¹⁶ and divided by
    as it is, so the mean is exact. On a CPU torch's generator gives the seed of a faster one
    (NumPy's SFC64), which takes a quarter of the time.
    """
    dropped = round(drop_probability * 2**16)
    words = max(1, -(-tokens * inputs // 4))
    if device.type == "cpu":
        seed = int(torch.empty((), dtype=torch.int64).random_())
        drawn = np.random.SFC64(seed).random_raw(words).view(np.int64)
        numbers = torch.from_numpy(drawn)
    else:
        numbers = torch.empty(words, dtype=torch.int64, device=device).random_(-2**63, None)
    mask = numbers.view(torch.int16)[: tokens * inputs].view(tokens, inputs) >= dropped - 2**15
    return Kept(mask, 1 - dropped / 2**16)


def thin_dtype(wide: torch.dtype) -> torch.dtype:
    """What thin tensors beside a wide one are held in."""
    return torch.promote_types(wide, torch.float32)


def narrow(x: Tensor, a: Tensor, kept: Kept | None = None) -> Tensor:
    """(x∘m / p)·aᵀ: (T, I) and (R, I) to thin (T, R)."""
    if _is_direct(x, kept):
        return x @ a.t()
    if _on_tensor_cores(x):
        seen = x if kept is None else kept.of(x)
        both = torch.mm(seen, torch.cat(_two(a, x.dtype)).t(), out_dtype=torch.float32)
        return both[:, : len(a)] + both[:, len(a):]
    h = torch.empty(len(x), len(a), dtype=a.dtype, device=x.device)
    for rows in _blocks(x):
        torch.mm(_dropped(x, rows, kept, a.dtype), a.t(), out=h[rows])
    return h if kept is None else h.div_(kept.probability)


def add_widened(y: Tensor, h: Tensor, a: Tensor, factor: float = 1.0, kept: Kept | None = None
                ) -> None:
    """y += factor · (h·a)∘m / p: thin (T, R) and (R, O) into wide (T, O)."""
    if _is_direct(y, kept):
        y.addmm_(h, a, alpha=factor)
        return
    if kept is not None:
        factor /= kept.probability
    if _on_tensor_cores(y):
        high, low = _two(h, y.dtype)
        upper, lower = _two(a, y.dtype)
        left, right = torch.cat([high, low, high], dim=1), torch.cat([upper, upper, lower])
        if kept is None:
            y.addmm_(left, right, alpha=factor)
        else:
            y.add_((left @ right).mul_(kept.mask), alpha=factor)
        return
    for rows in _blocks(y):
        part = h[rows] @ a
        if kept is not None:
            part.mul_(kept.rows(rows.start, rows.stop))
        y[rows] = part.mul_(factor).add_(y[rows])  # one rounding, of the sum


def narrow_gradient(h: Tensor, x: Tensor, kept: Kept | None = None) -> Tensor:
    """hᵀ·(x∘m / p): thin (T, R) and (T, I) to (R, I), in the thin dtype."""
    if _is_direct(x, kept):
        return h.t() @ x
    if _on_tensor_cores(x):
        seen = x if kept is None else kept.of(x)
        both = torch.mm(torch.cat(_two(h, x.dtype), dim=1).t(), seen, out_dtype=torch.float32)
        return both[: h.shape[1]] + both[h.shape[1]:]
    total = torch.zeros(h.shape[1], x.shape[1], dtype=h.dtype, device=x.device)
    for rows in _blocks(x):
        total.addmm_(h[rows].t(), _dropped(x, rows, kept, h.dtype))
    return total if kept is None else total.div_(kept.probability)


def _is_direct(wide: Tensor, kept: Kept | None) -> bool:
    return kept is None and wide.dtype in (torch.float32, torch.float64)


def _on_tensor_cores(wide: Tensor) -> bool:
    """float16 is not split: what is small in it has no bits left to split."""
    return wide.is_cuda and wide.dtype == torch.bfloat16


def _two(thin: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A tensor as the sum of two of a narrower dtype."""
    high = thin.to(dtype)
    return high, (thin - high).to(dtype)


def _blocks(wide: Tensor) -> Iterator[slice]:
    """Rows of a tensor, so many at once as stay in the cache of a CPU; all of them elsewhere."""
    step = max(16, _BLOCK_NUMBERS // wide.shape[1]) if wide.device.type == "cpu" else len(wide)
    for start in range(0, len(wide), max(step, 1)):
        yield slice(start, min(start + step, len(wide)))


def _dropped(x: Tensor, rows: slice, kept: Kept | None, dtype: torch.dtype) -> Tensor:
    """Some rows of x in the thin dtype, 0 where dropped, not yet divided by the share kept."""
    part = x[rows].to(dtype)
    return part if kept is None else part * kept.rows(rows.start, rows.stop)
