"""RMSNorm with a frozen weight: y = x / √(mean x² + ε) · (offset + w).

On a CPU by hand: nothing is kept but x and one number a token, and eight passes over the tensor
replace some fourteen. Elsewhere torch's own, which is one kernel each way.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """(…, H) of x (…, H) and the factors (H,), which take no gradient."""
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
        apply: Any = _RmsNorm.apply
        return apply(x, weight, epsilon)
    return F.rms_norm(x, (x.shape[-1],), weight, epsilon)


def reference_rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """The same, one plain operation after the other."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (normed * weight.to(wide.dtype)).to(x.dtype)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = size.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, inverse, weight)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """dx = n·(g − x·n²·mean(g·x)) with n = 1/√(mean x² + ε) and g = dy·w."""
        x, inverse, weight = ctx.saved_tensors
        g = gradients[0] * weight
        along = (g * x).sum(-1, keepdim=True).mul_(inverse.pow(3)).div_(-x.shape[-1])
        return g.mul_(inverse).addcmul_(x, along), None, None
