"""What can be wrong with a row that is well formed.

Each row gets a digest, flags and its script when it is tokenised; what they add up to over a data
set is found when it is opened (data/dataset.py), where the recipe says what a finding leads to.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from lorafit.data.answers import empty_answer
from lorafit.data.examples import Conversation, Exchange, Trainable
from lorafit.data.misread import misread
from lorafit.data.scripts import script_of
from lorafit.data.store import RowNotes

EMPTY_ANSWER = 1
SPECIAL_TOKENS = 2
ENCODING = 4
FOREIGN_MARKUP = 8
FLAGS = {"empty_answer": EMPTY_ANSWER, "special_tokens": SPECIAL_TOKENS, "encoding": ENCODING,
         "foreign_markup": FOREIGN_MARKUP}

# How chat templates mark turns: <|im_start|>, <｜User｜>, [INST], <<SYS>>, <start_of_turn> and the
# headings of Alpaca prompts. Each begins with a plain character, by which `re` searches fast.
_MARKUP = re.compile(
    r"<\|[A-Za-z][\w .:/-]{0,40}\|>|<｜[^｜<>\n]{1,40}｜>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]|<</?SYS>>"
    r"|<(?:start|end)_of_turn>|<(?:bos|eos|turn\||\|turn)>|\[gMASK\]|</s>"
    r"|#(?<![^\n]#)## (?:Instruction|Response|Human|Assistant):"
)

Part = tuple[str, str]  # what a text is called in messages, and the text


class RowChecker:
    """Looks at one row at a time. Knows the tokenizer's tokens, and which turns are trained."""

    def __init__(self, tokenizer: Any, train_on: str = "assistant") -> None:
        added = list(tokenizer.added_tokens_decoder.values())
        special = {str(token.content) for token in added if token.special}
        special |= {str(token) for token in tokenizer.all_special_tokens}
        self._own = {str(token.content) for token in added} | special
        longest_first = sorted(special - {""}, key=lambda name: (-len(name), name))
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._train_on = train_on

    def notes(self, example: Trainable) -> RowNotes:
        """Digest, flags and script of a row."""
        joined = "\n".join(part for _, part in texts_of(example))  # one search instead of many
        flags = EMPTY_ANSWER if empty_answer(example, self._train_on) is not None else 0
        for check, find in self._finders.items():
            if find(joined) is not None:
                flags |= FLAGS[check]
        return RowNotes(digest_of(joined), flags, script_of(_trained_text(example)))

    def reason(self, example: Trainable, check: str) -> str | None:
        """What `check` finds in a row, None for nothing."""
        if check == "empty_answer":
            return empty_answer(example, self._train_on)
        what = {"special_tokens": "spells the special token", "foreign_markup": "holds the markup "
                "of another chat template,", "encoding": "holds"}[check]
        for name, text in texts_of(example):
            if (found := self._finders[check](text)) is not None:
                return f"{name} {what} {_visible(found)}"
        return None

    @property
    def _finders(self) -> dict[str, Callable[[str], str | None]]:
        """For each check of texts: what it finds first in one."""
        return {"special_tokens": self._special_token, "encoding": misread,
                "foreign_markup": self._foreign_markup}

    def _special_token(self, text: str) -> str | None:
        found = self._special.search(text)
        return found.group() if found else None

    def _foreign_markup(self, text: str) -> str | None:
        opened = text.find("<s>")
        for found in _MARKUP.finditer(text):
            markup = found.group()
            struck_out = markup == "</s>" and 0 <= opened < found.start()  # HTML
            if markup not in self._own and not struck_out:
                return markup
        return None


def texts_of(example: Trainable) -> Iterator[Part]:
    """What people and tools wrote in a row, each part with its name."""
    if isinstance(example, Conversation):
        for number, message in enumerate(example.messages, 1):
            yield f"message {number} ({message.role})", message.content
            if message.reasoning:
                yield f"the reasoning of message {number}", message.reasoning
            for call in message.tool_calls:
                for text in _strings_in(call["function"]):
                    yield f"a tool call of message {number}", text
        for tool in example.tools:
            for text in _strings_in(tool):
                yield "the description of a tool", text
    elif isinstance(example, Exchange):
        if example.system:
            yield "the system message", example.system
        yield "the prompt", example.prompt
        yield "the completion", example.completion
    else:
        yield "the text", example.text


def digest_of(text: str) -> int:
    """64 bits of a text but for case and white space."""
    normal = " ".join(text.casefold().split())
    digest = hashlib.blake2b(normal.encode("utf-8", "replace"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def _strings_in(value: Any) -> Iterator[str]:
    """Every string of a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _strings_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings_in(inner)


def _trained_text(example: Trainable) -> str:
    """What the language of a row is told by."""
    if isinstance(example, Conversation):
        return " ".join(message.content for message in example.messages
                        if message.role == "assistant")
    return example.completion if isinstance(example, Exchange) else example.text


def _visible(found: str) -> str:
    return found if found.isprintable() else ascii(found)[1:-1]
