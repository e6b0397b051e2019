"""Held-out prompts, token by token as training wrote them."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lorafit.data.dataset import TokenisedData, read_data, read_held_out, ready
from lorafit.data.examples import Conversation, Exchange, Passage
from lorafit.data.pipeline import make_renderer
from lorafit.errors import UserError
from lorafit.export.delta.held_out import Rows
from lorafit.model.trained import AdapterSource


@dataclass(frozen=True)
class Prompt:
    """ids: what training put before an answer, and the row's own answer after it.

    messages and tools: the same for a server's chat template; none where the row is no chat.
    """

    ids: list[int]
    answer: list[int]
    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)


def prompts_of_rows(rows: Rows, count: int) -> list[Prompt]:
    """The prompts of rows whose tokens and masks are known: what stands before the last answer."""
    found = []
    for ids, supervised in zip(rows.ids, rows.supervised, strict=True):
        start = _last_answer(supervised)
        if 0 < start < len(ids):
            found.append(Prompt(ids[:start].tolist(), ids[start:].tolist()))
    return found[:count]


def prompts_of_run(source: AdapterSource, count: int) -> list[Prompt]:
    """The first held-out prompts of a run (training rows where it has none) with their messages.

    UserError when there is no run, or its data cannot be read any more.
    """
    data = source.data
    if source.recipe is None or data is None:
        raise UserError("is an adapter without a run, so its held-out rows are not known",
                        str(source.directory), "give the run directory")
    tokenizer = source.tokenizer()
    held_out = _rows_of(source, tokenizer)
    renderer = make_renderer(data, tokenizer)
    numbers = held_out.selection.first_pieces()[:count].tolist()
    found = []
    for number, example in zip(numbers, held_out.examples(numbers), strict=True):
        row = held_out.tokens(number)
        ids = row.ids.tolist()
        is_chat = isinstance(example, Conversation) or (
            isinstance(example, Exchange) and renderer.exchanges_as_chat)
        text, _ = renderer.prompt(example)
        asked = list(tokenizer(text, add_special_tokens=not is_chat)["input_ids"])
        start = len(asked) if ids[: len(asked)] == asked else _last_answer(row.supervised)
        if not 0 < start < len(ids) or len(asked) >= len(ids):  # of the latter the answer was cut
            continue
        messages: list[dict[str, Any]] = []
        tools: list[dict[str, Any]] = []
        if is_chat and not isinstance(example, Passage):
            messages = renderer.conversation(example)
            messages = messages[: max(i for i, message in enumerate(messages)
                                      if message["role"] == "assistant")]
            tools = list(getattr(example, "tools", ()))
        found.append(Prompt(ids[:start], ids[start:], messages, tools))
    return found


def _rows_of(source: AdapterSource, tokenizer: Any) -> TokenisedData:
    assert source.recipe is not None
    assert source.data is not None
    data, seed = source.data, source.recipe.training.seed
    if data.eval_fraction > 0:
        held_out = read_data(data, tokenizer, seed)[1]
    else:
        checked = read_held_out(data, tokenizer)
        held_out = None if checked is None else ready(checked, data)
    if held_out is None and data.streaming:
        raise UserError("the run streamed its rows and held none out", str(source.directory))
    return read_data(data, tokenizer, seed)[0] if held_out is None else held_out


def _last_answer(supervised: np.ndarray) -> int:
    """Where the last run of supervised tokens begins; the middle of a row that is all trained."""
    trained = np.flatnonzero(supervised)
    if not len(trained):
        return 0
    gaps = np.flatnonzero(np.diff(trained) > 1)
    start = int(trained[gaps[-1] + 1] if len(gaps) else trained[0])
    return start if start > 1 else len(supervised) // 2
