"""What lorafit's own methods have in common.

A method changes a transformers model in place and tells its trained parameters by the names that
they are saved under. `OwnAdapter` is that model with the method's name and configuration, and
stands where peft's wrapper stands otherwise.
"""

import difflib
import hashlib
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lorafit.errors import Problem, UserError
from lorafit.model.adapters.float32 import train_in_float32
from lorafit.model.targets import resolve_targets
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.methods import METHODS

METHOD_KEY = "lorafit_method"  # in adapter_config.json, where peft has peft_type


class OwnMethod(Protocol):
    """A module of this package that implements a method, one function each."""

    def configure(self, model: nn.Module, section: Adapter) -> dict[str, Any]:
        """What `attach` needs to know besides the model, as JSON: layers, sizes, choices.

        Works on a model without weights. UserError when the recipe does not fit the model.
        """

    def attach(self, model: nn.Module, config: dict[str, Any], seed: int) -> None:
        """Put the adapter into the model, as it is before the first step. All that is trained
        asks for gradients; the rest of the model does not."""

    def tensors(self, model: nn.Module, config: dict[str, Any]) -> dict[str, Tensor]:
        """The adapter's tensors by the names that they are saved under, sharing memory with the
        model, so that copying into them loads an adapter."""

    def settle(self, model: nn.Module, config: dict[str, Any]) -> None:
        """Called after something was copied into the tensors."""

    def merge(self, model: nn.Module, config: dict[str, Any]) -> nn.Module:
        """The transformers model that computes the same without the adapter. Only of methods that
        merge."""


def own_method(name: str) -> OwnMethod:
    """The module of a method of lorafit's own."""
    module: Any = import_module(f"lorafit.model.adapters.{name}")
    return module


class OwnAdapter(nn.Module):
    """A base with an adapter of lorafit's own in it."""

    def __init__(self, model: Any, config: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.adapter_config = config

    @property
    def method(self) -> OwnMethod:
        return own_method(self.adapter_config[METHOD_KEY])

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def generation_config(self) -> Any:
        return self.model.generation_config

    @property
    def device(self) -> torch.device:
        return self.model.device

    def get_base_model(self) -> Any:
        return self.model

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)

    def generate(self, *inputs: Any, **options: Any) -> Any:
        return self.model.generate(*inputs, **options)

    def tensors(self) -> dict[str, Tensor]:
        return self.method.tensors(self.model, self.adapter_config)

    def merge_and_unload(self, **_: Any) -> Any:
        return self.method.merge(self.model, self.adapter_config)


def configure_own(model: nn.Module, section: Adapter) -> dict[str, Any]:
    """The configuration of the recipe's adapter. Works on a model without weights.

    UserError when recipe and model do not fit together.
    """
    problems = _wrong_options(section)
    if problems:
        raise UserError(problems=problems)
    resolve_targets(model, section)  # refuses words that match nothing
    return own_method(section.method).configure(model, section)


def add_own(model: Any, section: Adapter, seed: int, base_name: str) -> OwnAdapter:
    """The model with an own adapter in it, in training mode."""
    config = configure_own(model, section)
    model.requires_grad_(False)
    own_method(section.method).attach(model, config, seed)
    train_in_float32(model)
    adapted = OwnAdapter(model, {METHOD_KEY: section.method,
                                 "base_model_name_or_path": base_name, **config})
    return adapted.train()


def load_own(model: Any, config: dict[str, Any], tensors: dict[str, Tensor],
             directory: Path) -> OwnAdapter:
    """A base model with a saved adapter of lorafit's own, for inference.

    UserError when they do not fit.
    """
    name = config[METHOD_KEY]
    if name not in METHODS or not METHODS[name].is_own:
        raise UserError(f"was written by another version of lorafit ({name})", str(directory),
                        "load it with the version named in record.json")
    method = own_method(name)
    model.requires_grad_(False)
    try:
        method.attach(model, config, 0)
    except (AttributeError, KeyError, IndexError) as error:
        raise UserError(f"the adapter does not fit the base: {error}", str(directory),
                        "use the base that it was trained on") from None
    adapted = OwnAdapter(model, config)
    copy_into(adapted.tensors(), tensors, directory)
    method.settle(model, config)
    return adapted.requires_grad_(False)


def option(section: Adapter, name: str) -> str:
    """A setting of an own method: the recipe's, or the default."""
    return str(section.options.get(name, section.row.own_options[name][0]))


def drawing(seed: int, name: str) -> torch.Generator:
    """Random numbers for one layer, the same whichever other layers are adapted, on the CPU."""
    text = f"{seed}/{name}".encode()
    number = int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "little")
    return torch.Generator().manual_seed(number)


def _wrong_options(section: Adapter) -> list[Problem]:
    known = section.row.own_options
    problems = []
    for name, value in section.options.items():
        where = f"adapter.options.{name}"
        if name not in known:
            problems.append(Problem(f"method {section.method} has no option {name}", where,
                                    _nearest(name, known, "its options")))
        elif value not in known[name]:
            problems.append(Problem(f"{value!r} is not among its values", where,
                                    _nearest(str(value), known[name], "use one of")))
    return problems


def _nearest(word: str, known: Any, otherwise: str) -> str:
    close = difflib.get_close_matches(word, known, 1, 0.6)
    if close:
        return f"did you mean {close[0]}?"
    return f"{otherwise}: {', '.join(known)}" if known else "leave it out"


@torch.no_grad()
def copy_into(live: dict[str, Tensor], saved: dict[str, Tensor], directory: Path) -> None:
    """Copy saved tensors into those of a model. UserError unless names and shapes are the same."""
    if live.keys() != saved.keys():
        odd = sorted(live.keys() ^ saved.keys())
        raise UserError(f"the adapter does not fit the base: {odd[0]} is in one of them only",
                        str(directory), "use the base that it was trained on")
    for name, tensor in live.items():
        if tensor.shape != saved[name].shape:
            raise UserError(
                f"the adapter does not fit the base: {name} is {list(saved[name].shape)} in the "
                f"file and {list(tensor.shape)} in the model", str(directory),
                "use the base that it was trained on",
            )
        tensor.copy_(saved[name])
