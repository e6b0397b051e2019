"""Held-out loss over every supervised token, the same on any number of ranks."""

from collections.abc import Callable, Sequence
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
                  pad_id: int, fit: Fit, stop: StopRequest,
                  again: Callable[[int], None] = lambda most: None) -> float | Wish:
    """Mean loss in nats per supervised token; a message's weight counts as in training.

    The wish in place of it, the same on every rank, when somebody asked to end the run meanwhile.
    What does not fit into memory is cut by `fit`; MachineError where single rows do not. `again` is
    told how many rows are tried after that, and raises where nothing can be tried again.
    """
    was_training = module.training
    module.eval()
    device = strategy.device
    wide = torch.float32 if device.type == "mps" else torch.float64
    totals = torch.zeros(2, dtype=wide, device=device)
    parts, shares = split_rows(data.lengths, layout, strategy.shares), strategy.shares

    def of_part(part: MicroBatch, passes: int) -> Tensor:
        while True:
            pieces = fit.pieces([part])
            pieces += [MicroBatch()] * (passes - len(pieces))
            try:
                return _of_pieces(strategy, module, data, pieces, layout, pad_id)
            except (RuntimeError, MemoryError) as error:
                if not ran_out_of_memory(error):
                    raise
            free_memory(device)
            fit.halve([part], data.lengths)
            again(fit.most_examples([part]))

    try:
        for number in range(len(parts) // shares):
            strategy.standing.at(Kind.EVALUATION, "evaluation", number + 1, len(parts) // shares)
            of_all = parts[number * shares : (number + 1) * shares]
            passes = (max(len(fit.pieces([part])) for part in of_all) if strategy.in_lockstep
                      else 0)
            totals += of_part(of_all[strategy.share], passes).to(wide)
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


def _of_pieces(strategy: Strategy, module: nn.Module, data: HeldOut,
               pieces: Sequence[MicroBatch], layout: Layout, pad_id: int) -> Tensor:
    device = strategy.device
    wide = torch.float32 if device.type == "mps" else torch.float64
    totals = torch.zeros(2, dtype=wide, device=device)
    for piece in pieces:
        batch = strategy.mine(collate(data.tokens, piece, layout, pad_id))
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
