"""Blocks of raw records: any size, any compression, any start, in bounded memory."""

import csv
import gzip
import io
import json
import lzma
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lorafit.data.rows import Row
from lorafit.data.sources import Location, RawBlock, open_blocks, parse_block, read_rows
from lorafit.data.sources.blocks import MAX_LINE_BYTES
from lorafit.errors import UserError


def zstd(data: bytes) -> bytes:
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, ".gz": gzip.compress, ".zst": zstd, ".xz": lzma.compress}
PACKED = sorted(COMPRESS.keys() - {""})

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")
                | st.sampled_from('\u2028\x85\x0b\r",\n'), max_size=12)
few = settings(max_examples=40, deadline=None,
               suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, content: str | bytes) -> str:
    data = content if isinstance(content, bytes) else content.encode()
    suffix = Path(name).suffix
    Path(name).write_bytes(COMPRESS.get(suffix, bytes)(data))
    return name


def blocks(path: str, **options: Any) -> list[RawBlock]:
    return list(open_blocks(Location(path), default_split="train", **options))


def parsed(found: list[RawBlock]) -> list[Row]:
    """The rows of blocks that went to another process and back."""
    rows: list[Row] = []
    for block in found:
        got, problems = parse_block(pickle.loads(pickle.dumps(block)))
        assert not problems
        rows += got
    return rows


def problems(path: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        read_rows(Location(path), default_split="train")
    return [str(problem) for problem in caught.value.problems]


def as_file(ending: str, table: list[tuple[str, str]]) -> tuple[str, list[int]]:
    """The rows of `table` as a file of a kind, and the line or row that each begins at."""
    if ending == ".jsonl":
        lines = ["" if not a else json.dumps({"a": a, "b": b}, ensure_ascii=False)
                 for a, b in table]
        return "\n".join(lines), [n for n, line in enumerate(lines, 1) if line]
    if ending == ".json":
        return json.dumps([{"a": a, "b": b} for a, b in table]), list(range(1, len(table) + 1))
    if ending == ".txt":
        lines = [(a + b).replace("\n", "") for a, b in table]
        return "\n".join(lines) + "\n", [n for n, line in enumerate(lines, 1)
                                         if line.encode().strip()]
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator="\n")
    starts = []
    for row in [("a", "b"), *table]:
        text = buffer.getvalue().replace("\r\n", "\n").replace("\r", "\n")
        starts.append(text.count("\n") + 1)
        writer.writerow(row)
    return buffer.getvalue(), starts[1:]


@few
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=12),
       st.sampled_from([".jsonl", ".json", ".csv", ".txt"]), st.sampled_from(sorted(COMPRESS)),
       st.integers(1, 5), st.integers(0, 14))
@example([("x", "\r"), ("", "\n\r\n"), ("y", "")], ".csv", ".zst", 1, 1)
@example([("x", ""), ("", ""), ("y", "")], ".jsonl", ".gz", 2, 1)
def test_blocks_of_any_size_from_any_start_are_the_rows(
    table: list[tuple[str, str]], ending: str, compression: str, block_rows: int, skip: int,
) -> None:
    content, starts = as_file(ending, table)
    name = write(f"a{ending}{compression}", content)
    found = blocks(name, block_rows=block_rows)
    rows = parsed(found)
    assert [row.place.number for row in rows] == starts
    assert [row.place.is_line for row in rows] == [ending != ".json"] * len(rows)
    assert all(len(block) == block_rows for block in found[:-1])
    assert sum(map(len, found)) == len(rows)
    assert parsed(blocks(name, block_rows=block_rows, skip_rows=skip)) == rows[skip:]
    if rows:
        assert read_rows(Location(name), default_split="train") == rows
    if ending in (".json", ".csv"):
        assert [row.fields for row in rows] == [{"a": a, "b": b} for a, b in table]


def test_rows_are_skipped_across_files_and_no_block_spans_two() -> None:
    for n, rows in enumerate((3, 0, 4, 1)):
        write(f"{n}.jsonl", "".join(json.dumps({"at": [n, i]}) + "\n" for i in range(rows)))
    write("4.json", json.dumps([{"at": [4, i]} for i in range(3)]))
    everything = parsed(blocks("."))
    assert [row.fields["at"][0] for row in everything] == [0] * 3 + [2] * 4 + [3] + [4] * 3
    for skip in range(13):
        found = blocks(".", block_rows=2, skip_rows=skip)
        assert parsed(found) == everything[skip:]
        assert all({row.place.file for row in parsed([b])} == {b.file} for b in found)


