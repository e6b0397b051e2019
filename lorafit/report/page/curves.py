"""Charts on the page, their legend, and their values as tables."""

import math
from collections.abc import Sequence

from lorafit.report import svg
from lorafit.report.charts import Chart, Curve, Look
from lorafit.report.page.text import folded, line, table
from lorafit.report.scale import number

_ROWS = 12  # of the table below a chart


def curves(charts: Sequence[Chart], names: Sequence[str]) -> str:
    drawn = "".join(figure(chart, names, wide=chart.key == "loss") for chart in charts)
    return f"{legend(names) if len(names) > 1 else ''}<div class='charts'>{drawn}</div>"


def legend(names: Sequence[str]) -> str:
    """Runs by colour, dashes and marks."""
    entries = []
    for i, name in enumerate(names):
        stroke = svg.dash(Curve(i, "", Look.SMOOTH, []))
        entries.append(
            f"<li><svg viewBox='0 0 34 12' aria-hidden='true'><path class='smooth "
            f"run{i % svg.SHADES}' d='M0 6H34'{stroke}/><path class='mark run{i % svg.SHADES}' "
            f"d='{svg.mark(i, 17, 6)}'/></svg> {line(name)}</li>")
    return f"<ul class='legend'>{''.join(entries)}</ul>"


def figure(chart: Chart, names: Sequence[str], *, wide: bool = False) -> str:
    unit = f" <span class='quiet'>({line(chart.unit)})</span>" if chart.unit else ""
    narrow = svg.drawn(chart, names)
    picture = narrow if not wide else (
        f"<div class='wide-only'>{svg.drawn(chart, names, svg.WIDE)}</div>"
        f"<div class='narrow'>{narrow}</div>")
    remark = f"<p class='warn'>{line(chart.remark)}</p>" if chart.remark else ""
    kinds = list(dict.fromkeys(curve.name for curve in chart.curves))
    many = " class='many'" if len(names) > 1 else ""
    return (f"<figure{' class=wide' if wide else ''}><figcaption>{line(chart.title)}{unit}"
            f"</figcaption>{picture}<output{many} aria-live='polite'>"
            f"{line(_looks(chart, kinds))}</output>{remark}{_values(chart, names)}</figure>")


def _looks(chart: Chart, kinds: Sequence[str]) -> str:
    """What thin and thick lines are, shown until something is pointed at."""
    words = {Look.RAW: "faint line", Look.SMOOTH: "line", Look.MARKS: "line with marks",
             Look.LIMIT: "dotted line"}
    look = {curve.name: curve.look for curve in chart.curves}
    if len(kinds) < 2 or len({look[kind] for kind in kinds}) < 2:
        return ""
    return "; ".join(f"{words[look[kind]]}: {kind}" for kind in kinds)


def _values(chart: Chart, names: Sequence[str]) -> str:
    """Some of the values, for whoever reads no drawings; the ends are always among them."""
    shown = [curve for curve in chart.curves if curve.look in (Look.SMOOTH, Look.MARKS)]
    places = sorted({at for curve in shown for at, _ in curve.points})
    if len(places) > _ROWS:
        places = [places[round(i * (len(places) - 1) / (_ROWS - 1))] for i in range(_ROWS)]
    heads = [line(chart.across), *(line(curve.name if len(names) == 1 else
                                        f"{names[curve.run]}: {curve.name}") for curve in shown)]
    columns = [dict(curve.points) for curve in shown]
    rows = [(number(at), *(_cell(column.get(at)) for column in columns)) for at in places]
    return folded("values", table(heads, rows))


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return number(value) if math.isfinite(value) else f"<span class='bad'>{value}</span>"
