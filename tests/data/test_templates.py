"""Masks over real templates: the published ones of about forty model families, from trl's package.

Where a template marks what the assistant generates, the mask from its marks must be the mask that
is found without them. What is refused, and why, is written down in docs/templates.md; run this file
with LORAFIT_WRITE_DOCS=1 to write that page anew.
"""

import copy
import importlib.util
import json
import os
import re
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lorafit.data.chat import Renderer, resolve_template
from lorafit.data.examples import BadRow, Conversation, Message
from lorafit.data.tokens import Tokens
from lorafit.model.base import TINY

PAGE = Path(__file__).parents[2] / "docs" / "templates.md"
FOLDER = Path(str(importlib.util.find_spec("trl").submodule_search_locations[0])) / "chat_templates"
SOURCES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.jinja"))}
SOURCES["chatml (lorafit's)"] = resolve_template("chatml", AutoTokenizer.from_pretrained(TINY))

SPECIAL = re.compile(r"<\|[^<>{}\s'+]+?>|<[^<>{}\s'/+|]+\|>|<｜[^<>{}'+]+?｜>|<\w+_of_\w+>"
                     r"|\[/?INST\]|\[gMASK\]|<sop>")


def user(text: str) -> Message:
    return Message("user", text)


def says(text: str, **more: Any) -> Message:
    return Message("assistant", text, **more)


def calls(*cities: str, text: str = "") -> Message:
    return says(text, tool_calls=tuple(
        {"type": "function", "id": f"abcdefgh{i}",
         "function": {"name": "get_weather", "arguments": {"city": city}}}
        for i, city in enumerate(cities)))


def result(text: str, i: int = 0) -> Message:
    return Message("tool", text, tool_call_id=f"abcdefgh{i}", name="get_weather")


TOOLS = ({"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a city.",
    "parameters": {"type": "object", "required": ["city"], "properties": {
        "city": {"type": "string", "description": "Name of the city"}}}}},)
QUESTION, ANSWER = user("Hi there"), says("Hello, you")
KINDS = {
    "one turn": Conversation((QUESTION, ANSWER)),
    "system message": Conversation((Message("system", "Be brief."), QUESTION, ANSWER)),
    "empty system message": Conversation((Message("system", ""), QUESTION, ANSWER)),
    "several turns": Conversation((QUESTION, ANSWER, user("and more?"), says("good bye."))),
    "assistant first": Conversation((says("Welcome!"), QUESTION, ANSWER)),
    "other scripts": Conversation((user("Grüße 你好 🙂"), says("Hé! 你好 ¡olé! 🙂🏽"))),
    "blanks at the edges": Conversation((user("  Hi\n"), says("\n  Hello, you \n\n"), user(" x "),
                                         says(" y "))),
    "tool call": Conversation((user("Weather in Paris?"), calls("Paris"), result("18 degrees"),
                               says("It is mild.")), TOOLS),
    "ends with a call": Conversation((user("Weather in Paris?"), calls("Paris")), TOOLS),
    "text and call": Conversation((
        user("Weather in Paris?"), calls("Paris", text="Let me look."), result('{"temp": 18}'),
        says("It is mild."), user("thanks"), says("welcome!")), TOOLS),
    "two calls": Conversation((user("Weather?"), calls("Paris", "Rome"), result("18"),
                               result("25", 1), says("Mild and warm.")), TOOLS),
    "reasoning": Conversation((user("Sum 2 and 2"), says("Four.", reasoning="two plus two is 4"))),
    "earlier reasoning": Conversation((
        user("Sum 2 and 2"), says("Four.", reasoning="two plus two is 4"), user("and 3?"),
        says("seven", reasoning="four plus three"))),
    "<think> in the text": Conversation((
        user("Sum 2 and 2"), says("<think>\ntwo plus two is 4\n</think>\n\nFour."), user("and 3?"),
        says("<think>\nfour plus three\n</think>\n\nseven"))),
}


@cache
def tokenizer_for(name: str) -> Any:
    """The embedded tokenizer with the special tokens that the template writes."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    eos = "<|endoftext|>" if name.startswith("phi") else "</s>"
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": eos})
    known = set(tokenizer.all_special_tokens)
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(
        known | set(SPECIAL.findall(SOURCES[name])) - {"<s>", eos, tokenizer.pad_token})})
    tokenizer.chat_template = SOURCES[name]
    return tokenizer


def without_marks(template: str) -> str:
    """The same program, but that nothing is marked."""
    template = re.sub(r"\{%(-?)\s*generation\s*(-?)%\}", r"{%\1 if true \2%}", template)
    return re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", r"{%\1 endif \2%}", template)


@cache
def renderer_for(name: str, marks: bool) -> Renderer:
    template = SOURCES[name] if marks else without_marks(SOURCES[name])
    return Renderer(tokenizer_for(name), template=template, render="auto", system=None)


def outcome(name: str, row: Conversation, marks: bool) -> tuple[str, Tokens] | str:
    """Text and tokens of the row, or why it is refused."""
    made = renderer_for(name, marks)
    try:
        rendered = made.render(row)
    except BadRow as bad:
        return re.sub(r" \(line \d+ of the template\)", "", bad.what)
    return rendered.text, made.tokenise([rendered])[0]


def trained(name: str, tokens: Tokens) -> list[str]:
    """The text of each stretch of supervised tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], tokens.supervised.astype(int), [0]])))
    return [tokenizer_for(name).decode(tokens.ids[start:end])
            for start, end in edges.reshape(-1, 2)]


