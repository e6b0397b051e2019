"""What a recipe trains, counted from shapes, against an adapter that is put on the model."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lorafit.errors import UserError
from lorafit.model.adapters.add import add_adapter
from lorafit.model.adapters.facts import describe
from lorafit.plan.shapes import shapes_of
from lorafit.plan.trained import trained_of
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.schema import Model

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 320}
MODELS = {
    "llama": SMALL | {"attention_bias": True},
    "qwen3_moe": SMALL | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 320, "n_positions": 128},
}
CASES = [
    ("llama", {}), ("llama", {"rank": 8, "target_modules": ["q_proj", "v_proj"]}),
    ("llama", {"target_modules": r".*\.(q|k)_proj"}), ("llama", {"dora": True}),
    ("llama", {"freeze_a": True}), ("llama", {"bias": "lora_only", "target_modules": ["q_proj"]}),
    ("llama", {"bias": "all"}), ("llama", {"modules_to_save": ["lm_head"]}),
    ("llama", {"modules_to_save": ["norm"]}), ("llama", {"layers": "last:1"}),
    ("llama", {"exclude_modules": ["down_proj"], "rank_pattern": {"q_proj": 3}}),
    ("llama", {"target_modules": ["q_proj", "lm_head"]}),
    ("qwen3_moe", {}), ("qwen3_moe", {"experts": "shared"}), ("qwen3_moe", {"experts": "none"}),
    ("qwen3_moe", {"rank_per_expert": True, "router": True}),
    ("qwen3_moe", {"experts": "shared", "freeze_a": True}), ("gpt2", {}),
    ("llama", {"method": "paca"}), ("gpt2", {"method": "paca", "rank": 4}),
    ("llama", {"method": "full"}), ("llama", {"method": "full", "layers": [1, 2]}),
    ("llama", {"method": "full", "target_modules": ["q_proj", "norm"]}),
    ("gpt2", {"method": "full"}),
]


@pytest.mark.parametrize(("name", "words"), CASES, ids=str)
def test_counted_as_trained(name, words, tmp_path):
    config = AutoConfig.for_model(name, **MODELS[name])
    config.save_pretrained(tmp_path)
    section = Adapter(**words)
    found = trained_of(shapes_of(Model(base=str(tmp_path))), section)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    trained = describe(add_adapter(model, section, 0, "")).trainable_parameters
    assert found.parameters == trained
    layers = [int(key.split("layers.")[1].split(".")[0]) for key, p in model.named_parameters()
              if p.requires_grad and "layers." in key]
    if found.lowest_layer:
        assert found.lowest_layer == min(layers)


def test_what_matches_nothing_is_refused():
    shapes = shapes_of(Model(base="tiny"))
    for section, said in ((Adapter(target_modules=["q_prj"]), "q_prj matches no layer"),
                          (Adapter(modules_to_save=["ln_f"]), "ln_f matches no layer"),
                          (Adapter(layers=[9]), "there is no layer 9"),
                          (Adapter(rank=300), "rank 300 is above the smaller side"),
                          (Adapter(method="full", target_modules=["ln_f"]), "leave no layer")):
        with pytest.raises(UserError, match=said):
            trained_of(shapes, section)


def test_a_method_that_is_not_counted_says_so():
    found = trained_of(shapes_of(Model(base="tiny")), Adapter(method="ia3"))
    assert found.parameters is None
    assert found.adapted
