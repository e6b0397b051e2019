"""ΔW of methods other than LoRA: what their weights are beyond the base's."""

from collections.abc import Iterator
from typing import Any

import torch

from lorafit.errors import UserError
from lorafit.export.delta.base import BaseWeights
from lorafit.export.own import trained_weights
from lorafit.model.adapters.files import load_adapter
from lorafit.model.adapters.lora import base_name
from lorafit.model.adapters.quiet import no_advice
from lorafit.model.base import load_base
from lorafit.model.trained import AdapterSource, full_precision

# Name, ΔW and W of a weight; None for the ΔW of one that was adapted and is what it was.
Update = tuple[str, torch.Tensor | None, torch.Tensor]


def full_updates(source: AdapterSource, base: BaseWeights) -> Iterator[Update]:
    """Of full fine-tuning, whose file holds the weights themselves; one at a time."""
    for name, weight in trained_weights(source, base.shards).items():
        original = base.weight(name)
        if original is not None:
            delta = weight.float() - original
            yield name, delta if delta.any() else None, original


@torch.no_grad()
def merged_updates(source: AdapterSource, base: BaseWeights) -> Iterator[Update]:
    """Of any method that can be merged.

    Merges in float32 into a model in memory, and reads the original weights from the files again,
    one at a time.
    """
    model = load_base(full_precision(source.model), "float32", "eager", torch.device("cpu"))
    adapted = load_adapter(model, source.directory)
    wanted = _adapted_weights(adapted)
    try:
        with no_advice():
            merged = adapted.merge_and_unload()
    except Exception as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the adapter cannot be merged to see what it changes: {message}",
                        str(source.directory), "inspect an adapter of another method") from None
    for name, weight in merged.named_parameters():
        original = base.weight(name)
        if original is None or original.shape != weight.shape:
            continue
        if not torch.equal(weight.float(), original):
            yield name, weight.float() - original, original
        elif name in wanted:
            yield name, None, original


def _adapted_weights(adapted: Any) -> set[str]:
    """Names of the weights that peft put an adapter on."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {f"{base_name(name)}.weight" for name, module in adapted.named_modules()
            if isinstance(module, BaseTunerLayer) and hasattr(module, "base_layer")}
