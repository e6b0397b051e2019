"""The fast path computes what peft's own layers and the model's own logits do."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lorafit.data.batches import collate
from lorafit.data.packing import Layout, MicroBatch
from lorafit.data.tokens import Tokens
from lorafit.kernels.gated_mlp import ACTIVATIONS, Activation
from lorafit.kernels.thin import Kept
from lorafit.model.adapters.add import add_adapter
from lorafit.model.adapters.lora import lora_layers
from lorafit.model.base import load_base
from lorafit.model.fast import linear, mlp, proof
from lorafit.model.fast.attention import NAME
from lorafit.model.fast.head import OutputHead
from lorafit.model.fast.speed_up import speed_up
from lorafit.model.isolation import settle_packing
from lorafit.model.loss import SummedLoss
from lorafit.model.recompute import recompute_activations
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.auto import Decision
from lorafit.recipe.schema import Model

CPU = torch.device("cpu")
LENGTHS = (9, 4, 12, 1)
LAYOUTS = {"padded": Layout("padded", 4, 32), "padding_free": Layout("padding_free", 4, 32)}
# What is computed from the same input shares a mask; each group has a seed.
GROUPS = {"q_proj": 1, "k_proj": 1, "v_proj": 1, "o_proj": 2, "gate_proj": 3, "up_proj": 3,
          "down_proj": 4}


class Masked(nn.Dropout):
    """Dropout whose mask depends on a seed and the shape alone, so that two sides share it."""

    def __init__(self, seed: int, p: float) -> None:
        super().__init__(p)
        self.seed = seed

    def mask(self, tokens: int, width: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.rand(tokens, width, generator=generator) >= self.p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        mask = self.mask(x.numel() // x.shape[-1], x.shape[-1]).view(x.shape)
        return x * mask / (1 - self.p)


@pytest.fixture(autouse=True)
def _given_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    real = linear.dropped_inputs

    def given(layer: Any, x: torch.Tensor) -> Kept | None:
        dropout = layer.lora_dropout["default"] if hasattr(layer, "lora_dropout") else None
        if not isinstance(dropout, Masked) or not dropout.training:
            return real(layer, x)
        width = layer.lora_A["default"].weight.shape[1]
        return Kept(dropout.mask(x.numel() // x.shape[-1], width), 1 - dropout.p)

    monkeypatch.setattr(linear, "dropped_inputs", given)
    monkeypatch.setattr(mlp, "dropped_inputs", given)


def batch(vocabulary: int, layout: Layout) -> Any:
    random = np.random.default_rng(5)
    rows = [Tokens(random.integers(0, vocabulary, n).astype(np.int32), random.random(n) < 0.7)
            for n in LENGTHS]
    part = MicroBatch(((0, 1, 2, 3),)) if layout.batching == "padding_free" \
        else MicroBatch(((0,), (1,), (2,), (3,)))
    return collate(rows.__getitem__, part, layout, 0)


def build(path: Path, *, dtype: str = "float32", quantization: str = "none",
          checkpointing: bool = False, dropout: float = 0.0, layout: str = "padding_free",
          **adapter: Any) -> Any:
    """A model with an adapter that does something."""
    base = load_base(Model(base=str(path), quantization=quantization), dtype, "sdpa", CPU)
    if checkpointing:
        recompute_activations(base)
    settle_packing(base, Decision("training.batching", layout, "because"), "sdpa")
    section = Adapter(rank=4, alpha=8, **adapter)
    adapted = add_adapter(base, section, 0, "base")
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    if dropout:
        for name, layer in lora_layers(adapted):
            layer.lora_dropout["default"] = Masked(GROUPS[name.rsplit(".")[-1]], dropout)
    return adapted.train()


def outcome(adapted: Any, head: OutputHead | None, layout: str) -> list[torch.Tensor]:
    """The loss, and the gradient of each trained parameter."""
    vocabulary = adapted.config.get_text_config().vocab_size
    loss = SummedLoss(adapted, head)(**batch(vocabulary, LAYOUTS[layout]).inputs)
    loss.backward()
    found = [loss.detach(), *(p.grad for p in adapted.parameters() if p.requires_grad)]
    adapted.zero_grad()
    return [value.double() for value in found]


def errors(got: list[torch.Tensor], wanted: list[torch.Tensor]) -> torch.Tensor:
    return torch.tensor([float((a - b).norm() / b.norm().clamp_min(1e-12))
                         for a, b in zip(got, wanted, strict=True)])


FAMILIES = ["llama", "qwen2", "qwen3", "gemma3_text", "mistral", "phi3", "cohere", "granite",
            "olmo2", "smollm3", "qwen3_moe", "gpt2", "starcoder2"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_real_architectures_compute_the_same(
    shrunken: Callable[..., Path], family: str, layout: str,
) -> None:
    own_dropout = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
                   "residual_dropout": 0.0, "embedding_dropout": 0.0}
    adapted = build(shrunken(family, **own_dropout), layout=layout, target_modules="all-linear")
    plain = outcome(adapted, None, layout)
    fast = speed_up(adapted)
    assert fast.head is not None
    assert float(errors(outcome(adapted, fast.head, layout), plain).max()) < 1e-4
    assert fast.decisions[0].value == "fast"
    layers = next(d for d in fast.decisions if d.key == "adapter layers")
    assert "plain" not in layers.reason


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("bias", ["none", "lora_only"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "nf4"])
def test_it_is_as_exact_as_peft(
    shrunken: Callable[..., Path], kind: str, dropout: float, bias: str, checkpointing: bool,
) -> None:
    """Against the same model in float64. In float32 within 1e-5; in bfloat16 and on nf4 no further
    away than peft's own layers are."""
    if kind == "nf4" and bias != "none":
        pytest.skip("biases of a 4-bit base are not trained (the recipe refuses it)")
    path = shrunken("qwen2")  # q, k and v have biases
    options = {"dropout": dropout, "bias": bias, "checkpointing": checkpointing,
               "dtype": "bfloat16" if kind == "bfloat16" else "float32",
               "quantization": "nf4" if kind == "nf4" else "none"}
    adapted = build(path, **options)
    plain = outcome(adapted, None, "padding_free")
    oracle = as_float64(build(path, **options))
    exact = outcome(oracle, None, "padding_free")
    fast = speed_up(adapted)
    assert all("disagrees" not in decision.reason for decision in fast.decisions)
    assert sum(isinstance(m, linear.FastLinear) for m in adapted.modules()) == 14
    assert fast.head is not None
    # The masks given here are for all tokens.
    head = replace(fast.head, last_mlp=None) if dropout else fast.head
    ours, theirs = errors(outcome(adapted, head, "padding_free"), exact), errors(plain, exact)
    if kind == "bfloat16":
        assert float(ours.norm()) < 1.1 * float(theirs.norm())
        assert float(ours.median()) < 1.1 * float(theirs.median())
    else:
        assert float(ours.max()) < max(1e-5, 1.5 * float(theirs.max()))


