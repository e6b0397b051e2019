"""Whatever JSON a row holds, a format makes an example of it or says what is wrong."""

import json
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafit.data.examples import (
    BadRow,
    Conversation,
    Exchange,
    Judged,
    Passage,
    Preference,
)
from lorafit.data.formats import FORMATS, Format, choose_format, convert_rows
from lorafit.data.formats.transcript import is_transcript, read_transcript
from lorafit.data.rows import Place, Row
from lorafit.errors import UserError

FORMS = Conversation | Exchange | Passage | Preference | Judged
COLUMNS = sorted({name for form in FORMATS.values() for names in form.roles.values()
                  for name in names})
KEYS = ["role", "content", "from", "value", "tool_calls", "tool_call_id", "name", "arguments",
        "function", "function_call", "id", "type", "text", "weight", "train", "thinking"]
WORDS = ["", "user", "assistant", "tool", "human", "gpt", "function_call", "observation", "text",
         "system", "good", "[]", "{}", '{"name": "f"}', "\ud83d", '"\\ud83d"', "[" * 2000,
         "\n\nHuman: q\n\nAssistant: a"]

scalars = (st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS)
           | st.text(max_size=5))
# Keys and words of the formats, so that many values get far before they go wrong.
values: st.SearchStrategy[Any] = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=5),
    max_leaves=15)
call = st.fixed_dictionaries(
    {"name": st.sampled_from(WORDS)},
    optional={"arguments": values | st.dictionaries(st.sampled_from(KEYS), scalars).map(
        json.dumps), "id": scalars})
openai_turn = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "assistant", "tool"]), "content": st.text()},
    optional={"tool_calls": st.lists(call, max_size=2) | st.none(), "thinking": st.text(),
              "weight": st.floats(0) | st.none(), "train": st.booleans()})
sharegpt_turn = st.fixed_dictionaries(
    {"from": st.sampled_from(["human", "gpt", "gpt", "function_call", "observation"]),
     "value": st.text() | call.map(json.dumps)})
turns = st.lists(openai_turn, min_size=1, max_size=4) \
    | st.lists(sharegpt_turn, min_size=1, max_size=4) \
    | st.lists(openai_turn | sharegpt_turn | values, min_size=1, max_size=3)
cells = st.text() | values | turns | turns.map(json.dumps)
usual: dict[str, st.SearchStrategy[Any]] = {
    "messages": turns, "label": st.booleans() | st.sampled_from(WORDS),
    "tools": st.lists(call, max_size=2), "history": st.lists(st.lists(st.text(), max_size=2)),
    "system": st.text(),
}
# Most rows of a form have what the form wants.
nowhere: st.SearchStrategy[set[str]] = st.just(set())
rows = st.dictionaries(st.sampled_from(COLUMNS), cells, min_size=1, max_size=6)


@pytest.mark.parametrize("name", list(FORMATS))
def test_any_cells_become_an_example_or_a_bad_row(name: str) -> None:
    form = FORMATS[name]
    outcomes = set()

    @settings(max_examples=200, deadline=None)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        required = data.draw(st.sampled_from(form.required))
        optional = data.draw(st.sets(st.sampled_from(sorted(form.roles))))
        mapping = {role: role for role in sorted({*required, *optional})}  # the same in every run
        fields = {role: data.draw(usual.get(role, st.text(min_size=1) | turns)) for role in mapping}
        for role in data.draw(nowhere | st.sets(st.sampled_from(sorted(mapping)), max_size=2)):
            fields[role] = data.draw(cells)
        outcomes.add(becomes_an_example(form, fields, mapping))

    check()
    assert outcomes == {True, False}, "rows that fit and rows that do not are both reached"


def becomes_an_example(form: Format, fields: dict[str, Any], mapping: dict[str, str]) -> bool:
    """Whether the row became an example, which is then sound."""
    try:
        example = form.example(fields, mapping)
    except BadRow as bad:
        if not bad.what or not bad.remedy:
            raise AssertionError(f"{bad.what!r} has no remedy") from bad
        return False
    assert isinstance(example, FORMS)
    # No half of a surrogate pair, which no tokenizer can read.
    json.dumps(asdict(example), ensure_ascii=False).encode("utf-8")
    return True


@settings(max_examples=100, deadline=None)
@given(st.lists(rows, min_size=1, max_size=3), st.sampled_from(["auto", *FORMATS]))
def test_any_rows_get_a_format_or_one_clear_error(found: list[dict[str, Any]], name: str) -> None:
    read = [Row(fields, Place("rows.jsonl", number)) for number, fields in enumerate(found, 1)]
    try:
        chosen, mapping, reason = choose_format(read, name, {})
    except UserError as error:
        assert [problem.where for problem in error.problems] == ["rows.jsonl:1"]  # noqa: PT017
        assert "data.columns" in error.problems[0].remedy  # noqa: PT017
        return
    assert reason
    converted, problems = convert_rows(read, chosen, mapping)
    assert len(converted) + len(problems) == len(read)
    assert all(problem.where and problem.what and problem.remedy for problem in problems)


said = st.text(st.characters(codec="utf-8"), max_size=20).filter(
    lambda text: "\n\nHuman:" not in text and "\n\nAssistant:" not in text)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(said, said), min_size=1, max_size=4))
def test_any_transcript_is_read_turn_by_turn(pairs: list[tuple[str, str]]) -> None:
    text = "".join(f"\n\nHuman: {asked}\n\nAssistant: {answer}" for asked, answer in pairs)
    assert is_transcript(text)
    messages = read_transcript(text)
    assert [message.content for message in messages] == [turn for pair in pairs for turn in pair]
    assert [message.role for message in messages] == ["user", "assistant"] * len(pairs)
