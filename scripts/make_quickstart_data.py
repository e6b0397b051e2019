"""Make the data of the quickstart: turn a sentence into a YAML record.

    python scripts/make_quickstart_data.py --out recipes/quickstart

Writes ``train.jsonl`` and ``eval.jsonl`` (one chat a line).  The base model ``tiny`` knows every
word used here but has never written a record.  No name and no thing is in both files, so the words
cannot be remembered: each has to be found in the sentence.
The same seed gives the same files, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent))
from tiny_corpus import COLOURS, NAMES, PLACES, THINGS, VERBS, capital, plural

HELD_OUT_SHARE = 4  # one of four names and one of four things is in the evaluation only

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
    """The values for training and those for the evaluation."""
    shuffled = rng.sample(values, len(values))
    held_out = len(shuffled) // HELD_OUT_SHARE
    return shuffled[held_out:], shuffled[:held_out]


def draw(rng: Random, names: list[str], things: list[str]) -> dict[str, object]:
    """A record."""
    return {
        "who": rng.choice(names),
        "count": rng.randint(2, 99),
        "colour": rng.choice(COLOURS),
        "what": plural(rng.choice(things)),
        "where": rng.choice(list(PLACES)),
    }


def yaml_of(record: dict[str, object]) -> str:
    """The record as YAML, a line a fact."""
    return "\n".join(f"{key}: {value}" for key, value in record.items())


def chat(rng: Random, record: dict[str, object]) -> dict[str, object]:
    """A conversation that asks for the record of a sentence and answers with it."""
    place = str(record["where"])
    where = f"{PLACES[place]} the {place}"
    _, past, done = rng.choice(VERBS)
    facts = record | {
        "where": where, "Where": capital(where), "place": place, "past": past, "done": done,
    }  # fmt: skip
    sentence = rng.choice(SENTENCES).format_map(facts)
    return {
        "messages": [
            {"role": "user", "content": rng.choice(PROMPTS).format(sentence=sentence)},
            {"role": "assistant", "content": yaml_of(record)},
        ]
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--train", type=int, default=1600, help="rows of train.jsonl")
    parser.add_argument("--eval", type=int, default=200, help="rows of eval.jsonl")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()

    rng = Random(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    names, things = split(rng, NAMES), split(rng, THINGS)
    for part, (name, rows) in enumerate((("train", args.train), ("eval", args.eval))):
        records = [draw(rng, names[part], things[part]) for _ in range(rows)]
        lines = "".join(json.dumps(chat(rng, record)) + "\n" for record in records)
        (args.out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{name}.jsonl: {rows} rows")


if __name__ == "__main__":
    main()
