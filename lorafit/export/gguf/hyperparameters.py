"""A model's configuration in the words of GGUF."""

import math
from collections.abc import Iterator
from typing import Any

import torch

from lorafit.export.gguf.architectures import Architecture, head_dim, rotation


def add_hyperparameters(writer: Any, gguf: Any, architecture: Architecture, config: Any,
                        vocabulary: int) -> None:
    """Everything llama.cpp needs to build the graph. `vocabulary`: rows of the embedding."""
    text = config.get_text_config()
    writer.add_vocab_size(vocabulary)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_key_length(head_dim(text))
    writer.add_value_length(head_dim(text))
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    if architecture.name == "gemma2":
        writer.add_attn_logit_softcapping(text.attn_logit_softcapping)
        writer.add_final_logit_softcapping(text.final_logit_softcapping)
    if architecture.windowed or architecture.name == "phi3":
        # Phi: 0 tells that there is none.
        writer.add_sliding_window(getattr(text, "sliding_window", None) or 0)
    _add_rotation(writer, gguf, text)


def _add_rotation(writer: Any, gguf: Any, text: Any) -> None:
    rope = rotation(text)
    writer.add_rope_dimension_count(rotated(text))
    writer.add_rope_freq_base(rope["rope_theta"])
    local = (text.rope_parameters or {}).get("sliding_attention", {}).get("rope_theta")
    if local is not None and local != 10_000:  # llama.cpp's own; older versions know no other
        writer.add_rope_freq_base_swa(local)
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
        writer.add_rope_scaling_yarn_beta_fast(float(rope.get("beta_fast") or 32))
        writer.add_rope_scaling_yarn_beta_slow(float(rope.get("beta_slow") or 1))
    elif kind == "longrope":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
        writer.add_rope_scaling_attn_factors(_longrope_attention(text, rope))
    elif hasattr(text, "original_max_position_embeddings"):  # Phi's, whatever the scaling
        writer.add_rope_scaling_orig_ctx_len(text.original_max_position_embeddings)


def rotated(text: Any) -> int:
    """How many numbers of a head are rotated."""
    share = rotation(text).get("partial_rotary_factor") or 1.0
    return int(head_dim(text) * share)


def rotation_factors(text: Any, gguf: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of what each frequency is divided by, by their names in the file."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope, names = rotation(text), gguf.TENSOR_NAMES
    if rope.get("rope_type") == "llama3":
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](text, torch.device("cpu"))
        size = rotated(text)
        plain = rope["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float32) / size)
        yield f"{names[gguf.MODEL_TENSOR.ROPE_FREQS]}.weight", plain / scaled
    elif rope.get("rope_type") == "longrope":
        for tensor, key in ((gguf.MODEL_TENSOR.ROPE_FACTORS_LONG, "long_factor"),
                            (gguf.MODEL_TENSOR.ROPE_FACTORS_SHORT, "short_factor")):
            yield f"{names[tensor]}.weight", torch.tensor(rope[key], dtype=torch.float32)


def _longrope_attention(text: Any, rope: dict[str, Any]) -> float:
    """√(1 + ln(longer / trained) / ln(trained)), LongRoPE's (arXiv 2402.13753), unless given."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    trained = rope["original_max_position_embeddings"]
    factor = rope.get("factor") or text.max_position_embeddings / trained
    return math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
