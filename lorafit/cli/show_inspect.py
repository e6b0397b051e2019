"""What `inspect` and `combine` print."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorafit.cli.show import console
from lorafit.run_dir import write_text

_BARS = "▁▂▃▄▅▆▇█"
_WIDEST_SPARKLINE = 12
_ROUNDING = 1e-9  # shares nearer to 1 are 1
_LISTED = 8  # layers with a problem, named one by one


def either(json_to: Path | None, result: Any, show: Callable[[Any], None]) -> None:
    """Show a result, or write it for a script: to a file or, as `-`, to the standard output."""
    if json_to is None:
        show(result)
        return
    values = result.as_dict() if hasattr(result, "as_dict") else asdict(result)
    text = json.dumps(values, indent=2, ensure_ascii=False, default=str) + "\n"
    if str(json_to) == "-":
        sys.stdout.write(text)
    else:
        write_text(json_to, text)
        _line("written", str(json_to))


def inspection(seen: Any, every_layer: bool) -> None:
    """What the adapter is, what it changes, and loudly what is wrong with it."""
    _line("adapter", f"{seen.directory}: {seen.method}, {seen.parameters:,} parameters, "
          f"{seen.size_bytes / 1e6:,.2f} MB")
    _line("base", seen.base)
    for name, value in seen.facts.items():
        _line(name, value)
    _line("measured", seen.measured)
    for remark in seen.remarks:
        _line("", remark)
    _problems(seen)
    console.print()
    if seen.layers:
        _print(_layers(seen.layers) if every_layer else _kinds(seen.kinds()))
    if seen.tensors:
        table = _table("tensors of the adapter", "name", "norm")
        for name, norm in seen.tensors.items():
            table.add_row(name, _number(norm))
        _print(table)
    for name, parameters in seen.in_full.items():
        _line("in full", f"{name}, {parameters:,} parameters")


def shrunk(result: Any) -> None:
    """What became smaller, and what that costs."""
    before = [layer.rank_before for layer in result.layers]
    after = [layer.rank for layer in result.layers]
    worst = min(result.layers, key=lambda layer: layer.energy_kept)
    _line("written", f"{result.directory}: {result.size_bytes / 1e6:,.2f} MB, was "
          f"{result.size_before_bytes / 1e6:,.2f} MB")
    _line("ranks", f"{min(after)} to {max(after)}, in all {sum(after):,} of {sum(before):,}")
    _line("kept", f"{result.energy_kept:.4%} of ‖ΔW‖² over all layers; least "
          f"{worst.energy_kept:.4%} in {worst.name}")
    _line("loss", f"{result.loss_before:.4f} before, {result.loss:.4f} after, nats per token on "
          f"{result.rows}")
    close = result.agreement
    _line("logits", f"largest difference {close.max_difference:.2e}, relative "
          f"{close.relative_rms:.2e}, top-1 agreement {close.top1:.2%}")
    for remark in result.remarks:
        _line("", remark)
    _next(result.directory)


def comparison(seen: Any) -> None:
    """Two adapters side by side, by kind of layer."""
    _line("first", seen.names[0])
    _line("second", seen.names[1])
    _line("cosine", f"{_number(seen.cosine)} over all {len(seen.layers)} common layers")
    for which, names in (("first", seen.only_first), ("second", seen.only_second)):
        if names:
            _line("", f"only the {which} has {len(names)} layers: {_some(names)}")
    for remark in seen.remarks:
        _line("", remark)
    console.print()
    table = _table("ΔW of both, means over the layers of a kind", "kind", "layers", "ranks",
                   "‖ΔW₁‖", "‖ΔW₂‖", "cosine", "‖ΔW₁−ΔW₂‖/‖ΔW₁‖", "outputs shared",
                   "inputs shared")
    for row in seen.kinds():
        table.add_row(
            row["kind"], str(row["layers"]), f"{row['ranks'][0]}, {row['ranks'][1]}",
            _number(row["norms"][0]), _number(row["norms"][1]), _number(row["cosine"]),
            _number(row["distance"]), _shared(row["overlap_out"], row["expected_out"]),
            _shared(row["overlap_in"], row["expected_in"]))
    _print(table)
    _line("shared", "mean cos² of the angles between the spaces; in brackets that of random ones")


def combined(result: Any) -> None:
    """What was written, and each model's loss on each set of rows."""
    ranks = [layer.rank for layer in result.layers]
    least = min(result.layers, key=lambda layer: layer.energy_kept)
    made = result.combination
    weights = ", ".join(f"{weight:.4g}" for weight in made.weights)
    density = "" if made.density is None else f", density {made.density:g}"
    seed = f", seed {made.seed}" if made.how.startswith("dare") else ""
    _line("written", f"{result.directory}: {result.size_bytes / 1e6:,.2f} MB")
    _line("combined", f"{made.how} with weights {weights}{density}{seed}; ranks {min(ranks)} to "
          f"{max(ranks)}")
    _line("kept", "all of the weighted sum" if least.energy_kept > 1 - _ROUNDING else
          f"at least {least.energy_kept:.4%} of ‖ΔW‖² of the combination, least in {least.name}")
    console.print()
    table = _table("loss, nats per token", "", *result.rows)
    for model, losses in zip(result.models, zip(*result.losses, strict=True), strict=True):
        table.add_row(model, *(f"{loss:.4f}" for loss in losses))
    _print(table)
    _next(result.directory)


