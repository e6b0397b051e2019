"""One block of raw rows to tokens: parse, convert, render, tokenise, mask, look closely.

A pipeline is a pure function of the block, so that any number of processes can work side by side.
"""

from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

from lorafit.data.chat import Rendered, Renderer, check_template, resolve_template
from lorafit.data.checks import RowChecker
from lorafit.data.examples import (
    BadRow,
    Example,
    Judged,
    Preference,
    Trainable,
    trained_part,
)
from lorafit.data.formats import FORMATS, convert_rows
from lorafit.data.rows import Place
from lorafit.data.sources import RawBlock, parse_block
from lorafit.data.store import PackedRows, pack
from lorafit.errors import Problem, UserError
from lorafit.recipe.schema import Data


@dataclass(frozen=True)
class Made:
    """What became of a block. not_wanted: rows whose answer is judged unwanted."""

    rows: PackedRows
    problems: list[Problem]
    rows_read: int
    not_wanted: int
    notices: frozenset[str]


@dataclass(frozen=True)
class Pipeline:
    """`data` is the recipe's section, `format` and `mapping` what was chosen for this source."""

    data: Data
    tokenizer: Any
    format: str
    mapping: dict[str, str]

    def __call__(self, block: RawBlock) -> Made:
        examples, problems = self.examples(block)
        rows: list[tuple[Trainable, Place]] = []
        notices: set[str] = set()
        for example, place in examples:
            chosen = trained_part(example)
            if chosen is not None:
                rows.append((chosen, place))
            if isinstance(example, Preference):
                notices.add("pairs: the preferred answer is trained, the other one is not used")
            if isinstance(example, Judged):
                notices.add("judged answers: the wanted ones are trained, the others are not used")
        rendered: list[tuple[Rendered, Trainable, Place]] = []
        for example, place in rows:
            try:
                rendered.append((self.renderer.render(example), example, place))
            except BadRow as bad:
                problems.append(Problem(bad.what, str(place), bad.remedy))
        tokens = self.renderer.tokenise([text for text, _, _ in rendered])
        notices |= self.renderer.notices
        return Made(
            pack(tokens, [place for _, _, place in rendered],
                 [self.checker.notes(example) for _, example, _ in rendered]),
            problems, len(examples) + len(problems), len(examples) - len(rows),
            frozenset(notices),
        )

    def examples(self, block: RawBlock) -> tuple[list[tuple[Example, Place]], list[Problem]]:
        """The rows of a block in the internal form, and what is wrong with the others."""
        parsed, problems = parse_block(block)
        converted, more = convert_rows(parsed, FORMATS[self.format], self.mapping)
        return converted, [*problems, *more]

    def identity(self) -> dict[str, Any]:
        """Whatever besides the row decides what is rendered and trained, as JSON values."""
        template = self.renderer.template or ""
        return {
            "templates": [template, self.tokenizer.chat_template],
            "date": str(self.renderer.today) if "strftime_now" in template else None,
            **self.data.model_dump(include={"render", "system", "train_on",
                                            "train_on_end_of_turn"}),
        }

    @cached_property
    def renderer(self) -> Renderer:
        return make_renderer(self.data, self.tokenizer)

    @cached_property
    def checker(self) -> RowChecker:
        return RowChecker(self.tokenizer, self.data.train_on)

    def __getstate__(self) -> dict[str, Any]:  # a compiled template cannot be pickled
        return {name: self.__dict__[name] for name in ("data", "tokenizer", "format", "mapping")}


def make_renderer(data: Data, tokenizer: Any) -> Renderer:
    """The renderer that a data section asks for. UserError when its template cannot be read."""
    if not getattr(tokenizer, "is_fast", False):
        raise UserError("the tokenizer has no fast version, so masks cannot be exact",
                        "model.base", "use a base whose repository has a tokenizer.json")
    template = resolve_template(data.chat_template, tokenizer)
    if data.chat_template is not None:
        check_template(template)
    return Renderer(
        tokenizer, template=template, render=data.render,
        system=data.system, train_on=data.train_on,
        train_on_end_of_turn=data.train_on_end_of_turn,
        today=date.fromisoformat(data.date) if data.date else None,
    )
