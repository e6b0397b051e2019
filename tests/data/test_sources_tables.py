"""Parquet, Arrow and data sets read by `datasets`."""

import gzip
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import ipc, parquet

from lorafit.data.rows import Row
from lorafit.data.sources import (
    Location,
    content_hash,
    open_blocks,
    parse_block,
    read_rows,
    source_files,
)
from lorafit.errors import UserError

CHATS: list[dict[str, Any]] = [
    {"id": n, "messages": [{"role": "user", "content": f"é {n}"},
                           {"role": "assistant", "content": None if n % 3 else "b"}]}
    for n in range(23)]
TABLE = pyarrow.Table.from_pylist(CHATS)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(name: str, table: pyarrow.Table = TABLE) -> str:
    """A table of several batches: in a Parquet file, an Arrow file or (`s…`) an Arrow stream."""
    plain = name.removesuffix(".gz")
    if plain.endswith(".parquet"):
        parquet.write_table(table, plain, row_group_size=5)
    else:
        opened = ipc.new_stream if plain.startswith("s") else ipc.new_file
        with opened(plain, table.schema) as writer:
            writer.write_table(table, max_chunksize=5)
    if name != plain:
        Path(name).write_bytes(gzip.compress(Path(plain).read_bytes()))
    return name


def rows(location: str | Location, **options: Any) -> list[Row]:
    given = Location(location) if isinstance(location, str) else location
    found: list[Row] = []
    for block in open_blocks(given, default_split="train", **options):
        got, problems = parse_block(block)
        assert not problems
        assert len(block) <= options.get("block_rows", 1000)
        found += got
    return found


def problem(location: str | Location, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        rows(location, **options)
    [only] = caught.value.problems
    return str(only)


FILES = ["a.parquet", "a.arrow", "s.arrow", "a.parquet.gz", "a.arrow.gz", "s.arrow.gz"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("block_rows", [1, 3, 5, 7, 1000])
def test_tables_are_rows_with_their_numbers_from_any_start(name: str, block_rows: int) -> None:
    write(name)
    for skip in (0, 1, 4, 5, 6, 22, 23, 30):
        found = rows(name, block_rows=block_rows, skip_rows=skip)
        assert [row.fields for row in found] == CHATS[skip:]
        assert [row.where for row in found] == [f"{name} row {n}" for n in range(skip + 1, 24)]
    assert [row.fields for row in read_rows(Location(name), default_split="train")] == CHATS


def test_tables_are_skipped_and_continued_across_files() -> None:
    write("d.parquet")
    write("s.arrow")
    for skip in (0, 22, 23, 24, 45, 46):
        assert [row.fields for row in rows(".", skip_rows=skip)] == (CHATS + CHATS)[skip:]


@pytest.mark.parametrize("name", FILES)
def test_a_table_that_is_cut_off_is_refused(name: str) -> None:
    whole = Path(write(name)).read_bytes()
    Path(name).write_bytes(whole[: len(whole) // 2])
    kind = "Parquet" if "parquet" in name else "Arrow"
    assert problem(name).startswith(f"{name}: not readable as {kind}: ") or (
        "is broken or cut off" in problem(name))


@pytest.mark.parametrize("name", FILES)
def test_a_table_without_rows_is_an_empty_data_set(name: str) -> None:
    write(name, TABLE.slice(0, 0))
    with pytest.raises(UserError, match=f"{name}: the data set is empty"):
        read_rows(Location(name), default_split="train")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "s.arrow"])
def test_a_column_name_that_stands_twice_is_refused(name: str) -> None:
    write(name, pyarrow.table([pyarrow.array([1]), pyarrow.array([2])], names=["x", "x"]))
    assert problem(name).startswith(f"{name}: a column name stands twice: x")


def test_text_that_is_not_utf8_is_refused() -> None:
    broken = pyarrow.array([b"fine", b"caf\xe9"]).view(pyarrow.string())
    for name in FILES:
        write(name, pyarrow.table({"text": broken}))
        assert "UTF8" in problem(name)


@settings(max_examples=60, deadline=None, derandomize=True,  # a crash of pyarrow ends every test
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["a.parquet", "a.arrow", "s.arrow"]), st.randoms(use_true_random=False))
def test_a_damaged_table_gives_rows_or_a_user_error(name: str, random: Any) -> None:
    content = bytearray(Path(write(name)).read_bytes())
    for _ in range(random.randint(1, 8)):
        content[random.randrange(len(content))] = random.randrange(256)
    Path(name).write_bytes(content)
    try:
        rows(name)
    except UserError as error:
        assert str(error).startswith(name)  # noqa: PT017


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize("in_one", [False, True])
def test_memory_does_not_grow_with_the_table(name: str, in_one: bool) -> None:
    peaks = []
    for groups in (20, 160):  # 20 and 160 MB
        batch = pyarrow.record_batch({"text": [f"{n}" * 1000 for n in range(100, 433)]})
        opened = (ipc.new_file(name, batch.schema) if name == "a.arrow" else
                  parquet.ParquetWriter(name, batch.schema, compression="none",
                                        use_dictionary=False))
        with opened as writer:
            if in_one:
                table = pyarrow.Table.from_batches([batch] * groups).combine_chunks()
                writer.write_table(table, groups * len(batch))  # of one row group or batch
            else:
                for _ in range(groups):
                    writer.write_batch(batch)
        code = f"""
from lorafit.data.sources import Location, open_blocks
print(max(  # without the file's own pages, which the system may drop
    int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0])
    for block in open_blocks(Location({name!r}), default_split="train", block_rows=100)))
"""
        # Arrow's own pool keeps what is freed, 6 to 46 MB of it from run to run.
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                              check=True, timeout=60,
                              env=os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"})
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] - peaks[0] < 40


