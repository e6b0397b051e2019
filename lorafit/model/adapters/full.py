"""Full fine-tuning: the weights themselves, all of them or those of some layers.

Nothing is added to the model. Trained weights are held in float32 (see float32.py) and saved under
their own names.
"""

from typing import Any

from torch import Tensor, nn

from lorafit.model.adapters.float32 import plain_name
from lorafit.model.named_modules import matched_names
from lorafit.recipe.adapter import Adapter


def configure(model: nn.Module, section: Adapter) -> dict[str, Any]:
    """Which weights: every parameter of the chosen modules, by one name each.

    shared: other names of those that several modules share (tied embeddings), and the one that
    stands for all of them.
    """
    chosen = {id(parameter) for name in matched_names(model, section)
              for parameter in model.get_submodule(name).parameters(recurse=False)}
    names = {id(parameter): name for name, parameter in model.named_parameters()
             if id(parameter) in chosen}
    shared = {name: names[id(parameter)]
              for name, parameter in model.named_parameters(remove_duplicate=False)
              if id(parameter) in chosen and names[id(parameter)] != name}
    return {"parameters": list(names.values()), "shared": shared}


def attach(model: nn.Module, config: dict[str, Any], seed: int) -> None:
    for name in config["parameters"]:
        model.get_parameter(name).requires_grad_(True)


def tensors(model: nn.Module, config: dict[str, Any]) -> dict[str, Tensor]:
    held = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    return {name: held[name] for name in config["parameters"]}


def settle(model: nn.Module, config: dict[str, Any]) -> None:
    """Nothing follows from the tensors."""


def merge(model: nn.Module, config: dict[str, Any]) -> nn.Module:
    return model
