"""What is kept for the backward pass: the same results in every way, and the memory foreseen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorafit.errors import UserError
from lorafit.model.adapters.add import add_adapter
from lorafit.model.base import load_base
from lorafit.model.fast import proof
from lorafit.model.fast.mlp import FastGatedMlp
from lorafit.model.fast.speed_up import speed_up
from lorafit.model.isolation import settle_packing
from lorafit.model.loss import SummedLoss
from lorafit.model.recompute import held_bytes, kept_bytes, settle_recomputation
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.auto import Decision
from lorafit.recipe.schema import Model

CPU = torch.device("cpu")
GIB = 2**30


@pytest.fixture
def module(shrunken: Callable[..., Path]) -> Callable[..., SummedLoss]:
    def make(family: str = "llama") -> SummedLoss:
        base = load_base(Model(base=str(shrunken(family))), "float32", "sdpa", CPU)
        settle_packing(base, Decision("training.batching", "padding_free", "auto"), "sdpa")
        adapted = add_adapter(base, Adapter(rank=4, target_modules="all-linear"), 0, "base")
        torch.manual_seed(2)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if ".lora_B." in name:
                    parameter.add_(0.1 * torch.randn(parameter.shape))
        fast = speed_up(adapted)
        return SummedLoss(adapted, fast.head)

    return make


def settle(module: SummedLoss, setting: str, memory_bytes: int = 64 * GIB, tokens: int = 1000,
           *, may: bool = True) -> Decision:
    return settle_recomputation(module, setting, tokens, CPU, memory_bytes,
                                may_run_layers_again=may)


def outcome(module: SummedLoss) -> list[torch.Tensor]:
    row = proof.small_row(module.model, CPU)
    module(row["input_ids"], None, row["input_ids"], position_ids=row["position_ids"],
           documents=row["documents"]).backward()
    found = [p.grad for p in module.parameters() if p.requires_grad]
    module.zero_grad()
    return found


def test_every_way_computes_the_same(module: Callable[..., SummedLoss]) -> None:
    kept = outcome(module())
    for way in ("selective", "full"):
        it = module()
        memory = held_bytes(it, CPU)
        budgets = {"selective": 0.75, "full": 0.2}
        room = budgets[way] * kept_bytes(it, CPU) / proof.TOKENS * 1000
        assert settle(it, "auto", int((memory + room) / 0.85)).value == way
        assert it.head is not None
        assert (it.head.last_mlp is None) == (way == "full")
        for a, b in zip(outcome(it), kept, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_it_keeps_everything_where_there_is_room(module: Callable[..., SummedLoss]) -> None:
    it = module()
    decision = settle(it, "auto")
    assert decision.value == "none"
    assert "GiB are there for it" in decision.reason
    assert all(m.lorafit_keeps_inner for m in it.modules() if isinstance(m, FastGatedMlp))


def test_where_nothing_fits_it_keeps_least(module: Callable[..., SummedLoss]) -> None:
    assert settle(module(), "auto", 1).value == "full"
    assert settle(module(), "auto", 1, may=False).value == "selective"


def test_selective_keeps_less(module: Callable[..., SummedLoss]) -> None:
    it = module()
    before = kept_bytes(it, CPU)
    settle(it, "selective")
    inner = 2 * 2 * it.model.config.intermediate_size * 4 * proof.TOKENS  # two layers, gate and up
    # The last layer's MLP computes every token here but the last, which predicts nothing.
    assert before - kept_bytes(it, CPU) == pytest.approx(inner, rel=0.1)


def test_selective_needs_a_gated_mlp(module: Callable[..., SummedLoss]) -> None:
    with pytest.raises(UserError, match="no gated MLP"):
        settle(module("starcoder2"), "selective")


def test_what_a_longer_row_keeps_is_foreseen(module: Callable[..., SummedLoss],
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    it = module()
    foreseen = kept_bytes(it, CPU) / proof.TOKENS * 200
    monkeypatch.setattr(proof, "TOKENS", 200)
    real: Any = proof.small_row
    monkeypatch.setattr("lorafit.model.recompute.small_row", real)
    assert kept_bytes(it, CPU) == pytest.approx(foreseen, rel=0.1)


def test_true_and_false_are_still_understood(make_recipe: Callable[..., Any]) -> None:
    for given, meant in ((True, "full"), (False, "none"), ("selective", "selective")):
        recipe = make_recipe(training={"activation_checkpointing": given})
        assert recipe.training.activation_checkpointing == meant
