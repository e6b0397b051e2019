"""Activation checkpointing: each layer's input is kept, the rest computed again."""

from typing import Any


def recompute_activations(model: Any) -> None:
    """Let a transformers model compute its layers again in the backward pass."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    drop_input_gradients(model)


def drop_input_gradients(model: Any) -> None:
    """Undo what transformers and peft do to models with checkpoints: ask for a gradient of the
    embeddings' output.

    Checkpoints of the older, re-entrant kind need it. Here it would only pull the backward pass,
    and what has to be kept for it, through every frozen layer below the lowest trained one.
    """
    if getattr(model, "_require_grads_hook", None) is not None:
        model.disable_input_require_grads()
