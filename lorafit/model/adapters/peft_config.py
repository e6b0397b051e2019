"""From the recipe's section to peft's configuration of a method."""

import copy
import dataclasses
import difflib
import importlib.util
import json
import math
import typing
from typing import Any

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from lorafit.errors import Problem, UserError
from lorafit.model.adapters import starts
from lorafit.model.choice import chosen_layers
from lorafit.model.inventory import stack_of
from lorafit.model.targets import Targets
from lorafit.recipe.adapter import Adapter

# Fields that the recipe's keys or lorafit itself decide.
_DECIDED = {
    "target_modules": "adapter.target_modules", "exclude_modules": "adapter.exclude_modules",
    "layers_to_transform": "adapter.layers", "layers_pattern": "adapter.layers",
    "target_parameters": "adapter.experts", "modules_to_save": "adapter.modules_to_save",
    "bias": "adapter.bias", "base_model_name_or_path": "model.base", "revision": "model.revision",
    "loftq_config": "model.quantization",
}
_LORAFITS_OWN = {"task_type", "peft_type", "inference_mode", "auto_mapping", "peft_version",
                 "fan_in_fan_out", "ensure_weight_tying", "total_step", "token_dim", "num_layers",
                 "num_attention_heads", "num_transformer_submodules", "tokenizer_name_or_path",
                 "tokenizer_kwargs", "progressbar"}


def build(model: Any, section: Adapter, targets: Targets, total_steps: int) -> Any:
    """peft's configuration. UserError for settings that the method or the model does not take.

    Works on a model without weights.
    """
    import peft

    row = section.row
    config_class = getattr(peft, row.config, None)
    if config_class is None:
        raise UserError(f"method {section.method} is not in the installed peft "
                        f"{peft.__version__}", "adapter.method", "pip install --upgrade peft")
    if row.needs_package is not None and importlib.util.find_spec(row.needs_package[0]) is None:
        raise UserError(f"method {section.method} needs {row.needs_package[1]}, which is not "
                        "installed", "adapter.method", f"pip install {row.needs_package[1]}")
    known = {item.name for item in dataclasses.fields(config_class)}
    if section.method == "lora":
        starts.settings(section)
    options = checked_options(section, config_class)
    _refuse_tokens(model, options)
    values: dict[str, Any] = {"task_type": "CAUSAL_LM", **row.preset}
    if targets.modules is not None:
        values["target_modules"] = targets.modules
    if targets.parameters:
        values["target_parameters"] = targets.parameters
    patterns = {"rank_pattern": targets.ranks, "alpha_pattern": targets.alphas}
    for key, name in row.fields.items():
        value = patterns.get(key, getattr(section, key))
        if value is not None:
            values[name] = _in_peft_words(key, value)
    if "ensure_weight_tying" in known and section.modules_to_save:
        values["ensure_weight_tying"] = True
    values |= _fitting_block(section, targets)
    extend = _MORE.get(section.method)
    if extend is not None:
        values |= extend(model, section, targets, total_steps)
    # What a start is told is not peft's to know: starts.py puts it.
    values |= {name: value for name, value in options.items() if name not in starts.CONFIGS}
    try:
        return config_class(**values)
    except (ValueError, TypeError) as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"peft refuses these settings: {message}", "adapter",
                        "change the keys that it names") from None


