"""Linear layers with LoRA that share an input: y = x·Wᵀ + b + s·(x∘m)·Aᵀ·Bᵀ.

The adapter is added into the base's output instead of becoming a tensor of its own, and the
gradient of x is summed up in place. Kept for the backward pass are x, x·Aᵀ and, with dropout, its
mask. Of several projections of one x the products with A are one.

In 16 bits the gradients of A and B are rounded to that dtype: a relative error of 3e-3 where the
reference, which converts x, has 2e-7. Before a 16-bit base may use this, that has to be mended.

Letters: T tokens, I inputs, O outputs, R rank, ΣR the ranks of all projections.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Projection:
    """One linear layer and its adapter.

    weight: gives the frozen (O, I) weight in the dtype of x, by reading it or by dequantising it;
    called once a pass. a: (R, I), b: (O, R), in any floating dtype. scale: alpha / rank.
    bias: (O,), trained or not.
    """

    weight: Callable[[], Tensor]
    a: Tensor
    b: Tensor
    scale: float
    bias: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.a, self.b, self.bias


@dataclass(frozen=True)
class Kept:
    """Which inputs of the adapters are not dropped: bool, (T, I), and the share they were drawn
    with, which the rest is divided by."""

    mask: Tensor
    probability: float

    def of(self, x: Tensor) -> Tensor:
        return (x * self.mask).div_(self.probability)


def lora_linear(x: Tensor, projections: Sequence[Projection], kept: Kept | None = None
                ) -> tuple[Tensor, ...]:
    """The output (…, O) of each projection of x (…, I).

    Dropout, where there is any, drops the same inputs for all of them. A and B are rounded to the
    dtype of x; x is never converted.
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
    outputs = (F.linear(flat, p.weight(), None if p.bias is None else p.bias.to(x.dtype))
               + (p.scale * F.linear(F.linear(dropped.to(p.a.dtype), p.a), p.b)).to(x.dtype)
               for p in projections)
    return tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in outputs)


def draw_kept(tokens: int, inputs: int, drop_probability: float, device: torch.device) -> Kept:
    """Inputs that are not dropped, from torch's generator of the device.

    One 64-bit number serves four inputs. The probability is rounded to a multiple of 2⁻¹⁶ and
    divided by as it is, so the mean is exact.
    """
    dropped = round(drop_probability * 2**16)
    count = tokens * inputs
    numbers = torch.empty(-(-count // 4), dtype=torch.int64, device=device).random_(-2**63, None)
    mask = numbers.view(torch.int16)[:count].view(tokens, inputs) >= dropped - 2**15
    return Kept(mask, 1 - dropped / 2**16)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Kept | None, projections: tuple[Projection, ...],
                *tensors: Tensor | None) -> tuple[Tensor, ...]:
        outputs, h = _project(x, projections, kept)
        ctx.save_for_backward(x, h, None if kept is None else kept.mask, *tensors)
        ctx.kept_probability = 1.0 if kept is None else kept.probability
        ctx.frozen = [(p.weight, p.scale) for p in projections]
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, h, mask, *tensors = ctx.saved_tensors
        kept = None if mask is None else Kept(mask, ctx.kept_probability)
        dx, trained = _project_backward(gradients, x, h, _saved(ctx.frozen, tensors), kept,
                                        ctx.needs_input_grad[0], ctx.needs_input_grad[3:])
        return dx, None, None, *trained


def _saved(frozen: Sequence[tuple[Callable[[], Tensor], float]], tensors: Sequence[Tensor]
           ) -> list[Projection]:
    """Projections from what is known without tensors, and the tensors of each that were saved."""
    return [Projection(weight, tensors[3 * i], tensors[3 * i + 1], scale, tensors[3 * i + 2])
            for i, (weight, scale) in enumerate(frozen)]


def _project(x: Tensor, projections: Sequence[Projection], kept: Kept | None
             ) -> tuple[list[Tensor], Tensor]:
    """Outputs (T, O) of x (T, I), and x·Aᵀ of all (T, ΣR), without a graph."""
    h = F.linear(x if kept is None else kept.of(x), _stacked_a(projections, x.dtype))
    outputs = []
    for p, own in zip(projections, _parts(h, projections, 1), strict=True):
        y = F.linear(x, p.weight(), None if p.bias is None else p.bias.to(x.dtype))
        outputs.append(y.addmm_(own, p.b.to(x.dtype).t(), alpha=p.scale))
    return outputs, h


def _project_backward(
    gradients: Sequence[Tensor], x: Tensor, h: Tensor, projections: Sequence[Projection],
    kept: Kept | None, needs_x: bool, needs: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of x and of a, b and bias of each projection, for those that `needs` names."""
    dh = torch.empty_like(h)
    dx: Tensor | None = None
    trained: list[Tensor | None] = [None] * len(needs)
    for i, (p, dy, own, down) in enumerate(zip(projections, gradients, _parts(h, projections, 1),
                                               _parts(dh, projections, 1), strict=True)):
        down.copy_(dy @ p.b.to(dy.dtype)).mul_(p.scale)
        if needs_x:
            weight = p.weight()
            dx = dy @ weight if dx is None else dx.addmm_(dy, weight)
        if needs[3 * i + 1]:
            trained[3 * i + 1] = (dy.t() @ own).to(p.b.dtype).mul_(p.scale)
        if p.bias is not None and needs[3 * i + 2]:
            wide = torch.promote_types(dy.dtype, torch.float32)
            trained[3 * i + 2] = dy.sum(0, dtype=wide).to(p.bias.dtype)
    if any(needs[::3]):  # LoRA-FA trains no A
        da = dh.t() @ (x if kept is None else kept.of(x))
        for i, (p, own) in enumerate(zip(projections, _parts(da, projections, 0), strict=True)):
            if needs[3 * i]:
                trained[3 * i] = own.to(p.a.dtype)
    if dx is not None:
        a = _stacked_a(projections, x.dtype)
        if kept is None:
            dx.addmm_(dh, a)
        else:
            dx.add_(kept.of(dh @ a))
    return dx, trained


def _stacked_a(projections: Sequence[Projection], dtype: torch.dtype) -> Tensor:
    if len(projections) == 1:
        return projections[0].a.to(dtype)
    return torch.cat([p.a for p in projections]).to(dtype)


def _parts(tensor: Tensor, projections: Sequence[Projection], dim: int) -> Sequence[Tensor]:
    """What belongs to each projection, as views."""
    sizes = [len(p.a) for p in projections]
    return list(torch.split_with_sizes(tensor, sizes, dim))
