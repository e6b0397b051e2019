"""Mixtures of experts: what is adapted, at which scale, what of it is saved, and what it computes.

The families differ in how they store experts and routers: Mixtral and Qwen3 as (out, in), gpt-oss
the other way round with biases, DeepSeek beside shared experts and dense layers.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from lorafit.errors import UserError
from lorafit.export.merge import merge
from lorafit.model.adapters.add import add_adapter
from lorafit.model.adapters.facts import describe
from lorafit.model.adapters.files import (
    WEIGHTS,
    load_adapter,
    restore_adapter,
    save_adapter,
    save_rest,
)
from lorafit.model.base import load_base, meta_model
from lorafit.model.targets import resolve_targets
from lorafit.model.trained import open_adapter
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.schema import Model

FAMILIES = ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v2", "deepseek_v3"]
# Its configuration leaves this open; all its published models have it.
CHANGES: dict[str, dict[str, Any]] = {"deepseek_v2": {"num_experts_per_tok": 2}}
SECTION = {"rank": 4, "alpha": 12}
SCALE = 12 / 4


def load(path: Path) -> Any:
    return load_base(Model(base=str(path)), "float32", "eager", torch.device("cpu"))


def shapes(path: Path) -> Any:
    return meta_model(AutoConfig.from_pretrained(path))


def tokens(rows: int = 2) -> torch.Tensor:
    return torch.randint(5, 200, (rows, 24), generator=torch.Generator().manual_seed(0))


def trained(path: Path, steps: int = 4, seed: int = 0, **keys: Any) -> tuple[Any, list[float]]:
    """A base with an adapter that took a few steps of AdamW on one batch, and the losses."""
    model = add_adapter(load(path), Adapter.model_validate(SECTION | keys), seed, str(path))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=tokens(), labels=tokens()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model.eval(), losses


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=tokens()).logits


def by_hand(path: Path, adapter: Path, scale: Any = SCALE) -> Any:
    """The base with ΔW = scale·B·A added to its weights, from nothing but the saved tensors.

    An expert's rows of A stand together; its columns of B stand `experts` apart. Where two tensors
    of one module are adapted, the file names the first of them `base_layer`.
    """
    model = load(path)
    saved = load_file(adapter / WEIGHTS)
    for name, a in saved.items():
        if not name.endswith("lora_A.weight"):
            continue
        b = saved[name.replace("lora_A", "lora_B")]
        place = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        module = model.get_submodule(place.removesuffix(".base_layer"))
        factor = scale(place) if callable(scale) else scale
        if not place.removesuffix(".base_layer").endswith("experts") or hasattr(module, "up_proj"):
            module.weight.data += factor * b @ a
            continue
        own = "gate_up_proj" if place.endswith(".base_layer") else "down_proj"
        weight = getattr(module, own)
        experts = len(weight)
        for expert in range(experts):
            a_own = a[expert * (len(a) // experts):(expert + 1) * (len(a) // experts)]
            change = factor * b[:, expert::experts] @ a_own
            weight.data[expert] += change.T if module.is_transposed else change
    return model


def assert_same(a: torch.Tensor, b: torch.Tensor) -> None:
    assert float((a - b).norm() / b.norm()) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_training_a_mixture_lowers_the_loss_and_leaves_base_and_router_alone(shrunken, family):
    path = shrunken(family, **CHANGES.get(family, {}))
    before = dict(load(path).named_parameters())
    model, losses = trained(path)
    assert losses[-1] < losses[0] - 0.05
    after = {re.sub(r"\.?base_layer|base_model\.model\.", "", name): parameter
             for name, parameter in model.named_parameters() if "lora_" not in name}
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert any("router" in name or "gate.weight" in name for name in before)
    assert not any("router" in kind.kind or kind.kind.endswith(".gate")
                   for kind in describe(model).kinds)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_layer_and_every_expert_gets_the_scale_of_the_recipe(
        shrunken, tmp_path, family):
    """Against weights that are changed by hand, so that no attribute of peft's is believed."""
    path = shrunken(family, **CHANGES.get(family, {}))
    model, _ = trained(path)
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", model)
    assert_same(logits(by_hand(path, tmp_path / "adapter")), logits(model))
    kinds = {kind.kind: kind for kind in describe(model).kinds}
    assert {(kind.rank, kind.scale) for kind in kinds.values()} == {(4, SCALE)}
    assert len([kind for kind in kinds if ".experts." in kind]) == 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("keys", [
    {}, {"experts": "shared"}, {"router": True, "rank_per_expert": True}, {"layers": [1]},
], ids=str)
def test_a_saved_mixture_loads_again_bit_for_bit_and_merges(shrunken, tmp_path, family, keys):
    path = shrunken(family, **CHANGES.get(family, {}))
    model, _ = trained(path, steps=2, **keys)
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", model)
    again = load_adapter(load(path), tmp_path / "adapter")
    wanted = logits(model)
    assert torch.equal(logits(again), wanted)
    assert_same(logits(again.merge_and_unload(safe_merge=True)), wanted)
    assert float((wanted - logits(load(path))).norm()) > 0


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3"])
def test_dense_layers_and_shared_experts_are_adapted_beside_the_experts(shrunken, family):
    """peft takes their names for those of experts, and would leave them out."""
    path = shrunken(family, **CHANGES.get(family, {}))
    words = ("gate_proj", "up_proj", "down_proj")
    dense = {f"mlp.{word}" for word in words}
    shared = {f"mlp.shared_experts.{word}" for word in words}
    fused = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}

    def kinds(**keys: Any) -> set[str]:
        found = describe(add_adapter(shapes(path), Adapter(**keys), 0, "m")).kinds
        return {kind.kind for kind in found if kind.kind.startswith("mlp.")}

    assert kinds() == dense | shared | fused
    assert kinds(experts="none") == dense | shared
    assert kinds(target_modules=["shared_experts.up_proj"]) == {"mlp.shared_experts.up_proj"}
    assert kinds(target_modules=r".*\.mlp\.up_proj") == {"mlp.up_proj"}
    assert kinds(target_modules=["experts.down_proj", "o_proj"]) == {"mlp.experts.down_proj"}
    assert kinds(exclude_modules=["experts"]) == dense | shared


