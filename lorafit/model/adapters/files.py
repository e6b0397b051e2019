"""Adapters on disk and back: peft's format, and lorafit's own for its own methods."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorafit.errors import UserError
from lorafit.model.adapters import lora
from lorafit.model.adapters.float32 import plain_name
from lorafit.model.adapters.own import METHOD_KEY, OwnAdapter, load_own
from lorafit.model.adapters.quiet import no_advice
from lorafit.model.adapters.shared_experts import spelled_out
from lorafit.model.adapters.starts import start_of
from lorafit.model.intake import check_adapter_files
from lorafit.recipe.methods import METHODS
from lorafit.run_dir import write_json

__all__ = ["check_adapter_files", "load_adapter", "restore_adapter", "save_adapter"]

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
REST = "trained.safetensors"  # beside the adapter in checkpoints, where there is need of it
_ONLY_ON = "only_on"


def live_state(adapted: Any) -> dict[str, Tensor]:
    """What is saved of an adapter, by the names in the file. Shares memory where it can."""
    if isinstance(adapted, OwnAdapter):
        state = adapted.tensors()
    else:
        from peft import get_peft_model_state_dict

        # By both names: peft asks modules for their own, and rows of its tables for plain ones.
        whole = dict(adapted.state_dict())
        whole |= {plain_name(name): value for name, value in whole.items()}
        shared = dict(spelled_out(adapted))
        whole = {name: value for name, value in whole.items()
                 if plain_name(name) not in shared} | shared
        with no_advice():
            state = get_peft_model_state_dict(adapted, state_dict=whole,
                                              save_embedding_layers=False)
    state = {plain_name(name): tensor.detach() for name, tensor in state.items()}
    return {name: state[name] for name in sorted(state)}


def rest_of_state(adapted: Any) -> dict[str, Tensor]:
    """Trained parameters that an adapter's file does not hold as they are.

    P-tuning saves what its network puts out: enough to use the adapter, not to go on training it.
    """
    held = {tensor.data_ptr() for tensor in live_state(adapted).values() if tensor.numel()}
    return {name: parameter.detach() for name, parameter in adapted.named_parameters()
            if parameter.requires_grad and parameter.data_ptr() not in held}


def trained_state(adapted: Any) -> dict[str, Tensor]:
    """The adapter's tensors by the names in its file, on the CPU, sorted by name."""
    return {name: tensor.cpu().contiguous() for name, tensor in live_state(adapted).items()}


def save_adapter(directory: Path, adapted: Any) -> None:
    """Write an adapter as it is loaded again. Equal adapters give equal bytes.

    What is written is valid on the base as it was loaded, even where the adapter's start altered
    it. Where it is valid on a quantised base only, the file's metadata say so (`only_on`).
    """
    if isinstance(adapted, OwnAdapter):
        config = dict(adapted.adapter_config)
    else:
        config = adapted.peft_config["default"].to_dict()
        config["inference_mode"] = True
    tensors, metadata = trained_state(adapted), {"format": "pt"}
    start = start_of(adapted)
    if start is not None and start.alters_base:
        tensors, changes = lora.on_the_original_base(tensors, start.tensors, config)
        config |= changes
    elif start is not None:
        # Alone: safetensors writes several entries in an order that changes from run to run.
        metadata = {_ONLY_ON: start.only_on}
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, directory / WEIGHTS,
              metadata=metadata)
    write_json(directory / CONFIG, ordered(config))


def only_on(directory: Path) -> str:
    """The stored format (nf4, fp4) of the one base on which an adapter is valid; empty for any."""
    with safe_open(directory / WEIGHTS, "pt") as reader:
        return (reader.metadata() or {}).get(_ONLY_ON, "")


def write_for_full_base(directory: Path, initial: Path, output: Path) -> None:
    """An adapter that is valid on a quantised base only, as what it learnt since its start.

    s·(B·A − B₀·A₀) in place of s·B·A, at twice the rank. `initial` is the directory of its start.
    """
    config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    tensors, changes = lora.on_the_original_base(
        load_file(directory / WEIGHTS), load_file(initial / WEIGHTS), config)
    save_file(tensors, output / WEIGHTS, metadata={"format": "pt"})
    write_json(output / CONFIG, ordered(config | changes))


def save_rest(directory: Path, adapted: Any) -> None:
    """Write what an adapter's own files do not hold of its training, if there is any."""
    rest = rest_of_state(adapted)
    if rest:
        save_file({name: tensor.cpu().contiguous() for name, tensor in rest.items()},
                  directory / REST)


@torch.no_grad()
def restore_adapter(adapted: Any, directory: Path) -> None:
    """Put saved tensors back, in place, into a model that has the same adapter."""
    saved = load_file(directory / WEIGHTS)
    live = live_state(adapted)
    own = {parameter.data_ptr() for parameter in adapted.parameters()}
    for name, tensor in live.items():
        if tensor.data_ptr() in own and name in saved:
            # A file converted to the original base holds the start too, behind what was trained.
            tensor.copy_(saved[name][tuple(slice(size) for size in tensor.shape)])
    if (directory / REST).exists():
        rest = load_file(directory / REST)
        for name, tensor in rest_of_state(adapted).items():
            tensor.copy_(rest[name])
    if isinstance(adapted, OwnAdapter):
        adapted.method.settle(adapted.model, adapted.adapter_config)


def load_adapter(model: Any, directory: Path, *, adapter_name: str = "default") -> Any:
    """A base model with a saved adapter, for inference. UserError when they do not fit."""
    config = check_adapter_files(directory)
    if METHOD_KEY in config:
        return load_own(model, config, load_file(directory / WEIGHTS), directory).eval()
    from peft import PeftModel

    try:
        with no_advice(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            adapted = PeftModel.from_pretrained(model, str(directory), adapter_name=adapter_name)
    except Exception as error:
        message = (str(error).strip() or type(error).__name__).splitlines()
        raise UserError(f"the adapter does not fit the base: {message[min(1, len(message) - 1)]}",
                        str(directory), "use the base that it was trained on") from None
    missing = [str(w.message) for w in caught if "missing adapter keys" in str(w.message)]
    if missing:
        raise UserError("the adapter is incomplete for this base: some layers have no weights",
                        str(directory), "use the base that it was trained on")
    return adapted.eval()


def method_of(config: dict[str, Any]) -> str:
    """The recipe's name of the method of a saved adapter; peft's, where the recipe has none."""
    if METHOD_KEY in config:
        return str(config[METHOD_KEY])
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as classes

    peft_type = str(config.get("peft_type"))
    found = next((cls.__name__ for kind, cls in classes.items() if kind.value == peft_type), "")
    return next((name for name, row in METHODS.items() if row.config == found and found),
                peft_type.lower())


def ordered(value: Any) -> Any:
    """Sets as sorted lists and keys in order, so that equal configurations are equal bytes."""
    if isinstance(value, dict):
        return {key: ordered(value[key]) for key in sorted(value)}
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [ordered(item) for item in value]
    return value
