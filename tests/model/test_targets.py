"""Which layers a recipe's words mean: exactly those, whatever the architecture, and never by
accident in silence."""

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, LlamaConfig

from lorafit.errors import UserError
from lorafit.model.adapters.add import add_adapter
from lorafit.model.adapters.facts import describe
from lorafit.model.adapters.files import load_adapter, save_adapter
from lorafit.model.base import load_base, load_config, meta_model
from lorafit.model.inventory import decoder_layers, is_linear, weights_of
from lorafit.model.named_modules import matched_names
from lorafit.model.survey import survey
from lorafit.model.targets import resolve_targets
from lorafit.model.weights import endings, layer_kind
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.schema import Model

TINY = Model(base="tiny")


def tiny() -> Any:
    return load_base(TINY, "float32", "eager", torch.device("cpu"))


def shapes() -> Any:
    return meta_model(load_config(TINY))


def adapted_names(model: Any) -> set[str]:
    """The layers that peft put an adapter on, by their names in the base."""
    return {name.removeprefix("base_model.model.").partition(".lora_")[0]
            for name, _ in model.named_parameters() if ".lora_A." in name}


def problem(section: Adapter, model: Any = None) -> str:
    with pytest.raises(UserError) as caught:
        resolve_targets(model or shapes(), section)
    return str(caught.value)


@pytest.mark.parametrize(("keys", "expected"), [
    ({"target_modules": r".*\.(q|v)_proj", "layers": [1, 3]},
     r"model\.layers\.[13]\.self_attn\.[qv]_proj"),
    ({"target_modules": ["q_proj", "down_proj"], "layers": "last:2"},
     r"model\.layers\.[23]\.(self_attn\.q|mlp\.down)_proj"),
    ({"layers": [0], "exclude_modules": r".*mlp.*"}, r"model\.layers\.0\.self_attn\.\w+"),
    ({"exclude_modules": ["mlp"]}, r"model\.layers\.\d\.self_attn\.\w+"),
    ({"target_modules": ["lm_head", "embed_tokens"]}, r"lm_head|model\.embed_tokens"),
    ({"target_modules": ["1.self_attn.q_proj"]}, r"model\.layers\.1\.self_attn\.q_proj"),
    ({"modules_to_save": ["mlp"]}, r"model\.layers\.\d\.self_attn\.\w+"),
])
def test_words_layers_and_exclusions_mean_exactly_these_layers(keys, expected):
    section = Adapter(**keys)
    model = tiny()
    wanted = {name for name, module in model.named_modules()
              if (is_linear(module) or isinstance(module, nn.Embedding))
              and re.fullmatch(expected, name)}
    assert set(matched_names(model, section)) == wanted
    found = {name for name in adapted_names(add_adapter(model, section, 0, "tiny"))
             if "modules_to_save" not in name}
    if "embed_tokens" in expected:
        found.add("model.embed_tokens")  # its factors have names of their own
    assert found == wanted


@pytest.mark.parametrize("family", [
    "llama", "gpt2", "gpt_neox", "opt", "phi", "falcon", "gemma2", "qwen2_moe", "jetmoe",
    "llama4_text", "afmoe", "phimoe", "mamba", "granitemoehybrid"])
def test_every_linear_layer_of_an_architecture_is_listed_once_with_its_shape(family):
    config = AutoConfig.for_model(family)
    config.num_hidden_layers = 2
    model = meta_model(config)
    weights = {weight.name: weight for weight in weights_of(model)}
    assert len(weights) == len(weights_of(model))
    for name, module in model.named_modules():
        if is_linear(module):
            held = weights.pop(name)
            stored = tuple(module.weight.shape)
            is_turned = type(module).__name__ == "Conv1D"
            assert held.shape == (stored[::-1] if is_turned else stored)
            assert (held.part == "head") == (module is model.get_output_embeddings())
    assert all(weight.is_parameter or weight.part == "embeddings"
               or isinstance(model.get_submodule(name), nn.Embedding)
               for name, weight in weights.items())
    adapted = {weight.name for weight in resolve_targets(model, Adapter(rank=1)).chosen}
    left_out = {weight.part for weight in weights_of(model) if weight.name not in adapted}
    assert left_out <= {"head", "embeddings", "router"}
    assert not any(weight.part == "embeddings" for weight in weights_of(model)
                   if weight.name in adapted)


