"""How a model is asked: messages or text to the token ids that it was trained to go on from."""

import threading
from collections.abc import Sequence
from typing import Any

from lorafit.data.chat import Renderer
from lorafit.data.examples import BadRow, Conversation, Exchange, Message, refuse_broken_text
from lorafit.data.formats.messages import read_messages
from lorafit.data.formats.tools import tools_of
from lorafit.data.pipeline import make_renderer
from lorafit.model.trained import AdapterSource


class Prompts:
    """Prompts by one tokenizer and template. Several threads may ask at once."""

    def __init__(self, tokenizer: Any, renderer: Renderer) -> None:
        self.tokenizer = tokenizer
        self.renderer = renderer
        self._lock = threading.Lock()  # a fast tokenizer lends itself to one thread at a time

    def chat(self, messages: Sequence[Any], tools: Sequence[Any] | None = None) -> list[int]:
        """Token ids for what the assistant says next, rendered as training rendered it.

        BadRow when the messages are malformed, or the template or the way of training has no form
        for them.
        """
        text, is_chat = self.chat_text(messages, tools)
        return self.text(text, add_special_tokens=not is_chat)

    def chat_text(self, messages: Sequence[Any],
                  tools: Sequence[Any] | None = None) -> tuple[str, bool]:
        """The rendered prompt, and whether a chat template wrote it."""
        if not messages:
            raise BadRow("messages is empty", "send at least one message")
        read = read_messages(messages)
        schemas = tools_of({"tools": list(tools)}, {"tools": "tools"}) if tools else ()
        if not self.renderer.exchanges_as_chat and not schemas:
            plain = _exchange(read)
            if plain is not None:  # as it was trained, and as `lorafit generate` asks
                return self.renderer.prompt(plain)[0], False
        answer = Message("assistant", "-")  # stands for what is to come, and is not rendered
        text, _ = self.renderer.prompt(Conversation((*read, answer), schemas))
        return text, True

    def text(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of plain text. BadRow for text that no tokenizer can read."""
        refuse_broken_text(text, "the prompt")
        with self._lock:
            return list(self.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        with self._lock:
            return str(self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def spelled(self, ids: Sequence[int]) -> list[str]:
        """Each token as text of its own."""
        return [self.decode([token]) for token in ids]


def prompts_of(source: AdapterSource) -> Prompts:
    """As the adapter's run rendered its rows; by the base's own template without a run."""
    tokenizer, data = source.tokenizer(), source.data
    if data is not None:
        return Prompts(tokenizer, make_renderer(data, tokenizer))
    return Prompts(tokenizer, _plain_renderer(tokenizer))


def prompts_of_base(tokenizer: Any, fallback: str | None) -> Prompts:
    """By the base's own template, or by the adapters' where the base has none."""
    if not tokenizer.chat_template and fallback:
        tokenizer.chat_template = fallback
    return Prompts(tokenizer, _plain_renderer(tokenizer))


def _plain_renderer(tokenizer: Any) -> Renderer:
    return Renderer(tokenizer, template=None, render="auto", system=None)


def _exchange(messages: Sequence[Message]) -> Exchange | None:
    """One question, with a system message perhaps; None for anything longer."""
    system = messages[0].content if messages[0].role == "system" else None
    rest = messages[1:] if system is not None else messages
    if len(rest) == 1 and rest[0].role == "user":
        return Exchange(rest[0].content, "-", system)
    return None
