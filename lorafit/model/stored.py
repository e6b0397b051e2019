"""Bases that are quantised when they come: how their files hold the weights, and what follows.

Two ways of loading such a base can be trained on. Some formats stay as they are in memory, and a
layer of their library computes with them: bitsandbytes, GPTQ, AWQ, torchao. The others are unpacked
to plain numbers of `model.dtype` on loading, because what transformers makes of them otherwise
either has no backward pass (FP8 and MXFP4 kernels) or passes wrong gradients (rounded activations):
every method works on them, in the memory of a base that was never quantised.

A format is offered only where its gradients were compared with those of a dense copy of the same
weights (tests/model/test_stored_bases.py). Figures and versions: docs/quantised-bases.md.
"""

import inspect
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from torch import nn

from lorafit.errors import Problem, UserError
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.auto import Decision
from lorafit.recipe.methods import METHODS
from lorafit.recipe.schema import Model

_ORIGINAL = "use the original base, with model.quantization: nf4 or int8 to save memory"

# The package that a format's layers come from, and the command that installs it.
_PACKAGES = {
    "bitsandbytes": ({"bitsandbytes"}, "pip install 'lorafit[quantization]'"),
    "gptq": ({"gptqmodel", "optimum"}, "pip install gptqmodel optimum"),
    "awq": ({"gptqmodel", "optimum"}, "pip install gptqmodel optimum"),
    "torchao": ({"torchao"}, "pip install 'lorafit[torchao]'"),
    "compressed-tensors": ({"compressed_tensors"}, "pip install 'lorafit[compressed-tensors]'"),
}
_UNPACKED = ("compressed-tensors", "fp8", "mxfp4")
_NO_USE = {
    "hqq": "transformers 5 does not read saved HQQ models",
}

# Methods whose gradients agree with those on a dense copy of the same weights.
_OTHER_PLACES = {"p_tuning", "prefix_tuning", "prompt_tuning", "shadow", "ln_tuning",
                 "trainable_tokens"}  # they leave the stored layers alone
_TRAINS_ON = {
    "torchao": frozenset({
        "adalora", "beft", "boft", "bottleneck", "c3a", "fourierft", "gralora", "ia3",
        "llama_adapter", "loha", "lokr", "lora", "miss", "oft", "pvera", "randlora", "road",
        "shira", "unilora", "vblora", "vera", "waveft", *_OTHER_PLACES}),
    "gptq": frozenset({"adalora", "boft", "lora", "miss", "oft", "vera", *_OTHER_PLACES}),
}
_TRAINS_ON["awq"] = _TRAINS_ON["gptq"]

# torchao's configurations that round weights only. Those that round activations too compute a
# forward pass whose rounding has no gradient: 99 % of LoRA's gradient was wrong, without a warning.
_WEIGHT_ONLY = ("Int8WeightOnlyConfig", "Float8WeightOnlyConfig", "IntxWeightOnlyConfig")
_COMPRESSED = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")


@dataclass(frozen=True)
class Stored:
    """How a base's files hold its weights.

    format: transformers' name of it (quant_method). label: for people. trains: methods that can be
    trained on it. unpacked: whether loading makes plain numbers of `model.dtype` of the weights.
    refusal: why it cannot be trained on; empty where it can.
    """

    format: str
    label: str
    trains: frozenset[str]
    unpacked: bool = False
    refusal: str = ""

    def decision(self, dtype: str) -> Decision:
        """What is printed of it."""
        reason = "the base's files hold it so, and it stays so in memory"
        if self.unpacked:
            reason = (f"the base's files hold it so; it is unpacked on loading, and takes the "
                      f"memory of a base in {dtype}")
        return Decision("model.quantization", self.label, reason)


def stored_as(config: Any) -> Stored | None:
    """How the base of a configuration is stored; None where its weights are plain numbers."""
    settings = _settings(config)
    if not settings:
        return None
    name = str(settings.get("quant_method") or "an unnamed format")
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        name = "bitsandbytes"
    if name == "bitsandbytes":
        kind = settings.get("bnb_4bit_quant_type", "fp4") if settings.get("load_in_4bit") \
            else "int8"
        return Stored(name, f"{kind} (bitsandbytes)", frozenset(
            method for method, row in METHODS.items() if kind in row.quantized))
    label, refusal = _described(name, settings)
    if name in _UNPACKED:
        return Stored(name, label, frozenset(METHODS) - {"full"}, True, refusal)
    if name in _TRAINS_ON:
        return Stored(name, label, _TRAINS_ON[name], False, refusal)
    return Stored(name, label, frozenset(), False, _NO_USE.get(
        name, f"training on {name} has not been proven to give right gradients"))


def refuse_unusable(section: Model, stored: Stored | None) -> None:
    """UserError when a stored base cannot be loaded as the recipe says."""
    if stored is None:
        return
    where = f"model.base: {section.base}"
    if stored.refusal:
        raise UserError(f"the base is stored in {stored.label}, which cannot be trained on: "
                        f"{stored.refusal}", where, _ORIGINAL)
    if section.quantization != "none":
        raise UserError(
            f"the base is stored in {stored.label} already, and is not quantised a second time to "
            f"{section.quantization}", "model.quantization",
            f"leave it out, or name the original base to load it in {section.quantization}")
    packages, command = _PACKAGES.get(stored.format, (set(), ""))
    missing = sorted(package for package in packages if find_spec(package) is None)
    if missing:
        raise UserError(f"the base is stored in {stored.label}, which needs "
                        f"{' and '.join(missing)}, not installed here", where, command)


