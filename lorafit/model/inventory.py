"""What a model is made of: its weights by kind and purpose. Works on a model without weights."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from lorafit.errors import UserError
from lorafit.model.stored import stands_for

# `experts` are those that a router chooses among; `other` linear layers are, for instance, those
# of state-space mixers.
Part = Literal["attention", "mlp", "experts", "shared experts", "router", "other", "embeddings",
               "head"]

# Parts that `all-linear` means, in the order in which they are shown.
LINEAR: tuple[Part, ...] = ("attention", "mlp", "shared experts", "experts", "other")

_NUMBER = re.compile(r"\.\d+(?=\.|$)")
_LAYER_NUMBER = re.compile(r"\.(\d+)\.")
_ROUTER_NAMES = ("gate", "router", "shared_expert_gate")
_ATTENTION = re.compile(r"att(n|ention)")
_MLP = re.compile(r"(^|[._])(mlp|ffn|feed_forward|moe|fc\d|fc_in|fc_out|dense_h_to_4h"
                  r"|dense_4h_to_h)([._]|$)")
# How configurations call the number of experts that a token is sent to.
_ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts",
           "moe_k", "num_selected_experts")


@dataclass(frozen=True)
class Weight:
    """A weight matrix that an adapter can be put on, or a stack of them, one for each expert.

    name: the module's full name, or the parameter's, where the weight belongs to no linear layer.
    shape: (out, in), or for a stack (experts, rows, columns).
    """

    name: str
    part: Part
    shape: tuple[int, ...]
    is_parameter: bool = False

    @property
    def is_fused(self) -> bool:
        """Whether all experts of a layer are in this one tensor."""
        return len(self.shape) == 3

    @property
    def label(self) -> str:
        """The name that the recipe's words are matched against."""
        return self.name.removesuffix(".weight") if self.is_parameter else self.name

    @property
    def path(self) -> str:
        """The parameter's full name."""
        return self.name if self.is_parameter else f"{self.name}.weight"

    def cost(self, rank: int) -> int:
        """Parameters of a low-rank update: rank · (rows + columns), for each expert."""
        experts = self.shape[0] if self.is_fused else 1
        return experts * rank * (self.shape[-1] + self.shape[-2])


def weights_of(model: Any) -> list[Weight]:
    """Every weight that an adapter can be put on, in the model's order."""
    head = _accessed(model, "output")
    routers = _routers(model)
    found = []
    for name, module in model.named_modules():
        shape = full_shape(module)
        if is_linear(module) and shape is not None:
            part: Part = "head" if module is head else _part(name, routers)
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
    return next((int(value) for name in _ACTIVE if (value := getattr(config, name, None))), None)


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


def _layer_lists(model: nn.Module) -> list[nn.ModuleList]:
    return [module for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList) and not _NUMBER.search(name)]


def layer_kind(name: str) -> str:
    """A name without its numbers: `model.layers.3.mlp.experts.7.w1` → `mlp.experts.w1`."""
    if match := _LAYER_NUMBER.search(name):
        return _NUMBER.sub("", name[match.end() - 1:]).removeprefix(".")
    return name


def endings(wanted: Sequence[str], others: Iterable[str], least: int = 1) -> list[str]:
    """The shortest name endings that catch every wanted name and none of the others, sorted.

    An ending has at least `least` words. A name that no ending without a number tells from the
    others stays whole.
    """
    taken = {ending for name in others for ending in _endings_of(name)}
    return sorted({next((ending for ending in _endings_of(name)[least - 1:]
                         if ending not in taken and not re.search(r"(^|\.)\d+(\.|$)", ending)),
                        name) for name in wanted})


def module_words(model: nn.Module, names: list[str]) -> list[str]:
    """The shortest words that mean these modules to peft: endings, or the full names."""
    wanted = set(names)
    return endings(names, [name for name, _ in model.named_modules() if name not in wanted])


def _endings_of(name: str) -> list[str]:
    """`a.b.c` → `c`, `b.c`, `a.b.c`."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]


def _bare_weights(name: str, module: nn.Module, routers: set[str]) -> list[Weight]:
    """Fused experts, and routers that are no linear layers: weights that are bare parameters."""
    found = []
    for own, parameter in module.named_parameters(recurse=False):
        full, shape = f"{name}.{own}", tuple(parameter.shape)
        if parameter.ndim == 3 and ("expert" in f"{name.rpartition('.')[2]} "
                                    f"{type(module).__name__}".lower()):
            part: Part = "shared experts" if "shared" in name else "experts"
            found.append(Weight(full, part, shape, is_parameter=True))
        elif parameter.ndim == 2 and _within(name, routers) and own == "weight":
            found.append(Weight(full, "router", shape, is_parameter=True))
    return found


def _part(name: str, routers: set[str]) -> Part:
    """What a linear layer is for, by its name."""
    if _within(name, routers):
        return "router"
    if re.search(r"(^|\.)shared_(mlp|experts?)(\.|$)", name):
        return "shared experts"
    if re.search(r"(^|\.)experts\.", name):
        return "experts"
    inside = layer_kind(name)
    if _ATTENTION.search(inside):
        return "attention"
    return "mlp" if _MLP.search(inside) else "other"


def _routers(model: nn.Module) -> set[str]:
    """Modules that score experts: beside `experts` and named so, or of a class named so."""
    mixtures = {name for name, module in model.named_modules() if hasattr(module, "experts")}
    return {name for name, module in model.named_modules()
            if (name.rpartition(".")[2] in _ROUTER_NAMES and name.rpartition(".")[0] in mixtures)
            or re.search("Router|TopKGat", type(module).__name__)}


def _within(name: str, modules: set[str]) -> bool:
    """Whether a module is one of `modules` or lies in one of them."""
    return any(start in modules for start in _beginnings_of(name))


def _beginnings_of(name: str) -> list[str]:
    """`a.b.c` → `a`, `a.b`, `a.b.c`."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _accessed(model: Any, side: str) -> nn.Module | None:
    """The input or output embeddings, as the model names them."""
    find = getattr(model, f"get_{side}_embeddings", None)
    return find() if find is not None else None
