"""The fused MLP against its plain reference and against float64."""

from functools import partial

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from lorafit.kernels.gated_mlp import ACTIVATIONS, gated_mlp, reference_gated_mlp
from lorafit.kernels.lora_linear import Projection
from lorafit.kernels.thin import draw_kept

CPU = torch.device("cpu")
TOKENS, WIDTH, INNER, RANK = 23, 24, 40, 4


def parts(dtype, adapted="gate up down", *, bias=False):
    """x, dy, and of each layer weight, a, b and bias."""
    torch.manual_seed(0)
    layers = []
    for name, out, width in (("gate", INNER, WIDTH), ("up", INNER, WIDTH), ("down", WIDTH, INNER)):
        has = name in adapted.split()
        layers.append([(torch.randn(out, width) / width**0.5).to(dtype),
                       torch.randn(RANK, width) / width**0.5 if has else None,
                       torch.randn(out, RANK) / RANK**0.5 if has else None,
                       torch.randn(out).to(dtype) if bias else None])
    return torch.randn(1, TOKENS, WIDTH).to(dtype), torch.randn(1, TOKENS, WIDTH).to(dtype), layers


def run(function, case, activation, masks=(None, None), dtype=None):
    x, dy, layers = case

    def leaf(t):
        return None if t is None else t.to(dtype or t.dtype).clone().requires_grad_()

    x = leaf(x)
    trained = [[leaf(t) for t in layer[1:]] for layer in layers]
    projections = [Projection(lambda w=w.to(dtype or w.dtype): w, *three[:2], 0.5, three[2])
                   for (w, *_), three in zip(layers, trained, strict=True)]
    y = function(x, *projections, ACTIVATIONS[activation], *masks)
    y.backward(dy.to(dtype or dy.dtype))
    grads = [t.grad for t in [x, *(t for three in trained for t in three if t is not None)]]
    return [t.detach().double() for t in (y, *grads)]


def errors(got, wanted):
    return [float((g - w).norm() / w.norm()) for g, w in zip(got, wanted, strict=True)]


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("adapted", ["gate up down", "down", "up", "gate down", ""])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("keeps_inner", [True, False])
def test_it_is_the_reference_in_float32(activation, adapted, dropout, keeps_inner):
    case = parts(torch.float32, adapted, bias=True)
    masks = (draw_kept(TOKENS, WIDTH, dropout, CPU), draw_kept(TOKENS, INNER, dropout, CPU)) \
        if dropout else (None, None)
    exact = run(reference_gated_mlp, case, activation, masks, torch.float64)
    function = partial(gated_mlp, keeps_inner=keeps_inner)
    assert max(errors(run(function, case, activation, masks), exact)) < 1e-5


@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh"])
def test_in_bfloat16_it_is_as_exact_as_the_reference(activation):
    case = parts(torch.bfloat16)
    exact = run(reference_gated_mlp, case, activation, dtype=torch.float64)
    fast = errors(run(gated_mlp, case, activation), exact)
    plain = errors(run(reference_gated_mlp, case, activation), exact)
    assert all(f < 1.25 * p for f, p in zip(fast, plain, strict=True))


def test_it_keeps_half_of_what_the_reference_keeps_of_the_inner_width():
    """gate(x) and up(x), where plain autograd keeps act(gate(x)) and the product too."""
    def kept_by(function):
        x, _, layers = parts(torch.float32)
        frozen = {w.data_ptr() for w, *_ in layers}
        seen = {}

        def note(tensor):
            if tensor.shape[-1] == INNER and tensor.data_ptr() not in frozen \
                    and tensor.numel() == TOKENS * INNER:
                seen[tensor.data_ptr()] = tensor
            return tensor

        with saved_tensors_hooks(note, lambda tensor: tensor):
            projections = [Projection(lambda w=w: w, a.requires_grad_(), b.requires_grad_(), 1.0)
                           for w, a, b, _ in layers]
            function(x.requires_grad_(), *projections, ACTIVATIONS["silu"])
        return len(seen)

    assert kept_by(gated_mlp) == 2
    assert kept_by(partial(gated_mlp, keeps_inner=False)) == 0
    assert kept_by(reference_gated_mlp) >= 4


def test_a_frozen_mlp_below_the_adapters_keeps_nothing():
    x, _, layers = parts(torch.float32, "")
    kept = []
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = gated_mlp(x, *(Projection(lambda w=w: w, None, None, 1.0) for w, *_ in layers),
                      ACTIVATIONS["silu"])
    assert not y.requires_grad
    assert y.grad_fn is None
