"""How many tokens a data section has, in about a second: from the cache, or from a sample of rows.

Rows are tokenised as for training. What is not known from a sample is what checks find, and which
rows are too long beyond those that were seen.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorafit.data.dataset import TokenisedData, read_data
from lorafit.data.given import Given, shape_of, sources_of, unusable
from lorafit.data.pipeline import Pipeline
from lorafit.data.reading import is_tokenised
from lorafit.data.sources import open_blocks, source_files
from lorafit.recipe.schema import Data

SAMPLE_S = 0.5  # for tokenising, all sources together
COUNT_S = 0.3  # for counting records
_BLOCK_ROWS = 64
_MOST_BYTES_HASHED = 256 << 20  # of files that the cache would be asked for by content


@dataclass(frozen=True)
class Amount:
    """Rows of training or of evaluation.

    rows: of an epoch, weights of sources counted. lengths, supervised: tokens of rows, and how many
    of them carry a loss, shape (rows,): of all rows, or of those that were looked at. is_exact:
    whether they are all. how: where the figures are from.
    """

    rows: int
    lengths: np.ndarray
    supervised: np.ndarray
    is_exact: bool
    how: str

    @property
    def tokens(self) -> int:
        """Of an epoch."""
        return round(self.rows * float(self.lengths.mean())) if len(self.lengths) else 0

    @property
    def supervised_tokens(self) -> int:
        return round(self.rows * float(self.supervised.mean())) if len(self.lengths) else 0

    @property
    def relative_error(self) -> float:
        """Standard error of `tokens`, as a part of it; 0 where they were counted."""
        if self.is_exact or len(self.lengths) < 2:
            return 0.0
        return float(self.lengths.std(ddof=1) / self.lengths.mean() / np.sqrt(len(self.lengths)))


def estimate(data: Data, tokenizer: Any, seed: int) -> tuple[Amount, Amount | None]:
    """Training rows and held-out ones; None where the recipe holds none out.

    UserError for what is wrong with the rows that are looked at.
    """
    sources = [*sources_of(data, "train"), *sources_of(data, "eval")]
    if not data.streaming and all(_is_quickly_found(given, data, tokenizer) for given in sources):
        train, held_out = read_data(data, tokenizer, seed)
        rows = train.order(seed).rows_per_epoch
        return (_counted(train, rows),
                None if held_out is None else _counted(held_out, len(held_out)))
    share = SAMPLE_S / len(sources)
    train_rows = [_sampled(given, data, tokenizer, share) for given in sources_of(data, "train")]
    whole = _together(train_rows, [given.weight for given in sources_of(data, "train")])
    if data.eval is not None:
        held = _together([_sampled(given, data, tokenizer, share)
                          for given in sources_of(data, "eval")], None)
        return whole, held
    if not data.eval_fraction:
        return whole, None
    held_rows = max(1, round(whole.rows * data.eval_fraction))
    if data.max_eval_rows:
        held_rows = min(held_rows, data.max_eval_rows)
    return (Amount(whole.rows - held_rows, whole.lengths, whole.supervised, False, whole.how),
            Amount(held_rows, whole.lengths, whole.supervised, False, whole.how))


def _is_quickly_found(given: Given, data: Data, tokenizer: Any) -> bool:
    """Whether the cache has a source, and to ask it takes no time."""
    if given.location.is_hub or given.location.has_splits:
        return False
    files = source_files(given.location)
    if sum(file.stat().st_size for file in files) > _MOST_BYTES_HASHED:
        return False
    return is_tokenised(given, data, tokenizer)


def _counted(data: TokenisedData, rows: int) -> Amount:
    chosen = data.selection
    supervised = np.minimum(chosen.column("supervised"), chosen.lengths)
    return Amount(rows, chosen.lengths, supervised, True, "the token cache")


def _sampled(given: Given, data: Data, tokenizer: Any, budget_s: float) -> Amount:
    """The first rows of a source, tokenised for so long, and how many records there are."""
    shape = shape_of(given)
    pipeline = Pipeline(data, tokenizer, shape.format, shape.mapping)
    lengths: list[np.ndarray] = []
    supervised: list[np.ndarray] = []
    records = 0
    stop_s = time.monotonic() + budget_s
    is_all = True
    limit = given.limit
    for block in open_blocks(given.location, default_split=given.split, block_rows=_BLOCK_ROWS,
                             streaming=data.streaming):
        if limit is not None:
            block = block.first(limit - records)
        made = pipeline(block)
        if made.problems and not given.may_drop:
            raise unusable(made.problems, made.rows_read, len(made.problems))
        rows = made.rows.rows
        lengths.append(np.diff(rows["end"], prepend=0))
        supervised.append(rows["supervised"].astype(np.int64))
        records += len(block)
        if limit is not None and records >= limit:
            break
        if time.monotonic() > stop_s:
            is_all = False
            break
    total = records if is_all else max(records, _records(given, limit, records, lengths))
    seen_lengths, seen_supervised = np.concatenate(lengths), np.concatenate(supervised)
    wanted = seen_supervised > 0
    seen_lengths, seen_supervised = seen_lengths[wanted], seen_supervised[wanted]
    seen_lengths, seen_supervised, factor = _cut(seen_lengths, seen_supervised, data)
    rows_used = round(total * len(seen_lengths) / max(1, records) * factor)
    how = "all rows, as they are read" if is_all else f"the first {records:,} rows"
    return Amount(max(1, rows_used), seen_lengths, seen_supervised, is_all, how)


def _cut(lengths: np.ndarray, supervised: np.ndarray,
         data: Data) -> tuple[np.ndarray, np.ndarray, float]:
    """What the length policy leaves of rows; rows that are split become more, evenly."""
    limit = data.max_length_tokens
    is_long = lengths > limit
    if not is_long.any() or data.on_long == "error":
        return lengths, supervised, 1.0
    if data.on_long == "drop":
        return lengths[~is_long], supervised[~is_long], 1.0
    if data.on_long == "truncate":
        kept = np.minimum(lengths, limit)
        return kept, np.minimum(supervised, kept), 1.0
    pieces = np.ceil(lengths / limit).astype(np.int64)
    return (np.repeat(lengths / pieces, pieces).round().astype(np.int64),
            np.repeat(supervised / pieces, pieces).round().astype(np.int64), 1.0)


def _records(given: Given, limit: int | None, seen: int, lengths: Sequence[np.ndarray]) -> int:
    """Records of a source: counted for a while, and from there on by the size of its files."""
    if given.location.has_splits:
        return limit or seen
    files = source_files(given.location)
    total_bytes = sum(file.stat().st_size for file in files)
    records = size_bytes = 0
    stop_s = time.monotonic() + COUNT_S
    for block in open_blocks(given.location, default_split=given.split):
        records += len(block)
        size_bytes += sum(len(line) + 1 for line in block.payload if isinstance(line, bytes))
        if limit is not None and records >= limit:
            return limit
        if time.monotonic() > stop_s:
            break
    else:
        return records
    is_packed = any(os.path.splitext(file)[1] in (".gz", ".zst", ".xz") for file in files)
    if not size_bytes or is_packed:  # no lines of bytes: no better guess than what was counted
        return records
    found = round(records * total_bytes / size_bytes)
    return found if limit is None else min(found, limit)


def _together(parts: Sequence[Amount], weights: Sequence[float] | None) -> Amount:
    """Several sources as one. Rows that were looked at count for those that were not."""
    weights = weights or [1.0] * len(parts)
    rows = [part.rows * weight for part, weight in zip(parts, weights, strict=True)]
    if len(parts) == 1:
        only = parts[0]
        return Amount(max(1, round(rows[0])), only.lengths, only.supervised,
                      only.is_exact, only.how)
    # As many of each as its share of the rows says.
    most = max(len(part.lengths) / max(1.0, count)
               for part, count in zip(parts, rows, strict=True))
    picks = [np.resize(np.arange(len(part.lengths)), max(1, round(count * most)))
             if len(part.lengths) else np.zeros(0, np.int64)
             for part, count in zip(parts, rows, strict=True)]
    return Amount(
        max(1, round(sum(rows))),
        np.concatenate([part.lengths[pick] for part, pick in zip(parts, picks, strict=True)]),
        np.concatenate([part.supervised[pick] for part, pick in zip(parts, picks, strict=True)]),
        all(part.is_exact for part in parts) and all(weight == 1 for weight in weights),
        "; ".join(dict.fromkeys(part.how for part in parts)))
