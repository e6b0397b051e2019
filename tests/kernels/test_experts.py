"""The fast experts against their plain reference in float64, and what they keep."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks

from lorafit.kernels.experts import ExpertWeight, Gate, grouped_experts, reference_experts
from lorafit.kernels.gated_mlp import ACTIVATIONS

TOKENS, WIDTH, INNER, EXPERTS = 23, 20, 12, 6
SILU = ACTIVATIONS["silu"]


def gated(z):
    gate, up = z.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def clamped(z):
    """gpt-oss: interleaved, clamped, up + 1."""
    gate, up = z[..., ::2].clamp(max=1.0), z[..., 1::2].clamp(-1.0, 1.0)
    return (up + 1) * gate * torch.sigmoid(1.7 * gate)


GATES = {"halves": (2, Gate(gated, SILU)), "halves, differentiated": (2, Gate(gated)),
         "interleaved": (2, Gate(clamped)), "none": (1, Gate(torch.nn.functional.silu))}


def case(dtype, *, adapted="first second", shared=False, bias=False, halves=2, tokens=TOKENS,
         width=WIDTH, inner=INNER, experts=EXPERTS, active=3, ranks=(4, 2), seed=0):
    """x, index, weights, dy, and of each layer the weight (E, I, O), bias, a, b and scale."""
    torch.manual_seed(seed)
    index = torch.stack([torch.randperm(experts)[:active] for _ in range(tokens)])
    layers = []
    for name, inputs, outputs, rank, scale in (("first", width, halves * inner, ranks[0], 0.5),
                                               ("second", inner, width, ranks[1], 1.5)):
        has = name in adapted
        count = 1 if shared else experts
        layers.append((
            torch.randn(experts, inputs, outputs).div(inputs**0.5).to(dtype),
            torch.randn(experts, outputs).to(dtype) if bias else None,
            torch.randn(count, rank, inputs) / inputs**0.5 if has else None,
            torch.randn(count, rank, outputs) / rank**0.5 if has else None, scale))
    return (torch.randn(tokens, width).to(dtype), index, torch.rand(tokens, active).to(dtype),
            torch.randn(tokens, width).to(dtype), layers)


def run(function, given_case, gate, dtype=None):
    """The output, then gradients of x, weights and each a and b, as float64."""
    def leaf(t):
        return None if t is None else t.detach().to(dtype or t.dtype).clone().requires_grad_()

    x, index, weights, dy, layers = given_case
    x, weights = leaf(x), leaf(weights)
    wide = dtype or x.dtype
    made = [ExpertWeight(w.to(wide), None if bias is None else bias.to(wide), leaf(a), leaf(b),
                         scale) for w, bias, a, b, scale in layers]
    y = function(x, index, weights, gate, *made)
    y.backward(dy.to(dtype or dy.dtype))
    leaves = [x, weights, *(t for layer in made for t in (layer.a, layer.b) if t is not None)]
    return [t.detach().double() for t in (y, *(t.grad for t in leaves))]


def errors(got, wanted):
    return [float((g - w).norm() / w.norm()) for g, w in zip(got, wanted, strict=True)]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("adapted", ["first second", "first", "second", ""])
@pytest.mark.parametrize("keeps_inner", [True, False])
def test_it_is_the_reference_in_float32(gate, shared, bias, adapted, keeps_inner):
    halves, computes = GATES[gate]
    made = case(torch.float32, adapted=adapted, shared=shared, bias=bias, halves=halves)
    exact = run(reference_experts, made, computes, torch.float64)
    function = partial(grouped_experts, keeps_inner=keeps_inner)
    assert max(errors(run(function, made, computes), exact)) < 1e-5


@given(tokens=st.integers(1, 9), width=st.integers(1, 7), inner=st.integers(1, 5),
       experts=st.integers(1, 7), active=st.integers(1, 4), shared=st.booleans(),
       ranks=st.tuples(st.integers(1, 3), st.integers(1, 3)), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_shapes(tokens, width, inner, experts, active, shared, ranks, seed):
    """Experts that no token is sent to, one expert, as many active as there are."""
    made = case(torch.float64, shared=shared, bias=True, tokens=tokens, width=width, inner=inner,
                experts=experts, active=min(active, experts), ranks=ranks, seed=seed)
    for fast, plain in zip(run(grouped_experts, made, GATES["halves"][1], torch.float64),
                           run(reference_experts, made, GATES["halves"][1], torch.float64),
                           strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_in_16_bits_it_is_nearer_than_the_reference(dtype, shared, seed):
    """Which rounds the sum of W and s·A·B, and with it all that A and B have learnt."""
    made = case(dtype, shared=shared, bias=True, tokens=64, width=96, inner=48, ranks=(8, 8),
                seed=seed)
    gate = GATES["halves"][1]
    exact = run(reference_experts, made, gate, torch.float64)
    fast = errors(run(grouped_experts, made, gate), exact)
    plain = errors(run(reference_experts, made, gate), exact)
    assert all(f < 1.2 * p for f, p in zip(fast, plain, strict=True))
    assert sum(fast) < sum(plain)


def test_routing_weights_may_be_float32_beside_a_16_bit_model():
    x, index, weights, dy, layers = case(torch.bfloat16)
    gate = GATES["halves"][1]
    exact = run(reference_experts, (x, index, weights, dy, layers), gate, torch.float64)
    weights = weights.float()
    found = run(grouped_experts, (x, index, weights, dy, layers), gate)
    assert max(errors(found, exact)) < 2e-2
    y = grouped_experts(x, index, weights.requires_grad_(), gate,
                        *(ExpertWeight(w) for w, *_ in layers))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert weights.grad.dtype == torch.float32


def test_autograd_agrees_with_differences():
    x, index, weights, _, layers = case(torch.float64, bias=True, tokens=4, width=5, inner=3,
                                        experts=3, active=2)
    leaves = [x, weights, *(t.double() for layer in layers for t in layer[2:4])]

    def y(x, weights, *tensors):
        made = [ExpertWeight(w, bias, *tensors[2 * i:2 * i + 2], scale)
                for i, (w, bias, _, _, scale) in enumerate(layers)]
        return grouped_experts(x, index, weights, GATES["halves"][1], *made)

    assert torch.autograd.gradcheck(y, [t.requires_grad_() for t in leaves])


@pytest.mark.parametrize("trains", ["first.a", "first.b", "second.a", "second.b", "x", "weights"])
def test_what_alone_is_trained_has_the_gradient_that_it_has_beside_others(trains):
    x, index, weights, dy, layers = case(torch.float64)
    names = ["x", "weights", "first.a", "first.b", "second.a", "second.b"]
    leaves = [x, weights, *(t.double() for layer in layers for t in layer[2:4])]
    found = []
    for trained in ([trains], names):
        own = [t.clone().requires_grad_(name in trained)
               for t, name in zip(leaves, names, strict=True)]
        made = [ExpertWeight(w, bias, *own[2 + 2 * i:4 + 2 * i], scale)
                for i, (w, bias, _, _, scale) in enumerate(layers)]
        grouped_experts(own[0], index, own[1], GATES["halves"][1], *made).backward(dy)
        assert [t.grad is not None for t in own] == [name in trained for name in names]
        found.append(own[names.index(trains)].grad)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shared", [False, True])
def test_nothing_as_large_as_the_experts_is_made_or_kept(shared):
    """Neither in the forward nor in the backward pass: with few tokens, no tensor of E·I·O."""
    from torch.utils._python_dispatch import TorchDispatchMode

    made = case(torch.float32, shared=shared, tokens=4, width=64, inner=64, experts=8, active=2)
    smallest = min(layer[0].numel() for layer in made[-1])
    large = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.numel() >= smallest \
                    and not function.is_view:
                large.append(function)
            return out

    x, index, weights, dy, layers = made
    leaves = [ExpertWeight(w, None, a.requires_grad_(), b.requires_grad_(), s)
              for w, _, a, b, s in layers]
    arguments = (x.requires_grad_(), index, weights, GATES["halves"][1], *leaves)
    with Sizes():
        grouped_experts(*arguments).backward(dy)
    assert large == []
    with Sizes():
        reference_experts(*arguments)
    assert large == []  # it adds expert by expert; what it keeps is as large all the same


@pytest.mark.parametrize(("keeps_inner", "of_inner_width"), [(True, 1), (False, 0)])
def test_it_keeps_the_input_once_and_what_the_gate_is_given(keeps_inner, of_inner_width):
    x, index, weights, _, layers = case(torch.float32, tokens=50)
    kept = {}

    def note(tensor):
        kept[tensor.data_ptr()] = tensor
        return tensor

    frozen = {t.data_ptr() for layer in layers for t in layer if isinstance(t, torch.Tensor)}
    made = [ExpertWeight(w, None, a.requires_grad_(), b.requires_grad_(), s)
            for w, _, a, b, s in layers]
    with saved_tensors_hooks(note, lambda tensor: tensor):
        grouped_experts(x.requires_grad_(), index, weights.requires_grad_(), GATES["halves"][1],
                        *made, keeps_inner=keeps_inner)
    wide = sorted(t.shape for key, t in kept.items()
                  if key not in frozen and t.ndim == 2 and t.shape[1] >= INNER)
    assert wide == sorted([x.shape, *[torch.Size([150, 2 * INNER])] * of_inner_width])
