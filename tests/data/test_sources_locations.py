"""What a path may be: a file, a pattern, a directory; and what its content is called by."""

import json
import os
import shutil
from pathlib import Path

import pytest

from lorafit.data.sources import Location, content_hash, open_blocks, read_rows, source_files
from lorafit.errors import UserError


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, value: int = 1) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(json.dumps({"a": value}) + "\n")
    return name


def found(path: str) -> list[str]:
    return [str(file) for file in source_files(Location(path))]


def problems(location: str | Location) -> list[str]:
    given = Location(location) if isinstance(location, str) else location
    with pytest.raises(UserError) as caught:
        read_rows(given, default_split="train")
    return [str(problem) for problem in caught.value.problems]


def digest(path: str) -> str:
    return content_hash(Location(path), default_split="train")


# ---- files


@pytest.mark.parametrize("name", ["owner/name", "squad"])
def test_a_name_without_an_ending_is_a_hub_data_set(name: str) -> None:
    assert Location(name).is_hub


@pytest.mark.parametrize("name", ["./owner/name", "/data", "~/x", "a/b/c", "a.jsonl", "x/y.csv",
                                  "x/y.jsonl.gz", "a.zst", "data/*", "x?", "[ab]/x", "A.ARROW"])
def test_what_looks_like_a_path_is_a_file(name: str) -> None:
    assert not Location(name).is_hub


def test_what_exists_is_no_hub_data_set() -> None:
    Path("owner/name").mkdir(parents=True)
    assert not Location("owner/name").is_hub


def test_a_missing_file_says_where_it_was_looked_for() -> None:
    [problem] = problems("nowhere.jsonl")
    assert problem.startswith("nowhere.jsonl: no such file")
    assert "working directory" in problem
    assert problems("a/b/c/d")[0].startswith("a/b/c/d: no such file")


@pytest.mark.parametrize("path", ["a.jsonl/b.jsonl", "x" * 300 + ".jsonl", "x" * 300, "loop.csv"])
def test_a_path_that_the_system_refuses_is_a_message(path: str) -> None:
    write("a.jsonl")
    Path("loop.csv").symlink_to("loop.csv")
    for name in (str(Path(path).absolute()), f"{path}/x/*"):
        assert problems(name)[0].startswith(f"{name}: ")


def test_a_home_that_nobody_has_is_a_missing_file() -> None:
    assert "no such file" in problems("~nobody-of-this-name/rows.jsonl")[0]


def test_the_home_directory_may_be_abbreviated(monkeypatch: pytest.MonkeyPatch) -> None:
    write("home/a.jsonl")
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    for path in ("~/a.jsonl", "~/*.jsonl", "~"):
        [row] = read_rows(Location(path), default_split="train")
        assert row.where == f"{Path('home/a.jsonl').absolute()}:1"


@pytest.mark.timeout(20)
def test_a_pipe_or_a_device_is_refused_without_waiting_for_it() -> None:
    os.mkfifo("a.jsonl")
    Path("b.jsonl").symlink_to("/dev/zero")
    for name in ("a.jsonl", "b.jsonl", "*.jsonl", "."):
        assert all("not a regular file" in problem for problem in problems(name))
    assert len(problems(".")) == 2


def test_a_broken_link_is_named_with_what_it_leads_to() -> None:
    write("a.jsonl")
    Path("b.jsonl").symlink_to("gone.jsonl")
    for name in ("b.jsonl", "*.jsonl", "."):
        [problem] = problems(name)
        assert problem.startswith("b.jsonl: a link to gone.jsonl, which does not exist")


def test_a_link_to_a_file_is_the_file() -> None:
    write("there/a.jsonl")
    Path("b.jsonl").symlink_to("there/a.jsonl")
    assert found("b.jsonl") == ["b.jsonl"]


def test_a_file_without_permission_is_named() -> None:
    write("a.jsonl")
    Path("a.jsonl").chmod(0)
    Path.cwd().chmod(0o755)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # without root's rights, which would read it
        try:
            if os.getuid() == 0:
                os.setresuid(65534, 65534, 65534)
            read_rows(Location("a.jsonl"), default_split="train")
        except BaseException as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as message:
        assert message.read().startswith("a.jsonl: cannot be read: Permission denied")


def test_a_split_of_a_file_is_refused() -> None:
    write("a.jsonl")
    [problem] = problems(Location("a.jsonl", split="train", revision="main"))
    assert problem.startswith("a.jsonl: split and revision given for what is no hub data set")


# ---- patterns and directories


def test_a_pattern_is_its_files_in_the_order_of_their_names() -> None:
    for name in ("d/b.jsonl", "d/a.jsonl", "d/deep/er/c.jsonl", "d/x.csv", "d/.hidden.jsonl"):
        write(name)
    assert found("d/*.jsonl") == ["d/a.jsonl", "d/b.jsonl"]
    assert found("d/**/*.jsonl") == ["d/a.jsonl", "d/b.jsonl", "d/deep/er/c.jsonl"]
    assert found("d/[ax].*") == ["d/a.jsonl", "d/x.csv"]
    assert [row.where for row in read_rows(Location("d/?.jsonl"), default_split="train")] == [
        "d/a.jsonl:1", "d/b.jsonl:1"]


