"""A report as one HTML page that loads nothing: style, script and drawings are in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorafit import __version__
from lorafit.report.charts import Chart
from lorafit.report.layers import LayerMap
from lorafit.report.page import figures, layers, words
from lorafit.report.page.curves import curves
from lorafit.report.page.style import POLICY, SCRIPT, STYLE
from lorafit.report.page.text import folded, line
from lorafit.report.story import Story
from lorafit.report.token_losses import TokenLosses

_ROWS = 8  # whose tokens are shown, where nobody said how many


@dataclass(frozen=True)
class Told:
    """What a page tells of a run besides what the run wrote itself. tokens: None where nothing was
    measured."""

    story: Story
    layers: LayerMap
    tokens: TokenLosses | None


def page(told: Sequence[Told], charts: Sequence[Chart], made: str, rows: int = _ROWS) -> str:
    """The whole page. made: when. rows: whose tokens are shown. All that comes from runs is
    escaped."""
    stories = [each.story for each in told]
    names = [story.name for story in stories]
    title = " · ".join(names)
    sections = [("figures", "Figures", figures.figures(stories)),
                ("curves", "Curves", curves(charts, names) if charts else
                 "<p class='quiet'>No step was logged yet.</p>")]
    if beside := figures.predicted(stories):
        sections.append(("predicted", "Predicted and measured", beside))
    if len(stories) > 1:
        sections.append(("differences", "What differs in the recipes",
                         words.differences(stories)))
    sections.append(("data", "Data", figures.data(stories)))
    sections += [
        ("layers", "Layers", _of_each(told, lambda each: layers.layers(each.layers))),
        ("samples", "Sample answers", _of_each(told, lambda each: words.samples(each.story))),
        ("tokens", "Token by token, before and after", _of_each(
            told, lambda each: words.tokens(each.story, each.tokens, rows))),
    ]
    if any(story.notes for story in stories):
        sections.append(("warnings", "Warnings", _of_each(
            [each for each in told if each.story.notes], lambda each: words.notes(each.story))))
    sections.append(("recipe", "Recipe and decisions", _of_each(told, lambda each: folded(
        "recipe.yaml, every default spelled out", words.recipe(each.story)) + folded(
        "what was decided, and why", words.decisions(each.story)))))
    links = "".join(f"<a href='#{key}'>{line(name)}</a>" for key, name, _ in sections)
    body = "\n".join(f"<section id='{key}'><h2>{line(name)}</h2>{content}</section>"
                     for key, name, content in sections)
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<meta http-equiv='Content-Security-Policy' content=\"{POLICY}\">"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{line(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><header><h1>{line(title)}</h1><p class='quiet'>lorafit {line(__version__)}, "
        f"{line(made)}: {' · '.join(line(story.run.path) for story in stories)}</p>"
        f"<nav aria-label='Sections'>{links}</nav></header>\n<main>\n{body}\n</main>"
        f"<script>{SCRIPT}</script></body></html>\n")


def _of_each(told: Sequence[Told], content: Callable[[Told], str]) -> str:
    """A part for each run; folded where there are several."""
    if len(told) == 1:
        return content(told[0])
    return "".join(folded(line(each.story.name), content(each), is_open=i == 0)
                   for i, each in enumerate(told))