@pytest.mark.parametrize("family", FAMILIES)
def test_only_experts_that_a_token_is_sent_to_have_a_gradient(shrunken, family):
    path = shrunken(family, **CHANGES.get(family, {}))
    model = add_adapter(load(path), Adapter.model_validate(SECTION), 0, "m")
    chosen: dict[str, set[int]] = {}
    for name, module in model.named_modules():
        if name.endswith((".gate", ".router")):
            module.register_forward_hook(
                lambda _, __, out, name=name: chosen.update(
                    {name.rpartition(".")[0]: set(out[-1].flatten().tolist())}))
    model(input_ids=torch.tensor([[17]])).logits.square().sum().backward()
    checked = 0
    for name, parameter in model.named_parameters():
        if ".experts." not in name or "lora_B" not in name:
            continue
        routed = chosen[name.partition(".experts.")[0]]
        assert len(routed) == 2
        for expert in range(4):
            touched = bool((parameter.grad[:, expert::4] != 0).any())
            assert touched == (expert in routed)
        checked += 1
    assert checked >= 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_router_is_trained_when_it_is_asked_for(shrunken, tmp_path, family):
    path = shrunken(family, **CHANGES.get(family, {}))
    model, _ = trained(path, router=True, rank=8, alpha=24, rank_per_expert=False)
    router = next(kind for kind in describe(model).kinds
                  if kind.kind in ("mlp.gate", "mlp.router"))
    assert (router.rank, router.scale, router.shape) == (4, 3.0, "4 × 64")  # four experts
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", model)
    changed = by_hand(path, tmp_path / "adapter")
    assert_same(logits(changed), logits(model))
    moved = [name for name, parameter in load(path).named_parameters()
             if name.endswith(("gate.weight", "router.weight"))
             and not torch.equal(parameter, changed.get_parameter(name))]
    assert len(moved) == router.layers


@pytest.mark.parametrize("family", ["llama4_text", "phimoe", "qwen2_moe"])
def test_a_router_that_is_a_linear_layer_is_trained_too(shrunken, tmp_path, family):
    """Some of them return more than their product, so nothing can be added to what they return."""
    path = shrunken(family)
    model, losses = trained(path, router=True)
    assert losses[-1] < losses[0]
    routers = [kind for kind in describe(model).kinds if re.search("router|gate$", kind.kind)]
    assert routers
    assert {kind.scale for kind in routers} == {SCALE}
    moved = {name: p for name, p in model.named_parameters()
             if "lora_B" in name and re.search(r"router|gate\.", name)}
    assert moved
    assert all(bool((parameter != 0).any()) for parameter in moved.values())
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", model)
    assert torch.equal(logits(load_adapter(load(path), tmp_path / "adapter")), logits(model))


