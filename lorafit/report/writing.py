"""A report from run directories to files."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorafit.errors import UserError
from lorafit.report.charts import charts_of
from lorafit.report.layers import layers_of
from lorafit.report.page import Told, page
from lorafit.report.png import refuse_without_matplotlib, write_plots
from lorafit.report.story import Story, read_stories
from lorafit.report.token_losses import kept, measure
from lorafit.run_dir import refuse_target, write_text


@dataclass(frozen=True)
class Written:
    page: Path
    plots: list[Path]


def refuse_report(paths: Sequence[Path], output: Path, png: Path | None, *,
                  force: bool) -> list[Story]:
    """The runs, once everything that can be known to be wrong in a moment is known not to be.

    UserError for runs that cannot be read, and for targets that are taken.
    """
    stories = read_stories(list(paths))
    if output.is_dir():
        raise UserError("is a directory", str(output), "name the page, for example "
                        f"--output {output}/report.html")
    if not force:
        refuse_target(output, "choose another with --output, or replace it with --force")
    if png is not None:
        refuse_without_matplotlib()
        if png.exists() and not png.is_dir():
            raise UserError("is no directory", str(png), "choose another with --png")
        if not force:
            refuse_target(png, "choose another with --png, or add to it with --force")
    return stories


def write_report(stories: Sequence[Story], output: Path, tokens: int | None, png: Path | None,
                 say: Callable[[str], None]) -> Written:
    """Measure what was asked for, and write the page and its plots.

    tokens: of so many rows, None to show what was measured before. MachineError when the disk
    refuses.
    """
    told = [Told(story, layers_of(story), kept(story) or (
        None if tokens is None else measure(story, say))) for story in stories]
    charts = charts_of(stories)
    made = time.strftime("%Y-%m-%d %H:%M")
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, page(told, charts, made, *(() if tokens is None else (tokens,))))
    names = [story.name for story in stories]
    plots = [] if png is None else write_plots(
        charts, names, [(each.story.name, each.layers) for each in told], png)
    return Written(output, plots)
