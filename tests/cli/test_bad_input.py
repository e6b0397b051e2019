"""Whatever a person gets wrong: one message with place and remedy, exit code 2, nothing written."""

import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorafit.cli import main as cli

REPOSITORY = Path(__file__).parent.parent.parent

ROWS = '{"prompt": "1+1?", "completion": "2"}\n{"prompt": "2+2?", "completion": "4"}\n'
RECIPE = """\
model:
  base: tiny
adapter:
  rank: 4
data:
  train: rows.jsonl
training:
  steps: 1
  batch_size: 2
output:
  dir: out
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a recipe and rows that are fine."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path


def run(*arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A real `lorafit` process in the working directory."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *options, "-m", "lorafit", *arguments], capture_output=True, text=True,
        env=environment, timeout=120,
    )


def everything_in(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
            for path in folder.rglob("*")}


def refused(folder: Path, *arguments: str) -> str:
    """What a process says that must refuse its input and leave everything as it was."""
    before = everything_in(folder)
    process = run(*arguments)
    assert process.returncode == 2, process.stderr
    assert "Traceback" not in process.stderr + process.stdout
    # A slow machine says how many rows it has tokenised.
    assert all(line.endswith("rows tokenised") for line in process.stdout.splitlines())
    assert everything_in(folder) == before, "something was written"
    return process.stderr


def edit(old: str, new: str) -> None:
    assert old in RECIPE
    Path("r.yaml").write_text(RECIPE.replace(old, new))


# ---- mistakes that need no model to be found


def missing_recipe() -> tuple[list[str], list[str]]:
    return ["train", "nowhere.yaml"], ["nowhere.yaml: no such recipe", "lorafit init"]


def unknown_key() -> tuple[list[str], list[str]]:
    edit("rank: 4", "rnk: 4")
    return ["train", "r.yaml"], ["r.yaml:4: unknown key adapter.rnk", "did you mean adapter.rank?"]


def duplicate_key() -> tuple[list[str], list[str]]:
    edit("  rank: 4\n", "  rank: 4\n  rank: 8\n")
    return ["train", "r.yaml"], ["r.yaml:5: adapter.rank is written twice (first in line 4)",
                                 "keep one of them"]


def wrong_type() -> tuple[list[str], list[str]]:
    edit("rank: 4", "rank: four")
    return ["train", "r.yaml"], ["r.yaml:4: adapter.rank: must be a whole number, not 'four'"]


def impossible_combination() -> tuple[list[str], list[str]]:
    edit("steps: 1", "steps: 1\n  epochs: 2")
    return ["train", "r.yaml"], ["r.yaml:7: training: epochs and steps exclude each other",
                                 "--set training.epochs=null"]


def not_yaml() -> tuple[list[str], list[str]]:
    edit("base: tiny", "base: [tiny")
    return ["check", "r.yaml"], ["r.yaml:3: not valid YAML", "check the indentation"]


def wrong_override() -> tuple[list[str], list[str]]:
    return ["train", "r.yaml", "--set", "adapter.rnk=8"], [
        "--set adapter.rnk=8: unknown key adapter.rnk", "did you mean adapter.rank?"]


def missing_data() -> tuple[list[str], list[str]]:
    edit("rows.jsonl", "nowhere.jsonl")
    return ["train", "r.yaml"], ["nowhere.jsonl: no such file", "check data.train and data.eval"]


def empty_data() -> tuple[list[str], list[str]]:
    Path("rows.jsonl").write_text("\n")
    return ["train", "r.yaml"], ["rows.jsonl: the data set is empty", "give a file with rows"]


def malformed_data() -> tuple[list[str], list[str]]:
    Path("rows.jsonl").write_text(ROWS + "{broken\n")
    return ["train", "r.yaml"], ["rows.jsonl:3: not JSON", "each line must be one JSON object"]


def row_without_its_column() -> tuple[list[str], list[str]]:
    Path("rows.jsonl").write_text(ROWS + '{"prompt": "3+3?"}\n')
    return ["train", "r.yaml"], ["rows.jsonl:3: the row lacks the column completion",
                                 "correct data.columns"]


def unknown_columns() -> tuple[list[str], list[str]]:
    Path("rows.jsonl").write_text('{"frage": "?", "antwort": "!"}\n')
    return ["train", "r.yaml"], ["rows.jsonl:1: no known format has the columns frage, antwort",
                                 "--set data.columns.prompt=question"]


def held_out_rows_that_do_not_fit() -> tuple[list[str], list[str]]:
    Path("held.jsonl").write_text('{"foo": 1}\n')
    return ["train", "r.yaml", "--set", "data.eval=held.jsonl"], [
        "held.jsonl:1: no known format has the columns foo"]


def missing_base() -> tuple[list[str], list[str]]:
    edit("base: tiny", "base: ./models/nowhere")
    return ["train", "r.yaml"], ["model.base: ./models/nowhere: no such base model",
                                 "name a model directory, a hub id, or tiny"]


def missing_template() -> tuple[list[str], list[str]]:
    return ["train", "r.yaml", "--set", "data.chat_template=x.jinja"], [
        "data.chat_template: no chat template and no file is called 'x.jinja'",
        "path of a Jinja file"]


def output_that_holds_a_run() -> tuple[list[str], list[str]]:
    Path("out/checkpoints").mkdir(parents=True)
    Path("out/recipe.yaml").write_text(RECIPE)
    return ["train", "r.yaml"], ["out: the output directory already holds a run",
                                 "--resume", "--set output.dir=DIR"]


def output_that_is_somebodys_directory() -> tuple[list[str], list[str]]:
    Path("out").mkdir()
    Path("out/thesis.txt").write_text("years of work")
    return ["train", "r.yaml"], ["out: already exists", "--set output.dir=DIR"]


def init_over_a_file() -> tuple[list[str], list[str]]:
    return ["init", "--data", "rows.jsonl", "-o", "r.yaml"], [
        "r.yaml: already exists; nothing was overwritten", "choose another file with --output"]


def init_without_rows() -> tuple[list[str], list[str]]:
    return ["init", "--data", "nowhere.csv", "-o", "new.yaml"], ["nowhere.csv: no such file"]


def unknown_verb() -> tuple[list[str], list[str]]:
    return ["trane", "r.yaml"], ["trane"]


def unknown_option() -> tuple[list[str], list[str]]:
    return ["train", "r.yaml", "--stes", "3"], ["--stes"]


Mistake = Callable[[], tuple[list[str], list[str]]]

MISTAKES: list[Mistake] = [
    missing_recipe, unknown_key, duplicate_key, wrong_type, impossible_combination, not_yaml,
    wrong_override, missing_data, empty_data, malformed_data, row_without_its_column,
    unknown_columns, held_out_rows_that_do_not_fit, missing_base, missing_template,
    output_that_holds_a_run, output_that_is_somebodys_directory, init_over_a_file,
    init_without_rows, unknown_verb, unknown_option,
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_refused_with_place_and_remedy_and_nothing_is_written(
    folder: Path, mistake: Mistake,
) -> None:
    arguments, expected = mistake()
    said = refused(folder, *arguments)
    for part in expected:
        assert part in said
    if mistake not in (unknown_verb, unknown_option):  # those are in typer's own words
        assert said.startswith("error: ")


@pytest.mark.parametrize("mistake", [wrong_type, row_without_its_column, missing_base],
                         ids=lambda mistake: mistake.__name__)
def test_what_needs_no_model_is_answered_in_under_a_second(
    folder: Path, mistake: Mistake,
) -> None:
    arguments, _ = mistake()
    assert best_of_three(lambda: run(*arguments)) < 1


def best_of_three(action: Callable[[], object]) -> float:
    """Seconds of a processor that the cheapest of three runs of a process takes, however many
    other processes there are."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        action()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def test_a_full_message_is_one_problem_and_its_remedy(folder: Path) -> None:
    arguments, _ = unknown_key()
    assert refused(folder, *arguments) == (
        "error: r.yaml:4: unknown key adapter.rnk\n    did you mean adapter.rank?\n")


