"""Conversations in OpenAI's and ShareGPT's spelling, with tools, reasoning and weights."""

import json
from typing import Any

import pytest

from lorafit.data.examples import BadRow, Conversation, Message
from lorafit.data.formats import choose_format
from lorafit.data.rows import Place, Row

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
CALL = {"id": "c1", "type": "function",
        "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
RESULT = {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "3 °C"}


def convert(fields: dict[str, Any], name: str = "auto") -> Any:
    chosen, mapping, _ = choose_format([Row(fields, Place("rows.jsonl", 1))], name, {})
    return chosen.example(fields, mapping)


def chat(*messages: Any, **columns: Any) -> Any:
    return convert({"messages": list(messages), **columns}, "chat")


def sharegpt(*turns: tuple[str, Any], **columns: Any) -> Any:
    values = [{"from": speaker, "value": value} for speaker, value in turns]
    return convert({"conversations": values, **columns}, "sharegpt")


def test_every_role_of_openai_is_read() -> None:
    conversation = chat({"role": "developer", "content": "d"}, {"role": "system", "content": "s"},
                        USER, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                        RESULT, ANSWER)
    assert conversation.messages == (
        Message("developer", "d"), Message("system", "s"), Message("user", "q"),
        Message("assistant", "", tool_calls=(CALL,)),
        Message("tool", "3 °C", tool_call_id="c1", name="weather"), Message("assistant", "a"))


@pytest.mark.parametrize("written", [
    CALL,
    {**CALL, "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
    {"id": "c1", "name": "weather", "arguments": '{"city": "Oslo"}'},
    {"id": "c1", "function": {"name": "weather", "arguments": {"city": "Oslo", "country": None}}},
])
def test_a_tool_call_has_one_form_whatever_its_spelling(written: dict[str, Any]) -> None:
    conversation = chat(USER, {"role": "assistant", "tool_calls": [written]})
    assert conversation.messages[1].tool_calls == (CALL,)


def test_nulls_in_json_text_are_kept_because_somebody_wrote_them() -> None:
    call = {"name": "weather", "arguments": '{"city": null}'}
    [found] = chat(USER, {"role": "assistant", "tool_calls": [call]}).messages[1].tool_calls
    assert found["function"]["arguments"] == {"city": None}


@pytest.mark.parametrize("arguments", [None, "", {}, "{}"])
def test_a_call_may_have_no_arguments(arguments: Any) -> None:
    call = {"function": {"name": "now", "arguments": arguments}}
    [found] = chat(USER, {"role": "assistant", "tool_calls": [call]}).messages[1].tool_calls
    assert found == {"type": "function", "function": {"name": "now", "arguments": {}}}


def test_the_old_spelling_of_function_calls_is_read() -> None:
    conversation = chat(
        USER, {"role": "assistant", "content": None,
               "function_call": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
        {"role": "function", "name": "weather", "content": "3 °C"}, ANSWER)
    function = CALL["function"]
    assert conversation.messages[1].tool_calls == ({"type": "function", "function": function},)
    assert conversation.messages[2] == Message("tool", "3 °C", name="weather")


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_read(key: str) -> None:
    assert chat(USER, {**ANSWER, key: "hm"}).messages[1] == Message("assistant", "a", "hm")
    assert chat(USER, {"role": "assistant", "content": None, key: "hm"}).messages[1] == Message(
        "assistant", "", "hm")
    assert chat(USER, {**ANSWER, key: ""}).messages[1].reasoning is None


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a", "image_url": None}, {"type": "text", "text": "b"}]
    assert chat(USER, {"role": "assistant", "content": parts}).messages[1].content == "ab"


@pytest.mark.parametrize(("keys", "weight"), [
    ({}, None), ({"weight": 0}, 0), ({"weight": 1}, 1), ({"weight": 2.5}, 2.5),
    ({"train": True}, 1), ({"training": False}, 0), ({"weight": None, "train": None}, None),
    ({"weight": 0.5, "train": True}, 0.5),
])
def test_weights_of_messages(keys: dict[str, Any], weight: float | None) -> None:
    assert chat(USER, {**ANSWER, **keys}).messages[1].weight == weight
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", **keys}]
    assert convert({"conversations": turns}).messages[1].weight == weight


@pytest.mark.parametrize("written", [
    [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    [{"name": "f", "parameters": {"type": "object"}}],
    [{"type": "function", "name": "f", "parameters": {"type": "object", "required": None}}],
    ['{"name": "f", "parameters": {"type": "object"}}'],
    '[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]',
])
def test_tools_have_one_form_whatever_their_spelling(written: Any) -> None:
    wanted = ({"type": "function",
               "function": {"name": "f", "parameters": {"type": "object"}}},)
    assert chat(USER, ANSWER, tools=written).tools == wanted
    assert chat(USER, ANSWER, functions=written).tools == wanted
    assert sharegpt(("human", "q"), ("gpt", "a"), tools=written).tools == wanted


@pytest.mark.parametrize("written", [None, "", [], "[]"])
def test_a_row_may_have_no_tools(written: Any) -> None:
    assert chat(USER, ANSWER, tools=written).tools == ()


def test_an_empty_answer_beside_a_spoken_one_is_left_to_the_checks() -> None:
    conversation = chat(USER, {"role": "assistant", "content": ""}, USER, ANSWER)
    assert [message.content for message in conversation.messages] == ["q", "", "q", "a"]


def test_unknown_keys_are_ignored() -> None:
    assert chat({**USER, "id": 7}, {**ANSWER, "refusal": None, "audio": 3}).messages == (
        Message("user", "q"), Message("assistant", "a"))


@pytest.mark.parametrize(("messages", "what"), [
    ([{"role": "user", "contnet": "q"}, ANSWER], "message 1 has no text in `content`, but has "
     "`contnet`"),
    ([{"rol": "user", "content": "q"}, ANSWER], "message 1 has no text in `role`, but has `rol`"),
    ([USER, {"role": "assistant", "content": None}], "message 2 has no text in `content`"),
    ([USER, {"role": "assistant"}], "message 2 has no text in `content`"),
    ([{"role": "user", "content": None, "reasoning": "x"}, ANSWER], "message 1 has no text in"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ANSWER],
     "part 1 of message 1 is 'image_url', and only text is trained"),
    ([{"role": "user", "content": [{"type": "input_audio"}]}, ANSWER], "part 1 of message 1 is"),
    ([{"role": "user", "content": [{"type": "text"}]}, ANSWER], "part 1 of message 1 has no text"),
    ([{"role": "user", "content": ["x"]}, ANSWER], "part 1 of message 1 is str, not an object"),
    ([USER, {**ANSWER, "weight": -1}], "message 2 has a weight that is no number from 0 up"),
    ([USER, {**ANSWER, "weight": float("nan")}], "message 2 has a weight"),
    ([USER, {**ANSWER, "weight": True}], "message 2 has a weight"),
    ([USER, {**ANSWER, "weight": "1"}], "message 2 has a weight"),
    ([USER, {**ANSWER, "weight": 10 ** 400}], "message 2 has a weight"),
    ([USER, {**ANSWER, "train": 1}], "message 2 has a `train` that is neither true nor false"),
    ([USER, {**ANSWER, "train_detail": [{"begin_offset": 0, "end_offset": 1, "train": True}]}],
     "message 2 has a `train_detail`, but messages are trained as a whole"),
    ([USER, {**ANSWER, "thinking": 1}], "message 2 has no text in `thinking`"),
    ([{**USER, "tool_calls": [CALL]}, ANSWER], "message 1 has tool calls, but is not the assist"),
    ([USER, {**ANSWER, "tool_calls": "weather"}], "the tool_calls of message 2 are no list"),
    ([USER, {**ANSWER, "tool_calls": [{"id": "c1"}]}],
     "tool call 1 of message 2 has no function name"),
    ([USER, {**ANSWER, "tool_calls": [{**CALL, "id": 7}]}],
     "the id of tool call 1 of message 2 is int"),
    ([USER, {**ANSWER, "tool_calls": [{"name": "f", "arguments": "city=Oslo"}]}],
     "arguments of tool call 1 of message 2 is text that is not JSON"),
    ([USER, {**ANSWER, "tool_calls": [{"name": "f", "arguments": "[1]"}]}],
     "arguments of tool call 1 of message 2 is list, not an object"),
    ([USER, {**ANSWER, "tool_calls": [{"name": "f", "arguments": {"x": float("inf")}}]}],
     "tool call 1 of message 2 holds a value that JSON has no form for"),
    ([USER, {**ANSWER, "tool_calls": [{"name": "f", "arguments": '{"x": NaN}'}]}],
     "arguments of tool call 1 of message 2 holds a value that JSON has no form for"),
    ([USER, {**ANSWER, "tool_calls": [{"name": "f", "arguments": '{"x": "\\ud83d"}'}]}],
     "arguments of tool call 1 of message 2 holds a broken character"),
    ([USER, RESULT, ANSWER], "message 2 is a tool's result, but no tool was called before"),
    ([USER, {"role": "assistant", "tool_calls": [CALL]}, {**RESULT, "tool_call_id": "c2"}],
     "message 3 answers the tool call 'c2', which nobody made"),
])
def test_a_malformed_message_is_named(messages: list[Any], what: str) -> None:
    with pytest.raises(BadRow) as caught:
        chat(*messages)
    assert caught.value.what.startswith(what)
    assert caught.value.remedy


@pytest.mark.parametrize(("tools", "what"), [
    ("get_weather", "tools is text that is not JSON"),
    ({"name": "f"}, "tools is no list of tools"),
    (["{"], "tool 1 in tools is text that is not JSON"),
    ([{"name": "f"}, {"description": "x"}], "tool 2 in tools has no function name"),
    ([{"function": "f"}], "tool 1 in tools has no function name"),
    ([3], "tool 1 in tools is int, not an object"),
])
def test_a_malformed_tool_is_named(tools: Any, what: str) -> None:
    with pytest.raises(BadRow) as caught:
        chat(USER, ANSWER, tools=tools)
    assert caught.value.what.startswith(what)
    assert caught.value.remedy


@pytest.mark.parametrize(("speaker", "role"), [
    ("human", "user"), ("user", "user"), ("gpt", "assistant"), ("assistant", "assistant"),
    ("chatgpt", "assistant"), ("bing", "assistant"), ("bard", "assistant"),
    ("model", "assistant"), ("system", "system"),
])
def test_speakers_of_sharegpt(speaker: str, role: str) -> None:
    conversation = sharegpt((speaker, "x"), ("gpt", "a"))
    assert conversation.messages[0] == Message(role, "x")


@pytest.mark.parametrize("speaker", ["observation", "function_response", "tool"])
def test_calls_and_results_of_sharegpt(speaker: str) -> None:
    function = CALL["function"]
    one = sharegpt(("human", "q"), ("function_call", json.dumps(function)), (speaker, "3 °C"),
                   ("gpt", "a"))
    assert one.messages[1:3] == (
        Message("assistant", "", tool_calls=({"type": "function", "function": function},)),
        Message("tool", "3 °C"))
    two = sharegpt(("human", "q"), ("function_call", json.dumps([function, function])),
                   (speaker, "3 °C"), ("gpt", "a"))
    assert two.messages[1].tool_calls == one.messages[1].tool_calls * 2


def test_a_call_that_is_written_into_the_text_counts_as_one() -> None:
    conversation = sharegpt(("human", "q"), ("gpt", '<tool_call>{"name": "f"}</tool_call>'),
                            ("tool", "3 °C"), ("gpt", "a"))
    assert [message.role for message in conversation.messages] == [
        "user", "assistant", "tool", "assistant"]


def test_a_system_column_goes_first_unless_the_turns_have_their_own() -> None:
    assert sharegpt(("human", "q"), ("gpt", "a"), system="s").messages[0] == Message("system", "s")
    assert sharegpt(("system", "own"), ("gpt", "a"), system="s").messages[0].content == "own"


@pytest.mark.parametrize(("turns", "what"), [
    ([("human", "q"), ("narrator", "a")], "message 2 is from 'narrator'"),
    ([("human", "q"), ("gpt", None)], "message 2 has no text in `value`"),
    ([("human", "q")], "no message is the assistant's"),
    ([("human", "q"), ("function_call", "weather()")],
     "the call in message 2 is text that is not JSON"),
    ([("human", "q"), ("function_call", "[]")], "message 2 calls no tool"),
    ([("human", "q"), ("function_call", "3")], "tool call 1 of message 2 is int, not an object"),
    ([("human", "q"), ("observation", "3 °C"), ("gpt", "a")], "message 2 is a tool's result"),
])
def test_a_malformed_turn_is_named(turns: list[tuple[str, Any]], what: str) -> None:
    with pytest.raises(BadRow) as caught:
        sharegpt(*turns)
    assert caught.value.what.startswith(what)
    assert caught.value.remedy


def test_one_conversation_is_the_same_however_it_is_stored() -> None:
    messages = [{"role": "system", "content": "s"}, USER, ANSWER,
                {"role": "user", "content": "and?"}, {"role": "assistant", "content": "so."}]
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = [{"from": names[m["role"]], "value": m["content"]} for m in messages]
    struct = {"from": None, "name": None, "tool_calls": None, "weight": None, "reasoning": None}
    rows = [
        {"messages": messages},
        {"messages": json.dumps(messages)},
        {"messages": [{**struct, **message} for message in messages], "tools": None},
        {"messages": messages[1:], "system": "s"},
        {"conversations": turns},
        {"conversations": json.dumps(turns)},
        {"conversations": [{**turn, "role": None, "content": None} for turn in turns]},
        {"conversations": turns[1:], "system": "s", "tools": ""},
        {"instruction": "and?", "output": "so.", "history": [["q", "a"]], "system": "s"},
    ]
    wanted = Conversation((Message("system", "s"), Message("user", "q"), Message("assistant", "a"),
                           Message("user", "and?"), Message("assistant", "so.")))
    assert [convert(row) for row in rows] == [wanted] * len(rows)


def test_a_conversation_with_calls_is_the_same_in_both_spellings() -> None:
    function = CALL["function"]
    tools = [{"name": "weather", "parameters": {"type": "object"}}]
    openai = chat(USER, {"role": "assistant", "tool_calls": [{"function": function}]},
                  {"role": "tool", "content": "3 °C"}, ANSWER, tools=tools)
    assert sharegpt(("human", "q"), ("function_call", json.dumps(function)),
                    ("observation", "3 °C"), ("gpt", "a"), tools=json.dumps(tools)) == openai


def test_what_is_read_is_read_again_from_its_own_dicts() -> None:
    conversation = chat(USER, {"role": "assistant", "thinking": "hm", "tool_calls": [CALL]},
                        RESULT, ANSWER, tools=[{"name": "weather"}])
    again = {"messages": conversation.as_dicts(), "tools": list(conversation.tools)}
    assert convert(again) == conversation
