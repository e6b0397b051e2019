"""What a preview says in words, on the terminal as on the page."""

import re
import shlex
from collections.abc import Iterator, Sequence

from lorafit.data.dataset import Finding, Report
from lorafit.preview.batching import Batching
from lorafit.preview.facts import Preview
from lorafit.preview.lengths import Bin
from lorafit.preview.reading import HELD_OUT

VERDICTS = {"error": "stops training", "drop": "dropped", "warn": "kept"}


def head_lines(preview: Preview) -> Iterator[tuple[str, str]]:
    """What was read and how, as names and sentences."""
    yield "base", preview.base
    for name, report in preview.reports:
        yield name, f"{report.rows_used:,} rows of {report.source}"
    formats = (f"{report.format} ({report.format_reason})" for _, report in preview.reports)
    for name in dict.fromkeys(formats):
        yield "format", name
    yield "template", preview.template
    yield "trained", preview.masks
    for notice in dict.fromkeys(notice for _, report in preview.reports
                                for notice in report.notices):
        yield "notice", notice


def finding_words(part: str, finding: Finding) -> tuple[str, str, str]:
    """What was found, where, and the first of it in words."""
    places = ", ".join(finding.places)
    more = finding.rows - len(finding.places)
    return (
        f"{finding.check} ({part}): {count(finding.rows, 'row')}, "
        f"{VERDICTS.get(finding.verdict, finding.verdict)}",
        f"{places}, and {more:,} more" if more else places,
        finding.example,
    )


def became_of(report: Report) -> str:
    """Rows that were read, and what happened to those that are not used as they are."""
    changes = [f"{rows:,} {what}" for rows, what in (
        (report.rows_not_wanted, "judged unwanted"),
        (report.rows_dropped_by_checks, "dropped by checks"),
        (report.rows_dropped_long, "dropped as too long"),
        (report.rows_truncated, "truncated"),
        (report.rows_split, "split"),
        (report.rows_dropped_unsupervised, "left without anything to train, and dropped"),
    ) if rows]
    return f"{count(report.rows_read, 'row')} read, {report.rows_used:,} used" \
        + "".join(f", {change}" for change in changes)


def limit_words(preview: Preview) -> str:
    """How many rows the length policy is about."""
    longer = [f"{part.longer:,} of {count(part.rows, 'row')} ({part.name})"
              for part in preview.lengths if part.longer]
    return f"The limit, data.max_length_tokens, is {preview.max_length_tokens:,}. " + (
        f"Longer: {', '.join(longer)}; data.on_long: {preview.on_long}. Median to max are of rows "
        "that are not cut." if longer else "No row is longer.")


def batching_words(batching: Batching) -> list[str]:
    """How the table of the ways came about, and which one the recipe takes."""
    steps = "The first step" if batching.steps == 1 else f"The first {batching.steps} steps"
    return [
        f"{steps} of {batching.batch_size} rows, on one rank, "
        f"on {batching.device}. Filled: tokens of rows among those computed; trained: tokens that "
        "carry a loss.",
        f"The recipe takes {batching.chosen.value}: {batching.chosen.reason}.",
    ]


def bin_name(each: Bin) -> str:
    return f"{each.first:,}–{each.last:,}" if each.last is not None else f"{each.first:,} and more"


def limit_mark(preview: Preview, each: Bin) -> str:
    """Points at the bin that the limit is in."""
    is_reached = each.last is not None or any(part.longer for part in preview.lengths)
    return "◂ limit" if each.holds(preview.max_length_tokens) and is_reached else ""


def next_commands(preview: Preview, recipe: str, overrides: Sequence[str]) -> list[str]:
    """What to type next: first a look at rows in which something was found."""
    given = [recipe, *(part for override in overrides for part in ("--set", override))]
    worst_first = sorted(preview.findings, key=lambda found: found[1].verdict != "error")
    commands = []
    for name, finding in worst_first[:2]:
        row = re.sub(r" row (\d+)$", r":\1", finding.places[0])
        split = ["--split", "eval"] if name == HELD_OUT else []
        commands.append(["preview", *given, "--row", row, *split])
    if not preview.problems:
        commands += [["check", *given], ["train", *given]]
    commands = commands or [["preview", *given, "--html", "preview.html"]]
    return [shlex.join(["lorafit", *command]) for command in commands]


def count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