# ---- mistakes that need the model's architecture


def test_a_target_module_that_matches_nothing_is_refused_before_training(folder: Path) -> None:
    edit("rank: 4", "rank: 4\n  target_modules: [q_prj, v_proj]")
    said = refused(folder, "train", "r.yaml")
    assert "adapter.target_modules: q_prj matches no layer of the model" in said
    assert "did you mean q_proj?" in said
    assert "v_proj matches" not in said


def test_an_expression_that_matches_nothing_shows_what_names_look_like(folder: Path) -> None:
    edit("rank: 4", "rank: 4\n  target_modules: 'q_proj'")
    said = refused(folder, "train", "r.yaml")
    assert "adapter.target_modules: the expression 'q_proj' matches no layer" in said
    assert "it must match full names such as " in said


def test_a_base_that_is_no_model_directory_is_refused(folder: Path) -> None:
    Path("base").mkdir()
    edit("base: tiny", "base: ./base")
    said = refused(folder, "train", "r.yaml")
    assert "model.base: ./base: is a directory without a config.json" in said
    Path("base/config.json").write_text("[]")
    said = refused(folder, "train", "r.yaml")
    assert "base/config.json: is damaged: not a JSON object" in said


def test_a_hub_name_without_network_says_so_and_points_to_tiny(folder: Path) -> None:
    edit("base: tiny", "base: nobody/nothing-of-this-name")
    said = refused(folder, "check", "r.yaml")
    assert "model.base: nobody/nothing-of-this-name: no such directory, and the hub" in said
    assert "`tiny` needs neither" in said


