"""PaCA against the training of the weights' columns in plain PyTorch, and as LoRA."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM

from lorafit.errors import VerificationError
from lorafit.export import merge as merging
from lorafit.export.adapter import export_adapter
from lorafit.export.merge import merge
from lorafit.export.own import ColumnUpdate
from lorafit.model.adapters.add import add_adapter
from lorafit.model.adapters.files import load_adapter, save_adapter
from lorafit.model.adapters.paca import PacaLinear
from lorafit.model.base import TINY, load_base
from lorafit.model.trained import open_adapter
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.schema import Model

IDS = torch.arange(5, 45).reshape(2, 20)
SECTION = Adapter(method="paca", rank=8)


def tiny(dtype: str = "float32", quantization: str = "none") -> Any:
    section = Model(base="tiny", quantization=quantization)
    return load_base(section, dtype, "eager", torch.device("cpu"))


def layers(model: Any) -> dict[str, PacaLinear]:
    return {name.removeprefix("model."): module for name, module in model.named_modules()
            if isinstance(module, PacaLinear)}


def train(model: Any, trained: list[nn.Parameter], number: int,
          masks: dict[nn.Parameter, torch.Tensor] | None = None) -> list[float]:
    optimizer = torch.optim.AdamW(trained, lr=3e-3, weight_decay=0.0)
    losses = []
    for _ in range(number):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        for parameter, mask in (masks or {}).items():
            parameter.grad.mul_(mask)
        losses.append(float(loss.detach()))
        optimizer.step()
        optimizer.zero_grad()
    return losses


def test_it_is_the_training_of_these_columns_in_plain_pytorch():
    """The whole weights get a gradient there, of which only that of the columns is kept."""
    model = add_adapter(tiny(), SECTION, 0, "tiny")
    plain = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32,
                                                 attn_implementation="eager").train()
    plain.requires_grad_(False)
    masks = {}
    for name, layer in layers(model).items():
        weight = plain.get_submodule(name).weight.requires_grad_(True)
        masks[weight] = torch.zeros_like(weight)
        masks[weight][:, layer.columns] = 1
    ours = train(model, [layer.change for layer in layers(model).values()], 8)
    theirs = train(plain, list(masks), 8, masks)
    assert ours[-1] < ours[0] - 2
    assert ours == pytest.approx(theirs, abs=1e-4)
    for name, layer in layers(model).items():
        layer.write_columns()
        assert torch.allclose(layer.weight, plain.get_submodule(name).weight, atol=3e-4), name
        assert not layer.weight.requires_grad


def test_on_a_four_bit_base_it_is_the_training_of_the_weights_that_the_bits_stand_for():
    from bitsandbytes.functional import dequantize_4bit

    stored = tiny("float32", "nf4")
    opened = tiny()
    with torch.no_grad():
        for name, module in stored.named_modules():
            if hasattr(getattr(module, "weight", None), "quant_state"):
                opened.get_submodule(name).weight.copy_(
                    dequantize_4bit(module.weight.data, module.weight.quant_state))
    curves = []
    for base in (stored, opened):
        model = add_adapter(base, SECTION, 0, "tiny")
        curves.append(train(model, [layer.change for layer in layers(model).values()], 5))
    assert curves[0][-1] < curves[0][0] - 1
    assert curves[0] == pytest.approx(curves[1], abs=1e-3)


def test_it_keeps_r_columns_of_the_input_and_lora_the_whole():
    """Bytes that one layer keeps for the backward pass, its own parameters left out."""
    tokens, inputs, rank = 96, 256, 8

    def kept_bytes(section: Adapter) -> int:
        model = add_adapter(tiny(), section, 0, "tiny")
        layer = next(module for name, module in model.named_modules()
                     if name.endswith("layers.1.self_attn.q_proj"))
        own = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            x = torch.randn(tokens, inputs, requires_grad=True)
            layer(x).sum()
        return sum(kept.values())

    assert kept_bytes(SECTION) == tokens * rank * 4
    lora = kept_bytes(Adapter(rank=rank, target_modules=["q_proj"]))
    assert lora >= tokens * (inputs + rank) * 4


def test_the_columns_follow_from_the_seed_and_the_layer_alone():
    def columns(seed: int, **choice: Any) -> dict[str, list[int]]:
        model = add_adapter(tiny(), Adapter(method="paca", rank=8, **choice), seed, "tiny")
        return {name: layer.columns.tolist() for name, layer in layers(model).items()}

    chosen = columns(0)
    assert chosen == columns(0)
    assert chosen != columns(1)
    assert len({tuple(each) for each in chosen.values()}) == len(chosen)
    assert all(len(set(each)) == 8 and each == sorted(each) for each in chosen.values())
    few = columns(0, target_modules=["v_proj"], layers="last:1")
    assert few.items() < chosen.items()


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_the_weight_follows_its_columns_whoever_updates_them(tmp_path, optimizer):
    """Also when something is computed between the gradient and the update, and when gradients of
    several forward passes that came before any backward pass are added up."""
    import bitsandbytes

    model = add_adapter(tiny(), Adapter(method="paca", rank=32), 0, "tiny")
    trained = [layer.change for layer in layers(model).values()]
    make = torch.optim.AdamW if optimizer == "adamw" else bitsandbytes.optim.AdamW8bit
    updates = make(trained, lr=3e-3)
    for _ in range(3):
        losses = [model(input_ids=row[None], labels=row[None]).loss for row in IDS]
        for loss in losses:
            loss.backward()
            with torch.inference_mode():
                model(input_ids=IDS)
        updates.step()
        updates.zero_grad()
    save_adapter(tmp_path, model)
    again = load_adapter(tiny(), tmp_path)
    model.eval()
    with torch.inference_mode():
        assert torch.equal(model(input_ids=IDS).logits, again(input_ids=IDS).logits)
    for layer in layers(model).values():
        wanted = layer.original + layer.change
        assert torch.equal(layer.weight[:, layer.columns], wanted)


def test_gradients_of_several_forward_passes_add_up():
    model = add_adapter(tiny(), SECTION, 0, "tiny")
    change = next(iter(layers(model).values())).change

    def gradient(*order: str) -> torch.Tensor:
        change.grad = None
        losses = {}
        for word in order:
            kind, row = word[0], int(word[1])
            if kind == "f":
                losses[row] = model(input_ids=IDS[row:row + 1], labels=IDS[row:row + 1]).loss
            else:
                losses[row].backward()
        return change.grad.clone()

    alternating = gradient("f0", "b0", "f1", "b1")
    assert torch.allclose(gradient("f0", "f1", "b0", "b1"), alternating, atol=1e-7)


@pytest.mark.parametrize(("dtype", "quantization"), [
    ("float32", "none"), ("bfloat16", "none"), ("bfloat16", "nf4"),
])
def test_a_run_is_exported_as_plain_lora_and_merged(make_recipe, train, tmp_path, dtype,
                                                    quantization):
    from peft import PeftModel

    recipe = make_recipe(model={"dtype": dtype, "quantization": quantization},
                         adapter={"method": "paca", "rank": 8, "alpha": None},
                         training={"learning_rate": 5e-3})
    train(recipe)
    source = open_adapter(Path(recipe.output.dir))
    exported = export_adapter(source, tmp_path / "exported")
    assert exported.agreement.relative_rms < 1e-4
    assert "converted" in exported.remark
    tensors = load_file(tmp_path / "exported" / "adapter_model.safetensors")
    a = next(tensor for name, tensor in tensors.items() if "q_proj.lora_A" in name)
    assert a.shape == (8, 256)
    assert torch.equal(a.sum(dim=1), torch.ones(8))
    result = merge(source, tmp_path / "merged", "float32")
    assert not result.in_memory
    assert result.agreement.relative_rms < 1e-4
    with torch.inference_mode():
        base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
        before = base(input_ids=IDS).logits
        lora = PeftModel.from_pretrained(base, tmp_path / "exported").eval()(input_ids=IDS).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(input_ids=IDS).logits
    assert torch.allclose(lora, merged, atol=1e-3)
    assert float((merged - before).abs().max()) > 0.5


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_other_architectures_are_exported_and_merged_too(make_recipe, train, tmp_path, shrunken,
                                                         family):
    """GPT-2 stores weights the other way round; a mixture's fused experts are left out."""
    recipe = make_recipe(model={"base": str(shrunken(family))},
                         adapter={"method": "paca", "rank": 8, "alpha": None, "layers": [1]},
                         training={"learning_rate": 2e-2})
    train(recipe)
    source = open_adapter(Path(recipe.output.dir))
    assert not any("experts" in name for name in source.config["modules"])
    assert bool(source.config["transposed"]) == (family == "gpt2")
    assert export_adapter(source, tmp_path / "exported").agreement.relative_rms < 1e-4
    result = merge(source, tmp_path / "merged")
    assert not result.in_memory
    assert result.agreement.relative_rms < 1e-4
    config = json.loads((tmp_path / "exported" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["lora_alpha"] == config["r"] == 8


def test_a_wrong_merge_of_columns_is_noticed(make_recipe, train, tmp_path, monkeypatch):
    recipe = make_recipe(adapter={"method": "paca", "rank": 8, "alpha": None},
                         training={"learning_rate": 5e-3})
    train(recipe)
    monkeypatch.setattr(ColumnUpdate, "apply", lambda self, weight: weight.float())
    with pytest.raises(VerificationError, match="differs from base"):
        merging.merge(open_adapter(Path(recipe.output.dir)), tmp_path / "merged", "float32")
