"""AdaLoRA: the budget is reached, and an interruption anywhere changes nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lorafit.model.adapters.files import CONFIG, WEIGHTS, load_adapter
from tests.methods.harness import (
    base,
    batches,
    commit,
    logits,
    relative,
    resumed,
    saved,
    section_of,
    trainee,
)

STEPS = 9  # of which the ranks move in 1 to 6


def ranks(adapted: Any) -> list[int]:
    return [int((parameter != 0).sum()) for name, parameter in adapted.named_parameters()
            if ".lora_E." in name]


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("stop", [1, 4, 6, 8])
def test_resumed_before_during_and_after_the_last_allocation(
        kind: str, stop: int, tmp_path: Path) -> None:
    section = section_of("adalora", rank=2)
    it = trainee(section, kind, STEPS).train(stop)
    checkpoint = commit(it, tmp_path / "run")
    it.train(STEPS)
    other = resumed(section, checkpoint, kind, STEPS).train(STEPS)
    mine, theirs = it.everything(), other.everything()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    files = [saved(it, tmp_path / "one"), saved(other, tmp_path / "other")]
    for name in (CONFIG, WEIGHTS):
        assert (files[0] / name).read_bytes() == (files[1] / name).read_bytes()
    assert torch.equal(logits(load_adapter(base(kind), files[0])), logits(it.adapted))


def test_the_ranks_start_at_half_more_and_end_at_the_budget_where_they_matter(
        tmp_path: Path) -> None:
    it = trainee(section_of("adalora", rank=2), steps=STEPS)
    layers = [p for name, p in it.adapted.named_parameters() if ".lora_E." in name]
    assert {parameter.shape[0] for parameter in layers} == {3}
    found = ranks(it.train(STEPS).adapted)
    assert sum(found) == 2 * len(layers)
    assert len(set(found)) > 1
    merged = load_adapter(base(), saved(it, tmp_path)).merge_and_unload()
    assert relative(logits(merged), logits(it.adapted)) < 1e-5


def test_its_penalty_is_peft_s_own() -> None:
    """peft adds it to the loss that it computes itself; the gradients must be the same."""
    ours, theirs = (trainee(section_of("adalora", rank=2)) for _ in range(2))
    batch = batches()[0]
    for it in (ours, theirs):  # off the start, where the update is 0
        it.train(1)
        it.adapted.eval()
    ours.adapted(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    model = theirs.adapted.base_model
    plain = model.model(input_ids=batch.input_ids, labels=batch.labels,
                        attention_mask=batch.attention_mask, use_cache=False).loss
    plain.backward()
    without = {name: p.grad.clone() for name, p in theirs.adapted.named_parameters()
               if p.grad is not None}
    theirs.adapted.zero_grad()
    theirs.adapted(input_ids=batch.input_ids, labels=batch.labels,
                   attention_mask=batch.attention_mask, use_cache=False).loss.backward()
    ours.rule.add_gradients()
    compared = 0
    for name, parameter in ours.adapted.named_parameters():
        if parameter.grad is not None:
            wanted = dict(theirs.adapted.named_parameters())[name].grad - without[name]
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-6)
            compared += 1
    assert compared == 2 * len(ranks(ours.adapted))


def test_the_count_of_ranks_is_not_trained() -> None:
    """peft makes it trainable over a 16-bit base, where it would change the scale."""
    adapted = trainee(section_of("adalora"), "bfloat16").adapted
    assert not [name for name, p in adapted.named_parameters() if "ranknum" in name
                and p.requires_grad]
