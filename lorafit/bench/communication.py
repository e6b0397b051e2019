"""What a device sends in one optimizer step, by counting. Nothing heavy is imported here.

Of S bytes, p devices in a ring each send

- 2 (p−1)/p S to have the sum of them everywhere (all-reduce),
- (p−1)/p S to have the whole of what is cut up (all-gather), S being the whole,
- (p−1)/p S to sum and cut up (reduce-scatter).

Sources: NCCL's tests, doc/PERFORMANCE.md; Rajbhandari et al. 2020, arXiv 1910.02054, section 7.
Which collectives there are is what `lorafit/train/strategy` and `lorafit/train/step.py` do.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

FLOAT32_BYTES = 4
# Of train/step.py: loss, largest weight, four counts and five wishes, as float64.
_TOTALS_BYTES = 11 * 8


@dataclass(frozen=True)
class Held:
    """A weight as a device holds it. layer: the number of its decoder layer, None outside of them.

    shape: as it is stored, so that of 4-bit storage is its bytes. item_bytes: of a number in it.
    """

    shape: tuple[int, ...]
    item_bytes: int
    is_trained: bool
    layer: int | None

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    def padded_bytes(self, ranks: int) -> int:
        """Whole, once every rank's part of its rows is made as large as the first one's: fewer rows
        than ranks cost as many as there are ranks."""
        rows = -(-self.shape[0] // ranks) * ranks
        return rows * self.numbers // self.shape[0] * self.item_bytes


@dataclass(frozen=True)
class Sent:
    """Bytes that a device sends in a step. each_pass: for every micro-batch. once: for gradients.
    small: for totals, masks and the norm."""

    each_pass: float
    once: float
    small: float
    micro_batches: int

    @property
    def total(self) -> float:
        return self.micro_batches * self.each_pass + self.once + self.small


def all_reduced(size: float, ranks: int) -> float:
    return 2 * (ranks - 1) / ranks * size


def gathered(size: float, ranks: int) -> float:
    return (ranks - 1) / ranks * size


def scattered(size: float, ranks: int, *, by_gloo: bool = False) -> float:
    """by_gloo: torch makes gloo's reduce-scatter of an all-reduce, which sends twice as much."""
    return all_reduced(size, ranks) if by_gloo else (ranks - 1) / ranks * size


def ddp(held: Sequence[Held], ranks: int, micro_batches: int = 1) -> Sent:
    """Gradients of what is trained, in float32, are summed once a step: docs/decisions/0031. A mask
    of them says which are there."""
    trained = [each for each in held if each.is_trained]
    gradients = FLOAT32_BYTES * sum(each.numbers for each in trained)
    small = _TOTALS_BYTES + FLOAT32_BYTES * len(trained)
    return Sent(0.0, all_reduced(gradients, ranks), all_reduced(small, ranks), micro_batches)


def fsdp(held: Sequence[Held], ranks: int, micro_batches: int = 1, *,
         by_gloo: bool = False) -> Sent:
    """A decoder layer is gathered for each forward and again for each backward pass; what is
    outside stays in between. Gradients are summed and cut up in the last backward pass of a step.

    For an adapter on the lowest layer: layers below the adapter are gathered forward only.
    """
    layers = sum(each.padded_bytes(ranks) for each in held if each.layer is not None)
    outside = sum(each.padded_bytes(ranks) for each in held if each.layer is None)
    gradients = sum(each.padded_bytes(ranks) // each.item_bytes * FLOAT32_BYTES
                    for each in held if each.is_trained)
    return Sent(gathered(2 * layers + outside, ranks), scattered(gradients, ranks, by_gloo=by_gloo),
                all_reduced(_TOTALS_BYTES + 8, ranks), micro_batches)


def hsdp(held: Sequence[Held], ranks: int, neighbours: int, micro_batches: int = 1, *,
         by_gloo: bool = False) -> tuple[Sent, Sent]:
    """Among the neighbours of a machine as in `fsdp`; then each rank's part of the gradients is
    summed over the machines. Both, the second being what leaves the machine."""
    within = fsdp(held, neighbours, micro_batches, by_gloo=by_gloo)
    machines = ranks // neighbours
    parts = sum(each.padded_bytes(neighbours) // each.item_bytes * FLOAT32_BYTES / neighbours
                for each in held if each.is_trained)
    small = all_reduced(_TOTALS_BYTES + 8, ranks)
    return (Sent(within.each_pass, within.once, 0.0, micro_batches),
            Sent(0.0, all_reduced(parts, machines), small, micro_batches))


@dataclass(frozen=True)
class Machine:
    """What a step is computed and sent with. flops: a second and device, at the highest.

    utilisation: the share of it that training reaches. inside, outside: bytes a second that a
    device sends to its neighbours in the machine, and out of it.
    """

    flops: float
    utilisation: float
    inside: float
    outside: float

    def even_tokens(self, send_s: float, flops_a_token: float) -> float:
        """Tokens that a device computes in so many seconds."""
        return send_s * self.flops * self.utilisation / flops_a_token


def flops_a_token(linear: Iterable[Held], trained: Iterable[Held], *, is_full: bool) -> float:
    """Forward and backward: 6 for each weight of a product when it is trained, 4 when its gradient
    is not computed, and 6 for each number of an adapter (docs/performance.md)."""
    weights = sum(each.numbers for each in linear)
    if is_full:
        return 6.0 * weights
    return 4.0 * weights + 6.0 * sum(each.numbers for each in trained)
