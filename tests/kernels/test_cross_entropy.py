"""Chunked cross-entropy against all logits at once, and against float64."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from lorafit.kernels.cross_entropy import (
    Shaping,
    chunked_cross_entropy,
    cross_entropy_through,
    reference_cross_entropy,
)

TOKENS, WIDTH, VOCABULARY = 29, 16, 50
SHAPINGS = [Shaping(), Shaping(0.0625), Shaping(1.0, 3.0), Shaping(0.5, 2.0)]


def case(dtype=torch.float32, *, size=1.0):
    torch.manual_seed(0)
    return ((size * torch.randn(TOKENS, WIDTH)).to(dtype),
            torch.randn(VOCABULARY, WIDTH).to(dtype), torch.randint(VOCABULARY, (TOKENS,)),
            torch.randn(VOCABULARY).to(dtype), torch.rand(TOKENS))


def run(function, x, *args, **options):
    x = x.clone().requires_grad_()
    loss = function(x, *args, **options)
    loss.backward()
    return float(loss), x.grad.double()


@pytest.mark.parametrize("shaping", SHAPINGS)
@pytest.mark.parametrize("chunk", [1, 7, 29, 100])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_reference(shaping, chunk, weighted, bias):
    x, weight, targets, offset, factors = case()
    options = {"bias": offset if bias else None, "weights": factors if weighted else None,
               "shaping": shaping}
    exact_loss, exact_dx = run(
        reference_cross_entropy, x.double(), weight.double(), targets,
        **{key: value.double() if isinstance(value, torch.Tensor) else value
           for key, value in options.items()})
    loss, dx = run(chunked_cross_entropy, x, weight, targets, chunk_tokens=chunk, **options)
    assert loss == pytest.approx(exact_loss, rel=1e-6)
    assert float((dx - exact_dx).norm() / exact_dx.norm()) < 1e-5


def test_logits_far_apart_stay_exact():
    """A target whose probability is far below the smallest number has the loss it has."""
    x, weight, targets, *_ = case(size=60.0)
    exact, exact_dx = run(reference_cross_entropy, x.double(), weight.double(), targets)
    assert exact / TOKENS > 200
    loss, dx = run(chunked_cross_entropy, x, weight, targets, chunk_tokens=8)
    assert loss == pytest.approx(exact, rel=1e-6)
    assert float((dx - exact_dx).norm() / exact_dx.norm()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_it_is_as_exact_as_the_reference(dtype):
    x, weight, targets, *_ = case(dtype)
    exact, exact_dx = run(reference_cross_entropy, x.double(), weight.double(), targets)
    loss, dx = run(chunked_cross_entropy, x, weight, targets, chunk_tokens=8)
    plain, plain_dx = run(reference_cross_entropy, x, weight, targets)
    assert abs(loss - exact) <= 1.1 * abs(plain - exact) + 1e-6 * exact
    assert (dx - exact_dx).norm() < 1.1 * (plain_dx - exact_dx).norm()


@pytest.mark.parametrize("shaping", SHAPINGS)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_trained_head_gets_its_gradient(shaping, weighted):
    x, weight, targets, offset, factors = case(torch.float64)
    weights = factors.double() if weighted else None
    found = []
    for chunk in (None, 8):
        head = nn.Linear(WIDTH, VOCABULARY, dtype=torch.float64)
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(offset)
        own = x.clone().requires_grad_()
        if chunk is None:
            loss = reference_cross_entropy(own, head.weight, targets, bias=head.bias,
                                           weights=weights, shaping=Shaping())
            if shaping != Shaping():
                logits = shaping.of(head(own))
                losses = nn.functional.cross_entropy(logits, targets, reduction="none")
                loss = losses.sum() if weights is None else (losses * weights).sum()
        else:
            loss = cross_entropy_through(head, list(head.parameters()), own, targets,
                                         vocabulary=VOCABULARY, weights=weights,
                                         shaping=shaping, chunk_tokens=chunk)
        (3 * loss).backward()
        found.append([loss, own.grad, head.weight.grad, head.bias.grad])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_no_tokens_no_loss_and_a_gradient_of_zeros():
    x, weight, targets, *_ = case()
    x = x[:0].clone().requires_grad_()
    loss = chunked_cross_entropy(x, weight, targets[:0])
    loss.backward()
    assert float(loss) == 0
    assert x.grad.shape == (0, WIDTH)
    head = nn.Linear(WIDTH, VOCABULARY)
    loss = cross_entropy_through(head, list(head.parameters()), x, targets[:0],
                                 vocabulary=VOCABULARY)
    loss.backward()
    assert not head.weight.grad.any()


def test_nothing_as_large_as_the_logits_is_kept():
    x, weight, targets, *_ = case()
    kept = []
    with saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        chunked_cross_entropy(x.requires_grad_(), weight, targets, chunk_tokens=4)
    assert kept == [(TOKENS, WIDTH)]


def test_without_gradients_the_loss_is_the_same():
    x, weight, targets, *_ = case()
    with torch.no_grad():
        loss = chunked_cross_entropy(x, weight, targets)
    assert float(loss) == pytest.approx(float(reference_cross_entropy(x, weight, targets)))
