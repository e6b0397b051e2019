"""Losses of methods that put virtual tokens before a row, against the loss worked out by hand."""

import pytest
import torch
from torch.nn import functional as F

from lorafit.model.loss import IGNORED, SummedLoss
from tests.methods.harness import batches, section_of, trainee


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning", "prefix_tuning", "cartridge",
                                    "llama_adapter"])
def test_the_loss_is_that_of_the_labels_own_columns(method: str) -> None:
    """Of row after row, from full logits of the row alone: whatever stands before the tokens, the
    logits of the last columns are theirs."""
    adapted = trainee(section_of(method)).train(1).adapted.eval()
    for batch in batches():
        by_hand = 0.0
        with torch.no_grad():
            for ids, labels, mask in zip(batch.input_ids, batch.labels, batch.attention_mask,
                                         strict=True):
                length = int(mask.sum())
                full = adapted(input_ids=ids[None, :length], use_cache=False).logits[0]
                own = full[full.shape[0] - length:]
                by_hand += float(F.cross_entropy(own[:-1].double(), labels[1:length],
                                                 ignore_index=IGNORED, reduction="sum"))
            assert float(SummedLoss(adapted)(**batch.inputs)) == pytest.approx(by_hand, rel=1e-5)


def test_virtual_tokens_have_logits_of_their_own_only_where_they_are_embeddings() -> None:
    """What the test above takes care of is there: prompt tuning's logits are longer."""
    ids = batches()[0].input_ids
    widths = {method: trainee(section_of(method)).adapted(input_ids=ids, use_cache=False)
              .logits.shape[1] - ids.shape[1] for method in ("prompt_tuning", "prefix_tuning")}
    assert widths == {"prompt_tuning": 20, "prefix_tuning": 0}
