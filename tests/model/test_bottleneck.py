"""Bottleneck adapters against a Llama written out by hand, and what becomes of a run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from lorafit.errors import UserError
from lorafit.export.adapter import export_adapter
from lorafit.export.merge import merge
from lorafit.model.adapters.add import add_adapter
from lorafit.model.adapters.files import load_adapter, trained_state
from lorafit.model.base import TINY, load_base, load_config, meta_model
from lorafit.model.trained import open_adapter
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.schema import Model

IDS = torch.arange(5, 45).reshape(2, 20)
WIDTH, HEADS, GROUPS, HEAD, LAYERS = 256, 4, 2, 64, 4  # of the embedded base


def tiny() -> Any:
    return load_base(Model(base="tiny"), "float32", "eager", torch.device("cpu"))


def llama_with_adapters(weights: dict[str, torch.Tensor], adapter: dict[str, torch.Tensor],
                        activation: Any) -> torch.Tensor:
    """Logits (B, T, V) of a Llama with tied embeddings, from its weights alone."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return weights[name] * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def adapted(h: torch.Tensor, name: str) -> torch.Tensor:
        if f"{name}.down.weight" not in adapter:
            return h
        inner = activation(h @ adapter[f"{name}.down.weight"].T + adapter[f"{name}.down.bias"])
        return h + inner @ adapter[f"{name}.up.weight"].T + adapter[f"{name}.up.bias"]

    length = IDS.shape[1]
    angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, HEAD, 2) / HEAD)
    cos, sin = (torch.cat([f(angles)] * 2, dim=-1) for f in (torch.cos, torch.sin))

    def rotated(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    def heads(x: torch.Tensor, number: int) -> torch.Tensor:
        return x.view(*x.shape[:2], number, HEAD).transpose(1, 2)

    def attention(x: torch.Tensor, name: str) -> torch.Tensor:
        q, k, v = (heads(x @ weights[f"{name}.{kind}_proj.weight"].T, number)
                   for kind, number in (("q", HEADS), ("k", GROUPS), ("v", GROUPS)))
        k, v = (y.repeat_interleave(HEADS // GROUPS, dim=1) for y in (rotated(k), v))
        scores = rotated(q) @ k.transpose(-1, -2) / HEAD**0.5
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
        return mixed.transpose(1, 2).flatten(2) @ weights[f"{name}.o_proj.weight"].T

    def mlp(x: torch.Tensor, name: str) -> torch.Tensor:
        gate, up, down = (weights[f"{name}.{kind}_proj.weight"] for kind in ("gate", "up", "down"))
        return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T

    x = weights["model.embed_tokens.weight"][IDS]
    for number in range(LAYERS):
        layer = f"model.layers.{number}"
        attended = attention(norm(x, f"{layer}.input_layernorm.weight"), f"{layer}.self_attn")
        x = x + adapted(attended, f"{layer}.after_self_attn")
        computed = mlp(norm(x, f"{layer}.post_attention_layernorm.weight"), f"{layer}.mlp")
        x = x + adapted(computed, f"{layer}.after_mlp")
    return norm(x, "model.norm.weight") @ weights["model.embed_tokens.weight"].T


@pytest.mark.parametrize(("placement", "activation"), [
    ("pfeiffer", "gelu"), ("houlsby", "relu"), ("houlsby", "silu"), ("pfeiffer", "tanh"),
])
def test_it_computes_what_a_llama_with_adapters_written_by_hand_does(placement, activation):
    """Logits, and the gradient of every weight of the adapters."""
    weights = tiny().state_dict()
    model = add_adapter(tiny(), Adapter(
        method="bottleneck", rank=8, layers=[1, 3],
        options={"placement": placement, "activation": activation}), 0, "tiny")
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=random) / 4)
    adapter = {name: tensor.clone().requires_grad_(True)
               for name, tensor in trained_state(model).items()}
    assert len(adapter) == (8 if placement == "pfeiffer" else 16)
    ours = model(input_ids=IDS).logits
    theirs = llama_with_adapters(
        weights, adapter, {"gelu": F.gelu, "relu": F.relu, "silu": F.silu,
                           "tanh": torch.tanh}[activation])
    assert torch.allclose(ours, theirs, atol=2e-3)
    direction = torch.randn(ours.shape, generator=random)
    (ours * direction).sum().backward()
    (theirs * direction).sum().backward()
    for name, parameter in model.model.named_parameters():
        if parameter.requires_grad:
            wanted = adapter[name].grad
            assert float((parameter.grad - wanted).norm() / wanted.norm()) < 1e-4, name


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "olmo2"])
def test_it_stands_before_a_norm_that_follows_the_block(shrunken, family):
    """With the block replaced by nothing, what the adapter gives out is normed, then added."""
    base = load_base(Model(base=str(shrunken(family))), "float32", "eager", torch.device("cpu"))
    model = add_adapter(base, Adapter(method="bottleneck", rank=4, layers=[1]), 0, family)
    seen: dict[str, torch.Tensor] = {}
    layer = base.model.layers[1]
    after = "post_feedforward_layernorm"
    layer.mlp.down_proj.register_forward_hook(
        lambda module, inputs, output: seen.update(block=output))
    layer.after_mlp.register_forward_hook(
        lambda module, inputs, output: seen.update(adapter=output, given=inputs[0]))
    getattr(layer, after).register_forward_hook(
        lambda module, inputs, output: seen.update(normed=inputs[0]))
    model(input_ids=IDS)
    assert torch.equal(seen["block"], seen["given"])
    assert torch.equal(seen["adapter"], seen["normed"])


