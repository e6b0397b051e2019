"""What formats that hold LoRA and nothing else have in common: what speaks against an adapter.

Everything that an adapter is beyond A and B of plain layers is a reason, and so is everything that
it lacks: programs take a file without the tensors of a layer for an adapter that has none there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lorafit.errors import Problem, UserError
from lorafit.export.delta.files import THIN, LoraAdapter, LoraLayer, read_lora
from lorafit.model.adapters.files import method_of, only_on
from lorafit.model.adapters.lora import NOT_A_PRODUCT, base_name, lora_layers
from lorafit.model.adapters.quiet import no_advice
from lorafit.model.base import load_config, meta_model
from lorafit.model.inventory import is_tied, weights_of
from lorafit.model.trained import AdapterSource
from lorafit.model.weights import Weight
from lorafit.recipe.methods import METHODS

# Starts that alter the base. What lorafit saves is converted and does not name them.
_ALTER_THE_BASE = ("pissa", "olora", "corda", "lora_ga", "mica")


@dataclass(frozen=True)
class Holds:
    """What a format can say.

    program: who reads it. dora: whether magnitudes have a place. refused_part: of a model and a
    weight that has an adapter, why the program would not compute it; empty where it would.
    """

    program: str
    dora: bool
    refused_part: Callable[[Any, Weight], str]


def way_out(source: AdapterSource) -> str:
    """What helps against nearly every reason."""
    row = METHODS.get(method_of(source.config))
    place = source.run.path if source.run is not None else source.directory
    if row is not None and not row.merges:
        return f"use it with peft ({row.why_not_merged}): lorafit export-adapter {place}"
    return f"merge it and serve the model: lorafit merge {place}"


def reasons_against(source: AdapterSource, holds: Holds) -> list[Problem]:
    """Every reason why an adapter is more, or less, than the format holds."""
    config, where, merge = source.config, str(source.directory), way_out(source)
    method = method_of(config)
    if method == "full":
        return [Problem("full fine-tuning leaves a model, not an adapter", where, merge)]
    if method not in THIN:
        return [Problem(f"{holds.program} loads LoRA, and this adapter is {method}", where, merge)]
    problems = [Problem(what, where, remedy) for what, remedy in _by_config(source, holds)]
    found = _layers(source)
    if isinstance(found, Problem):
        return [*problems, found]
    model = meta_model(load_config(source.model), trust_remote_code=source.model.trust_remote_code)
    # Magnitudes, biases and the like are told by the configuration already.
    strays = sorted(key for key in found.others if "lora_magnitude_vector" not in key)
    if strays and not problems:
        problems.append(Problem(f"holds more than A and B ({_some(strays)})", where, merge))
    problems += _incomplete(source, model, found)
    problems += _parts(source, model, found, holds)
    if broken := [layer.name for layer in found.layers.values() if not _is_finite(layer)]:
        problems.append(Problem(f"holds values that are not finite, in {_some(broken)}", where,
                                "take an earlier checkpoint of the run"))
    return problems


def largest_rank(source: AdapterSource) -> int:
    """Of any layer; 0 for what has no ranks, or lacks one of A and B."""
    found = _layers(source) if method_of(source.config) in THIN else None
    if not isinstance(found, LoraAdapter):
        return 0
    return max(layer.factors.rank for layer in found.layers.values())


def _by_config(source: AdapterSource, holds: Holds) -> list[tuple[str, str]]:
    """What the configuration tells, each with the way out."""
    config, program, merge = source.config, holds.program, way_out(source)
    reasons = []
    if config.get("use_dora") and not holds.dora:
        reasons.append((f"{program} does not load DoRA: its magnitudes belong to the sum of base "
                        "and update", merge))
    if saved := config.get("modules_to_save"):
        reasons.append((f"holds modules trained in full ({', '.join(saved)}), which {program} does "
                        "not load", merge))
    if config.get("bias", "none") != "none":
        reasons.append((f"holds the base's biases (bias: {config['bias']}), which {program} does "
                        "not load", merge))
    if config.get("lora_bias"):
        reasons.append((f"holds a bias of B in each layer, which {program} does not load",
                        f"{merge}, where its layers have a bias; or use it with peft: lorafit "
                        "export-adapter"))
    if config.get("trainable_token_indices"):
        reasons.append((f"holds trained rows of the embeddings, which {program} does not load",
                        merge))
    if config.get("alora_invocation_tokens"):
        reasons.append((f"is an activated LoRA, which {program} would apply to every token",
                        "use it with peft: lorafit export-adapter"))
    reasons += [(f"is {name}, whose update is not scale·B·A", merge)
                for key, name in NOT_A_PRODUCT.items() if config.get(key)]
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(_ALTER_THE_BASE):
        reasons.append((f"started by altering the base ({start}) and was not converted, so it is "
                        "wrong on the base as it is", "save it with peft's "
                        "save_pretrained(…, path_initial_model_for_weight_conversion=…)"))
    if stored := only_on(source.directory):
        reasons.append((f"is valid on the base in {stored} only (LoftQ)", "export it with --format "
                        "peft, and name its full_precision/ folder here"))
    return reasons


def _layers(source: AdapterSource) -> LoraAdapter | Problem:
    try:
        adapter = read_lora(source)
    except UserError as error:
        return error.problems[0]
    if not adapter.layers:
        return Problem("has no A and B", str(source.directory), "name a LoRA adapter")
    return adapter


def incomplete(source: AdapterSource) -> list[Problem]:
    """Why the file does not hold an A and a B for every layer that its configuration adapts in this
    base, and for no other; empty when it does."""
    model = meta_model(load_config(source.model), trust_remote_code=source.model.trust_remote_code)
    return _incomplete(source, model, read_lora(source))


def _incomplete(source: AdapterSource, model: Any, adapter: LoraAdapter) -> list[Problem]:
    """Layers that the configuration adapts and the file lacks, and the other way round."""
    try:
        expected = _expected(source, model)
    except (ValueError, NotImplementedError, KeyError, TypeError) as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        return [Problem(f"does not fit the base: {message}", str(source.directory),
                        "use the base that it was trained on")]
    held = {layer.module for layer in adapter.layers.values()}
    problems = []
    if missing := sorted(expected - held):
        problems.append(Problem(
            f"is incomplete: {len(missing)} of {len(expected)} layers have no A and B "
            f"({_some(missing)})", str(source.directory), "copy or export the adapter again"))
    if unknown := sorted(held - expected):
        problems.append(Problem(
            f"holds A and B of {len(unknown)} layers that its configuration does not adapt in this "
            f"base ({_some(unknown)})", str(source.directory),
            "use the base that it was trained on"))
    return problems


def _expected(source: AdapterSource, model: Any) -> set[str]:
    """The layers that get A and B, by their names in the adapter's file."""
    if method_of(source.config) == "paca":
        return set(source.config["modules"])
    from peft import PeftConfig, get_peft_model

    config = PeftConfig.from_pretrained(str(source.directory))
    config.init_lora_weights = True  # other starts need weights
    with no_advice(), torch.device("meta"):
        adapted = get_peft_model(meta_model(load_config(source.model)), config)
    return {base_name(name) for name, _ in lora_layers(adapted)}


