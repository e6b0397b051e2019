"""Make the data of the quickstart: turn a sentence into a JSON record.

    python scripts/make_quickstart_data.py --out recipes/quickstart

Writes ``train.jsonl`` and ``eval.jsonl`` (one chat a line).  The base model ``tiny`` knows every
word used here but has never written JSON.  No combination of name, thing, place and colour is in
both files, so remembering records cannot pass the evaluation: each fact has to be found in the
sentence.  The same seed gives the same files, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent))
from tiny_corpus import COLOURS, NAMES, PLACES, THINGS, VERBS, capital, plural

# So many different ones are drawn: 30,720 combinations, of which training sees under 8 %.
NAMES_USED, THINGS_USED, PLACES_USED, COLOURS_USED = 16, 16, 12, 10

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


class Facts:
    """Words to draw facts from, the same few for training and evaluation."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.names = rng.sample(NAMES, NAMES_USED)
        self.things = rng.sample(THINGS, THINGS_USED)
        self.places = rng.sample(list(PLACES), PLACES_USED)
        self.colours = rng.sample(COLOURS, COLOURS_USED)

    def draw(self) -> dict[str, object]:
        """A record."""
        return {
            "who": self.rng.choice(self.names),
            "count": self.rng.randint(2, 99),
            "colour": self.rng.choice(self.colours),
            "what": plural(self.rng.choice(self.things)),
            "where": self.rng.choice(self.places),
        }


def combination(record: dict[str, object]) -> tuple[object, ...]:
    """What makes two records the same but for the count."""
    return tuple(record[key] for key in ("who", "what", "where", "colour"))


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
            {"role": "assistant", "content": json.dumps(record)},
        ]
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--train", type=int, default=2400, help="rows of train.jsonl")
    parser.add_argument("--eval", type=int, default=200, help="rows of eval.jsonl")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()

    rng = Random(args.seed)
    facts = Facts(rng)
    train = [facts.draw() for _ in range(args.train)]
    seen = {combination(record) for record in train}
    evaluation: list[dict[str, object]] = []
    while len(evaluation) < args.eval:
        record = facts.draw()
        if combination(record) not in seen:
            evaluation.append(record)

    args.out.mkdir(parents=True, exist_ok=True)
    for name, records in (("train", train), ("eval", evaluation)):
        lines = "".join(json.dumps(chat(rng, record)) + "\n" for record in records)
        (args.out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{name}.jsonl: {len(records)} rows")


if __name__ == "__main__":
    main()
