"""Everything that a preview shows, gathered before any of it is laid out."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lorafit.data.dataset import Finding, Report
from lorafit.data.examples import Exchange, Passage
from lorafit.data.pipeline import make_renderer
from lorafit.errors import Problem
from lorafit.model.base import load_config
from lorafit.preview.batching import MOST_STEPS, Batching, compare
from lorafit.preview.lengths import Bin, Lengths, histogram, measure
from lorafit.preview.reading import Part, Reading, Watch, reading
from lorafit.preview.rows import ShownRow, named_rows, spread_rows
from lorafit.recipe.auto import Device
from lorafit.recipe.schema import Data, Recipe


@dataclass(frozen=True)
class Wanted:
    """Which rows to show: those at `places`, or `rows` of them; of `split` train or eval."""

    rows: int
    places: tuple[str, ...]
    split: str


@dataclass(frozen=True)
class Preview:
    """What the model will see. reports: of the training rows, and of the held-out ones if any.

    template and masks: where each comes from, in words. problems: what keeps training from
    starting, in the words that it would use.
    """

    base: str
    template: str
    masks: str
    reports: tuple[tuple[str, Report], ...]
    shown: tuple[ShownRow, ...]
    shown_of: str
    rows_used: int
    lengths: tuple[Lengths, ...]
    bins: tuple[Bin, ...]
    max_length_tokens: int
    on_long: str
    batching: Batching
    problems: tuple[Problem, ...]

    @property
    def findings(self) -> list[tuple[str, Finding]]:
        return [(name, finding) for name, report in self.reports for finding in report.findings]


def look(recipe: Recipe, tokenizer: Any, device: Device, wanted: Wanted,
         watch: Watch) -> Preview:
    """Read a recipe's data and gather what there is to show.

    UserError for rows that do not fit their format, and for rows that are wanted but not there.
    What only keeps training from starting is in `problems`.
    """
    with reading(recipe, tokenizer, watch) as read:
        part, other = _parts_of(read, wanted.split)
        shown = named_rows(part, wanted.places, other, recipe.data, tokenizer) if wanted.places \
            else spread_rows(part, wanted.rows, tokenizer)
        limit = recipe.data.max_length_tokens
        template, masks = _rendering(recipe.data, tokenizer, read)
        return Preview(
            base=recipe.model.base, template=template, masks=masks,
            reports=tuple((part.name, part.data.report) for part in read.parts),
            shown=tuple(shown), shown_of=part.name, rows_used=len(part.data),
            lengths=tuple(_measure(part, limit) for part in read.parts),
            bins=tuple(histogram([part.uncut_lengths for part in read.parts])),
            max_length_tokens=limit, on_long=recipe.data.on_long,
            batching=compare(read.feed, _steps(read, recipe), recipe, _longest(read, recipe.data),
                             len(tokenizer), _hidden_size(recipe), device),
            problems=read.problems,
        )


def _hidden_size(recipe: Recipe) -> int | None:
    sizes = load_config(recipe.model).get_text_config()
    return getattr(sizes, "hidden_size", None)


def _parts_of(read: Reading, split: str) -> tuple[Part, Part | None]:
    """The part that is shown, and the other one."""
    if split == "train" or read.held_out is None:
        return read.train, read.held_out
    return read.held_out, read.train


def _measure(part: Part, limit: int) -> Lengths:
    report = part.data.report
    return measure(part.name, part.uncut_lengths, report.tokens, report.supervised_tokens, limit)


def _longest(read: Reading, data: Data) -> int:
    """What the size of micro-batches goes by, as in training."""
    if data.streaming:
        return data.max_length_tokens
    return max(part.data.report.longest_tokens for part in read.parts)


def _steps(read: Reading, recipe: Recipe) -> int:
    """Steps that are laid out: of the first epoch, or of the first block of a stream."""
    training = recipe.training
    rows, batch_size = len(read.train.data), training.batch_size
    if recipe.data.streaming:  # only whole ones, so that no other block is read
        return max(1, min(MOST_STEPS, rows // batch_size))
    epoch = -(-read.train.data.order(training.seed).rows_per_epoch // batch_size)
    return min(MOST_STEPS, epoch, training.steps or epoch)


def _rendering(data: Data, tokenizer: Any, read: Reading) -> tuple[str, str]:
    """Where the template and the masks come from, in words, for all sources together."""
    renderer = make_renderer(data, tokenizer)
    rows = read.train.data
    firsts = [int(row) for row in np.unique(rows.selection.store, return_index=True)[1]]
    templates: dict[str, None] = {}
    masks: dict[str, None] = {}
    for example in rows.examples(firsts):
        if isinstance(example, Passage):
            template, mask = "none: plain text is never wrapped", "the whole text"
        elif isinstance(example, Exchange) and not renderer.exchanges_as_chat:
            why = "data.render" if data.render == "plain" else "the tokenizer has none"
            template = f"none ({why}): prompt and completion stand one after the other"
            mask = "the completion"
        else:
            template = "the tokenizer's own" if data.chat_template is None \
                else f"data.chat_template, {_in_one_line(data.chat_template)}"
            mask = "marked in the template by {% generation %}" if renderer.way == "marks" \
                else "found in what the template writes, and proven for each row"
        templates[template] = masks[mask] = None
    return "; ".join(templates), f"{'; '.join(masks)} (data.train_on: {data.train_on})"


def _in_one_line(template: str) -> str:
    return "written in the recipe" if "{{" in template or "{%" in template else template