def test_a_block_that_gives_out_more_than_its_result_keeps_the_rest(shrunken):
    """GPT-OSS' experts also give out the router's scores."""
    base = load_base(Model(base=str(shrunken("gpt_oss"))), "float32", "eager",
                     torch.device("cpu"))
    with torch.inference_mode():
        before = base(input_ids=IDS).logits
    model = add_adapter(base, Adapter(method="bottleneck", rank=4), 0, "gpt_oss")
    with torch.inference_mode():
        assert torch.allclose(model.eval()(input_ids=IDS).logits, before)
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    assert float(base.model.layers[0].after_mlp.up.weight.grad.abs().max()) > 0


def test_dropout_is_on_the_inner_activation_and_in_training_alone():
    def outputs(dropout: float) -> list[torch.Tensor]:
        model = add_adapter(tiny(), Adapter(method="bottleneck", rank=8, dropout=dropout), 0, "t")
        with torch.no_grad():
            for layer in model.model.model.layers:
                layer.after_mlp.up.weight.fill_(0.1)
        found = []
        for is_training in (True, False):
            model.train(is_training)
            torch.manual_seed(0)
            with torch.no_grad():
                found.append(model(input_ids=IDS).logits)
        return found

    without, same = outputs(0.0)
    dropped, evaluated = outputs(0.5)
    assert torch.equal(without, same)
    assert torch.equal(evaluated, same)
    assert not torch.allclose(dropped, evaluated, atol=1e-2)


def test_a_layer_without_the_block_is_refused_by_name():
    from transformers import AutoConfig

    config = AutoConfig.for_model("falcon_mamba", num_hidden_layers=2, hidden_size=64)
    with pytest.raises(UserError, match=r"layers\.0 has 0 mlp blocks .*mixer"):
        add_adapter(meta_model(config), Adapter(method="bottleneck"), 0, "mamba")


def test_a_run_is_exported_in_lorafits_own_form_and_not_merged(make_recipe, train, tmp_path):
    recipe = make_recipe(adapter={"method": "bottleneck", "rank": 8, "alpha": None})
    train(recipe)
    source = open_adapter(Path(recipe.output.dir))
    with pytest.raises(UserError, match="bottleneck cannot be merged"):
        merge(source, tmp_path / "merged")
    result = export_adapter(source, tmp_path / "exported")
    assert result.agreement.bit_equal
    assert result.loaded_by == "lorafit"
    assert "only lorafit loads" in result.remark
    again = load_adapter(tiny(), tmp_path / "exported")
    with torch.inference_mode():
        wanted = llama_with_adapters(
            {name: tensor.float() for name, tensor in
             load_file(TINY / "model.safetensors").items()},
            load_file(tmp_path / "exported" / "adapter_model.safetensors"), F.gelu)
        assert torch.allclose(again(input_ids=IDS).logits, wanted, atol=2e-3)


def test_the_start_of_a_layer_does_not_depend_on_which_others_have_one():
    def start(**choice: Any) -> dict[str, torch.Tensor]:
        return trained_state(add_adapter(
            tiny(), Adapter(method="bottleneck", rank=8, **choice), 0, "tiny"))

    every, one = start(), start(layers=[2])
    assert all(torch.equal(tensor, every[name]) for name, tensor in one.items())
    assert not torch.equal(every["model.layers.0.after_mlp.down.weight"],
                           every["model.layers.1.after_mlp.down.weight"])


def test_sizes_come_from_the_configuration_alone():
    model = add_adapter(meta_model(load_config(Model(base="tiny"))),
                        Adapter(method="bottleneck", rank=16), 0, "tiny")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == LAYERS * (2 * 16 * WIDTH + 16 + WIDTH)
