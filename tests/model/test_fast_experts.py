"""Experts in their fast form compute what peft's wrappers around transformers' experts do."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorafit.model.adapters.add import add_adapter
from lorafit.model.adapters.lora import lora_layers
from lorafit.model.base import load_base
from lorafit.model.fast import experts
from lorafit.model.fast.experts import FastExperts, expert_modules
from lorafit.model.fast.linear import FastLinear
from lorafit.model.fast.speed_up import FastPath, speed_up
from lorafit.model.loss import SummedLoss
from lorafit.model.recompute import kept_bytes, recompute_activations, settle_recomputation
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.auto import Decision
from lorafit.recipe.schema import Model
from tests.model.test_fast import assert_same_switched_off_and_merged

CPU = torch.device("cpu")
# gpt-oss: stored the other way round, with biases, interleaved and clamped.
FAMILIES = ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v2", "deepseek_v3", "granitemoe"]
CHANGES: dict[str, dict[str, Any]] = {"deepseek_v2": {"num_experts_per_tok": 2}}
IDS = torch.randint(5, 200, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def build(shrunken: Callable[..., Path]) -> Callable[..., Any]:
    """A mixture with an adapter that does something."""
    def make(family: str, dtype: str = "float32", *, checkpointing: bool = False,
             **adapter: Any) -> Any:
        path = shrunken(family, **CHANGES.get(family, {}))
        base = load_base(Model(base=str(path)), dtype, "eager", CPU)
        base.config.use_cache = False
        if checkpointing:
            recompute_activations(base)
        section = Adapter.model_validate({"rank": 4, "alpha": 8} | adapter)
        adapted = add_adapter(base, section, 0, "m")
        torch.manual_seed(2)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if ".lora_B." in name:
                    parameter.add_(0.1 * torch.randn(parameter.shape))
        return adapted.train()

    return make


def outcome(adapted: Any) -> list[torch.Tensor]:
    """The loss, and the gradient of all that is trained."""
    loss = adapted(input_ids=IDS, labels=IDS).loss
    loss.backward()
    found = [loss.detach(), *(p.grad for p in adapted.parameters() if p.requires_grad)]
    adapted.zero_grad()
    return found


def of_experts(module: Any, dtype: torch.dtype) -> list[torch.Tensor]:
    """What experts make of tokens, and the gradients of these, of the router's weights and of the
    adapters. Each token's experts are given, so that rounding sends none elsewhere."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, experts.width_of(module), generator=generator)
    index = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(40)])
    weights = torch.rand(40, 2, generator=generator)
    dy = torch.randn(x.shape, generator=generator)
    x, weights = (t.bfloat16().to(dtype).requires_grad_() for t in (x, weights))
    trained = [p for p in module.parameters() if p.requires_grad]
    y = module(x, index, weights)
    gradients = torch.autograd.grad(y, [x, weights, *trained], dy.bfloat16().to(dtype))
    return [t.double() for t in (y.detach(), *gradients)]


def errors(got: list[torch.Tensor], wanted: list[torch.Tensor]) -> torch.Tensor:
    return torch.tensor([float((a - b).norm() / b.norm().clamp_min(1e-12))
                         for a, b in zip(got, wanted, strict=True)])


def decision(fast: FastPath, key: str = "experts") -> Decision:
    return next(each for each in fast.decisions if each.key == key)