def test_problems_of_a_block_name_each_record_and_leave_the_others() -> None:
    write("a.jsonl", '{"a": 1}\nbroken\n[]\n{"a": 2}\n')
    [block] = blocks("a.jsonl")
    rows, wrong = parse_block(block)
    assert [row.where for row in rows] == ["a.jsonl:1", "a.jsonl:4"]
    assert [problem.where for problem in wrong] == ["a.jsonl:2", "a.jsonl:3"]
    assert len(block) == 4


# ---- broken compression


@pytest.mark.parametrize("compression", PACKED)
def test_a_file_that_is_cut_off_gives_its_rows_and_then_says_so(compression: str) -> None:
    content = "".join(f"row {n} {n * 7919 % 10007}\n" for n in range(100_000))
    name = write(f"a.txt{compression}", content)
    whole = Path(name).read_bytes()
    Path(name).write_bytes(whole[: len(whole) * 9 // 10])
    reader = open_blocks(Location(name), default_split="train")
    got: list[str] = []

    def read_all() -> None:
        for block in reader:
            got.extend(row.fields["text"] for row in parse_block(block)[0])

    with pytest.raises(UserError, match=rf"^{name}: is broken or cut off after [\d,]+ bytes"):
        read_all()
    assert got[:-1] == content.splitlines()[: len(got) - 1]  # the last line may be cut as well
    assert len(got) > 50_000


@pytest.mark.parametrize("compression", PACKED)
@pytest.mark.parametrize("damage", ["changed", "followed"])
def test_a_damaged_file_is_refused(compression: str, damage: str) -> None:
    content = bytes(n * n % 251 for n in range(200_000)).hex() + "\n"
    name = write(f"a.txt{compression}", content)
    whole = Path(name).read_bytes()
    if damage == "changed":
        Path(name).write_bytes(whole[:6] + b"\xff" * 50 + whole[56:])
        [problem] = problems(name)
        assert problem.startswith(f"{name}: is broken or cut off after")
    else:
        Path(name).write_bytes(whole + whole)  # several members are one file
        assert len(read_rows(Location(name), default_split="train")) == 2


@pytest.mark.parametrize("compression", PACKED)
def test_an_ending_that_is_not_true_is_refused(compression: str) -> None:
    Path(f"a.jsonl{compression}").write_bytes(b'{"a": 1}\n')
    [problem] = problems(f"a.jsonl{compression}")
    assert problem.startswith(f"a.jsonl{compression}: is not compressed as its ending")
    other = next(name for name in PACKED if name != compression)
    Path(f"a.jsonl{compression}").write_bytes(COMPRESS[other](b'{"a": 1}\n'))
    assert f"it looks like {other}" in problems(f"a.jsonl{compression}")[0]
    Path("b.jsonl").write_bytes(COMPRESS[compression](b'{"a": 1}\n'))
    [problem] = problems("b.jsonl")
    assert problem.startswith("b.jsonl: is compressed, which its name does not say")
    assert f"name it b.jsonl{compression}" in problem


@pytest.mark.parametrize("compression", PACKED)
def test_an_empty_compressed_file_is_an_empty_one(compression: str) -> None:
    for content in (b"", COMPRESS[compression](b"")):
        Path(f"a.jsonl{compression}").write_bytes(content)
        assert problems(f"a.jsonl{compression}")[0].startswith(
            f"a.jsonl{compression}: the data set is empty")


def test_a_window_that_zstd_does_not_open_names_the_remedy() -> None:
    # A frame header that asks for a window of 2 GiB, as `zstd --long=31` writes it.
    Path("a.txt.zst").write_bytes(b"\x28\xb5\x2f\xfd\x04\xa8" + b"\1\0\0" * 9)
    [problem] = problems("a.txt.zst")
    assert "larger window" in problem
    assert "--long" in problem


@few
@given(st.binary(max_size=300), st.sampled_from(PACKED), st.booleans())
def test_arbitrary_compressed_bytes_raise_nothing_but_a_user_error(
    content: bytes, compression: str, looks_right: bool,
) -> None:
    head = COMPRESS[compression](b'{"a": "b"}\n' * 9)
    name = f"a.jsonl{compression}"
    Path(name).write_bytes(head[: len(head) // 2] + content if looks_right else content)
    try:
        read_rows(Location(name), default_split="train")
    except UserError as error:
        assert str(error).startswith(name)  # noqa: PT017


# ---- memory


def peak_mib(code: str) -> float:
    """Peak resident memory of a fresh process that runs `code`."""
    # Not ru_maxrss, which begins with the size of the process that started this one.
    script = f"{code}\nprint(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          check=True, timeout=120)
    return int(done.stdout.split()[-1]) / 1024


COUNT = """
from lorafit.data.sources import Location, open_blocks
rows = sum(len(b) for b in open_blocks(Location({path!r}), default_split="train", skip_rows=10))
assert rows == {rows} - 10, rows
"""
ROW = json.dumps({"text": "x" * 1000})


@pytest.mark.parametrize(("name", "head", "separator", "tail"), [
    ("a.jsonl", "", "\n", "\n"), ("a.json", "[", ",\n", "]"), ("b.json", '{"rows": [', ",", "]}"),
    ("c.json", "", "\n", "\n"), ("a.csv", "text\n", "\n", "\n"), ("a.txt", "", "\n", "\n"),
    ("a.jsonl.gz", "", "\n", "\n"), ("a.json.zst", "[", ", ", "]"), ("a.tsv.xz", "t\n", "\n", ""),
])
def test_memory_does_not_grow_with_the_file(
    name: str, head: str, separator: str, tail: str,
) -> None:
    row = ROW if ".json" in name else "x" * 1000
    peaks = []
    for rows in (15_000, 90_000):  # 15 and 90 MB: a file that is held would be seen
        write(name, head + separator.join([row] * rows) + tail)
        peaks.append(peak_mib(COUNT.format(path=name, rows=rows)))
    assert peaks[1] - peaks[0] < 12


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".txt", ".json"])
def test_a_gigabyte_without_a_line_break_is_refused_in_bounded_memory(ending: str) -> None:
    with open(f"a{ending}", "wb") as file:
        file.write(b'[{"a": "' if ending == ".json" else b'a\n"')
        file.truncate(1 << 30)  # sparse: zeros that take no disk
    refuse = f"""
from lorafit.data.sources import Location, open_blocks
from lorafit.errors import UserError
try:
    list(open_blocks(Location("a{ending}"), default_split="train"))
except UserError as error:
    assert str(error).startswith("a{ending}:{1 if ending == '.json' else 2}: "), error
    print(error)
"""
    assert peak_mib(refuse) < 300


@pytest.mark.parametrize("compression", PACKED)
def test_what_unpacks_to_a_gigabyte_in_one_line_is_refused_in_bounded_memory(
    compression: str,
) -> None:
    # Members after each other are one file, for each of the three.
    member = COMPRESS[compression](bytes([32]) * (16 << 20))
    Path(f"a.txt{compression}").write_bytes(member * 64)
    refuse = f"""
from lorafit.data.sources import Location, read_rows
from lorafit.errors import UserError
try:
    read_rows(Location("a.txt{compression}"), default_split="train")
except UserError as error:
    assert "a.txt{compression}:1: a line of more than 64 MiB" in str(error), error
else:
    raise AssertionError
"""
    assert peak_mib(refuse) < 300


@pytest.mark.parametrize("size", [MAX_LINE_BYTES, MAX_LINE_BYTES + 1])
def test_the_limit_of_a_line_is_exact(size: int) -> None:
    Path("a.txt").write_bytes(b"ab\n" + b"x" * (size - 1) + b"\nlast\n")
    if size == MAX_LINE_BYTES:
        lengths = [len(row.fields["text"])
                   for row in read_rows(Location("a.txt"), default_split="train")]
        assert lengths == [2, size - 1, 4]
        assert [len(block) for block in blocks("a.txt")] == [2, 1]  # a block is not much larger
    else:
        assert problems("a.txt")[0].startswith("a.txt:2: a line of more than 64 MiB")


def test_reading_starts_before_the_rest_is_looked_at() -> None:
    write("a.jsonl", ROW + "\n")
    with open("a.jsonl", "r+b") as file:
        file.truncate(5 << 30)  # sparse, and a line that would be refused
    first = next(open_blocks(Location("a.jsonl"), default_split="train", block_rows=1))
    assert parsed([first])[0].fields == json.loads(ROW)


def test_nothing_heavy_is_imported_for_lines() -> None:
    write("a.jsonl.gz", ROW)
    code = """
import sys
from lorafit.data.sources import Location, read_rows
read_rows(Location("a.jsonl.gz"), default_split="train")
heavy = {"torch", "transformers", "datasets", "pyarrow", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    peak_mib(code)
