"""The ways to merge an adapter of a quantised base, side by side."""

from pathlib import Path
from typing import Any

from rich.table import Table

from lorafit.cli import show

_WHAT = {"full": "the base before it was quantised", "dequantised": "the base as training saw it",
         "requantised": "the same, quantised again"}


def ways(found: Any, trained: Path) -> None:
    table = Table(title=f"merged, against what was trained on {found.stored} ({found.rows})",
                  title_justify="left")
    table.add_column("onto")
    table.add_column("what that is")
    for heading in ("MB", "loss", "mean KL", "top-1", "largest difference"):
        table.add_column(heading, justify="right")
    table.add_row("", "as trained, not merged", "", f"{found.trained_loss:.4f}", "", "", "")
    for way in found.ways:
        agreement = way.agreement
        table.add_row(way.onto, _WHAT[way.onto], f"{way.size_bytes / 1e6:,.1f}", f"{way.loss:.4f}",
                      f"{agreement.mean_kl:.2e}", f"{agreement.top1:.2%}",
                      f"{agreement.max_difference:.2e}")
    show.console.print(table)
    show.console.print(f"best      {found.recommended}: {found.reason}", markup=False)
    show.next_commands([f"lorafit merge {trained} --onto {found.recommended}"])
