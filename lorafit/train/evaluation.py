"""Held-out loss over every supervised token, the same on any number of ranks."""

from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from lorafit.data.batches import collate
from lorafit.data.packing import Layout, split_rows
from lorafit.data.tokens import Tokens


class HeldOut(Protocol):
    """Examples that are looked up one by one. lengths: (len,), in tokens."""

    @property
    def lengths(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def tokens(self, i: int) -> Tokens: ...


@torch.no_grad()
def held_out_loss(accelerator: Any, module: nn.Module, data: HeldOut, layout: Layout,
                  pad_id: int) -> float:
    """Mean loss in nats per supervised token; a message's weight counts as in training."""
    was_training = module.training
    module.eval()
    device = accelerator.device
    wide = torch.float32 if device.type == "mps" else torch.float64
    totals = torch.zeros(2, dtype=wide, device=device)
    parts = split_rows(data.lengths, layout, accelerator.num_processes)
    for part in parts[accelerator.process_index :: accelerator.num_processes]:
        batch = collate(data.tokens, part, layout, pad_id)
        totals[0] += module(**batch.to(device).inputs)
        totals[1] += batch.loss_weight
    loss, weight = accelerator.reduce(totals, reduction="sum").tolist()
    module.train(was_training)
    return float(loss / (weight or 1.0))
