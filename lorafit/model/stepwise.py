"""Answers token by token: transformers computes, somebody else chooses each row's next token."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Choosing(Protocol):
    """Who chooses the tokens of some rows, and says which rows are over."""

    def choose(self, logits: Tensor) -> Sequence[int]:
        """The next token of each row from its logits, float32, (rows, vocabulary).

        Rows that are over are asked too, until all are; what they get is not used.
        """

    def over(self) -> Sequence[bool]:
        """Whether each row has ended, asked after every token."""


@torch.inference_mode()
def answer_rows(model: Any, rows: Sequence[Sequence[int]], choosing: Choosing, *, pad_id: int,
                longest: int, **options: Any) -> None:
    """Let a model go on with some prompts until all are over, at most `longest` tokens each.

    rows: token ids of the prompts, padded on the left and masked here. `options` go to the model's
    `generate`. Logits are as the model gives them, after what its generation settings suppress;
    penalties for repetition are left to `choosing`, because here they would count padding.
    """
    from transformers import LogitsProcessorList, StoppingCriteriaList

    device = next(model.parameters()).device
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.as_tensor(row, dtype=torch.long)
        mask[i, width - len(row) :] = 1
    model.generate(
        input_ids=ids.to(device), attention_mask=mask.to(device), max_new_tokens=longest,
        do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None, use_cache=True,
        repetition_penalty=1.0, eos_token_id=None, pad_token_id=pad_id,
        logits_processor=LogitsProcessorList([_Chosen(choosing)]),
        stopping_criteria=StoppingCriteriaList([_Over(choosing)]), **options,
    )


class _Chosen:
    """A logits processor that leaves one token to take."""

    def __init__(self, choosing: Choosing) -> None:
        self._choosing = choosing

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens = torch.as_tensor(list(self._choosing.choose(scores)), device=scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)


class _Over:
    """A stopping criterion, row by row."""

    def __init__(self, choosing: Choosing) -> None:
        self._choosing = choosing

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.as_tensor(list(self._choosing.over()), device=input_ids.device)
