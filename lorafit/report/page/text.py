"""Text of the page: whatever comes from a run is escaped, with what cannot be seen written out."""

from collections.abc import Iterable, Sequence
from html import escape

from lorafit.preview.visible import safe, split_hidden, written_out


def line(text: object) -> str:
    """On one line."""
    return escape(safe(str(text)))


def block(text: str) -> str:
    """With its line feeds and tabs."""
    return "".join(written_out(part) if hidden else escape(part)
                   for part, hidden in split_hidden(text))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, words: bool = False) -> str:
    """A table whose first column names its rows. Cells are HTML."""
    head = "".join(f"<th scope='col'>{each}</th>" for each in heads)
    body = "".join(f"<tr><th scope='row'>{first}</th>"
                   + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>"
                   for first, *rest in rows)
    kind = " class='words'" if words else ""
    return (f"<div class='scroll'><table{kind}><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>")


def folded(title: str, content: str, *, is_open: bool = False) -> str:
    """Title is HTML."""
    return (f"<details{' open' if is_open else ''}><summary>{title}</summary>{content}</details>")


def bytes_of(value: float) -> str:
    return f"{value / 2**30:,.2f} GiB" if value >= 2**28 else f"{value / 2**20:,.1f} MiB"


def seconds(value: float) -> str:
    """45.2 s, 3 min 20 s, 2 h 05 min."""
    if value < 60:
        return f"{value:.3g} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
