"""Data sets of the hub, and directories with splits, by `datasets`."""

import hashlib
import os
from collections.abc import Iterator
from typing import Any

from lorafit import pins
from lorafit.data.sources.blocks import RawBlock
from lorafit.data.sources.locations import Location
from lorafit.data.sources.packages import import_package
from lorafit.errors import UserError


def read(location: Location, split: str, block_rows: int, skip_rows: int, *,
         streaming: bool) -> Iterator[RawBlock]:
    """Rows in their order. `streaming` fetches them as they are asked for, and keeps none."""
    datasets = _import_datasets(location)
    # Without the network, what the cache has is there as a whole.
    streaming = streaming and not (location.is_hub and datasets.config.HF_DATASETS_OFFLINE)
    data = _load(location, split, streaming=streaming)
    if not streaming and skip_rows >= len(data):
        return  # `skip` of a table fails beyond its end
    number = skip_rows + 1
    try:
        for columns in data.skip(skip_rows).iter(block_rows):
            rows = [dict(zip(columns, values, strict=True))
                    for values in zip(*columns.values(), strict=True)]
            yield RawBlock("values", location.path, range(number, number + len(rows)), rows)
            number += len(rows)
    except Exception as error:
        raise UserError(f"the data set cannot be read: {_first_line(error)}",
                        f"{location.path} (split {split}) after row {number - 1}",
                        "check the network, or clear the data set from the cache") from None


def content_hash(location: Location, split: str) -> str:
    """A digest of the data set's own fingerprint, which follows from its commit or its files."""
    data = _load(location, split, streaming=False)
    parts = (location.path, location.subset, _revision(location), split, data._fingerprint,
             data.num_rows, data.column_names)
    return hashlib.blake2b(repr(parts).encode(), digest_size=32).hexdigest()


def _load(location: Location, split: str, *, streaming: bool) -> Any:
    where = f"{location.path} (split {split})"
    if streaming and any(mark in split for mark in "[+"):
        raise UserError("a slice or a sum of splits cannot be streamed", where,
                        "name one whole split, or switch streaming off")
    datasets = _import_datasets(location)
    try:
        return datasets.load_dataset(
            os.path.expanduser(location.path), location.subset, split=split,
            revision=_revision(location), streaming=streaming)
    except Exception as error:
        raise UserError(
            f"the data set cannot be loaded: {_first_line(error)}", where,
            "check the name, the split and the network; a local file needs an ending such as "
            ".jsonl",
        ) from None


def _revision(location: Location) -> str | None:
    """The commit that a data set's branch stood for when this run first asked.

    None for a directory. Without the network, what the cache has is taken at the given revision.
    """
    if not location.is_hub:
        return location.revision
    if (commit := pins.pinned("dataset", location.path, location.revision)) is not None:
        return commit
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return location.revision
    found = HfApi().dataset_info(location.path, revision=location.revision).sha
    if found is not None:
        pins.pin("dataset", location.path, location.revision, found)
    return found or location.revision


def _import_datasets(location: Location) -> Any:
    datasets = import_package("datasets", location.path, "convert the rows to .jsonl")
    if datasets.config.HF_DATASETS_OFFLINE or not location.is_hub:
        datasets.disable_progress_bars()
    return datasets


def _first_line(error: BaseException) -> str:
    """The first line of what is beneath the error: `datasets` wraps what it meets."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]
