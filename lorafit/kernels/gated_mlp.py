"""A gated MLP with LoRA as one function: down(act(gate(x)) · up(x)).

Kept for the backward pass are x, gate(x), up(x) and the thin products. act(gate(x)) and the product
with up(x), which plain autograd keeps too, are computed again: for a Llama that is half of what an
MLP keeps, for two element-wise operations. With `keeps_inner` off, gate(x) and up(x) are computed
again too, and nothing of the inner width is kept. In the backward pass three or four tensors of
that width exist at once.

Letters: T tokens, I inputs, M inner width, O outputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lorafit.kernels.lora_linear import (
    Projection,
    project,
    project_backward,
    reference_lora_linear,
    with_tensors,
    without_tensors,
)
from lorafit.kernels.thin import Kept


@dataclass(frozen=True)
class Activation:
    """An element-wise function, plain, into a given tensor, and its derivative.

    into: (x, out) writes act(x). gradient: (dy, x, out) writes dy · act'(x); out may be neither.
    """

    plain: Callable[[Tensor], Tensor]
    into: Callable[[Tensor, Tensor], Any]
    gradient: Callable[[Tensor, Tensor, Tensor], Any]


def _silu_into(x: Tensor, out: Tensor) -> None:
    torch.ops.aten.silu.out(x, out=out)


def _silu_gradient(dy: Tensor, x: Tensor, out: Tensor) -> None:
    torch.ops.aten.silu_backward.grad_input(dy, x, grad_input=out)


def _gelu(approximate: str) -> Activation:
    def into(x: Tensor, out: Tensor) -> None:
        torch.ops.aten.gelu.out(x, approximate=approximate, out=out)

    def gradient(dy: Tensor, x: Tensor, out: Tensor) -> None:
        torch.ops.aten.gelu_backward.grad_input(dy, x, approximate=approximate, grad_input=out)

    return Activation(partial(F.gelu, approximate=approximate), into, gradient)


# By the names that configurations give them (hidden_act, hidden_activation).
ACTIVATIONS = {
    "silu": Activation(F.silu, _silu_into, _silu_gradient),
    "swish": Activation(F.silu, _silu_into, _silu_gradient),
    "gelu": _gelu("none"),
    "gelu_pytorch_tanh": _gelu("tanh"),
}


def gated_mlp(x: Tensor, gate: Projection, up: Projection, down: Projection,
              activation: Activation, kept: Kept | None = None, kept_inner: Kept | None = None,
              *, keeps_inner: bool = True) -> Tensor:
    """(…, O) of x (…, I). kept: dropout before the adapters of gate and up; kept_inner: before
    that of down, (T, M)."""
    flat = x.reshape(-1, x.shape[-1])
    tensors = [tensor for p in (gate, up, down) for tensor in p.tensors]
    apply: Any = _GatedMlp.apply
    y = apply(flat, kept, kept_inner, activation, keeps_inner, (gate, up, down), *tensors)
    return y.view(*x.shape[:-1], y.shape[-1])


def reference_gated_mlp(x: Tensor, gate: Projection, up: Projection, down: Projection,
                        activation: Activation, kept: Kept | None = None,
                        kept_inner: Kept | None = None) -> Tensor:
    """The same, one plain operation after the other."""
    g, u = reference_lora_linear(x, [gate, up], kept)
    (y,) = reference_lora_linear(activation.plain(g) * u, [down], kept_inner)
    return y


class _GatedMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Kept | None, kept_inner: Kept | None,
                activation: Activation, keeps_inner: bool, projections: tuple[Projection, ...],
                *tensors: Tensor | None) -> Tensor:
        gate, up, down = projections
        (g, u), h = project(x, (gate, up), kept)
        inner = torch.empty_like(g)
        activation.into(g, inner)
        (y,), h_inner = project(inner.mul_(u), (down,), kept_inner)
        has_adapter = gate.a is not None or up.a is not None
        masks = [None if k is None else k.mask for k in (kept, kept_inner)]
        inner_kept = (g, u) if keeps_inner else (None, None)
        ctx.save_for_backward(x if has_adapter or not keeps_inner else None, *inner_kept, h,
                              h_inner, *masks, *tensors)
        ctx.kept_probabilities = [1.0 if k is None else k.probability for k in (kept, kept_inner)]
        ctx.activation = activation
        ctx.frozen = without_tensors(projections)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, g, u, h, h_inner, mask, mask_inner, *tensors = ctx.saved_tensors
        kept, kept_inner = (None if m is None else Kept(m, p) for m, p in
                            zip((mask, mask_inner), ctx.kept_probabilities, strict=True))
        gate, up, down = with_tensors(ctx.frozen, tensors)
        needs: Sequence[bool] = ctx.needs_input_grad[6:]
        if g is None:
            (g, u), _ = project(x, (gate, up), kept)
        needs_inner = ctx.needs_input_grad[0] or any(needs[:6])
        activated = torch.empty_like(g)
        ctx.activation.into(g, activated)
        inner = activated * u
        d_inner, trained_down = project_backward(
            gradients, inner, h_inner, [down], kept_inner, needs_inner, needs[6:])
        if d_inner is None:
            return *[None] * 12, *trained_down
        du = torch.mul(d_inner, activated, out=inner)
        d_activated = d_inner.mul_(u)
        ctx.activation.gradient(d_activated, g, activated)
        dx, trained = project_backward(
            (activated, du), x, h, [gate, up], kept, ctx.needs_input_grad[0], needs[:6])
        return dx, *[None] * 5, *trained, *trained_down