def test_a_file_whose_name_is_a_pattern_is_that_file() -> None:
    write("a[1].jsonl")
    write("a1.jsonl")
    assert found("a[1].jsonl") == ["a[1].jsonl"]


def test_a_directory_is_all_files_of_known_kinds_below_it() -> None:
    for name in ("d/b.jsonl.gz", "d/a.csv", "d/deep/c.txt", "d/README.md", "d/.git/x.json",
                 "d/.x.json", "d/state.json"):
        write(name)
    assert found("d") == ["d/a.csv", "d/b.jsonl.gz", "d/deep/c.txt", "d/state.json"]


def test_what_datasets_writes_about_its_tables_is_no_row() -> None:
    import datasets

    whole = datasets.Dataset.from_list([{"a": n} for n in range(5)])
    whole.save_to_disk("saved")
    rows = read_rows(Location("saved"), default_split="train")
    assert [row.fields for row in rows] == [{"a": n} for n in range(5)]
    datasets.DatasetDict({"train": whole, "test": whole}).save_to_disk("several")
    for location in (Location("several"), Location("several", split="test")):
        [problem] = problems(location)
        assert problem.startswith("several: holds several splits: test, train")
    assert len(read_rows(Location("several/test"), default_split="train")) == 5


@pytest.mark.parametrize("path", ["d", "d/*"])
def test_a_directory_or_pattern_without_a_data_file_lists_what_is_there(path: str) -> None:
    for name in ("d/a.xml", "d/b.xml", "d/c.pdf.gz", "d/LICENSE"):
        write(name)
    [problem] = problems(path)
    assert problem.startswith(f"{path}: the {'directory has' if path == 'd' else 'pattern'}")
    assert "no data file (2 .xml, " in problem
    assert "1 .pdf.gz" in problem
    assert "1 LICENSE" in problem
    assert ".jsonl" in problem


@pytest.mark.parametrize("path", ["empty", "none*.jsonl"])
def test_a_directory_or_pattern_without_any_file_is_refused(path: str) -> None:
    Path("empty").mkdir()
    assert " no file" in problems(path)[0]


def test_files_without_rows_are_allowed_beside_others() -> None:
    write("d/a.jsonl")
    Path("d/b.jsonl").touch()
    assert len(read_rows(Location("d"), default_split="train")) == 1
    Path("d/a.jsonl").write_text("\n")
    assert problems("d")[0].startswith("d: the data set is empty")


def test_problems_of_several_files_come_together() -> None:
    write("d/b.jsonl")
    Path("d/a.jsonl").write_text("broken\n")
    Path("d/c.csv").write_text("a,b\n1\n")
    assert [problem.split(": ")[0] for problem in problems("d")] == ["d/a.jsonl:1", "d/c.csv:2"]


# ---- digests


def test_a_digest_follows_the_content_and_the_order_not_the_names() -> None:
    for directory in ("d", "e"):
        write(f"{directory}/a.jsonl", 1)
        write(f"{directory}/b.jsonl", 2)
    first = digest("d")
    assert first == digest("d") == digest("e") == digest("d/*.jsonl")
    Path("e/a.jsonl").rename("e/c.jsonl")  # read after b now
    assert digest("e") != first
    Path("e/b.jsonl").rename("e/d.jsonl")
    assert digest("e") == first
    Path("e/d.jsonl").rename("e/d.txt")  # the same bytes are other rows
    assert digest("e") != first


def test_a_digest_changes_with_every_byte_and_every_boundary() -> None:
    Path("a.txt").write_text("one\ntwo\n")
    seen = {digest("a.txt")}
    for content in ("one\ntwo", "one\ntwO\n", "two\none\n", "one\ntwo\n\n"):
        Path("a.txt").write_text(content)
        seen.add(digest("a.txt"))
    Path("d").mkdir()
    Path("d/a.txt").write_text("one\n")
    Path("d/b.txt").write_text("two\n")
    seen.add(digest("d"))
    Path("d/a.txt").write_text("one\ntwo\n")
    Path("d/b.txt").write_text("")
    seen.add(digest("d"))
    assert len(seen) == 7


def test_a_digest_of_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(UserError, match="no such file"):
        digest("gone.jsonl")


def test_a_file_that_goes_away_while_it_is_read_is_a_message() -> None:
    write("d/a.jsonl")
    write("d/b.jsonl")
    reader = open_blocks(Location("d"), default_split="train")
    next(reader)
    shutil.rmtree("d")
    with pytest.raises(UserError, match=r"d/b\.jsonl: cannot be read: No such file"):
        next(reader)