def as_float64(adapted: Any) -> Any:
    """The same weights as numbers, computed in float64; 4-bit layers become plain ones."""
    from bitsandbytes.functional import dequantize_4bit
    from torch.nn.utils import parametrize

    for module in list(adapted.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):
                value = module.parametrizations[name].original
                parametrize.remove_parametrizations(module, name, leave_parametrized=False)
                setattr(module, name, nn.Parameter(value.detach().clone()))
        for name, child in list(module.named_children()):
            if type(child).__name__ == "Linear4bit" and hasattr(child, "quant_state"):
                wide = nn.Linear(child.in_features, child.out_features, child.bias is not None)
                wide.weight = nn.Parameter(
                    dequantize_4bit(child.weight.data, child.weight.quant_state).double(),
                    requires_grad=False)
                if child.bias is not None:
                    wide.bias = nn.Parameter(child.bias.detach().double(), requires_grad=False)
                setattr(module, name, wide)
    if any(type(layer).__name__ == "Linear4bit" for _, layer in lora_layers(adapted)):
        from peft.tuners.lora.layer import Linear

        for _, layer in lora_layers(adapted):
            layer.__class__ = Linear
    return adapted.double()


def test_every_way_to_be_out_of_the_ordinary_goes_to_peft(shrunken: Callable[..., Path]) -> None:
    adapted, plain = (build(shrunken("llama")).eval() for _ in range(2))
    speed_up(adapted)
    assert_same_switched_off_and_merged(adapted, plain, torch.arange(7)[None])


