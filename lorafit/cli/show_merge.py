"""The ways to merge an adapter of a quantised base, side by side."""

from pathlib import Path
from typing import Any

from rich.table import Table

from lorafit.cli import show

_WHAT = {"full": "onto the base before it was quantised",
         "dequantised": "onto the base as training saw it, in 16 or 32 bits",
         "requantised": "the same, quantised again"}


def plan(found: Any) -> None:
    """What a merge would do."""
    line = show.console.print
    if found.in_memory:
        line(f"in memory by peft: {found.in_memory}", markup=False)
    else:
        table = Table()
        for heading in ("tensors", "kind", "what happens"):
            table.add_column(heading, justify="right" if heading == "tensors" else "left")
        for kinds, what in ((found.updated, "updated: W + ΔW"),
                            (found.replaced, "replaced by the adapter's own")):
            for kind, number in kinds.items():
                table.add_row(str(number), kind, what)
        for name in found.added:
            table.add_row("1", name, "added")
        table.add_row(str(found.unchanged), "all others", "as they are")
        line(table)
    if found.untie:
        line("embeddings  input and output embeddings no longer share a weight")
    line(f"size        {found.size_bytes / 1e6:,.1f} MB")


def ways(found: Any, trained: Path) -> None:
    table = Table(title=f"merged, against what was trained on {found.stored} ({found.rows})",
                  title_justify="left")
    table.add_column("onto")
    for heading in ("MB", "loss", "mean KL", "top-1", "largest difference"):
        table.add_column(heading, justify="right")
    table.add_row("not merged", "", f"{found.trained_loss:.4f}", "", "", "")
    for way in found.ways:
        agreement = way.agreement
        table.add_row(way.onto, f"{way.size_bytes / 1e6:,.1f}", f"{way.loss:.4f}",
                      f"{agreement.mean_kl:.2e}", f"{agreement.top1:.2%}",
                      f"{agreement.max_difference:.2e}")
    show.console.print(table)
    for onto, what in _WHAT.items():
        show.console.print(f"{onto:12}{what}", markup=False)
    show.console.print(f"best      {found.recommended}: {found.reason}", markup=False)
    show.next_commands([f"lorafit merge {trained} --onto {found.recommended}"])
