"""Examples to text, and which characters of it are trained."""

import json
from collections.abc import Sequence
from datetime import date
from typing import Any

from lorafit.data.chat.encoder import Encoder
from lorafit.data.chat.masks import Rendered, Span, tokenise
from lorafit.data.chat.program import Program
from lorafit.data.chat.proof import check_calls, check_shown, reasoning_keys
from lorafit.data.chat.trace import ATTEMPTS, Trace, trace
from lorafit.data.chat.turns import Closings, Turn, TurnFinder
from lorafit.data.examples import BadRow, Conversation, Exchange, Message, Passage, Trainable
from lorafit.data.tokens import Tokens


class Renderer:
    """Renders examples with one tokenizer.

    `template` replaces the tokenizer's own; `render` is the recipe's `auto`, `chat` or `plain`;
    `system` is given to rows that bring none; `train_on` and `train_on_end_of_turn` are the
    recipe's; `today` is what a template that prints a date sees.

    way: whether masks come from the template's own marks (`marks`) or are found in what it writes
    (`derived`). notices: what a user should know about the rows rendered so far.
    """

    def __init__(self, tokenizer: Any, *, template: str | None, render: str, system: str | None,
                 train_on: str = "assistant", train_on_end_of_turn: bool = True,
                 today: date | None = None) -> None:
        self.tokenizer = tokenizer
        self.system = system
        self.train_on, self.train_on_end_of_turn = train_on, train_on_end_of_turn
        self.today = today or date.today()
        self.notices: set[str] = set()
        own = tokenizer.chat_template
        named = own if isinstance(own, dict) else {"default": own}  # several, by purpose
        self.template: str | None = template or named.get("default")
        self.exchanges_as_chat = render == "chat" or (render == "auto" and bool(self.template))
        for_tools = self.template
        if self.template == named.get("default"):
            for_tools = named.get("tool_use", self.template)
        self._dialect = _Dialect(self.template, self.today) if self.template else None
        self._tool_dialect = self._dialect if for_tools == self.template or not for_tools \
            else _Dialect(for_tools, self.today)
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        self._closings = Closings({*tokenizer.all_special_tokens,
                                   *(token.content for token in added if token.special)},
                                  tokenizer.eos_token)
        self._encoder = Encoder(tokenizer)
        self._named_tokens = tokenizer.special_tokens_map

    @property
    def way(self) -> str:
        return "marks" if self._dialect and self._dialect.has_marks else "derived"

    def render(self, example: Trainable) -> Rendered:
        """BadRow when the template refuses the row, loses something of it, or its mask cannot be
        proven."""
        if isinstance(example, Passage):
            return Rendered(example.text, (Span(0, len(example.text)),), is_chat=False)
        if isinstance(example, Exchange) and not self.exchanges_as_chat:
            system = example.system or self.system
            prompt = example.plain_prompt or example.prompt
            prompt = f"{system}\n\n{prompt}" if system else prompt
            text = prompt + example.completion
            start = 0 if self.train_on == "all" else len(prompt)
            return Rendered(text, (Span(start, len(text)),), is_chat=False)
        messages, weights = self._messages(example)
        dialect = self._dialect_of(example)
        values, text = _written(dialect.program, self._values(messages, example))
        found, attempt = _traced(dialect.program, values, text)
        said = check_shown(messages, values["tools"], found, attempt, self.notices)
        finder = TurnFinder(dialect.program, values, found, said, self._closings, dialect.heading)
        return Rendered(text, self._spans(messages, weights, finder, dialect.has_marks), True)

    def tokenise(self, rendered: Sequence[Rendered]) -> list[Tokens]:
        """Token ids and masks; a token is trained when it holds a character of a span."""
        return tokenise(rendered, self._encoder, self.train_on_end_of_turn)

    def prompt(self, example: Trainable) -> tuple[str, str]:
        """What the model is asked and what it should answer: the last turn of a conversation.

        The prompt is ready to be tokenised for generation. A passage is split in the middle.
        """
        if isinstance(example, Passage):
            middle = len(example.text) // 2
            return example.text[:middle], example.text[middle:]
        if isinstance(example, Exchange) and not self.exchanges_as_chat:
            text = self.render(example).text
            start = len(text) - len(example.completion)
            return text[:start], text[start:]
        messages, _ = self._messages(example)
        last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        values = {**self._values(messages[:last], example), "add_generation_prompt": True}
        _, prompt = _written(self._dialect_of(example).program, values)
        return prompt, messages[last]["content"]

    def begun(self, example: Conversation) -> str:
        """The text of a conversation up to where its last message ends, for a model to go on."""
        messages, _ = self._messages(example)
        _, text = _written(self._dialect_of(example).program, self._values(messages, example))
        last = messages[-1]["content"].strip()
        return text[:text.rindex(last) + len(last)] if last in text else text

    def conversation(self, example: Conversation | Exchange) -> list[dict[str, Any]]:
        """The messages of an example, the recipe's system message included."""
        return self._messages(example)[0]

    def _messages(self, example: Conversation | Exchange,
                  ) -> tuple[list[dict[str, Any]], list[float | None]]:
        """The messages as the template reads them, and the weight of each."""
        if isinstance(example, Exchange):
            pair = Message("user", example.prompt), Message("assistant", example.completion)
            opening = (Message("system", example.system),) if example.system else ()
            example = Conversation((*opening, *pair))
        messages = example.messages
        if self.system and messages[0].role not in ("system", "developer"):
            messages = (Message("system", self.system), *messages)
        return [self._as_dict(each, example) for each in messages], \
            [each.weight for each in messages]

    def _as_dict(self, message: Message, example: Conversation) -> dict[str, Any]:
        values = message.as_dict()
        reasoning = values.get("reasoning_content")
        if reasoning is not None and self._dialect is not None:
            del values["reasoning_content"]
            keys = self._dialect_of(example).reasoning_keys
            if reasoning.strip() and not keys:
                raise BadRow("the chat template knows no reasoning, so what the assistant thought "
                             "would be lost", "give a template that shows it in data.chat_template")
            values |= dict.fromkeys(keys, reasoning)
        return values

    def _dialect_of(self, example: Conversation | Exchange) -> "_Dialect":
        has_tools = isinstance(example, Conversation) and bool(example.tools)
        dialect = self._tool_dialect if has_tools else self._dialect
        if dialect is None:
            raise BadRow(
                "the tokenizer has no chat template, so conversations cannot be rendered",
                "give one in data.chat_template, or use a base with a template",
            )
        return dialect

    def _values(self, messages: list[dict[str, Any]], example: Conversation | Exchange,
                ) -> dict[str, Any]:
        """What the template sees."""
        tools = list(example.tools) if isinstance(example, Conversation) else []
        return {**self._named_tokens, "messages": messages, "tools": tools or None,
                "documents": None, "add_generation_prompt": False}

    def _spans(self, messages: list[dict[str, Any]], weights: list[float | None],
               finder: TurnFinder, has_marks: bool) -> tuple[Span, ...]:
        """What is trained of a conversation."""
        for i, (message, weight) in enumerate(zip(messages, weights, strict=True)):
            if weight and message["role"] != "assistant":
                raise BadRow(f"message {i + 1} has a weight, but is of the role {message['role']}",
                             "give weights to the assistant's messages only, or a weight of 0")
        chosen = _chosen(messages, self.train_on)
        spans = []
        if self.train_on == "all":
            spans.append(Span(0, len(finder.text)))
            spans += [Span(start, end, 0.0) for i, weight in enumerate(weights)
                      if weight == 0 and messages[i]["role"] != "assistant"
                      for start, end in finder.found.turns.get(i, ())]
        for i, weight in enumerate(weights):
            if messages[i]["role"] != "assistant":
                continue
            if not self._needs_turn(weight, i in chosen):
                check_calls(messages[i], i, finder.text)
                continue
            turn = finder.marked(i) if has_marks else finder.derived(i)
            if turn is not None:
                spans += self._weighed(turn, weight, i in chosen)
                said = "".join(finder.text[start:end] for start, end in turn.pieces)
                check_calls(messages[i], i, said)
        return tuple(spans)

    def _weighed(self, turn: Turn, weight: float | None, chosen: bool) -> list[Span]:
        if weight is None:
            weight = 1.0 if chosen else 0.0
        spans = [Span(start, end, weight) for start, end in turn.pieces]
        if self.train_on_end_of_turn:
            return spans
        if self.train_on == "all":
            return [*spans, Span(turn.closing, turn.pieces[-1][1], 0.0)]
        return [Span(start, min(end, turn.closing), weight) for start, end, _ in spans
                if start < turn.closing]

    def _needs_turn(self, weight: float | None, chosen: bool) -> bool:
        """Whether the mask depends on where a turn stands."""
        if self.train_on == "all":
            return weight is not None or not self.train_on_end_of_turn
        return weight != 0 and (weight is not None or chosen)


