"""What a model says to rows and prompts, and how far another model's words are from that.

The reference's logits lie in files, so that two models are never in memory together and neither
are the logits of more than one row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorafit.errors import VerificationError
from lorafit.export.delta.held_out import Rows
from lorafit.export.verify import Agreement, Tally, logits_of


@dataclass(frozen=True)
class Answer:
    """A greedy answer: its token ids, and the logits that each was chosen by, (tokens, vocabulary).
    """

    ids: list[int]
    logits: torch.Tensor


@dataclass(frozen=True)
class Spoken:
    """What a model said, kept in a folder. answers: token ids to each prompt."""

    folder: Path
    answers: list[list[int]]

    def logits(self, row: int) -> torch.Tensor:
        """Of a row, (length, vocabulary)."""
        return torch.from_numpy(np.load(self.folder / f"row-{row}.npy"))

    def steps(self, prompt: int) -> torch.Tensor:
        """The logits that each token of an answer was chosen by, (tokens, vocabulary)."""
        return torch.from_numpy(np.load(self.folder / f"answer-{prompt}.npy"))


@dataclass(frozen=True)
class Divergence:
    """Where an answer leaves the reference's: which prompt, after how many equal tokens, and how
    much likelier the reference has its own token there, in nats."""

    prompt: int
    token: int
    margin_nats: float


@dataclass(frozen=True)
class Difference:
    """How another model's words differ from the reference's.

    other_top: positions with another most likely token. top_margin_nats: of these, how much
    likelier the reference has its own one, at most. loss and reference_loss: nats per supervised
    token. answer_tokens: supervised tokens. logprob_mean and logprob_largest: |Δ log-probability|
    of these, in nats. diverged: answers that are not the reference's.
    """

    agreement: Agreement
    other_top: int
    top_margin_nats: float
    reference_loss: float
    loss: float
    answer_tokens: int
    logprob_mean: float
    logprob_largest: float
    answers: int
    longest_answer_tokens: int
    diverged: list[Divergence] = field(default_factory=list)


def speak(model: Any, rows: Rows, prompts: Sequence[Sequence[int]], max_new_tokens: int,
          ends: Sequence[int], folder: Path) -> Spoken:
    """Keep what a model says to rows and prompts in a folder."""
    folder.mkdir()
    for number, ids in enumerate(rows.ids):
        np.save(folder / f"row-{number}.npy", _of_row(model, ids).numpy())
    answers = []
    for number, prompt in enumerate(prompts):
        answer = greedy(model, prompt, max_new_tokens, ends)
        np.save(folder / f"answer-{number}.npy", answer.logits.numpy())
        answers.append(answer.ids)
    return Spoken(folder, answers)


def difference(references: Sequence[Spoken], model: Any, rows: Rows,
               prompts: Sequence[Sequence[int]], max_new_tokens: int,
               ends: Sequence[int]) -> list[Difference]:
    """How a model differs from each of some references on the same rows and prompts.

    VerificationError when it has another vocabulary.
    """
    sums = [_Sums(reference) for reference in references]
    for number, (ids, supervised) in enumerate(zip(rows.ids, rows.supervised, strict=True)):
        logits = _of_row(model, ids)
        for each in sums:
            each.row(number, logits, ids, supervised)
    for number, prompt in enumerate(prompts):
        answer = greedy(model, prompt, max_new_tokens, ends)
        for each in sums:
            each.answer(number, answer.ids)
    return [each.result(len(prompts)) for each in sums]


@torch.inference_mode()
def greedy(model: Any, prompt: Sequence[int], max_new_tokens: int, ends: Sequence[int]) -> Answer:
    """The most likely token at each step, without anything that a generation config would add."""
    device = next(model.parameters()).device
    ids = torch.tensor([list(prompt)], device=device)
    use_cache, model.config.use_cache = model.config.use_cache, True
    try:
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=1,
            temperature=None, top_p=None, top_k=None, repetition_penalty=1.0,
            max_new_tokens=max_new_tokens, eos_token_id=list(ends) or None,
            pad_token_id=(list(ends) or [0])[0], return_dict_in_generate=True, output_logits=True)
    finally:
        model.config.use_cache = use_cache
    count = len(out.logits)
    return Answer(out.sequences[0, -count:].tolist(), torch.cat(out.logits).float().cpu())


def diverging(prompt: int, mine: Sequence[int], theirs: Sequence[int],
              steps: torch.Tensor) -> Divergence | None:
    """Where `theirs` leaves the reference's answer `mine`; None where it never does.

    steps: the logits that the reference chose by, (tokens, vocabulary).
    """
    if list(mine) == list(theirs):
        return None
    at = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b),
              min(len(mine), len(theirs)))
    if at >= len(mine) or at >= len(theirs):  # one of them went on where the other ended
        return Divergence(prompt, at, float("inf"))
    said = torch.log_softmax(steps[at], -1)
    return Divergence(prompt, at, float(said[mine[at]] - said[theirs[at]]))


class _Sums:
    """What is added up about one reference."""

    def __init__(self, reference: Spoken) -> None:
        self.reference = reference
        self.tally = Tally()
        self.other_top = self.answer_tokens = 0
        self.top_margin = self.largest = self.changed = self.loss = self.reference_loss = 0.0
        self.diverged: list[Divergence] = []

    def row(self, number: int, logits: torch.Tensor, ids: np.ndarray,
            supervised: np.ndarray) -> None:
        reference = self.reference.logits(number)
        if reference.shape != logits.shape:
            raise VerificationError(
                f"the artifact has a vocabulary of {logits.shape[-1]:,} tokens, the trainer's "
                f"model one of {reference.shape[-1]:,}\n    this is another base")
        self.tally.add(reference, logits)
        said, theirs = (torch.log_softmax(each, -1) for each in (reference, logits))
        mine, other = reference.argmax(-1), logits.argmax(-1)
        if (flips := torch.nonzero(mine != other)[:, 0]).numel():
            margins = said[flips, mine[flips]] - said[flips, other[flips]]
            self.other_top += len(flips)
            self.top_margin = max(self.top_margin, float(margins.max()))
        wanted = torch.from_numpy(supervised[1:])
        targets = torch.from_numpy(ids[1:].astype(np.int64))[wanted][:, None]
        before = said[:-1][wanted].gather(-1, targets)
        after = theirs[:-1][wanted].gather(-1, targets)
        self.reference_loss -= float(before.double().sum())
        self.loss -= float(after.double().sum())
        if len(targets):
            changed = (before - after).abs()
            self.changed += float(changed.double().sum())
            self.largest = max(self.largest, float(changed.max()))
            self.answer_tokens += len(targets)

    def answer(self, number: int, ids: list[int]) -> None:
        found = diverging(number, self.reference.answers[number], ids,
                          self.reference.steps(number))
        if found is not None:
            self.diverged.append(found)

    def result(self, answers: int) -> Difference:
        count = max(1, self.answer_tokens)
        return Difference(
            self.tally.agreement(), self.other_top, self.top_margin,
            self.reference_loss / count, self.loss / count, self.answer_tokens,
            self.changed / count, self.largest, answers,
            max((len(ids) for ids in self.reference.answers), default=0), self.diverged)


def _of_row(model: Any, ids: np.ndarray) -> torch.Tensor:
    """(length, vocabulary), without what stands before a row for virtual tokens of a prompt."""
    return logits_of(model, [ids])[0][-len(ids):]
