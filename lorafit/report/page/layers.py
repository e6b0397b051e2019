"""What the adapter does to each layer: a table that is coloured as a heat map, and spectra."""

from collections.abc import Callable

from lorafit.report.layers import Cell, LayerMap, largest, short, spectra_chart
from lorafit.report.page.curves import figure, legend
from lorafit.report.page.text import line
from lorafit.report.scale import number

_MOST_LEGEND = 12


def layers(found: LayerMap) -> str:
    if found.why_not:
        return f"<p class='quiet'>{line(found.why_not)}</p>"
    said = (f"<p class='quiet'>Weights of {line(found.of)}: {line(found.measured)}. The stronger "
            "the colour, the nearer to the largest of the table. Norms relative to the base: "
            "lorafit inspect.</p>")
    maps = _map(found, "‖ΔW‖ (Frobenius norm of the update)", "norm", lambda cell: cell.norm) + \
        _map(found, "Effective rank of ΔW", "effective_rank", lambda cell: cell.effective_rank)
    chart = spectra_chart(found)
    if chart is None:
        return said + maps
    kinds = list(dict.fromkeys(curve.name for curve in chart.curves))
    return (f"{said}{maps}<h3>Spectra, means over the layers of a kind</h3>"
            f"{legend(kinds[:_MOST_LEGEND])}<div class='charts'>{figure(chart, kinds)}</div>")


def _map(found: LayerMap, title: str, figure_: str, value: Callable[[Cell], float | None]) -> str:
    most = largest(found, figure_)
    heads = "".join(f"<th scope='col'>{line(name)}</th>" for name in short(found.columns))
    rows = "".join(
        f"<tr><th scope='row'>{line(name)}</th>"
        + "".join(_cell(cell, None if cell is None else value(cell), most) for cell in cells)
        + "</tr>" for name, cells in zip(found.rows, found.cells, strict=True))
    return (f"<h3>{title}</h3><div class='scroll'><table class='map'><thead><tr><th scope='col'>"
            f"layer</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>")


def _cell(cell: Cell | None, value: float | None, most: float) -> str:
    if cell is None:
        return "<td></td>"
    if cell.problem:
        return f"<td class='dead' title='{line(cell.problem)}'>none</td>"
    if value is None:
        return "<td>?</td>"
    share = value / most if most else 0
    return f"<td class='heat' style='--share:{share:.0%}'>{number(float(f'{value:.3g}'))}</td>"