@pytest.mark.parametrize("shared", ["each", "shared"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixture_computes_the_same(build, family, shared):
    adapted = build(family, experts=shared)
    plain = outcome(adapted)
    fast = speed_up(adapted)
    count = sum(1 for _ in expert_modules(adapted))
    assert decision(fast).value == f"{count} of {count} fast"
    assert sum(isinstance(m, FastExperts) for m in adapted.modules()) == count
    assert "plain" not in decision(fast, "adapter layers").reason
    assert fast.copied_weights == 0
    assert float(errors(outcome(adapted), plain).max()) < 1e-4


@pytest.mark.parametrize("shared", ["each", "shared"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_as_exact_as_peft(build, family, dtype, shared):
    """Against the same experts in float64. In bfloat16 peft rounds the weights it has added to."""
    adapted = build(family, dtype, experts=shared)
    module = next(module for _, module in expert_modules(adapted))
    oracle = copy.deepcopy(module).double()
    # torch's grouped product, which transformers takes unless told otherwise, has no float64.
    experts.parts_of(oracle)[0].config._experts_implementation = "eager"
    exact = of_experts(oracle, torch.float64)
    plain = of_experts(module, getattr(torch, dtype))
    assert decision(speed_up(adapted)).value.endswith("fast")
    assert isinstance(module, FastExperts)
    ours = errors(of_experts(module, getattr(torch, dtype)), exact)
    theirs = errors(plain, exact)
    if dtype == "float32":
        assert float(ours.max()) < 1e-5
    else:
        assert float(ours.norm()) < 1.05 * float(theirs.norm())
        assert float(ours.max()) < 1.05 * float(theirs.max())


@pytest.mark.parametrize(("keys", "adapted_weights"), [
    ({"rank_pattern": {r"experts\.down_proj": 2}, "alpha_pattern": {"gate_up_proj": 4}}, 2),
    ({"target_modules": ["q_proj", "down_proj"]}, 1),
    ({"target_modules": ["q_proj", "gate_up_proj"], "experts": "shared"}, 1),
    ({"experts": "none"}, 0),
    ({"layers": [1]}, 2),
    ({"freeze_a": True}, 2),
    ({"router": True, "rank_per_expert": True, "rslora": True}, 2),
], ids=str)
def test_whatever_of_them_is_adapted(build, keys, adapted_weights):
    adapted = build("qwen3_moe", **keys)
    _, wrappers = experts.parts_of([module for _, module in expert_modules(adapted)][-1])
    assert len(wrappers) == adapted_weights
    plain = outcome(adapted)
    assert decision(speed_up(adapted)).value == "2 of 2 fast"
    assert float(errors(outcome(adapted), plain).max()) < 1e-4


@pytest.mark.parametrize("shared", ["each", "shared"])
def test_layers_that_are_computed_again_give_the_same_gradients(build, shared):
    found = []
    for checkpointing in (False, True):
        adapted = build("mixtral", checkpointing=checkpointing, experts=shared)
        speed_up(adapted)
        found.append(outcome(adapted))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_the_gate_is_given_may_be_computed_again(build):
    """`selective`: less is kept, the gradients are the same."""
    adapted = build("qwen3_moe")
    fast = speed_up(adapted)
    module = SummedLoss(adapted, fast.head)
    kept, gradients = kept_bytes(module, CPU), outcome(adapted)
    settle_recomputation(module, "selective", 48, CPU, 2**40, may_run_layers_again=False)
    assert kept_bytes(module, CPU) < kept
    assert all(torch.equal(a, b) for a, b in zip(outcome(adapted), gradients, strict=True))


def test_no_second_copy_of_the_experts_is_kept(build):
    adapted = build("mixtral")
    weights = sum(p.nbytes for p in adapted.parameters() if p.ndim == 3)
    plain = kept_bytes(SummedLoss(adapted, None), CPU)
    speed_up(adapted)
    assert plain > weights
    assert kept_bytes(SummedLoss(adapted, None), CPU) < plain - weights


def test_every_way_to_be_out_of_the_ordinary_goes_to_peft(build):
    adapted, plain = (build("gpt_oss").eval() for _ in range(2))
    speed_up(adapted)
    assert_same_switched_off_and_merged(adapted, plain, IDS)


def test_answers_and_what_is_saved_are_those_of_peft(build):
    from peft import get_peft_model_state_dict

    adapted, plain = (build("qwen3_moe").eval() for _ in range(2))
    speed_up(adapted)
    ours, theirs = (model.generate(input_ids=IDS[:1, :9], max_new_tokens=6, do_sample=False)
                    for model in (adapted, plain))
    assert torch.equal(ours, theirs)
    saved, wanted = (get_peft_model_state_dict(model) for model in (adapted, plain))
    assert saved.keys() == wanted.keys()
    assert all(torch.equal(saved[name], wanted[name]) for name in saved)


def test_it_can_be_taken_back(build):
    adapted = build("mixtral")
    _, module = next(iter(expert_modules(adapted)))
    before, attributes = type(module), set(vars(module))
    plain = of_experts(module, torch.float32)
    undo = experts.make_fast(module, experts.gates(module)[0])
    assert type(module) is not before
    undo()
    assert type(module) is before
    assert set(vars(module)) == attributes
    assert all(torch.equal(a, b) for a, b in zip(of_experts(module, torch.float32), plain,
                                                 strict=True))


def test_a_layout_of_b_that_is_read_wrongly_is_found(build, monkeypatch):
    """As if B held the columns of an expert together, as A does its rows."""
    real = experts.expert_factors

    def wrong(wrapper: Any) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = real(wrapper)
        whole = wrapper.lora_B["default"].weight
        return a, whole.reshape(len(whole), *b.shape[:2]).permute(1, 2, 0)

    monkeypatch.setattr(experts, "expert_factors", wrong)
    adapted = build("mixtral")
    plain = outcome(adapted)
    fast = speed_up(adapted)
    assert decision(fast).value == "0 of 2 fast"
    assert "disagrees with the plain path" in decision(fast).reason
    assert fast.copied_weights == sum(p.numel() for p in adapted.parameters() if p.ndim == 3)
    assert not any(isinstance(m, FastExperts) for m in adapted.modules())
    assert float(errors(outcome(adapted), plain).max()) < 1e-5


def test_a_gate_that_is_not_the_usual_one_is_differentiated(build, monkeypatch):
    """An activation that the configuration names and the class does not use."""
    adapted = build("mixtral")
    for _, module in expert_modules(adapted):
        experts.parts_of(module)[0].act_fn = torch.nn.Tanh()
    plain = outcome(adapted)
    assert decision(speed_up(adapted)).value == "2 of 2 fast"
    assert all(module.lorafit_gate.activation is None for _, module in expert_modules(adapted))
    assert float(errors(outcome(adapted), plain).max()) < 1e-4


def test_experts_of_another_kind_stay_plain_with_the_reason(build):
    """Llama 4's are given sorted tokens, and its angles are complex."""
    adapted = build("llama4_text")
    plain = outcome(adapted)
    fast = speed_up(adapted)
    assert decision(fast).value == "0 of 2 fast"
    assert "Llama4TextExperts computes them in a way of its own" in decision(fast).reason
    assert fast.copied_weights > 0
    assert float(errors(outcome(adapted), plain).max()) < 1e-4


@pytest.mark.parametrize(("change", "words"), [
    (lambda own: own.down_proj.requires_grad_(True), "trained too"),
    (lambda own: own.register_forward_hook(lambda *args: None), "a hook"),
    (lambda own: own.register_parameter("more", torch.nn.Parameter(torch.ones(1))), "more weights"),
    (lambda own: setattr(own, "has_post_expert_norm", True), "normed"),
    (lambda own: setattr(own, "down_proj", torch.nn.Parameter(
        own.down_proj.detach().to(torch.float8_e4m3fn), requires_grad=False)), "float8_e4m3fn"),
])
def test_why_experts_stay_plain(build, change, words):
    adapted = build("mixtral")
    _, module = next(iter(expert_modules(adapted)))
    assert experts.why_not_fast(module) is None
    change(experts.parts_of(module)[0])
    assert words in (experts.why_not_fast(module) or "")


def test_linear_layers_that_peft_reaches_as_parameters_are_fast_as_others_are(build):
    """Dense layers and shared experts of DeepSeek; a router that is a bare weight is not."""
    adapted = build("deepseek_v3", router=True)
    plain = outcome(adapted)
    fast = speed_up(adapted)
    reached = {name: layer for name, layer in lora_layers(adapted)
               if hasattr(layer, "parameter_name") and not experts.is_on_experts(layer)}
    assert {name.rpartition(".")[2]: isinstance(layer, FastLinear)
            for name, layer in reached.items()} == {
        "gate_proj": True, "up_proj": True, "down_proj": True, "gate": False}
    assert "bare weight" in decision(fast, "adapter layers").reason
    assert decision(fast, "gated MLPs").value == "2 of 2 fast"
    assert fast.copied_weights == 4 * 64  # the router
    assert float(errors(outcome(adapted), plain).max()) < 1e-4
