"""Packed attention as transformers' models call it.

The implementation is registered once under a name of its own. A forward pass that brings
`documents` gets packed attention; any other (generation, padded batches) is torch's SDPA as
transformers calls it, with the same masks.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lorafit.kernels.packed_attention import Documents, packed_attention

NAME = "lorafit_packed"


def use_packed_attention(model: Any) -> None:
    """Let a model that was loaded with SDPA take rows of documents."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation(NAME)


def back_to_sdpa(model: Any) -> None:
    model.set_attn_implementation("sdpa")


def attention_function() -> Callable[..., tuple[Tensor, None]]:
    """What models call under this name: as transformers knows it, so that whoever listens there
    hears every call."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    function: Callable[..., tuple[Tensor, None]] = ALL_ATTENTION_FUNCTIONS[NAME]
    return function


def packed_inputs(input_ids: Tensor, documents: Documents) -> dict[str, Any]:
    """What a model's forward pass gets besides ids and positions for a row of documents.

    transformers hands a mask of four dimensions on as it is, so this one keeps it from making any.
    """
    return {"documents": documents, "attention_mask": input_ids.new_zeros(1, 1, 1, 1)}


def flash_inputs(documents: Documents) -> dict[str, Any]:
    """The same for FlashAttention as transformers calls it: without these, each layer would look
    for the bounds in the positions, and wait for the device."""
    return {"cu_seq_lens_q": documents.bounds, "cu_seq_lens_k": documents.bounds,
            "max_length_q": documents.longest, "max_length_k": documents.longest,
            "attention_mask": None}


def _attend(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor,
            attention_mask: Tensor | None, dropout: float = 0.0, scaling: float | None = None,
            documents: Documents | None = None, sliding_window: int | None = None,
            **others: Any) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if documents is None:
        if sliding_window is not None:
            others["sliding_window"] = sliding_window
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout,
                                        scaling=scaling, **others)
        return out, None
    for name in ("softcap", "s_aux", "position_bias"):
        if others.get(name) is not None:
            raise NotImplementedError(f"packed attention has no {name}")
    return packed_attention(query, key, value, documents, scale=scaling, window=sliding_window,
                            dropout=dropout), None
