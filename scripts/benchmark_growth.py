"""How the cost of a step grows: with the rank, the length of rows, the layers, and what is trained.

    python scripts/benchmark_growth.py                         # a small Llama, for a CPU
    python scripts/benchmark_growth.py --gpu-shape llama-3.1-8b --lengths 1024,4096,16384,65536 \
        --ranks 4,16,64,256 --tokens 65536 --activation-checkpointing

One of the four is varied at a time, the others stay at their middle values. At each point the base
without an adapter (the floor), lorafit and plain peft take turns, as `lorafit bench` lets them:
checked to compute the same, ratios taken round by round. Tokens a step stay about the same whatever
the length of rows. Written are growth.json, with every round, and growth.svg, four plots, which
needs matplotlib.
"""

import argparse
import dataclasses
import gc
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from lorafit import libraries
from lorafit.bench import machine
from lorafit.bench.request import Request, check_request
from lorafit.bench.run import bench
from lorafit.bench.shapes import SHAPES, Shape
from lorafit.bench.workload import of_request
from lorafit.errors import LorafitError
from lorafit.model.device import find_device

SMALL = Shape(hidden=256, layers=4, heads=4, key_heads=4, inner=704, vocabulary=4096, tied=True)
SIDES = ("floor", "lorafit", "peft")
AXES = {"rank": "rank", "length": "tokens of a row", "layers": "layers",
        "supervised": "share of tokens trained"}
DRAWN = {"lorafit": "tab:blue", "peft": "tab:orange"}


@dataclasses.dataclass(frozen=True)
class Point:
    """What is measured. axis, value: what was varied for it, and to what."""

    axis: str
    value: float
    shape: Shape
    request: Request


