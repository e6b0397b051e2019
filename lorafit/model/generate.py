"""Answers from a model: greedy by default, several prompts at once."""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. Temperature 0 takes the most likely token at each step."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end an answer: the model's own and the tokenizer's end-of-sequence."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({i for i in [*ids, tokenizer.eos_token_id] if i is not None})


@torch.inference_mode()
def answer(model: Any, tokenizer: Any, prompts: Sequence[str], sampling: Sampling, *,
           is_chat: bool, batch_size: int = 32) -> list[str]:
    """The text that follows each prompt, without special tokens.

    `prompts` are rendered texts; `is_chat` says that the template wrote their special tokens.
    Prompts of similar length are answered together; the order of the answers is the prompts'.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [""] * len(prompts)
    options: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None,
                               "top_k": None}
    if sampling.temperature > 0:
        options = {"do_sample": True, "temperature": sampling.temperature,
                   "top_p": sampling.top_p, "top_k": 0}
    with _ready(model, tokenizer):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            inputs = tokenizer(
                [prompts[i] for i in chosen], add_special_tokens=not is_chat, padding=True,
                return_tensors="pt", return_token_type_ids=False,
            ).to(device)
            torch.manual_seed(sampling.seed + start)
            output = model.generate(
                **inputs, max_new_tokens=sampling.max_new_tokens,
                pad_token_id=tokenizer.pad_token_id, eos_token_id=end_tokens(model, tokenizer),
                **options,
            )
            width = inputs["input_ids"].shape[1]
            for i, ids in zip(chosen, output[:, width:], strict=True):
                answers[i] = tokenizer.decode(ids, skip_special_tokens=True).strip()
    return answers


@contextmanager
def _ready(model: Any, tokenizer: Any) -> Any:
    """Evaluation mode, padding on the left and the key-value cache on, put back afterwards."""
    training, side, cache = model.training, tokenizer.padding_side, model.config.use_cache
    tokenizer.padding_side = "left"
    model.config.use_cache = True
    model.eval()
    try:
        yield
    finally:
        tokenizer.padding_side = side
        model.config.use_cache = cache
        model.train(training)
