"""Prompts with answers: single, with a history, in pairs and with a verdict; real HH-RLHF rows."""

import gzip
import json
from typing import Any

import pytest

from lorafit.data.examples import (
    BadRow,
    Conversation,
    Exchange,
    Judged,
    Message,
    Passage,
    Preference,
)
from lorafit.data.formats import choose_format, convert_rows
from lorafit.data.rows import Place, Row
from tests.conftest import REPOSITORY

HH = REPOSITORY.parent / "shared" / "data" / "hh-rlhf" / "harmless-base-test.jsonl.gz"
USER = {"role": "user", "content": "q"}
YES = {"role": "assistant", "content": "yes"}
NO = {"role": "assistant", "content": "no"}
TOOL = {"type": "function", "function": {"name": "f"}}
WEATHER = {"function": {"name": "f", "arguments": {}}}


def convert(fields: dict[str, Any], name: str = "auto") -> Any:
    chosen, mapping, _ = choose_format([Row(fields, Place("rows.jsonl", 1))], name, {})
    return chosen.example(fields, mapping)


def talk(*turns: str) -> Conversation:
    """Turns of user and assistant, by turns."""
    return Conversation(tuple(Message("assistant" if number % 2 else "user", turn)
                              for number, turn in enumerate(turns)))


def test_a_prompt_of_messages_is_not_trained_and_its_completion_is() -> None:
    row = {"prompt": [USER, YES, USER], "completion": [NO]}
    wanted = Conversation((Message("user", "q"), Message("assistant", "yes", weight=0.0),
                           Message("user", "q"), Message("assistant", "no")))
    assert convert(row) == wanted
    assert convert({**row, "completion": "no"}) == wanted
    assert convert({key: json.dumps(value) for key, value in row.items()}) == wanted


def test_a_message_of_the_prompt_keeps_the_weight_it_brings() -> None:
    row = {"prompt": [USER, {**YES, "weight": 1}, USER], "completion": [NO]}
    assert convert(row).messages[1].weight == 1


def test_the_completion_may_answer_a_call_of_the_prompt() -> None:
    row = {"prompt": [USER, {"role": "assistant", "tool_calls": [WEATHER]}],
           "completion": [{"role": "tool", "content": "3 °C"}, YES]}
    assert [message.role for message in convert(row).messages] == [
        "user", "assistant", "tool", "assistant"]


def test_a_text_prompt_goes_with_a_completion_of_messages() -> None:
    assert convert({"prompt": "q", "completion": [YES]}) == talk("q", "yes")


def test_prompt_and_completion_with_tools_are_a_conversation() -> None:
    assert convert({"prompt": "q", "completion": "a", "tools": [TOOL], "system": "s"}) == (
        Conversation((Message("system", "s"), *talk("q", "a").messages), (TOOL,)))
    assert convert({"prompt": "q", "completion": "a", "tools": None, "system": "s"}) == (
        Exchange("q", "a", "s"))


@pytest.mark.parametrize("answer", [
    '[{"role": "captain", "name": "Ada"}]', "[1, 2]", '{"role": "user", "content": "x"}', "[",
    "[[]]",
])
def test_an_answer_in_json_stays_text(answer: str) -> None:
    assert convert({"prompt": "q", "completion": answer}) == Exchange("q", answer)


@pytest.mark.parametrize("history", [[["q", "a"], ["r", "b"]], '[["q", "a"], ["r", "b"]]'])
def test_a_history_makes_alpaca_a_conversation(history: Any) -> None:
    row = {"instruction": "s", "input": "more", "output": "c", "history": history}
    assert convert(row) == talk("q", "a", "r", "b", "s\n\nmore", "c")


@pytest.mark.parametrize("history", [None, [], "", "[]"])
def test_alpaca_without_history_is_an_exchange(history: Any) -> None:
    row = {"instruction": "i", "output": "o", "system": "s"}
    assert convert({**row, "history": history}) == convert(row)
    assert isinstance(convert(row), Exchange)
    assert convert(row).system == "s"


def test_pairs_of_texts_with_a_prompt_are_exchanges() -> None:
    row = {"chosen": "yes", "rejected": "no"}
    wanted = Preference(Exchange("q", "yes", "s"), Exchange("q", "no", "s"))
    for prompt in ("prompt", "question", "instruction"):
        assert convert({prompt: "q", "system": "s", **row}) == wanted
    assert convert({"instruction": "q", "input": "more", **row}).chosen == Exchange(
        "q\n\nmore", "yes")


