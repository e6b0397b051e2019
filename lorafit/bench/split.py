"""What a step's attention and loss cost, measured alone at the shapes that the step has."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lorafit.bench.machine import now_s
from lorafit.bench.sides import Side
from lorafit.data.batches import IGNORED, Batch

_FORWARD = 2  # products of attention in a forward pass: of queries and keys, of shares and values


@dataclass(frozen=True)
class AttentionCall:
    """A call of the attention function: what it was given, and how often in a step.

    backward: whether its queries, keys and values got a gradient.
    """

    function: Callable[..., Any]
    module: Any
    tensors: tuple[Tensor, Tensor, Tensor]
    mask: Tensor | None
    options: dict[str, Any]
    backward: bool
    times: int = 1

    @property
    def kind(self) -> tuple[Any, ...]:
        """Calls of one kind in a micro-batch take the same time."""
        return (*(t.shape for t in self.tensors), self.backward,
                self.options.get("sliding_window"))


def attention_calls(side: Side) -> list[AttentionCall]:
    """Every kind of attention call of a step, from one forward pass over its micro-batches.

    Empty where the architecture does not call attention by a function that can be replaced.
    """
    found: list[AttentionCall] = []
    for batch in side.micro_batches():
        calls: list[AttentionCall] = []
        with _listening(side.model.config._attn_implementation, calls):
            side.module(**batch.to(side.workload.device).inputs)
        alike = Counter(call.kind for call in calls)
        first = {call.kind: call for call in reversed(calls)}
        found += [replace(first[kind], times=times) for kind, times in alike.items()]
    return found


@contextmanager
def _listening(name: str, calls: list[AttentionCall]) -> Iterator[None]:
    """While this lasts, calls of the attention function of that name are noted."""
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    function = ALL_ATTENTION_FUNCTIONS.get(name)
    if function is None:  # eager attention is a function of each architecture's own
        yield
        return

    def listened(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any = None,
                 **options: Any) -> Any:
        tensors = (query.detach(), key.detach(), value.detach())
        calls.append(AttentionCall(function, module, tensors, mask, options, query.requires_grad))
        return function(module, query, key, value, mask, **options)

    AttentionInterface.register(name, listened)
    try:
        yield
    finally:
        AttentionInterface.register(name, function)


def attention_s(calls: Sequence[AttentionCall], device: torch.device, rounds: int) -> float:
    """Seconds of all attention calls of a step, forward and backward."""
    return sum(call.times * _median_s(_attention(call), device, rounds) for call in calls)


def attention_flops(calls: Sequence[AttentionCall], side: Side) -> float:
    """Of the step's attention, forward and backward, counted within each example and causally:
    4·D FLOPs a pair of tokens and query head in the forward pass, twice as many backwards.

    calls: those of `attention_calls`. Padding counts for nothing.
    """
    if not calls:
        return 0.0
    total = 0.0
    micro_batches = len(side.micro_batches())
    for call in calls:
        q, window = call.tensors[0], call.options.get("sliding_window")
        pairs = sum(_pairs(int(n), window) for n in side.workload.lengths)
        # A call counts for the examples of its micro-batch; over the calls of all of them each
        # layer has seen every example once.
        share = call.times / micro_batches
        per_pair = 2 * _FORWARD * q.shape[1] * q.shape[3] * (3 if call.backward else 1)
        total += share * pairs * per_pair
    return total


def loss_s(side: Side, device: torch.device, rounds: int) -> float | None:
    """Seconds of the loss on hidden states, forward and backward, with the product with the output
    head. None where the side takes the model's own logits."""
    if side.head is None:
        return None
    return sum(_median_s(_loss(side, batch), device, rounds) for batch in side.micro_batches())


def _pairs(length: int, window: int | None) -> float:
    """Pairs of a token and one it sees."""
    if window is None or window >= length:
        return length * (length + 1) / 2
    return window * length - window * (window - 1) / 2


def _attention(call: AttentionCall) -> Callable[[], None]:
    q, k, v = (torch.randn_like(t).requires_grad_(call.backward) for t in call.tensors)

    def run() -> None:
        out = call.function(call.module, q, k, v, call.mask, **call.options)[0]
        if call.backward:
            out.backward(out.detach())

    return run


def _loss(side: Side, batch: Batch) -> Callable[[], None]:
    device = side.workload.device
    labels = batch.labels[batch.labels != IGNORED].to(device)
    weights = None
    if batch.weights is not None:
        weights = batch.weights[batch.labels != IGNORED].to(device)
    head: Any = side.head
    width = head.layer.weight.shape[1]
    dtype = side.model.get_base_model().get_input_embeddings().weight.dtype
    states = torch.randn(len(labels), width, device=device).to(dtype).requires_grad_()

    def run() -> None:
        head.loss(states, labels, weights).backward()

    return run


def _median_s(run: Callable[[], None], device: torch.device, rounds: int) -> float:
    """Seconds of a call, after the first."""
    run()
    seconds = []
    for _ in range(rounds):
        started = now_s(device)
        run()
        seconds.append(now_s(device) - started)
    return statistics.median(seconds)
