"""Adapters through peft: building, describing, saving and loading them."""

import copy
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lorafit.errors import UserError
from lorafit.model.targets import layer_kind, resolve_targets
from lorafit.recipe.schema import Adapter
from lorafit.run_dir import write_json

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class AdaptedKind:
    """What one kind of layer really got. `parameters` counts all its layers together."""

    kind: str
    layers: int
    shape: str
    rank: int
    alpha: float
    scale: float
    parameters: int


@dataclass(frozen=True)
class AdapterFacts:
    """Exact counts of a model with its adapter, and the realised settings of each kind."""

    trainable_parameters: int
    total_parameters: int
    kinds: list[AdaptedKind]
    fully_trained: dict[str, int]


def add_adapter(model: Any, section: Adapter, seed: int, base_name: str) -> Any:
    """The model wrapped by peft, with the adapter of the recipe, in training mode.

    Works on a model without weights too. UserError when the recipe does not fit the model.
    """
    from peft import LoraConfig, get_peft_model

    targets = resolve_targets(model, section)
    try:
        config = LoraConfig(
            r=section.rank,
            lora_alpha=_whole(section.alpha),
            target_modules=targets.modules,
            target_parameters=targets.parameters or None,
            exclude_modules=copy.copy(targets.exclude),
            layers_to_transform=targets.layers,
            lora_dropout=section.dropout,
            bias=section.bias,
            use_rslora=section.rslora,
            use_dora=section.dora,
            init_lora_weights=True if section.init == "default" else section.init,
            modules_to_save=list(section.modules_to_save) or None,  # peft changes the list it gets
            ensure_weight_tying=bool(section.modules_to_save),
            rank_pattern=dict(section.rank_pattern),
            alpha_pattern={key: _whole(value) for key, value in section.alpha_pattern.items()},
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(seed)
        with _no_advice():
            adapted = get_peft_model(model, config)
    except (ValueError, NotImplementedError, TypeError, RuntimeError) as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"peft cannot build this adapter: {message}", "adapter",
                        "change the keys that it names") from None
    adapted.peft_config["default"].base_model_name_or_path = base_name
    _refuse_unused_patterns(adapted, section)
    _refuse_missing_biases(adapted, section)
    adapted.train()
    return adapted


def describe(adapted: Any) -> AdapterFacts:
    """Exact counts and, for each kind of layer, the rank, alpha and scale that it really has."""
    kinds: dict[tuple[str, str, int, float, float], list[int]] = {}
    in_lora = set()
    for name, module in _lora_layers(adapted):
        own = [p for key, p in module.named_parameters(recurse=True)
               if ".default" in f".{key}" and "base_layer" not in key]
        if not own:
            continue
        in_lora |= {id(p) for p in own}
        parameter = getattr(module, "parameter_name", None)
        kind = layer_kind(_base_name(name)).replace(".base_layer", "")
        kind = f"{kind}.{parameter}" if parameter else kind
        key = (kind, _shape(own), int(module.r["default"]),
               float(module.lora_alpha["default"]), float(module.scaling["default"]))
        kinds.setdefault(key, []).append(sum(p.numel() for p in own))
    fully = {_base_name(name).replace(".modules_to_save.default", ""): p.numel()
             for name, p in adapted.named_parameters()
             if p.requires_grad and id(p) not in in_lora}
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    return AdapterFacts(
        trainable_parameters=trainable,
        total_parameters=_total_parameters(adapted),
        kinds=[AdaptedKind(key[0], len(counts), key[1], key[2], key[3], key[4], sum(counts))
               for key, counts in kinds.items()],
        fully_trained=fully,
    )


def trained_state(adapted: Any) -> dict[str, torch.Tensor]:
    """The adapter's tensors in peft's own names, on the CPU, sorted by name."""
    from peft import get_peft_model_state_dict

    with _no_advice():
        state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return {name: state[name].detach().cpu().contiguous() for name in sorted(state)}