def assert_same_switched_off_and_merged(adapted: Any, plain: Any, ids: torch.Tensor) -> None:
    """Adapters switched off or merged: the logits are those of peft's layers."""
    def same() -> None:
        with torch.no_grad():
            torch.testing.assert_close(adapted(input_ids=ids).logits, plain(input_ids=ids).logits,
                                       rtol=1e-4, atol=1e-4)

    same()
    with adapted.disable_adapter(), plain.disable_adapter():
        same()
    adapted.merge_adapter()
    plain.merge_adapter()
    same()
    adapted.unmerge_adapter()
    plain.unmerge_adapter()
    same()


def test_what_is_saved_is_what_peft_saves(shrunken: Callable[..., Path]) -> None:
    from peft import get_peft_model_state_dict

    adapted, plain = (build(shrunken("llama")) for _ in range(2))
    speed_up(adapted)
    ours, theirs = (get_peft_model_state_dict(model) for model in (adapted, plain))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("adapter", "part"), [
    ({"dora": True}, "Dora"),
    ({"options": {"lora_bias": True}}, "bias"),
])
def test_what_stays_plain_is_named_with_the_reason(
    shrunken: Callable[..., Path], adapter: dict[str, Any], part: str,
) -> None:
    adapted = build(shrunken("llama"), **adapter)
    plain = outcome(adapted, None, "padding_free")
    fast = speed_up(adapted)
    layers = next(d for d in fast.decisions if d.key == "adapter layers")
    assert layers.value == "0 of 14 fast"
    assert part in layers.reason
    assert float(errors(outcome(adapted, fast.head, "padding_free"), plain).max()) < 1e-5


def test_int8_keeps_its_own_product(shrunken: Callable[..., Path]) -> None:
    adapted = build(shrunken("llama"), quantization="int8")
    layers = next(d for d in speed_up(adapted).decisions if d.key == "adapter layers")
    assert layers.value == "0 of 14 fast"
    assert "bitsandbytes" in layers.reason


def test_a_trained_head_is_trained(shrunken: Callable[..., Path]) -> None:
    """In full, and by an adapter of its own."""
    for adapter in ({"modules_to_save": ["lm_head"]},
                    {"target_modules": ["q_proj", "lm_head"]}):
        adapted = build(shrunken("llama"), **adapter)
        plain = outcome(adapted, None, "padding_free")
        fast = speed_up(adapted)
        assert fast.head is not None
        assert fast.head.trained
        assert float(errors(outcome(adapted, fast.head, "padding_free"), plain).max()) < 1e-5


def test_a_kernel_that_computes_something_else_is_not_used(
    shrunken: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrong derivative in the MLP and a wrong scale in the layers: both are found, named, and
    nothing changes."""
    adapted = build(shrunken("llama"))
    plain = outcome(adapted, None, "padding_free")
    silu = ACTIVATIONS["silu"]
    wrong = Activation(silu.plain, silu.into, lambda dy, x, out: out.copy_(dy))
    monkeypatch.setitem(ACTIVATIONS, "silu", wrong)
    real = linear.projection
    monkeypatch.setattr(linear, "projection", lambda *args: real(*args)._replace_scale())
    monkeypatch.setattr("lorafit.kernels.lora_linear.Projection._replace_scale",
                        lambda p: type(p)(p.weight, p.a, p.b, 2 * p.scale, p.bias), raising=False)
    fast = speed_up(adapted)
    reasons = {decision.key: decision.reason for decision in fast.decisions}
    assert "disagrees with the plain path on this device" in reasons["adapter layers"]
    assert "disagrees with the plain path on this device" in reasons["gated MLPs"]
    assert not any(isinstance(m, linear.FastLinear | mlp.FastGatedMlp)
                   for m in adapted.modules())
    assert float(errors(outcome(adapted, fast.head, "padding_free"), plain).max()) < 1e-5


def test_a_missing_operation_is_a_line_and_no_crash(
    shrunken: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(*_: Any) -> None:
        raise NotImplementedError("Could not run 'aten::silu.out' on this device")

    adapted = build(shrunken("llama"))
    silu = ACTIVATIONS["silu"]
    monkeypatch.setitem(ACTIVATIONS, "silu", Activation(silu.plain, missing, silu.gradient))
    mlps = next(d for d in speed_up(adapted).decisions if d.key == "gated MLPs")
    assert mlps.value == "0 of 2 fast"
    assert "fails on this device: Could not run 'aten::silu.out'" in mlps.reason


def test_logits_that_are_not_the_heads_are_found(
    shrunken: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An architecture that scales its logits in a way that is not known here."""
    monkeypatch.setattr("lorafit.model.fast.head._DIVISORS", ())
    adapted = build(shrunken("granite", logits_scaling=3.0))
    fast = speed_up(adapted)
    assert fast.head is None
    assert "its head disagrees" in fast.decisions[0].reason


def test_looking_for_the_fast_path_leaves_no_trace(shrunken: Callable[..., Path]) -> None:
    adapted = build(shrunken("llama"), dropout=0.1)
    before = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    speed_up(adapted)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[name]) for name, p in adapted.named_parameters())
    assert all(p.grad is None for p in adapted.parameters())
    assert adapted.training
    assert not any(m._forward_pre_hooks for _, m in lora_layers(adapted))


