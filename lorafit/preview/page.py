"""A preview as one HTML page that needs nothing else: no script, no font, no network."""

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from lorafit.errors import Problem
from lorafit.preview.facts import Preview
from lorafit.preview.pieces import Piece, runs_of
from lorafit.preview.rows import ShownRow
from lorafit.preview.visible import safe, split_hidden, written_out
from lorafit.preview.words import (
    batching_words,
    became_of,
    bin_name,
    finding_words,
    head_lines,
    limit_mark,
    limit_words,
)

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --back: #fff; --quiet: #59636e;
  --line: #d1d9e0; --trained: #c9f0d1; --trained-odd: #b2e6bd; --odd: #eef1f4; --special: #dcd3f7;
  --bad: #b3261e; --warn: #8a5a00; --bar: #54a878; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --back: #0d1117; --quiet: #9198a1;
  --line: #3d444d; --trained: #12402a; --trained-odd: #1a5537; --odd: #1c232c; --special: #40327a;
  --bad: #ff8a80; --warn: #e3b341; --bar: #3f8f63; } }
body { color: var(--text); background: var(--back); max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; }
summary { cursor: pointer; font-weight: 600; }
section > details > summary { font-size: 1.15rem; margin: 1.2rem 0 .4rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0; }
dt, .quiet { color: var(--quiet); font-weight: normal; } dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; } td, th { padding: .15rem .7rem; text-align: right; }
th { border-bottom: 1px solid var(--line); font-weight: 600; }
td:first-child, th:first-child { text-align: left; white-space: nowrap; }
tr.chosen { font-weight: 600; }
.row { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .8rem; margin: .6rem 0; }
.row pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .5rem 0 .2rem;
  font: 13px/1.7 ui-monospace, monospace; }
