"""Bottleneck adapters: two small layers behind a block, trained alone.

    h → h + up(activation(down(h)))

h is what the attention block or the MLP block of a decoder layer gives out, before it is added to
the residual stream (and before a norm that follows the block, as in Gemma 2 and 3). `placement:
houlsby` puts one behind both blocks (arXiv 1902.00751), `pfeiffer` behind the MLP alone
(arXiv 2005.00247). `up` starts at zero, so that a fresh adapter changes nothing.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorafit.errors import UserError
from lorafit.model.adapters.own import drawing, option
from lorafit.model.choice import chosen_layers
from lorafit.model.inventory import decoder_layers, is_norm, stack_of
from lorafit.recipe.adapter import Adapter

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu, "relu": F.relu, "silu": F.silu, "tanh": torch.tanh,
}

# What architectures call the two blocks of a decoder layer.
_BLOCKS = {"attention": r"attn|attention|mamba|mixer", "mlp": r"mlp|ffn|feed_?forward|moe"}
_PLACES = {"houlsby": ("attention", "mlp"), "pfeiffer": ("mlp",)}


def configure(model: nn.Module, section: Adapter) -> dict[str, Any]:
    """Behind which blocks. UserError when a layer does not have one of each kind."""
    layers = decoder_layers(model)
    stack = stack_of(model)
    prefix, chosen = stack.prefix, chosen_layers(stack, section)
    blocks = [f"{prefix}.{number}.{_block(layers[number], f'{prefix}.{number}', kind)}"
              for number in (range(len(layers)) if chosen is None else chosen)
              for kind in _PLACES[option(section, "placement")]]
    config: Any = model.config
    return {
        "rank": section.rank, "dropout": section.dropout or 0.0, "blocks": blocks,
        "placement": option(section, "placement"), "activation": option(section, "activation"),
        "hidden_size": config.get_text_config().hidden_size,
    }


def _block(layer: nn.Module, name: str, kind: str) -> str:
    """The attention or MLP block of a decoder layer, by name: the one child that has weights and
    is no norm."""
    found = [child for child, module in layer.named_children()
             if re.search(_BLOCKS[kind], child) and not is_norm(module)
             and any(True for _ in module.parameters())]
    if len(found) != 1:
        parts = ", ".join(child for child, _ in layer.named_children())
        raise UserError(f"{name} has {len(found)} {kind} blocks to put an adapter behind, not one "
                        f"(its parts: {parts})", "adapter.method",
                        "choose others with adapter.layers or adapter.options.placement, or use "
                        "method: lora")
    return found[0]


def attach(model: nn.Module, config: dict[str, Any], seed: int) -> None:
    for name in config["blocks"]:
        block = model.get_submodule(name)
        adapter = Bottleneck(config["hidden_size"], config["rank"], config["activation"],
                             config["dropout"], drawing(seed, name))
        adapter.to(next(block.parameters()).device)
        # Beside the block, not in it: some blocks are a list of what they compute.
        layer, _, last = name.rpartition(".")
        model.get_submodule(layer).add_module(f"after_{last}", adapter)
        block.register_forward_hook(adapter.replace_output)


def tensors(model: nn.Module, config: dict[str, Any]) -> dict[str, Tensor]:
    """`<layer>.after_<block>.down.weight` (R, D), `.up.weight` (D, R), and both biases."""
    found: dict[str, Tensor] = {}
    for name in config["blocks"]:
        layer, _, last = name.rpartition(".")
        adapter = f"{layer}.after_{last}"
        found |= {f"{adapter}.{key}": parameter
                  for key, parameter in model.get_submodule(adapter).named_parameters()}
    return found


def settle(model: nn.Module, config: dict[str, Any]) -> None:
    """Nothing follows from the tensors."""


class Bottleneck(nn.Module):
    """h + up(dropout(activation(down(h)))), D → R → D, weights in float32 over any base."""

    def __init__(self, hidden_size: int, rank: int, activation: str, dropout: float,
                 generator: torch.Generator) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.dropout = dropout
        self.down = nn.Linear(hidden_size, rank)
        self.up = nn.Linear(rank, hidden_size)
        bound = hidden_size**-0.5  # as LoRA's A starts: uniform in ±1/√D
        with torch.no_grad():
            drawn = torch.rand(self.down.weight.shape, generator=generator, device="cpu")
            self.down.weight.copy_((2 * drawn - 1) * bound)
            for weight in (self.down.bias, self.up.weight, self.up.bias):
                weight.zero_()

    def forward(self, h: Tensor) -> Tensor:
        """(…, D) → (…, D). The weights are converted to the dtype of h, which is larger."""
        inner = self.activation(_linear(self.down, h))
        return h + _linear(self.up, F.dropout(inner, self.dropout, self.training))

    def replace_output(self, block: nn.Module, inputs: Any, output: Any) -> Any:
        """A forward hook of the block: blocks give out h, or h and more."""
        if isinstance(output, tuple):
            return (self(output[0]), *output[1:])
        return self(output)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))
