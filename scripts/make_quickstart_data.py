"""Make the data of the quickstart: turn a sentence into a JSON record.

    python scripts/make_quickstart_data.py --out recipes/quickstart

Writes ``train.jsonl`` and ``eval.jsonl`` (one chat a line).  The base model ``tiny`` knows every
word used here and can find a fact in a sentence, but has never written JSON.  Some names and things
are held out: they occur in the evaluation only, so copying whole records from memory cannot
pass it.  The same seed gives the same files, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent))
from tiny_corpus import COLOURS, NAMES, PLACES, THINGS, VERBS, capital, plural

HELD_OUT_SHARE = 6  # one of six names, and one of six things, is in the evaluation only

PROMPTS = [
    "Make a record: {sentence}",
    "Make a record: {sentence}",
    "Turn this sentence into a record: {sentence}",
    "{sentence} Make a record.",
]
# The facts come in many orders, and some sentences hold facts that the record leaves out.
SENTENCES = [
    "{who} {past} {count} {colour} {what} {where}.",
    "{Where}, {who} {past} {count} {colour} {what}.",
    "Yesterday {who} {past} {count} {colour} {what} {where}.",
    "On Friday, {who} was {where} and {past} {count} {colour} {what}.",
    "{count} {colour} {what} were {done} by {who} {where}.",
    "{Where}, {count} {colour} {what} were {done} by {who}.",
    "It was {who} who {past} {count} {colour} {what} {where}.",
    "The {count} {what} that {who} {past} {where} were {colour}.",
    "The {colour} {what} that {who} {past} {where} were {count} in number.",
    "{who} went to the {place} and {past} {count} {what}. They were all {colour}.",
    "{who} says that there are {count} {colour} {what} {where}.",
    "There were {count} {what} {where}. {who} {past} them all. They were {colour}.",
    "{who} was {where}. {count} {colour} {what} were there as well.",
    "In the morning {who} {past} {what} {where}: {count} of them, all {colour}.",
]


def split(rng: Random, values: list[str]) -> tuple[list[str], list[str]]:
    """The values for training and the held-out ones."""
    shuffled = rng.sample(values, len(values))
    held_out = len(shuffled) // HELD_OUT_SHARE
    return shuffled[held_out:], shuffled[:held_out]


def row(rng: Random, names: list[str], things: list[str]) -> tuple[str, dict[str, object]]:
    """A sentence in its prompt, and the chat it belongs to."""
    place = rng.choice(list(PLACES))
    where = f"{PLACES[place]} the {place}"
    _, past, done = rng.choice(VERBS)
    record = {
        "who": rng.choice(names),
        "count": rng.randint(2, 99),
        "colour": rng.choice(COLOURS),
        "what": plural(rng.choice(things)),
        "where": place,
    }
    facts = record | {
        "where": where, "Where": capital(where), "place": place, "past": past, "done": done,
    }  # fmt: skip
    sentence = rng.choice(SENTENCES).format_map(facts)
    messages = [
        {"role": "user", "content": rng.choice(PROMPTS).format(sentence=sentence)},
        {"role": "assistant", "content": json.dumps(record)},
    ]
    return sentence, {"messages": messages}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--train", type=int, default=1200, help="rows of train.jsonl")
    parser.add_argument("--eval", type=int, default=200, help="rows of eval.jsonl")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()

    rng = Random(args.seed)
    names, new_names = split(rng, NAMES)
    things, new_things = split(rng, THINGS)
    train = dict(row(rng, names, things) for _ in range(args.train))
    evaluation: dict[str, dict[str, object]] = {}
    while len(evaluation) < args.eval:
        # Half of the rows have a new name or a new thing or both; the others are new combinations.
        draw = rng.random()
        sentence, chat = row(
            rng,
            new_names if draw < 0.33 else names,
            new_things if 0.17 < draw < 0.5 else things,
        )
        if sentence not in train:
            evaluation[sentence] = chat
    assert not train.keys() & evaluation.keys()

    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("eval", evaluation)):
        lines = "".join(json.dumps(chat) + "\n" for chat in rows.values())
        (args.out / f"{name}.jsonl").write_text(lines)
        print(f"{name}.jsonl: {len(rows)} rows")


if __name__ == "__main__":
    main()
