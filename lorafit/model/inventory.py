"""What a model is made of: its weights by kind and purpose. Works on a model without weights."""

import re
from typing import Any

from torch import nn

from lorafit.errors import UserError
from lorafit.model.stored import stands_for
from lorafit.model.weights import (
    ACTIVE_EXPERTS,
    NUMBER,
    ROUTER_NAMES,
    Part,
    Stack,
    Weight,
    endings,
    is_within,
    part_of,
)


def weights_of(model: Any) -> list[Weight]:
    """Every weight that an adapter can be put on, in the model's order."""
    head = _accessed(model, "output")
    routers = _routers(model)
    found = []
    for name, module in model.named_modules():
        shape = full_shape(module)
        if is_linear(module) and shape is not None:
            part: Part = "head" if module is head else part_of(name, routers)
            found.append(Weight(name, part, shape))
        elif isinstance(module, nn.Embedding) and shape is not None:
            found.append(Weight(name, "embeddings", shape))
        elif name:
            found += _bare_weights(name, module, routers)
    return found


def is_linear(module: nn.Module) -> bool:
    """Whether a module is x·Wᵀ + bias."""
    # bitsandbytes' layers are subclasses of nn.Linear; Conv1D is GPT-2's transposed one.
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D" \
        or stands_for(module) is not None


def linear_shape(module: Any) -> tuple[int, int]:
    """(out, in) of a linear layer, whatever its weight is stored in."""
    if isinstance(module, nn.Linear) or stands_for(module) is not None:
        return module.out_features, module.in_features
    return module.nf, module.weight.shape[0]


def full_shape(module: nn.Module) -> tuple[int, int] | None:
    """(out, in) of a linear layer or embedding, whatever its weight is stored in."""
    if is_linear(module):
        return linear_shape(module)
    weight = getattr(module, "weight", None)
    return (weight.shape[0], weight.shape[1]) if weight is not None and weight.ndim == 2 else None


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer, by its class: RMSNorm, LayerNorm and their kin."""
    return "norm" in type(module).__name__.lower() and any(
        True for _ in module.parameters(recurse=False))


def is_tied(model: Any) -> bool:
    """Whether input embeddings and output head are one weight."""
    head, embeddings = _accessed(model, "output"), _accessed(model, "input")
    return head is not None and embeddings is not None and (
        getattr(head, "weight", None) is getattr(embeddings, "weight", ())
        or bool(getattr(model.config, "tie_word_embeddings", False)))


def active_experts(model: Any) -> int | None:
    """How many experts a token is sent to; None where the configuration does not say."""
    config = model.config.get_text_config()
    return next((int(value) for name in ACTIVE_EXPERTS if (value := getattr(config, name, None))),
                None)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of decoder layers: the longest list of modules that is in no other list."""
    lists = _layer_lists(model)
    if not lists:
        raise UserError("no list of decoder layers was found in the model", "adapter.layers",
                        "leave adapter.layers out")
    return max(lists, key=len)


def found_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers, one after the other; none where no list of them is found."""
    return list(max(_layer_lists(model), key=len, default=[]))


def stack_of(model: Any) -> Stack:
    """Where the decoder layers are, in names."""
    stack = max(_layer_lists(model), key=len, default=None)
    prefix = next((name for name, module in model.named_modules() if module is stack), "")
    return Stack(prefix, 0 if stack is None else len(stack), active_experts(model))


def _layer_lists(model: nn.Module) -> list[nn.ModuleList]:
    return [module for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList) and not NUMBER.search(name)]


def module_words(model: nn.Module, names: list[str]) -> list[str]:
    """The shortest words that mean these modules to peft: endings, or the full names."""
    wanted = set(names)
    return endings(names, [name for name, _ in model.named_modules() if name not in wanted])


def _bare_weights(name: str, module: nn.Module, routers: set[str]) -> list[Weight]:
    """Fused experts, and routers that are no linear layers: weights that are bare parameters."""
    found = []
    for own, parameter in module.named_parameters(recurse=False):
        full, shape = f"{name}.{own}", tuple(parameter.shape)
        if parameter.ndim == 3 and ("expert" in f"{name.rpartition('.')[2]} "
                                    f"{type(module).__name__}".lower()):
            part: Part = "shared experts" if "shared" in name else "experts"
            found.append(Weight(full, part, shape, is_parameter=True))
        elif parameter.ndim == 2 and is_within(name, routers) and own == "weight":
            found.append(Weight(full, "router", shape, is_parameter=True))
    return found


def _routers(model: nn.Module) -> set[str]:
    """Modules that score experts: beside `experts` and named so, or of a class named so."""
    mixtures = {name for name, module in model.named_modules() if hasattr(module, "experts")}
    return {name for name, module in model.named_modules()
            if (name.rpartition(".")[2] in ROUTER_NAMES and name.rpartition(".")[0] in mixtures)
            or re.search("Router|TopKGat", type(module).__name__)}


def _accessed(model: Any, side: str) -> nn.Module | None:
    """The input or output embeddings, as the model names them."""
    find = getattr(model, f"get_{side}_embeddings", None)
    return find() if find is not None else None
