"""The run directory: all or nothing, and damage that is noticed."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorafit.errors import MachineError, UserError
from lorafit.run_dir import (
    MANIFEST,
    RunDir,
    append_jsonl,
    clear_left_overs,
    committed_directory,
    damage,
    read_jsonl,
    refuse_target,
    write_json,
    write_manifest,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- directories that are complete or absent


def test_a_filled_directory_appears_under_its_name_alone(tmp_path: Path) -> None:
    with committed_directory(tmp_path / "deep" / "result") as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "file").write_text("x")
        assert not (tmp_path / "deep" / "result").exists(), "visible before it was complete"
    assert (tmp_path / "deep" / "result" / "sub" / "file").read_text() == "x"
    assert names(tmp_path / "deep") == ["result"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_an_exception_inside_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def fail_half_way() -> None:
        with committed_directory(tmp_path / "result") as partial:
            (partial / "file").write_text("x")
            raise error

    with pytest.raises(type(error)):
        fail_half_way()
    assert names(tmp_path) == []


@pytest.mark.parametrize("replace", [True, False])
def test_an_exception_inside_leaves_the_old_directory_as_it_was(
    tmp_path: Path, replace: bool,
) -> None:
    with committed_directory(tmp_path / "result") as partial:
        (partial / "file").write_text("old")

    def fail_half_way() -> None:
        with committed_directory(tmp_path / "result", replace=replace) as partial:
            (partial / "file").write_text("new")
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        fail_half_way()
    assert (tmp_path / "result" / "file").read_text() == "old"
    assert names(tmp_path) == ["result"]


def test_replace_swaps_the_whole_directory(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with committed_directory(tmp_path / "result", replace=True) as partial:
            (partial / text).write_text(text)
    assert names(tmp_path / "result") == ["new"]
    assert names(tmp_path) == ["result"]


def test_without_replace_an_existing_directory_is_kept_and_the_error_says_so(
    tmp_path: Path,
) -> None:
    with committed_directory(tmp_path / "result") as partial:
        (partial / "file").write_text("old")
    with (
        pytest.raises(MachineError, match="could not be written"),
        committed_directory(tmp_path / "result") as partial,
    ):
        (partial / "file").write_text("new")
    assert (tmp_path / "result" / "file").read_text() == "old"
    assert names(tmp_path) == ["result"]


def test_what_a_crash_left_behind_does_not_get_into_the_next_directory(tmp_path: Path) -> None:
    for leftover in (".result.partial", ".result.replaced"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "half").write_text("x")
    (tmp_path / "result").mkdir()
    with committed_directory(tmp_path / "result", replace=True) as partial:
        (partial / "file").write_text("x")
    assert names(tmp_path / "result") == ["file"]
    assert names(tmp_path) == ["result"]


def test_a_place_that_cannot_be_written_is_a_machine_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(MachineError, match="could not be written"),
        committed_directory(tmp_path / "file" / "result"),
    ):
        pass
    with pytest.raises(MachineError, match="cannot be written"):
        write_text(tmp_path / "file" / "x.json", "text")


# ---- manifests


def filled(folder: Path, contents: dict[str, bytes]) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    write_manifest(folder)
    return folder


contents = st.dictionaries(
    st.sampled_from(["a.safetensors", "b.json", "sub/c.bin", "ü.txt"]),
    st.binary(min_size=1, max_size=200), min_size=1)
in_one_folder = settings(max_examples=60,
                         suppress_health_check=[HealthCheck.function_scoped_fixture])


@in_one_folder
@given(contents=contents, data=st.data())
def test_a_single_flipped_bit_is_noticed(
    tmp_path: Path, contents: dict[str, bytes], data: st.DataObject,
) -> None:
    folder = filled(tmp_path / "d", contents)
    assert damage(folder) is None
    name = data.draw(st.sampled_from(sorted(contents)))
    changed = bytearray(contents[name])
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / name).write_bytes(changed)
    found = damage(folder)
    assert found is not None
    assert name in found
    assert "damaged" in found


@in_one_folder
@given(contents=contents, data=st.data())
def test_a_missing_a_truncated_and_a_longer_file_are_noticed(
    tmp_path: Path, contents: dict[str, bytes], data: st.DataObject,
) -> None:
    name = data.draw(st.sampled_from(sorted(contents)))
    folder = filled(tmp_path / "d", contents)
    (folder / name).unlink()
    assert damage(folder) == f"{name} is missing"
    for changed in (contents[name][:-1], contents[name] + b"x"):
        (folder / name).write_bytes(changed)
        assert damage(folder) == f"{name} is damaged (its checksum differs)"


@in_one_folder
@given(st.binary(max_size=50) | st.sampled_from([b"[]", b"5", b"null", b'"x"', b'{"a": 1']))
def test_a_manifest_that_is_no_manifest_is_damage(tmp_path: Path, content: bytes) -> None:
    folder = filled(tmp_path / "d", {"a": b"x"})
    (folder / MANIFEST).write_bytes(content)
    found = damage(folder)
    assert found is not None
    assert found.startswith(MANIFEST)


def test_a_directory_without_manifest_or_not_there_at_all_is_damage(tmp_path: Path) -> None:
    assert damage(tmp_path) == f"{MANIFEST} is missing"
    assert damage(tmp_path / "nowhere") == f"{MANIFEST} is missing"


def test_every_bit_and_every_length_of_a_manifest_counts(tmp_path: Path) -> None:
    folder = filled(tmp_path / "d", {"a": b"x", "b": b"y"})
    whole = (folder / MANIFEST).read_bytes()
    assert damage(folder) is None
    for place in range(len(whole)):
        (folder / MANIFEST).write_bytes(whole[:place])
        assert damage(folder) is not None, place
        for bit in range(8):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            (folder / MANIFEST).write_bytes(changed)
            assert damage(folder) is not None, (place, bit)


def test_a_manifest_that_names_files_elsewhere_is_damage(tmp_path: Path) -> None:
    folder = filled(tmp_path / "d", {"a": b"x"})
    for name in ("../secret", "/dev/zero"):
        write_json(folder / MANIFEST, {name: "0"})
        assert "outside the directory" in (damage(folder) or "")


# ---- the run directory


def test_a_new_run_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs" / "one")
    assert not run.holds_a_run()
    run.create()
    assert run.checkpoints.is_dir()
    assert not run.holds_a_run()  # until its recipe is there
    run.recipe.write_text("")
    assert run.holds_a_run()


def test_an_empty_directory_may_become_a_run(tmp_path: Path) -> None:
    RunDir(tmp_path).create()
    assert RunDir(tmp_path).checkpoints.is_dir()


def test_a_start_that_was_killed_may_be_made_again(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    run.held_out.write_text("")
    (run.path / ".recipe.yaml.partial").write_text("mod")
    assert run.holds_an_unfinished_start()
    run.create()
    clear_left_overs(run.path)
    assert names(run.path) == ["checkpoints", "held_out.jsonl"]
    run.checkpoint(3).mkdir()
    assert not run.holds_an_unfinished_start()


def test_what_a_kill_left_half_done_is_finished_or_undone(tmp_path: Path) -> None:
    (tmp_path / ".new.partial").mkdir()
    (tmp_path / ".swapped.replaced").mkdir()
    (tmp_path / ".swapped.replaced" / "old").write_text("")
    (tmp_path / ".kept.replaced").mkdir()
    (tmp_path / "kept").mkdir()
    (tmp_path / ".gone.removed").mkdir()
    (tmp_path / ".lock").write_text("")
    clear_left_overs(tmp_path)
    assert names(tmp_path) == [".lock", "kept", "swapped"]
    assert names(tmp_path / "swapped") == ["old"]


def test_a_directory_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    run.recipe.write_text("")
    with pytest.raises(UserError, match="already holds a run") as caught:
        run.create()
    assert "--resume" in caught.value.problems[0].remedy
    assert "output.dir" in caught.value.problems[0].remedy


def test_a_directory_with_anything_else_in_it_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="already exists"):
        RunDir(tmp_path).create()
    assert names(tmp_path) == ["thesis.txt"]
    with pytest.raises(UserError, match="already exists"):
        RunDir(tmp_path / "thesis.txt").create()
    with pytest.raises(UserError, match="nothing can be written there"):
        RunDir(tmp_path / "thesis.txt" / "run").create()
    refuse_target(tmp_path / "new", "")


def test_a_target_without_room_for_what_is_written_is_refused(tmp_path: Path) -> None:
    refuse_target(tmp_path / "new" / "deep", "", needs_bytes=1)
    with pytest.raises(UserError, match=r"has no room: 1,000,000,000\.0 MB are going"):
        refuse_target(tmp_path / "new", "choose another", needs_bytes=10**15)
    assert names(tmp_path) == []


def test_checkpoints_are_listed_in_the_order_of_their_steps(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step in (100, 9, 20_000):
        run.checkpoint(step).mkdir(parents=True)
    (run.checkpoints / ".step-00000300.partial").mkdir()
    assert run.list_checkpoints() == [run.checkpoint(step) for step in (9, 100, 20_000)]


# ---- files


def test_text_is_replaced_whole_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "a long first version")
    write_json(path, {"é": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": 1}
    assert names(tmp_path) == ["a.json"]


@in_one_folder
@given(st.lists(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])),
                                st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
                                min_size=1)))
def test_json_lines_read_back_equal(tmp_path: Path, values: list[dict[str, object]]) -> None:
    path = tmp_path / "a.jsonl"
    path.unlink(missing_ok=True)
    for value in values:
        append_jsonl(path, value)
    assert read_jsonl(path) == values


def test_a_last_line_that_a_crash_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append_jsonl(path, {"step": 1})
    append_jsonl(path, {"step": 2, "text": "é"})
    whole = path.read_bytes()
    for cut in range(len(whole) - 1, len(b'{"step": 1}\n') - 1, -1):
        path.write_bytes(whole[:cut])
        assert read_jsonl(path) == [{"step": 1}]
    assert read_jsonl(tmp_path / "none.jsonl") == []


def test_the_old_directory_comes_back_after_a_crash_between_the_two_renames(tmp_path: Path) -> None:
    (tmp_path / ".result.replaced").mkdir()
    (tmp_path / ".result.replaced" / "file").write_text("old")

    def fail_half_way() -> None:
        with committed_directory(tmp_path / "result", replace=True):
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        fail_half_way()
    assert (tmp_path / "result" / "file").read_text() == "old"
    assert names(tmp_path) == ["result"]
