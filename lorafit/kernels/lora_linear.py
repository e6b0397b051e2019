"""Linear layers with LoRA that share an input: y = x·Wᵀ + b + s·(x∘m)·Aᵀ·Bᵀ.

The adapter is added into the base's output instead of becoming a tensor of its own, and the
gradient of x is summed up in place. Kept for the backward pass are x, x·Aᵀ and, with dropout, its
mask. Of several projections of one x the products with A are one.

A, B and what has their width are float32 beside a 16-bit model (kernels/thin.py), so gradients of A
and B are as exact as if x had been converted, which it never is.

Letters: T tokens, I inputs, O outputs, R rank, ΣR the ranks of all projections.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lorafit.kernels.thin import Kept, add_widened, narrow, narrow_gradient, thin_dtype


@dataclass(frozen=True)
class Projection:
    """One linear layer and its adapter.

    weight: gives the frozen (O, I) weight in the dtype of x, by reading it or by dequantising it;
    called once a pass. a: (R, I), b: (O, R), in any floating dtype; None for a layer without an
    adapter. scale: alpha / rank. bias: (O,), trained or not.
    """

    weight: Callable[[], Tensor]
    a: Tensor | None
    b: Tensor | None
    scale: float
    bias: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return self.a, self.b, self.bias

    @property
    def rank(self) -> int:
        return 0 if self.a is None else len(self.a)


def lora_linear(x: Tensor, projections: Sequence[Projection], kept: Kept | None = None
                ) -> tuple[Tensor, ...]:
    """The output (…, O) of each projection of x (…, I).

    Dropout, where there is any, drops the same inputs for all of them.
    """
    flat = x.reshape(-1, x.shape[-1])
    tensors = [tensor for p in projections for tensor in p.tensors]
    apply: Any = _LoraLinear.apply
    outputs = apply(flat, kept, tuple(projections), *tensors)
    return tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in outputs)


def reference_lora_linear(x: Tensor, projections: Sequence[Projection], kept: Kept | None = None
                          ) -> tuple[Tensor, ...]:
    """The same, one plain operation after the other."""
    flat = x.reshape(-1, x.shape[-1])
    dropped = flat if kept is None else flat * kept.mask / kept.probability
    outputs = []
    for p in projections:
        y = F.linear(flat, p.weight(), None if p.bias is None else p.bias.to(x.dtype))
        if p.a is not None and p.b is not None:
            y = (y + p.scale * F.linear(F.linear(dropped.to(p.a.dtype), p.a), p.b)).to(x.dtype)
        outputs.append(y.view(*x.shape[:-1], y.shape[-1]))
    return tuple(outputs)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Kept | None, projections: tuple[Projection, ...],
                *tensors: Tensor | None) -> tuple[Tensor, ...]:
        outputs, h = project(x, projections, kept)
        needs_x = any(p.a is not None for p in projections)
        ctx.save_for_backward(x if needs_x else None, h, None if kept is None else kept.mask,
                              *tensors)
        ctx.kept_probability = 1.0 if kept is None else kept.probability
        ctx.frozen = without_tensors(projections)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, h, mask, *tensors = ctx.saved_tensors
        kept = None if mask is None else Kept(mask, ctx.kept_probability)
        dx, trained = project_backward(gradients, x, h, with_tensors(ctx.frozen, tensors), kept,
                                       ctx.needs_input_grad[0], ctx.needs_input_grad[3:])
        return dx, None, None, *trained


def without_tensors(projections: Sequence[Projection]) -> list[Projection]:
    """What of projections is not saved as tensors for the backward pass."""
    return [replace(p, a=None, b=None, bias=None) for p in projections]


def with_tensors(frozen: Sequence[Projection], tensors: Sequence[Tensor | None]
                 ) -> list[Projection]:
    """Projections from what is known without tensors, and the three of each that were saved."""
    return [replace(p, a=tensors[3 * i], b=tensors[3 * i + 1], bias=tensors[3 * i + 2])
            for i, p in enumerate(frozen)]


def project(x: Tensor, projections: Sequence[Projection], kept: Kept | None
            ) -> tuple[list[Tensor], Tensor | None]:
    """Outputs (T, O) of x (T, I), and thin x·Aᵀ of all (T, ΣR), without a graph."""
    h = None
    a = _stacked_a(projections, x.dtype)
    if a is not None:
        h = narrow(x, a, kept)
    outputs = []
    for p, own in zip(projections, _parts(h, projections, 1), strict=True):
        y = F.linear(x, p.weight(), None if p.bias is None else p.bias.to(x.dtype))
        if p.b is not None and own is not None:
            add_widened(y, own, p.b.to(own.dtype).t(), p.scale)
        outputs.append(y)
    return outputs, h


def project_backward(
    gradients: Sequence[Tensor], x: Tensor | None, h: Tensor | None,
    projections: Sequence[Projection], kept: Kept | None, needs_x: bool, needs: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of x and of a, b and bias of each projection, for those that `needs` names."""
    dh = None if h is None else torch.empty_like(h)
    dx: Tensor | None = None
    trained: list[Tensor | None] = [None] * len(needs)
    for i, (p, dy, own, down) in enumerate(zip(projections, gradients, _parts(h, projections, 1),
                                               _parts(dh, projections, 1), strict=True)):
        if p.b is not None and own is not None and down is not None:
            down.copy_(narrow(dy, p.b.to(down.dtype).t())).mul_(p.scale)
            if needs[3 * i + 1]:
                db = narrow_gradient(own, dy).mul_(p.scale)
                trained[3 * i + 1] = db.t().to(p.b.dtype)
        if needs_x:
            weight = p.weight()
            dx = dy @ weight if dx is None else dx.addmm_(dy, weight)
        if p.bias is not None and needs[3 * i + 2]:
            trained[3 * i + 2] = dy.sum(0, dtype=thin_dtype(dy.dtype)).to(p.bias.dtype)
    if dh is None or x is None:
        return dx, trained
    if any(needs[::3]):  # LoRA-FA trains no A
        for i, (p, own) in enumerate(zip(
                projections, _parts(narrow_gradient(dh, x, kept), projections, 0), strict=True)):
            if needs[3 * i] and p.a is not None and own is not None:
                trained[3 * i] = own.to(p.a.dtype)
    if dx is not None:
        a = _stacked_a(projections, dx.dtype)
        assert a is not None
        add_widened(dx, dh, a, 1.0, kept)
    return dx, trained


def _stacked_a(projections: Sequence[Projection], wide: torch.dtype) -> Tensor | None:
    matrices = [p.a for p in projections if p.a is not None]
    if not matrices:
        return None
    stacked = matrices[0] if len(matrices) == 1 else torch.cat(matrices)
    return stacked.to(thin_dtype(wide))


def _parts(tensor: Tensor | None, projections: Sequence[Projection], dim: int
           ) -> list[Tensor | None]:
    """What belongs to each projection, as views."""
    if tensor is None:
        return [None] * len(projections)
    return list(torch.split_with_sizes(tensor, [p.rank for p in projections], dim))