def test_layers_of_one_input_are_computed_together(shrunken: Callable[..., Path]) -> None:
    adapted = build(shrunken("llama"))
    speed_up(adapted)
    attention = adapted.get_base_model().model.layers[0].self_attn
    shared = attention.q_proj.lorafit_shared
    assert shared.layers == [attention.q_proj, attention.k_proj, attention.v_proj]
    assert attention.o_proj.lorafit_shared is None
    x = torch.randn(1, 3, attention.q_proj.in_features)
    wanted = [layer(x) for layer in shared.layers]
    other = torch.randn_like(x)
    attention.q_proj(other)  # what is left over from one input is never given to another
    for layer, y in zip(shared.layers[1:], wanted[1:], strict=True):
        torch.testing.assert_close(layer(x), y)


def test_attention_by_document_is_used_where_it_isolates(shrunken: Callable[..., Path]) -> None:
    base = load_base(Model(base=str(shrunken("llama"))), "float32", "sdpa", CPU)
    packing = settle_packing(base, Decision("training.batching", "padding_free", "auto"), "sdpa")
    assert packing.flat
    assert base.config._attn_implementation == NAME
    ids = torch.arange(6)[None]
    with torch.no_grad():
        prompt = base.generate(input_ids=ids, attention_mask=torch.ones_like(ids),
                               max_new_tokens=4, do_sample=False)
        base.set_attn_implementation("sdpa")
        assert torch.equal(prompt, base.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4,
            do_sample=False))


def test_differences_are_found_whatever_they_are() -> None:
    a = torch.ones(3)
    assert proof.difference([a], [a]) == 0
    assert proof.difference([a * float("nan")], [a]) != proof.difference([a], [a])
    assert proof.agrees(lambda: [a * float("nan")], [a], torch.float32) is not None
    assert proof.agrees(lambda: [a + 1e-6], [a], torch.float32) is None
    assert proof.agrees(lambda: [a * 1.01], [a], torch.float32) is not None
    # Two angles that are one complex one, as in Llama 4.
    assert "not enough values" in str(proof.agrees(lambda: [*(0 * y for x, y in [(a,)])], [a],
                                                   torch.float32))




def test_the_last_mlp_is_computed_for_tokens_with_a_loss_only(
    shrunken: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapted = build(shrunken("llama"))
    plain = outcome(adapted, None, "padding_free")
    fast = speed_up(adapted)
    layers = adapted.get_base_model().model.layers
    assert fast.head is not None
    assert fast.head.last_mlp is layers[-1].mlp
    tokens = []
    real = mlp.gated_mlp
    monkeypatch.setattr(mlp, "gated_mlp",
                        lambda x, *args, **kwargs: tokens.append(x.numel() // x.shape[-1])
                        or real(x, *args, **kwargs))
    assert float(errors(outcome(adapted, fast.head, "padding_free"), plain).max()) < 1e-5
    supervised = batch(4096, LAYOUTS["padding_free"]).supervised_tokens
    assert 0 < supervised < sum(LENGTHS)
    assert tokens == [sum(LENGTHS), supervised]
    assert layers[-1].mlp.lorafit_places is None  # generation computes them all again


def test_a_layer_that_is_computed_again_computes_all_tokens(shrunken: Callable[..., Path]) -> None:
    fast = speed_up(build(shrunken("llama"), checkpointing=True))
    assert fast.head is not None
    assert fast.head.last_mlp is None