def test_rows_that_are_too_long_name_the_longest_and_the_remedy(folder: Path) -> None:
    edit("train: rows.jsonl", "train: rows.jsonl\n  max_length_tokens: 8")
    said = refused(folder, "check", "r.yaml")
    assert "2 of 2 rows are longer than max_length_tokens 8" in said
    assert "--set data.max_length_tokens=" in said
    assert "rows.jsonl:" in said


def test_a_late_row_that_does_not_fit_is_found_before_training(folder: Path) -> None:
    Path("rows.jsonl").write_text(ROWS * 75 + '{"prompt": "?"}\n')
    assert "rows.jsonl:151: the row lacks the column completion" in refused(
        folder, "train", "r.yaml")


# ---- what is right


def test_a_number_in_scientific_notation_is_accepted(folder: Path) -> None:
    edit("steps: 1", "steps: 1\n  learning_rate: 1e-5")
    process = run("check", "r.yaml")
    assert process.returncode == 0, process.stderr
    assert "1e-05" in process.stdout
    assert process.stdout.endswith("r.yaml: the recipe is fine\n")
    assert not Path("out").exists(), "check writes nothing"


def test_help_answers_at_once() -> None:
    assert best_of_three(lambda: run("--help")) < 0.5


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"],
                                       ["train", "nowhere.yaml"], ["schema"],
                                       ["train", "r.yaml", "--set", "data.train=x.csv"]])
def test_nothing_heavy_is_imported_before_it_is_needed(folder: Path, arguments: list[str]) -> None:
    process = run(*arguments, options=("-X", "importtime"))
    imported = {line.rpartition("|")[2].strip().partition(".")[0]
                for line in process.stderr.splitlines() if line.startswith("import time:")}
    assert "lorafit" in imported
    assert not imported & {"torch", "transformers", "peft", "accelerate", "datasets",
                           "bitsandbytes", "safetensors", "pyarrow", "pandas", "numpy", "jinja2"}


# ---- a corpus of malformed recipes and data, in this process

