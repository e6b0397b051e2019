"""Weights by kind and purpose, from names and shapes alone: no torch, no model."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

# `experts` are those that a router chooses among; `other` linear layers are, for instance, those
# of state-space mixers.
Part = Literal["attention", "mlp", "experts", "shared experts", "router", "other", "embeddings",
               "head"]

# Parts that `all-linear` means, in the order in which they are shown.
LINEAR: tuple[Part, ...] = ("attention", "mlp", "shared experts", "experts", "other")

NUMBER = re.compile(r"\.\d+(?=\.|$)")
_LAYER_NUMBER = re.compile(r"\.(\d+)\.")
ROUTER_NAMES = ("gate", "router", "shared_expert_gate")
_ATTENTION = re.compile(r"att(n|ention)")
_MLP = re.compile(r"(^|[._])(mlp|ffn|feed_forward|moe|fc\d|fc_in|fc_out|dense_h_to_4h"
                  r"|dense_4h_to_h)([._]|$)")
# How configurations call the number of experts that a token is sent to.
ACTIVE_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k",
                  "top_k_experts", "moe_k", "num_selected_experts")


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


@dataclass(frozen=True)
class Stack:
    """The decoder of a model.

    prefix: full name of the list of its layers. layers: how many; 0 where no list was found.
    active_experts: how many experts a token is sent to; None where the configuration does not say.
    """

    prefix: str
    layers: int
    active_experts: int | None = None


def layer_kind(name: str) -> str:
    """A name without its numbers: `model.layers.3.mlp.experts.7.w1` → `mlp.experts.w1`."""
    if match := _LAYER_NUMBER.search(name):
        return NUMBER.sub("", name[match.end() - 1:]).removeprefix(".")
    return name


def part_of(name: str, routers: set[str]) -> Part:
    """What a linear layer is for, by its name."""
    if is_within(name, routers):
        return "router"
    if re.search(r"(^|\.)shared_(mlp|experts?)(\.|$)", name):
        return "shared experts"
    if re.search(r"(^|\.)experts\.", name):
        return "experts"
    inside = layer_kind(name)
    if _ATTENTION.search(inside):
        return "attention"
    return "mlp" if _MLP.search(inside) else "other"


def is_within(name: str, modules: set[str]) -> bool:
    """Whether a module is one of `modules` or lies in one of them."""
    return any(start in modules for start in _beginnings_of(name))


def _beginnings_of(name: str) -> list[str]:
    """`a.b.c` → `a`, `a.b`, `a.b.c`."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def endings(wanted: Sequence[str], others: Iterable[str], least: int = 1) -> list[str]:
    """The shortest name endings that catch every wanted name and none of the others, sorted.

    An ending has at least `least` words. A name that no ending without a number tells from the
    others stays whole.
    """
    taken = {ending for name in others for ending in _endings_of(name)}
    return sorted({next((ending for ending in _endings_of(name)[least - 1:]
                         if ending not in taken and not re.search(r"(^|\.)\d+(\.|$)", ending)),
                        name) for name in wanted})


def _endings_of(name: str) -> list[str]:
    """`a.b.c` → `c`, `b.c`, `a.b.c`."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
