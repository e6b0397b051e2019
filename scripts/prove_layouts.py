"""Whether a recipe gives the same model on other numbers of processes: layout × feature.

    python scripts/prove_layouts.py [--features packed,nf4,…] [--layouts "FSDP2, 2",…] [--quick]
                                    [--markdown OUT] [--json OUT]

Needs a Python that has lorafit; offline, CPU, gloo. Each cell trains a small recipe in float32 with
real processes and compares all trained weights and all losses with the same recipe on one process.
Printed is the largest difference of a weight. Exits with 1 unless every cell is within the limits.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from layouts.cases import FEATURES, LAYOUTS  # noqa: E402
from layouts.compare import LEARNING_RATE, STEPS, Bench, Cell  # noqa: E402

LIMIT = 1e-6  # of a weight
LOSS_LIMIT = 5e-6  # of a mean loss in nats, about 5
HEAD = """# The same recipe on other processes

Written by `make test-layouts`: real processes, gloo, a CPU. How a run is spread over them is in
[strategies.md](strategies.md), rows that are shared in
[context-parallelism.md](context-parallelism.md).

"""
FOOT = f"""
A cell above {LIMIT:g} would be bold, and a run that fails would say so; either ends the command
with exit code 1. Losses of every step and of the held-out rows are compared too, to {LOSS_LIMIT:g}.
Rows with padding are not shared, so there a refusal is what is asked for; a slice of a row draws
dropout masks of its own. What looks alike along a row is the same rounding: sums of gradients in
another order.
"""
QUICK = ({"padded, ragged rows", "packed", "nf4 base", "Qwen3-MoE, shrunken"},
         {"FSDP2, 2", "DDP 2, then 1, then FSDP2 4"})


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", metavar="WORD,…", default="",
                        help="those whose name has one of these words (default: all)")
    parser.add_argument("--layouts", metavar="WORD;…", default="",
                        help="those whose name has one of these words (default: all)")
    parser.add_argument("--quick", action="store_true", help="a few cells, for the tests")
    parser.add_argument("--markdown", type=Path, metavar="OUT", help="write the table here")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures here")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    words, spreads = options.features.split(","), options.layouts.split(";")
    features = [f for f in FEATURES if any(word in f.name for word in words)
                and (not options.quick or f.name in QUICK[0])]
    layouts = [each for each in LAYOUTS if any(word in each.name for word in spreads)
               and (not options.quick or each.name in QUICK[1])]
    cells: dict[str, dict[str, Cell]] = {}
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lorafit-layouts-") as folder:
        for number, feature in enumerate(features):
            bench = Bench(feature, Path(folder) / str(number))
            cells[feature.name] = {}
            for layout in layouts:
                cell = bench.cell(layout, LIMIT, LOSS_LIMIT)
                cells[feature.name][layout.name] = cell
                print(f"{feature.name} | {layout.name} | {_said(cell)}", flush=True)
    table = _page(cells, [layout.name for layout in layouts])
    print(f"\n{table}\n{time.monotonic() - started:.0f} s")
    if options.markdown:
        options.markdown.write_text(HEAD + table + FOOT, encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps(
            {name: {spread: asdict(cell) for spread, cell in row.items()}
             for name, row in cells.items()}, indent=1), encoding="utf-8")
    return int(any(cell.problem for row in cells.values() for cell in row.values()))


def _said(cell: Cell) -> str:
    if cell.instead and not cell.problem:
        return f"{cell.instead}, as it must be"
    if cell.problem and not cell.moved:
        return f"FAILED: {cell.problem}"
    remark = f"  {cell.problem.upper()}" if cell.problem else ""
    return f"weights {cell.weights:.1e}, losses {cell.losses:.1e}{remark}"


def _page(cells: dict[str, dict[str, Cell]], layouts: list[str]) -> str:
    every = [cell for row in cells.values() for cell in row.values()]
    moved = min((cell.moved for cell in every if cell.moved), default=0.0)
    losses = max(cell.losses for cell in every if not cell.instead)
    lines = [
        f"Largest difference of a trained weight from the same recipe on one process, after {STEPS}"
        f" steps of AdamW at {LEARNING_RATE:g} in float32. Training moved weights by {moved:.1e} or"
        f" more; losses differ by {losses:.1e} at most.", "",
        "| | " + " | ".join(layouts) + " |", "|---|" + "---|" * len(layouts)]
    for name, row in cells.items():
        shown = [_shown(row[layout]) for layout in layouts]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _shown(cell: Cell) -> str:
    if cell.instead and not cell.problem:
        return cell.instead
    if cell.problem:
        return f"**{cell.weights:.0e}**" if cell.moved else "failed"
    return f"{cell.weights:.0e}"


if __name__ == "__main__":
    sys.exit(main())
