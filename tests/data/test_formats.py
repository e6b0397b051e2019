"""Which format a file has, by its columns or by the recipe, and rows that do not fit it."""

import json
from typing import Any

import pytest

from lorafit.data.examples import Conversation, Exchange, Judged, Message, Passage, Preference
from lorafit.data.formats import FORMATS, choose_format, convert_rows
from lorafit.data.rows import Place, Row
from lorafit.errors import UserError

CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


SHAREGPT = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
PAIR = {"chosen": "yes", "rejected": "no"}


def make(*values: dict[str, Any]) -> list[Row]:
    return [Row(value, Place("rows.jsonl", number)) for number, value in enumerate(values, 1)]


def convert(*values: dict[str, Any], name: str = "auto", **columns: str) -> list[Any]:
    rows = make(*values)
    chosen, mapping, _ = choose_format(rows, name, columns)
    converted, problems = convert_rows(rows, chosen, mapping)
    assert not problems, problems
    return [example for example, _ in converted]


def problems(*values: dict[str, Any], name: str = "auto", **columns: str) -> list[str]:
    rows = make(*values)
    chosen, mapping, _ = choose_format(rows, name, columns)
    return [str(problem) for problem in convert_rows(rows, chosen, mapping)[1]]


def refusal(*values: dict[str, Any], name: str = "auto", **columns: str) -> str:
    with pytest.raises(UserError) as caught:
        choose_format(make(*values), name, columns)
    [problem] = caught.value.problems
    return str(problem)


@pytest.mark.parametrize(("row", "name", "reason"), [
    (CHAT, "chat", "the rows have messages with role/content"),
    ({"conversations": CHAT["messages"]}, "chat",
     "the rows have conversations with role/content"),
    (SHAREGPT, "sharegpt", "the rows have conversations with from/value"),
    ({"messages": SHAREGPT["conversations"]}, "sharegpt",
     "the rows have messages with from/value"),
    ({"messages": json.dumps(CHAT["messages"])}, "chat",
     "the rows have messages with role/content"),
    ({"conversations": json.dumps(SHAREGPT["conversations"])}, "sharegpt",
     "the rows have conversations with from/value"),
    ({**PAIR, "prompt": "p"}, "preference", "the rows have chosen, rejected and prompt"),
    ({"chosen": CHAT["messages"], "rejected": CHAT["messages"], **CHAT}, "preference",
     "the rows have chosen, rejected with role/content"),
    ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
     "preference", "the rows have chosen, rejected as transcripts"),
    ({"chosen": 0.9, "rejected": 0.1, **CHAT}, "chat", "the rows have messages with role/content"),
    ({"prompt": "p", "completion": "c", "label": True}, "judged",
     "the rows have prompt, completion, label"),
    ({"prompt": "p", "completion": "c", "label": "sports"}, "prompt_completion",
     "the rows have prompt, completion"),
    ({"label": 0, **CHAT}, "judged", "the rows have messages, label"),
    ({"input": "p", "output": "c"}, "prompt_completion", "the rows have input, output"),
    ({"query": "p", "response": "c"}, "prompt_completion", "the rows have query, response"),
    ({"prompt": CHAT["messages"][:1], "completion": CHAT["messages"][1:]}, "prompt_completion",
     "the rows have prompt, completion"),
    ({"prompt": "p", "prompt_id": "3", **CHAT}, "chat",
     "the rows have messages with role/content"),
    ({"instruction": "i", "output": "o"}, "alpaca", "the rows have instruction, output"),
    ({"instruction": "i", "input": "x", "response": "o"}, "alpaca",
     "the rows have instruction, input, response"),
    ({"prompt": "p", "completion": "c"}, "prompt_completion", "the rows have prompt, completion"),
    ({"question": "p", "answer": "c", "id": 3}, "prompt_completion",
     "the rows have question, answer"),
    ({"text": "t"}, "text", "the rows have text"),
    ({"text": "t", **CHAT}, "chat", "the rows have messages with role/content"),
])
def test_the_format_is_found_by_the_columns_and_says_why(
    row: dict[str, Any], name: str, reason: str,
) -> None:
    chosen, _, why = choose_format(make(row), "auto", {})
    assert chosen.name == name
    assert why == reason


def test_a_format_named_in_the_recipe_is_taken() -> None:
    row = {**CHAT, "text": "t"}
    chosen, _, why = choose_format(make(row), "text", {})
    assert chosen.name == "text"
    assert why == "named in the recipe"
    assert convert(row, name="text") == [Passage("t")]


