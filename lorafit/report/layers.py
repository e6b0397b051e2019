"""What the newest adapter of a run does to each layer, from its own file alone."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lorafit.errors import UserError
from lorafit.report.charts import Chart, Curve, Look
from lorafit.report.story import Story

_NUMBER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Cell:
    """ΔW of a layer. norm: ‖ΔW‖, None where it is not known. effective_rank: exp of the entropy of
    σ / Σσ. problem: why it does nothing, or harm."""

    norm: float | None
    effective_rank: float | None
    problem: str


@dataclass(frozen=True)
class LayerMap:
    """Rows are layers of the model, columns what they adapt there. of: which weights. measured: how
    ΔW was had. spectra: σᵢ / σ₁ by kind of layer. why_not: why there is nothing to see."""

    of: str
    measured: str = ""
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    cells: tuple[tuple[Cell | None, ...], ...] = ()
    spectra: tuple[tuple[str, tuple[float, ...]], ...] = ()
    why_not: str = ""


def layers_of(story: Story) -> LayerMap:
    """Measured from A and B; the base is not read. Loads torch."""
    if story.weights is None:
        return LayerMap("", why_not="no weights were saved yet")
    from lorafit.export.delta.inspection import inspect_adapter
    from lorafit.model.trained import open_adapter

    directory = story.weights
    of = "the result" if directory == story.run.adapter else directory.name
    try:
        seen = inspect_adapter(open_adapter(directory), with_base=False)
    except UserError as error:
        return LayerMap(of, why_not=error.problems[0].what)
    if not seen.layers:
        return LayerMap(of, why_not=seen.measured)
    cells: dict[tuple[str, str], Cell] = {}
    for layer in seen.layers:
        cells[_place(layer.name, layer.kind)] = Cell(layer.norm, layer.effective_rank,
                                                     layer.problem)
    rows = tuple(dict.fromkeys(row for row, _ in cells))
    rows = tuple(sorted(rows, key=lambda row: (not row.isdigit(), int(row) if row.isdigit()
                                               else 0)))
    columns = tuple(dict.fromkeys(column for _, column in cells))
    spectra = [(kind.kind, kind.spectrum) for kind in seen.kinds() if len(kind.spectrum) > 1]
    return LayerMap(of, seen.measured, rows, columns,
                    tuple(tuple(cells.get((row, column)) for column in columns) for row in rows),
                    tuple(spectra))


def _place(name: str, kind: str) -> tuple[str, str]:
    """`model.layers.3.self_attn.q_proj` is q_proj of row 3; what has no number is a row alone."""
    found = _NUMBER.search(name)
    return (found.group(1), kind) if found else (kind, kind)


def spectra_chart(layers: LayerMap) -> Chart | None:
    """Singular values of ΔW beside the largest, a curve for each kind of layer, in the order of the
    table: how many directions the rank is used for."""
    kinds = list(dict(layers.spectra).items())
    if not kinds:
        return None
    curves = [Curve(i, kind, Look.SMOOTH, [(k + 1.0, value) for k, value in enumerate(values)])
              for i, (kind, values) in enumerate(kinds)]
    return Chart("spectra", "Singular values of ΔW, of the largest one", "", curves,
                 across="direction")


def largest(layers: LayerMap, figure: str) -> float:
    """Of norm or effective_rank, over all cells; 0 where none is known."""
    return max((value for row in layers.cells for cell in row if cell is not None
                if (value := getattr(cell, figure)) is not None), default=0.0)


def short(columns: Sequence[str]) -> list[str]:
    """Names without the parts that all have: q_proj of self_attn.q_proj where that is enough."""
    last = [column.rpartition(".")[2] for column in columns]
    return [word if last.count(word) == 1 else column for word, column in
            zip(last, columns, strict=True)]
