"""Valid rows of every format, and what makes one of them malformed."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

Row = dict[str, Any]

WORDS = ["ein", "two", "три", "四", "cinq", "ses", "sieben", "huit", "nove", "dieci", "elva"]


def text(random: Random) -> str:
    return " ".join(random.choices(WORDS, k=random.randrange(1, 9)))


def _turns(random: Random) -> list[dict[str, Any]]:
    turns = [{"role": "system", "content": text(random)}] if random.random() < 0.3 else []
    for _ in range(random.randrange(1, 4)):
        turns += [{"role": "user", "content": text(random)},
                  {"role": "assistant", "content": text(random)}]
    return turns


def _said(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]


def _pair(random: Random) -> Row:
    return {"prompt": text(random), "chosen": text(random) + " yes", "rejected": text(random)}


GOOD: dict[str, Callable[[Random], Row]] = {
    "chat": lambda random: {"messages": _turns(random)},
    "sharegpt": lambda random: {"conversations": _said(_turns(random))},
    "alpaca": lambda random: {"instruction": text(random), "input": text(random),
                              "output": text(random)},
    "prompt_completion": lambda random: {"prompt": text(random), "completion": text(random)},
    "text": lambda random: {"text": text(random)},
    "preference": _pair,
    "judged": lambda random: {"prompt": text(random), "completion": text(random),
                              "label": random.random() < 0.5},
}
FLAT = ("alpaca", "prompt_completion", "text", "preference")  # whose columns are all text
REQUIRED = {
    "chat": ["messages"], "sharegpt": ["conversations"], "alpaca": ["instruction", "output"],
    "prompt_completion": ["prompt", "completion"], "text": ["text"],
    "preference": ["chosen", "rejected"], "judged": ["label", "completion"],
}
ANSWERS = {"alpaca": "output", "prompt_completion": "completion", "text": "text",
           "preference": "chosen", "judged": "completion"}

# ---- what no format allows, whichever tool reads it


def without_column(row: Row, form: str, random: Random) -> None:
    """Without a column that the format requires."""
    del row[random.choice(REQUIRED[form])]


def null_column(row: Row, form: str, random: Random) -> None:
    """Null where there has to be a text, a list or a label."""
    row[random.choice(REQUIRED[form])] = None


def wrong_kind(row: Row, form: str, random: Random) -> None:
    """A value that is neither text nor a list of turns nor a label."""
    column = random.choice(REQUIRED[form])
    row[column] = random.choice([5, -1.5, {"text": "a"}, ["a", "b"], [1], {}, [], [[]], 1e300])


def empty_answer(row: Row, form: str, random: Random) -> None:
    """Nothing in it to learn."""
    nothing = random.choice(["", " ", "\n\t"])
    if form in ANSWERS:
        row[ANSWERS[form]] = nothing
    else:
        for turn in row["messages" if form == "chat" else "conversations"]:
            if turn.get("role", turn.get("from")) in ("assistant", "gpt"):
                turn["content" if form == "chat" else "value"] = nothing


def half_a_character(row: Row, form: str, random: Random) -> None:
    """Half of a surrogate pair, which no encoding of Unicode can hold."""
    half = chr(random.randrange(0xD800, 0xE000))
    if form in ANSWERS:
        row[ANSWERS[form]] += half
    else:
        turn = random.choice(row["messages" if form == "chat" else "conversations"])
        turn["content" if form == "chat" else "value"] += half


def unsure_label(row: Row, form: str, random: Random) -> None:
    """Neither wanted nor unwanted."""
    row["label"] = random.choice(["maybe", "yes!", 2, 0.5, -1, None, [], "5 stars", {}])


def equal_pair(row: Row, form: str, random: Random) -> None:
    """Two answers of which none can be preferred."""
    row["rejected"] = row["chosen"]


def unknown_role(row: Row, form: str, random: Random) -> None:
    """A turn of somebody whom no chat has."""
    key = "role" if form == "chat" else "from"
    turn = random.choice(row["messages" if form == "chat" else "conversations"])
    turn[key] = random.choice(["narrator", "", "User:", "bot1", "ASSISTANT ", "кто", 5, None])


def no_assistant(row: Row, form: str, random: Random) -> None:
    """Only questions, or only instructions."""
    column, key = ("messages", "role") if form == "chat" else ("conversations", "from")
    row[column] = [turn for turn in row[column] if turn[key] not in ("assistant", "gpt")]


def no_turns(row: Row, form: str, random: Random) -> None:
    """No list of turns."""
    row["messages" if form == "chat" else "conversations"] = random.choice(
        [[], {}, "hello", ["hello"], [["user", "hi"]], [None], [5], {"role": "user"}, "[]", "[{"])


def broken_turn(row: Row, form: str, random: Random) -> None:
    """A turn without its text, with a part that is no text, or with a weight that is none."""
    who, what = ("role", "content") if form == "chat" else ("from", "value")
    turns = row["messages" if form == "chat" else "conversations"]
    turn = random.choice([each for each in turns if each[who] in ("assistant", "gpt")])
    how = random.randrange(6)
    if how == 0:
        del turn[what]
    elif how == 1:
        turn[what] = random.choice([None, 5, {"text": "a"}, True])
    elif how == 2:
        del turn[who]
    elif how == 3:
        turn["weight"] = random.choice(["heavy", -1, [1], True, "1"])
    elif how == 4:
        turn["train_detail"] = [{"begin_offset": 0, "end_offset": 3, "train": True}]
    else:
        turn[what] = [{"type": "image_url", "image_url": {"url": "https://x/y.png"}},
                      {"type": "text", "text": "what is it?"}] if form == "chat" else [1]


def broken_call(row: Row, form: str, random: Random) -> None:
    """A call of a tool that nobody could carry out, or a result of no call."""
    turns = row["messages"]
    last = turns[-1]
    how = random.randrange(7)
    if how == 0:
        last["tool_calls"] = [{"type": "function", "function": {"arguments": "{}"}}]
    elif how == 1:
        last["tool_calls"] = [{"function": {"name": "f", "arguments": '{"city": '}}]
    elif how == 2:
        last["tool_calls"] = random.choice(["f()", {"name": "f"}, 5])
    elif how == 3:
        last["tool_calls"] = [random.choice(["f", 5, None, ["f"]])]
    elif how == 4:
        turns[-2]["tool_calls"] = [{"function": {"name": "f", "arguments": {}}}]
    elif how == 5:
        turns.insert(-1, {"role": "tool", "content": "4", "tool_call_id": "c1"})
    else:
        row["tools"] = random.choice(["get_weather", [5], {"f": 1}, [{}], '[{"name": ""}]',
                                      [{"type": "function", "function": {"description": "x"}}]])


FAULTS: dict[str, tuple[Callable[[Row, str, Random], None], tuple[str, ...]]] = {
    "without_column": (without_column, tuple(GOOD)),
    "null_column": (null_column, tuple(GOOD)),
    "wrong_kind": (wrong_kind, tuple(GOOD)),
    "empty_answer": (empty_answer, tuple(GOOD)),
    "half_a_character": (half_a_character, tuple(GOOD)),
    "unsure_label": (unsure_label, ("judged",)),
    "equal_pair": (equal_pair, ("preference",)),
    "unknown_role": (unknown_role, ("chat", "sharegpt")),
    "no_assistant": (no_assistant, ("chat", "sharegpt")),
    "no_turns": (no_turns, ("chat", "sharegpt")),
    "broken_turn": (broken_turn, ("chat", "sharegpt")),
    "broken_call": (broken_call, ("chat",)),
}


def good(form: str, count: int, random: Random) -> list[Row]:
    """Valid rows; a number makes each different from all others."""
    rows = [GOOD[form](random) for _ in range(count)]
    for number, row in enumerate(rows):
        tail = f" {number}"
        for key, value in row.items():
            if isinstance(value, str):
                row[key] += tail
            elif isinstance(value, list):
                for turn in value:
                    turn["content" if "content" in turn else "value"] += tail
    if form == "judged":
        rows[0]["label"] = True  # one at least is trained
    return rows


def as_lines(rows: list[Row]) -> bytes:
    """JSON lines; half characters are written as escapes."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