@pytest.mark.parametrize(("family", "routers"), [
    ("qwen2_moe", {"mlp.gate", "mlp.shared_expert_gate"}), ("llama4_text", {"feed_forward.router"}),
    ("afmoe", {"mlp.router.gate"}), ("jetmoe", {"mlp.router.layer",
                                                "self_attention.experts.router.layer"}),
    ("gpt_oss", {"mlp.router"}), ("llama", set()),
])
def test_routers_are_told_from_the_gates_of_an_mlp(family, routers):
    config = AutoConfig.for_model(family)
    config.num_hidden_layers = 4
    found = {layer_kind(weight.label) for weight in weights_of(meta_model(config))
             if weight.part == "router"}
    assert found == routers


NAMES = st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4).map(".".join),
                 min_size=1, max_size=12, unique=True)


@given(names=NAMES, wanted=st.sets(st.integers(0, 11)))
def test_endings_catch_every_wanted_name_and_no_other_but_longer_ones(names, wanted):
    chosen = [name for number, name in enumerate(names) if number in wanted]
    others = [name for name in names if name not in chosen]
    words = endings(chosen, others)
    caught = {name for name in names
              if any(name == word or name.endswith(f".{word}") for word in words)}
    assert set(chosen) <= caught
    # `a` cannot be told from `b.a` by its ending; full names in a model begin at the model.
    assert all(any(other.endswith(f".{name}") for name in chosen) for other in caught - set(chosen))


def test_overlapping_patterns_mean_the_same_after_saving(tmp_path):
    """The first pattern that matches counts, and a saved configuration is sorted by name."""
    section = Adapter(rank=4, alpha=8, target_modules=["q_proj", "v_proj"],
                      rank_pattern={"q_proj": 2, r".*layers\.0\..*": 6},
                      alpha_pattern={"v_proj": 16, r".*layers\.1\..*": 2})
    model = add_adapter(tiny(), section, 0, "tiny")
    got = {name: (module.r["default"], module.lora_alpha["default"])
           for name, module in model.named_modules() if hasattr(module, "lora_alpha")}
    base = "base_model.model.model.layers"
    assert got[f"{base}.0.self_attn.q_proj"] == (2, 8)
    assert got[f"{base}.0.self_attn.v_proj"] == (6, 16)
    assert got[f"{base}.1.self_attn.q_proj"] == (2, 2)
    assert got[f"{base}.1.self_attn.v_proj"] == (4, 16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    save_adapter(tmp_path, model)
    ids = torch.arange(5, 40)[None]
    with torch.inference_mode():
        wanted = model.eval()(input_ids=ids).logits
        assert torch.equal(load_adapter(tiny(), tmp_path)(input_ids=ids).logits, wanted)


@pytest.mark.parametrize(("keys", "words"), [
    ({"target_modules": ["q_porj"]}, "did you mean q_proj?"),
    ({"target_modules": ["proj"]}, "proj matches no layer of the model"),
    ({"target_modules": "q_proj"}, "the expression 'q_proj' matches no layer"),
    ({"target_modules": ["input_layernorm"]}, "is a LlamaRMSNorm, which LoRA cannot adapt"),
    ({"exclude_modules": "q_proj"}, "adapter.exclude_modules: the expression 'q_proj' matches no"),
    ({"exclude_modules": ["qproj"]}, "adapter.exclude_modules: qproj matches no layer"),
    ({"exclude_modules": ["layers"]}, "leave no layer to adapt"),
    ({"rank_pattern": {"qproj": 2}}, "adapter.rank_pattern: 'qproj' matches no adapted layer"),
    ({"alpha_pattern": {"lm_head": 2}}, "'lm_head' matches no adapted layer"),
    ({"modules_to_save": ["lmhead"]}, "did you mean lm_head?"),
    ({"layers": [4]}, "there is no layer 4; the model has 0 to 3"),
    ({"target_modules": ["lm_head"], "layers": [1]}, "leave no layer to adapt"),
])
def test_words_that_mean_nothing_are_refused(keys, words):
    assert words in problem(Adapter(**keys))


@pytest.mark.parametrize(("keys", "words"), [
    ({"target_modules": ".*"}, "the expression '.*' also means model.embed_tokens, lm_head"),
    ({"target_modules": ".*", "exclude_modules": ["embed_tokens", "lm_head"]}, None),
    ({"target_modules": r".*_proj"}, None),
    ({"target_modules": ["lm_head"]}, None),  # it is named
    ({"target_modules": ["q_proj"], "exclude_modules": ["k_proj"]}, "leaves out nothing"),
    ({"rank_pattern": {".*": 2}}, "rank_pattern: '.*' matches every adapted layer"),
    ({"modules_to_save": ["norm"]}, "norm also means input_layernorm, post_attention_layernorm"),
    ({"modules_to_save": ["model.norm"]}, None),
])
def test_words_that_mean_more_than_it_seems_are_remarked_on(keys, words):
    remarks = resolve_targets(shapes(), Adapter(**keys)).remarks
    assert (not remarks) if words is None else (words in remarks[0] and len(remarks) == 1)


def test_an_expression_on_a_mixture_leaves_the_router_alone_and_says_so():
    config = AutoConfig.for_model("llama4_text")
    config.num_hidden_layers = 4
    targets = resolve_targets(meta_model(config), Adapter(target_modules=r".*\.layers\..*"))
    assert "router" not in {weight.part for weight in targets.chosen}
    assert "also means feed_forward.router, which router: false leaves alone" in targets.remarks[0]


def test_the_remark_on_modules_to_save_tells_what_peft_does():
    model = add_adapter(tiny(), Adapter(modules_to_save=["norm"]), 0, "tiny")
    trained = {layer_kind(name) for name in describe(model).fully_trained}
    assert trained == {"model.norm.weight", "input_layernorm.weight",
                       "post_attention_layernorm.weight"}


def test_a_list_of_experts_is_not_taken_for_the_decoder_layers():
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(8))
            self.gate = nn.Linear(4, 8)
            self.self_attn = nn.Linear(4, 4)

    model = nn.Module()
    model.layers = nn.ModuleList(Layer() for _ in range(3))
    assert decoder_layers(model) is model.layers
    parts = {layer_kind(weight.name): weight.part for weight in weights_of(model)}
    assert parts == {"experts": "experts", "gate": "router", "self_attn": "attention"}