BAD_RECIPES = [
    "", " ", "# nothing", "---", "null", "5", "text", "- a\n- b", "[]", "{}", "[[[[", "{{{{", "}",
    "a: b: c", "\tmodel: x", "model:\n\tbase: tiny", "model", "model:", "model: tiny", "model: []",
    "model: {base: }", "model: {base: 5}", "model: {base: [tiny]}", "model: {base: ''}",
    "model: !!python/object:os.system {}", "&a [*a]", "*a", "a: &b {c: *b}", "<<: {model: 1}",
    "? [1, 2]\n: 3", "'unclosed", '"\\xZZ"', '"\\UFFFFFFFF"', "%YAML 9.9\n---\na: 1", "%FOO",
    "a: 1\na: 2", "--- a\n--- b", "\x00", "a: \x07", "\ufffe", "@a: 1", "`a`: 1", "a: |\nb",
    "!!binary x", "key: >-\n", ": 1", "- - -", "a:\n  - b\n c: d", "=: 1", "1: 2", "~: ~",
    "true: false", "{a: 1, a: 2}", "a: *undefined", "[" * 2000, "{a: " * 2000, "a: !<x> 1",
    "x" * 100_000, "model: {base: tiny}\ndata: {train: rows.jsonl}",
    "model: {base: tiny}\noutput: {dir: out}",
    "data: {train: rows.jsonl}\noutput: {dir: out}",
]
BAD_CHANGES = [  # (section, key, value) put into the good recipe
    ("model", "base", None), ("model", "base", "./nowhere"), ("model", "base", "x" * 300),
    ("model", "dtype", "float64"), ("model", "quantization", "int4"), ("model", "attention", 1),
    ("model", "trust_remote_code", "yes please"), ("model", "revision", 5), ("model", "bse", 1),
    ("adapter", "rank", 0), ("adapter", "rank", -1), ("adapter", "rank", 1.5),
    ("adapter", "rank", "r"), ("adapter", "method", None), ("adapter", "rank", [4]),
    ("adapter", "rank", True), ("adapter", "alpha", 0), ("adapter", "alpha", float("nan")),
    ("adapter", "alpha", float("inf")), ("adapter", "alpha", "big"), ("adapter", "dropout", 1),
    ("adapter", "dropout", -0.1), ("adapter", "init", "zero"), ("adapter", "bias", "some"),
    ("adapter", "method", "ia3"), ("adapter", "layers", "top"), ("adapter", "layers", []),
    ("adapter", "layers", [-1]), ("adapter", "layers", {"a": 1}), ("adapter", "dora", 1),
    ("adapter", "target_modules", []), ("adapter", "target_modules", "("),
    ("adapter", "target_modules", [1]), ("adapter", "target_modules", {}),
    ("adapter", "modules_to_save", "lm_head"), ("adapter", "rank_pattern", {"q": 0}),
    ("adapter", "rank_pattern", {"(": 1}), ("adapter", "alpha_pattern", [1]),
    ("adapter", "lora_alpha", 16), ("adapter", "r", 8),
    ("data", "train", None), ("data", "train", ""), ("data", "train", 5), ("data", "train", []),
    ("data", "train", "rows.xml"), ("data", "train", "*.xml"), ("data", "train", {"split": "x"}),
    ("data", "train", {"path": "rows.jsonl", "spilt": "x"}), ("data", "train", "a\0b.jsonl"),
    ("data", "train", "y" * 5000), ("data", "train", "~nobody-here/x.jsonl"),
    ("data", "eval", "nowhere.jsonl"), ("data", "eval_fraction", 1), ("data", "eval_fraction", -1),
    ("data", "format", "sharegpt"), ("data", "format", "chat"), ("data", "render", "markdown"),
    ("data", "columns", {"prompt": "x"}), ("data", "columns", {"promt": "prompt"}),
    ("data", "columns", {"text": "prompt", "prompt": "completion"}), ("data", "columns", "prompt"),
    ("data", "chat_template", "nowhere.jinja"), ("data", "max_length_tokens", 0),
    ("data", "on_long", "cut"), ("data", "max_rows", 0), ("data", "system", 5),
    ("training", "epochs", 0), ("training", "epochs", 1), ("training", "steps", 1.5),
    ("training", "batch_size", 0), ("training", "micro_batch_size", 3),
    ("training", "micro_batch_size", "big"), ("training", "learning_rate", 0),
    ("training", "learning_rate", "1e-4x"), ("training", "learning_rate", [1e-4]),
    ("training", "schedule", "cosin"), ("training", "warmup", -1), ("training", "warmup", 1.5),
    ("training", "betas", [0.9]), ("training", "betas", [0.9, 1.5]), ("training", "betas", 0.9),
    ("training", "optimizer", "sgd"), ("training", "epsilon", 0), ("training", "weight_decay", -1),
    ("training", "max_grad_norm", 0), ("training", "early_stopping", 3),
    ("training", "seed", 2**31), ("training", "seed", -1), ("training", "keep", "first"),
    ("training", "sample_prompts", "hello"), ("training", "keep_checkpoints", 0),
    ("output", "dir", None), ("output", "dir", ""), ("output", "dir", 5),
    ("output", "dir", "rows.jsonl"), ("output", "dir", "rows.jsonl/run"),
    ("output", "dir", "z" * 300), ("output", "directory", "x"),
]
BAD_DATA = [
    "", "\n", "x", "{", "[]", "5", "null", '"a"', "{}", "{}\n{}", '{"a": 1}', '{"prompt": "a"}',
    '{"completion": "a"}', '{"prompt": "a", "completion": ""}', '{"prompt": 1, "completion": "b"}',
    '{"prompt": "a", "completion": null}', '{"prompt": "a", "completion": ["b"]}',
    '{"prompt": "a", "completion": "\\ud800"}', '{"text": ""}', '{"text": 5}', '{"text": null}',
    '{"messages": null}', '{"messages": []}', '{"messages": {}}', '{"messages": ["a"]}',
    '{"messages": [{"role": "user", "content": "a"}]}', '{"messages": [{"role": "assistant"}]}',
    '{"messages": [{"role": "ai", "content": "a"}]}',
    '{"messages": [{"from": "who", "value": "a"}]}',
    '{"instruction": "a", "output": ""}', '{"instruction": "a", "output": 5}',
    '{"instruction": "a", "input": 5, "output": "b"}', '[{"prompt": "a", "completion": "b"}]',
    ROWS + "{", ROWS + "[1]", ROWS + '{"prompt": "a"}', ROWS + "NaN", ROWS + "{}", "[\n" + ROWS,
    "prompt,completion\na,b\n", "\x00", "{\"a\": \x00}", "[" * 10_000, "9" * 5000, "\ufeff",
]


