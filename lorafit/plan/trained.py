"""What a recipe trains of a base, counted from shapes."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lorafit.errors import Problem, UserError
from lorafit.model.choice import (
    chosen_layers,
    chosen_weights,
    ends_in,
    is_excluded,
    is_named,
    layer_test,
    low_rank_cost,
    realised_rank,
    refuse_large_ranks,
)
from lorafit.model.weights import Weight
from lorafit.plan.shapes import Shapes
from lorafit.recipe.adapter import TARGET_WORDS, Adapter


@dataclass(frozen=True)
class Trained:
    """The adapter, in counts.

    parameters: all that are trained; None for a method whose count does not follow from shapes.
    adapted: weights with an adapter, each with its rank (1 where the method has none).
    low_rank_parameters: those of them that grow with the rank. whole_parameters: of modules that
    are trained in full (modules_to_save, biases, full). lowest_layer: the lowest decoder layer
    that is trained, below which nothing is computed backwards; 0 where anything outside of layers
    is trained.
    """

    method: str
    parameters: int | None
    adapted: tuple[tuple[Weight, int], ...]
    low_rank_parameters: int
    whole_parameters: int
    lowest_layer: int


def trained_of(shapes: Shapes, section: Adapter) -> Trained:
    """Count what an adapter section trains. UserError when its words match nothing of the model."""
    if section.row.where == "weights":
        return _full(shapes, section)
    if section.row.where != "linear":
        return Trained(section.method, None, (), 0, 0, min(
            chosen_layers(shapes.stack, section) or [0]))
    _refuse_unmatched(shapes, section)
    chosen = chosen_weights(shapes.stack, section, list(shapes.weights))
    refuse_large_ranks(shapes.stack, section, chosen)
    adapted = tuple((weight, realised_rank(shapes.stack, section, weight)) for weight in chosen)
    saved = _saved(shapes, section)
    lowest = 0 if saved else min(chosen_layers(shapes.stack, section) or [0])
    if section.method not in ("lora", "paca"):
        return Trained(section.method, None, adapted, 0, saved, lowest)
    if section.method == "paca":
        low_rank = sum(rank * weight.shape[-2] for weight, rank in adapted)
    elif section.freeze_a:
        low_rank = sum(rank * weight.shape[-2] * _copies(weight, section)
                       for weight, rank in adapted)
    else:
        low_rank = sum(low_rank_cost(shapes.stack, section, weight) for weight in chosen)
    whole = saved + _biases(shapes, section, chosen)
    magnitudes = sum(weight.shape[-2] for weight in chosen) if section.dora else 0
    return Trained(section.method, low_rank + magnitudes + whole, adapted, low_rank, whole, lowest)


def _copies(weight: Weight, section: Adapter) -> int:
    """Adapters of a weight: one for each expert, unless they share it."""
    shares = weight.part == "experts" and section.experts == "shared"
    return weight.shape[0] if weight.is_fused and not shares else 1


def _full(shapes: Shapes, section: Adapter) -> Trained:
    """Full fine-tuning: of all parameters, or of those that the words name."""
    in_layers = layer_test(shapes.stack, section)
    wanted = section.target_modules
    names = [name for name in shapes.tensors if in_layers(name) and not is_excluded(
        name.rpartition(".")[0], section)]
    if isinstance(wanted, list) or (isinstance(wanted, str) and wanted not in TARGET_WORDS):
        names = [name for name in names if is_named(name.rpartition(".")[0], wanted)]
    parameters = sum(math.prod(shapes.tensors[name]) for name in names)
    if not names:
        raise UserError("the recipe's words leave no layer to train", "adapter.target_modules",
                        "name other layers, or leave out exclude_modules and layers")
    numbers = [int(match[1]) if (match := re.match(rf"{re.escape(shapes.stack.prefix)}\.(\d+)\.",
                                                  name)) else 0 for name in names]
    chosen = set(names)
    adapted = tuple((weight, 1) for weight in shapes.weights if weight.path in chosen)
    return Trained("full", parameters, adapted, 0, parameters, min(numbers))


def _saved(shapes: Shapes, section: Adapter) -> int:
    """Parameters of modules_to_save, which are trained in full beside the adapter."""
    total = 0
    for word in section.modules_to_save:
        # peft compares the ends of names, not of their words.
        shape = [shape for name, shape in shapes.tensors.items()
                 if name.rpartition(".")[0].endswith(word)]
        if not shape and shapes.tied and word in ("lm_head", "output"):
            shape = [(shapes.sizes.vocabulary, shapes.sizes.hidden_size)]
        if not shape:
            raise UserError(f"{word} matches no layer of the model", "adapter.modules_to_save",
                            "name a layer that it has")
        total += sum(math.prod(each) for each in shape)
    return total


def _biases(shapes: Shapes, section: Adapter, chosen: Sequence[Weight]) -> int:
    """Parameters of the base's own biases, where the recipe trains them."""
    if section.bias == "none":
        return 0
    adapted = {f"{weight.name}.bias" for weight in chosen}
    return sum(math.prod(shape) for name, shape in shapes.tensors.items()
               if name.endswith(".bias") and (section.bias == "all" or name in adapted))


def _refuse_unmatched(shapes: Shapes, section: Adapter) -> None:
    """A word that matches nothing would adapt less than was meant; `lorafit check` says more."""
    wanted, labels = section.target_modules, {weight.label for weight in shapes.weights}
    words = wanted if isinstance(wanted, list) else []
    problems = [Problem(f"{word} matches no layer of the model", "adapter.target_modules",
                        "layers here: " + ", ".join(sorted({
                            label.rpartition(".")[2] for label in labels})))
                for word in words if not ends_in(labels, [word])]
    if problems:
        raise UserError(problems=problems)