@pytest.mark.parametrize("fields", [
    {"chosen": [USER, YES], "rejected": [USER, NO]},
    {"chosen": [USER, YES], "rejected": [USER, NO], "prompt": "q", "messages": [USER, YES]},
    {"chosen": [USER, YES], "rejected": [USER, NO], "prompt": [USER]},
    {"chosen": [YES], "rejected": [NO], "prompt": [USER]},
    {"chosen": [YES], "rejected": [NO], "prompt": "q"},
    {"chosen": [YES], "rejected": "no", "prompt": "q"},
    {"chosen": "yes", "rejected": "no", "prompt": [USER]},
    {"chosen": "yes", "rejected": "no", "prompt": "\n\nHuman: q\n\nAssistant:"},
    {"chosen": " yes", "rejected": " no", "prompt": "\n\nHuman: q\n\nAssistant:"},
    {"chosen": "\n\nHuman: q\n\nAssistant: yes", "rejected": "\n\nHuman: q\n\nAssistant: no"},
    {"chosen": "Human: q\n\nAssistant: yes", "rejected": "Human: q\n\nAssistant: no"},
    {"chosen": json.dumps([USER, YES]), "rejected": json.dumps([USER, NO])},
    {"conversations": [{"from": "human", "value": "q"}],
     "chosen": {"from": "gpt", "value": "yes"}, "rejected": {"from": "gpt", "value": "no"}},
])
def test_one_pair_is_the_same_however_it_is_written(fields: dict[str, Any]) -> None:
    assert convert(fields) == Preference(talk("q", "yes"), talk("q", "no"))


def test_both_sides_of_a_pair_get_system_and_tools() -> None:
    pair = convert({"chosen": "yes", "rejected": "no", "prompt": "q", "system": "s",
                    "tools": [TOOL]})
    for side, answer in ((pair.chosen, "yes"), (pair.rejected, "no")):
        assert side == Conversation((Message("system", "s"), *talk("q", answer).messages), (TOOL,))


def test_earlier_turns_of_a_pair_keep_no_weight_of_their_own() -> None:
    pair = convert({"chosen": [YES], "rejected": [NO], "prompt": [USER, YES, USER]})
    assert {message.weight for message in pair.chosen.messages} == {None}


def test_pairs_may_part_before_the_last_turn() -> None:
    one = {"chosen": [USER, YES, USER, YES], "rejected": [USER, NO, {**USER, "content": "r"}, NO]}
    assert convert(one) == Preference(talk("q", "yes", "q", "yes"), talk("q", "no", "r", "no"))


SYSTEM = {"role": "system", "content": "s"}
OTHER = {"role": "user", "content": "other"}


@pytest.mark.parametrize(("fields", "what"), [
    ({"chosen": "yes", "rejected": "yes", "prompt": "q"},
     "chosen and rejected are the same, so nothing is preferred"),
    ({"chosen": [USER, YES], "rejected": [OTHER, NO]}, "chosen and rejected differ from message 1"),
    ({"chosen": [SYSTEM, USER, YES], "rejected": [SYSTEM, OTHER, NO]},
     "chosen and rejected differ from message 2"),
    ({"chosen": [SYSTEM, USER, YES], "rejected": [USER, NO]},
     "chosen and rejected differ from message 1"),
    ({"chosen": "yes", "rejected": "no"}, "chosen is an answer without its prompt"),
    ({"chosen": [YES], "rejected": [NO]}, "chosen is an answer without its prompt"),
    ({"chosen": "yes", "rejected": " ", "prompt": "q"}, "rejected is empty"),
    ({"chosen": "yes", "rejected": None, "prompt": "q"}, "rejected is NoneType, not text"),
    ({"chosen": "yes", "rejected": "no", "prompt": 3}, "prompt is int, not text"),
    ({"chosen": [OTHER, YES], "rejected": [OTHER, NO], "prompt": [USER]},
     "chosen neither repeats the prompt's messages nor goes on with the answer"),
    ({"chosen": [USER, YES], "rejected": [USER]}, "rejected: no message is the assistant's"),
    ({"chosen": [USER, YES], "rejected": [USER, {"role": "bot", "content": "x"}]},
     "rejected: message 2 has the role 'bot'"),
    ({"chosen": "yes", "rejected": "no", "prompt": [{"role": "user"}]},
     "prompt: message 1 has no text in `content`"),
    ({"chosen": "yes", "rejected": "no", "messages": "q"}, "messages: messages is no list"),
    ({"chosen": "\n\nHuman: q\n\nAssistant: ", "rejected": "\n\nHuman: q\n\nAssistant: no"},
     "chosen: the assistant says nothing"),
    ({"prompt": [USER], "completion": [USER]}, "completion: no message is the assistant's"),
    ({"prompt": [USER, YES], "completion": [{"role": "assistant", "content": ""}]},
     "completion: the assistant says nothing"),
    ({"prompt": [{"role": "user"}], "completion": "a"}, "prompt: message 1 has no text"),
    ({"prompt": [USER], "completion": " "}, "completion is empty"),
    ({"prompt": "p", "completion": "c", "tools": "f"}, "tools is text that is not JSON"),
    ({"instruction": "i", "output": "o", "history": "q"}, "history is text that is not JSON"),
    ({"instruction": "i", "output": "o", "history": {}}, "history is no list of pairs"),
    ({"instruction": "i", "output": "o", "history": [["q"]]}, "pair 1 of history is no pair of"),
    ({"instruction": "i", "output": "o", "history": [["q", None]]}, "pair 1 of history is no pair"),
    ({"instruction": "i", "output": "o", "history": [["q", "\ud800"]]},
     "pair 1 of history holds a broken character"),
    ({"instruction": None, "output": "o"}, "instruction is NoneType, not text"),
    ({"text": None}, "text is NoneType, not text"),
])
def test_a_row_that_cannot_be_used_says_why(fields: dict[str, Any], what: str) -> None:
    with pytest.raises(BadRow) as caught:
        convert(fields)
    assert caught.value.what.startswith(what)
    assert caught.value.remedy


