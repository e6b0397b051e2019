"""Shapes from config.json and from headers, against models that transformers builds."""

import json
import struct
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lorafit.errors import UserError
from lorafit.model.choice import chosen_weights, low_rank_cost
from lorafit.model.inventory import stack_of, weights_of
from lorafit.plan.shapes import shapes_of
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.schema import Model

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "vocab_size": 320}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
FAMILIES = {
    "llama": SMALL, "llama, biases": SMALL | {"attention_bias": True, "mlp_bias": True},
    "llama, tied": SMALL | {"tie_word_embeddings": True},
    "mistral": SMALL, "granite": SMALL, "qwen2": SMALL | {"head_dim": 16}, "qwen3": SMALL,
    "gemma": SMALL, "gemma2": SMALL, "gemma3_text": SMALL, "phi3": SMALL | {
        "head_dim": 16, "pad_token_id": 0},
    "mixtral": SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": SMALL | MIXTURE,
    "qwen3_moe, some dense": SMALL | MIXTURE | {"mlp_only_layers": [1]},
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 320, "n_positions": 128},
}
# Known from the headers of their files only.
OTHERS = {
    "opt": {"hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
            "vocab_size": 320, "word_embed_proj_dim": 64},
    "gpt_neox": SMALL, "olmo2": SMALL, "stablelm": SMALL,
    "deepseek_v3": SMALL | {
        "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
        "moe_intermediate_size": 48, "first_k_dense_replace": 1, "q_lora_rank": 32,
        "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16},
}


def built(name: str, numbers: dict[str, object]):
    config = AutoConfig.for_model(name.split(",")[0], **numbers)
    with torch.device("meta"):
        return config, AutoModelForCausalLM.from_config(config)


def agrees(found, model) -> None:
    wanted = weights_of(model)
    assert {(w.label, w.part, w.shape) for w in found.weights} == {
        (w.label, w.part, w.shape) for w in wanted}
    assert found.parameters == sum(p.numel() for p in model.parameters())
    # Conv1D's weights are turned round.
    assert {name: sorted(shape) for name, shape in found.tensors.items()} == {
        name: sorted(p.shape) for name, p in model.named_parameters()}
    assert (found.stack.layers, found.stack.active_experts) == (
        stack_of(model).layers, stack_of(model).active_experts)


@pytest.mark.parametrize("name", FAMILIES)
def test_from_the_configuration_alone(name, tmp_path):
    config, model = built(name, FAMILIES[name])
    config.save_pretrained(tmp_path)
    found = shapes_of(Model(base=str(tmp_path)))
    agrees(found, model)
    assert found.file_bytes is None
    assert "config.json" in found.remarks[0]


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS])
def test_from_headers(name, tmp_path):
    config, _ = built(name, (FAMILIES | OTHERS)[name])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    found = shapes_of(Model(base=str(tmp_path)))
    agrees(found, model)
    assert found.file_bytes is not None
    assert found.remarks == ()


def header_only(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of the right size without a block of data in it."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.parametrize(("numbers", "trained", "parameters"), [
    ({"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
      "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
      "tie_word_embeddings": True}, 24_313_856, 3_237_063_680 - 24_313_856),
    ({"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
      "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
     41_943_040, 8_030_261_248),
], ids=["Llama-3.2-3B", "Llama-3.1-8B"])
@pytest.mark.parametrize("with_headers", [False, True])
def test_the_exact_counts_of_llama(numbers, trained, parameters, with_headers, tmp_path):
    config, model = built("llama", numbers)
    config.save_pretrained(tmp_path)
    if with_headers:
        header_only(tmp_path, {name: tuple(p.shape) for name, p in model.named_parameters()})
    found = shapes_of(Model(base=str(tmp_path)))
    assert found.parameters == parameters
    section = Adapter(rank=16)
    chosen = chosen_weights(found.stack, section, list(found.weights))
    assert sum(low_rank_cost(found.stack, section, weight) for weight in chosen) == trained


def test_an_architecture_that_cannot_be_sized_is_told_with_what_is_certain(tmp_path):
    config, _ = built("opt", OTHERS["opt"])
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"opt cannot be sized.*20,480 parameters"):
        shapes_of(Model(base=str(tmp_path)))


def test_a_configuration_without_the_needed_numbers(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 320}')
    with pytest.raises(UserError, match="lacks hidden_size, num_hidden_layers, "
                                        "num_attention_heads"):
        shapes_of(Model(base=str(tmp_path)))


def test_no_torch_is_imported():
    import subprocess
    import sys

    script = ("import sys; from lorafit.plan.shapes import shapes_of; "
              "from lorafit.recipe.schema import Model; shapes_of(Model(base='tiny')); "
              "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
