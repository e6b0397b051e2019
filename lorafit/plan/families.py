"""Tensors of a model from its configuration alone, for the families written down here.

Names and shapes are those of a model's files; tests compare them with models that transformers
builds without weights. A model of another family is sized from the headers of its files.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lorafit.plan.sizes import Sizes, text_part

Tensors = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Family:
    """How a family departs from Llama. Biases: None where the configuration says it.

    norms: RMSNorm layers of a decoder layer, beside those of heads. tied: where the configuration
    does not say. fused: one matrix for q, k and v, one for gate and up.
    """

    qkv_bias: bool | None = None
    output_bias: bool | None = None
    mlp_bias: bool | None = None
    head_norms: bool = False
    norms: int = 2
    tied: bool = False
    fused: bool = False
    mixture: str = ""


# The first two are every family's.
_NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
          "post_feedforward_layernorm")

_FAMILIES = {
    "llama": _Family(),
    "mistral": _Family(qkv_bias=False, output_bias=False, mlp_bias=False),
    "granite": _Family(),
    "qwen2": _Family(qkv_bias=True, output_bias=False, mlp_bias=False),
    "qwen3": _Family(head_norms=True, mlp_bias=False),
    "gemma": _Family(tied=True, mlp_bias=False),
    "gemma2": _Family(tied=True, norms=4, mlp_bias=False),
    "gemma3_text": _Family(tied=True, norms=4, head_norms=True, mlp_bias=False),
    "phi3": _Family(fused=True, qkv_bias=False, output_bias=False, mlp_bias=False),
    "mixtral": _Family(qkv_bias=False, output_bias=False, mixture="mlp"),
    "qwen3_moe": _Family(head_norms=True, mlp_bias=False, mixture="mlp"),
}


def known_families() -> list[str]:
    return [*_FAMILIES, "gpt2"]


def tensors_of(config: Mapping[str, Any], sizes: Sizes) -> Tensors | None:
    """Every parameter's name and shape; None for a family that is not known here.

    A head that is tied to the embeddings is left out.
    """
    if sizes.model_type == "gpt2":
        return dict(_gpt2(sizes))
    family = _FAMILIES.get(sizes.model_type)
    return None if family is None else dict(_decoder(text_part(config), sizes, family))


def _decoder(text: Mapping[str, Any], sizes: Sizes,
             family: _Family) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = sizes.hidden_size
    yield "model.embed_tokens.weight", (sizes.vocabulary, hidden)
    for number in range(sizes.layers):
        layer = f"model.layers.{number}"
        yield from _attention(f"{layer}.self_attn", text, sizes, family)
        if family.mixture and _is_sparse(text, number):
            yield from _experts(f"{layer}.{family.mixture}", sizes)
        else:
            yield from _mlp(f"{layer}.mlp", text, sizes, family)
        for norm in _NORMS[:family.norms]:
            yield f"{layer}.{norm}.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if not text.get("tie_word_embeddings", family.tied):
        yield "lm_head.weight", (sizes.vocabulary, hidden)


def _attention(name: str, text: Mapping[str, Any], sizes: Sizes,
               family: _Family) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, width = sizes.hidden_size, sizes.heads * sizes.head_dim
    keys = sizes.kv_heads * sizes.head_dim
    said = bool(text.get("attention_bias", False))
    ins = {"qkv_proj": width + 2 * keys} if family.fused else {
        "q_proj": width, "k_proj": keys, "v_proj": keys}
    for part, out in ins.items():
        yield from _linear(f"{name}.{part}", out, hidden,
                           said if family.qkv_bias is None else family.qkv_bias)
    yield from _linear(f"{name}.o_proj", hidden, width,
                       said if family.output_bias is None else family.output_bias)
    if family.head_norms:
        yield f"{name}.q_norm.weight", (sizes.head_dim,)
        yield f"{name}.k_norm.weight", (sizes.head_dim,)


def _mlp(name: str, text: Mapping[str, Any], sizes: Sizes,
         family: _Family) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = sizes.hidden_size, sizes.intermediate_size
    bias = bool(text.get("mlp_bias", False)) if family.mlp_bias is None else family.mlp_bias
    for part in ("gate_up_proj",) if family.fused else ("gate_proj", "up_proj"):
        yield from _linear(f"{name}.{part}", inner * (2 if family.fused else 1), hidden, bias)
    yield from _linear(f"{name}.down_proj", hidden, inner, bias)


def _experts(name: str, sizes: Sizes) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner, count = sizes.hidden_size, sizes.expert_size, sizes.experts
    yield f"{name}.gate.weight", (count, hidden)
    yield f"{name}.experts.gate_up_proj", (count, 2 * inner, hidden)
    yield f"{name}.experts.down_proj", (count, hidden, inner)


def _is_sparse(text: Mapping[str, Any], number: int) -> bool:
    """Whether a layer of a mixture is one; Qwen's configurations leave some of them dense."""
    step = int(text.get("decoder_sparse_step", 1) or 1)
    return number not in (text.get("mlp_only_layers") or []) and (number + 1) % step == 0


def _gpt2(sizes: Sizes) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = sizes.hidden_size, sizes.intermediate_size
    yield "transformer.wte.weight", (sizes.vocabulary, hidden)
    yield "transformer.wpe.weight", (sizes.context_tokens or 1024, hidden)
    for number in range(sizes.layers):
        layer = f"transformer.h.{number}"
        for part, into, out in (
                ("attn.c_attn", hidden, 3 * hidden), ("attn.c_proj", hidden, hidden),
                ("mlp.c_fc", hidden, inner), ("mlp.c_proj", inner, hidden)):
            # Conv1D, whose files have the weight the other way round
            yield f"{layer}.{part}.weight", (into, out)
            yield f"{layer}.{part}.bias", (out,)
        for norm in ("ln_1", "ln_2"):
            yield from ((f"{layer}.{norm}.{part}", (hidden,)) for part in ("weight", "bias"))
    yield from ((f"transformer.ln_f.{part}", (hidden,)) for part in ("weight", "bias"))


def _linear(name: str, out: int, into: int,
            bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out, into)
    if bias:
        yield f"{name}.bias", (out,)