def test_each_format_becomes_its_internal_form() -> None:
    assert convert(CHAT) == [Conversation((Message("user", "q"), Message("assistant", "a")))]
    assert convert({"prompt": "p", "completion": "c"}) == [Exchange("p", "c")]
    assert convert({"text": "t"}) == [Passage("t")]
    [alpaca] = convert({"instruction": "Add", "input": "1 2", "output": "3"})
    assert (alpaca.prompt, alpaca.completion) == ("Add\n\n1 2", "3")
    assert alpaca.plain_prompt == (
        "### Instruction:\nAdd\n\n### Input:\n1 2\n\n### Response:\n")


def test_alpaca_without_input_has_no_input_heading() -> None:
    for row in ({"instruction": "Add", "output": "3"},
                {"instruction": "Add", "input": "", "output": "3"},
                {"instruction": "Add", "input": None, "output": "3"}):
        [alpaca] = convert(row)
        assert alpaca.prompt == "Add"
        assert "Input" not in alpaca.plain_prompt


def test_an_optional_column_that_the_first_row_lacks_is_used_where_it_stands() -> None:
    first, second = convert({"instruction": "a", "output": "x"},
                            {"instruction": "b", "input": "more", "output": "y"})
    assert first.prompt == "a"
    assert second.prompt == "b\n\nmore"


def test_columns_are_mapped_by_the_recipe() -> None:
    assert convert({"frage": "p", "antwort": "c"}, prompt="frage", completion="antwort") == [
        Exchange("p", "c")]
    assert convert({"body": "t"}, text="body") == [Passage("t")]
    assert convert({"dialog": CHAT["messages"]}, messages="dialog") == convert(CHAT)


def test_one_mapped_column_and_one_usual_one_go_together() -> None:
    assert convert({"frage": "p", "answer": "c"}, prompt="frage") == [Exchange("p", "c")]


def test_a_mapped_column_wins_over_the_usual_name() -> None:
    row = {"prompt": "old", "rewritten": "new", "completion": "c"}
    assert convert(row, prompt="rewritten") == [Exchange("new", "c")]


def test_a_system_column_is_used_where_it_is_filled() -> None:
    with_system = {"prompt": "p", "completion": "c", "sys": "be kind"}
    without = {"prompt": "p", "completion": "c", "sys": None}
    assert convert(with_system, without, system="sys") == [
        Exchange("p", "c", system="be kind"), Exchange("p", "c")]
    [conversation] = convert({**CHAT, "sys": "be kind"}, system="sys")
    assert conversation.messages[0] == Message("system", "be kind")


def test_a_system_column_does_not_replace_the_rows_own_system_message() -> None:
    own = {"messages": [{"role": "system", "content": "own"}, *CHAT["messages"]], "sys": "other"}
    [conversation] = convert(own, system="sys")
    assert [m.content for m in conversation.messages if m.role == "system"] == ["own"]


def test_unknown_columns_are_listed_with_an_example_of_a_mapping() -> None:
    problem = refusal({"frage": "p", "antwort": "c"})
    assert problem.startswith("rows.jsonl:1: no known format has the columns frage, antwort")
    assert "--set data.columns.prompt=question" in problem


def test_a_mapped_column_that_no_row_has_is_named() -> None:
    problem = refusal({"frage": "p", "antwort": "c"}, prompt="fage", completion="antwort")
    assert problem.startswith("rows.jsonl:1: has no column fage; its columns are frage, antwort")
    assert "data.columns.prompt; did you mean frage?" in problem


def test_a_column_that_is_nearly_a_usual_one_is_offered() -> None:
    problem = refusal({"mesages": CHAT["messages"]})
    assert "--set data.columns.messages=mesages" in problem
    assert "data.columns.completion=completon" in refusal(
        {"prompt": "p", "completon": "c"}, name="prompt_completion")


def test_a_row_of_each_place_keeps_it() -> None:
    rows = make({"text": "a"}, {"text": ""}, {"text": "b"})
    chosen, mapping, _ = choose_format(rows, "auto", {})
    converted, found = convert_rows(rows, chosen, mapping)
    assert converted == [(Passage("a"), rows[0].place), (Passage("b"), rows[2].place)]
    assert [problem.where for problem in found] == ["rows.jsonl:2"]


