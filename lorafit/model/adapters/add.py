"""Putting the recipe's adapter on a base."""

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from lorafit.errors import UserError
from lorafit.model.adapters import adalora, lora, peft_config, starts
from lorafit.model.adapters.float32 import train_in_float32
from lorafit.model.adapters.own import add_own, configure_own
from lorafit.model.adapters.quiet import no_advice
from lorafit.model.adapters.shared_experts import share_experts
from lorafit.model.adapters.starts import Samples
from lorafit.model.recompute import drop_input_gradients
from lorafit.model.targets import resolve_targets
from lorafit.recipe.adapter import Adapter


def refuse_misfit(model: torch.nn.Module, section: Adapter) -> None:
    """UserError when recipe and model do not fit together, as far as names and sizes show it.

    For a model without weights, so that nothing has been loaded in vain.
    """
    if section.row.is_own:
        configure_own(model, section)
    elif section.method == "lora" and section.init not in ("default", "gaussian"):
        add_adapter(model, section, 0, "")
    else:
        peft_config.build(model, section, resolve_targets(model, section), 1)


def add_adapter(model: Any, section: Adapter, seed: int, base_name: str, *,
                total_steps: int = 1, samples: Samples | None = None,
                start: Path | None = None) -> Any:
    """The model with the adapter of the recipe on it, in training mode.

    Works on a model without weights too. `total_steps` matters to methods with a schedule of their
    own, `samples` to starts that look at data; `start` is where a run that goes on kept its start.
    UserError when the recipe does not fit the model.
    """
    if section.row.is_own:
        return add_own(model, section, seed, base_name)
    from peft import get_peft_model

    targets = resolve_targets(model, section)
    is_meta = next(model.parameters()).is_meta
    if section.row.needs_weights and is_meta:
        raise UserError(f"the size of a {section.method} adapter follows from the base's weights",
                        "adapter.method", "load the base first")
    config = peft_config.build(model, section, targets, total_steps)
    try:
        torch.manual_seed(seed)
        # Without weights in the model there need be none in LoRA: those of many experts are large.
        place = torch.device("meta") if is_meta and section.method == "lora" else nullcontext()
        with no_advice(), place:
            adapted = get_peft_model(model, copy.deepcopy(config))
    except (ValueError, NotImplementedError, TypeError, RuntimeError, KeyError,
            AttributeError, ImportError) as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"peft cannot build this adapter: {message}", "adapter",
                        "change the keys that it names") from None
    drop_input_gradients(model)
    adapted.peft_config["default"].base_model_name_or_path = base_name
    if section.method == "lora":
        starts.put(adapted, section, seed, samples, start)
        if targets.share_experts:
            share_experts(adapted, {weight.name for weight in targets.chosen
                                    if weight.part == "experts"})
        if section.freeze_a:
            lora.freeze_a(adapted)
    if section.method == "adalora":
        adalora.freeze_counts(adapted)
    if section.method == "shadow":
        _freeze_last_update(adapted)
    _refuse_missing_biases(adapted, section)
    train_in_float32(adapted)
    adapted.train()
    return adapted


def _freeze_last_update(adapted: Any) -> None:
    """No block reads the shadow's state after the last one, so its update has no gradient."""
    updates = [(name, parameter) for name, parameter in adapted.named_parameters()
               if ".shadow_update_" in name]
    last = updates[-1][0].split(".shadow_update_")[0]
    for name, parameter in updates:
        if name.startswith(f"{last}."):
            parameter.requires_grad_(False)


def _refuse_missing_biases(adapted: Any, section: Adapter) -> None:
    if section.bias != "none" and not any(
        parameter.requires_grad and name.endswith("bias")
        for name, parameter in adapted.named_parameters()
    ):
        raise UserError(f"bias: {section.bias} trains nothing: these layers have no bias",
                        "adapter.bias", "set it to none")
