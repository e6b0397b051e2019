"""What `lorafit targets` prints."""

import json
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorafit.cli.show import console


def targets(name: str, found: Any) -> None:
    """The model in a line, its weights by kind, and lines for a recipe."""
    console.print(f"model     {name} ({found.model_type}): {found.parameters:,} parameters, "
                  f"{found.decoder_layers} decoder layers{_mixture(found)}", markup=False)
    console.print(f"trained   {_trained(found)}", markup=False)
    for remark in found.remarks:
        console.print(f"{'':<9} {remark}", markup=False)
    console.print()
    Console(width=max(console.width, 140)).print(_kinds(found))
    elsewhere = (f"; {found.uncounted:,} parameters elsewhere (biases, convolutions)"
                 if found.uncounted else "")
    console.print(f"{found.norms} norms with {found.norm_parameters:,} parameters{elsewhere}")
    console.print("\nfor the recipe's adapter section:")
    for choice in found.choices:
        words = ", ".join(choice.target_modules)
        console.print(f"  target_modules: [{words}]  # {choice.name}: "
                      f"{choice.lora_parameters:,}", markup=False)
    console.print("  target_modules: all-linear  # the same as all", markup=False)


def as_json(name: str, found: Any) -> None:
    """The same for scripts."""
    print(json.dumps({"model": name, **asdict(found)}, indent=2))


def _trained(found: Any) -> str:
    if found.trained_parameters is None:
        return f"by {found.method}: how much follows from the weights, which are not loaded here"
    share = 100 * found.trained_parameters / found.parameters
    return (f"{found.trained_parameters:,} parameters by {found.method} ({share:.4g} % of the "
            f"base), {_size(found.trained_bytes)} with gradients and AdamW's moments in float32")


def _mixture(found: Any) -> str:
    if not found.experts:
        return ""
    active = f", {found.active_experts} for each token" if found.active_experts else ""
    return f", {found.experts} experts{active}"


def _kinds(found: Any) -> Table:
    table = Table()
    for heading in ("weights", "part", "count", "shape", "parameters", "rank", "LoRA trains",
                    "memory", "adapted"):
        table.add_column(heading, justify="left" if heading in ("weights", "part") else "right",
                         overflow="fold")
    for kind in found.kinds:
        note = ", tied" if kind.part == "head" and found.tied else ""
        adapted = "" if not kind.adapted else (
            "all" if kind.adapted == kind.weights else f"{kind.adapted}")
        table.add_row(Text(kind.kind), kind.part + note, f"{kind.weights}",
                      " × ".join(map(str, kind.shape)), f"{kind.parameters:,}", f"{kind.rank}",
                      f"{kind.lora_parameters:,}", _size(kind.lora_bytes), adapted)
    return table


def _size(size_bytes: int) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:,.1f} {unit}"
    return f"{size_bytes / 2**10:,.1f} KiB"