def checked_options(section: Adapter, config_class: type) -> dict[str, Any]:
    """`adapter.options` as peft takes them.

    UserError unless each is a field of peft's configuration that a user may set, with a value of
    its type that can be written down again.
    """
    known = {item.name for item in dataclasses.fields(config_class)}
    by_field = {name: key for key, name in section.row.fields.items()}
    settable = options_of(section, config_class)
    problems, values = [], {}
    for name, value in section.options.items():
        where = f"adapter.options.{name}"
        if name in settable:
            problem = _wrong_value(value)
            if problem is None:
                values[name], problem = _typed(value, config_class, name)
            if problem is not None:
                problems.append(Problem(problem, where, f"peft's default: {settable[name]!r}"))
        elif name in by_field:
            problems.append(Problem("is set by a key of its own", where,
                                    f"use adapter.{by_field[name]}"))
        elif name in _DECIDED and name in known:
            problems.append(Problem("is set by a key of its own", where, f"use {_DECIDED[name]}"))
        elif name in section.row.unused:
            problems.append(Problem(f"has no effect: {section.row.unused[name]}", where,
                                    "leave it out"))
        elif name in _LORAFITS_OWN and name in known:
            problems.append(Problem("follows from the model and the run", where, "leave it out"))
        else:
            close = difflib.get_close_matches(name, settable, 1, 0.6)
            remedy = (f"did you mean {close[0]}?" if close
                      else f"its options: {', '.join(sorted(settable)) or 'none'}")
            problems.append(Problem(f"method {section.method} has no option {name}", where, remedy))
    needed = section.row.needs_option
    if needed and not section.options.get(needed):
        problems.append(Problem(f"method {section.method} trains nothing without it",
                                f"adapter.options.{needed}", _EXAMPLES[needed]))
    if problems:
        raise UserError(problems=problems)
    return values


def options_of(section: Adapter, config_class: type) -> dict[str, Any]:
    """What `adapter.options` may name, with peft's defaults or those of the method's row."""
    taken = {*_DECIDED, *_LORAFITS_OWN, *section.row.fields.values(), *section.row.unused}
    return {item.name: section.row.preset.get(item.name, _default(item))
            for item in dataclasses.fields(config_class) if item.name not in taken}


def _default(item: "dataclasses.Field[Any]") -> Any:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return None if item.default is dataclasses.MISSING else item.default


_EXAMPLES = {"token_indices": "give the ids of the tokens: token_indices: [1234, 1235]"}


def _wrong_value(value: Any) -> str | None:
    """Why a value cannot be kept in the adapter's configuration, which is JSON."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return f"{value!r} cannot be written into the adapter's configuration"
    return None


def _typed(value: Any, config_class: type, name: str) -> tuple[Any, str | None]:
    """The value as the field's type, and what is wrong with it. A mapping becomes the nested
    configuration that the field wants."""
    try:
        hint = typing.get_type_hints(config_class)[name]
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except (NameError, TypeError, AttributeError, PydanticSchemaGenerationError):
        return copy.deepcopy(value), None  # a type that only peft can check
    try:
        return adapter.validate_python(copy.deepcopy(value),
                                       strict=not isinstance(value, dict)), None
    except ValidationError as error:
        first = error.errors()[0]
        return None, f"{value!r} does not fit: {first['msg']}"


def _refuse_tokens(model: Any, options: dict[str, Any]) -> None:
    """Ids that the vocabulary does not have would be an index error, or somebody else's row."""
    for name in ("token_indices", "trainable_token_indices"):
        chosen = options.get(name)
        ids = chosen if isinstance(chosen, list) else []
        rows = model.get_input_embeddings().num_embeddings
        outside = [i for i in ids if not 0 <= i < rows]
        if outside:
            raise UserError(f"there is no token {outside[0]}; the vocabulary has 0 to {rows - 1}",
                            f"adapter.options.{name}", "name existing tokens")


# Block sizes that have to divide layers: the option, the largest size taken by itself, and
# whether it has to divide what goes in, what comes out, or both.
_BLOCKS = {
    "c3a": ("block_size", 256, "both"), "vblora": ("vector_length", 256, "both"),
    "oft": ("oft_block_size", 32, "in"), "boft": ("boft_block_size", 4, "in"),
    "road": ("group_size", 64, "out"), "gralora": ("gralora_k", 2, "both"),
}


def _fitting_block(section: Adapter, targets: Targets) -> dict[str, Any]:
    """The largest size up to the usual one that divides every layer. UserError when the recipe's
    own does not."""
    if section.method not in _BLOCKS or {"r", "boft_block_num"} & section.options.keys():
        return {}
    name, largest, side = _BLOCKS[section.method]
    part = {"out": slice(0, 1), "in": slice(1, 2), "both": slice(0, 2)}[side]
    sizes = [size for weight in targets.chosen if not weight.is_parameter
             for size in weight.shape[part]]
    common = math.gcd(*sizes)
    given = section.options.get(name)
    fitting = [size for size in range(1, common + 1) if common % size == 0]
    if given is None:
        return {name: max(size for size in fitting if size <= largest)}
    if given > 0 and common % given:
        below = max(size for size in fitting if size <= given)
        raise UserError(
            f"{given} does not divide the size of every layer ({', '.join(_unique(sizes))})",
            f"adapter.options.{name}", f"use {below}, or another divisor of {common}")
    return {}


