"""`--smoke`: the same recipe and the same code on a shrunken architecture, offline, in seconds.

A stand-in base (two layers of random weights in the recipe's architecture) and, where the data
cannot be reached, stand-in rows of the recipe's format are written to a folder; the recipe is
pointed at them and then runs like any other.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch

from lorafit.data.given import sources_of
from lorafit.errors import UserError
from lorafit.model.base import TINY, is_hub_id, load_config, load_tokenizer, quiet_libraries
from lorafit.model.device import find_device
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.loading import replace
from lorafit.recipe.schema import Data, Recipe

ROWS = 12
EVAL_ROWS = 4
STEPS = 3

# Architecture of a model that cannot be asked for its configuration, by its name.
_FAMILIES = [
    (r"mixtral", "mixtral"),
    (r"mistral|ministral|zephyr", "mistral"),
    (r"qwen-?3.*-a\d+b", "qwen3_moe"),
    (r"qwen-?3", "qwen3"),
    (r"qwen-?2", "qwen2"),
    (r"gemma-?3", "gemma3_text"),
    (r"gemma-?2", "gemma2"),
    (r"gemma", "gemma"),
    (r"phi-?[34]", "phi3"),
    (r"gpt-oss", "gpt_oss"),
    (r"olmo-?2", "olmo2"),
    (r"smollm-?3", "smollm3"),
    (r"llama|smollm|tinyllama|vicuna", "llama"),
]


def smoke_recipe(recipe: Recipe, folder: Path, hub_reachable: bool) -> Recipe:
    """The recipe with a shrunken base and few rows, all files in `folder`."""
    data = _few_rows(recipe.data, folder, hub_reachable)
    base = folder / "base"
    _write_base(recipe, base, hub_reachable)
    return replace(
        recipe,
        model={"base": str(base), "revision": None, "trust_remote_code": False},
        adapter=_shrunken_adapter(recipe.adapter),
        data=data,
        training={
            "epochs": None, "steps": STEPS, "batch_size": min(4, recipe.training.batch_size),
            "micro_batch_size": 2 if recipe.training.batch_size > 1 else 1,
            "eval_every": 2, "checkpoint_every": 2,
            "warmup": min(1, recipe.training.warmup), "sample_tokens": 4,
            "sample_prompts": recipe.training.sample_prompts[:1],
            # Of the device, not of the recipe's sense: a smoke run has to run anywhere.
            "activation_offloading": (recipe.training.activation_offloading
                                      and find_device()[0].type == "cuda"),
        },
        output={"dir": str(folder / "run")},
    )


def _shrunken_adapter(section: Adapter) -> dict[str, Any]:
    """Changes to the adapter section: layers that are there, ranks that fit them.

    The narrowest layer is 32 wide; ranks shrink together with their alphas, so scales stay.
    """
    changes: dict[str, Any] = {}
    if isinstance(section.layers, str):
        changes["layers"] = "last:1"
    elif section.layers is not None:
        changes["layers"] = sorted({min(layer, 1) for layer in section.layers})
    largest = max([section.rank or 0, *section.rank_pattern.values()])
    if largest > 32:
        def scaled(value: float) -> float:
            return value * 32 / largest
        if section.rank is not None:
            changes["rank"] = max(1, round(scaled(section.rank)))
        if section.alpha is not None:
            changes["alpha"] = scaled(section.alpha)
        changes["rank_pattern"] = {key: max(1, round(scaled(rank)))
                                   for key, rank in section.rank_pattern.items()}
        changes["alpha_pattern"] = {key: scaled(alpha)
                                    for key, alpha in section.alpha_pattern.items()}
    return changes


def _write_base(recipe: Recipe, target: Path, hub_reachable: bool) -> None:
    from transformers import AutoModelForCausalLM

    quiet_libraries()
    section = recipe.model
    try:
        if is_hub_id(section.base) and not hub_reachable:
            raise UserError("the hub cannot be reached")
        config, tokenizer = load_config(section), load_tokenizer(section)
    except UserError:
        if not is_hub_id(section.base):
            raise
        config = _config_by_name(section.base)  # offline, or a gated model without a login
        tokenizer = load_tokenizer(section.model_copy(update={"base": str(TINY), "revision": None}))
    shrink(config, tokenizer)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _config_by_name(name: str) -> Any:
    from transformers import AutoConfig

    for pattern, model_type in _FAMILIES:
        if re.search(pattern, name.rpartition("/")[2].lower()):
            return AutoConfig.for_model(model_type)
    raise UserError("the hub cannot be reached, and the architecture cannot be told from the name",
                    f"model.base: {name}", "go online, or give a local directory")


def shrink(config: Any, tokenizer: Any) -> None:
    """Two narrow layers of the same architecture, with the vocabulary of `tokenizer`.

    64 wide with 4 heads of 16: every proportion that code depends on (grouped heads, several
    experts, both kinds of attention layer) is kept.
    """
    text = config.get_text_config()
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    small = {
        "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "moe_intermediate_size": 32, "num_experts": 4, "num_local_experts": 4,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "query_pre_attn_scalar": 16,
        "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
        "shared_expert_intermediate_size": 32, "q_lora_rank": 32, "kv_lora_rank": 32,
        "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "qk_head_dim": 32, "v_head_dim": 16,
        "hidden_size_per_layer_input": 16, "vocab_size": len(tokenizer),
        "max_position_embeddings": 2048, "original_max_position_embeddings": 2048,
    }
    for key, value in small.items():
        if getattr(text, key, None) is not None:
            setattr(text, key, value)
    if getattr(text, "kv_lora_rank", None):  # latent attention has keys for every head
        text.num_key_value_heads = text.num_attention_heads
    if getattr(text, "layer_types", None):
        kinds = list(dict.fromkeys(text.layer_types))
        text.layer_types = [*kinds, *kinds][:2]
    rope = getattr(text, "rope_parameters", None)
    if isinstance(rope, dict) and rope.get("rope_type") not in (None, "default"):
        text.rope_parameters = {"rope_type": "default", "rope_theta": rope.get("rope_theta", 1e4)}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(text, key, getattr(tokenizer, key))
        setattr(config, key, getattr(tokenizer, key))


def _few_rows(data: Data, folder: Path, hub_reachable: bool) -> dict[str, Any]:
    """Changes to the data section: the first rows, or stand-ins where they are out of reach."""
    changes: dict[str, Any] = {
        "max_rows": min(ROWS, data.max_rows or ROWS),
        "max_eval_rows": EVAL_ROWS,
        "max_length_tokens": min(256, data.max_length_tokens),
        "on_long": "truncate",
        "streaming": False,
        "workers": 1,
    }
    for key, numbers in (("train", range(ROWS)), ("eval", range(ROWS, ROWS + EVAL_ROWS))):
        is_hub = any(given.location.is_hub for given in sources_of(data, key))
        if is_hub and not hub_reachable:
            path = folder / f"{key}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(
                json.dumps(_stand_in(data, number)) + "\n" for number in numbers
            ), encoding="utf-8")
            changes[key] = str(path)
    return changes


def _stand_in(data: Data, number: int) -> dict[str, Any]:
    """A row in the format that the recipe names or implies; chat where nothing says otherwise."""
    columns = {role: name for role, name in data.columns.model_dump().items() if name}
    question, answer = f"How much is {number} and {number}?", f"It is {2 * number}."
    system = {columns["system"]: "Be brief."} if "system" in columns else {}
    if data.format == "text" or "text" in columns:
        return {columns.get("text", "text"): f"{question} {answer}"}
    if data.format == "alpaca" or "input" in columns:
        return {columns.get("prompt", "instruction"): question, columns.get("input", "input"): "",
                columns.get("completion", "output"): answer, **system}
    if data.format == "prompt_completion" or {"prompt", "completion"} & columns.keys():
        return {columns.get("prompt", "prompt"): question,
                columns.get("completion", "completion"): answer, **system}
    asked = {"role": "user", "content": question}
    turns = [asked, {"role": "assistant", "content": answer}]
    if data.format == "preference" or {"chosen", "rejected"} & columns.keys():
        return {columns.get("chosen", "chosen"): turns, columns.get("rejected", "rejected"):
                [asked, {"role": "assistant", "content": "I do not know."}], **system}
    label = {columns.get("label", "label"): True} if data.format == "judged" else {}
    if data.format == "sharegpt":
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        return {columns.get("messages", "conversations"): turns, **system}
    return {columns.get("messages", "messages"): turns, **system, **label}
