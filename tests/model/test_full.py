"""Full fine-tuning: which weights, the same as plain PyTorch's, and the model that is written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorafit.errors import UserError
from lorafit.export.adapter import export_adapter
from lorafit.export.merge import merge
from lorafit.model.adapters.add import add_adapter
from lorafit.model.adapters.files import trained_state
from lorafit.model.base import TINY, load_base, load_config, meta_model
from lorafit.model.trained import open_adapter
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.schema import Model

IDS = torch.arange(5, 45).reshape(2, 20)
FULL = {"method": "full", "rank": None, "alpha": None}


def load(base: Any = "tiny", dtype: str = "float32") -> Any:
    return load_base(Model(base=str(base)), dtype, "eager", torch.device("cpu"))


def trained_names(base: Any = "tiny", **choice: Any) -> set[str]:
    model = meta_model(load_config(Model(base=str(base))))
    return set(add_adapter(model, Adapter(method="full", **choice), 0, "m").tensors())


def curve(model: Any, steps: int) -> list[float]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
        optimizer.zero_grad()
    return losses


def test_it_is_plain_training_of_every_weight():
    plain = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32,
                                                 attn_implementation="eager").train()
    model = add_adapter(load(), Adapter(method="full"), 0, "tiny")
    assert curve(model, 4) == curve(plain, 4)
    expected = dict(plain.named_parameters())
    state = trained_state(model)
    assert state.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


def test_over_a_16_bit_base_updates_below_its_steps_are_kept():
    """A rate so small that bfloat16 would lose every update of a weight near 1."""
    model = add_adapter(load(dtype="bfloat16"), Adapter(
        method="full", target_modules=["input_layernorm"]), 0, "tiny")
    before = {name: tensor.clone() for name, tensor in trained_state(model).items()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert model(input_ids=IDS).logits.dtype == torch.bfloat16
    optimizer = torch.optim.AdamW(trained, lr=1e-6, weight_decay=0.0)
    for _ in range(3):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, tensor in trained_state(model).items():
        moved = tensor != before[name]
        assert moved.float().mean() > 0.9, name
        assert torch.equal(tensor.bfloat16(), before[name].bfloat16()), name


@pytest.mark.parametrize(("choice", "expected"), [
    ({"target_modules": ["norm", "v_proj"], "layers": [2]},
     {"model.layers.2.self_attn.v_proj.weight"}),
    ({"target_modules": r"model\.layers\.[01]\.mlp\.down_proj"},
     {f"model.layers.{n}.mlp.down_proj.weight" for n in (0, 1)}),
    ({"layers": "last:1", "exclude_modules": ["mlp", "self_attn"]},
     {f"model.layers.3.{kind}.weight" for kind in ("input_layernorm",
                                                   "post_attention_layernorm")}),
    # Input and output embeddings are one weight here, whatever it is called.
    ({"target_modules": ["lm_head"]}, {"model.embed_tokens.weight"}),
    ({"target_modules": ["embed_tokens"]}, {"model.embed_tokens.weight"}),
])
def test_the_recipes_words_choose_the_weights(choice, expected):
    assert trained_names(**choice) == expected


def test_upper_layers_leave_embeddings_and_what_follows_alone():
    names = trained_names(layers="last:2")
    assert {name.split(".")[2] for name in names} == {"2", "3"}
    assert len(names) == 2 * 9


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt2", "gemma3_text"])
def test_every_weight_of_an_architecture_is_trained(shrunken, family):
    """Fused experts, routers, norms, biases and embeddings too."""
    path = shrunken(family)
    model = load(path)
    assert trained_names(path) == {name for name, _ in model.named_parameters()}
    adapted = add_adapter(model, Adapter(method="full"), 0, family)
    before = {name: tensor.clone() for name, tensor in trained_state(adapted).items()}
    losses = curve(adapted, 3)
    assert losses[-1] < losses[0]
    assert not any(torch.equal(tensor, before[name])
                   for name, tensor in trained_state(adapted).items())


@pytest.mark.parametrize(("tied", "dtype"), [(True, "bfloat16"), (True, "float32"),
                                              (False, "float32")])
def test_a_merged_run_is_the_trained_model(make_recipe, train, tmp_path, tied, dtype):
    """For plain transformers; tied embeddings stay one weight, dtypes stay those on disk."""
    base = tmp_path / "base"
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=getattr(torch, dtype))
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(base)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(base)
    recipe = make_recipe(model={"base": str(base)}, adapter=FULL)
    train(recipe)
    source = open_adapter(Path(recipe.output.dir))
    result = merge(source, tmp_path / "merged")
    assert not result.in_memory
    assert result.agreement.relative_rms < (1e-6 if dtype == "float32" else 3e-2)
    written = load_file(tmp_path / "merged" / "model.safetensors")
    assert ("lm_head.weight" in written) == (not tied)
    assert {tensor.dtype for tensor in written.values()} == {getattr(torch, dtype)}
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["tie_word_embeddings"] == tied
    trained = load_file(Path(recipe.output.dir) / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    for name, tensor in trained.items():
        assert torch.equal(written[name], tensor.to(written[name].dtype)), name
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied


def test_a_base_whose_file_holds_tied_embeddings_twice_gets_both_replaced(make_recipe, train,
                                                                          tmp_path):
    from safetensors.torch import save_file

    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).save_pretrained(base)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(base)
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    recipe = make_recipe(model={"base": str(base)}, adapter=FULL, training={"steps": 2})
    train(recipe)
    merge(open_adapter(Path(recipe.output.dir)), tmp_path / "merged")
    written = load_file(tmp_path / "merged" / "model.safetensors")
    assert torch.equal(written["lm_head.weight"], written["model.embed_tokens.weight"])
    assert not torch.equal(written["lm_head.weight"], tensors["lm_head.weight"])


def test_part_of_the_weights_merges_shard_by_shard(make_recipe, train, tmp_path):
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).save_pretrained(
        base, max_shard_size="3MB")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(base)
    recipe = make_recipe(model={"base": str(base)}, adapter={**FULL, "layers": "last:1"})
    train(recipe)
    result = merge(open_adapter(Path(recipe.output.dir)), tmp_path / "merged")
    assert result.replaced == 9
    for shard in sorted(base.glob("*.safetensors")):
        before, after = load_file(shard), load_file(tmp_path / "merged" / shard.name)
        for name, tensor in before.items():
            assert torch.equal(tensor, after[name]) == (".layers.3." not in name), name


def test_a_mixture_is_merged_whatever_its_files_call_the_experts(make_recipe, train, tmp_path,
                                                                shrunken):
    recipe = make_recipe(model={"base": str(shrunken("mixtral"))}, adapter=FULL)
    train(recipe)
    assert merge(open_adapter(Path(recipe.output.dir)),
                 tmp_path / "merged").agreement.relative_rms < 1e-5


def test_it_is_no_adapter_to_export_and_needs_whole_weights(make_recipe, train, tmp_path):
    recipe = make_recipe(adapter=FULL, training={"steps": 1})
    train(recipe)
    with pytest.raises(UserError, match="lorafit merge"):
        export_adapter(open_adapter(Path(recipe.output.dir)), tmp_path / "exported")
    with pytest.raises(ValidationError, match="trains the stored weights themselves"):
        make_recipe(adapter=FULL, model={"quantization": "nf4"})
