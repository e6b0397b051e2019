"""Cross-entropy from hidden states, without keeping logits.

Logits are the largest tensors of a training step: tokens × vocabulary. Here they exist for a chunk
of tokens at a time, and their gradient is turned into that of the hidden states in the forward
pass, so nothing of their size is kept. Only tokens that carry a loss are given.

    z = cap·tanh(s·(x·Wᵀ + b) / cap)      loss = Σ w·(log Σ exp z − z[target])

Letters: N tokens with a loss, H width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lorafit.kernels.chunks import tokens_at_once


@dataclass(frozen=True)
class Shaping:
    """What an architecture does to logits: a factor (Cohere, Granite), then a soft cap (Gemma)."""

    factor: float = 1.0
    cap: float | None = None

    def of(self, logits: Tensor) -> Tensor:
        """In float32, from logits in the model's dtype; rounded in between as the model does."""
        if self.factor != 1.0:
            logits = logits * self.factor
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits if logits.dtype == torch.float64 else logits.float()


PLAIN = Shaping()


def chunked_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, *,
                          bias: Tensor | None = None, weights: Tensor | None = None,
                          shaping: Shaping = PLAIN, chunk_tokens: int | None = None) -> Tensor:
    """The summed loss, float32, of hidden states x (N, H) under a frozen head (V, H).

    targets: (N,) int64. weights: (N,) float32 factors on each token's loss, None for 1. Gradients
    go to x only.
    """
    tokens = chunk_tokens or tokens_at_once(len(weight), x.device.type)
    apply: Any = _ChunkedCrossEntropy.apply
    return apply(x, weight, bias, targets, weights, shaping, tokens)


def cross_entropy_through(head: Callable[[Tensor], Tensor], trained: Sequence[Tensor], x: Tensor,
                          targets: Tensor, *, vocabulary: int, weights: Tensor | None = None,
                          shaping: Shaping = PLAIN, chunk_tokens: int | None = None) -> Tensor:
    """The same for a head that is trained itself, whatever it computes.

    head: (n, H) to logits (n, V). trained: every tensor in it that takes a gradient.
    """
    tokens = chunk_tokens or tokens_at_once(vocabulary, x.device.type)
    apply: Any = _CrossEntropyThrough.apply
    return apply(x, head, targets, weights, shaping, tokens, *trained)


def reference_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, *,
                            bias: Tensor | None = None, weights: Tensor | None = None,
                            shaping: Shaping = PLAIN) -> Tensor:
    """The same with all logits at once."""
    logits = shaping.of(F.linear(x, weight, bias))
    if weights is None:
        return F.cross_entropy(logits, targets, reduction="sum")
    return (F.cross_entropy(logits, targets, reduction="none") * weights).sum()


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor,
                weights: Tensor | None, shaping: Shaping, chunk_tokens: int) -> Tensor:
        needs_x = ctx.needs_input_grad[0]
        dx = torch.empty_like(x) if needs_x else None
        total = torch.zeros((), dtype=_loss_dtype(x), device=x.device)
        for rows in _chunks(len(x), chunk_tokens):
            raw = F.linear(x[rows], weight, bias)
            loss, dz = _loss_and_gradient(raw, targets[rows], None if weights is None
                                          else weights[rows], shaping, needs_x)
            total += loss
            if dx is not None and dz is not None:
                torch.mm(dz, weight, out=dx[rows])
        ctx.save_for_backward(dx)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dx,) = ctx.saved_tensors
        return None if dx is None else dx * gradients[0].to(dx.dtype), *[None] * 6


def _loss_and_gradient(raw: Tensor, targets: Tensor, weights: Tensor | None, shaping: Shaping,
                       needs_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Summed loss of a chunk of raw logits (n, V), and their gradient in their own dtype.

    The softmax overwrites the logits. log Σ exp z is max z − log p of the largest: exact, since
    that p is at least 1/V.
    """
    z = shaping.of(raw)
    chosen = targets[:, None]
    z_target = z.gather(1, chosen)
    if not needs_gradient:
        losses = z.logsumexp(1, keepdim=True) - z_target
        return (losses if weights is None else losses * weights[:, None]).sum(), None
    slope = None if shaping.cap is None else 1 - (z / shaping.cap).square_()
    largest = z.amax(1, keepdim=True)
    probability = torch.softmax(z, 1, out=z)
    losses = largest - probability.amax(1, keepdim=True).log() - z_target
    dz = probability.scatter_add_(1, chosen, torch.full_like(z_target, -1.0))
    if slope is not None:
        dz.mul_(slope)
    if weights is not None:
        losses = losses * weights[:, None]
        dz.mul_(weights[:, None])
    if shaping.factor != 1.0:
        dz.mul_(shaping.factor)
    return losses.sum(), dz.to(raw.dtype)


class _CrossEntropyThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Callable[[Tensor], Tensor], targets: Tensor,
                weights: Tensor | None, shaping: Shaping, chunk_tokens: int,
                *trained: Tensor) -> Tensor:
        needs = ctx.needs_input_grad[0] or any(ctx.needs_input_grad[6:])
        total = torch.zeros((), dtype=_loss_dtype(x), device=x.device)
        dx = torch.empty_like(x)
        sums = [torch.zeros_like(t) for t in trained] if needs else []
        for rows in _chunks(len(x), chunk_tokens):
            with torch.set_grad_enabled(needs):
                part = x[rows].detach().requires_grad_(needs)
                losses = F.cross_entropy(shaping.of(head(part)), targets[rows], reduction="none")
                loss = (losses if weights is None else losses * weights[rows]).sum()
            total += loss.detach()
            if needs:
                own, *others = torch.autograd.grad(loss, [part, *trained])
                dx[rows] = own
                for so_far, new in zip(sums, others, strict=True):
                    so_far.add_(new)
        ctx.save_for_backward(dx if needs else None, *sums)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        factor = gradients[0]
        dx, *sums = (None if t is None else t * factor.to(t.dtype) for t in ctx.saved_tensors)
        return dx, *[None] * 5, *sums


def _loss_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _chunks(tokens: int, at_once: int) -> Iterator[slice]:
    for start in range(0, tokens, at_once):
        yield slice(start, min(start + at_once, tokens))
