"""The charts of a report as PNG files, drawn by matplotlib: for papers, slides and terminals that
show pictures. The page does without it."""

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lorafit.errors import MachineError, UserError
from lorafit.report.charts import Chart, Curve, Look
from lorafit.report.layers import LayerMap, short

_COLOURS = ("#0b5cc4", "#b04d08", "#1a7a3d", "#7d3fc2", "#b81f5c", "#0b6f82")
_DASHES = ("-", (0, (7, 3)), (0, (2, 3)), (0, (9, 3, 2, 3)), (0, (4, 2)), (0, (1, 2)))
_MARKS = "os^DP|"
_DOTS_PER_INCH = 160


def refuse_without_matplotlib() -> None:
    if find_spec("matplotlib") is None:
        raise UserError("needs matplotlib, which is not installed", "--png",
                        "pip install 'lorafit[plots]', or leave out --png: the page has every plot")


def write_plots(charts: Sequence[Chart], names: Sequence[str],
                layers: Sequence[tuple[str, LayerMap]], directory: Path) -> list[Path]:
    """A file for each chart, and two for the layers of each run (its name is the first of the
    pair). MachineError when the disk refuses."""
    drawings = [(chart.key, _chart(chart, names)) for chart in charts]
    for name, found in layers:
        if found.cells:
            suffix = f"-{name.replace('/', '-')}" if len(layers) > 1 else ""
            drawings += [(f"layers_norm{suffix}", _map(found, "norm", "‖ΔW‖")),
                         (f"layers_effective_rank{suffix}",
                          _map(found, "effective_rank", "effective rank of ΔW"))]
    written = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for key, drawing in drawings:
            path = directory / f"{key}.png"
            drawing.savefig(path, dpi=_DOTS_PER_INCH)
            written.append(path)
    except OSError as error:
        raise MachineError(f"{directory}: cannot be written: {error.strerror or error}") from error
    return written


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """Without pyplot: no window, no state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _chart(chart: Chart, names: Sequence[str]) -> Any:
    figure, axes = _figure(7, 4)
    for curve in sorted(chart.curves, key=lambda each: each.look is not Look.RAW):
        axes.plot([x for x, _ in curve.points],
                  [y if math.isfinite(y) else math.nan for _, y in curve.points],
                  **_style(curve), label=_label(curve, names))
    axes.set_title(_plain(chart.title), loc="left")
    axes.set_xlabel(chart.across)
    axes.set_ylabel(chart.unit)
    if chart.log:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="small")
    return figure


def _style(curve: Curve) -> dict[str, Any]:
    run = curve.run
    look: dict[Look, dict[str, Any]] = {
        Look.RAW: {"alpha": 0.35, "linewidth": 0.7},
        Look.SMOOTH: {"linestyle": _DASHES[run % len(_DASHES)]},
        Look.MARKS: {"marker": _MARKS[run % len(_MARKS)], "linewidth": 0.9, "markersize": 5},
        Look.LIMIT: {"linestyle": ":"},
    }
    return {"color": _COLOURS[run % len(_COLOURS)], **look[curve.look]}


def _label(curve: Curve, names: Sequence[str]) -> str | None:
    if curve.look is Look.RAW:
        return None
    return _plain(curve.name if len(names) == 1 else f"{names[curve.run]}: {curve.name}")


def _map(found: LayerMap, figure_: str, title: str) -> Any:
    values = [[math.nan if cell is None or getattr(cell, figure_) is None
               else getattr(cell, figure_) for cell in row] for row in found.cells]
    figure, axes = _figure(1.6 + 0.7 * len(found.columns), 1.6 + 0.22 * len(found.rows))
    image = axes.imshow(values, aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(found.columns)), [_plain(name) for name in short(found.columns)],
                    rotation=45, ha="right")
    axes.set_yticks(range(len(found.rows)), [_plain(name) for name in found.rows])
    axes.set_title(_plain(title), loc="left")
    figure.colorbar(image, ax=axes)
    return figure


def _plain(text: str) -> str:
    """Dollar signs would begin a formula, and a leading underscore hides a label."""
    return text.replace("$", r"\$").replace("_", " ", 1) if text.startswith("_") else \
        text.replace("$", r"\$")
