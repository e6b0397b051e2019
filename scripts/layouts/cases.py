"""Features of a recipe, and layouts that it is trained in."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TINY = Path(__file__).parent.parent.parent / "lorafit" / "model" / "tiny"
Changes = dict[str, dict[str, Any]]
REFUSED, OTHER_MASKS = "refused", "other masks"


@dataclass(frozen=True)
class Feature:
    """What a recipe asks for. base: the embedded one, or a shrunken one (`make_base`). is_padded:
    rows are, which slices of rows are refused for. has_dropout: each slice draws masks of its own.
    """

    name: str
    changes: Changes = field(default_factory=dict)
    base: str = "tiny"
    is_padded: bool = False
    has_dropout: bool = False


@dataclass(frozen=True)
class Leg:
    """A part of a run: processes, options of the command, and the step after which another layout
    goes on; None to the end."""

    processes: int
    options: tuple[str, ...] = ()
    until: int | None = None


@dataclass(frozen=True)
class Layout:
    """How a run is spread, one leg after the other."""

    name: str
    legs: tuple[Leg, ...]

    def instead(self, feature: Feature) -> str:
        """What is expected in place of the same model: REFUSED, OTHER_MASKS, or nothing."""
        if not any("--context-parallel" in leg.options for leg in self.legs):
            return ""
        return REFUSED if feature.is_padded else OTHER_MASKS if feature.has_dropout else ""


DDP, FSDP = ("--strategy", "ddp"), ("--strategy", "fsdp")
SLICED = ("--context-parallel", "2")

FEATURES = (
    Feature("padded, ragged rows", {"training": {"batching": "padded"}},
            is_padded=True),
    Feature("padding-free", {"training": {"batching": "padding_free"}}),
    Feature("packed", {"training": {"batching": "packed", "micro_batch_size": 1}}),
    Feature("one row at a time", {"training": {"micro_batch_size": 1}}),
    Feature("shares that do not divide", {"training": {"batch_size": 5}}),
    Feature("weighted messages", {"data": {"train": "weighted.jsonl"}}),
    Feature("streamed rows", {"data": {"streaming": True}}),
    Feature("clipped gradients", {"training": {"max_grad_norm": 0.1}}),
    Feature("dropout 0.1", {"adapter": {"dropout": 0.1}}, has_dropout=True),
    Feature("activation checkpointing", {"training": {"activation_checkpointing": "full"}}),
    Feature("DoRA, rsLoRA", {"adapter": {"dora": True, "rslora": True}}),
    Feature("LoRA+", {"training": {"lora_plus_ratio": 4}}),
    Feature("PiSSA", {"adapter": {"init": "pissa"}}),
    Feature("embeddings and head trained",
            {"adapter": {"modules_to_save": ["embed_tokens", "lm_head"]}}, base="llama"),
    Feature("nf4 base", {"model": {"quantization": "nf4"}}),
    Feature("full fine-tuning", {"adapter": {"method": "full", "rank": None, "alpha": None}}),
    Feature("Llama, shrunken", base="llama"),
    Feature("Llama, shrunken, packed, nf4",
            {"model": {"quantization": "nf4"}, "training": {"batching": "packed",
                                                            "micro_batch_size": 1}}, base="llama"),
    Feature("Qwen3-MoE, shrunken", base="qwen3_moe"),
    Feature("Qwen3-MoE, LoRA on experts", {"adapter": {"experts": "each"}}, base="qwen3_moe"),
)

LAYOUTS = (
    Layout("DDP, 2", (Leg(2, DDP),)),
    Layout("DDP, 4", (Leg(4, DDP),)),
    Layout("FSDP2, 2", (Leg(2, FSDP),)),
    Layout("FSDP2, 4", (Leg(4, FSDP),)),
    Layout("FSDP2, 2, offloaded", (Leg(2, (*FSDP, "--cpu-offload")),)),
    Layout("rows shared by 2", (Leg(2, (*DDP, *SLICED)),)),
    Layout("FSDP2, 4, rows shared by 2", (Leg(4, (*FSDP, *SLICED)),)),
    Layout("DDP 2, then 1, then FSDP2 4", (Leg(2, DDP, 2), Leg(1, (), 4), Leg(4, FSDP))),
    Layout("FSDP2 2, then DDP 4, then 1", (Leg(2, FSDP, 2), Leg(4, DDP, 4), Leg(1))),
)


def make_base(kind: str, folder: Path) -> str:
    """A shrunken model of random weights with the embedded base's tokenizer; its name in a recipe.
    """
    if kind == "tiny":
        return kind
    path = folder / kind
    if path.exists():
        return str(path)
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    vocabulary = _vocabulary()
    sizes = {"vocab_size": vocabulary, "hidden_size": 64, "num_hidden_layers": 3,
             "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16,
             "max_position_embeddings": 512, "tie_word_embeddings": False}
    torch.manual_seed(0)
    model: Any
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(intermediate_size=160, **sizes))
    else:
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(
            intermediate_size=96, moe_intermediate_size=48, num_experts=4, num_experts_per_tok=2,
            **sizes))
    model.save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (TINY / name).exists():
            shutil.copy(TINY / name, path / name)
    return str(path)


def _vocabulary() -> int:
    import json

    size: int = json.loads((TINY / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    return size
