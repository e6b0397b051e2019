"""Products of rows with the matrix of their group, where the rows of a group stand together.

On CUDA each is one call, torch's grouped product, with the sums of the tensor cores; where the
sizes are not what it takes, and on a CPU, the groups go one after the other. Products with thin
matrices have float32 sums then (kernels/thin.py). A single group has no need of either.

Letters: P rows, G groups, I inputs, O outputs, R rank.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from lorafit.kernels.thin import add_widened, narrow, narrow_gradient

_BYTES_ALIGNED = 16  # what torch's grouped product asks of a row on CUDA


@dataclass(frozen=True)
class Groups:
    """Where groups of rows end: (G,) int32. A group may be empty."""

    ends: Tensor

    @staticmethod
    def one(x: Tensor) -> "Groups":
        """All rows of x in one."""
        return Groups(torch.tensor([len(x)], dtype=torch.int32))  # on the CPU: nothing waits

    @property
    def count(self) -> int:
        return len(self.ends)

    @cached_property
    def rows(self) -> list[tuple[int, slice]]:
        """Each group that is not empty. Waits for the device."""
        ends = self.ends.tolist()
        return [(group, slice(start, end)) for group, (start, end)
                in enumerate(zip([0, *ends], ends, strict=False)) if end > start]


def grouped_product(x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
    """x·weight[g]: (P, I) and (G, I, O) to (P, O)."""
    if _in_one_call(x, groups, weight.shape[1], weight.shape[2]):
        return F.grouped_mm(x, weight, offs=groups.ends)
    y = x.new_empty(len(x), weight.shape[2])
    for group, rows in groups.rows:
        torch.mm(x[rows], weight[group], out=y[rows])
    return y


def grouped_narrow(x: Tensor, a: Tensor, groups: Groups) -> Tensor:
    """x·a[g]ᵀ: (P, I) and thin (G, R, I) to thin (P, R)."""
    if _in_one_call(x, groups, a.shape[1], a.shape[2]):
        return F.grouped_mm(x, a.to(x.dtype).mT, offs=groups.ends).to(a.dtype)
    h = a.new_empty(len(x), a.shape[1])
    for group, rows in groups.rows:
        h[rows] = narrow(x[rows], a[group])
    return h


def grouped_add_widened(y: Tensor, h: Tensor, a: Tensor, factor: float, groups: Groups) -> None:
    """y += factor · h·a[g]: thin (P, R) and (G, R, O) into (P, O)."""
    if _in_one_call(y, groups, a.shape[1], a.shape[2]):
        y.add_(F.grouped_mm(h.to(y.dtype), a.to(y.dtype), offs=groups.ends), alpha=factor)
        return
    for group, rows in groups.rows:
        add_widened(y[rows], h[rows], a[group], factor)


def grouped_gradient(h: Tensor, x: Tensor, groups: Groups) -> Tensor:
    """hᵀ·x over the rows of each group: thin (P, R) and (P, I) to thin (G, R, I), 0 where there are
    none."""
    if _in_one_call(x, groups, h.shape[1], x.shape[1]):
        return F.grouped_mm(h.to(x.dtype).t(), x, offs=groups.ends).to(h.dtype)
    total = h.new_zeros(groups.count, h.shape[1], x.shape[1])
    for group, rows in groups.rows:
        total[group] = narrow_gradient(h[rows], x[rows])
    return total


def _in_one_call(wide: Tensor, groups: Groups, *widths: int) -> bool:
    return wide.is_cuda and groups.count > 1 and all(
        width * wide.element_size() % _BYTES_ALIGNED == 0 for width in widths)
