"""bitsandbytes' 4-bit layers in place of linear ones, as loading puts them there."""

from typing import Any

import torch
from torch import nn

from lorafit.errors import UserError


def hold_in_4_bits(model: Any, kind: str, dtype: torch.dtype, *, double_quantization: bool = True,
                   device: torch.device | None = None, key: str = "model.quantization") -> None:
    """Give a model layers that hold their weight in 4 bits; the output head stays as it is.

    kind: nf4 or fp4. dtype: of products. A weight is quantised when it is put on `device`; without
    one it stays as it is, where it is, until somebody moves its layer. UserError without
    bitsandbytes; `key` is who asked.
    """
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError:
        raise UserError(f"{kind} needs bitsandbytes, which is not installed", key,
                        "pip install 'lorafit[quantization]'") from None
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules()
             if type(module) is nn.Linear and module is not head]
    for name in names:  # by name, so that each weight goes once it is quantised
        module = model.get_submodule(name)
        with torch.device("meta"):
            layer: Any = Linear4bit(module.in_features, module.out_features,
                                    module.bias is not None, dtype,
                                    compress_statistics=double_quantization, quant_type=kind)
        weight = Params4bit(module.weight.detach(), requires_grad=False, module=layer,
                            compress_statistics=double_quantization, quant_type=kind)
        layer.weight = weight if device is None else weight.to(device)
        if module.bias is not None:
            layer.bias = module.bias
        model.set_submodule(name, layer.requires_grad_(False))
    model.is_loaded_in_4bit = True
