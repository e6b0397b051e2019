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


@dataclass(frozen=True)
class Answered:
    """An answer without special tokens. is_cut: it reached the most tokens before it ended."""

    text: str
    is_cut: bool


def batches_of(prompts: Sequence[str], batch_size: int) -> list[list[int]]:
    """Numbers of prompts that are answered together: of similar length, the longest first, so that
    what does not fit into memory shows at once."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def answer(model: Any, tokenizer: Any, prompts: Sequence[str], sampling: Sampling, *,
           is_chat: bool, batch_size: int = 32) -> list[str]:
    """The text that follows each prompt, without special tokens.

    `prompts` are rendered texts; `is_chat` says that the template wrote their special tokens.
    Prompts of similar length are answered together; the order of the answers is the prompts'.
    """
    answers = [""] * len(prompts)
    for number, batch in enumerate(batches_of(prompts, batch_size)):
        answered = answer_batch(model, tokenizer, [prompts[i] for i in batch], sampling,
                                is_chat=is_chat, seed=sampling.seed + number * batch_size)
        for i, each in zip(batch, answered, strict=True):
            answers[i] = each.text
    return answers


@torch.inference_mode()
def answer_batch(model: Any, tokenizer: Any, prompts: Sequence[str], sampling: Sampling, *,
                 is_chat: bool, seed: int) -> list[Answered]:
    """Answers to prompts that are computed together, or in halves where memory does not suffice."""
    options: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None,
                               "top_k": None}
    if sampling.temperature > 0:
        options = {"do_sample": True, "temperature": sampling.temperature,
                   "top_p": sampling.top_p, "top_k": 0}
    ends = end_tokens(model, tokenizer)
    with _ready(model, tokenizer):
        inputs = tokenizer(
            list(prompts), add_special_tokens=not is_chat, padding=True, return_tensors="pt",
            return_token_type_ids=False,
        ).to(next(model.parameters()).device)
        torch.manual_seed(seed)
        try:
            output = model.generate(
                **inputs, max_new_tokens=sampling.max_new_tokens,
                pad_token_id=tokenizer.pad_token_id, eos_token_id=ends, **options,
            )
        except torch.OutOfMemoryError:
            if len(prompts) == 1:
                raise
            output = None
    if output is None:
        middle = len(prompts) // 2
        return [each for part in (prompts[:middle], prompts[middle:])
                for each in answer_batch(model, tokenizer, part, sampling, is_chat=is_chat,
                                         seed=seed)]
    answers = []
    for ids in output[:, inputs["input_ids"].shape[1]:]:
        has_ended = len(ids) < sampling.max_new_tokens or bool(
            torch.isin(ids, torch.tensor(ends, device=ids.device)).any())
        answers.append(Answered(tokenizer.decode(ids, skip_special_tokens=True).strip(),
                                not has_ended))
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
