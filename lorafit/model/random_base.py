"""A base of random weights: the sizes of a real model without its files."""

from typing import Any

import torch
from torch import nn

from lorafit.errors import UserError
from lorafit.model.base import TORCH_DTYPES, keep_weights_as_they_are, quiet_libraries


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
        _quantise(model, quantization, TORCH_DTYPES[dtype], device)
    keep_weights_as_they_are(model)
    model.config.use_cache = False
    return model.eval()


def _quantise(model: Any, kind: str, dtype: torch.dtype, device: torch.device) -> None:
    """Put bitsandbytes' 4-bit layers in place of the linear ones, as loading does."""
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError:
        raise UserError(f"{kind} needs bitsandbytes, which is not installed", "--quantization",
                        "pip install 'lorafit[quantization]'") from None
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules()
             if type(module) is nn.Linear and module is not head]
    for name in names:  # by name, so that each weight goes once it is quantised
        module = model.get_submodule(name)
        with torch.device("meta"):
            layer: Any = Linear4bit(module.in_features, module.out_features,
                                    module.bias is not None, dtype, compress_statistics=True,
                                    quant_type=kind)
        weight = Params4bit(module.weight.detach(), requires_grad=False, compress_statistics=True,
                            quant_type=kind, module=layer)
        layer.weight = weight.to(device)
        if module.bias is not None:
            layer.bias = module.bias
        model.set_submodule(name, layer.requires_grad_(False))
    model.is_loaded_in_4bit = True
