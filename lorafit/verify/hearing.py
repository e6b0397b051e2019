"""What a server says to prompts: by token ids, in chat, and without the adapter."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lorafit.errors import UserError
from lorafit.export.delta.held_out import Rows
from lorafit.verify.endpoint import BuiltPrompt, Endpoint, Refused, Reply
from lorafit.verify.prompts import Prompt


@dataclass(frozen=True)
class AskedOf:
    """Which model of a server to ask, the name of its base there, how many prompts with answers of
    how many tokens, and what counts as a tie (nats; that of 16 bits if None)."""

    name: str
    base_name: str | None
    prompts: int = 8
    tokens: int = 32
    tie: float | None = None


@dataclass(frozen=True)
class Heard:
    """What the server answered to each prompt; None for ways of asking that it does not have."""

    completed: list[Reply] | None
    base_completed: list[Reply] | None
    chatted: list[Reply] | None
    built: list[BuiltPrompt | None]
    logprobs: list[np.ndarray] | None
    remarks: list[str]


def hear(endpoint: Endpoint, asked: AskedOf, base_name: str | None, prompts: list[Prompt],
         rows: Rows) -> Heard:
    """Ask in every way that the server takes. UserError where it takes none."""
    remarks: list[str] = []

    def all_of(what: str, ask: Callable[[Prompt], Reply], of: list[Prompt]) -> list[Reply] | None:
        try:
            return [ask(prompt) for prompt in of]
        except Refused as refused:
            remarks.append(f"the server does not take {what} ({refused})")
            return None

    completed = all_of("prompts of token ids", lambda prompt: endpoint.complete(
        asked.name, prompt.ids, asked.tokens), prompts)
    base_completed = None
    if base_name is not None and completed is not None:
        base_completed = all_of("prompts of token ids for the base", lambda prompt:
                                endpoint.complete(base_name, prompt.ids, asked.tokens), prompts)
    chats = [prompt for prompt in prompts if prompt.messages]
    chatted = all_of("chats", lambda prompt: endpoint.chat(
        asked.name, prompt.messages, prompt.tools, asked.tokens), chats) if chats else None
    built = [endpoint.built_prompt(asked.name, prompt.messages, prompt.tools,
                                   chatted[number] if chatted else None)
             for number, prompt in enumerate(chats)]
    if completed is None and chatted is None:
        raise UserError("takes neither prompts of token ids nor chats", endpoint.url,
                        "; ".join(remarks))
    logprobs: list[np.ndarray] = []
    for ids in rows.ids:
        told = endpoint.logprobs(asked.name, ids.tolist())
        if told is None:  # the server has none, or not for a row of this length
            break
        logprobs.append(np.array(told))
    return Heard(completed, base_completed, chatted, built, logprobs or None, remarks)