@pytest.mark.parametrize(("label", "wanted"), [
    *((label, True) for label in (True, 1, 1.0, "true", "True", "1", "good", " Desirable ")),
    *((label, False) for label in (False, 0, 0.0, "false", "FALSE", "0", "bad", "undesirable")),
])
def test_labels_say_wanted_or_not(label: Any, wanted: bool) -> None:
    assert convert({"prompt": "q", "completion": "a", "label": label}) == Judged(
        Exchange("q", "a"), wanted)


@pytest.mark.parametrize("label", [2, -1, 0.5, "maybe", "", [], ["true"], {"a": 1}, float("nan")])
def test_any_other_label_is_refused_and_never_guessed(label: Any) -> None:
    row = {"prompt": "q", "completion": "a", "label": label}
    assert convert(row) == Exchange("q", "a"), "auto takes such a column for something else"
    with pytest.raises(BadRow, match="says neither wanted nor unwanted") as caught:
        convert(row, "judged")
    assert caught.value.what.startswith("label is ")
    assert caught.value.remedy


def test_a_missing_label_is_named() -> None:
    with pytest.raises(BadRow, match="the row lacks the column label"):
        convert({"prompt": "q", "completion": "a", "label": None}, "judged")


@pytest.mark.parametrize(("fields", "example"), [
    ({"messages": [USER, YES]}, talk("q", "yes")),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "yes"}]},
     talk("q", "yes")),
    ({"prompt": [USER], "completion": [YES]}, talk("q", "yes")),
    ({"prompt": "q", "completion": "yes", "system": "s"}, Exchange("q", "yes", "s")),
])
def test_what_is_judged_has_every_form(fields: dict[str, Any], example: Any) -> None:
    assert convert({**fields, "label": False}) == Judged(example, False)


def test_what_is_judged_may_be_alpaca() -> None:
    row = {"instruction": "i", "input": "x", "output": "o"}
    assert convert({**row, "kto_tag": True}) == Judged(convert(row), True)


def test_plain_text_is_kept_as_it_is() -> None:
    assert convert({"text": " two\n\nparagraphs "}) == Passage(" two\n\nparagraphs ")


@pytest.fixture(scope="module")
def hh_rows() -> list[Row]:
    if not HH.exists():
        pytest.skip("HH-RLHF is not beside the repository")
    with gzip.open(HH, "rt", encoding="utf-8") as lines:
        return [Row(json.loads(line), Place(HH.name, number))
                for number, line in enumerate(lines, 1)]


def rejoined(conversation: Conversation) -> str:
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[message.role]}: {message.content}"
                   for message in conversation.messages)


def test_every_real_transcript_rejoins_to_its_own_text(hh_rows: list[Row]) -> None:
    chosen, mapping, reason = choose_format(hh_rows, "auto", {})
    assert chosen.name == "preference"
    assert reason == "the rows have chosen, rejected as transcripts"
    converted, problems = convert_rows(hh_rows, chosen, mapping)
    text_of = {row.place: row.fields for row in hh_rows}
    for pair, place in converted:
        for side in ("chosen", "rejected"):
            assert rejoined(getattr(pair, side)) == text_of[place][side], place
    assert len(converted) + len(problems) == len(hh_rows)


def test_the_real_transcripts_that_are_refused_have_no_answer_at_all(hh_rows: list[Row]) -> None:
    chosen, mapping, _ = choose_format(hh_rows, "auto", {})
    _, problems = convert_rows(hh_rows, chosen, mapping)
    silent = [row for row in hh_rows for side in ("chosen", "rejected")
              if row.fields[side].count("\n\nAssistant:") == 1
              and row.fields[side].endswith("\n\nAssistant: ")]
    assert silent, "the data set has rows without an answer"
    assert [problem.where for problem in problems] == [row.where for row in silent]
    for problem in problems:
        assert problem.what.endswith("the assistant says nothing, so the row would train nothing")


def test_speakers_inside_a_turn_do_not_split_it() -> None:
    text = "\n\nHuman: say Human: hi\n\nAssistant: Human: hi\nAssistant: no\n\nHumans are many"
    pair = convert({"chosen": text, "rejected": "\n\nHuman: say Human: hi\n\nAssistant: no"})
    assert [message.content for message in pair.chosen.messages] == [
        "say Human: hi", "Human: hi\nAssistant: no\n\nHumans are many"]
