"""Answers of base and adapter to held-out rows, counted right when they match exactly."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from lorafit.data.batches import collate
from lorafit.data.dataset import TokenisedData, read_data, read_held_out, ready
from lorafit.data.packing import Layout, split_rows
from lorafit.data.pipeline import make_renderer
from lorafit.errors import UserError
from lorafit.model.adapters.files import load_adapter
from lorafit.model.base import load_for_inference
from lorafit.model.generate import Sampling, answer
from lorafit.model.loss import summed_cross_entropy
from lorafit.model.trained import AdapterSource
from lorafit.recipe.schema import Data
from lorafit.run_dir import write_json


@dataclass(frozen=True)
class Score:
    """Exact matches out of rows, and held-out loss in nats per supervised token."""

    correct: int
    rows: int
    loss: float

    @property
    def accuracy(self) -> float:
        return self.correct / max(1, self.rows)


@dataclass(frozen=True)
class Answer:
    """A held-out prompt, what was wanted, and what base and adapter said."""

    prompt: str
    wanted: str
    base: str
    adapter: str


@dataclass(frozen=True)
class Evaluation:
    base: Score
    adapter: Score
    answers: list[Answer]


def evaluate(source: AdapterSource, max_rows: int | None, max_new_tokens: int,
             say: Callable[[str], None] = lambda text: None) -> Evaluation:
    """Base beside adapter on the run's held-out rows; stored in the run directory."""
    data = source.data
    if source.recipe is None or source.run is None or data is None:
        raise UserError("is an adapter without a run, so its held-out rows are not known",
                        str(source.directory), "give the run directory")
    tokenizer = source.tokenizer()
    held_out = _held_out(data, source.recipe.training.seed, tokenizer)
    if held_out is None:
        raise UserError("the run has no held-out rows", str(source.run.path),
                        "train with data.eval or data.eval_fraction")
    rows = held_out.selection.first_pieces()[:max_rows]  # a row that was split is asked once
    examples = held_out.examples(rows.tolist())
    model = load_for_inference(source.model)
    renderer = make_renderer(data, tokenizer)
    asked = [renderer.prompt(example) for example in examples]
    scores, replies = [], []
    for name in ("base", "adapter"):
        say(f"{name}: answering {len(asked)} held-out prompts")
        if name == "adapter":
            model = load_adapter(model, source.directory)
        replies.append(answer(model, tokenizer, [prompt for prompt, _ in asked],
                              Sampling(max_new_tokens), is_chat=_is_chat(renderer, examples[0])))
        loss = _loss(model, held_out, rows, tokenizer.pad_token_id or 0)
        correct = sum(reply.strip() == wanted.strip()
                      for reply, (_, wanted) in zip(replies[-1], asked, strict=True))
        scores.append(Score(correct, len(asked), loss))
    answers = [
        Answer(_question(example), wanted.strip(), base, tuned)
        for example, (_, wanted), base, tuned in zip(examples, asked, *replies, strict=True)
    ]
    result = Evaluation(scores[0], scores[1], answers)
    write_json(source.run.evaluation, asdict(result))
    return result


def _held_out(data: Data, seed: int, tokenizer: Any) -> TokenisedData | None:
    if data.eval_fraction > 0:
        return read_data(data, tokenizer, seed)[1]
    checked = read_held_out(data, tokenizer)
    return None if checked is None else ready(checked, data)


def _loss(model: Any, data: TokenisedData, rows: np.ndarray, pad_id: int) -> float:
    """Mean loss of the rows, in nats per supervised token."""
    total = weight = 0.0
    layout = Layout("padded", 16, 0)
    with torch.inference_mode():
        for part in split_rows(data.lengths[rows], layout, ranks=1):
            batch = collate(lambda i: data.tokens(int(rows[i])), part, layout, pad_id)
            total += float(summed_cross_entropy(model, **batch.to(model.device).inputs))
            weight += batch.loss_weight
    return total / (weight or 1.0)


def _question(example: Any) -> str:
    if hasattr(example, "messages"):
        return next((message.content for message in reversed(example.messages)
                     if message.role == "user"), "")
    return getattr(example, "prompt", "") or getattr(example, "text", "")


def _is_chat(renderer: Any, example: Any) -> bool:
    return hasattr(example, "messages") or (hasattr(example, "prompt")
                                            and renderer.exchanges_as_chat)
