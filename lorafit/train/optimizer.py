"""AdamW, by torch or in 8 bits by bitsandbytes."""

import importlib.util
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lorafit.errors import UserError
from lorafit.recipe.schema import Training


def build_optimizer(parameters: Iterable[nn.Parameter], training: Training,
                    device: torch.device) -> torch.optim.Optimizer:
    """The recipe's optimizer over the trained weights. The learning rate is set at each step."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
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