class _Dialect:
    """A chat template, and what its text shows about it."""

    def __init__(self, template: str, today: date) -> None:
        self.program = Program(template, today)
        self.has_marks = self.program.has_marks
        self.reasoning_keys = reasoning_keys(template)
        self.heading: dict[str, str] = {}


def _written(program: Program, values: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The text for `values`, and the values that it was written for.

    Some templates read the arguments of tool calls as JSON text, as in OpenAI's format.
    """
    try:
        return values, program.render(values)
    except BadRow as refusal:
        messages = [_with_arguments_as_text(message) for message in values["messages"]]
        if messages == values["messages"]:
            raise
        try:
            return (other := {**values, "messages": messages}), program.render(other)
        except BadRow:
            raise refusal from None


def _with_arguments_as_text(message: dict[str, Any]) -> dict[str, Any]:
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(
            call["function"].get("arguments", {}), ensure_ascii=False)}}
        for call in message.get("tool_calls", ())
    ]
    return {**message, "tool_calls": calls} if calls else message


def _traced(program: Program, values: dict[str, Any], text: str) -> tuple[Trace, int]:
    """The trace of `values`, whose plain text is `text`, and how its marks were placed."""
    for attempt in range(ATTEMPTS):
        found = trace(program, values, attempt)
        if found.text == text:
            return found, attempt
    raise BadRow("the chat template writes other text for other words in a message, so its text "
                 "cannot be traced to the messages",
                 "give another template in data.chat_template")


def _chosen(messages: list[dict[str, Any]], train_on: str) -> set[int]:
    """The turns of the assistant that `train_on` trains."""
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if train_on == "last":
        return set(turns[-1:])
    if train_on == "completion":
        asked = max((i for i, message in enumerate(messages) if message["role"] == "user"),
                    default=-1)
        return {i for i in turns if i > asked}
    return set(turns)
