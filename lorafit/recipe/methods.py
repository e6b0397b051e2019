"""The methods that `adapter.method` names: one row each.

A row says which keys of the recipe a method takes, what they are called in peft, what they are
left at, and on which quantised bases it computes what it should. Nothing is imported here, so a
key that does not belong to a method is refused with its line before any library is loaded. What
the rows say is tested against peft's own configurations and by training each of them.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

# What a method puts its weights on, which decides what target_modules may say.
Where = Literal["linear", "norms", "embeddings", "weights", "layers", "prompt"]

BITS_4 = ("nf4", "fp4")
BITSANDBYTES = (*BITS_4, "int8")


@dataclass(frozen=True)
class Method:
    """A method, in the words of the recipe.

    summary: what it trains. config: peft's configuration class, empty for lorafit's own.
    fields: peft's name of each key of the recipe that the method takes. handled: further keys,
    which lorafit sees to itself. defaults: by key of the
    recipe. preset: peft's fields that are set otherwise than peft does. own_options: names in
    `adapter.options` of a method that is not peft's, with their values, the default first. where:
    what it adapts. quantized: stored formats of a base on which it trains what it should;
    why_not_quantized says why not on the others. merges: whether it can be merged into the base;
    otherwise why_not_merged says why. starts_elsewhere: why the model is not the base before the
    first step; empty where it is. needs_weights: its shapes follow from the base's weights, so it
    cannot be counted before they are loaded. needs_package: what is installed besides peft, as
    (import, name for pip). needs_option: an option without which it trains nothing. unused: peft's
    fields that have no effect here, with the reason. why_not_packed: why several sequences cannot
    stand in one row. why_not_recomputed: why activation checkpointing is refused.
    why_not_sharded: why its weights cannot be cut up among ranks.
    """

    summary: str
    config: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    preset: Mapping[str, Any] = field(default_factory=dict)
    handled: tuple[str, ...] = ()
    own_options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    where: Where = "linear"
    quantized: tuple[str, ...] = ()
    why_not_quantized: str = ("it computes with the base's weights, which are not numbers as they "
                              "are stored")
    why_not_merged: str = ""
    starts_elsewhere: str = ""
    needs_weights: bool = False
    needs_package: tuple[str, str] | None = None
    needs_option: str = ""
    unused: Mapping[str, str] = field(default_factory=dict)
    why_not_packed: str = ""
    calls_layers: bool = False  # itself, without telling them where sequences of a row end
    why_not_recomputed: str = ""
    why_not_sharded: str = ""

    @property
    def is_own(self) -> bool:
        return not self.config

    @property
    def merges(self) -> bool:
        return not self.why_not_merged

    @property
    def keys(self) -> frozenset[str]:
        """Keys of the adapter section that this method takes."""
        return frozenset({"method", "options", *_PLACES[self.where], *self.handled,
                          *self.fields})


def _peft(config: str, summary: str, fields: str = "", **row: Any) -> Method:
    """`fields`: keys of the recipe; `key=name` where peft calls it otherwise."""
    pairs = (word.partition("=") for word in fields.split())
    named = {key: name or key for key, _, name in pairs}
    if row.get("where") != "prompt" and row.pop("saves_modules", True):
        named["modules_to_save"] = "modules_to_save"
    row["defaults"] = {**_TARGETS[row.get("where", "linear")], **row.get("defaults", {})}
    return Method(summary, config, named, **row)


_PLACES: dict[str, tuple[str, ...]] = {
    "linear": ("target_modules", "exclude_modules", "layers"),
    "norms": ("target_modules", "exclude_modules", "layers"),
    "embeddings": ("target_modules",),
    "weights": ("target_modules", "exclude_modules", "layers"),
    "layers": ("layers",),
    "prompt": (),
}
_TARGETS: dict[str, dict[str, Any]] = {
    "linear": {"target_modules": "all-linear"},
    "norms": {"target_modules": "all-norms"},
    "embeddings": {"target_modules": "embeddings"},
    "weights": {"target_modules": "all-weights"},
    "layers": {}, "prompt": {},
}
_PROMPT = "its virtual tokens are no weight of the base"
_SEEN = "its virtual tokens are seen from the first step on"
_BEFORE_A_ROW = "its tokens stand before a row, and only the first sequence would have them"
_KEYS_GIVEN = "recomputing a layer would add its keys and values a second time"
_SHARED = "its layers share trained weights, which belong to no layer alone"
_PACKED = "it takes a layer's size from the stored weights, which 4 bits pack into another shape"

METHODS: Mapping[str, Method] = MappingProxyType({
    "lora": _peft(
        "LoraConfig", "A low-rank update B·A beside each layer (arXiv 2106.09685)",
        "rank=r alpha=lora_alpha dropout=lora_dropout bias rslora=use_rslora dora=use_dora "
        "init=init_lora_weights rank_pattern alpha_pattern",
        handled=("freeze_a", "init_rows", "experts", "rank_per_expert", "router"),
        defaults={"rank": 16, "alpha": 32}, quantized=BITSANDBYTES,
    ),
    "adalora": _peft(
        "AdaLoraConfig", "LoRA whose rank moves to where it matters (arXiv 2303.10512)",
        "rank=target_r alpha=lora_alpha dropout=lora_dropout",
        defaults={"rank": 8, "alpha": 16}, quantized=BITSANDBYTES,
        why_not_sharded="it compares whole factors with each other after every step",
    ),
    "adamss": _peft(
        "AdamssConfig", "Updates in clusters of each weight's singular space",
        "rank=r", defaults={"rank": 100}, needs_weights=True,
        needs_package=("sklearn", "scikit-learn"),
        unused=dict.fromkeys(
            ("use_asa", "asa_target_subspaces", "asa_importance_beta", "asa_uncertainty_beta",
             "asa_schedule_exponent", "init_warmup", "final_warmup", "mask_interval"),
            "subspaces are not moved during training"),
    ),
    "beft": _peft("BeftConfig", "A trained bias on each layer (arXiv 2509.15974)",
                  quantized=BITSANDBYTES,
                  why_not_merged="it adds biases that the base's layers do not have"),
    "boft": _peft(
        "BOFTConfig", "Orthogonal rotation in butterfly form (arXiv 2311.06243)",
        "dropout=boft_dropout bias", quantized=BITSANDBYTES,
    ),
    "c3a": _peft(
        "C3AConfig", "Circular convolution (arXiv 2407.19342)", "bias",
        preset={"init_weights": True},
        quantized=BITSANDBYTES,
    ),
    "cartridge": _peft(
        "CartridgeConfig", "A trained key-value cache before the prompt (arXiv 2506.06266)",
        where="prompt", preset={"num_virtual_tokens": 32}, quantized=BITSANDBYTES,
        why_not_merged=_PROMPT, starts_elsewhere=_SEEN, why_not_packed=_BEFORE_A_ROW,
        why_not_recomputed=_KEYS_GIVEN,
    ),
    "deft": _peft(
        "DeftConfig", "A low-rank part of the weights is replaced",
        "rank=r alpha dropout=deft_dropout bias", defaults={"rank": 8},
    ),
    "delora": _peft(
        "DeloraConfig", "LoRA with the update's strength trained apart (arXiv 2503.18225)",
        "rank=r bias rank_pattern", defaults={"rank": 8},
    ),
    "fourierft": _peft(
        "FourierFTConfig", "Coefficients of the update's Fourier transform (arXiv 2405.03003)",
        "bias", preset={"init_weights": True}, quantized=BITSANDBYTES,
    ),
    "frod": _peft(
        "FrodConfig", "A shared basis and sparse rotations (AAAI 2026)",
        "dropout=frod_dropout bias", preset={"progressbar": False}, needs_weights=True,
    ),
    "glora": _peft("GloraConfig", "Generalised LoRA on weights, inputs and biases "
                   "(arXiv 2306.07967)", "rank=r bias", defaults={"rank": 8}),
    "gralora": _peft(
        "GraloraConfig", "LoRA in blocks of each weight (arXiv 2505.20355)",
        "rank=r alpha dropout=gralora_dropout bias", defaults={"rank": 32, "alpha": 64},
        quantized=BITSANDBYTES,
    ),
    "hira": _peft(
        "HiraConfig", "A low-rank factor multiplied into each weight (ICLR 2025)",
        "rank=r dropout=hira_dropout rank_pattern", defaults={"rank": 32},
        quantized=BITSANDBYTES,
    ),
    "hra": _peft("HRAConfig", "A chain of Householder reflections (arXiv 2405.17484)",
                 "rank=r bias", defaults={"rank": 8}),
    "ia3": _peft("IA3Config", "A trained factor on each channel (arXiv 2205.05638)",
                 quantized=BITSANDBYTES),
    "llama_adapter": _peft(
        "AdaptionPromptConfig", "Trained prompts in the attention of the top layers "
        "(arXiv 2303.16199)", where="prompt", preset={"adapter_len": 10},
        quantized=BITSANDBYTES, why_not_merged="its prompts are seen by the top layers only",
    ),
    "ln_tuning": _peft("LNTuningConfig", "The layers' norms (arXiv 2312.11420)", where="norms",
                       quantized=BITSANDBYTES),
    "loha": _peft(
        "LoHaConfig", "Two low-rank products multiplied entry by entry (arXiv 2108.06098)",
        "rank=r alpha rank_pattern alpha_pattern", defaults={"rank": 8, "alpha": 8},
        quantized=("int8",), why_not_quantized=_PACKED,
    ),
    "lokr": _peft(
        "LoKrConfig", "A Kronecker product (arXiv 2309.14859)",
        "rank=r alpha rank_pattern alpha_pattern", defaults={"rank": 8, "alpha": 8},
        quantized=("int8",), why_not_quantized=_PACKED,
    ),
    "miss": _peft("MissConfig", "One shared matrix of shards (arXiv 2409.15371)",
                  "rank=r dropout=miss_dropout bias", defaults={"rank": 64},
                  quantized=BITSANDBYTES),
    "oft": _peft("OFTConfig", "Orthogonal rotation of blocks (arXiv 2306.07280)", "bias",
                 quantized=BITSANDBYTES),
    "osf": _peft("OSFConfig", "All but each weight's main singular directions (arXiv 2504.07097)",
                 why_not_sharded="its gradients are projected, which takes whole matrices"),
    "p_tuning": _peft(
        "PromptEncoderConfig", "Virtual tokens from a small network (arXiv 2103.10385)",
        where="prompt", preset={"num_virtual_tokens": 20}, quantized=BITSANDBYTES,
        why_not_merged=_PROMPT, starts_elsewhere=_SEEN, why_not_packed=_BEFORE_A_ROW,
    ),
    "peanut": _peft("PeanutConfig", "A small network that makes the update from the weight "
                    "(arXiv 2410.01870)",
                    "rank=r", defaults={"rank": 32}),
    "prefix_tuning": _peft(
        "PrefixTuningConfig", "Trained keys and values before the prompt (arXiv 2101.00190)",
        where="prompt", preset={"num_virtual_tokens": 20}, quantized=BITSANDBYTES,
        why_not_merged=_PROMPT, starts_elsewhere=_SEEN, why_not_packed=_BEFORE_A_ROW,
        why_not_recomputed=_KEYS_GIVEN,
    ),
    "prompt_tuning": _peft(
        "PromptTuningConfig", "Virtual tokens before the prompt (arXiv 2104.08691)",
        where="prompt", preset={"num_virtual_tokens": 20}, quantized=BITSANDBYTES,
        why_not_merged=_PROMPT, starts_elsewhere=_SEEN, why_not_packed=_BEFORE_A_ROW,
    ),
    "psoft": _peft(
        "PsoftConfig", "A rotation within each weight's main directions (PSOFT)",
        "rank=r alpha=psoft_alpha dropout=psoft_dropout",
        defaults={"rank": 32, "alpha": 32},
    ),
    "pvera": _peft(
        "PveraConfig", "VeRA with a trained random spread (arXiv 2512.07703)",
        "rank=r dropout=pvera_dropout bias",
        defaults={"rank": 256}, quantized=BITSANDBYTES,
    ),
    "randlora": _peft(
        "RandLoraConfig", "A full-rank update from random matrices (arXiv 2502.00987)",
        "rank=r alpha=randlora_alpha dropout=randlora_dropout bias",
        defaults={"rank": 32, "alpha": 640}, quantized=BITSANDBYTES,
    ),
    "road": _peft("RoadConfig", "Rotation and scaling in pairs of channels (arXiv 2409.00119)",
                  quantized=BITSANDBYTES),
    "shadow": _peft(
        "ShadowConfig", "A small parallel model whose state is fed into each block",
        "rank=r alpha=shadow_alpha dropout=shadow_dropout", where="layers", saves_modules=False,
        defaults={"rank": 8, "alpha": 0.1, "dropout": 0.2}, quantized=BITSANDBYTES,
        calls_layers=True,
        why_not_sharded="it computes with weights of layers outside of those layers' own pass",
        unused={"auxiliary_loss_weight": "the loss is that of the adapted model alone"},
        why_not_merged="it computes beside the layers, not in their weights",
    ),
    "shira": _peft("ShiraConfig", "Few entries of each weight (arXiv 2406.13175)",
                   "rank=r", defaults={"rank": 32}, needs_weights=True, quantized=BITSANDBYTES),
    "supertuning": _peft("SupertuningConfig", "The largest entries of each weight "
                          "(arXiv 2607.09287)"),
    "tinylora": _peft("TinyLoraConfig", "A handful of parameters in fixed random bases "
                      "(arXiv 2602.04118)", "rank=r dropout=tinylora_dropout bias",
                      defaults={"rank": 2}, why_not_sharded=_SHARED),
    "trainable_tokens": _peft(
        "TrainableTokensConfig", "Embeddings of chosen tokens", where="embeddings",
        quantized=BITSANDBYTES, saves_modules=False, needs_option="token_indices",
    ),
    "unilora": _peft("UniLoraConfig", "One short vector for all of LoRA (arXiv 2506.00799)",
                     "rank=r dropout=unilora_dropout bias", defaults={"rank": 4},
                     why_not_sharded=_SHARED,
                     starts_elsewhere="its vector starts at random; at zero it would stay there",
                     why_not_quantized="its scales would be rounded to whole numbers, as the "
                     "weights are stored, and so to 0: nothing would be trained"),
    "vblora": _peft("VBLoRAConfig", "LoRA from a shared bank of vectors (arXiv 2405.15179)",
                    "rank=r dropout=vblora_dropout bias", defaults={"rank": 4},
                    why_not_sharded=_SHARED,
                    starts_elsewhere="its bank starts at random; at zero it would stay there",
                    quantized=BITSANDBYTES),
    "vera": _peft("VeraConfig", "Shared random matrices, trained scales (arXiv 2310.11454)",
                  "rank=r dropout=vera_dropout bias", defaults={"rank": 256},
                  quantized=BITSANDBYTES),
    "waveft": _peft("WaveFTConfig", "Coefficients of the update's wavelet transform "
                    "(arXiv 2505.12532)", "bias", quantized=BITSANDBYTES),
    "bottleneck": Method(
        "Two small layers after each block (arXiv 1902.00751, 2005.00247)",
        fields={"rank": "rank", "dropout": "dropout"}, defaults={"rank": 64},
        own_options={"placement": ("pfeiffer", "houlsby"),
                     "activation": ("gelu", "relu", "silu", "tanh")},
        where="layers", quantized=BITSANDBYTES,
        why_not_merged="it computes after the layers, not in their weights",
    ),
    "paca": Method(
        "r input columns of each weight itself (arXiv 2503.01905)",
        fields={"rank": "rank"}, defaults={"rank": 16, "target_modules": "all-linear"},
        quantized=BITSANDBYTES,
        why_not_sharded="it writes into weights that are gathered anew for every pass",
    ),
    "full": Method(
        "The weights themselves: all of them, or those of some layers",
        defaults={"target_modules": "all-weights"}, where="weights",
        why_not_quantized="it trains the stored weights themselves",
    ),
})

# What peft builds, but not from rows of text alone, or not for a causal language model.
NOT_OFFERED: Mapping[str, str] = MappingProxyType({
    "cpt": "it needs token types of a worked example, and a loss of its own",
    "lily": "its mixture is a mean over all tokens of a micro-batch, later ones, padding and other "
            "rows included, so what is learnt depends on the batch and is not what generates",
    "multitask_prompt_tuning": "it needs the number of a task in each row",
    "poly": "it needs the number of a task in each row",
    "xlora": "peft writes down where the LoRA adapters lie that it mixes, not the adapters "
             "themselves, so that what is saved cannot be loaded by itself",
})


def method_named(name: str) -> Method:
    """The row of a method. ValueError, with the nearest name, when there is none."""
    if name in METHODS:
        return METHODS[name]
    if name in NOT_OFFERED:
        raise ValueError(f"{name} is not offered: {NOT_OFFERED[name]}")
    plain = name.lower().replace("-", "_").replace(" ", "_")
    close = difflib.get_close_matches(_ALSO_CALLED.get(plain, plain), METHODS, 1, 0.6)
    hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(sorted(METHODS))}"
    raise ValueError(f"unknown method {name!r}; {hint}")


_ALSO_CALLED = {
    "adaption_prompt": "llama_adapter", "bone": "miss", "full_finetuning": "full",
    "full_fine_tuning": "full", "freeze": "full", "houlsby": "bottleneck",
    "pfeiffer": "bottleneck", "adapter": "bottleneck", "qlora": "lora", "dora": "lora",
    "rslora": "lora", "pissa": "lora", "prefix": "prefix_tuning", "soft_prompt": "prompt_tuning",
    "layernorm_tuning": "ln_tuning", "lora_fa": "lora",
}


def refusal_on(name: str, stored: str) -> str:
    """Why a method is not offered on a base stored as `stored`, and what is."""
    works = [other for other in ("lora", "oft", "miss", "vera", "ia3")
             if stored in METHODS[other].quantized]
    nearest = f"use {' or '.join(works[:3])}, or " if works else ""
    return (f"adapter.method {name} cannot be trained on a base in {stored}: "
            f"{METHODS[name].why_not_quantized}; "
            f"{nearest}model.quantization: none")