def has_marks(name: str) -> bool:
    return renderer_for(name, True).way == "marks"


@pytest.mark.parametrize("name", SOURCES)
def test_marks_and_derivation_agree(name: str) -> None:
    for kind, row in KINDS.items():
        one, other = outcome(name, row, True), outcome(name, row, False)
        if isinstance(one, str) or isinstance(other, str):
            assert one == other, kind
            continue
        assert one[0] == other[0], kind
        assert one[1].supervised.tolist() == other[1].supervised.tolist(), kind


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_trained_is_what_the_assistant_says(name: str) -> None:
    special = tuple(tokenizer_for(name).all_special_tokens)
    for kind, row in KINDS.items():
        made = outcome(name, row, False)
        if isinstance(made, str):
            continue
        runs = trained(name, made[1])
        turns = [message for message in row.messages if message.role == "assistant"]
        assert len(runs) == len(turns), kind
        for run, turn in zip(runs, turns, strict=True):
            assert run.endswith(special), kind
            assert turn.content.split("</think>")[-1].strip() in run, kind
            for call in turn.tool_calls:
                assert call["function"]["arguments"]["city"] in run, kind
            for other in row.messages:
                if other.role != "assistant" and len(other.content.strip()) > 2:
                    assert other.content.strip() not in run, kind
        last = turns[-1].reasoning
        assert last is None or last in runs[-1], kind


def arguments_for(name: str, row: Conversation) -> list[dict[str, Any]]:
    """The messages, with arguments of calls as text for the one that reads them so."""
    messages = row.as_dicts()
    if name == "deepseekv3":
        messages = copy.deepcopy(messages)
        for call in (call for each in messages for call in each.get("tool_calls", ())):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return messages


@pytest.mark.parametrize("name", SOURCES)
def test_the_text_is_the_one_transformers_renders(name: str) -> None:
    for kind, row in KINDS.items():
        made = outcome(name, row, True)
        if not isinstance(made, str):
            assert made[0] == tokenizer_for(name).apply_chat_template(
                arguments_for(name, row), tools=list(row.tools) or None, tokenize=False), kind


@pytest.mark.parametrize("name", [name for name in SOURCES if f"{name}_training" in SOURCES])
def test_a_template_and_its_marked_form_train_the_same_where_they_write_the_same(
    name: str,
) -> None:
    for kind, row in KINDS.items():
        plain, marked = outcome(name, row, True), outcome(f"{name}_training", row, True)
        if isinstance(plain, str) or isinstance(marked, str) or plain[0] != marked[0]:
            continue
        assert plain[1].supervised.tolist() == marked[1].supervised.tolist(), kind


@pytest.mark.parametrize(("name", "kind", "wanted"), [
    # read off the templates by hand
    ("qwen3", "several turns", ["Hello, you<|im_end|>",
                                "<think>\n\n</think>\n\ngood bye.<|im_end|>"]),
    ("qwen3", "earlier reasoning", ["Four.<|im_end|>",
                                    "<think>\nfour plus three\n</think>\n\nseven<|im_end|>"]),
    ("qwen3_5_think", "several turns", ["Hello, you<|im_end|>",
                                        "\n</think>\n\ngood bye.<|im_end|>"]),
    ("qwen3_5_nothink", "one turn", ["Hello, you<|im_end|>"]),
    ("phi3", "several turns", ["Hello, you<|end|>", "good bye.<|end|>\n<|endoftext|>"]),
    ("gemma3", "blanks at the edges", ["Hello, you<end_of_turn>", "y<end_of_turn>"]),
    ("gemma4", "tool call", ['<|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|>'
                             "<|tool_response>", "It is mild.<turn|>"]),
    ("gptoss", "reasoning", ["<|channel|>analysis<|message|>two plus two is 4<|end|><|start|>"
                             "assistant<|channel|>final<|message|>Four.<|return|>"]),
    ("llama3_1", "tool call", ['{"name": "get_weather", "parameters": {"city": "Paris"}}<|eot_id|>',
                               "It is mild.<|eot_id|>"]),
    ("deepseekv3_training", "tool call", [
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city": "Paris"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>',
        "It is mild.<｜end▁of▁sentence｜>"]),
    ("cohere2", "one turn", ["Hello, you<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"]),
])
def test_well_known_templates_train_exactly_this(name: str, kind: str, wanted: list[str]) -> None:
    made = outcome(name, KINDS[kind], True)
    assert not isinstance(made, str), made
    assert trained(name, made[1]) == wanted


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from([
    "</think>", "<think>", "<|im_end|>", "<tool_call>", "a</think>b", "/no_think", "assistant",
    "<|im_start|>assistant\n", "{{ 1 }}", "{% for %}", "qz0c0z", "<think>\nx\n</think>\n\ny", " "])