def _parts(source: AdapterSource, model: Any, adapter: LoraAdapter,
           holds: Holds) -> list[Problem]:
    """Layers that the program would not compute, by the reason."""
    weights: Mapping[str, Weight] = {weight.path: weight for weight in weights_of(model)}
    refused: dict[str, list[str]] = {}
    for layer in adapter.layers.values():
        weight = weights.get(layer.weight_name)
        if weight is not None and (why := holds.refused_part(model, weight)):
            refused.setdefault(why, []).append(layer.name)
    return [Problem(f"{why} ({_some(names)})", str(source.directory), way_out(source))
            for why, names in refused.items()]


def mixture_or_turned(program: str, weight: Weight, model: Any) -> str:
    """Why a weight of a mixture, or one that is stored as (in, out), is refused; empty for others.
    """
    if weight.part in ("experts", "router"):
        return f"adapters on {weight.part} of a mixture are not written for {program}"
    if weight.part == "shared experts" and weight.is_fused:
        return f"adapters on fused shared experts are not written for {program}"
    name = weight.path.removesuffix(".weight")
    if not weight.is_parameter and type(model.get_submodule(name)).__name__ == "Conv1D":
        return f"layers stored as (in, out) are not written for {program}"
    return ""


def called(weight: Weight) -> str:
    """A part of a model in a sentence."""
    return "the output head" if weight.part == "head" else f"the {weight.part}"


def shares_its_weight(model: Any, weight: Weight) -> bool:
    """Whether this is the head or the embeddings of a model in which the two are one."""
    return weight.part in ("embeddings", "head") and is_tied(model)


def _is_finite(layer: LoraLayer) -> bool:
    return bool(torch.isfinite(layer.factors.a).all() and torch.isfinite(layer.factors.b).all())


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
