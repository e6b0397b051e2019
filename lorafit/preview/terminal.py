"""A preview on a terminal, or in a pipe."""

import os
import sys
import time
from collections.abc import Iterable, Iterator

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lorafit.preview.facts import Preview
from lorafit.preview.rows import ShownRow
from lorafit.preview.rowtext import (
    BETWEEN_TOKENS,
    CLOSE,
    OPEN,
    QUIET,
    SPECIAL,
    TRAINED,
    row_text,
)
from lorafit.preview.visible import safe
from lorafit.preview.words import (
    batching_words,
    became_of,
    bin_name,
    finding_words,
    head_lines,
    limit_mark,
    limit_words,
)

WIDTH = 100  # where there is no terminal that has one
BAR_WIDTH = 24
SAID_EVERY_S = 5.0  # while rows are tokenised for the first time


def make_console() -> Console:
    """A console for standard output, which may be a file or a pipe."""
    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if has_width else WIDTH)


class Progress:
    """Says on standard error how far a long tokenising has come."""

    def __init__(self) -> None:
        self._said_s = time.monotonic()

    def __call__(self, source: str, rows: int) -> None:
        if time.monotonic() - self._said_s > SAID_EVERY_S:
            print(f"{source}: {rows:,} rows tokenised", file=sys.stderr, flush=True)
            self._said_s = time.monotonic()


def show(preview: Preview, console: Console, *, separate: bool = False) -> None:
    """Print everything. `separate`: a line between tokens, where underlining cannot tell them."""
    in_colour = console.color_system is not None and not console.no_color
    with console.capture() as captured:
        for part in _everything(preview, in_colour, separate):
            console.print(part)
    # Lines are filled up with spaces to the width, which nobody wants in a file.
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def _everything(preview: Preview, in_colour: bool, separate: bool) -> Iterator[RenderableType]:
    yield _listed(head_lines(preview))
    yield _heading(f"rows ({len(preview.shown)} of {preview.rows_used:,}, {preview.shown_of})")
    yield _legend(in_colour, separate)
    for row in preview.shown:
        yield Text()
        yield _row_head(row)
        text = row_text(row.pieces, in_colour=in_colour, separate=separate)
        text.rstrip()  # the line feed behind the last ↵
        yield Padding(text, (0, 0, 0, 2))
    yield _heading("lengths, in tokens")
    yield _length_table(preview)
    yield _histogram(preview)
    yield Text(limit_words(preview), QUIET)
    yield _heading("batching")
    yield _batching_table(preview)
    for line in batching_words(preview.batching):
        yield Text(line, QUIET)
    yield _heading("checks")
    yield from _findings(preview)
    if preview.problems:
        yield _heading("would stop training", "bold red")
        for problem in preview.problems:
            yield Text("\n".join(safe(line) for line in str(problem).split("\n")), "red")


def _heading(title: str, style: str = "bold") -> Text:
    return Text(f"\n{title}", style)


def _listed(lines: Iterable[tuple[str, str]]) -> Table:
    """Names with what is said about each, which may take several lines."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in lines:
        table.add_row(name, Text(safe(text)))
    return table


def _legend(in_colour: bool, separate: bool) -> Text:
    text = Text("  ")
    if in_colour:
        text.append("trained", TRAINED).append(", not trained, ")
        text.append("special token", SPECIAL).append("; every other token is ")
        text.append("underlined", "underline")
    else:
        text.append(f"{OPEN}trained{CLOSE}, not trained")
    text.append("; ↵ line feed, ⇥ tab, ␣ space at an edge, ⟨U+200B⟩ invisible character")
    if separate:
        text.append(f", {BETWEEN_TOKENS} end of a token")
    return text


def _row_head(row: ShownRow) -> Text:
    text = Text(safe(row.place), "bold")
    text.append(f"  {row.tokens:,} tokens, {row.supervised_tokens:,} trained", QUIET)
    if row.remark:
        text.append(f"  {row.remark}", "yellow")
    return text


def _length_table(preview: Preview) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "rows", "tokens", "trained", "share", "median", "mean", "p95", "max"):
        table.add_column(heading, justify="left" if not heading else "right")
    for part in preview.lengths:
        table.add_row(
            part.name, f"{part.rows:,}", f"{part.tokens:,}", f"{part.supervised_tokens:,}",
            f"{part.supervised_tokens / part.tokens:.1%}", f"{part.median:,.0f}",
            f"{part.mean:,.1f}", f"{part.p95:,.0f}", f"{part.longest:,}")
    return table


def _histogram(preview: Preview) -> Table:
    """A line for each bin; the bars of a part are relative to its fullest bin."""
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    fullest = [max(counts) for counts in zip(*(each.rows for each in preview.bins), strict=True)]
    for _ in fullest:
        table.add_column(justify="right")
        table.add_column(width=BAR_WIDTH)
    table.add_row("", *(cell for part in preview.lengths for cell in ("", Text(part.name, QUIET))))
    for each in preview.bins:
        cells: list[RenderableType] = [bin_name(each)]
        for count, most in zip(each.rows, fullest, strict=True):
            cells += [f"{count:,}", bar(count, most, BAR_WIDTH)]
        table.add_row(*cells, Text(limit_mark(preview, each), "yellow"))
    return table


def bar(count: int, most: int, width: int) -> str:
    """A bar of eighths of a character; whatever is there shows at least one eighth."""
    eighths = max(int(count > 0), round(8 * width * count / most)) if most else 0
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _batching_table(preview: Preview) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "at once", "micro-batches a step", "computed tokens", "filled", "trained"):
        table.add_column(heading, justify="left" if not heading else "right")
    batching = preview.batching
    for way in batching.ways:
        chosen = way.batching == batching.chosen.value
        table.add_row(
            f"{'▸' if chosen else ' '} {way.batching}", str(way.micro_batch_size),
            f"{way.micro_batches / batching.steps:.1f}", f"{way.computed_tokens:,}",
            f"{way.filled:.1%}", f"{way.efficiency:.1%}", style="bold" if chosen else "")
    return table


def _findings(preview: Preview) -> Iterator[RenderableType]:
    if not preview.findings:
        yield Text("nothing found")
    for name, finding in preview.findings:
        style = {"error": "red", "warn": "yellow"}.get(finding.verdict, "")
        head, places, example = finding_words(name, finding)
        yield Text(safe(head), style)
        yield Padding(Text(f"{safe(places)}\n{safe(example)}"), (0, 0, 0, 2))
    for name, report in preview.reports:
        yield Text(f"{name}: {became_of(report)}", QUIET)