def test_rank_per_expert_divides_the_rank_at_the_same_scale(shrunken, tmp_path):
    path = shrunken("qwen3_moe", num_experts_per_tok=3)
    keys = {"rank": 8, "alpha": 24, "rank_per_expert": True}
    model, _ = trained(path, **keys)
    kinds = {kind.kind: (kind.rank, kind.scale) for kind in describe(model).kinds}
    assert kinds["mlp.experts.down_proj"] == kinds["mlp.experts.gate_up_proj"] == (3, 3.0)
    assert kinds["self_attn.q_proj"] == (8, 3.0)
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", model)
    assert_same(logits(by_hand(path, tmp_path / "adapter")), logits(model))
    remarks = resolve_targets(shapes(path), Adapter.model_validate(keys)).remarks
    assert remarks == ["rank 8 over 3 active experts is 2.67: each expert has rank 3, at the same "
                       "scale"]
    with_root = describe(add_adapter(shapes(path), Adapter.model_validate(
        keys | {"rslora": True}), 0, "m")).kinds
    assert {round(kind.scale or 0, 6) for kind in with_root} == {round(24 / 8**0.5, 6)}


def test_a_pattern_on_experts_is_taken_as_it_is_written(shrunken, tmp_path):
    path = shrunken("qwen3_moe")
    keys = {"rank_pattern": {r"experts\.down_proj": 2}, "alpha_pattern": {"gate_up_proj": 4}}
    model, _ = trained(path, **keys)
    kinds = {kind.kind: (kind.rank, kind.scale) for kind in describe(model).kinds}
    assert kinds["mlp.experts.down_proj"] == (2, 6.0)
    assert kinds["mlp.experts.gate_up_proj"] == (4, 1.0)
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", model)

    def scale(place: str) -> float:
        if not place.removesuffix(".base_layer").endswith("experts"):
            return SCALE
        return 1.0 if place.endswith("base_layer") else 6.0

    assert_same(logits(by_hand(path, tmp_path / "adapter", scale)), logits(model))


def test_shared_experts_adapter_is_one_for_all_of_a_layer(shrunken, tmp_path):
    path = shrunken("mixtral")
    each = describe(add_adapter(shapes(path), Adapter.model_validate(SECTION), 0, "m"))
    model, _ = trained(path, experts="shared")
    shared = {kind.kind: kind.parameters for kind in describe(model).kinds}
    for kind in each.kinds:
        divided = 4 if ".experts." in kind.kind else 1
        assert shared[kind.kind] * divided == kind.parameters
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", model)
    base, changed = load(path), by_hand(path, tmp_path / "adapter")
    for own in ("gate_up_proj", "down_proj"):
        name = f"model.layers.1.mlp.experts.{own}"
        change = changed.get_parameter(name) - base.get_parameter(name)
        assert change.abs().max() > 0
        assert torch.allclose(change[1:], change[:1].expand_as(change[1:]), atol=1e-6)
    assert_same(logits(changed), logits(model))


def test_a_file_of_shared_experts_holds_what_one_of_each_does(shrunken, tmp_path):
    path = shrunken("mixtral")
    held = []
    for experts in ("each", "shared"):
        model = add_adapter(load(path), Adapter.model_validate(SECTION | {"experts": experts}), 0,
                            "m")
        (tmp_path / experts).mkdir()
        save_adapter(tmp_path / experts, model)
        held.append({name: tensor.shape
                     for name, tensor in load_file(tmp_path / experts / WEIGHTS).items()})
    assert held[0] == held[1]


def test_a_checkpoint_of_shared_experts_is_restored_bit_for_bit(shrunken, tmp_path):
    path = shrunken("qwen3_moe")
    model, _ = trained(path, experts="shared")
    save_adapter(tmp_path, model)
    save_rest(tmp_path, model)
    other = add_adapter(load(path), Adapter.model_validate(SECTION | {"experts": "shared"}), 9, "m")
    restore_adapter(other, tmp_path)
    live = dict(other.named_parameters())
    assert all(torch.equal(parameter, live[name]) for name, parameter in model.named_parameters())
    assert torch.equal(logits(other), logits(model))


@pytest.mark.parametrize("experts", ["each", "shared"])
def test_recomputed_activations_give_experts_the_same_gradients(shrunken, experts):
    path = shrunken("mixtral")
    gradients = []
    for recompute in (False, True):
        base = load(path)
        base.config.use_cache = False
        if recompute:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        model = add_adapter(base, Adapter.model_validate(SECTION | {"experts": experts}), 0, "m")
        model.train()
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(value, gradients[1][name]) for name, value in gradients[0].items())


