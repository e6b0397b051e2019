"""A data section of the recipe to tokenised rows, with everything that happened counted."""

import hashlib
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from lorafit.data.chat import Renderer, Tokens
from lorafit.data.examples import BadRow, Example
from lorafit.data.formats import choose_format, convert_rows
from lorafit.data.order import permutation
from lorafit.data.sources import Location, problems_error, read_rows
from lorafit.errors import Problem, UserError
from lorafit.recipe.schema import Data, Source

FIRST_ROWS = 100  # looked at before anything heavy is imported


@dataclass(frozen=True)
class Examples:
    """Rows in the internal form, with the place each came from and why this format."""

    examples: list[Example]
    places: list[str]
    format: str
    reason: str

    def take(self, indices: np.ndarray) -> "Examples":
        return Examples(
            [self.examples[i] for i in indices], [self.places[i] for i in indices],
            self.format, self.reason,
        )


@dataclass(frozen=True)
class Report:
    """What became of the rows. Lengths are in tokens."""

    source: str
    format: str
    format_reason: str
    rows_read: int
    rows_used: int
    rows_dropped_long: int
    rows_truncated: int
    rows_dropped_unsupervised: int
    tokens: int
    supervised_tokens: int
    longest_tokens: int
    fingerprint: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TokenisedData:
    """Rows ready for training, where each came from, and the report."""

    rows: list[Tokens]
    places: list[str]
    report: Report
    examples: list[Example] = field(repr=False, default_factory=list)

    def lengths(self) -> np.ndarray:
        """Tokens of each row, shape (rows,)."""
        return np.array([len(row.ids) for row in self.rows], dtype=np.int64)


def locate(source: str | Source) -> Location:
    if isinstance(source, Source):
        return Location(source.path, source.split, source.subset, source.revision)
    return Location(source)


def read_examples(data: Data, seed: int) -> tuple[Examples, Examples | None]:
    """Training and held-out rows in the internal form. Needs no tokenizer and no model.

    UserError naming file and line when anything is wrong with them.
    """
    train = _read(data, locate(data.train), "train", data.max_rows)
    if data.eval is not None:
        return train, _read(data, locate(data.eval), "test", data.max_eval_rows)
    if data.eval_fraction == 0:
        return train, None
    rows = len(train.examples)
    held_out = max(1, round(rows * data.eval_fraction))
    if held_out >= rows:
        raise UserError(
            f"holding out {data.eval_fraction:g} of {rows} rows leaves none to train on",
            "data.eval_fraction", "give more rows, or a file in data.eval",
        )
    # Epoch -1: an order that no epoch of training has.
    order = permutation(rows, seed, -1)
    chosen = np.sort(order[:held_out])
    if data.max_eval_rows:
        chosen = chosen[: data.max_eval_rows]
    return train.take(np.sort(order[held_out:])), train.take(chosen)


def check_source(data: Data, location: Location, default_split: str) -> None:
    """UserError when a source is missing, empty, or its first rows do not fit the recipe."""
    _read(data, location, default_split, FIRST_ROWS)


def _read(data: Data, location: Location, default_split: str, limit: int | None) -> Examples:
    rows = read_rows(location, default_split=default_split, limit=limit)
    given = {role: name for role, name in data.columns.model_dump().items() if name}
    chosen, mapping, reason = choose_format(rows, data.format, given)
    examples = convert_rows(rows, chosen, mapping)
    return Examples(examples, [row.where for row in rows], chosen.name, reason)


def tokenise(examples: Examples, data: Data, tokenizer: Any,
             source: str | Source) -> TokenisedData:
    """Render, tokenise, mask, and apply the length policy.

    No row without a supervised token comes out, and none is cut or dropped unless the recipe
    says so. UserError naming the rows concerned otherwise.
    """
    renderer = make_renderer(data, tokenizer)
    rows: list[Tokens] = []
    block = 1000
    for start in range(0, len(examples.examples), block):
        rendered, problems = [], []
        for example, place in zip(examples.examples[start : start + block],
                                  examples.places[start : start + block], strict=True):
            try:
                rendered.append(renderer.render(example))
            except BadRow as bad:
                problems.append(Problem(bad.what, place, bad.remedy))
        if problems:
            raise problems_error(problems, len(examples.examples))
        rows.extend(renderer.tokenise(rendered))
    return _apply_length_policy(examples, rows, data, locate(source).path)


def make_renderer(data: Data, tokenizer: Any) -> Renderer:
    """The renderer that a data section asks for. UserError when its template cannot be read."""
    if not getattr(tokenizer, "is_fast", False):
        raise UserError("the tokenizer has no fast version, so masks cannot be exact",
                        "model.base", "use a base whose repository has a tokenizer.json")
    template = None
    if data.chat_template is not None:
        try:
            template = Path(data.chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"the template cannot be read: {error}", "data.chat_template",
                            "give the path of a Jinja file") from None
    today = date.fromisoformat(data.date) if data.date else None
    return Renderer(tokenizer, template=template, render=data.render, system=data.system,
                    today=today)


def _apply_length_policy(examples: Examples, rows: list[Tokens], data: Data,
                         source: str) -> TokenisedData:
    limit = data.max_length_tokens
    long = [i for i, row in enumerate(rows) if len(row.ids) > limit]
    if long and data.on_long == "error":
        tokens = sum(len(rows[i].ids) - limit for i in long)
        longest = max(long, key=lambda i: len(rows[i].ids))
        raise UserError(
            f"{len(long)} of {len(rows)} rows are longer than max_length_tokens {limit} "
            f"(by {tokens} tokens in total; the longest has {len(rows[longest].ids)})",
            examples.places[longest],
            f"--set data.max_length_tokens={len(rows[longest].ids)}, or choose "
            "data.on_long: drop or truncate",
        )
    kept, places, kept_examples = [], [], []
    truncated = dropped_long = dropped_unsupervised = 0
    for row, place, example in zip(rows, examples.places, examples.examples, strict=True):
        if len(row.ids) > limit:
            if data.on_long == "drop":
                dropped_long += 1
                continue
            row = Tokens(row.ids[:limit], row.supervised[:limit])
            truncated += 1
        if not row.supervised[1:].any():  # the first token is never predicted
            dropped_unsupervised += 1
            continue
        kept.append(row)
        places.append(place)
        kept_examples.append(example)
    if not kept:
        raise UserError(
            "no row is left with a supervised token "
            f"({dropped_long} dropped as too long, {dropped_unsupervised} without one)",
            source, "raise data.max_length_tokens, or check the rows",
        )
    report = Report(
        source=source, format=examples.format, format_reason=examples.reason,
        rows_read=len(rows), rows_used=len(kept), rows_dropped_long=dropped_long,
        rows_truncated=truncated, rows_dropped_unsupervised=dropped_unsupervised,
        tokens=sum(len(row.ids) for row in kept),
        supervised_tokens=sum(int(row.supervised[1:].sum()) for row in kept),
        longest_tokens=max(len(row.ids) for row in kept),
        fingerprint=_fingerprint(kept),
    )
    return TokenisedData(kept, places, report, kept_examples)


def _fingerprint(rows: list[Tokens]) -> str:
    """SHA-256 of every token and mask: equal exactly when a model sees the same."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(len(row.ids).to_bytes(4, "little"))
        digest.update(row.ids.tobytes())
        digest.update(np.packbits(row.supervised).tobytes())
    return digest.hexdigest()