@pytest.mark.parametrize("name", ["chatml (lorafit's)", "qwen3", "qwen3_training", "qwen3_5_think",
                                  "phi3", "gemma3", "gemma4_v5", "gptoss", "llama3_1", "cohere2",
                                  "nemotron_3_nano", "deepseekv3", "glm4moe_training"])
@settings(max_examples=25, deadline=None)
@given(system=st.none() | texts,
       pairs=st.lists(st.tuples(texts, texts, st.none() | texts), min_size=1, max_size=3))
def test_any_text_is_trained_exactly_or_refused(
    name: str, system: str | None, pairs: list[tuple[str, str, str | None]],
) -> None:
    messages = [Message("system", system)] if system is not None else []
    for question, answer, reasoning in pairs:
        messages += [user(question), says(answer, reasoning=reasoning)]
    made = outcome(name, Conversation(tuple(messages)), True)
    if isinstance(made, str):
        return
    text, tokens = made
    assert tokenizer_for(name).decode(tokens.ids) == text
    runs = iter(trained(name, tokens))
    for _, answer, _ in pairs:
        run = next(runs)
        # The prompt may hold an opening tag with which the answer begins.
        said = answer.split("</think>")[-1].strip().removeprefix("<think>").strip()
        assert run.endswith(tuple(tokenizer_for(name).all_special_tokens))
        assert said in run
    assert next(runs, None) is None


# ---- the page


ABOUT = f"""\
Written by `LORAFIT_WRITE_DOCS=1 python -m pytest tests/data/test_templates.py`. The same test fails
when this page is behind.

A turn is trained from where the prompt for its generation ends up to and including the token that
closes it. Tokens that the prompt already holds, such as an opening `<think>`, are not trained,
whether a template marks them or not. White space behind the closing token is not trained either.
A token that holds characters on both sides of such a border is trained.
Where a template writes an earlier turn otherwise than the last one (without its reasoning, for
example), each is trained as it is written in the row.

A row is refused, never trained wrongly, when the template leaves out or changes something that the
row says, when it does not close the assistant's turns with a special token, or when it cannot be
proven which text is the assistant's.

Below are {len(SOURCES)} templates, those of trl's package and lorafit's own, each tried with
{len(KINDS)} kinds of conversation: {", ".join(KINDS)}.

*marks* are `{{% generation %}}` marks; there the masks from the marks and the masks found without
them are the same. *derived* are templates without marks. idefics3, llava_next and smolvlm read a
message as a list of parts with pictures among them; lorafit gives text, so they refuse every row.
"""


def page() -> str:
    made = {name: {kind: outcome(name, row, True) for kind, row in KINDS.items()}
            for name in SOURCES}
    paragraphs = [textwrap.fill(each, 100) for each in ABOUT.split("\n\n")]
    lines = [
        "# Chat templates", "", "\n\n".join(paragraphs).replace("<think> in", "`<think>` in"), "",
        "| template | masks | exact | refused |",
        "|---|---|---|---|",
    ]
    for name, outcomes in made.items():
        reasons: dict[str, list[str]] = {}
        for kind, each in outcomes.items():
            if isinstance(each, str):
                reason = each.removeprefix("the chat template refuses the row: ")
                reasons.setdefault(reason, []).append(kind.replace("<think>", "`<think>`"))
        refused = "; ".join(f"{', '.join(kinds)}: *{reason.replace('|', chr(92) + '|')}*"
                            for reason, kinds in reasons.items())
        exact = sum(not isinstance(each, str) for each in outcomes.values())
        way = "marks = derived" if has_marks(name) else "derived"
        lines.append(f"| {name} | {way} | {exact} of {len(KINDS)} | {refused} |")
    return "\n".join(lines) + "\n"


def test_the_page_of_templates_is_up_to_date() -> None:
    if os.environ.get("LORAFIT_WRITE_DOCS"):
        PAGE.write_text(page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page()