def test_rows_of_sharegpt_read_as_chat_name_the_format_to_set() -> None:
    [problem] = problems(SHAREGPT, name="chat")
    assert "from/value" in problem
    assert "data.format to sharegpt" in problem


def test_every_role_of_a_column_can_be_mapped() -> None:
    answer = Conversation((Message("user", "q"), Message("assistant", "a")))
    tool = {"type": "function", "function": {"name": "f"}}
    [chat] = convert({"m": CHAT["messages"], "t": [tool]}, messages="m", tools="t")
    assert chat == Conversation(answer.messages, (tool,))
    assert convert({"m": SHAREGPT["conversations"]}, messages="m") == [answer]
    assert convert({"p": "q", "y": "a", "n": "b", "s": "sys"}, prompt="p", chosen="y",
                   rejected="n", system="s") == [
        Preference(Exchange("q", "a", "sys"), Exchange("q", "b", "sys"))]
    assert convert({"p": "q", "c": "a", "ok": "good"}, prompt="p", completion="c", label="ok") == [
        Judged(Exchange("q", "a"), True)]
    [alpaca] = convert({"p": "q", "i": "more", "c": "a"}, prompt="p", input="i", completion="c")
    assert alpaca.prompt == "q\n\nmore"


def test_a_mapping_that_the_format_has_no_use_for_is_refused() -> None:
    problem = refusal({"text": "t", "x": "y"}, name="text", prompt="x")
    assert problem.startswith("data.columns.prompt: format text has no use for the column x")


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_format_that_the_columns_do_not_fit_says_what_it_needs(name: str) -> None:
    problem = refusal({"foo": "x"}, name=name)
    assert problem.startswith(f"rows.jsonl:1: format {name} needs ")
    assert "but the columns are foo" in problem


def test_a_later_row_without_its_column_is_named_by_its_line() -> None:
    good = {"prompt": "p", "completion": "c"}
    assert problems(good, good, {"prompt": "p"}, good, {"completion": "c"}) == [
        "rows.jsonl:3: the row lacks the column completion\n    add it, or correct data.columns",
        "rows.jsonl:5: the row lacks the column prompt\n    add it, or correct data.columns"]


@pytest.mark.parametrize(("row", "what"), [
    ({"prompt": "p", "completion": ""}, "completion is empty"),
    ({"prompt": "p", "completion": " \n"}, "completion is empty"),
    ({"prompt": 5, "completion": "c"}, "prompt is int, not text"),
    ({"prompt": "p", "completion": None}, "completion is NoneType, not text"),
    ({"prompt": "p", "completion": ["c"]}, "completion is list, not text"),
    ({"prompt": "p", "completion": "cut \ud83d"}, "completion holds a broken character"),
    ({"prompt": "\ude00", "completion": "c"}, "prompt holds a broken character"),
    ({"text": ""}, "text is empty"),
    ({"instruction": "i", "output": "  "}, "output is empty"),
    ({"messages": "hello"}, "messages is no list of messages"),
    ({"messages": []}, "messages is no list of messages"),
    ({"messages": ["hello"]}, "message 1 is str, not an object"),
    ({"messages": [{"role": "user"}]}, "message 1 has no text in `content`"),
    ({"messages": [{"content": "x"}]}, "message 1 has no text in `role`"),
    ({"messages": [{"role": "user", "content": None}]}, "message 1 has no text in `content`"),
    ({"messages": [*CHAT["messages"], {"role": "bot", "content": "x"}]},
     "message 3 has the role 'bot'"),
    ({"messages": [{"role": "user", "content": "q"}]}, "no message is the assistant's"),
    ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": " "}]},
     "the assistant says nothing"),
    ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "\ud800"}]},
     "message 2 holds a broken character"),
])
def test_a_row_that_trains_nothing_or_is_malformed_is_named(row: dict[str, Any], what: str) -> None:
    [problem] = problems(row)
    assert problem.startswith(f"rows.jsonl:1: {what}")
    assert "\n    " in problem, "a remedy is missing"


def test_a_column_that_only_later_rows_have_is_not_passed_over() -> None:
    rows = [{"instruction": f"i{n}", "output": "o"} for n in range(5)]
    chosen, mapping, reason = choose_format(make(*rows), "auto", {})
    assert reason == "the rows have instruction, output"
    later = {"instruction": "i", "input": "x", "output": "o", "system": "s"}
    [(example, _)], problems = convert_rows(make(later), chosen, mapping)
    assert not problems
    assert example == convert(later)[0]
    assert example.system == "s"
    assert "x" in example.prompt
