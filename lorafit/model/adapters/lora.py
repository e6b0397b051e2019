"""What only LoRA has: its layers, LoRA-FA, and the conversion to the base as it was."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Kinds of LoRA whose update is not scale·B·A of the layer that it is named after, by peft's field.
NOT_A_PRODUCT = {
    "use_qalora": "QALoRA", "use_bdlora": "block-diagonal LoRA", "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA", "arrow_config": "Arrow", "velora_config": "VeLoRA",
    "layer_replication": "replicated layers",
}
# What vLLM's --max-lora-rank may be (vllm/config/lora.py: MaxLoRARanks; newer versions take 1 too).
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def lora_layers(adapted: Any) -> Iterator[tuple[str, Any]]:
    """Every layer with a LoRA adapter, by its name in peft's wrapper."""
    from peft.tuners.lora import LoraLayer

    for name, module in adapted.named_modules():
        if isinstance(module, LoraLayer) and "default" in module.scaling:
            yield name, module


def base_name(name: str) -> str:
    """A name in peft's wrapper as it is in the base."""
    return name.removeprefix("base_model.model.")


def realised_scale(config: dict[str, Any], module: str, rank: int) -> float:
    """alpha / r, or alpha / √r with rsLoRA; alpha by peft's rule for patterns."""
    from peft.utils.other import get_pattern_key

    patterns = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(patterns.keys(), module), config["lora_alpha"])
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def freeze_a(adapted: Any) -> None:
    """LoRA-FA (arXiv 2308.03303): A stays as it was drawn."""
    for name, parameter in adapted.named_parameters():
        if ".lora_A." in name or ".lora_embedding_A." in name:
            parameter.requires_grad_(False)


def on_the_original_base(
    state: dict[str, Tensor], start: dict[str, Tensor], config: dict[str, Any],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An adapter relative to its start, as one that is valid on the base as it was.

    Where the base in memory is W − s·B₀A₀, W + s·(BA − B₀A₀) is the model that was trained: the
    rows of A and the columns of B stand beside those they started from, at twice the rank and the
    same scale. `start` holds A₀ and B₀ by the names in `state`; the result is the tensors and what
    changes in the configuration.
    """
    converted = {}
    for name, tensor in state.items():
        if name.endswith(".lora_A.weight"):
            converted[name] = torch.cat([tensor, start[name]], dim=0)
        elif name.endswith(".lora_B.weight"):
            converted[name] = torch.cat([tensor, -start[name]], dim=1)
        else:
            converted[name] = tensor
    growth = 2**0.5 if config["use_rslora"] else 2  # keeps alpha/√r, or alpha/r
    return converted, {
        "r": 2 * config["r"], "lora_alpha": config["lora_alpha"] * growth,
        "rank_pattern": {key: 2 * rank for key, rank in config["rank_pattern"].items()},
        "alpha_pattern": {key: growth * alpha for key, alpha in config["alpha_pattern"].items()},
    }