def _unique(sizes: list[int]) -> list[str]:
    return [str(size) for size in sorted(set(sizes))]


def _in_peft_words(key: str, value: Any) -> Any:
    """A value of the recipe as peft spells it."""
    if key == "init":
        return value if value == "gaussian" else True  # the others are put by starts.py
    if key == "alpha":
        return whole(value)
    if key == "modules_to_save":
        return list(value) or None  # peft changes the list it gets
    if isinstance(value, dict):
        return {name: whole(number) for name, number in value.items()}
    return value


def whole(value: float) -> float | int:
    """An alpha such as 32.0 as 32, which is how other tools read it."""
    return int(value) if value == int(value) else value


def _adalora(model: Any, section: Adapter, targets: Targets, total_steps: int) -> dict[str, Any]:
    """The ranks start at 1.5 times the target, and are settled over the middle of the run."""
    rank = section.rank or 8
    start = section.options.get("init_r", -(-3 * rank // 2))
    if isinstance(start, int) and start <= rank:
        raise UserError(f"the ranks start at {start} and are to end at {rank}, so none can move",
                        "adapter.options.init_r", f"set it above adapter.rank, or leave it out "
                        f"({-(-3 * rank // 2)})")
    warm, final = total_steps // 10, total_steps // 3
    return {"init_r": start, "total_step": total_steps, "tinit": warm, "tfinal": final,
            "deltaT": max(1, total_steps // 100)}


def _ia3(model: Any, section: Adapter, targets: Targets, total_steps: int) -> dict[str, Any]:
    """Layers of the MLP are scaled at their input, as in the paper; attention at its output."""
    names = targets.modules if isinstance(targets.modules, list) else []
    paths = [name for name, _ in model.named_modules()]
    return {"feedforward_modules": [
        name for name in names
        if not any("attn" in path or "attention" in path for path in paths
                   if path == name or path.endswith(f".{name}"))]}


def _llama_adapter(model: Any, section: Adapter, targets: Targets,
                   total_steps: int) -> dict[str, Any]:
    from peft.tuners.adaption_prompt.config import TRANSFORMERS_MODEL_CONFIG as families

    family = model.config.model_type
    if family not in families:
        raise UserError(f"llama_adapter exists for {', '.join(families)}, and this is a {family}",
                        "adapter.method", "use prefix_tuning, which every family takes")
    layers = model.config.get_text_config().num_hidden_layers
    return {"adapter_layers": min(30, layers)}


def _p_tuning(model: Any, section: Adapter, targets: Targets, total_steps: int) -> dict[str, Any]:
    return {"encoder_hidden_size": model.config.get_text_config().hidden_size}


def _prompt_tuning(model: Any, section: Adapter, targets: Targets,
                   total_steps: int) -> dict[str, Any]:
    """A text to start from is read with the base's own tokenizer."""
    if "prompt_tuning_init_text" not in section.options:
        return {}
    return {"prompt_tuning_init": "TEXT", "tokenizer_name_or_path": model.config._name_or_path}


def _shadow(model: Any, section: Adapter, targets: Targets, total_steps: int) -> dict[str, Any]:
    """The shadow's state is handed from block to block, so the blocks have to lie side by side."""
    stack = stack_of(model)
    chosen = chosen_layers(stack, section) or list(range(stack.layers))
    if chosen != list(range(chosen[0], chosen[-1] + 1)):
        raise UserError("the layers of shadow have to lie side by side", "adapter.layers",
                        "use last:N, or a list without gaps")
    return {"target_modules": [f"{stack.prefix}.{layer}" for layer in chosen]}


_MORE = {"adalora": _adalora, "ia3": _ia3, "llama_adapter": _llama_adapter, "p_tuning": _p_tuning,
         "prompt_tuning": _prompt_tuning, "shadow": _shadow}
