"""`lorafit doctor RUN`: whatever is broken in a real run directory is found, and nothing else."""

import fcntl
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorafit.cli import main as cli
from lorafit.doctor.finding import Verdict
from lorafit.doctor.run import RunExamination
from lorafit.doctor.run.tensors import not_finite, stored_tensors
from lorafit.errors import UserError
from lorafit.run_dir import damage, write_json, write_manifest
from lorafit.train import checkpoint as of_training

Problems = Callable[[Any], dict[str, str]]
REPOSITORY = Path(__file__).parent.parent.parent
NEWEST = "checkpoints/step-00000006"


@pytest.fixture(autouse=True)
def _no_waiting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing moves in these runs, but for one."""
    if "goes_on" not in request.node.name:
        monkeypatch.setattr("lorafit.doctor.run.seen._AGAIN_AFTER_S", 0.0)


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns,
                                            path.read_bytes() if path.is_file() else b"")
            for path in sorted(folder.rglob("*"))}


def doctor(*arguments: str) -> int:
    """The verb's exit code, in this process."""
    before = sys.argv
    sys.argv = ["lorafit", "doctor", *arguments]
    try:
        return cli._run()
    finally:
        sys.argv = before


# ---- what is in order


def test_an_intact_run_is_in_order_and_nothing_is_changed(
    finished: Path, problems: Problems, capsys: pytest.CaptureFixture[str],
) -> None:
    before = everything(finished)
    assert problems(RunExamination(finished)) == {}
    assert doctor(str(finished)) == 0
    out = capsys.readouterr().out
    assert everything(finished) == before
    for said in ("step-00000002", "step-00000004", "step-00000006", "6 steps, 4 evaluations",
                 "the same bytes as step-00000006", "every file as its proof has it",
                 "finished after step 6", f"lorafit eval {finished}"):
        assert said in " ".join(out.split())


def test_a_stopped_run_says_from_where_it_goes_on_and_how(stopped: Path) -> None:
    shutil.copytree(stopped, moved := stopped.with_name("moved"))
    for run in (stopped, moved):
        examination = RunExamination(run)
        assert not any(each.verdict is Verdict.PROBLEM for each in examination)
        standing = examination.standing
        assert (standing.state, standing.step) == ("resumable", 6)
        assert standing.next == [f"lorafit train {run}/recipe.yaml --resume --set output.dir={run}"]


def test_without_an_intact_checkpoint_it_starts_over(stopped: Path, problems: Problems) -> None:
    for path in (stopped / "checkpoints").glob("step-*"):
        (path / "state.json").write_text("{}")
    examination = RunExamination(stopped)
    assert len(problems(examination)) == 3
    assert examination.standing.state == "not_started"
    shutil.rmtree(stopped / "checkpoints")
    (stopped / "checkpoints").mkdir()
    (stopped / "metrics.jsonl").unlink()
    (stopped / "record.json").unlink()
    assert problems(RunExamination(stopped)) == {}, "a run that was killed before its first step"


