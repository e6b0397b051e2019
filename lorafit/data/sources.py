"""Rows of files and hub data sets, each with the place it came from.

Line-based formats are read with the standard library, because a bad row must be named by file and
line; Parquet and hub data sets are read by `datasets`.
"""

import csv
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lorafit.errors import Problem, UserError

MAX_EXAMPLES = 10  # problems shown in full; the rest are counted


@dataclass(frozen=True)
class Row:
    """Columns of one row, and `where` it stands: `file:line`, or `file row N` without lines."""

    fields: dict[str, Any]
    where: str


@dataclass(frozen=True)
class Location:
    """A file, or a hub data set with its split, configuration and revision."""

    path: str
    split: str | None = None
    subset: str | None = None
    revision: str | None = None

    @property
    def is_hub(self) -> bool:
        """Hub ids look like `name` or `owner/name`; what has a known ending or exists is a file."""
        path = Path(self.path)
        if path.exists() or path.suffix.lower() in READERS or self.path.startswith((".", "/", "~")):
            return False
        return self.path.count("/") <= 1


def read_rows(location: Location, *, default_split: str, limit: int | None = None) -> list[Row]:
    """Every row, or the first `limit`. UserError when there is none, or when one is malformed."""
    if location.is_hub:
        rows = _read_hub(location, default_split, streaming=limit is not None)
    else:
        path = Path(os.path.expanduser(location.path))
        _refuse_unusable(path)
        rows = READERS[path.suffix.lower()](path)
    try:
        found = list(islice(rows, limit))
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text ({error.reason})", _undecodable_line(location.path),
                        "convert the file to UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", location.path,
                        "check the file and its permissions") from None
    if not found:
        raise UserError("the data set is empty", location.path, "give a file with rows")
    return found


def _undecodable_line(path: str) -> str:
    """`file:line` of the first line that is not UTF-8."""
    with open(os.path.expanduser(path), "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return f"{path}:{number}"
    return path


def problems_error(problems: list[Problem], total_rows: int) -> UserError:
    """One error for many bad rows: the first few in full, and how many there are."""
    shown = problems[:MAX_EXAMPLES]
    if len(problems) > len(shown):
        shown.append(Problem(f"… {len(problems)} of {total_rows} rows are affected in total"))
    return UserError(problems=shown)


def _refuse_unusable(path: Path) -> None:
    if path.is_dir():
        raise UserError("is a directory", str(path), "name one file in it")
    if not path.exists():
        raise UserError("no such file", str(path),
                        "check data.train and data.eval; relative paths start from the working "
                        "directory or from the recipe's")
    if path.suffix.lower() not in READERS:
        raise UserError(f"unknown kind of data file {path.suffix or '(no ending)'}", str(path),
                        f"use one of {', '.join(READERS)}")


def _read_jsonl(path: Path) -> Iterator[Row]:
    problems: list[Problem] = []
    total = 0
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            total += 1
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                if number == 1 and line.strip() == "[":
                    raise UserError("a JSON array, not JSON lines", f"{path}:1",
                                    "name the file .json, or write one object a line") from None
                message = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                problems.append(Problem(f"not JSON: {message}", f"{path}:{number}",
                                        "each line must be one JSON object"))
                continue
            if not isinstance(value, dict):
                problems.append(Problem(f"a JSON {_json_kind(value)}, not an object",
                                        f"{path}:{number}", "each line must be one JSON object"))
                continue
            if not problems:
                yield Row(value, f"{path}:{number}")
    if problems:
        raise problems_error(problems, total)


def _read_json(path: Path) -> Iterator[Row]:
    text = path.read_text(encoding="utf-8-sig")
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # several values: JSON lines under another name
            yield from _read_jsonl(path)
            return
        raise UserError(f"not JSON: {error.msg}", f"{path}:{error.lineno}",
                        "the file must hold a list of objects") from None
    except RecursionError:
        raise UserError("nested too deeply", str(path), "the file must hold a list of objects") \
            from None
    except ValueError as error:  # a number of more digits than Python converts
        raise UserError(f"not JSON: {error}", str(path),
                        "the file must hold a list of objects") from None
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        value = lists[0] if len(value) == 1 and lists else [value]
    if not isinstance(value, list):
        raise UserError(f"a JSON {_json_kind(value)}, not a list of objects", str(path),
                        "the file must hold a list of objects")
    for number, item in enumerate(value, 1):
        if not isinstance(item, dict):
            raise UserError(f"a JSON {_json_kind(item)}, not an object", f"{path} row {number}",
                            "the file must hold a list of objects")
        yield Row(item, f"{path} row {number}")


def _read_csv(path: Path, delimiter: str = ",") -> Iterator[Row]:
    csv.field_size_limit(1 << 28)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        start = 1
        try:
            header = next(reader, None)
            if header is None:
                return
            if len(set(header)) != len(header):
                raise UserError("a column name stands twice", f"{path}:1", "rename one of them")
            start = reader.line_num + 1  # a quoted value may hold line breaks
            for values in reader:
                where = f"{path}:{start}"
                start = reader.line_num + 1
                if not values:
                    continue
                if len(values) != len(header):
                    raise UserError(
                        f"{len(values)} columns where the header has {len(header)}", where,
                        "quote values that contain the separator or a line break",
                    )
                yield Row(dict(zip(header, values, strict=True)), where)
        except csv.Error as error:
            raise UserError(f"not valid CSV: {error}", f"{path}:{start}",
                            "check the quotes in the row that starts here") from None


def _read_tsv(path: Path) -> Iterator[Row]:
    return _read_csv(path, "\t")


def _read_text(path: Path) -> Iterator[Row]:
    """One row a line that is not blank."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield Row({"text": line.rstrip("\r\n")}, f"{path}:{number}")


def _read_parquet(path: Path) -> Iterator[Row]:
    datasets = _import_datasets(str(path))
    try:
        table = datasets.load_dataset("parquet", data_files=str(path), split="train")
    except Exception as error:
        raise UserError(f"not readable as Parquet: {_first_line(error)}", str(path),
                        "check that the file is complete") from None
    for number, fields in enumerate(table, 1):
        yield Row(fields, f"{path} row {number}")


def _read_hub(location: Location, default_split: str, *, streaming: bool) -> Iterator[Row]:
    """`streaming` fetches rows as they are asked for, for when only the first are wanted."""
    datasets = _import_datasets(location.path)
    split = location.split or default_split
    try:
        table = datasets.load_dataset(
            location.path, location.subset, split=split, revision=location.revision,
            streaming=streaming,
        )
    except Exception as error:
        raise UserError(
            f"the data set cannot be loaded: {_first_line(error)}",
            f"{location.path} (split {split})",
            "check the name, the split and the network; a local file needs an ending such as "
            ".jsonl",
        ) from None
    for number, fields in enumerate(table, 1):
        yield Row(fields, f"{location.path}[{split}] row {number}")


def _import_datasets(path: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError("needs the package `datasets`, which is not installed", path,
                        "pip install datasets, or convert the rows to .jsonl") from None
    if datasets.config.HF_DATASETS_OFFLINE or path.endswith(".parquet"):
        datasets.disable_progress_bars()
    return datasets


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _json_kind(value: Any) -> str:
    names = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".txt": _read_text,
    ".parquet": _read_parquet,
}
