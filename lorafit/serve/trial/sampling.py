"""What is asked for, and how the next token of an answer is chosen."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Wanted:
    """One answer that is asked for.

    adapter: its name, None for the base. prompt: token ids. max_tokens: longest answer. stop:
    texts, and stop_tokens ids, that end it. ignore_eos: the model's own end does not.
    temperature 0 takes the most likely token; top_k 0 and top_p 1 leave all of them in.
    logprobs: how many of the most likely tokens are told beside each one; None for no
    probabilities at all.
    """

    adapter: str | None
    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    skip_special_tokens: bool = True
    keep_stop: bool = False

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0 and not self.has_penalties

    @property
    def has_penalties(self) -> bool:
        return (self.repetition_penalty != 1 or self.presence_penalty != 0
                or self.frequency_penalty != 0)


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log probability in nats, before temperature, and the most likely ones' beside."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def generator_of(wanted: Wanted) -> torch.Generator:
    """Random numbers of one answer alone, so that others in the batch change nothing."""
    seed = random.SystemRandom().getrandbits(63) if wanted.seed is None else wanted.seed
    return torch.Generator().manual_seed(seed)


def draw(logits: Tensor, wanted: Wanted, answered: Sequence[int],
         generator: torch.Generator) -> int:
    """The next token after `answered`, from its logits of shape (vocabulary,)."""
    scores = logits.float().cpu().clone()
    if wanted.has_penalties:
        _penalise(scores, wanted, answered)
    if wanted.temperature == 0:
        return int(scores.argmax())
    scores /= wanted.temperature
    if 0 < wanted.top_k < len(scores):
        scores[scores < scores.topk(wanted.top_k).values[-1]] = -torch.inf
    if wanted.top_p < 1:
        ordered, places = scores.softmax(-1).sort(descending=True)
        before = ordered.cumsum(-1) - ordered  # the most likely token always stays
        scores[places[before >= wanted.top_p]] = -torch.inf
    if wanted.min_p > 0:
        probabilities = scores.softmax(-1)
        scores[probabilities < wanted.min_p * probabilities.max()] = -torch.inf
    return int(torch.multinomial(scores.softmax(-1), 1, generator=generator))


def logprob_of(logits: Tensor, token: int, top: int) -> TokenLogprob:
    """Of the token that was taken, and of the `top` most likely ones."""
    values = torch.log_softmax(logits.float(), -1)
    best = values.topk(top) if top else None
    return TokenLogprob(token, float(values[token]), () if best is None else tuple(
        zip(best.indices.tolist(), best.values.tolist(), strict=True)))


def _penalise(scores: Tensor, wanted: Wanted, answered: Sequence[int]) -> None:
    """Repetition as in CTRL (arXiv 1909.05858), over prompt and answer; presence and frequency as
    OpenAI's API defines them, over the answer."""
    seen = torch.tensor(sorted({*wanted.prompt, *answered}))
    found = scores[seen]
    scores[seen] = torch.where(found > 0, found / wanted.repetition_penalty,
                               found * wanted.repetition_penalty)
    for token, times in Counter(answered).items():
        scores[token] -= wanted.presence_penalty + wanted.frequency_penalty * times
