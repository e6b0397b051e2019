"""Held-out loss over every supervised token, the same on any number of ranks."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lorafit.data.batches import collate
from lorafit.data.packing import Layout, MicroBatch, split_rows
from lorafit.data.tokens import Tokens
from lorafit.train.memory import Fit, free_memory, ran_out_of_memory
from lorafit.train.signals import StopRequest, Wish
from lorafit.train.standing import Kind
from lorafit.train.strategy.strategy import Strategy

_ASKED_EVERY = 8  # micro-batches, where ranks have to agree on whether to stop


class HeldOut(Protocol):
    """Examples that are looked up one by one. lengths: (len,), in tokens."""

    @property
    def lengths(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def tokens(self, i: int) -> Tokens: ...


@torch.no_grad()
def held_out_loss(strategy: Strategy, module: nn.Module, data: HeldOut, layout: Layout,
                  pad_id: int, fit: Fit, stop: StopRequest) -> float | Wish:
    """Mean loss in nats per supervised token; a message's weight counts as in training.

    The wish in place of it, the same on every rank, when somebody asked to end the run meanwhile.
    What does not fit into memory is cut by `fit`; MachineError where single rows do not.
    """
    was_training = module.training
    module.eval()
    device = strategy.device
    wide = torch.float32 if device.type == "mps" else torch.float64
    totals = torch.zeros(2, dtype=wide, device=device)
    parts = split_rows(data.lengths, layout, strategy.shares)
    mine = parts[strategy.share :: strategy.shares]
    try:
        for number, part in enumerate(mine):
            strategy.standing.at(Kind.EVALUATION, "evaluation", number + 1, len(mine))
            totals += _of_part(module, data, part, layout, pad_id, device, fit).to(wide)
            asked = stop.wish
            if strategy.ranks > 1:
                asked = (_agreed(strategy, asked) if number % _ASKED_EVERY == 0
                         else Wish.NOTHING)
            if asked.ends:
                return asked
    finally:
        module.train(was_training)
    with strategy.standing.during(Kind.COMMUNICATION, "communicating (held-out loss)"):
        loss, weight = strategy.sum(totals).tolist()
    return float(loss / (weight or 1.0))


def _of_part(module: nn.Module, data: HeldOut, part: MicroBatch, layout: Layout, pad_id: int,
             device: torch.device, fit: Fit) -> Tensor:
    """Sum of losses and of weights, (2,) float64."""
    while True:
        try:
            return _of_pieces(module, data, fit.pieces([part]), layout, pad_id, device)
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
        free_memory(device)
        fit.halve([part], data.lengths)


def _of_pieces(module: nn.Module, data: HeldOut, pieces: Sequence[MicroBatch], layout: Layout,
               pad_id: int, device: torch.device) -> Tensor:
    wide = torch.float32 if device.type == "mps" else torch.float64
    totals = torch.zeros(2, dtype=wide, device=device)
    for piece in pieces:
        batch = collate(data.tokens, piece, layout, pad_id)
        totals[0] += module(**batch.to(device).inputs)
        totals[1] += batch.loss_weight
    return totals


def _agreed(strategy: Strategy, asked: Wish) -> Wish:
    """The largest wish of all ranks."""
    wishes = torch.tensor([asked is each for each in Wish], dtype=torch.float32,
                          device=strategy.device)
    with strategy.standing.during(Kind.COMMUNICATION, "communicating (whether to stop)"):
        wished = strategy.sum(wishes).tolist()
    return max(each for each, ranks in zip(Wish, wished, strict=True) if ranks)
