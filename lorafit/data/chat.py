"""Examples to text with supervised character spans, and from there to tokens with a mask.

The text of a row is rendered once and tokenised once; where the assistant speaks is known as
character spans, so that the mask never depends on how text splits into tokens. The spans come from
the template's own `{% generation %}` marks, or from rendering prefixes of the conversation, which
is only accepted when each rendered prefix is a prefix of the whole.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np

from lorafit.data.examples import BadRow, Conversation, Exchange, Message, Passage

Span = tuple[int, int]

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_DATE_CALL = re.compile(r"""strftime_now\(\s*(?P<quote>["'])(?P<format>[^"'{}]*)(?P=quote)\s*\)""")


@dataclass(frozen=True)
class Rendered:
    """Text of a row, the character spans that are trained, and how to tokenise it.

    `is_chat`: the template wrote all special tokens; otherwise the tokenizer adds its own and an
    end-of-sequence token closes the row.
    """

    text: str
    spans: tuple[Span, ...]
    is_chat: bool


@dataclass(frozen=True)
class Tokens:
    """Token ids of a row and which of them are trained. Both have shape (length,)."""

    ids: np.ndarray  # int32
    supervised: np.ndarray  # bool


class Renderer:
    """Renders examples with one tokenizer.

    `template` replaces the tokenizer's own; `render` is the recipe's `auto`, `chat` or `plain`;
    `system` is given to rows that bring none; `today` is what a template that prints a date sees.
    """

    def __init__(self, tokenizer: Any, *, template: str | None, render: str,
                 system: str | None, today: date | None = None) -> None:
        self.tokenizer = tokenizer
        own = tokenizer.chat_template
        if isinstance(own, dict):  # several, by purpose
            own = own.get("default")
        self.template = _with_date(template or own, today or date.today())
        self.exchanges_as_chat = render == "chat" or (render == "auto" and bool(self.template))
        self.system = system
        self.has_marks = bool(self.template and _GENERATION_MARK.search(self.template))

    def render(self, example: Conversation | Exchange | Passage) -> Rendered:
        """BadRow when the template refuses the row or its mask cannot be derived."""
        if isinstance(example, Passage):
            return Rendered(example.text, ((0, len(example.text)),), is_chat=False)
        if isinstance(example, Exchange) and not self.exchanges_as_chat:
            system = example.system or self.system
            prompt = example.plain_prompt or example.prompt
            prompt = f"{system}\n\n{prompt}" if system else prompt
            text = prompt + example.completion
            return Rendered(text, ((len(prompt), len(text)),), is_chat=False)
        messages = self.conversation(example)
        if self.has_marks:
            text, spans = self._marked_spans(messages)
        else:
            text, spans = self._derived_spans(messages)
        return Rendered(text, tuple(self._close(text, span) for span in spans), is_chat=True)

    def prompt(self, example: Conversation | Exchange | Passage) -> tuple[str, str]:
        """What the model is asked and what it should answer: the last turn of a conversation.

        The prompt is ready to be tokenised for generation. A passage is split in the middle.
        """
        if isinstance(example, Passage):
            middle = len(example.text) // 2
            return example.text[:middle], example.text[middle:]
        if isinstance(example, Exchange) and not self.exchanges_as_chat:
            rendered = self.render(example)
            start, end = rendered.spans[0]
            return rendered.text[:start], rendered.text[start:end]
        messages = self.conversation(example)
        last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        return self._apply(messages[:last], add_generation_prompt=True), messages[last]["content"]

    def conversation(self, example: Conversation | Exchange) -> list[dict[str, str]]:
        """The messages of an example, the recipe's system message included."""
        if isinstance(example, Exchange):
            messages = [Message("user", example.prompt), Message("assistant", example.completion)]
            if example.system:
                messages.insert(0, Message("system", example.system))
            example = Conversation(tuple(messages))
        dicts = example.as_dicts()
        if self.system and dicts[0]["role"] != "system":
            dicts.insert(0, {"role": "system", "content": self.system})
        return dicts

    def _marked_spans(self, messages: list[dict[str, str]]) -> tuple[str, list[Span]]:
        """Spans from the template's generation marks."""
        from transformers.utils.chat_template_utils import render_jinja_template

        texts, spans = self._guard(lambda: render_jinja_template(
            conversations=[messages], chat_template=self.template,
            return_assistant_tokens_mask=True, **self.tokenizer.special_tokens_map,
        ))
        return texts[0], [tuple(span) for span in spans[0]]

    def _derived_spans(self, messages: list[dict[str, str]]) -> tuple[str, list[Span]]:
        """Spans from rendering the conversation up to each turn of the assistant."""
        text = self._apply(messages)
        spans = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            after = self._apply(messages[: i + 1])
            before = self._before(messages, i, after)
            if not (text.startswith(after) and after.startswith(before)):
                raise BadRow(
                    f"the chat template rewrites earlier turns (at message {i + 1}), so what the "
                    "assistant says cannot be told apart exactly",
                    "give a template with {% generation %} marks in data.chat_template",
                )
            spans.append((len(before), len(after)))
        return text, spans

    def _before(self, messages: list[dict[str, str]], i: int, after: str) -> str:
        """The text in front of what the assistant says in message `i`."""
        if i:
            return self._apply(messages[:i], add_generation_prompt=True)
        # Many templates cannot render no message at all, so the heading of the assistant's turn is
        # learnt from another conversation.
        asked = [{"role": "user", "content": "-"}]
        heading = self._apply(asked, add_generation_prompt=True).removeprefix(self._apply(asked))
        if not heading or heading not in after:
            raise BadRow("the row starts with the assistant, and the chat template does not show "
                         "where that turn's text begins",
                         "start the row with a user's message, or give a template with "
                         "{% generation %} marks in data.chat_template")
        return after[: after.index(heading) + len(heading)]

    def _close(self, text: str, span: Span) -> Span:
        """End the span at the end-of-turn token: white space after it belongs to the template."""
        start, end = span
        said = text[start:end]
        stripped = said.rstrip()
        if any(stripped.endswith(token) for token in self._special_tokens):
            return start, start + len(stripped)
        eos = self.tokenizer.eos_token
        follows = text[end:]
        if eos and follows.startswith(eos):  # the mark stops before the end-of-turn token
            return start, end + len(eos)
        raise BadRow(
            "the chat template does not close the assistant's turn with a special token, so the "
            "model would never learn to stop",
            "give a template that does in data.chat_template",
        )

    @property
    def _special_tokens(self) -> list[str]:
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        return [str(token.content) for token in added if token.special] or [
            *self.tokenizer.all_special_tokens
        ]

    def _apply(self, messages: list[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
        if not self.template:
            raise BadRow(
                "the tokenizer has no chat template, so conversations cannot be rendered",
                "give one in data.chat_template, or use a base with a template",
            )
        return self._guard(lambda: self.tokenizer.apply_chat_template(
            messages, chat_template=self.template, tokenize=False,
            add_generation_prompt=add_generation_prompt,
        ))

    def _guard(self, call: Any) -> Any:
        """A template is somebody's program: whatever it raises is about this row."""
        try:
            return call()
        except BadRow:
            raise
        except Exception as error:
            raise BadRow(f"the chat template refuses the row: {error}",
                         "mend the row, or give another template in data.chat_template") from None

    def tokenise(self, rendered: Sequence[Rendered]) -> list[Tokens]:
        """Token ids and masks; a token is trained when it holds a character of a span."""
        result: list[Tokens | None] = [None] * len(rendered)
        for is_chat in (True, False):
            chosen = [i for i, row in enumerate(rendered) if row.is_chat == is_chat]
            if not chosen:
                continue
            encoded = self.tokenizer(
                [rendered[i].text for i in chosen], add_special_tokens=not is_chat,
                return_offsets_mapping=True, return_attention_mask=False,
                return_token_type_ids=False,
            )
            for i, ids, offsets in zip(
                chosen, encoded["input_ids"], encoded["offset_mapping"], strict=True
            ):
                result[i] = self._mask(rendered[i], ids, offsets)
        return [tokens for tokens in result if tokens is not None]

    def _mask(self, row: Rendered, ids: list[int], offsets: list[Span]) -> Tokens:
        positions = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
        ends = positions[:, 1]
        # Some tokenizers trim the spaces off a token's offsets, so that a token of spaces alone
        # seems empty: a token starts where the one before it ends.
        before = np.maximum.accumulate(np.concatenate([[0], ends]))[:-1]
        starts = np.minimum(positions[:, 0], before)
        supervised = np.zeros(len(ids), dtype=bool)
        for start, end in row.spans:
            supervised |= (starts < end) & (ends > start) & (ends > starts)
        token_ids = np.asarray(ids, dtype=np.int32)
        eos = self.tokenizer.eos_token_id
        if not row.is_chat and eos is not None:
            if len(ids) and ids[-1] == eos:
                supervised[-1] = True
            else:
                token_ids = np.append(token_ids, np.int32(eos))
                supervised = np.append(supervised, True)
        return Tokens(token_ids, supervised)


def _with_date(template: str | None, today: date) -> str | None:
    """The template with its calls for the current date answered.

    Otherwise rows would change at midnight: a resumed run would see other data than it began with.
    """
    if template is None:
        return None
    return _DATE_CALL.sub(lambda call: repr(today.strftime(call["format"])), template)