def refuse_misfit(section: Adapter, stored: Stored | None, shapes: nn.Module) -> None:
    """UserError for what an adapter would do to weights that are stored quantised.

    `shapes` is the model without weights.
    """
    if stored is None:
        return
    problems = []
    if section.method not in stored.trains:
        problems.append(Problem(
            f"{section.method} cannot be trained on a base stored in {stored.label}: "
            + _why_not(section.method), "adapter.method",
            f"use {' or '.join(_nearest(stored))}, or the original base"))
    if section.bias != "none":
        problems.append(Problem(
            f"bias: {section.bias} trains parameters of the base, which is stored in "
            f"{stored.label}", "adapter.bias", "set it to none"))
    if section.alters_base or (not stored.unpacked and section.starts_from_data):
        problems.append(Problem(
            f"init {section.init} works on the base's weights, which are stored in {stored.label}",
            "adapter.init", "use init: default"))
    if section.dora and stored.format in ("gptq", "awq"):
        problems.append(Problem(
            f"DoRA needs the numbers that {stored.format} weights stand for, which its layers do "
            "not give", "adapter.dora", "set it to false"))
    problems += _refused_modules(section, stored, shapes)
    if problems:
        raise UserError(problems=problems)


def prepare_settings(config: Any, stored: Stored, dtype: str) -> None:
    """Change a configuration so that transformers loads the base as it can be trained on."""
    settings = _settings(config)
    if stored.format == "bitsandbytes":
        # Saved with the model: another number format than the rest of the computation has.
        settings["bnb_4bit_compute_dtype"] = dtype
    elif stored.format in ("gptq", "awq"):
        # Chosen otherwise, the fastest kernels for inference have no backward pass.
        settings["backend"] = "auto_trainable"
    elif stored.format == "compressed-tensors":
        settings.update({"dequantize": True} if drops_activations()
                        else {"run_compressed": False})
    elif stored.unpacked:
        settings["dequantize"] = True


def drops_activations() -> bool:
    """Whether transformers unpacks compressed-tensors without their rounding of activations.

    Before it called the setting `dequantize`, it left that rounding in place.
    """
    from transformers import CompressedTensorsConfig

    return "dequantize" in inspect.signature(CompressedTensorsConfig).parameters


def stands_for(module: nn.Module) -> int | None:
    """How many weights a layer stands for that keeps them packed in buffers; None for others."""
    if getattr(module, "qweight", None) is None:
        return None
    return int(module.in_features) * int(module.out_features)  # type: ignore[arg-type]


def _settings(config: Any) -> dict[str, Any]:
    """The configuration's own entry, wherever it lies; changes to it count."""
    found = getattr(config, "quantization_config", None) \
        or getattr(config.get_text_config(), "quantization_config", None)
    return found if isinstance(found, dict) else {}


def _described(name: str, settings: dict[str, Any]) -> tuple[str, str]:
    """A format in words, and why this kind of it cannot be trained on."""
    if name in ("gptq", "awq"):
        return f"{name} in {settings.get('bits', 4)} bits", ""
    if name == "torchao":
        return _torchao(settings)
    if name == "compressed-tensors":
        return _compressed_tensors(settings)
    block = settings.get("weight_block_size")
    return (f"fp8 in blocks of {block[0]} × {block[1]}" if name == "fp8" and block else name), ""


def _torchao(settings: dict[str, Any]) -> tuple[str, str]:
    default = (settings.get("quant_type") or {}).get("default") or {}
    kind = str(default.get("_type", "of an old version"))
    label = f"torchao {kind.removesuffix('Config')}"
    if kind in _WEIGHT_ONLY:
        return label, ""
    if "Activation" in kind:
        return label, "it rounds activations too, and gradients do not pass through the rounding"
    return label, "it has not been proven to give right gradients"


def _compressed_tensors(settings: dict[str, Any]) -> tuple[str, str]:
    groups = list((settings.get("config_groups") or {}).values())
    kind = str(settings.get("format"))
    label = f"compressed-tensors {kind}"
    if len(groups) != 1:
        return label, ("its layers are stored in several ways, and transformers unpacks all of "
                       "them in the way of the first")
    if kind not in _COMPRESSED:
        return label, "it has not been proven to give right gradients"
    if groups[0].get("input_activations") and not drops_activations():
        return label, ("this version of transformers rounds activations too, and gradients do not "
                       "pass through the rounding; a newer one does not")
    return label, ""


def _why_not(method: str) -> str:
    if method == "full":
        return "it trains the stored weights themselves"
    return "it needs the weights as plain numbers, or a layer that peft does not have for them"


def _nearest(stored: Stored) -> list[str]:
    likely: tuple[str, ...] = ("lora", "oft", "miss", "vera")
    return [method for method in likely if method in stored.trains][:3]


def _refused_modules(section: Adapter, stored: Stored, shapes: Any) -> list[Problem]:
    """modules_to_save would copy a packed layer, and train nothing of it or its scales."""
    if stored.unpacked:
        return []
    head = shapes.get_output_embeddings()
    linear = {name for name, module in shapes.named_modules()
              if isinstance(module, nn.Linear) and module is not head}
    return [Problem(f"{word} is stored in {stored.label}, so it cannot be trained in full",
                    "adapter.modules_to_save", f"adapt it with {section.method} instead")
            for word in section.modules_to_save
            if any(f".{name}".endswith(f".{word}") for name in linear)]
