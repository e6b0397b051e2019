"""The fast LoRA function against its plain reference, and both against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from lorafit.kernels.lora_linear import Projection, lora_linear, reference_lora_linear
from lorafit.kernels.thin import Kept, draw_kept

CPU = torch.device("cpu")


def inputs(tokens, width, outputs, rank, dtype, *, bias, seed=0):
    torch.manual_seed(seed)
    x = torch.randn(1, tokens, width).to(dtype)
    layers = [
        (torch.randn(out, width).div(width**0.5).to(dtype), torch.randn(rank, width) / width**0.5,
         torch.randn(out, rank) / rank**0.5, torch.randn(out).to(dtype) if bias else None)
        for out in outputs
    ]
    return x, layers, [torch.randn(1, tokens, out).to(dtype) for out in outputs]


def run(function, x, layers, gradients, dtype=None, kept=None):
    """Outputs, then gradients of x and of each A, B and bias, as float64."""
    def leaf(t):
        return t.detach().to(dtype or t.dtype).clone().requires_grad_()

    x = leaf(x)
    weights = [w.to(dtype or w.dtype) for w, *_ in layers]
    trained = [(leaf(a), leaf(b), None if bias is None else leaf(bias))
               for _, a, b, bias in layers]
    projections = [Projection(lambda w=w: w, a, b, 0.5, bias)
                   for w, (a, b, bias) in zip(weights, trained, strict=True)]
    outputs = function(x, projections, kept)
    torch.autograd.backward(outputs, [g.to(dtype or g.dtype) for g in gradients])
    leaves = [x, *(t for three in trained for t in three if t is not None)]
    return [t.detach().double() for t in (*outputs, *(leaf.grad for leaf in leaves))]


def errors(got, wanted):
    return [float((g - w).norm() / w.norm()) for g, w in zip(got, wanted, strict=True)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_it_is_the_reference_in_float32(bias, dropout):
    case = inputs(37, 48, (40, 24, 24), 4, torch.float32, bias=bias)
    kept = draw_kept(37, 48, dropout, CPU) if dropout else None
    exact = run(reference_lora_linear, *case, torch.float64, kept=kept)
    fast = errors(run(lora_linear, *case, kept=kept), exact)
    plain = errors(run(reference_lora_linear, *case, kept=kept), exact)
    assert max(fast) < 1e-5
    assert max(plain) < 1e-5


@given(tokens=st.integers(1, 20), width=st.integers(1, 20), rank=st.integers(1, 6),
       outputs=st.lists(st.integers(1, 12), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_shapes(tokens, width, rank, outputs, seed):
    case = inputs(tokens, width, outputs, rank, torch.float64, bias=True, seed=seed)
    for fast, plain in zip(run(lora_linear, *case, torch.float64),
                           run(reference_lora_linear, *case, torch.float64), strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_in_16_bits_it_is_as_exact_as_the_reference(seed, dropout, dtype):
    """The reference converts x to float32. Outputs and dx are rounded to 16 bits by both; the
    gradients of A and B are float32, and stay so though x is never converted as a whole."""
    case = inputs(64, 96, (80, 40), 8, dtype, bias=False, seed=seed)
    kept = draw_kept(64, 96, dropout, CPU) if dropout else None
    exact = run(reference_lora_linear, *case, torch.float64, kept=kept)
    fast = errors(run(lora_linear, *case, kept=kept), exact)
    plain = errors(run(reference_lora_linear, *case, kept=kept), exact)
    assert all(f < 1.1 * p for f, p in zip(fast[:3], plain[:3], strict=True))  # two y, and dx
    assert max(fast[3:]) < 2e-6


def test_a_layer_without_an_adapter_beside_one_with():
    x, layers, gradients = inputs(9, 12, (8, 6), 2, torch.float64, bias=False)
    (weight, a, b, _), (other, *_) = layers
    found = []
    for function in (lora_linear, reference_lora_linear):
        leaves = [t.double().clone().requires_grad_() for t in (x, a, b)]
        outputs = function(leaves[0], [Projection(lambda: weight, leaves[1], leaves[2], 0.5),
                                       Projection(lambda: other, None, None, 1.0)])
        torch.autograd.backward(outputs, gradients)
        found.append([*outputs, *(leaf.grad for leaf in leaves)])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_autograd_agrees_with_differences():
    x, layers, _ = inputs(3, 5, (4, 2), 2, torch.float64, bias=True)
    x.requires_grad_()
    flat = [t.double().requires_grad_() for _, a, b, bias in layers for t in (a, b, bias)]
    kept = Kept(torch.rand(3, 5) > 0.3, 0.7)

    def outputs(x, *tensors):
        return lora_linear(x, [Projection(lambda w=w: w, *tensors[3 * i:3 * i + 2], 0.5,
                                          tensors[3 * i + 2])
                               for i, (w, *_) in enumerate(layers)], kept)

    assert torch.autograd.gradcheck(outputs, (x, *flat))


class Products(TorchDispatchMode):
    """Counts the matrix products that run."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function._schema.name in ("aten::mm", "aten::addmm", "aten::addmm_")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("trains", "products"), [("ab", 3), ("b", 2), ("xab", 5), ("xb", 4)])
def test_nothing_is_computed_for_what_has_no_gradient(trains, products):
    """dy·B always; dB; dA if A is trained; dy·W and ·A if x needs a gradient."""
    x, layers, gradients = inputs(4, 6, (5,), 2, torch.float32, bias=False)
    weight, a, b, _ = layers[0]
    leaves = {"x": x, "a": a, "b": b}
    for name in trains:
        leaves[name].requires_grad_()
    reads = []
    (y,) = lora_linear(x, [Projection(lambda: reads.append(1) or weight, a, b, 1.0)])
    with Products() as ran:
        y.backward(gradients[0])
    assert ran.count == products
    assert len(reads) == 1 + ("x" in trains)
    assert all((leaf.grad is not None) == (name in trains) for name, leaf in leaves.items())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_it_keeps_the_input_and_the_small_product_only(dropout):
    """In bytes, of tensors with a row a token: x, once for three projections, x·Aᵀ, the mask."""
    x, layers, _ = inputs(50, 64, (64, 64, 64), 4, torch.float32, bias=False)
    x.requires_grad_()
    sizes = {}
    projections = [Projection(lambda w=w: w, a.requires_grad_(), b.requires_grad_(), 1.0)
                   for w, a, b, _ in layers]

    def note(tensor):
        if tensor.shape[0] == 50:
            sizes[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        lora_linear(x, projections, draw_kept(50, 64, dropout, CPU) if dropout else None)
    mask = [50 * 64] if dropout else []
    assert sorted(sizes.values()) == sorted([50 * 12 * 4, 50 * 64 * 4, *mask])


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.9])
def test_dropout_drops_as_many_as_it_says(probability):
    torch.manual_seed(0)
    kept = draw_kept(999, 1001, probability, CPU)
    assert kept.probability == pytest.approx(1 - probability, abs=2**-17)
    spread = (probability * (1 - probability) / kept.mask.numel()) ** 0.5
    assert float(kept.mask.float().mean()) == pytest.approx(kept.probability, abs=5 * spread)
    assert float(kept.of(torch.ones(999, 1001)).mean()) == pytest.approx(1, abs=0.02)
    torch.manual_seed(0)
    assert torch.equal(draw_kept(999, 1001, probability, CPU).mask, kept.mask)
