"""Nothing of a row is lost on the way through a chat template, or the row is refused.

A template may leave out what its author did not think of: a role it does not know, tools, the
reasoning of a turn. A model would then be trained on something else than the row says.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from lorafit.data.chat.trace import REASONING_END, REASONING_KEYS, Range, Trace, place_of_mark
from lorafit.data.examples import BadRow

_OTHER_TEMPLATE = "correct the row, or give another template in data.chat_template"
HISTORY_NOTICE = ("the chat template leaves out the reasoning of earlier turns, so it is neither "
                  "seen nor trained there")


def reasoning_keys(template: str) -> set[str]:
    """The keys under which `template` looks for the reasoning of a turn."""
    program = re.sub(r"\{#.*?#\}", "", template, flags=re.DOTALL)
    return set(re.findall(r"\w+", program)) & REASONING_KEYS


def check_shown(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, found: Trace,
                attempt: int, notices: set[str]) -> dict[int, list[Range]]:
    """Where the text shows what each turn of the assistant says: its content and its reasoning.

    `found` is the trace of `messages` with marks at `attempt`. BadRow when something is missing
    or changed by more than blanks at its edges. What is left out on purpose goes to `notices`.
    """
    last = max((i for i, each in enumerate(messages) if each["role"] == "assistant"), default=-1)
    said: dict[int, list[Range]] = {}
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            said[i] = [*_content(message, i, found, attempt, i < last, notices),
                       *_reasoning(message, i, found, attempt, i < last, notices)]
        elif message["content"].strip():
            _check_other(message, i, found, attempt)
    for tool in tools or ():
        name = tool.get("function", tool).get("name")
        if isinstance(name, str) and name not in found.text:
            raise BadRow(f"the chat template leaves out the tool {name}",
                         "give a template that knows tools in data.chat_template")
    return said


def _check_other(message: dict[str, Any], i: int, found: Trace, attempt: int) -> None:
    content = message["content"]
    if _located(content, 0, found.contents.get(i, ()), found.text, attempt) is not None:
        return
    escaped = _forms(content) - {content.strip()}
    if i not in found.contents or not any(form in found.text for form in escaped):
        lost = "changes" if i in found.contents else "leaves out"
        raise BadRow(f"the chat template {lost} message {i + 1}, which is of the role "
                     f"{message['role']}", _OTHER_TEMPLATE)


def _content(message: dict[str, Any], i: int, found: Trace, attempt: int, earlier: bool,
             notices: set[str]) -> list[Range]:
    content = message["content"]
    if not content.strip():
        return []
    whole = _located(content, 0, found.contents.get(i, ()), found.text, attempt)
    if whole is not None:
        return [whole]
    answer_at = content.rfind(REASONING_END) + len(REASONING_END)
    answer = content[answer_at:]
    if REASONING_END not in content or not answer.strip():
        raise _lost(i, "what the assistant says", found.contents)
    range_ = _located(content, answer_at, found.contents.get(i, ()), found.text, attempt)
    if range_ is None:
        raise _lost(i, "what the assistant says", found.contents)
    reasoning = content[: answer_at - len(REASONING_END)].replace("<think>", "", 1).strip()
    begin = min((start for start, _ in found.turns.get(i, ())), default=0)
    at = found.text.rfind(reasoning, begin, range_[0])
    if at >= 0:
        return [(at, at + len(reasoning)), range_]
    if not earlier:
        raise BadRow(f"the chat template leaves out the reasoning of message {i + 1}",
                     "give a template that shows it in data.chat_template")
    notices.add(HISTORY_NOTICE)
    return [range_]


def _reasoning(message: dict[str, Any], i: int, found: Trace, attempt: int, earlier: bool,
               notices: set[str]) -> list[Range]:
    reasoning = next((message[key] for key in REASONING_KEYS & message.keys()), "")
    if not reasoning.strip():
        return []
    if i in found.reasonings:
        range_ = _located(reasoning, 0, found.reasonings[i], found.text, attempt)
        if range_ is None:
            raise _lost(i, "the reasoning of the assistant", found.reasonings)
        return [range_]
    if not earlier:
        raise BadRow(f"the chat template leaves out the reasoning of message {i + 1}",
                     "give a template that shows it in data.chat_template")
    notices.add(HISTORY_NOTICE)
    return []


def _lost(i: int, what: str, where: dict[int, list[int]]) -> BadRow:
    verb = "changes" if i in where else "leaves out"
    return BadRow(f"the chat template {verb} {what} in message {i + 1}", _OTHER_TEMPLATE)


def _located(written: str, begin: int, marks: Any, text: str, attempt: int) -> Range | None:
    """Where `text` shows `written` from `begin` on, but for blanks at its edges."""
    core = written[begin:].strip()
    mark = place_of_mark(written, attempt)
    if mark is None:
        return None
    offset = mark - (len(written) - len(written[begin:].lstrip()))
    for at in marks:
        if text.startswith(core, at - offset) and at >= offset:
            return at - offset, at - offset + len(core)
    return None


def check_calls(message: dict[str, Any], i: int, said: str) -> None:
    """BadRow unless `said` shows every tool call of a turn, each with all of its arguments."""
    start = 0
    for call in message.get("tool_calls", ()):
        function = call.get("function", call)
        end = start
        for value in (function["name"], *_leaves(function.get("arguments"))):
            places = [said.find(form, start) + len(form) for form in _forms(value)
                      if said.find(form, start) >= 0]
            if not places:
                raise BadRow(
                    f"the chat template leaves out the call of {function['name']} in message "
                    f"{i + 1}, or a part of it", "give a template that knows tool calls in "
                    "data.chat_template, or mend the row")
            end = max(end, min(places))
        start = end


def _leaves(value: Any) -> Iterator[Any]:
    """Everything in the arguments of a call that is no container, names of arguments included."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    elif value is not None:
        yield value


def _forms(value: Any) -> set[str]:
    """The ways in which templates write a value."""
    if isinstance(value, str):
        core = value.strip()
        return {core, json.dumps(core)[1:-1], json.dumps(core, ensure_ascii=False)[1:-1]}
    return {str(value), json.dumps(value)}