def points(options: argparse.Namespace) -> Iterator[Point]:
    """Each axis in turn, the others at their middle values. A shape's points follow each other, so
    that its weights are made once."""
    shape = SHAPES[options.gpu_shape] if options.gpu_shape else SMALL
    middle = Request(
        rank=options.rank, length=options.length, supervised=options.supervised,
        dtype=options.dtype, quantization=options.quantization, micro_tokens=options.micro_tokens,
        checkpointing=options.activation_checkpointing)

    def point(axis: str, value: float, **changes: Any) -> Point:
        layers = changes.pop("layers", shape.layers)
        request = dataclasses.replace(middle, **changes)
        rows = max(1, options.tokens // request.length)
        return Point(axis, value, dataclasses.replace(shape, layers=layers),
                     dataclasses.replace(request, batch_size=rows))

    for rank in options.ranks:
        yield point("rank", rank, rank=rank)
    for length in options.lengths:
        yield point("length", length, length=length)
    for share in options.shares:
        yield point("supervised", share, supervised=share)
    for layers in options.layers or _halves(shape.layers):
        yield point("layers", layers, layers=layers)


def measure(wanted: Sequence[Point], rounds: int) -> list[dict[str, Any]]:
    """A dictionary a point. Where it does not fit into memory its sides are empty."""
    found: list[dict[str, Any]] = []
    known: dict[tuple[Shape, Request], dict[str, Any]] = {}  # the middle is a point of every axis
    base: tuple[Shape, Any] | None = None
    for number, point in enumerate(wanted, 1):
        key = (point.shape, point.request)
        if key not in known:
            if base is not None and base[0] != point.shape:
                base = None
                _free_memory()
            workload = of_request(point.request, point.shape, base[1] if base else None)
            base = point.shape, workload.base
            try:
                known[key] = _figures(bench(workload, rounds, SIDES, with_parts=False))
            except torch.OutOfMemoryError:
                known[key] = {"setting": {}, "sides": {},
                              "left_out": dict.fromkeys(SIDES, "does not fit into memory")}
            _free_memory()
        figures = known[key]
        found.append({"axis": point.axis, "value": point.value, **figures})
        print(f"{number:>3} of {len(wanted)}  {AXES[point.axis]} {point.value:g}: "
              f"{_line(figures)}", flush=True)
    return found


def _figures(result: Any) -> dict[str, Any]:
    return {"setting": result.setting, "left_out": result.left_out,
            "sides": {side.name: dataclasses.asdict(side) for side in result.sides}}


def _line(figures: dict[str, Any]) -> str:
    parts = [f"{name} {side['tokens_per_s']:,.0f} tokens/s"
             + (f" ({side['ratio']['median']:.3f})" if name != "floor" else "")
             for name, side in figures["sides"].items()]
    return ", ".join(parts + [f"{name} {reason}" for name, reason in figures["left_out"].items()])


def draw(found: Sequence[dict[str, Any]], target: Path) -> None:
    """Four plots: the ratio to the floor with its quartiles (lines), tokens/s (dashes)."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, plots = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for axis, plot in zip(AXES, plots.flat, strict=True):
        speed = plot.twinx()
        for name, colour in DRAWN.items():
            own = sorted((point["value"], point["sides"][name]) for point in found
                         if point["axis"] == axis and name in point["sides"])
            values = [value for value, _ in own]
            ratios = [side["ratio"] for _, side in own]
            plot.plot(values, [r["median"] for r in ratios], "o-", color=colour, label=name,
                      markersize=3)
            plot.fill_between(values, [r["low"] for r in ratios], [r["high"] for r in ratios],
                              color=colour, alpha=0.2, linewidth=0)
            speed.plot(values, [side["tokens_per_s"] for _, side in own], "--", color=colour,
                       linewidth=1)
        plot.axhline(1, color="grey", linewidth=0.8)
        ticks = sorted({point["value"] for point in found if point["axis"] == axis})
        if axis != "supervised":
            plot.set_xscale("log", base=2)
        plot.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        plot.minorticks_off()
        plot.set_xlabel(AXES[axis])
        plot.set_ylabel("time / floor's (lines)")
        plot.set_ylim(bottom=0)
        speed.set_ylabel("tokens/s (dashes)")
        speed.set_ylim(bottom=0)
    plots.flat[0].legend(loc="lower right")
    figure.savefig(target)


def _halves(layers: int) -> list[int]:
    """Up to four numbers of layers: a quarter, a half, all, twice as many."""
    return sorted({max(1, layers // 4), max(1, layers // 2), layers, 2 * layers})


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _numbers(kind: type) -> Any:
    def read(text: str) -> list[Any]:
        return [kind(word) for word in text.split(",")]

    read.__name__ = f"list of {kind.__name__}s"  # argparse's messages name it
    return read


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpu-shape", choices=sorted(SHAPES), help="a named shape in place of the "
                        "small one")
    parser.add_argument("--ranks", type=_numbers(int), default=[4, 16, 64, 256])
    parser.add_argument("--lengths", type=_numbers(int), default=[32, 128, 512, 1024])
    parser.add_argument("--shares", type=_numbers(float), default=[0.1, 0.3, 0.6, 1.0])
    parser.add_argument("--layers", type=_numbers(int), help="a quarter, half, once and twice the "
                        "shape's if left out")
    parser.add_argument("--rank", type=int, default=16, help="the middle value; so are:")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--supervised", type=float, default=0.6)
    parser.add_argument("--tokens", type=int, default=1024, help="of a step, about")
    parser.add_argument("--micro-tokens", type=int, help="most tokens computed at once")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("."), help="folder for growth.json "
                        "and growth.svg")
    parser.add_argument("--no-plot", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if not options.no_plot:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            print("the plots need matplotlib: pip install matplotlib, or leave them out with "
                  "--no-plot", file=sys.stderr)
            return 2
    libraries.settle(needs_hub=False)
    try:
        wanted = list(points(options))
        for point in wanted:
            check_request(point.request)
        found = measure(wanted, options.rounds)
    except LorafitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    options.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"points": found, "machine": machine.describe(find_device()[0])}, indent=1)
    (options.output / "growth.json").write_text(text + "\n", encoding="utf-8")
    if not options.no_plot:
        draw(found, options.output / "growth.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