@pytest.mark.parametrize(("keys", "words", "remedy"), [
    ({"dropout": 0.1}, "dropout cannot be applied to fused", "set it to 0"),
    ({"dora": True}, "DoRA cannot be applied to fused", "[k_proj, o_proj, q_proj, v_proj]"),
    ({"init": "olora"}, "init olora cannot start fused", "use init: default"),
    ({"target_modules": ["gate_proj"]}, "gate_proj is part of gate_up_proj here",
     "name gate_up_proj"),
    ({"target_modules": ["w2"]}, "w2 is part of down_proj here", "name down_proj"),
    ({"target_modules": ["q_proj", "gate"]}, "gate is a mixture's router", "adapter.router: true"),
    ({"target_modules": ["q_proj", "down_proj"], "experts": "none"},
     "down_proj names experts, which experts: none leaves alone", "leave one of the two out"),
    ({"method": "ia3", "target_modules": ["down_proj"]},
     "down_proj is one tensor for all experts, which ia3 cannot adapt", "use method: lora"),
    ({"rank": 64}, "rank 64 is above the smaller side of self_attn.k_proj (32 × 64)", "at most 32"),
])
def test_what_a_mixture_cannot_have_is_refused_with_what_it_can(shrunken, keys, words, remedy):
    with pytest.raises(UserError) as caught:
        resolve_targets(shapes(shrunken("qwen3_moe")), Adapter.model_validate(keys))
    assert words in str(caught.value)
    assert remedy in str(caught.value)


@pytest.mark.parametrize("keys", [
    {"experts": "each"}, {"experts": "shared"}, {"rank_per_expert": True}, {"router": True}])
def test_keys_of_mixtures_are_refused_where_there_is_none(keys):
    from lorafit.model.base import load_config

    key = next(iter(keys))
    with pytest.raises(UserError, match=rf"adapter.{key}: the model has no"):
        resolve_targets(meta_model(load_config(Model(base="tiny"))), Adapter(**keys))


def test_a_model_that_does_not_say_how_many_experts_are_active_is_refused(shrunken):
    path = shrunken("deepseek_v2")
    with pytest.raises(UserError, match="does not say how many experts"):
        resolve_targets(shapes(path), Adapter(rank_per_expert=True))


def test_linear_layers_that_are_reached_as_parameters_cannot_be_adapted_packed(shrunken):
    path = shrunken("deepseek_v3")
    with pytest.raises(UserError, match="cannot be adapted on a quantised base"):
        resolve_targets(shapes(path), Adapter(), "nf4")
    base = load_base(Model(base=str(path), quantization="nf4"), "float32", "eager",
                     torch.device("cpu"))
    with pytest.raises(UserError, match="cannot be adapted on a quantised base"):
        resolve_targets(base, Adapter())


def test_what_is_left_alone_or_not_quantised_is_said(shrunken):
    path = shrunken("mixtral")
    fused = "mlp.experts.gate_up_proj, mlp.experts.down_proj"
    assert resolve_targets(shapes(path), Adapter()).remarks == []
    assert resolve_targets(shapes(path), Adapter(method="ia3")).remarks == [
        f"the experts' fused weights ({fused}) are left alone: ia3 adapts linear layers only"]
    [remark] = resolve_targets(shapes(path), Adapter(), "nf4").remarks
    assert remark.startswith("nf4 stores linear layers only: the experts' fused weights, ")


@pytest.mark.parametrize("family", [
    "qwen3_moe", *(pytest.param(family, marks=pytest.mark.long)
                   for family in FAMILIES if family != "qwen3_moe")])
@pytest.mark.parametrize("experts", ["each", pytest.param("shared", marks=pytest.mark.long)])
def test_a_run_on_a_mixture_goes_on_bit_for_bit_and_merges(
        shrunken, make_recipe, train, tmp_path, family, experts):
    path = shrunken(family, **CHANGES.get(family, {}))

    def recipe(name: str, steps: int = 4) -> Any:
        return make_recipe(name, model={"base": str(path)}, adapter={"experts": experts},
                           training={"steps": steps})

    progress = train(recipe("whole")).progress
    assert progress.last_eval_loss < progress.first_eval_loss
    train(recipe("cut", steps=2))
    train(recipe("cut"), resume=True)
    whole, cut = (load_file(tmp_path / run / "adapter" / WEIGHTS) for run in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())
    merged = merge(open_adapter(tmp_path / "whole"), tmp_path / "merged")
    assert merged.agreement.relative_rms < 1e-5


def test_a_second_copy_of_weights_is_said_and_kept_in_the_record(
        shrunken, make_recipe, train, tmp_path):
    """Of experts that have no fast form, and not where a layer's copy goes with the layer."""
    def remarks(family: str, recomputed: bool) -> list[str]:
        name = f"{family}-{recomputed}"
        train(make_recipe(name, model={"base": str(shrunken(family))}, training={
            "steps": 1, "activation_checkpointing": recomputed}))
        return json.loads((tmp_path / name / "record.json").read_text())["remarks"]

    experts = sum(p.numel() for p in load(shrunken("llama4_text")).parameters() if p.ndim == 3)
    assert remarks("llama4_text", False) == [
        f"{experts:,} weights are kept a second time for the backward pass, with the adapter "
        "added; training.activation_checkpointing: full keeps one layer's at a time"]
    assert remarks("llama4_text", True) == []
    assert remarks("qwen3_moe", False) == []
