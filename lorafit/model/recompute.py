"""Activation checkpointing: what the backward pass computes again instead of finding it kept.

`none` keeps everything. `selective` keeps all but what is widest, the inner tensors of gated MLPs
and of experts, and multiplies by gate and up once more. `full` keeps each layer's input and runs
the layer again.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lorafit.errors import UserError
from lorafit.kernels.chunks import tokens_at_once
from lorafit.model.fast.experts import FastExperts
from lorafit.model.fast.mlp import FastGatedMlp
from lorafit.model.fast.proof import TOKENS, small_row
from lorafit.model.inventory import found_layers
from lorafit.model.loss import SummedLoss
from lorafit.model.parts import local_part
from lorafit.recipe import auto
from lorafit.recipe.auto import IN_RECIPE, Decision

KEY = "training.activation_checkpointing"
_LARGEST_LAYER = 2  # full: one layer at a time is kept whole, and its gradients beside it


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


def settle_recomputation(module: SummedLoss, setting: str, tokens: int, device: torch.device,
                         memory_bytes: int, *, may_run_layers_again: bool,
                         offloads: bool = False) -> Decision:
    """Put the recipe's setting on a model, or with `auto` what keeps most and fits.

    `full` set in the recipe is put on the base before, by `recompute_activations`. tokens: most
    that a micro-batch has. memory_bytes: of the device. offloads: what is kept moves to the host
    (`model/offload.py`). What is kept is measured by one small forward pass. UserError for
    `selective` on a model without a gated MLP in its fast form.
    """
    inner: Any = module.model.get_base_model()
    mlps = [m for m in module.modules() if isinstance(m, FastGatedMlp | FastExperts)]
    if setting in ("none", "full"):
        return Decision(KEY, setting, IN_RECIPE)
    if setting == "selective":
        if not mlps:
            raise UserError("this model has no gated MLP whose inner tensors could be computed "
                            "again", f"{KEY}: selective", f"--set {KEY}=full")
        _keep_inner(mlps, False)
        return Decision(KEY, setting, IN_RECIPE)
    held = held_bytes(module, device)
    kept = {"none": kept_bytes(module, device) / TOKENS * tokens}
    if mlps:
        _keep_inner(mlps, False)
        kept["selective"] = kept_bytes(module, device) / TOKENS * tokens
        _keep_inner(mlps, True)
    if may_run_layers_again and getattr(inner, "supports_gradient_checkpointing", False):
        config = inner.config.get_text_config()
        layer_input = tokens * config.hidden_size * inner.dtype.itemsize
        kept["full"] = (layer_input * config.num_hidden_layers
                        + _LARGEST_LAYER * kept["none"] / config.num_hidden_layers)
    decision = auto.activation_checkpointing(kept, held, memory_bytes, offloads=offloads)
    if decision.value == "selective":
        _keep_inner(mlps, False)
    elif decision.value == "full":
        recompute_activations(inner)
        if module.head is not None:  # the tokens with a loss are not known when it runs again
            module.head = replace(module.head, last_mlp=None)
    return decision


def kept_bytes(module: SummedLoss, device: torch.device) -> int:
    """What a forward pass over TOKENS tokens keeps for the backward pass, in bytes, weights left
    out. Draws nothing from the generators."""
    row = small_row(module.model, device)
    attention_mask = None if "documents" in row else row["attention_mask"]
    own: set[int] = set()
    kept: dict[int, int] = {}

    def note_weights(part: nn.Module, *_: Any) -> None:
        own.update(_storage(t) for t in (*part.parameters(), *part.buffers()))

    def note(tensor: Tensor) -> Tensor:
        if (storage := _storage(tensor)) not in own:
            kept[storage] = _memory(tensor).nbytes()
        return tensor

    note_weights(module)
    # Where weights are cut up, a layer's are whole while it is computed, and then only.
    hooks = [layer.register_forward_pre_hook(note_weights) for layer in found_layers(module)]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad(), \
            saved_tensors_hooks(note, lambda tensor: tensor):
        # Held until all is counted, so that no memory is used twice.
        loss = module(row["input_ids"], attention_mask, row["input_ids"],
                      position_ids=row.get("position_ids"), documents=row.get("documents"))
    for hook in hooks:
        hook.remove()
    del loss
    return sum(kept.values())


def held_bytes(module: nn.Module, device: torch.device) -> int:
    """What is there in any case: weights, gradients and AdamW's two states of what is trained
    (float32), and the logits of a chunk with their gradient."""
    weights = sum(local_part(t).nbytes for t in (*module.parameters(), *module.buffers()))
    trained = sum(local_part(p).numel() for p in module.parameters() if p.requires_grad)
    if any(local_part(p) is not p for p in module.parameters()):  # one is whole, one on its way
        layers = found_layers(module)
        weights += 2 * max(sum(p.nbytes for p in layer.parameters()) for layer in layers)
    model: Any = module.model
    vocabulary = model.config.get_text_config().vocab_size
    logits = 10 * vocabulary * tokens_at_once(vocabulary, device.type)
    return int(weights + 12 * trained + logits)


def _storage(tensor: Tensor) -> int:
    """The same for all views of one memory, also when that is given back and taken again."""
    number: int = _memory(tensor)._cdata
    return number


def _memory(tensor: Tensor) -> torch.UntypedStorage:
    part = local_part(tensor)
    if part.layout is torch.sparse_coo:  # FRoD and SHiRA multiply by such
        part = part._values()
    return part.untyped_storage()


def _keep_inner(mlps: Sequence[FastGatedMlp | FastExperts], keeps: bool) -> None:
    for mlp in mlps:
        mlp.lorafit_keeps_inner = keeps