def sparkline(values: Sequence[float]) -> str:
    """Values from 0 to 1 as bars of eight heights; of many, some at equal distances."""
    count = min(len(values), _WIDEST_SPARKLINE)
    shown = [values[i * len(values) // count] for i in range(count)]
    return "".join(_BARS[min(7, int(8 * max(0.0, value)))] for value in shown)


def _problems(seen: Any) -> None:
    if not seen.problems:
        return
    console.print(Text(f"{'PROBLEM':<15} {len(seen.problems)} of {len(seen.layers)} layers do "
                       "nothing, or harm", style="bold red"))
    for layer in seen.problems[:_LISTED]:
        console.print(Text(f"{'':<15} {layer.name}: {layer.problem}", style="red"))
    if (more := len(seen.problems) - _LISTED) > 0:
        console.print(f"{'':<15} and {more} more: --layers lists them")


def _kinds(kinds: Sequence[Any]) -> Table:
    table = _table("what it changes, means over the layers of a kind", "kind", "layers", "shape",
                   "rank", "scale", "‖ΔW‖", "of ‖W‖", "at most", "σ₁² share", "effective rank",
                   "rank for 99 %", "spectrum")
    for kind in kinds:
        table.add_row(
            kind.kind, str(kind.layers), _shape(kind.shape), _number(kind.rank),
            _number(kind.scale), _number(kind.norm), _percent(kind.relative),
            _percent(kind.relative_max), _percent(kind.first_share), _number(kind.effective_rank),
            _number(kind.rank_99), sparkline(kind.spectrum) if kind.spectrum else "")
    return table


def _layers(layers: Sequence[Any]) -> Table:
    table = _table("what it changes", "layer", "shape", "rank", "scale", "‖ΔW‖", "of ‖W‖", "σ₁",
                   "σ₁² share", "effective rank", "rank for 99 %", "spectrum")
    for layer in layers:
        values = layer.singular_values
        table.add_row(
            layer.name, _shape(layer.shape), _number(layer.rank), _number(layer.scale),
            _number(layer.norm), _percent(layer.relative), _number(values[0] if values else None),
            _percent(layer.first_share), _number(layer.effective_rank), _number(layer.rank_99),
            layer.problem or (sparkline([v / values[0] for v in values]) if values else ""),
            style="red" if layer.problem else None)
    return table


def _table(title: str, first: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "spectrum" else "right",
                         overflow="fold")
    return table


def _print(table: Table) -> None:
    Console(width=max(console.width, 150), highlight=False).print(table)


def _next(directory: Path) -> None:
    _line("next", f"lorafit generate {directory} --prompt '…'")
    _line("", f"lorafit merge {directory}")


def _line(name: str, text: str) -> None:
    console.print(f"{name:<15} {text}", markup=False)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _shared(overlap: float | None, expected: float | None) -> str:
    return "" if overlap is None else f"{overlap:.1%} ({expected or 0:.1%})"


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
