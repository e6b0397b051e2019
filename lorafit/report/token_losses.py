"""What training did to each token of held-out rows: its loss with the base and with the adapter.

Measured when asked for, since it needs the model, and kept in the run, so that later pages have it.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorafit.errors import UserError
from lorafit.json_files import read_object
from lorafit.report.story import Story
from lorafit.run_dir import RunDir, read_jsonl, sha256, write_json

FORMAT = 1
_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Token:
    """A token, or several that share a character. base, tuned: its loss in nats; None where it is
    not supervised."""

    text: str
    base: float | None
    tuned: float | None


@dataclass(frozen=True)
class Row:
    """A kept held-out row. number: from 1, its line in held_out.jsonl."""

    number: int
    tokens: list[Token]

    @property
    def change(self) -> float:
        """Mean change of the loss of a supervised token, in nats: negative is better."""
        return self._mean("tuned") - self._mean("base")

    @property
    def base(self) -> float:
        return self._mean("base")

    @property
    def tuned(self) -> float:
        return self._mean("tuned")

    def _mean(self, side: str) -> float:
        values = [getattr(token, side) for token in self.tokens if token.base is not None]
        return sum(values) / len(values) if values else 0.0


@dataclass(frozen=True)
class TokenLosses:
    """adapter: SHA-256 of the weights that were measured. of: which rows these are."""

    adapter: str
    of: str
    rows: list[Row]

    def most_changed(self, count: int) -> list[Row]:
        """Half of them those whose loss rose most (or fell least), half those whose fell most."""
        ordered = sorted(self.rows, key=lambda row: -row.change)
        up = ordered[: (count + 1) // 2]
        return [*up, *[row for row in ordered[::-1][: count // 2] if row not in up][::-1]]


def kept(story: Story) -> TokenLosses | None:
    """What was measured of the run's result before; None where nothing was, or of other weights, or
    it cannot be read."""
    path = story.run.token_losses
    if story.weights is None or not path.exists():
        return None
    try:
        values = read_object(path)
        rows = [Row(int(row["number"]), [
            Token(str(token["text"]), _loss(token["base"]), _loss(token["tuned"]))
            for token in row["tokens"]]) for row in values["rows"]]
        found = TokenLosses(str(values["adapter"]), str(values["of"]), rows)
        is_ours = values["format"] == FORMAT and found.adapter == _digest(story.weights)
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return None
    return found if is_ours else None


def measure(story: Story, say: Callable[[str], None]) -> TokenLosses:
    """Load the run's base, measure, put its result on, measure again, and keep it in the run.

    UserError when the run has no result, or its base is not at hand.
    """
    from lorafit.evaluate.contenders import Contender, Loader
    from lorafit.evaluate.loss import token_losses
    from lorafit.model.trained import open_adapter
    from lorafit.preview.pieces import pieces_of

    source = open_adapter(story.run.path)
    tokenizer = source.tokenizer()
    rows = _rows(story.run)
    loader, sides = Loader(), []
    for contender in (Contender("base", source.model),
                      Contender("adapter", source.model, source.directory)):
        say(f"{story.name}: loss of every token of {len(rows)} rows, {contender.name}")
        sides.append(token_losses(loader.load(contender), rows, tokenizer.pad_token_id or 0))
    loader.release()
    measured = []
    for number, (row, base, tuned) in enumerate(zip(rows, *sides, strict=True), start=1):
        tokens, at = [], 0
        for piece in pieces_of(row, tokenizer):
            here = slice(at, at := at + len(piece.ids))
            tokens.append(Token(piece.text, _sum(base[here]), _sum(tuned[here])))
        measured.append(Row(number, tokens))
    of = "held-out rows" if story.record.get("held_out") else "training rows of the first step"
    found = TokenLosses(_digest(source.directory), of, measured)
    write_json(story.run.token_losses, {"format": FORMAT, **asdict(found)})
    return found


def _rows(run: RunDir) -> list[Any]:
    import numpy as np

    from lorafit.data.tokens import Tokens

    try:
        rows = [Tokens(np.array(line["token_ids"], np.int32), np.array(line["supervised"], bool))
                for line in read_jsonl(run.held_out)]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        rows = []
    if not rows:
        raise UserError("is missing or damaged: it should hold rows of tokens", str(run.held_out),
                        "restore it from a copy, or leave out --tokens")
    return rows


def _sum(losses: Any) -> float | None:
    """Of tokens that share a character; None where none of them is supervised."""
    values = [float(loss) for loss in losses if not math.isnan(loss)]
    return sum(values) if values else None


def _loss(value: Any) -> float | None:
    return None if value is None else float(value)


def _digest(directory: Path) -> str:
    return sha256(directory / _WEIGHTS)
