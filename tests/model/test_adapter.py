"""Adapters on real architectures: exact counts, the right layers, and files that load again."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from lorafit.errors import UserError
from lorafit.model.adapters.add import add_adapter
from lorafit.model.adapters.facts import describe
from lorafit.model.adapters.files import check_adapter_files, load_adapter, save_adapter
from lorafit.model.base import TINY, load_base, meta_model
from lorafit.model.targets import resolve_targets
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.schema import Model

LLAMA_3_2_3B = LlamaConfig(
    vocab_size=128256, hidden_size=3072, intermediate_size=8192, num_hidden_layers=28,
    num_attention_heads=24, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
)
LLAMA_3_1_8B = LlamaConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False,
)


def tiny(dtype: str = "float32", quantization: str = "none"):
    section = Model(base="tiny", dtype=dtype, quantization=quantization)
    return load_base(section, dtype, "eager", torch.device("cpu"))


def test_llama_3_2_3b_at_rank_16_has_the_published_count():
    facts = describe(add_adapter(meta_model(LLAMA_3_2_3B), Adapter(rank=16), 0, "meta"))
    assert facts.trainable_parameters == 24_313_856
    assert facts.total_parameters == 3_237_063_680


def test_llama_3_1_8b_at_rank_16_has_the_published_count():
    facts = describe(add_adapter(meta_model(LLAMA_3_1_8B), Adapter(rank=16), 0, "meta"))
    assert facts.trainable_parameters == 41_943_040


def test_a_square_layer_has_r_times_in_plus_out_parameters():
    facts = describe(add_adapter(
        meta_model(LLAMA_3_1_8B), Adapter(rank=8, target_modules=["q_proj"], layers=[0]), 0, "m"))
    assert facts.trainable_parameters == 65_536
    assert facts.kinds[0].shape == "4096 × 4096"


def test_a_four_bit_base_is_counted_by_the_weights_it_stands_for():
    full = describe(add_adapter(tiny(), Adapter(rank=4), 0, "tiny"))
    small = describe(add_adapter(tiny("bfloat16", "nf4"), Adapter(rank=4), 0, "tiny"))
    assert small.total_parameters == full.total_parameters
    assert small.trainable_parameters == full.trainable_parameters


@pytest.mark.parametrize(("adapter", "expected"), [
    ({"target_modules": ["q_proj", "v_proj"]}, {"self_attn.q_proj", "self_attn.v_proj"}),
    ({"target_modules": r".*\.mlp\.(up|down)_proj"}, {"mlp.up_proj", "mlp.down_proj"}),
    ({"exclude_modules": ["gate_proj", "up_proj", "down_proj"]},
     {f"self_attn.{x}_proj" for x in "qkvo"}),
])
def test_target_words_choose_the_layers(adapter, expected):
    facts = describe(add_adapter(tiny(), Adapter(rank=4, **adapter), 0, "tiny"))
    assert {kind.kind for kind in facts.kinds} == expected


def test_all_linear_leaves_the_output_head_out():
    facts = describe(add_adapter(tiny(), Adapter(rank=4), 0, "tiny"))
    assert {kind.kind for kind in facts.kinds} == {
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    }


def test_top_layers_only_adapts_those():
    model = add_adapter(tiny(), Adapter(rank=4, layers="last:1"), 0, "tiny")
    trained = {name.split(".layers.")[1].split(".")[0]
               for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {str(model.config.num_hidden_layers - 1)}


def test_realised_scales_follow_patterns_and_rslora():
    facts = describe(add_adapter(tiny(), Adapter(
        rank=16, alpha=32, rslora=True, target_modules=["q_proj", "v_proj"],
        rank_pattern={"q_proj": 4}, alpha_pattern={"v_proj": 8}), 0, "tiny"))
    scales = {kind.kind: (kind.rank, kind.scale) for kind in facts.kinds}
    assert scales == {"self_attn.q_proj": (4, 16.0), "self_attn.v_proj": (16, 2.0)}


@pytest.mark.parametrize(("family", "router"), [
    ("qwen3_moe", "mlp.gate"), ("mixtral", "mlp.gate"), ("gpt_oss", "mlp.router"),
])
def test_a_mixture_adapts_its_experts_and_leaves_the_router_alone(shrunken, family, router):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(shrunken(family))
    model = add_adapter(meta_model(config), Adapter(rank=4, alpha=8), 0, "moe")
    kinds = {kind.kind: kind for kind in describe(model).kinds}
    experts = {name: kind for name, kind in kinds.items() if "experts" in name}
    assert len(experts) == 2
    assert {kind.scale for kind in kinds.values()} == {2.0}
    assert not any(name.startswith(router) for name in kinds)


def test_patterns_give_experts_their_own_rank_at_the_same_scale(shrunken):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(shrunken("qwen3_moe"))
    experts = {"experts.gate_up_proj": 2, "experts.down_proj": 2}
    facts = describe(add_adapter(meta_model(config), Adapter(
        rank=8, alpha=16, rank_pattern=experts,
        alpha_pattern=dict.fromkeys(experts, 4)), 0, "moe"))
    assert {kind.scale for kind in facts.kinds} == {2.0}
    assert {kind.rank for kind in facts.kinds if "experts" in kind.kind} == {2}


@pytest.mark.parametrize(("adapter", "message"), [
    ({"target_modules": ["q_prj"]}, "did you mean q_proj"),
    ({"target_modules": r"nothing\..*"}, "matches no layer"),
    ({"target_modules": ["input_layernorm"]}, "cannot adapt"),
    ({"modules_to_save": ["lm_hed"]}, "did you mean lm_head"),
    ({"layers": [99]}, "no layer 99"),
    ({"layers": "last:99"}, "fewer than 99"),
    ({"rank_pattern": {"nothing": 4}}, "matches no adapted layer"),
    ({"bias": "all"}, "no bias"),
])
def test_what_does_not_fit_the_model_is_refused_with_a_remedy(adapter, message):
    with pytest.raises(UserError, match=message):
        add_adapter(meta_model(tiny().config), Adapter(rank=4, **adapter), 0, "tiny")


def test_dropout_on_fused_experts_is_refused(shrunken):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(shrunken("mixtral"))
    with pytest.raises(UserError, match="dropout"):
        resolve_targets(meta_model(config), Adapter(dropout=0.1))


def test_only_the_adapter_has_gradients():
    model = add_adapter(tiny(), Adapter(rank=4), 0, "tiny")
    ids = torch.arange(10)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name), name


def test_plain_peft_loads_what_is_saved_with_bit_equal_logits(tmp_path):
    from peft import PeftModel

    model = add_adapter(tiny(), Adapter(rank=4), 0, "tiny")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    ids = torch.arange(5, 40)[None]
    model.eval()
    with torch.inference_mode():
        wanted = model(input_ids=ids).logits
    save_adapter(tmp_path, model)
    again = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32,
                                             attn_implementation="eager"), tmp_path)
    with torch.inference_mode():
        assert torch.equal(again(input_ids=ids).logits, wanted)


def test_equal_adapters_are_equal_bytes_whatever_the_hash_seed(tmp_path):
    """peft keeps names in sets, whose order differs from process to process."""
    import os
    import subprocess
    import sys

    script = ("import sys, torch\nfrom pathlib import Path\n"
              "from lorafit.model.adapters.add import add_adapter\n"
              "from lorafit.model.adapters.files import save_adapter\n"
              "from lorafit.model.base import load_base\n"
              "from lorafit.recipe.adapter import Adapter\n"
              "from lorafit.recipe.schema import Model\n"
              "base = load_base(Model(base='tiny'), 'float32', 'eager', torch.device('cpu'))\n"
              "model = add_adapter(base, Adapter(rank=2), 0, 'tiny')\n"
              "path = Path(sys.argv[1]); path.mkdir(); save_adapter(path, model)\n")
    contents = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        subprocess.run([sys.executable, "-c", script, str(folder)], check=True,
                       env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True)
        contents.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert contents[0] == contents[1]


def test_damaged_and_foreign_adapters_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such run or adapter"):
        check_adapter_files(tmp_path / "missing")
    model = add_adapter(tiny(), Adapter(rank=4), 0, "tiny")
    save_adapter(tmp_path, model)
    weights = tmp_path / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        check_adapter_files(tmp_path)
    weights.unlink()
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="pickle"):
        check_adapter_files(tmp_path)


def test_an_adapter_of_another_base_is_refused(tmp_path, shrunken):
    save_adapter(tmp_path, add_adapter(tiny(), Adapter(rank=4), 0, "tiny"))
    other = Model(base=str(shrunken("qwen3")))
    with pytest.raises(UserError, match="does not fit the base"):
        load_adapter(load_base(other, "float32", "eager", torch.device("cpu")), tmp_path)


def test_saved_configuration_is_what_was_asked_for(tmp_path):
    model = add_adapter(tiny(), Adapter(rank=8, alpha=24, dropout=0.1, rslora=True), 0, "tiny")
    save_adapter(tmp_path, model)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"], config["use_rslora"]) == (
        8, 24, 0.1, True)
    assert config["target_modules"] == sorted(config["target_modules"])
