"""The summed loss of a micro-batch, computed inside the module that gets wrapped for training."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORED = -100


def summed_cross_entropy(model: Any, input_ids: Tensor, attention_mask: Tensor | None,
                         labels: Tensor, position_ids: Tensor | None = None,
                         weights: Tensor | None = None) -> Tensor:
    """Sum of w·(−log p) over the supervised tokens, in nats, float32.

    All are (B, T). labels are −100 where nothing is trained; weights are factors on the loss of
    each label, None for 1. Without an attention_mask, position_ids that start again at 0 keep
    attention within each sequence of a row. Logits are computed only for columns in which some
    row is trained. A sum, never a mean: whoever adds up micro-batches and ranks divides once by
    the sum of weights.
    """
    targets = labels[:, 1:]
    columns = (targets != IGNORED).any(dim=0).nonzero().squeeze(-1)
    if columns.numel() == 0:
        columns = torch.zeros(1, dtype=torch.long, device=labels.device)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    if position_ids is not None:
        inputs["position_ids"] = position_ids
    first = _tokens_before(model)
    if _keeps_logits(model):
        logits = model(**inputs, logits_to_keep=first + columns).logits
    else:
        logits = model(**inputs).logits[:, first + columns]
    logits, chosen = logits.float().flatten(0, 1), targets[:, columns].flatten()
    if weights is None:
        return F.cross_entropy(logits, chosen, ignore_index=IGNORED, reduction="sum")
    losses = F.cross_entropy(logits, chosen, ignore_index=IGNORED, reduction="none")
    return (losses * weights[:, 1:][:, columns].flatten()).sum()


class SummedLoss(nn.Module):
    """Model and loss in one module, so that what wraps it (DDP, FSDP) sees one forward pass."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor,
                position_ids: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        return summed_cross_entropy(self.model, input_ids, attention_mask, labels, position_ids,
                                    weights)


def _tokens_before(model: Any) -> int:
    """Virtual tokens that the adapter puts before each row, and that logits come out for."""
    config = getattr(model, "active_peft_config", None)
    if config is None or config.peft_type.value not in ("PROMPT_TUNING", "P_TUNING"):
        return 0
    return int(config.num_virtual_tokens)


def _keeps_logits(model: Any) -> bool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(inner.forward).parameters