def test_a_survey_costs_what_the_adapter_then_has():
    """Two computations: shapes times rank, and the parameters of the adapter itself."""
    config = LlamaConfig(vocab_size=128256, hidden_size=3072, intermediate_size=8192,
                         num_hidden_layers=28, num_attention_heads=24, num_key_value_heads=8,
                         head_dim=128, tie_word_embeddings=True)
    found = survey(meta_model(config), Adapter(rank=16), 16)
    assert found.trained_parameters == 24_313_856  # as published
    assert found.trained_parameters == sum(
        kind.lora_parameters for kind in found.kinds if kind.adapted)
    assert found.parameters == 3_212_749_824
    assert (found.tied, found.decoder_layers, found.experts) == (True, 28, 0)
    assert {choice.name: choice.target_modules for choice in found.choices}["attention only"] == [
        "k_proj", "o_proj", "q_proj", "v_proj"]


@pytest.mark.parametrize(("family", "keys"), [
    *[(family, keys) for family in ("qwen3_moe", "deepseek_v3")
      for keys in ({}, {"rank_per_expert": True}, {"experts": "none"}, {"experts": "shared"},
                   {"router": True},
                   {"layers": "last:3"}, {"rank_pattern": {"down_proj": 2}})],
    ("gpt2", {}), ("gpt2", {"layers": "last:3"}), ("gpt2", {"rank_pattern": {r"mlp\.c_proj": 2}}),
])
def test_a_survey_marks_what_the_section_adapts(family, keys):
    config = AutoConfig.for_model(family)
    config.num_hidden_layers = 5
    model = meta_model(config)
    section = Adapter(rank=16, **keys)
    found = survey(model, section, 16)
    assert found.trained_parameters == sum(
        kind.lora_parameters * kind.adapted // kind.weights for kind in found.kinds)
    held = {(kind.part, kind.kind): kind for kind in found.kinds}
    assert not any(kind.adapted for (part, _), kind in held.items()
                   if part in ("head", "embeddings"))
    assert found.uncounted >= 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt", "qwen3_moe", "deepseek_v3",
                                    "gpt_oss", "llama4_text", "qwen2_moe"])
def test_the_ready_made_lines_mean_their_parts(family):
    config = AutoConfig.for_model(family)
    config.num_hidden_layers = 5
    model = meta_model(config)
    everything = {weight.name for weight in resolve_targets(model, Adapter(rank=1)).chosen}
    means = {
        choice.name: {weight.name for weight in resolve_targets(model, Adapter(
            rank=1, target_modules=choice.target_modules)).chosen}
        for choice in survey(meta_model(config), Adapter(rank=1), 1).choices}
    assert means["all"] == everything
    assert means["attention only"] | means["MLP only"] == everything
    assert not means["attention only"] & means["MLP only"]
    assert all(re.search("att", name) for name in means["attention only"])
