"""The summed loss of a micro-batch, computed inside the module that gets wrapped for training."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorafit.kernels.packed_attention import Documents
from lorafit.model.fast.attention import NAME, flash_inputs, packed_inputs
from lorafit.model.fast.head import OutputHead, hidden_states

IGNORED = -100


def summed_cross_entropy(model: Any, input_ids: Tensor, attention_mask: Tensor | None,
                         labels: Tensor, position_ids: Tensor | None = None,
                         weights: Tensor | None = None, documents: Documents | None = None,
                         predicting: Tensor | None = None) -> Tensor:
    """Sum of w·(−log p) over the supervised tokens, in nats, float32, by the model's own logits.

    All are (B, T). labels are −100 where nothing is trained; weights are factors on the loss of
    each label, None for 1. Without an attention_mask, position_ids that start again at 0 keep
    attention within each sequence of a row; `documents` are those sequences, for attention that
    is told where they end. Logits are computed only for columns in which some row is trained;
    with one row, `predicting` (see cross_entropy_of_states) is these columns. A sum, never a mean:
    whoever adds up micro-batches and ranks divides once by the sum of weights.
    """
    targets = labels[:, 1:]
    if predicting is not None and len(labels) == 1:
        columns = predicting
    else:
        columns = (targets != IGNORED).any(dim=0).nonzero().squeeze(-1)
    if columns.numel() == 0:
        columns = torch.zeros(1, dtype=torch.long, device=labels.device)
    inputs = model_inputs(model, input_ids, attention_mask, position_ids, documents)
    inputs["use_cache"] = False
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


def cross_entropy_of_states(model: Any, head: OutputHead, input_ids: Tensor,
                            attention_mask: Tensor | None, labels: Tensor,
                            position_ids: Tensor | None = None, weights: Tensor | None = None,
                            documents: Documents | None = None, predicting: Tensor | None = None
                            ) -> Tensor:
    """The same by the head's loss on hidden states, for the supervised tokens alone.

    predicting: (N,) int64, the places in the flattened (B, T) whose next token is supervised;
    found here, at the price of waiting for the device, if it is None.
    """
    if predicting is None:
        predicting = predicting_places(labels)
    inputs = model_inputs(model, input_ids, attention_mask, position_ids, documents)
    with head.only(predicting):
        states = hidden_states(head, inputs).index_select(0, predicting)
    chosen = labels.flatten().index_select(0, predicting + 1)
    factors = None if weights is None else weights.flatten().index_select(0, predicting + 1)
    return head.loss(states, chosen, factors)


def predicting_places(labels: Tensor) -> Tensor:
    """Places in the flattened labels (B, T) before one that is supervised: (N,) int64."""
    is_next = (labels != IGNORED).roll(-1, dims=1)
    is_next[:, -1] = False
    return is_next.flatten().nonzero().squeeze(-1)


def model_inputs(model: Any, input_ids: Tensor, attention_mask: Tensor | None,
                 position_ids: Tensor | None, documents: Documents | None) -> dict[str, Any]:
    """What the model's forward pass takes, with the bounds of documents as its attention wants
    them."""
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
    if position_ids is not None:
        inputs["position_ids"] = position_ids
    if documents is not None:
        attention = model.config._attn_implementation
        if attention == NAME:
            inputs |= packed_inputs(input_ids, documents)
        elif attention.startswith("flash"):
            inputs |= flash_inputs(documents)
    return inputs


class SummedLoss(nn.Module):
    """Model and loss in one module, so that what wraps it (DDP, FSDP) sees one forward pass.

    head: computes the loss from hidden states; without it the model's own logits are taken.
    """

    def __init__(self, model: Any, head: OutputHead | None = None) -> None:
        super().__init__()
        self.model = model
        self.head = head

    def call(self, function: Callable[[], Any]) -> Any:
        """Call what uses parts of the model. What shards weights lays hold of this method too."""
        return function()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor,
                position_ids: Tensor | None = None, weights: Tensor | None = None,
                documents: Documents | None = None, predicting: Tensor | None = None) -> Tensor:
        if self.head is None:
            return summed_cross_entropy(self.model, input_ids, attention_mask, labels,
                                        position_ids, weights, documents)
        return cross_entropy_of_states(self.model, self.head, input_ids, attention_mask, labels,
                                       position_ids, weights, documents, predicting)


def _tokens_before(model: Any) -> int:
    """Virtual tokens that the adapter puts before each row, and that logits come out for."""
    config = getattr(model, "active_peft_config", None)
    if config is None or config.peft_type.value not in ("PROMPT_TUNING", "P_TUNING"):
        return 0
    return int(config.num_virtual_tokens)


def _keeps_logits(model: Any) -> bool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(inner.forward).parameters