# ---- read by `datasets`


@pytest.fixture
def layout() -> str:
    """A directory as a data set of the hub is laid out."""
    Path("owner/data/data").mkdir(parents=True)
    for split, start, end in (("train", 0, 20), ("test", 20, 23)):
        parquet.write_table(TABLE.slice(start, end - start),
                            f"owner/data/data/{split}-00000-of-00001.parquet")
    return "owner/data"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_split_of_a_directory_is_read_by_datasets(layout: str, streaming: bool) -> None:
    train, test = Location(layout, split="train"), Location(layout, split="test")
    for skip in (0, 3, 20, 25):
        found = rows(train, streaming=streaming, block_rows=6, skip_rows=skip)
        assert [row.fields for row in found] == CHATS[skip:20]
        assert [row.where for row in found] == [
            f"owner/data row {n}" for n in range(skip + 1, 21)]
    assert [row.fields for row in rows(test, streaming=streaming)] == CHATS[20:]


def test_a_data_set_has_no_files_of_its_own(layout: str) -> None:
    assert source_files(Location(layout, split="train")) == []
    assert source_files(Location("owner/of-the-hub")) == []


def test_a_part_of_a_split_is_read(layout: str) -> None:
    location = Location(layout, split="train[:10%]+test[1:]")
    assert [row.fields for row in rows(location)] == CHATS[:2] + CHATS[21:]
    assert len(read_rows(location, default_split="train", limit=3)) == 3
    assert "cannot be streamed" in problem(location, streaming=True)


def test_a_split_that_is_not_there_is_named_with_those_that_are(layout: str) -> None:
    message = problem(Location(layout, split="validation"))
    assert message.startswith("owner/data (split validation): the data set cannot be loaded: ")
    assert "train" in message


def test_a_digest_of_a_data_set_follows_its_split_and_its_content(layout: str) -> None:
    def digest(split: str) -> str:
        return content_hash(Location(layout, split=split), default_split="train")

    code = f"""
from lorafit.data.sources import Location, content_hash
print(content_hash(Location({layout!r}, split="train"), default_split="train"))
"""
    train = digest("train")
    assert digest("train") == train
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          timeout=120, env={**os.environ, "HF_DATASETS_CACHE": "elsewhere"})
    assert done.stdout.strip() == train
    assert len({train, digest("test"), digest("train[:10%]"), digest("train[:20%]")}) == 4
    parquet.write_table(TABLE.slice(1, 20), f"{layout}/data/train-00000-of-00001.parquet")
    assert digest("train") != train


def test_a_hub_data_set_without_the_network_is_a_message() -> None:
    code = """
from lorafit.data.sources import Location, content_hash, read_rows
from lorafit.errors import UserError
for call in (read_rows, content_hash):
    try:
        call(Location("nobody-of-this-name/nothing"), default_split="train")
    except UserError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          timeout=120, env={"HF_HUB_OFFLINE": "1", "HOME": str(Path.cwd())})
    messages = done.stdout.split("nobody-of-this-name/nothing (split train): ")
    assert len(messages) == 3
    assert messages[1].startswith("the data set cannot be loaded: ")
    assert "check the name, the split and the network" in messages[1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("path", "package"), [
    ("a.jsonl.zst", "pyarrow"), ("a.parquet", "pyarrow"), ("a.arrow", "pyarrow"),
    ("owner/name", "datasets")])
def test_a_package_that_is_missing_is_named_with_what_to_do(path: str, package: str) -> None:
    if path != "owner/name":
        Path(path).write_bytes(b"\x28\xb5\x2f\xfd" + b"\0" * 20)
    code = f"""
import sys
sys.modules[{package!r}] = None  # as if it were not installed
from lorafit.data.sources import Location, read_rows
from lorafit.errors import UserError
try:
    read_rows(Location({path!r}), default_split="train")
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          timeout=60)
    assert done.stdout.startswith(f"{path}: needs the package `{package}`")
    assert f"pip install {package}, or " in done.stdout
