"""A base of random weights: the sizes of a real model without its files."""

from typing import Any

import torch

from lorafit.model.base import TORCH_DTYPES, keep_weights_as_they_are, quiet_libraries
from lorafit.model.four_bits import hold_in_4_bits


def random_base(config: Any, dtype: str, attention: str, device: torch.device, *,
                quantization: str = "none", seed: int = 0) -> Any:
    """A model of this configuration on `device`, frozen, in evaluation mode, as `load_base` gives.

    quantization: none, nf4 or fp4; the output head stays as it is, as in a loaded base. The weights
    are as transformers draws them before training.
    """
    from transformers import AutoModelForCausalLM

    quiet_libraries()
    torch.manual_seed(seed)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=TORCH_DTYPES[dtype],
                                                      attn_implementation=attention)
    model.requires_grad_(False)
    if quantization != "none":
        hold_in_4_bits(model, quantization, TORCH_DTYPES[dtype], device=device,
                       key="--quantization")
    keep_weights_as_they_are(model)
    model.config.use_cache = False
    return model.eval()