pre span:hover { outline: 1px solid var(--text); }
.o { background: var(--odd); } .t { background: var(--trained); }
.t.o { background: var(--trained-odd); }
.s { background: var(--special); }
.t.s { background: var(--trained); outline: 2px solid var(--special); outline-offset: -2px; }
.n::before { content: "↵"; color: var(--quiet); }
.b::before { content: "⇥"; color: var(--quiet); }
pre i { color: var(--bad); font-style: normal; } pre b { color: var(--warn); }
.meter { width: 14rem; height: .8em; }
.meter div { background: var(--bar); height: 100%; min-width: 1px; }
.error { color: var(--bad); } .warn, .remark { color: var(--warn); }
"""


def page(preview: Preview, title: str) -> str:
    """The whole page. Everything that comes from the data or the recipe is escaped."""
    sections = [
        ("data", _listed(head_lines(preview))),
        (f"rows ({len(preview.shown)} of {preview.rows_used:,}, {preview.shown_of})",
         _legend() + "".join(map(_row, preview.shown))),
        ("lengths, in tokens", _lengths(preview)),
        ("batching", _batching(preview)),
        ("checks", _findings(preview)),
    ]
    if preview.problems:
        text = "".join(map(_problem, preview.problems))
        sections.insert(1, ("would stop training", text))
    body = "".join(
        f"<section><details open><summary>{_text(name)}</summary>{content}</details></section>\n"
        for name, content in sections)
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta http-equiv='Content-Security-Policy' "
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{_text(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{_text(title)}</h1>\n{body}</body></html>\n"
    )


def _text(text: str) -> str:
    """Text with hidden characters written out, line feeds too."""
    return escape(safe(text))


def _problem(problem: Problem) -> str:
    lines = "<br>".join(map(_text, str(problem).split("\n")))
    return f"<p class='error'>{lines}</p>"


def _listed(lines: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(text)}</dd>" for name, text in lines)
    return f"<dl>{rows}</dl>"


def _legend() -> str:
    return ("<p class='quiet'><span class='t'>trained</span>, not trained, "
            "<span class='s'>special token</span>; shades alternate from token to token, and each "
            "shows its id when pointed at. ↵ is a line feed, ⇥ a tab, "
            "⟨U+200B⟩ a character that cannot be seen.</p>")


def _row(row: ShownRow) -> str:
    remark = f" <span class='remark'>{_text(row.remark)}</span>" if row.remark else ""
    return (f"<details class='row' open><summary>{_text(row.place)} <span class='quiet'>"
            f"{row.tokens:,} tokens, {row.supervised_tokens:,} trained</span>{remark}</summary>"
            f"<pre>{''.join(_tokens(row.pieces))}</pre></details>")


def _tokens(pieces: Sequence[Piece]) -> Iterator[str]:
    number = 0
    for run in runs_of(pieces):
        for piece in run:
            yield _token(piece, number)
            number += 1


def _token(piece: Piece, number: int) -> str:
    classes = [name for name, applies in (
        ("t", piece.supervised), ("o", number % 2 == 1), ("s", piece.is_special)) if applies]
    ids = " ".join(map(str, piece.ids))
    title = f"token{'s' if len(piece.ids) > 1 else ''} {ids}" \
        + (f", loss × {piece.weight:g}" if piece.supervised and piece.weight != 1 else "") \
        + ("" if piece.is_whole else ", cut in the middle of this character")
    inside = "".join(
        f"<i>{written_out(part)}</i>" if hidden else _with_breaks(escape(part))
        for part, hidden in split_hidden(piece.text))
    return f"<span class=\"{' '.join(classes)}\" title=\"{title}\">{inside}</span>"


def _with_breaks(text: str) -> str:
    """Line feeds and tabs stay what they are; the style shows a sign before each."""
    return text.replace("\n", "<span class=n>\n</span>").replace("\t", "<span class=b>\t</span>")


def _lengths(preview: Preview) -> str:
    rows = [(part.name, f"{part.rows:,}", f"{part.tokens:,}", f"{part.supervised_tokens:,}",
             f"{part.supervised_tokens / part.tokens:.1%}", f"{part.median:,.0f}",
             f"{part.mean:,.1f}", f"{part.p95:,.0f}", f"{part.longest:,}")
            for part in preview.lengths]
    table = _table(("", "rows", "tokens", "trained", "share", "median", "mean", "p95", "max"), rows)
    fullest = [max(counts) for counts in zip(*(each.rows for each in preview.bins), strict=True)]
    lines = []
    for each in preview.bins:
        cells = "".join(f"<td>{count:,}</td><td>{_meter(count / max(1, most))}</td>"
                        for count, most in zip(each.rows, fullest, strict=True))
        lines.append(f"<tr><td>{_text(bin_name(each))}</td>{cells}"
                     f"<td class='remark'>{limit_mark(preview, each)}</td></tr>")
    heads = "".join(f"<th colspan='2'>{_text(part.name)}</th>" for part in preview.lengths)
    return (f"{table}<table><tr><th>tokens</th>{heads}<th></th></tr>{''.join(lines)}</table>"
            f"<p class='quiet'>{_text(limit_words(preview))}</p>")


def _meter(share: float) -> str:
    return f"<div class='meter'><div style='width:{share:.2%}'></div></div>" if share else ""


def _batching(preview: Preview) -> str:
    batching = preview.batching
    rows = [(way.batching, str(way.micro_batch_size),
             f"{way.micro_batches / batching.steps:.1f}", f"{way.computed_tokens:,}",
             f"{way.filled:.1%}", f"{way.efficiency:.1%}") for way in batching.ways]
    words = " ".join(batching_words(batching))
    return _table(("", "at once", "micro-batches a step", "computed tokens", "filled", "trained"),
                  rows, batching.chosen.value) + f"<p class='quiet'>{_text(words)}</p>"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], chosen: str = "") -> str:
    head = "".join(f"<th>{_text(heading)}</th>" for heading in headings)
    lines = "".join(
        f"<tr{' class=chosen' if row[0] == chosen else ''}>"
        + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{lines}</table>"


def _findings(preview: Preview) -> str:
    parts = []
    for name, finding in preview.findings:
        head, places, example = finding_words(name, finding)
        parts.append(f"<p><strong class='{_text(finding.verdict)}'>{_text(head)}</strong><br>"
                     f"{_text(places)}<br>{_text(example)}</p>")
    used = "<br>".join(_text(f"{name}: {became_of(report)}") for name, report in preview.reports)
    return ("".join(parts) or "<p>nothing found</p>") + f"<p class='quiet'>{used}</p>"
