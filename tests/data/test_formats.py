"""Which format a file has, by its columns or by the recipe, and rows that do not fit it."""

import json
from pathlib import Path
from typing import Any

import pytest

from lorafit.data.dataset import read_examples
from lorafit.data.examples import Conversation, Exchange, Message, Passage
from lorafit.data.formats import FORMATS, choose_format, convert_rows
from lorafit.data.sources import Row
from lorafit.errors import UserError
from lorafit.recipe.schema import Data

CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def make(*values: dict[str, Any]) -> list[Row]:
    return [Row(value, f"rows.jsonl:{number}") for number, value in enumerate(values, 1)]


def convert(*values: dict[str, Any], name: str = "auto", **columns: str) -> list[Any]:
    rows = make(*values)
    chosen, mapping, _ = choose_format(rows, name, columns)
    return convert_rows(rows, chosen, mapping)


def problems(*values: dict[str, Any], name: str = "auto", **columns: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        convert(*values, name=name, **columns)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(("row", "name", "reason"), [
    (CHAT, "chat", "the rows have messages"),
    ({"conversations": CHAT["messages"]}, "chat", "the rows have conversations"),
    ({"instruction": "i", "output": "o"}, "alpaca", "the rows have instruction, output"),
    ({"instruction": "i", "input": "x", "response": "o"}, "alpaca",
     "the rows have instruction, input, response"),
    ({"prompt": "p", "completion": "c"}, "prompt_completion", "the rows have prompt, completion"),
    ({"question": "p", "answer": "c", "id": 3}, "prompt_completion",
     "the rows have question, answer"),
    ({"text": "t"}, "text", "the rows have text"),
    ({"text": "t", **CHAT}, "chat", "the rows have messages"),
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
    [problem] = problems({"frage": "p", "antwort": "c"})
    assert problem.startswith("rows.jsonl:1: no known format has the columns frage, antwort")
    assert "--set data.columns.prompt=question" in problem


def test_a_mapped_column_that_no_row_has_is_named() -> None:
    [problem] = problems({"frage": "p", "antwort": "c"}, prompt="fage", completion="antwort")
    assert problem.startswith("rows.jsonl:1: has no column fage; its columns are frage, antwort")


def test_a_mapping_that_the_format_has_no_use_for_is_refused() -> None:
    [problem] = problems({"text": "t", "x": "y"}, name="text", prompt="x")
    assert problem.startswith("data.columns.prompt: format text has no use for the column x")


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_format_that_the_columns_do_not_fit_says_what_it_needs(name: str) -> None:
    [problem] = problems({"foo": "x"}, name=name)
    assert problem.startswith(f"rows.jsonl:1: format {name} needs ")
    assert "but the columns are foo" in problem


def test_a_later_row_without_its_column_is_named_by_its_line() -> None:
    good = {"prompt": "p", "completion": "c"}
    assert problems(good, good, {"prompt": "p"}, good, {"completion": "c"}) == [
        "rows.jsonl:3: the row lacks the column completion\n    add it, or correct data.columns",
        "rows.jsonl:5: the row lacks the column prompt\n    add it, or correct data.columns"]


def test_many_bad_rows_are_counted() -> None:
    found = problems({"text": "t"}, *[{"text": ""}] * 30)
    assert len(found) == 11
    assert found[-1] == "… 30 of 31 rows are affected in total"


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


def test_a_file_is_read_through_source_mapping_and_format(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("frage,antwort\n1+1?,2\n2+2?,4\n")
    data = Data.model_validate({
        "train": str(path), "columns": {"prompt": "frage", "completion": "antwort"}})
    train, held_out = read_examples(data, seed=0)
    assert train.examples == [Exchange("1+1?", "2"), Exchange("2+2?", "4")]
    assert train.places == [f"{path}:2", f"{path}:3"]
    assert held_out is None


def test_max_rows_takes_the_first_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"{n}"}) + "\n" for n in range(10)))
    train, _ = read_examples(Data(train=str(path), max_rows=3), seed=0)
    assert train.examples == [Passage("0"), Passage("1"), Passage("2")]
