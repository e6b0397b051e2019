"""Rotary position embedding in halves, as Llama and its kin have it.

    [a, b] → [a·cos − b·sin, b·cos + a·sin]

One pass over the tensor and two over half of it, where the usual form makes five whole tensors on
the way and nine on the way back. The backward pass is the rotation the other way.
"""

from typing import Any

import torch
from torch import Tensor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (…, D) rotated in its first R numbers; cos and sin (…, R), equal in both halves."""
    apply: Any = _Rotate.apply
    return apply(x, cos, sin)


def reference_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same with whole tensors."""
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1]:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned, rest], dim=-1)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(gradients[0], cos, sin, -1), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    half, whole = cos.shape[-1] // 2, cos.shape[-1]
    if whole == x.shape[-1]:
        out = x * cos
    else:
        out = x.clone()
        out[..., :whole].mul_(cos)
    out[..., :half].addcmul_(x[..., half:whole], sin[..., :half], value=-direction)
    out[..., half:whole].addcmul_(x[..., :half], sin[..., half:], value=direction)
    return out