def refused_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str,
) -> str:
    """The message of a refusal by the command line in this process."""
    monkeypatch.setattr(sys, "argv", ["lorafit", *arguments])
    code = cli._run()
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("error: ") == 1
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize("number", range(len(BAD_RECIPES)))
def test_a_malformed_recipe_is_one_message(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int,
) -> None:
    (folder / "r.yaml").write_text(BAD_RECIPES[number], encoding="utf-8")
    assert "r.yaml" in refused_here(monkeypatch, capsys, "train", "r.yaml")


@pytest.mark.parametrize(("section", "key", "value"), BAD_CHANGES)
def test_a_wrong_value_in_a_recipe_is_one_message_that_names_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    section: str, key: str, value: object,
) -> None:
    recipe = yaml.safe_load(RECIPE)
    recipe[section][key] = value
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    said = refused_here(monkeypatch, capsys, "train", "r.yaml")
    assert "r.yaml:" in said or key in said or str(value) in said
    assert not (folder / "out").exists()


@pytest.mark.parametrize("number", range(len(BAD_DATA)))
def test_malformed_rows_are_one_message_that_names_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int,
) -> None:
    (folder / "rows.jsonl").write_text(BAD_DATA[number], encoding="utf-8")
    assert "rows.jsonl" in refused_here(monkeypatch, capsys, "train", "r.yaml")
    assert not (folder / "out").exists()


@pytest.mark.parametrize("arguments", [
    ["merge", "nowhere"], ["merge", "."], ["merge", "rows.jsonl"], ["eval", "nowhere"],
    ["eval", "."], ["eval", "rows.jsonl"], ["export-adapter", "nowhere"], ["export-adapter", "."],
    ["generate", "nowhere", "-p", "x"], ["generate", ".", "-p", "x"],
    ["generate", "rows.jsonl", "-p", "x"], ["generate", "nowhere", "-p", "x", "--with", "all"],
    ["merge", "nowhere", "--dtype", "int4"], ["merge", "nowhere", "-o", "rows.jsonl"],
    ["train", "."], ["check", "rows.jsonl"], ["check", "r.yaml", "--set", "adapter"],
    ["init", "--data", "rows.jsonl", "--quantization", "int4", "-o", "new.yaml"],
    ["init", "--data", "nowhere/", "-o", "new.yaml"],
    ["init", "--data", "rows.jsonl", "--eval", "nowhere.jsonl", "-o", "new.yaml"],
    ["init", "--data", "rows.jsonl", "-o", "no/such/folder/new.yaml"],
    ["train", "r.yaml", "--resume"],
], ids=" ".join)
def test_a_wrong_argument_of_any_verb_is_one_message(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    before = everything_in(folder)
    refused_here(monkeypatch, capsys, *arguments)
    assert everything_in(folder) == before


in_one_folder = settings(max_examples=60, deadline=None,
                         suppress_health_check=[HealthCheck.function_scoped_fixture])


@in_one_folder
@given(st.randoms(use_true_random=False), st.text(min_size=1, max_size=8))
def test_a_recipe_with_noise_in_it_is_accepted_or_one_message(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    rng: random.Random, noise: str,
) -> None:
    """A few characters overwritten anywhere; `missing` data stops what is still valid."""
    at = rng.randrange(len(RECIPE))
    text = RECIPE[:at] + noise + RECIPE[at + rng.randrange(8):]
    (folder / "rows.jsonl").unlink(missing_ok=True)
    (folder / "r.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    refused_here(monkeypatch, capsys, "train", "r.yaml", "--set", "data.train=rows.jsonl")


@in_one_folder
@given(st.randoms(use_true_random=False), st.binary(min_size=1, max_size=6))
def test_rows_with_a_broken_line_among_them_are_one_message(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    rng: random.Random, noise: bytes,
) -> None:
    good = ROWS.encode()
    broken = json.dumps({"prompt": "a", "completion": "b"})[: rng.randrange(1, 30)].encode() + noise
    (folder / "rows.jsonl").write_bytes(good + broken + b"\n" + good)
    if b"}" in noise:
        return  # may have closed the object
    said = refused_here(monkeypatch, capsys, "train", "r.yaml")
    assert "rows.jsonl:3" in said or "rows.jsonl:4" in said or "rows.jsonl:5" in said
