"""What llama.cpp computes of transformers' architectures: its name for each, its conventions, and
where its arithmetic is fixed to what the published models of a family have.

The rules are those of llama.cpp's src/models/*.cpp. What it would load and compute differently is
refused here, because nothing would say so later.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lorafit.errors import Problem, UserError

SILU, GELU_TANH = ("silu", "swish"), ("gelu_pytorch_tanh",)
# Scaling of the rotation that every architecture here computes alike; llama3 and longrope come as
# factors for each frequency, which only some read.
_SCALED_ALIKE = ("default", "linear", "yarn")


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's architectures.

    name: in the file. neighbours: it rotates numbers 2i and 2i+1 of a head together, where
    transformers rotates i and i + d/2. norm_plus_one: norms multiply by their weight, where
    transformers multiplies by 1 + weight. own_head: whether the output embedding may be a weight
    of its own. activations: what its MLPs compute. factors: kinds of scaled rotation that it reads
    beside the common ones. limits: what else it does not compute, as sentences.
    """

    name: str
    neighbours: bool = False
    norm_plus_one: bool = False
    own_head: bool = True
    activations: tuple[str, ...] = SILU
    factors: tuple[str, ...] = ()
    limits: Callable[[Any], list[str]] = lambda text: []
    windowed: bool = False


def _phi3(text: Any) -> list[str]:
    if head_dim(text) * text.num_attention_heads != text.hidden_size:
        return ["its heads together are not as wide as the model"]
    return []


def _gemma2(text: Any) -> list[str]:
    found = []
    if text.attn_logit_softcapping is None or text.final_logit_softcapping is None:
        found.append("it does not cap its logits, which llama.cpp always does for gemma2")
    every_other = ["full_attention" if i % 2 else "sliding_attention"
                   for i in range(text.num_hidden_layers)]
    return [*found, *_pattern(text, every_other), *_query_scale(text, big=46)]


def _gemma3(text: Any) -> list[str]:
    found = []
    if getattr(text, "final_logit_softcapping", None) or getattr(
            text, "attn_logit_softcapping", None):
        found.append("it caps its logits, which llama.cpp does not do for gemma3")
    every_sixth = ["sliding_attention" if (i + 1) % 6 else "full_attention"
                   for i in range(text.num_hidden_layers)]
    return [*found, *_pattern(text, every_sixth), *_query_scale(text, big=62)]


def _pattern(text: Any, expected: list[str]) -> list[str]:
    if list(text.layer_types) == expected:
        return []
    return ["its layers take turns between sliding and full attention in another order than "
            "llama.cpp assumes"]


def _query_scale(text: Any, big: int) -> list[str]:
    """llama.cpp takes the scale from the number of layers: 1/√(d/heads) for the largest model of
    the family, 1/√head_dim for the others."""
    computed = (text.hidden_size // text.num_attention_heads if text.num_hidden_layers == big
                else head_dim(text))
    if text.query_pre_attn_scalar == computed:
        return []
    return [f"it scales queries by 1/√{text.query_pre_attn_scalar:g}, llama.cpp by 1/√{computed}"]


def _smollm3(text: Any) -> list[str]:
    expected = [int((i + 1) % 4 != 0) for i in range(text.num_hidden_layers)]
    if list(text.no_rope_layers)[:text.num_hidden_layers] != expected:
        return ["other layers than every fourth are without rotation"]
    return []


def _no_biases(text: Any) -> list[str]:
    return ["its attention has biases"] if getattr(text, "attention_bias", False) else []


_LLAMA = Architecture("llama", neighbours=True, factors=("llama3",))
_GEMMA3 = Architecture("gemma3", norm_plus_one=True, activations=GELU_TANH, limits=_gemma3,
                       windowed=True)
ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3", limits=_no_biases),
    "gemma": Architecture("gemma", norm_plus_one=True, own_head=False, activations=GELU_TANH),
    "gemma2": Architecture("gemma2", norm_plus_one=True, own_head=False, activations=GELU_TANH,
                           limits=_gemma2, windowed=True),
    "gemma3_text": _GEMMA3,
    "gemma3": _GEMMA3,
    "phi3": Architecture("phi3", factors=("longrope",), limits=_phi3),
    "olmo2": Architecture("olmo2", limits=_no_biases),
    "smollm3": Architecture("smollm3", neighbours=True, limits=_smollm3),
}
"""By transformers' model_type."""


def architecture_of(config: Any, where: str) -> Architecture:
    """llama.cpp's form of a model. UserError with every reason why there is none."""
    found = ARCHITECTURES.get(config.model_type)
    if found is None:
        raise UserError(
            f"{config.model_type} is not written as GGUF", where,
            f"supported: {', '.join(sorted(ARCHITECTURES))}; for others merge it (lorafit merge) "
            "and run llama.cpp's own converter on the result")
    if reasons := _reasons(found, config.get_text_config()):
        raise UserError(problems=[Problem(
            f"llama.cpp would compute something else for this {config.model_type}: {reason}",
            where, "serve the merged model with another engine") for reason in reasons])
    return found


def _reasons(architecture: Architecture, text: Any) -> list[str]:
    found = list(architecture.limits(text))
    activation = getattr(text, "hidden_activation", None) or text.hidden_act
    if activation not in architecture.activations:
        found.append(f"its activation is {activation}, llama.cpp's {architecture.activations[0]}")
    if not architecture.own_head and not text.tie_word_embeddings:
        found.append("its output embedding is a weight of its own, which llama.cpp does not read")
    rope = rotation(text)
    kind = rope.get("rope_type", "default")
    if kind not in (*_SCALED_ALIKE, *architecture.factors):
        found.append(f"it scales its rotation by the method {kind}")
    if kind == "yarn" and any(rope.get(key) is not None
                              for key in ("attention_factor", "mscale", "mscale_all_dim")):
        found.append("yarn with an attention factor of its own")
    if kind == "longrope" and not rope.get("long_factor"):
        found.append("longrope without its factors")
    return found


def remarks(architecture: Architecture, config: Any) -> list[str]:
    """What llama.cpp computes differently for long contexts only."""
    text, found = config.get_text_config(), []
    window = getattr(text, "sliding_window", None)
    slides = window and "sliding_attention" in (
        getattr(text, "layer_types", None) or ["sliding_attention"])
    if slides and not architecture.windowed:
        found.append(f"llama.cpp attends to the whole context, the model to {window} tokens: the "
                     f"same up to a context of {window}")
    rope = rotation(text)
    if rope.get("rope_type") == "longrope":
        short = int(rope["original_max_position_embeddings"])
        found.append(f"start llama.cpp with a context of at most {short} tokens for texts up to "
                     "that length: above it, it uses the factors for long texts throughout")
    return found


def head_dim(text: Any) -> int:
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def rotation(text: Any) -> dict[str, Any]:
    """The rotation's parameters; those of full attention where layers differ."""
    parameters: dict[str, Any] = text.rope_parameters or {}
    return parameters.get("full_attention", parameters)
