"""Weights of the base itself that are trained with an adapter, on a base in 16 bits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from lorafit.model.adapters.files import load_adapter
from lorafit.recipe.adapter import Adapter
from tests.methods.harness import (
    STEPS,
    STOP,
    base,
    commit,
    logits,
    relative,
    resumed,
    saved,
    trainee,
)

CASES = {
    "norms": ({"method": "ln_tuning"}, None),
    "output head": ({"rank": 4, "modules_to_save": ["lm_head"]}, None),
    "both embeddings": ({"rank": 4, "modules_to_save": ["embed_tokens", "lm_head"]}, None),
    "a norm beside vera": ({"method": "vera", "modules_to_save": ["model.norm"]}, None),
    "biases of the layers": ({"rank": 4, "bias": "lora_only"}, "qwen2"),
    "all biases": ({"rank": 4, "bias": "all"}, "qwen2"),
}


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", CASES)
def test_they_are_trained_in_float32_and_saved_as_they_compute(
        case: str, kind: str, tmp_path: Path, shrunken: Any) -> None:
    """Small steps add up, a resumed run is the same, and plain peft computes the same logits."""
    words, family = CASES[case]
    section = Adapter.model_validate(words)
    path = "tiny" if family is None else str(shrunken(family))
    it = trainee(section, kind, path=path, rate=1e-3)
    trained = {name: p for name, p in it.adapted.named_parameters() if p.requires_grad}
    of_the_base = {name: p.detach().clone() for name, p in trained.items() if "lora_" not in name}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert of_the_base
    it.train(STOP)
    checkpoint = commit(it, tmp_path / "run")
    it.train(STEPS)
    assert it.losses[-1] < it.losses[0]
    for name, before in of_the_base.items():
        # A step of 1e-3 is below half of bfloat16's at 1; four of them must not be lost.
        assert not torch.equal(trained[name], before), name
    other = resumed(section, checkpoint, kind, path=path, rate=1e-3).train(STEPS)
    mine, theirs = it.everything(), other.everything()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    file = saved(it, tmp_path / "adapter")
    for load in (load_adapter, PeftModel.from_pretrained):
        assert torch.equal(logits(load(base(kind, path), file).eval()), logits(it.adapted))


@pytest.mark.parametrize("case", CASES)
def test_merged_they_compute_the_same(case: str, tmp_path: Path, shrunken: Any) -> None:
    words, family = CASES[case]
    path = "tiny" if family is None else str(shrunken(family))
    it = trainee(Adapter.model_validate(words), "bfloat16", path=path, rate=1e-3).train(STOP)
    adapted = load_adapter(base("float32", path), saved(it, tmp_path))
    before = logits(adapted)
    assert relative(logits(adapted.merge_and_unload()), before) < 1e-5
