"""AdamW, by torch or in 8 bits by bitsandbytes."""

import importlib.util
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lorafit.errors import UserError
from lorafit.recipe.schema import Training


def build_optimizer(parameters: Iterable[tuple[str, nn.Parameter]], training: Training,
                    device: torch.device) -> torch.optim.Optimizer:
    """The recipe's optimizer over the trained weights, given with their names.

    The learning rate is set at each step; a group's `rate_factor` multiplies it. With LoRA+
    (arXiv 2402.12354) the B matrices are a group of their own.
    """
    named = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
    trained: list[Any] = [parameter for _, parameter in named]
    if training.lora_plus_ratio != 1:
        b = [p for name, p in named if ".lora_B." in name or ".lora_embedding_B." in name]
        if not b:
            raise UserError("nothing that is trained is a LoRA matrix B",
                            "training.lora_plus_ratio", "leave it out")
        ids = {id(p) for p in b}
        trained = [{"params": [p for p in trained if id(p) not in ids], "rate_factor": 1.0},
                   {"params": b, "rate_factor": training.lora_plus_ratio}]
    first, second = training.betas
    options: dict[str, Any] = {
        "lr": 0.0, "betas": (first, second), "eps": training.epsilon,
        "weight_decay": training.weight_decay,
    }
    if training.optimizer == "adamw_8bit":
        if importlib.util.find_spec("bitsandbytes") is None:
            raise UserError("needs bitsandbytes, which is not installed", "training.optimizer",
                            "pip install 'lorafit[quantization]', or use adamw")
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(trained, **options)
    return torch.optim.AdamW(trained, fused=device.type in ("cpu", "cuda", "xpu"), **options)