def save_adapter(directory: Path, adapted: Any, state: dict[str, torch.Tensor] | None = None,
                 **config_changes: Any) -> None:
    """Write an adapter as peft reads it. Equal adapters give equal bytes.

    `state` replaces the model's own tensors, `config_changes` entries of the configuration.
    """
    tensors = {name: tensor.clone() for name, tensor in (state or trained_state(adapted)).items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    config = adapted.peft_config["default"].to_dict()
    config["inference_mode"] = True
    config.update(config_changes)
    write_json(directory / CONFIG, _ordered(config))


def save_for_original_base(directory: Path, adapted: Any, initial: Path | None) -> None:
    """Write the result: valid on the base as it was before an initialisation altered it.

    With PiSSA and OLoRA the base in memory is W − s·B₀A₀, so W + s·(BA − B₀A₀) is the model that
    was trained: the rows of A and the columns of B stand beside those they started from, at twice
    the rank and the same scale.
    """
    if initial is None:
        save_adapter(directory, adapted)
        return
    start = load_file(initial / WEIGHTS)
    state = {}
    for name, tensor in trained_state(adapted).items():
        if "lora_A" in name:
            state[name] = torch.cat([tensor, start[name]], dim=0)
        elif "lora_B" in name:
            state[name] = torch.cat([tensor, -start[name]], dim=1)
        else:
            state[name] = tensor
    config = adapted.peft_config["default"]
    growth = 2**0.5 if config.use_rslora else 2  # keeps alpha/√r, or alpha/r
    save_adapter(
        directory, adapted, state,
        r=2 * config.r, lora_alpha=config.lora_alpha * growth, init_lora_weights=True,
        rank_pattern={key: 2 * rank for key, rank in config.rank_pattern.items()},
        alpha_pattern={key: growth * alpha for key, alpha in config.alpha_pattern.items()},
    )


def restore_adapter(adapted: Any, directory: Path) -> None:
    """Put saved tensors back into a model that has the same adapter."""
    from peft import set_peft_model_state_dict

    with _no_advice():
        set_peft_model_state_dict(adapted, load_file(directory / WEIGHTS))


def load_adapter(model: Any, directory: Path, *, adapter_name: str = "default") -> Any:
    """A base model with a saved adapter, for inference. UserError when they do not fit."""
    from peft import PeftModel

    check_adapter_files(directory)
    try:
        with _no_advice(), warnings.catch_warnings(record=True) as caught:
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


def check_adapter_files(directory: Path) -> dict[str, Any]:
    """The configuration of a saved adapter. UserError when files are missing or damaged."""
    config, weights = directory / CONFIG, directory / WEIGHTS
    remedy = "give a run directory, or an adapter directory as peft writes it"
    if not directory.is_dir():
        raise UserError("no such run or adapter", str(directory), remedy)
    if not config.exists():
        raise UserError(f"holds no {CONFIG}", str(directory), remedy)
    if not weights.exists():
        pickle = directory / "adapter_model.bin"
        if pickle.exists():
            raise UserError(
                "holds its weights in a pickle, which can run code on loading", str(pickle),
                "convert it where you trust it: load it with peft and save_pretrained it",
            )
        raise UserError(f"holds no {WEIGHTS}", str(directory), remedy)
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
        load_file(weights)
    except Exception as error:
        raise UserError(f"is damaged: {error}", str(directory), "copy it again") from None
    if not isinstance(values, dict):
        raise UserError("is damaged: not a JSON object", str(config), "copy it again")
    return values


def _whole(value: float) -> float | int:
    """An alpha such as 32.0 as 32, which is how other tools read it."""
    return int(value) if value == int(value) else value


def _lora_layers(adapted: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    for name, module in adapted.named_modules():
        if isinstance(module, LoraLayer) and "default" in module.scaling:
            yield name, module


def _base_name(name: str) -> str:
    return name.removeprefix("base_model.model.")


def _shape(parameters: list[torch.nn.Parameter]) -> str:
    """out × in of the adapted weight, from the shapes of A (r, in) and B (out, r)."""
    matrices = [p for p in parameters if p.ndim == 2]
    if len(matrices) < 2:
        return ""
    return f"{matrices[1].shape[0]} × {matrices[0].shape[1]}"


def _total_parameters(adapted: Any) -> int:
    """Every weight once, those stored in 4 bits by how many they stand for."""
    total = 0
    for parameter in adapted.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None and getattr(state, "shape", None) is not None:
            total += torch.Size(state.shape).numel()
        else:
            total += parameter.numel()
    return total


def _refuse_unused_patterns(adapted: Any, section: Adapter) -> None:
    """A pattern that matches no adapted layer would change nothing, silently."""
    names = []
    for name, module in _lora_layers(adapted):
        weight = getattr(module, "parameter_name", "")  # fused experts: layer.weight's name
        names.append(f"{_base_name(name).replace('.base_layer', '')}.{weight}".rstrip("."))
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(section, key):
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):
                raise UserError(f"{pattern!r} matches no adapted layer", f"adapter.{key}",
                                "name an ending such as q_proj, or a full module name")


def _refuse_missing_biases(adapted: Any, section: Adapter) -> None:
    if section.bias != "none" and not any(
        parameter.requires_grad and name.endswith("bias")
        for name, parameter in adapted.named_parameters()
    ):
        raise UserError(f"bias: {section.bias} trains nothing: these layers have no bias",
                        "adapter.bias", "set it to none")


def _ordered(value: Any) -> Any:
    """Sets as sorted lists and keys in order, so that equal configurations are equal bytes."""
    if isinstance(value, dict):
        return {key: _ordered(value[key]) for key in sorted(value)}
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [_ordered(item) for item in value]
    return value


@contextmanager
def _no_advice() -> Iterator[None]:
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings("ignore", message=".*ensure_weight_tying.*")
        # Checked by _refuse_unused_patterns, which also knows the names of fused experts.
        warnings.filterwarnings("ignore", message=".*_pattern keys did not match.*")
        yield
