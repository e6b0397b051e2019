"""Whether nothing is lost: the table of what was done to runs, how often, and what came out.

    python scripts/prove_reliability.py [--rows kill,sigterm,…] [--jobs 2] [--markdown OUT]

Needs a Python that has lorafit; offline, CPU. Runs are real processes, forked from one that has
imported everything, on the embedded base; they are killed, starved and damaged as each row says,
and what they end with is compared with the uninterrupted run byte for byte. Beside stands a plain
script of transformers' Trainer and peft (scripts/reliability/trainer.py), asked the same where that
makes sense. Everything random is drawn from --seed.

Exits with 1 unless every row of lorafit came out as it must each time.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from reliability.proof import Proof, prove  # noqa: E402
from reliability.report import as_json, page, say  # noqa: E402
from reliability.rows import ROWS  # noqa: E402


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(names), metavar="LIST",
                        help="which (default: all: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, metavar="F",
                        help="share of the table's counts (default: %(default)g)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N",
                        help="runs at once (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S",
                        help="of everything that is drawn (default: %(default)s)")
    parser.add_argument("--work", type=Path, metavar="DIR",
                        help="for the runs; kept, those that went wrong for a look (default: a "
                        "temporary directory, removed)")
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True,
                        help="ask the plain script too (default: yes)")
    parser.add_argument("--markdown", type=Path, metavar="OUT", help="write the table here")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures here")
    options = parser.parse_args(arguments)
    wanted = options.rows.split(",")
    if unknown := [name for name in wanted if name not in names]:
        parser.error(f"--rows: nothing is called {', '.join(unknown)}; known: {', '.join(names)}")
    if options.scale <= 0 or options.jobs < 1:
        parser.error("--scale and --jobs must be positive")
    options.chosen = [row for row in ROWS if row.name in wanted]
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    proofs: list[Proof] = []
    for proof in prove(options.chosen, work=options.work, seed=options.seed, jobs=options.jobs,
                       scale=options.scale, peer=options.peer):
        say(proof)
        proofs.append(proof)
        # Whole after each row, so that a proof that was stopped has told what it found.
        if options.markdown:
            options.markdown.write_text(page(proofs, options.seed), encoding="utf-8")
        if options.json:
            options.json.write_text(as_json(proofs), encoding="utf-8")
    print()
    print(page(proofs, options.seed))
    return 0 if all(proof.is_reached for proof in proofs) else 1


if __name__ == "__main__":
    sys.exit(main())
