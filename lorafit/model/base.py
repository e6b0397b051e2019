"""The frozen base: its configuration, tokenizer and weights, loaded as the recipe says."""

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from lorafit.errors import UserError
from lorafit.model.device import find_device
from lorafit.model.four_bits import hold_in_4_bits
from lorafit.model.intake import CODE_REMEDY
from lorafit.model.local_files import TINY, is_hub_id, local_files, resolve_base
from lorafit.model.stored import prepare_settings, refuse_unusable, stored_as
from lorafit.recipe import auto
from lorafit.recipe.schema import Model

TORCH_DTYPES = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
}
__all__ = ["TINY", "TORCH_DTYPES", "is_hub_id", "load_base", "load_config", "load_for_inference",
           "load_tokenizer", "local_files", "meta_model", "resolve_base", "sizes"]


def quiet_libraries() -> None:
    """Leave the terminal to lorafit: no progress bars or advice from the libraries below."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def sizes(config: Any) -> dict[str, int | str]:
    """What tells bases of other shapes apart: model type, and every whole number of the (text)
    configuration that is no token's id and no limit of positions."""
    text = config.get_text_config()
    found = {key: value for key, value in text.to_dict().items()
             if isinstance(value, int) and not isinstance(value, bool)
             and not key.endswith(("_id", "_index")) and key != "max_position_embeddings"}
    return {"model_type": text.model_type, **dict(sorted(found.items()))}


def load_config(section: Model) -> Any:
    """The model's configuration.

    UserError when there is none, it brings code of its own, or the base is quantised in its files
    in a way that cannot be loaded as the recipe says.
    """
    from transformers import AutoConfig

    quiet_libraries()
    path = resolve_base(section.base)
    if Path(path).is_dir() and not (Path(path) / "config.json").exists():
        if (Path(path) / "adapter_config.json").exists():
            raise UserError("is an adapter, not a base model", f"model.base: {section.base}",
                            "name the base it was trained on, or merge it first")
        raise UserError("is a directory without a config.json", f"model.base: {section.base}",
                        "name a model directory, a hub id, or tiny")
    folder, commit = local_files(section)
    try:
        config = AutoConfig.from_pretrained(
            folder, trust_remote_code=section.trust_remote_code, local_files_only=True)
    except Exception as error:
        raise _cannot_load(section, error) from None
    config._commit_hash = commit
    refuse_unusable(section, stored_as(config))
    return config


def load_tokenizer(section: Model) -> Any:
    """The base's tokenizer, with a padding token. UserError when it cannot be had."""
    from transformers import AutoTokenizer

    quiet_libraries()
    folder, _ = local_files(section)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=section.trust_remote_code, local_files_only=True)
    except Exception as error:
        raise _cannot_load(section, error) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked, so any token serves
    return tokenizer


def meta_model(config: Any, *, trust_remote_code: bool = False) -> torch.nn.Module:
    """The architecture without weights: shapes only, in milliseconds, whatever the size."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"{config.model_type} is no causal language model that transformers can build: "
            f"{str(error).splitlines()[0]}", "model.base", "name a causal language model",
        ) from None


def supports_sdpa(config: Any) -> bool:
    """Whether the architecture can use torch's scaled-dot-product attention."""
    from transformers import AutoModelForCausalLM

    try:
        model_class = AutoModelForCausalLM._model_mapping[type(config)]
    except KeyError:
        return False
    return bool(getattr(model_class, "_supports_sdpa", False))


def takes_attention_functions(config: Any) -> bool:
    """Whether the architecture computes attention by a function that can be replaced, and hands it
    what a forward pass brings."""
    from transformers import AutoModelForCausalLM

    try:
        model_class = AutoModelForCausalLM._model_mapping[type(config)]
    except KeyError:
        return False
    return bool(getattr(model_class, "_supports_attention_backend", False))


def load_base(section: Model, dtype: str, attention: str, device: torch.device | None, *,
              quantises_later: bool = False) -> Any:
    """The base model on `device`, frozen, in evaluation mode.

    `dtype` and `attention` are decided values. Without a device its weights stay in their files,
    which all processes of a machine map to the same memory where `dtype` is as on disk; with
    `quantises_later` 4-bit layers come to be when they are moved to a device. UserError when it
    cannot be loaded so.
    """
    from transformers import AutoModelForCausalLM

    quiet_libraries()
    folder, _ = local_files(section, weights=True)
    options: dict[str, Any] = {"dtype": TORCH_DTYPES[dtype], "attn_implementation": attention}
    config = load_config(section)
    if device is None:
        pass
    elif (stored := stored_as(config)) is not None:
        prepare_settings(config, stored, dtype)
        options["config"] = config
        if device.type != "cpu":
            options["device_map"] = {"": device}
    elif section.quantization != "none":
        options["quantization_config"] = _quantization_config(section, dtype)
        options["device_map"] = {"": device}
    elif device.type != "cpu":
        options["device_map"] = {"": device}
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=section.trust_remote_code, local_files_only=True,
            use_safetensors=True, output_loading_info=True, **options,
        )
    except torch.OutOfMemoryError:
        raise UserError(
            f"the base does not fit on {device}", f"model.base: {section.base}",
            "quantise it (--set model.quantization=nf4) or use a larger device",
        ) from None
    except Exception as error:
        raise _cannot_load(section, error) from None
    _refuse_missing_weights(section, loaded["missing_keys"])
    if device is None and section.quantization != "none":
        hold_in_4_bits(model, section.quantization, TORCH_DTYPES[dtype],
                       double_quantization=section.double_quantization,
                       device=None if quantises_later else torch.device("cpu"))
    keep_weights_as_they_are(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


def load_for_inference(section: Model) -> Any:
    """The base model on the best device here, with the attention that its architecture has."""
    device, facts = find_device()
    is_fast = section.attention != "eager" and supports_sdpa(load_config(section))
    return load_base(section, auto.dtype(section.dtype, facts).value,
                     "sdpa" if is_fast else "eager", device)


def _quantization_config(section: Model, dtype: str) -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"{section.quantization} needs bitsandbytes, which is not installed",
            "model.quantization", "pip install 'lorafit[quantization]'",
        )
    from transformers import BitsAndBytesConfig

    if section.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=section.quantization,
        bnb_4bit_use_double_quant=section.double_quantization,
        bnb_4bit_compute_dtype=TORCH_DTYPES[dtype],
    )


def keep_weights_as_they_are(model: Any) -> None:
    """Forbid bitsandbytes to repack 4-bit weights for inference on CPUs with AVX512-BF16.

    The repacking happens at the first evaluation, is not undone when training goes on, and the
    product on repacked weights has no backward pass: every gradient below it would be wrong, with
    a warning at most (bitsandbytes 0.50, Linear4bit.forward).
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False


def _refuse_missing_weights(section: Model, missing: Iterable[str]) -> None:
    """transformers draws weights that a file does not have at random, and only warns."""
    if names := sorted(missing):
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise UserError(f"its files have no weight {names[0]}{more}", f"model.base: {section.base}",
                        "name a complete causal language model whose names and format transformers "
                        "knows")


def _cannot_load(section: Model, error: Exception) -> UserError:
    message = str(error).strip() or type(error).__name__
    where = f"model.base: {section.base}"
    if isinstance(error, RecursionError):
        message = "its files are nested too deeply"
    if "trust_remote_code" in message:
        return UserError("the model brings Python code of its own, which is not run by default",
                         where, CODE_REMEDY)
    return UserError(f"the base cannot be loaded: {message.splitlines()[0]}", where,
                     "name a model directory, a hub id such as Qwen/Qwen3-0.6B, or tiny")
