"""The numbers of a config.json that a model's shapes follow from, in one vocabulary."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorafit.errors import UserError
from lorafit.model.weights import ACTIVE_EXPERTS

# What architectures call the same number; the first that is there counts.
_HIDDEN = ("hidden_size", "n_embd", "d_model", "dim")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_INTERMEDIATE = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx")
# Widths of one expert, where it is another than that of a dense layer.
_EXPERT = ("moe_intermediate_size", "intermediate_size")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class Sizes:
    """Of a decoder. kv_heads: heads of keys and values. context_tokens: longest row that it was
    made for; None where the configuration does not say. experts: of a mixture's layer, else 0.
    expert_size: width of one of them."""

    model_type: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocabulary: int
    context_tokens: int | None
    experts: int
    expert_size: int
    active_experts: int | None


def sizes_of(config: Mapping[str, Any], where: str) -> Sizes:
    """From a configuration as its file has it, of the text model where it has several.

    where: of messages. UserError naming every number that is missing.
    """
    text = text_part(config)
    found = {name: _first(text, keys) for name, keys in (
        ("hidden_size", _HIDDEN), ("num_hidden_layers", _LAYERS), ("num_attention_heads", _HEADS),
        ("vocab_size", ("vocab_size",)))}
    missing = [name for name, value in found.items() if not value]
    if missing or not text.get("model_type"):
        missing += [] if text.get("model_type") else ["model_type"]
        raise UserError(f"its configuration lacks {', '.join(missing)}, without which the model "
                        "cannot be sized", where,
                        "name a causal language model whose config.json has them")
    hidden, heads = found["hidden_size"] or 0, found["num_attention_heads"] or 0
    intermediate = _first(text, _INTERMEDIATE) or 4 * hidden
    head_dim = _first(text, ("head_dim",)) or _HEAD_DIMS.get(str(text["model_type"]))
    return Sizes(
        model_type=str(text["model_type"]), hidden_size=hidden,
        layers=found["num_hidden_layers"] or 0, heads=heads,
        kv_heads=_first(text, ("num_key_value_heads",)) or _KV_HEADS.get(
            str(text["model_type"]), heads),
        head_dim=head_dim or max(1, hidden // heads), intermediate_size=intermediate,
        vocabulary=found["vocab_size"] or 0, context_tokens=_first(text, _CONTEXT),
        experts=_first(text, _EXPERTS) or 0, expert_size=_first(text, _EXPERT) or intermediate,
        active_experts=_first(text, ACTIVE_EXPERTS))


# Defaults of transformers' configurations, for files that leave out what is as usual.
_HEAD_DIMS = {"gemma": 256, "gemma2": 256, "gemma3_text": 256, "qwen3": 128, "qwen3_moe": 128}
_KV_HEADS = {"mistral": 8, "mixtral": 8}


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's own configuration inside a model's of several kinds."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    return next((value for key in keys
                 if isinstance(value := config.get(key), int) and not isinstance(value, bool)),
                None)
