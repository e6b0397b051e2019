"""The experts of a mixture with LoRA as one function of tokens and where they are sent.

    y = Σ w·(inner·W₂ + b₂ + s₂·inner·A₂ᵀ·B₂)      inner = gate(x·W₁ + b₁ + s₁·x·A₁ᵀ·B₁)

over the experts of a token, whose weights w are the router's. Pairs of a token and an expert are
sorted by expert; A and B of an expert, or those that all of them share, are multiplied with its
pairs and added into the base's output, so nothing of the size of the experts' weights is ever made.

w is multiplied into inner before the second product. The gradient of w is then that of w·inner
times inner, so the experts' outputs are not kept. Kept for the backward pass are x, what the gate
is given, and the thin products; the gate is computed again. With `keeps_inner` off, what it is
given is computed again too.

Letters: T tokens, K experts of a token, P = T·K pairs, E experts, M inner width, H width, R rank.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lorafit.kernels.gated_mlp import Activation
from lorafit.kernels.grouped import (
    Groups,
    grouped_add_widened,
    grouped_gradient,
    grouped_narrow,
    grouped_product,
)
from lorafit.kernels.thin import thin_dtype


@dataclass(frozen=True)
class ExpertWeight:
    """One product of all experts and its adapters.

    weight: frozen, (E, I, O). bias: frozen, (E, O). a: (E, R, I) and b: (E, R, O), in any floating
    dtype, or (1, R, I) and (1, R, O) where the experts share them; None without an adapter.
    scale: alpha / rank.
    """

    weight: Tensor
    bias: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Gate:
    """What an expert computes between its products, (P, 2M) or (P, M) to (P, M).

    plain: in operations that autograd knows, without parameters. activation: where that is
    act(gate)·up of the two halves, the act, which takes fewer tensors.
    """

    plain: Callable[[Tensor], Tensor]
    activation: Activation | None = None

    def of(self, z: Tensor) -> Tensor:
        if self.activation is None:
            return self.plain(z)
        gate, up = z.chunk(2, dim=-1)
        inner = gate.new_empty(gate.shape)
        self.activation.into(gate, inner)
        return inner.mul_(up)

    def gradient(self, d_inner: Tensor, z: Tensor) -> Tensor:
        """That of z, (P, 2M) or (P, M). d_inner is written over."""
        if self.activation is None:
            with torch.enable_grad():
                given = z.detach().requires_grad_()
                (dz,) = torch.autograd.grad(self.plain(given), given, d_inner)
            return dz
        dz = torch.empty_like(z)
        (gate, up), (d_gate, d_up) = z.chunk(2, dim=-1), dz.chunk(2, dim=-1)
        activated = gate.new_empty(gate.shape)
        self.activation.into(gate, activated)
        torch.mul(d_inner, activated, out=d_up)
        self.activation.gradient(d_inner.mul_(up), gate, d_gate)
        return dz


def grouped_experts(x: Tensor, index: Tensor, weights: Tensor, gate: Gate, first: ExpertWeight,
                    second: ExpertWeight, *, keeps_inner: bool = True) -> Tensor:
    """(T, H) of x (T, H). index: (T, K) int64, the experts of each token, and weights: (T, K), what
    their outputs are multiplied with. Gradients go to x, weights and the adapters."""
    apply: Any = _GroupedExperts.apply
    y: Tensor = apply(x, weights, index, gate, (first, second), keeps_inner,
                      first.a, first.b, second.a, second.b)
    return y


def reference_experts(x: Tensor, index: Tensor, weights: Tensor, gate: Gate, first: ExpertWeight,
                      second: ExpertWeight) -> Tensor:
    """The same, expert by expert, with A and B added to its weights."""
    y = torch.zeros_like(x)
    for expert in range(len(first.weight)):
        tokens, places = torch.where(index == expert)
        inner = gate.plain(_reference_product(x[tokens], first, expert))
        own = _reference_product(inner, second, expert) * weights[tokens, places, None]
        y = y.index_add(0, tokens, own.to(y.dtype))
    return y


def _reference_product(x: Tensor, layer: ExpertWeight, expert: int) -> Tensor:
    weight = layer.weight[expert]
    if layer.a is not None and layer.b is not None:
        own = min(expert, len(layer.a) - 1)
        weight = weight + (layer.scale * layer.a[own].t() @ layer.b[own]).to(weight.dtype)
    return x @ weight if layer.bias is None else x @ weight + layer.bias[expert]


@dataclass(frozen=True)
class _Pairs:
    """Pairs of a token and an expert, sorted by expert. index: (T, K). places: (P,), where each
    pair stands in it. groups: the pairs of each expert."""

    index: Tensor
    places: Tensor
    groups: Groups

    @staticmethod
    def of(index: Tensor, experts: int) -> "_Pairs":
        chosen, places = index.flatten().sort(stable=True)
        counts = torch.zeros(experts, dtype=torch.int32, device=index.device)
        counts.index_add_(0, chosen, torch.ones_like(chosen, dtype=torch.int32))
        return _Pairs(index, places, Groups(counts.cumsum(0, dtype=torch.int32)))

    @cached_property
    def tokens(self) -> Tensor:
        return self.places // self.index.shape[1]

    @cached_property
    def experts(self) -> Tensor:
        return self.index.flatten()[self.places]

    def sum(self, y: Tensor) -> Tensor:
        """(T, H), over the experts of a token, of (P, H)."""
        return self.in_order(y).view(*self.index.shape, y.shape[1]).sum(1)

    def in_order(self, y: Tensor) -> Tensor:
        """What belongs to pairs, in the order of `index`."""
        return torch.empty_like(y).index_copy_(0, self.places, y)


class _GroupedExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, index: Tensor, gate: Gate,
                layers: tuple[ExpertWeight, ExpertWeight], keeps_inner: bool,
                *tensors: Tensor | None) -> Tensor:
        first, second = layers
        pairs = _Pairs.of(index, len(first.weight))
        factors = weights.flatten()[pairs.places, None]
        z, h = _project(x[pairs.tokens], first, pairs)
        y, h_inner = _project(_times(gate.of(z), factors), second, pairs, factors)
        keeps_x = first.a is not None or not keeps_inner
        ctx.save_for_backward(x if keeps_x else None, weights, index, pairs.places,
                              pairs.groups.ends, z if keeps_inner else None, h, h_inner, *tensors)
        ctx.gate = gate
        ctx.frozen = [replace(layer, a=None, b=None) for layer in layers]
        return pairs.sum(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, index, places, ends, z, h, h_inner, *tensors = ctx.saved_tensors
        first, second = (replace(layer, a=tensors[2 * i], b=tensors[2 * i + 1])
                         for i, layer in enumerate(ctx.frozen))
        needs: Sequence[bool] = ctx.needs_input_grad
        pairs = _Pairs(index, places, Groups(ends))
        needs_first = needs[0] or needs[6] or needs[7]
        chosen = x[pairs.tokens] if needs[6] or z is None else None
        if chosen is not None and z is None:
            z, _ = _project(chosen, first, pairs)
        factors = weights.flatten()[places, None]
        dy = gradients[0][pairs.tokens]
        inner = ctx.gate.of(z)
        d_inner, *trained_second = _project_backward(
            dy, _times(inner, factors), h_inner, second, pairs, needs[1] or needs_first, needs[8:])
        d_weights, dx = None, None
        trained_first: Sequence[Tensor | None] = (None, None)
        if needs[1] and d_inner is not None:
            d_weights = _gradient_of_factors(d_inner, inner, dy, second, pairs).to(weights.dtype)
        if needs_first and d_inner is not None:
            dz = ctx.gate.gradient(_times(d_inner, factors), z)
            dx, *trained_first = _project_backward(dz, chosen, h, first, pairs, needs[0],
                                                   needs[6:8])
        return (None if dx is None else pairs.sum(dx), d_weights, *[None] * 4, *trained_first,
                *trained_second)


def _project(x: Tensor, layer: ExpertWeight, pairs: _Pairs, factors: Tensor | None = None
             ) -> tuple[Tensor, Tensor | None]:
    """Output (P, O) of x (P, I), and thin x·Aᵀ (P, R). The bias is multiplied with `factors`."""
    y = grouped_product(x, layer.weight, pairs.groups)
    if layer.bias is not None:
        bias = layer.bias[pairs.experts]
        y.add_(bias if factors is None else bias.mul_(factors))
    if layer.a is None or layer.b is None:
        return y, None
    a, b, groups = _adapter(layer.a, layer.b, x, pairs)
    h = grouped_narrow(x, a, groups)
    grouped_add_widened(y, h, b, layer.scale, groups)
    return y, h


def _project_backward(
    dy: Tensor, x: Tensor | None, h: Tensor | None, layer: ExpertWeight, pairs: _Pairs,
    needs_x: bool, needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, a and b. x may be None where a needs none."""
    dx = grouped_product(dy, layer.weight.mT, pairs.groups) if needs_x else None
    if layer.a is None or layer.b is None or h is None:
        return dx, None, None
    a, b, groups = _adapter(layer.a, layer.b, dy, pairs)
    da = db = None
    if needs[1]:
        db = grouped_gradient(h, dy, groups).mul_(layer.scale).to(layer.b.dtype)
    if needs[0] or dx is not None:
        dh = grouped_narrow(dy, b, groups).mul_(layer.scale)
        if needs[0] and x is not None:
            da = grouped_gradient(dh, x, groups).to(layer.a.dtype)
        if dx is not None:
            grouped_add_widened(dx, dh, a, 1.0, groups)
    return dx, da, db


def _times(inner: Tensor, factors: Tensor) -> Tensor:
    """In the dtype of inner; the router's weights may be float32 beside a 16-bit model."""
    return (inner * factors).to(inner.dtype)


def _gradient_of_factors(d_inner: Tensor, inner: Tensor, dy: Tensor, second: ExpertWeight,
                         pairs: _Pairs) -> Tensor:
    """(T, K), of what the experts' outputs are multiplied with. d_inner: (P, M), of what the second
    product is given."""
    thin = thin_dtype(inner.dtype)
    gradient = (d_inner * inner).sum(1, dtype=thin)
    if second.bias is not None:
        gradient += (dy * second.bias[pairs.experts]).sum(1, dtype=thin)
    return pairs.in_order(gradient).view(pairs.index.shape)


def _adapter(a: Tensor, b: Tensor, wide: Tensor, pairs: _Pairs) -> tuple[Tensor, Tensor, Groups]:
    """Both in the thin dtype, laid out for products, and the rows that each of them is for."""
    thin = thin_dtype(wide.dtype)
    return (a.to(thin).contiguous(), b.to(thin).contiguous(),
            Groups.one(wide) if len(a) == 1 else pairs.groups)
