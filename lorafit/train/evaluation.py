"""Held-out loss over every supervised token, the same on any number of ranks."""

from typing import Any

import numpy as np
import torch
from torch import nn

from lorafit.data.batches import collate, split_rows
from lorafit.data.dataset import TokenisedData


@torch.no_grad()
def held_out_loss(accelerator: Any, module: nn.Module, data: TokenisedData,
                  micro_batch_size: int, pad_id: int) -> float:
    """Mean loss in nats per supervised token."""
    was_training = module.training
    module.eval()
    device = accelerator.device
    wide = torch.float32 if device.type == "mps" else torch.float64
    totals = torch.zeros(2, dtype=wide, device=device)
    parts = split_rows(np.arange(len(data.rows)), data.lengths(), micro_batch_size,
                       accelerator.num_processes)
    for part in parts[accelerator.process_index :: accelerator.num_processes]:
        batch = collate(data.rows, part, pad_id)
        local = batch.to(device)
        totals[0] += module(local.input_ids, local.attention_mask, local.labels)
        totals[1] += batch.supervised_tokens
    loss, tokens = accelerator.reduce(totals, reduction="sum").tolist()
    module.train(was_training)
    return float(loss / max(1.0, tokens))
