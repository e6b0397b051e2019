"""What `bench` prints."""

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lorafit.cli.show import console
from lorafit.run_dir import write_text


def progress(text: str) -> None:
    print(f"{text} …", file=sys.stderr, flush=True)


def either(json_to: Path | None, result: Any) -> None:
    """Show a result, and write it to a file; as `-`, to the standard output alone."""
    if str(json_to) != "-":
        measurement(result)
    if json_to is None:
        return
    text = json.dumps(result.as_dict(), indent=2, ensure_ascii=False) + "\n"
    if str(json_to) == "-":
        sys.stdout.write(text)
    else:
        write_text(json_to, text)
        _line("written", str(json_to))


def measurement(result: Any) -> None:
    """The sides beside each other, lorafit's step by its parts, and what counting promises."""
    _heading(result)
    _print(_sides(result))
    _line("ratio", "forward and backward passes over the floor's of the same round")
    _line("memory" if result.machine["device"].startswith("cuda") else "kept", result.memory_is)
    for side in result.sides:
        _line(side.name, side.what)
    for name, reason in result.left_out.items():
        _line(name, f"left out: {reason}")
    for decision in result.decisions:
        _line("decided", f"{decision['key']} {decision['value']}: {decision['reason']}")
    console.print()
    _print(_parts(result))
    _rates(result)
    if result.promise is not None:
        _promise(result.promise)
    _machine(result.machine)


def _heading(result: Any) -> None:
    setting = result.setting
    rank = "" if setting["rank"] is None else f" of rank {setting['rank']}"
    stored = "" if setting["quantization"] == "none" else f", stored in {setting['quantization']}"
    _line("model", f"{result.model} in {setting['dtype']}{stored}; {setting['method']}{rank}")
    micro = setting["micro_batches"]
    _line("step", f"{setting['rows']} rows of {setting['shortest_tokens']} to "
          f"{setting['longest_tokens']} tokens: {setting['tokens']:,} tokens, "
          f"{setting['supervised_tokens']:,} supervised; {setting['batching']} in {micro} "
          f"micro-batch{'es' if micro > 1 else ''}")
    _line("rounds", f"{setting['rounds']}, one step of each side in each; medians [quartiles]")
    for remark in result.remarks:
        _line("", remark)
    console.print()


def _sides(result: Any) -> Table:
    memory = "peak memory" if result.machine["device"].startswith("cuda") else "kept"
    table = _table("side", "step", "forward + backward", "ratio", "optimizer", "tokens/s", memory,
                   "trained")
    for side in result.sides:
        table.add_row(
            side.name, _milliseconds(side.step_s), _milliseconds(side.gradients_s),
            "" if side.name == "floor" else _spread(side.ratio),
            f"{1000 * side.update_s.median:,.1f} ms" if side.trained_parameters else "",
            f"{side.tokens_per_s:,.0f}", _bytes(side.memory_bytes),
            f"{side.trained_parameters:,}" if side.trained_parameters else "")
    return table


def _parts(result: Any) -> Table:
    table = _table("lorafit's step", "ms", "share")
    for part in result.parts:
        table.add_row(part.name, f"{1000 * part.seconds:,.1f}", f"{part.share:.1%}")
    whole = sum(part.seconds for part in result.parts)
    table.add_section()
    table.add_row("whole step", f"{1000 * whole:,.1f}", "")
    return table


def _rates(result: Any) -> None:
    rates = result.rates
    if rates is None:
        _line("speed", f"not counted: {result.why_no_rates}")
        return
    _line("speed", f"{_flops(rates.flops_per_s)}: {rates.of_measured:.1%} of the measured matrix "
          f"rate ({_flops(rates.measured_flops_per_s)}), {rates.model_flops / 1e12:,.4g} TFLOP a "
          "step")
    if rates.of_sheet is not None:
        _line("MFU", f"{rates.of_sheet:.1%} of the data sheet's "
              f"{_flops(rates.sheet_flops_per_s)}")


def _promise(promise: Any) -> None:
    _line("lora/full", f"forward and backward passes {_spread(promise.gradients)}, whole step "
          f"{_spread(promise.step)}")
    if promise.linear is None:
        _line("promised", f"not counted: {promise.why_not}")
    else:
        _line("promised", f"{promise.linear:.3f} by the multiplications of the linear layers, "
              f"{promise.whole:.3f} with attention and the output head")


def _machine(machine: Any) -> None:
    threads = machine["threads"]
    _line("machine", f"{machine['name']} ({machine['device']}), {threads} "
          f"thread{'s' if threads > 1 else ''} of {machine['cpus']} CPUs; {machine['system']}")
    _line("versions", ", ".join(f"{name} {version}"
                                for name, version in machine["versions"].items()))


def _table(first: str, *headings: str) -> Table:
    table = Table()
    table.add_column(first)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _print(table: Table) -> None:
    Console(width=max(console.width, 150), highlight=False).print(table)


def _line(name: str, text: str) -> None:
    console.print(f"{name:<9} {text}", markup=False)


def _milliseconds(spread: Any) -> str:
    values = [1000 * value for value in (spread.median, spread.low, spread.high)]
    places = 0 if values[0] >= 100 else 1
    median, low, high = (f"{value:,.{places}f}" for value in values)
    return f"{median} ms [{low}, {high}]"


def _spread(spread: Any) -> str:
    return f"{spread.median:.3f} [{spread.low:.3f}, {spread.high:.3f}]"


def _bytes(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def _flops(rate: float) -> str:
    return f"{rate / 1e12:,.1f} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:,.1f} GFLOP/s"