def test_what_is_no_run_is_said_to_be_something_else(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, what in ((tmp_path / "nowhere", "no such run"), (tmp_path / "empty", "holds no run"),
                       (finished / "recipe.yaml", "is no directory"),
                       (finished / NEWEST, "is a checkpoint"), (finished / "adapter", "an adapter"),
                       (finished / "exported", "an adapter")):
        with pytest.raises(UserError, match=what):
            RunExamination(path)
        assert doctor(str(path)) == 2
    assert doctor(str(finished), "--ranks") == 2


def test_json_has_every_finding_and_where_the_run_stands(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    (finished / NEWEST / "manifest.json").unlink()
    assert doctor(str(finished), "--json", "-") == 5
    caught = capsys.readouterr()
    assert "damaged: step-00000006" in caught.err
    found = json.loads(caught.out)
    assert found["verdict"] == "problem"
    assert found["counts"]["problem"] == 1
    assert [each["name"] for each in found["findings"] if each["verdict"] == "problem"] == [
        "step-00000006"]
    assert found["standing"]["state"] == "finished"
    assert doctor(str(finished), "--json", str(tmp_path / "found.json")) == 5
    assert json.loads((tmp_path / "found.json").read_text())["counts"] == found["counts"]
    assert doctor(str(finished), "--json", str(tmp_path / "found.json")) == 2, "overwritten"


def test_it_does_without_torch(stopped: Path) -> None:
    code = ("import sys; from pathlib import Path; from lorafit.doctor.run import RunExamination; "
            f"found = list(RunExamination(Path({str(stopped)!r}))); assert len(found) > 6; "
            "sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


# ---- every file, broken in every way that leaves a trace

BREAKS: dict[str, Callable[[Path, random.Random], None]] = {
    "deleted": lambda file, draw: file.unlink(),
    "emptied": lambda file, draw: file.write_bytes(b""),
    "cut": lambda file, draw: file.write_bytes(
        (whole := file.read_bytes())[: draw.randrange(1, len(whole))]),
    "flipped": lambda file, draw: file.write_bytes(flipped(file.read_bytes(), draw)),
}
DIGESTED = [*(f"{NEWEST}/{name}" for name in (
    "adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors", "state.json")),
    "adapter/adapter_model.safetensors", "adapter/adapter_config.json",
    "exported/adapter_model.safetensors", "exported/tokenizer.json"]


def flipped(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("name", DIGESTED)
def test_a_file_with_a_digest_is_broken(
    finished: Path, problems: Problems, name: str, how: str,
) -> None:
    for seed in range(1 if how in ("deleted", "emptied") else 3):
        whole = (finished / name).read_bytes()
        BREAKS[how](finished / name, random.Random(f"{name}{how}{seed}"))
        folder = name.split("/")[-2]
        found = problems(RunExamination(finished))
        if name.startswith(NEWEST) and "adapter" in name:
            found.pop("adapter", None)  # may be said to differ from it
        assert found.keys() == {folder}, (seed, found)
        (finished / name).write_bytes(whole)
    assert problems(RunExamination(finished)) == {}


@pytest.mark.parametrize("how", ["deleted", "emptied", "cut"])
@pytest.mark.parametrize("name", ["recipe.yaml", "record.json", "metrics.jsonl", "held_out.jsonl",
                                  "result.json", f"{NEWEST}/manifest.json",
                                  "exported/lorafit_proof.json"])
def test_a_file_without_a_digest_is_broken(
    finished: Path, problems: Problems, name: str, how: str,
) -> None:
    file = finished / name
    if how == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    else:
        BREAKS[how](file, random.Random(0))
    found = problems(RunExamination(finished))
    if (name, how) == ("exported/lorafit_proof.json", "deleted"):
        assert found == {}, "a directory without a proof is nobody's artifact"
    elif (name, how) == ("result.json", "deleted"):
        assert found == {}, "the run was stopped before its end, as far as anybody can tell"
    elif (name, how) == ("recipe.yaml", "cut"):
        assert found.keys() <= {"recipe.yaml"}
    else:
        expected = "step-00000006" if name.startswith(NEWEST) else name.split("/")[0]
        assert expected in found, found


def test_a_recipe_of_another_version_stops_the_run_and_says_so(
    stopped: Path, problems: Problems,
) -> None:
    text = (stopped / "recipe.yaml").read_text()
    (stopped / "recipe.yaml").write_text(text + "future:\n  key: 1\n")
    examination = RunExamination(stopped)
    assert "unknown" in problems(examination)["recipe.yaml"]
    assert examination.standing.state == "stuck"


WEIRD = [b"\xff\xfe\x00", b"[" * 50_000, b"null", b"[5]", b"{}", b"NaN", b'{"../../x": "y"}',
         b'{"kept_step": 1e400, "progress": {"step": null}}', b'{"loss": 1}\n',
         b'{"peft_type": "LORA", "rank_pattern": 7, "target_modules": [5]}']


def test_content_of_any_kind_is_a_line_and_never_an_error_of_ours(
    finished: Path, problems: Problems,
) -> None:
    """Every file is replaced by something else, a directory and a dangling link."""
    for step in (2, 4):  # one is enough, and quicker
        shutil.rmtree(finished / f"checkpoints/step-0000000{step}")
    for file in (finished / "exported").iterdir():
        if "adapter" not in file.name and "proof" not in file.name:
            file.unlink()
    names = [name for name in everything(finished) if (finished / name).is_file()]
    assert len(names) >= 15
    for name in names:
        file, whole = finished / name, (finished / name).read_bytes()
        for content in [*WEIRD, "directory", "link"]:
            file.unlink()
            if content == "directory":
                (file / "x").mkdir(parents=True)
            elif content == "link":
                file.symlink_to("/nowhere")
            else:
                file.write_bytes(content)  # type: ignore[arg-type]
            examination = RunExamination(finished)
            found = list(examination)
            assert not any("was not looked" in each.remedy for each in found), (name, content)
            assert examination.standing.text
            shutil.rmtree(file) if content == "directory" else file.unlink()
            file.write_bytes(whole)
    assert problems(RunExamination(finished)).keys() == {"exported"}


# ---- what digests vouch for, and is wrong all the same


def spoil(checkpoint: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a file and write the manifest anew, as a bug would have."""
    if name.endswith(".json"):
        values = json.loads((checkpoint / name).read_text())
        values = change(values) or values
        write_json(checkpoint / name, values)
    else:
        tensors = load_file(checkpoint / name)
        change(tensors)
        save_file(tensors, checkpoint / name, metadata={"format": "pt"})
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint)
    assert damage(checkpoint) is None


def first(tensors: dict[str, torch.Tensor], ending: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(ending))


def set_one(ending: str, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[first(tensors, ending)].view(-1)[-1] = value
    return change


def without(tensors: dict[str, torch.Tensor], ending: str) -> None:
    del tensors[first(tensors, ending)]


def cut_rank(tensors: dict[str, torch.Tensor]) -> None:
    name = first(tensors, "lora_A.weight")
    tensors[name] = tensors[name][:-1].clone()


SPOILS: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "a NaN in the adapter": ("adapter_model.safetensors", set_one("lora_B.weight", float("nan")),
                             "not finite"),
    "an infinity in the optimizer": ("optimizer.safetensors", set_one("exp_avg", float("inf")),
                                     "not finite"),
    "a tensor missing": ("adapter_model.safetensors",
                         lambda t: without(t, "lora_B.weight"), "has no B"),
    "a rank that differs": ("adapter_model.safetensors", cut_rank, "A has rank 3 and B 4"),
    "no tensor at all": ("adapter_model.safetensors", lambda t: t.clear(), "holds no tensor"),
    "another rank in the configuration": ("adapter_config.json", lambda c: {**c, "r": 8},
                                          "the configuration says 8"),
    "layers that have no tensor": (
        "adapter_config.json", lambda c: {**c, "target_modules": [*c["target_modules"], "wk"]},
        "wk of target_modules"),
    "moments of another shape": (
        "optimizer.safetensors",
        lambda t: t.update({(n := first(t, "/exp_avg")): t[n][:1].clone()}), "other moment"),
    "a moment missing": ("optimizer.safetensors", lambda t: without(t, "/exp_avg_sq"),
                         "is not there"),
    "steps of the future": ("optimizer.safetensors", set_one("/step", 99.0), "is 99 in"),
    "another step": ("state.json", lambda s: s["progress"].update(step=5), "is of step 5"),
    "no progress": ("state.json", lambda s: {"optimizer": s["optimizer"]}, "cannot be read"),
    "a loss that is none": ("state.json", lambda s: s["progress"].update(best_loss=float("nan")),
                            "best_loss is nan"),
}


@pytest.mark.parametrize("what", SPOILS)
def test_a_checkpoint_with_right_digests_and_wrong_content(
    stopped: Path, problems: Problems, what: str,
) -> None:
    name, change, said = SPOILS[what]
    spoil(stopped / NEWEST, name, change)
    examination = RunExamination(stopped)
    found = problems(examination)
    assert found.keys() == {"step-00000006"}
    assert said in found["step-00000006"]
    assert examination.standing.step == 4


def test_a_manifest_that_leaves_a_file_out(stopped: Path, problems: Problems) -> None:
    digests = json.loads((stopped / NEWEST / "manifest.json").read_text())
    del digests["optimizer.safetensors"]
    write_json(stopped / NEWEST / "manifest.json", digests)
    assert problems(RunExamination(stopped)) == {
        "step-00000006": "manifest.json does not know optimizer.safetensors"}


def test_a_result_that_is_not_the_checkpoint_it_was_kept_from(
    finished: Path, problems: Problems,
) -> None:
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copy(finished / "checkpoints/step-00000002" / name, finished / "adapter" / name)
    examination = RunExamination(finished)
    assert "is not that of step-00000006" in problems(examination)["adapter"]
    assert "--resume" in examination.standing.next[0]


def test_an_artifact_of_an_adapter_that_changed_since(finished: Path, problems: Problems) -> None:
    shutil.rmtree(finished / "adapter")
    shutil.copytree(finished / "checkpoints/step-00000004", finished / "adapter")
    result = json.loads((finished / "result.json").read_text())
    write_json(finished / "result.json", {**result, "kept_step": 4})
    found = list(RunExamination(finished))
    assert problems(found) == {}
    (exported,) = (each for each in found if each.name == "exported")
    assert exported.verdict is Verdict.WARNING
    assert "another adapter" in exported.text


@pytest.mark.parametrize(("change", "said"), [
    (lambda lines: [line for line in lines if line.get("step") != 3 or "loss" not in line],
     "step 3 is missing"),
    (lambda lines: [line for line in lines if line.get("step") not in (3, 4) or "loss" not in line],
     "steps 3 to 4 are missing"),
    (lambda lines: [*lines, *[line for line in lines if "loss" in line][-1:]], "is there twice"),
    (lambda lines: [*lines, *[line for line in lines if "loss" in line][:1]],
     "step 1 comes after step 6"),
    (lambda lines: [{**line, "loss": float("nan")} if line.get("step") == 2 and "loss" in line
                    else line for line in lines], "loss of step 2 is nan"),
    (lambda lines: [line for line in lines if line["step"] < 5], "ends with step 4, and there is"),
])
def test_a_log_with_lines_that_cannot_be(
    finished: Path, problems: Problems, change: Callable[[list[Any]], list[Any]], said: str,
) -> None:
    log = finished / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps(line) + "\n" for line in change(lines)))
    assert said in problems(RunExamination(finished))["metrics.jsonl"]


# ---- left behind, locked, going on


def test_what_a_crash_left_behind_is_named_and_is_no_damage(
    stopped: Path, problems: Problems,
) -> None:
    shutil.copytree(stopped / NEWEST, stopped / "checkpoints/.step-00000008.partial")
    (stopped / ".record.json.partial").write_text("{")
    (stopped / NEWEST).rename(stopped / "checkpoints/.step-00000006.replaced")
    shutil.copytree(stopped / "checkpoints/step-00000004",
                    stopped / "checkpoints/damaged-step-00000004-1")
    shutil.copytree(stopped / "checkpoints/step-00000004", stopped / "checkpoints/.step-1.removed")
    found = {each.name: each for each in RunExamination(stopped)}
    assert problems(found.values()) == {}
    for name in (".step-00000008.partial", ".record.json.partial", ".step-1.removed",
                 "damaged-step-00000004-1"):
        assert found[name].verdict is Verdict.NOTE
    assert found[".step-00000006.replaced"].verdict is Verdict.WARNING
    assert "mv" in found[".step-00000006.replaced"].remedy


def test_who_trains_is_named_and_who_was_killed_too(stopped: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        write_json(stopped / "running.json", {"pid": other.pid, "host": os.uname().nodename})
        goes_on = RunExamination(stopped)
        assert f"process {other.pid} trains here now" in [each.text for each in goes_on]
        assert goes_on.standing.state == "running"
        other.kill()
    was_killed = RunExamination(stopped)
    assert f"process {other.pid} trained here and was killed; --resume takes over" in [
        each.text for each in was_killed]
    assert was_killed.standing.state == "resumable"


def test_the_file_that_names_the_newest_checkpoint(stopped: Path, problems: Problems) -> None:
    from lorafit.run_dir import sha256

    latest = stopped / "checkpoints/latest"
    assert problems(RunExamination(stopped)) == {}
    latest.write_text(f"step-00000006 {sha256(stopped / NEWEST / 'manifest.json')}\n")
    assert problems(RunExamination(stopped)) == {}
    for text, said in (("step-00000006", "is damaged"),
                       (f"step-00000006 {'0' * 64}\n", "names another step-00000006"),
                       (f"step-00000008 {'0' * 64}\n", "which is not there")):
        latest.write_text(text)
        assert said in problems(RunExamination(stopped))["latest"]


def test_a_lock_is_left_alone(stopped: Path) -> None:
    with (stopped / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        list(RunExamination(stopped))
        with (stopped / ".lock").open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_data_and_base_that_a_resumed_run_would_miss(stopped: Path) -> None:
    text = (stopped / "recipe.yaml").read_text()
    (stopped / "recipe.yaml").write_text(text.replace("train.jsonl", "gone.jsonl"))
    found = [each for each in RunExamination(stopped) if each.verdict is Verdict.WARNING]
    assert [each.name for each in found] == ["data"]
    assert "gone.jsonl" in found[0].text


def test_the_command_it_names_goes_on_and_what_goes_on_is_never_called_damaged(
    stopped: Path, problems: Problems,
) -> None:
    """Checkpoints come and are removed, logs are cut back, while they are read."""
    (stopped / NEWEST / "optimizer.safetensors").unlink()
    before = RunExamination(stopped)
    assert problems(before).keys() == {"step-00000006"}
    assert before.standing.step == 4
    (command,) = before.standing.next
    process = subprocess.Popen(
        [sys.executable, "-m", *command.split(), "--set", "training.steps=12",
         "--set", "training.checkpoint_every=1", "--set", "training.keep_checkpoints=1"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    looked = 0
    while process.poll() is None:
        if any((stopped / "checkpoints").glob("damaged-*")):
            assert problems(RunExamination(stopped)) == {}
            looked += 1
        time.sleep(0.3)
    assert process.stdout is not None
    out = process.stdout.read()
    assert process.returncode == 0, out
    assert "resumed   from step-00000004" in out
    assert looked >= 3
    after = RunExamination(stopped)
    assert problems(after) == {}
    assert (after.standing.state, after.standing.step) == ("finished", 12)


# ---- pieces


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16,
                                   torch.float8_e5m2, torch.float8_e4m3fn])
def test_every_number_that_is_not_finite_is_seen_without_torch(
    tmp_path: Path, dtype: torch.dtype,
) -> None:
    """All 65,536 patterns of 16 bits, or the like of other widths, against torch's own answer."""
    if dtype.itemsize <= 2:
        wide = torch.arange(2 ** (8 * dtype.itemsize), dtype=torch.int32)
        numbers = wide.to(torch.uint8 if dtype.itemsize == 1 else torch.uint16).view(dtype)
    else:
        numbers = torch.tensor([0, -0.0, 1, torch.finfo(dtype).max, torch.finfo(dtype).tiny / 4,
                                float("inf"), -float("inf"), float("nan")], dtype=dtype)
    is_finite = torch.isfinite(numbers.float() if dtype.itemsize < 4 else numbers)
    for chosen, expected in ((is_finite, []), (~is_finite, ["x"])):
        save_file({"x": numbers[chosen].clone()}, tmp_path / "one.safetensors")
        for value in numbers[~is_finite][:4] if expected else ():
            save_file({"a": numbers[is_finite].clone(),
                       "x": torch.cat([numbers[is_finite], value[None]])},
                      tmp_path / "one.safetensors")
            tensors = stored_tensors(tmp_path / "one.safetensors")
            assert not_finite(tmp_path / "one.safetensors", tensors) == ["x"]
        tensors = stored_tensors(tmp_path / "one.safetensors")
        assert not_finite(tmp_path / "one.safetensors", tensors) == expected


def test_names_of_files_are_those_of_training() -> None:
    from lorafit.doctor.run import adapter, around, checkpoints
    from lorafit.export.proof import PROOF
    from lorafit.model.adapters.files import CONFIG, WEIGHTS

    assert (adapter.CONFIG, adapter.WEIGHTS) == (CONFIG, WEIGHTS)
    assert (checkpoints.OPTIMIZER, checkpoints.STATE) == (of_training.OPTIMIZER, of_training.STATE)
    assert around._PROOF == PROOF
