"""What the recipe's words choose of a model's weights, and at which rank and alpha."""

import math
import re
from collections.abc import Callable, Iterable

from lorafit.errors import UserError
from lorafit.model.weights import LINEAR, Stack, Weight, layer_kind
from lorafit.recipe.adapter import Adapter


def chosen_layers(stack: Stack, section: Adapter) -> list[int] | None:
    """The decoder layers that the recipe names; None for all. UserError where one is missing."""
    if section.layers is None:
        return None
    count = stack.layers
    if not count:
        raise UserError("no list of decoder layers was found in the model", "adapter.layers",
                        "leave adapter.layers out")
    if isinstance(section.layers, str):
        top = int(section.layers.removeprefix("last:"))
        if top > count:
            raise UserError(f"the model has {count} layers, fewer than {top}", "adapter.layers",
                            f"last:{count} is all of them")
        return list(range(count - top, count))
    outside = [layer for layer in section.layers if layer >= count]
    if outside:
        raise UserError(f"there is no layer {outside[0]}; the model has 0 to {count - 1}",
                        "adapter.layers", "name existing layers")
    return sorted(set(section.layers))


def chosen_weights(stack: Stack, section: Adapter, weights: list[Weight]) -> list[Weight]:
    """The weights that the recipe's words choose. UserError when that is none."""
    in_layers = layer_test(stack, section)
    chosen = [
        weight for weight in weights
        if in_layers(weight.name) and is_wanted(weight, section)
        and not _is_left_alone(weight, section) and not is_excluded(weight.label, section)
    ]
    if not chosen:
        raise nothing_left()
    return chosen


def realised_rank(stack: Stack, section: Adapter, weight: Weight) -> int:
    """The rank of a weight's adapter: a pattern's, or the recipe's.

    Divided among active experts where the recipe says so, and never above the number of experts
    for a router, whose weight has a row for each.
    """
    for pattern, rank in section.rank_pattern.items():
        if matches(pattern, weight):
            return rank
    whole = section.rank or 1
    if weight.part == "experts" and section.rank_per_expert:
        return math.ceil(whole / experts_per_token(stack))
    return min(whole, *weight.shape[-2:]) if weight.part == "router" else whole


def low_rank_cost(stack: Stack, section: Adapter, weight: Weight) -> int:
    """What LoRA on a weight trains, in parameters; experts that share an adapter have one."""
    cost = weight.cost(realised_rank(stack, section, weight))
    shares = weight.part == "experts" and section.experts == "shared"
    return cost // weight.shape[0] if shares else cost


def realised_alpha(section: Adapter, weight: Weight, rank: int) -> float | None:
    """The alpha of a weight's adapter: a pattern's, or what keeps the recipe's scale.

    With a rank from rank_pattern alpha stays, as the recipe says it.
    """
    for pattern, alpha in section.alpha_pattern.items():
        if matches(pattern, weight):
            return alpha
    if section.alpha is None or section.rank is None or rank == section.rank or any(
            matches(pattern, weight) for pattern in section.rank_pattern):
        return section.alpha
    share = rank / section.rank
    return section.alpha * (math.sqrt(share) if section.rslora else share)


# Methods whose rank is that of a product of two factors, one on each side of the weight.
_LOW_RANK = frozenset({"lora", "adalora", "deft", "delora", "hira"})


def refuse_large_ranks(stack: Stack, section: Adapter, chosen: list[Weight]) -> None:
    """A rank above a weight's smaller side trains weights that cannot change what is computed."""
    if section.method not in _LOW_RANK or section.rank is None:
        return
    for weight in chosen:
        rank = realised_rank(stack, section, weight)
        side = min(weight.shape[-2:])
        if rank > side:
            key = "rank_pattern" if any(matches(pattern, weight)
                                        for pattern in section.rank_pattern) else "rank"
            raise UserError(
                f"rank {rank} is above the smaller side of {layer_kind(weight.label)} "
                f"({weight.shape[-2]} × {weight.shape[-1]})", f"adapter.{key}",
                f"use at most {side}")


def matches(pattern: str, weight: Weight) -> bool:
    """Whether a pattern of ranks or alphas means a weight, by peft's rule."""
    return re.match(rf"(.*\.)?({pattern})$", weight.label) is not None


def is_wanted(weight: Weight, section: Adapter) -> bool:
    if weight.part == "router" and section.router:
        return True
    if section.target_modules == "all-linear":
        return weight.part in LINEAR
    return is_named(weight.label, section.target_modules)


def is_named(name: str, wanted: str | list[str] | None) -> bool:
    """Whether one regular expression, or a list of endings, means a name."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return ends_in({name}, wanted or [])


def is_excluded(name: str, section: Adapter) -> bool:
    """Whether a module, or a module that holds it, is left out."""
    exclude = section.exclude_modules
    if exclude is None or isinstance(exclude, str):
        return exclude is not None and re.fullmatch(exclude, name) is not None
    parts = name.split(".")
    return any(ends_in({".".join(parts[:end])}, exclude) for end in range(1, len(parts) + 1))


def ends_in(names: Iterable[str], wanted: Iterable[str]) -> bool:
    """Whether one of the names is, or ends in, one of the wanted words."""
    return any(name == word or name.endswith(f".{word}") for word in wanted for name in names)


def experts_per_token(stack: Stack) -> int:
    if stack.active_experts is None:
        raise UserError("the model's configuration does not say how many experts a token is sent "
                        "to", "adapter.rank_per_expert",
                        "leave it out, and set the experts' rank with rank_pattern and "
                        "alpha_pattern")
    return stack.active_experts


def _is_left_alone(weight: Weight, section: Adapter) -> bool:
    """Whether a weight that the words may name is not adapted, by another key or the method."""
    return ((weight.part == "router" and not section.router)
            or (weight.part == "experts" and section.experts == "none")
            or (weight.is_parameter and section.method != "lora")
            # What is trained in full gets no adapter: peft's rule, too.
            or any(re.search(rf"(^|\.){re.escape(word)}(\.|$)", weight.label)
                   for word in section.modules_to_save))


def layer_test(stack: Stack, section: Adapter) -> Callable[[str], bool]:
    """A function from a name to whether it lies in one of the recipe's decoder layers."""
    layers = chosen_layers(stack, section)
    if layers is None:
        return lambda name: True
    number = re.compile(rf"{re.escape(stack.prefix)}\.(\d+)(\.|$)")
    return lambda name: (match := number.match(name)) is not None and int(match[1]) in layers


def nothing_left() -> UserError:
    return UserError("the recipe's words leave no layer to adapt", "adapter.target_modules",
                     "name other layers, or leave out exclude_modules and layers")
