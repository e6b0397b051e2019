"""A recipe file and overrides to a validated recipe, or to every problem at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lorafit.errors import UserError
from lorafit.recipe.loading import dump_recipe, load_recipe, replace
from lorafit.recipe.schema import Recipe, Source

MINIMAL = "model: {base: tiny}\ndata: {train: rows.jsonl}\noutput: {dir: run}\n"

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a recipe and makes its folder the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        Path("r.yaml").write_text(text, encoding="utf-8")
        return Path("r.yaml")

    return write


def problems(path: Path, *overrides: str) -> list[str]:
    """What is wrong with a recipe, one text a problem."""
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    assert caught.value.exit_code == 2
    return [str(problem) for problem in caught.value.problems]


# ---- what is accepted


def test_model_data_and_output_suffice(write: Write) -> None:
    recipe = load_recipe(write(MINIMAL))
    assert recipe.model.base == "tiny"
    assert recipe.adapter.target_modules == "all-linear"
    assert recipe.training.learning_rate == "auto"


def test_a_number_in_scientific_notation_is_a_number(write: Write) -> None:
    recipe = load_recipe(write(MINIMAL + "training: {learning_rate: 1e-5, epsilon: 1E-8}\n"))
    assert recipe.training.learning_rate == 1e-5
    assert recipe.training.epsilon == 1e-8


def test_a_recipe_is_frozen(write: Write) -> None:
    recipe = load_recipe(write(MINIMAL))
    with pytest.raises(ValidationError):
        recipe.adapter.rank = 8  # type: ignore[misc]


def test_a_byte_order_mark_is_ignored(write: Write) -> None:
    assert load_recipe(write("\ufeff" + MINIMAL)).model.base == "tiny"


# ---- what is refused


def test_an_unknown_key_names_the_nearest_and_its_line(write: Write) -> None:
    path = write(MINIMAL + "adapter:\n  rank: 8\n  target_moduls: all-linear\n")
    assert problems(path) == [
        "r.yaml:6: unknown key adapter.target_moduls\n    did you mean adapter.target_modules?"]


def test_an_unknown_section_names_the_nearest(write: Write) -> None:
    assert problems(write(MINIMAL + "trainin: {epochs: 1}\n")) == [
        "r.yaml:4: unknown key trainin\n    did you mean training?"]


def test_a_key_of_another_section_is_sent_there(write: Write) -> None:
    [problem] = problems(write(MINIMAL + "adapter: {learning_rate: 1e-4}\n"))
    assert "did you mean training.learning_rate?" in problem


def test_a_key_at_the_top_is_sent_to_its_section(write: Write) -> None:
    [problem] = problems(write(MINIMAL + "rank: 8\n"))
    assert problem.startswith("r.yaml:4: unknown key rank")
    assert "did you mean adapter.rank?" in problem


def test_a_key_like_no_other_lists_what_there_is(write: Write) -> None:
    [problem] = problems(write(MINIMAL.replace("dir: run", "dir: run, zzz: 1")))
    assert problem == "r.yaml:3: unknown key output.zzz\n    keys here: dir, trackers, project"


def test_an_unknown_key_inside_a_source_or_the_columns_is_named(write: Write) -> None:
    text = ("model: {base: tiny}\noutput: {dir: run}\ndata:\n  train:\n    path: rows.jsonl\n"
            "    splt: train\n  columns:\n    promt: question\n")
    found = problems(write(text))
    assert any(p.startswith("r.yaml:6: unknown key data.train.splt") and "data.train.split?" in p
               for p in found)
    assert any(p.startswith("r.yaml:8: unknown key data.columns.promt")
               and "data.columns.prompt?" in p for p in found)
    assert len(found) == 2


def test_all_problems_are_reported_at_once_each_with_its_line(write: Write) -> None:
    found = problems(write(
        "model:\n  bas: tiny\ndata:\n  train: a.jsonl\n  eval_fraction: 2\nadapter:\n"
        "  rank: eight\n  dropout: -1\noutput:\n  dir: run\ntraining:\n  schedule: cosin\n"))
    starts = {problem.partition("\n")[0] for problem in found}
    assert starts == {
        "r.yaml:2: unknown key model.bas",
        "r.yaml:1: model.base is missing",
        "r.yaml:5: data.eval_fraction: must be less than 1, not 2",
        "r.yaml:7: adapter.rank: must be a whole number, not 'eight'",
        "r.yaml:8: adapter.dropout: must be greater than or equal to 0, not -1",
        "r.yaml:12: training.schedule: must be 'constant', 'linear' or 'cosine', not 'cosin'",
    }
    assert any("did you mean cosine?" in problem for problem in found)


def test_missing_sections_are_each_named_with_what_they_are(write: Write) -> None:
    found = problems(write("adapter: {rank: 8}\n"))
    assert [problem.partition("\n")[0] for problem in found] == [
        "r.yaml: model is missing", "r.yaml: data is missing", "r.yaml: output is missing"]


@pytest.mark.parametrize(("line", "what", "remedy"), [
    ("adapter: {rank: '8'}", "adapter.rank: must be a whole number, not '8'", "without quotes"),
    ("adapter: {rank: 8.5}", "adapter.rank: must be a whole number, not 8.5", ""),
    ("adapter: {rank: true}", "adapter.rank: must be a whole number, not True", ""),
    ("adapter: {rank: 0}", "adapter.rank: must be greater than 0, not 0", ""),
    ("adapter: {dora: 1}", "adapter.dora: must be a boolean, not 1", ""),
    ("adapter: {alpha: .nan}", "adapter.alpha: must be a finite number, not nan", ""),
    ("adapter: {alpha: .inf}", "adapter.alpha: must be a finite number, not inf", ""),
    ("adapter: {init: pizza}", "adapter.init: unknown init 'pizza'", ""),
    ("adapter: {layers: 'top:3'}", "adapter.layers: 'top:3' is neither", ""),
    ("adapter: {layers: []}", "adapter.layers: an empty list adapts nothing", ""),
    ("adapter: {target_modules: '['}", "adapter.target_modules: '[' is no regular expression", ""),
    ("adapter: {target_modules: []}", "adapter.target_modules: is empty", ""),
    ("adapter: {rank_pattern: {'[': 2}}", "adapter.rank_pattern: '[' is no regular", ""),
    ("adapter: {rank_pattern: {q: 0}}", "adapter.rank_pattern.q: must be greater than 0", ""),
    ("training: {betas: [0.9]}", "training.betas: ", ""),
    ("training: {warmup: 1.5}", "training.warmup: must be a whole number of steps", ""),
    ("training: {seed: -1}", "training.seed: must be greater than or equal to 0", ""),
    ("training: {sample_prompts: [1]}", "training.sample_prompts.0: must be a string, not 1",
     "put the value in quotes"),
    ("training: {learning_rate: -1}", "training.learning_rate: must be greater than 0, ", ""),
    ("adapter: null", "adapter: must be a mapping of keys", ""),
    ("adapter: 5", "adapter: must be a mapping of keys", ""),
])
def test_a_wrong_value_is_named_with_key_line_and_what_was_given(
    write: Write, line: str, what: str, remedy: str,
) -> None:
    [problem] = problems(write(MINIMAL + line + "\n"))
    assert problem.startswith(f"r.yaml:4: {what}")
    assert remedy in problem


@pytest.mark.parametrize(("line", "what"), [
    ("training: {learning_rate: fast}", "training.learning_rate: must be a number, or 'auto', "
     "not 'fast'"),
    ("training: {micro_batch_size: 0.5}", "training.micro_batch_size: must be a whole number, or "
     "'auto', not 0.5"),
    ("adapter: {target_modules: 5}", "adapter.target_modules: must be a string, or a list, not 5"),
])
def test_a_union_says_once_what_it_would_accept(write: Write, line: str, what: str) -> None:
    found = problems(write(MINIMAL + line + "\n"))
    assert [problem.partition("\n")[0] for problem in found] == [f"r.yaml:4: {what}"]
    assert not any(word in found[0] for word in ("union", "function-", "constrained", "Input"))


def test_a_wrong_kind_of_source_is_one_readable_problem(write: Write) -> None:
    head = "model: {base: tiny}\noutput: {dir: r}\ndata:\n  train:\n"
    [problem] = problems(write("model: {base: tiny}\noutput: {dir: r}\ndata: {train: 5}\n"))
    assert problem.startswith("r.yaml:3: data.train: must be a string, not 5")
    [problem] = problems(write(head + "  - a.jsonl\n  - 5\n"))
    assert problem.startswith("r.yaml:6: data.train.1: must be a string, not 5")
    found = problems(write(head + "  - a.jsonl\n  - {path: b, wieght: 2}\n"))
    assert found == ["r.yaml:6: unknown key data.train.1.wieght\n"
                     "    did you mean data.train.1.weight?"]
    [problem] = problems(write(head + "  - {path: b, weight: 0}\n"))
    assert problem.startswith("r.yaml:5: data.train.0.weight: must be greater than 0, not 0")
    [problem] = problems(write("model: {base: tiny}\noutput: {dir: r}\ndata: {train: []}\n"))
    assert "data.train: is empty" in problem


def test_sources_may_be_a_list_and_relative_ones_are_found_beside_the_recipe(
    write: Write, tmp_path: Path,
) -> None:
    folder = tmp_path / "elsewhere"
    (folder / "parts").mkdir(parents=True)
    (folder / "a.jsonl").touch()
    (folder / "parts" / "b.jsonl").touch()
    path = folder / "r.yaml"
    path.write_text("model: {base: tiny}\noutput: {dir: r}\ndata:\n  train:\n  - a.jsonl\n"
                    "  - {path: parts/*.jsonl, weight: 0.5}\n  - none/*.jsonl\n"
                    "  chat_template: '{{ messages }}'\n", encoding="utf-8")
    data = load_recipe(path).data
    assert isinstance(data.train, list)
    assert data.train[0] == str(folder / "a.jsonl")
    assert data.train[1] == Source(path=str(folder / "parts" / "*.jsonl"), weight=0.5)
    assert data.train[2] == "none/*.jsonl"
    assert data.chat_template == "{{ messages }}"


@pytest.mark.parametrize(("lines", "words"), [
    ("data: {train: a.jsonl, streaming: true}", "needs training.steps"),
    ("data: {train: a, streaming: true, eval_fraction: 0.1}\ntraining: {steps: 1}",
     "cannot be combined with streaming"),
    ("data: {train: a, streaming: true, max_rows: 5}\ntraining: {steps: 1}",
     "cannot be combined with streaming"),
])
def test_streaming_says_what_it_cannot_do(write: Write, lines: str, words: str) -> None:
    [problem] = problems(write(f"model: {{base: tiny}}\noutput: {{dir: r}}\n{lines}\n"))
    assert words in problem


def test_half_a_character_is_refused_with_its_line(write: Write) -> None:
    """No tokenizer and no file takes it."""
    found = problems(write('model: {base: tiny}\noutput: {dir: r}\ndata:\n  train: a\n'
                           '  system: "cut \\ud83d"\n'))
    assert len(found) == 1
    assert ":5: half of a character" in found[0]


@pytest.mark.parametrize("held_out", ["{path: b, weight: 2}", "[c, {path: b, weight: 0.5}]"])
def test_a_weight_of_held_out_rows_is_refused(write: Write, held_out: str) -> None:
    [problem] = problems(write("model: {base: tiny}\noutput: {dir: r}\n"
                               f"data: {{train: a, eval: {held_out}}}\n"))
    assert "a weight has no effect in data.eval" in problem


@pytest.mark.parametrize(("lines", "words"), [
    ("training: {epochs: 1, steps: 2}", "epochs and steps exclude each other"),
    ("training: {batch_size: 4, micro_batch_size: 8}", "micro_batch_size 8 is larger than"),
    ("training: {learning_rate: 1e-4, min_learning_rate: 1e-3}", "larger than learning_rate"),
    ("training: {early_stopping: 2}", "needs held-out rows"),
    ("adapter: {rank_per_expert: true, experts: none}", "with experts: none there is none"),
    ("adapter: {dora: true, init: pissa}", "cannot be converted back"),
    ("adapter: {bias: all, init: olora}", "not supported with init olora"),
    ("model: {base: tiny, quantization: nf4}\nadapter: {init: pissa}", "which a base in nf4"),
    ("model: {base: tiny, quantization: int8}\nadapter: {bias: all}", "a base in int8"),
    ("data: {train: a.jsonl, eval: b.jsonl, eval_fraction: 0.1}", "exclude each other"),
])
def test_a_combination_that_cannot_work_is_refused(write: Write, lines: str, words: str) -> None:
    sections = {line.partition(":")[0] for line in lines.splitlines()}
    rest = [line for line in MINIMAL.splitlines() if line.partition(":")[0] not in sections]
    [problem] = problems(write("\n".join([lines, *rest]) + "\n"))
    assert words in problem
    assert problem.startswith("r.yaml")


@pytest.mark.parametrize(("key", "value"), [
    ("model.base", '""'), ("model.base", f"{'x' * 300}"), ("data.train", f"{'x' * 300}.jsonl"),
    ("data.train", '""'), ("data.eval", '"a\\0b"'), ("output.dir", '"a\\0b"'),
    ("output.dir", '" "'), ("output.dir", "x/" * 3000), ("data.chat_template", f"{'ü' * 130}"),
    ("data.train", '{path: "a\\0b"}'),
])
def test_a_name_that_no_file_can_have_is_refused(write: Write, key: str, value: str) -> None:
    [problem] = problems(write(MINIMAL), f"{key}={value}")
    assert problem.startswith(f"--set {key}={value}"[:400])  # longer ones are cut in the middle
    assert f": {key}" in problem


@pytest.mark.parametrize(("text", "what"), [
    ("", "r.yaml: the recipe is empty"),
    ("# nothing\n", "r.yaml: the recipe is empty"),
    ("- a\n- b\n", "r.yaml:1: a recipe is a mapping of sections"),
    ("just words\n", "r.yaml:1: a recipe is a mapping of sections"),
    ("model: {base: tiny}\nmodel: {base: x}\n", "r.yaml:2: model is written twice"),
])
def test_what_is_no_recipe_is_refused(write: Write, text: str, what: str) -> None:
    [problem] = problems(write(text))
    assert problem.startswith(what)


def test_a_recipe_that_is_not_utf8_is_refused(write: Write) -> None:
    path = write("")
    path.write_bytes("model: {base: caf\xe9}\n".encode("latin-1"))
    [problem] = problems(path)
    assert problem.startswith("r.yaml: not UTF-8 text (byte 17)")


def test_a_missing_recipe_a_directory_and_a_huge_file_are_refused(
    write: Write, tmp_path: Path,
) -> None:
    assert problems(Path("nowhere.yaml"))[0].startswith("nowhere.yaml: no such recipe")
    assert "cannot be read" in problems(tmp_path)[0]
    assert "too large" in problems(write("#" * 1_000_001))[0]
    assert problems(Path("x" * 300 + ".yaml"))[0].endswith("`lorafit init` writes a starter")


# ---- overrides


def test_an_override_wins_over_the_file_and_the_last_one_over_the_first(write: Write) -> None:
    path = write(MINIMAL + "adapter: {rank: 4, alpha: 8}\n")
    recipe = load_recipe(path, ["adapter.rank=8", "adapter.rank=32", "training.steps=7",
                                "adapter.rank_pattern.q_proj=2", "training.learning_rate=1e-3"])
    assert (recipe.adapter.rank, recipe.adapter.alpha) == (32, 8)
    assert recipe.training.steps == 7
    assert recipe.training.learning_rate == 1e-3
    assert recipe.adapter.rank_pattern == {"q_proj": 2}


def test_the_value_of_an_override_is_yaml_and_may_hold_equal_signs(write: Write) -> None:
    recipe = load_recipe(write(MINIMAL), [
        "adapter.target_modules=[q_proj, v_proj]", "data.system=a=b", "training.steps=",
        "adapter.dora=true", 'model.revision="1e5"'])
    assert recipe.adapter.target_modules == ["q_proj", "v_proj"]
    assert recipe.data.system == "a=b"
    assert recipe.training.steps is None
    assert recipe.adapter.dora is True
    assert recipe.model.revision == "1e5"


def test_an_override_can_supply_what_the_file_lacks_or_mend_what_is_wrong(write: Write) -> None:
    path = write("model: {base: tiny}\ndata: {train: a.jsonl}\nadapter: {rank: x}\n")
    recipe = load_recipe(path, ["output.dir=run", "adapter.rank=8"])
    assert (recipe.output.dir, recipe.adapter.rank) == ("run", 8)


@pytest.mark.parametrize(("override", "what"), [
    ("adapter.rank", "--set adapter.rank: not of the form section.key=value"),
    ("=8", "--set =8: not of the form"),
    ("adapter..rank=8", "--set adapter..rank=8: not of the form"),
    ("model.base.x=8", "--set model.base.x=8: base is a value, not a section"),
    ("adapter.rnk=8", "--set adapter.rnk=8: unknown key adapter.rnk\n    did you mean "),
    ("adapter.rank=x", "--set adapter.rank=x: adapter.rank: must be a whole number"),
    ("adapter.rank=[", "--set adapter.rank=[:1: not valid YAML"),
    ("adapter.rank=!!int 8", "--set adapter.rank=!!int 8:1: the tag"),
    ("rank=8", "--set rank=8: unknown key rank\n    did you mean adapter.rank?"),
])
def test_a_wrong_override_is_named_as_it_was_typed(write: Write, override: str, what: str) -> None:
    [problem] = problems(write(MINIMAL), override)
    assert problem.startswith(what)


def test_a_problem_in_an_override_is_not_blamed_on_the_file(write: Write) -> None:
    path = write(MINIMAL + "adapter:\n  rank_pattern: {q_proj: 2}\n")
    override = "adapter.rank_pattern={q_proj: 0}"
    [problem] = problems(path, override)
    assert problem.startswith(f"--set {override}: ")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet="abdeglmnoprstu.=[]{}:'\"!&* 0123456789-\\", max_size=40))
def test_an_arbitrary_override_raises_nothing_but_a_user_error(write: Write, text: str) -> None:
    path = write(MINIMAL)
    try:
        load_recipe(path, [text])
    except UserError as error:
        assert error.problems  # noqa: PT017


# ---- paths


def test_a_path_beside_the_recipe_is_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "recipes"
    (folder / "base").mkdir(parents=True)
    for name in ("rows.jsonl", "held.jsonl", "chat.jinja"):
        (folder / name).write_text("x")
    (folder / "r.yaml").write_text(
        "model: {base: base}\ndata: {train: rows.jsonl, eval: {path: held.jsonl}, "
        "chat_template: chat.jinja}\noutput: {dir: run}\n")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(Path("recipes/r.yaml"))
    assert recipe.model.base == "recipes/base"
    assert recipe.data.train == "recipes/rows.jsonl"
    assert recipe.data.eval.path == "recipes/held.jsonl"  # type: ignore[union-attr]
    assert recipe.data.chat_template == "recipes/chat.jinja"
    assert recipe.output.dir == "run"


def test_the_working_directory_comes_before_the_recipes_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "r.yaml").write_text(MINIMAL)
    (tmp_path / "recipes" / "rows.jsonl").write_text("beside")
    (tmp_path / "rows.jsonl").write_text("here")
    monkeypatch.chdir(tmp_path)
    assert load_recipe(Path("recipes/r.yaml")).data.train == "rows.jsonl"


def test_a_tilde_means_the_home(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    recipe = load_recipe(write(MINIMAL), ["data.train=~/rows.jsonl", "output.dir=~/run"])
    assert recipe.data.train == "/home/somebody/rows.jsonl"
    assert recipe.output.dir == "/home/somebody/run"


def test_tiny_is_the_embedded_model_even_beside_a_directory_of_that_name(write: Write) -> None:
    path = write(MINIMAL)
    Path("tiny").mkdir()
    assert load_recipe(path).model.base == "tiny"


# ---- dumping

words = st.text(max_size=12)
names = st.text(st.characters(exclude_characters="\0~", exclude_categories=["Cs"]), min_size=1,
                max_size=20).filter(lambda name: bool(name.strip()))
awkward = st.sampled_from(["1e5", "12e3", "08", "tRUE", "null", "1:30", "a: b", "#x", "'", '"',
                           "- x", "2024-01-01", ".5", "a\x85b", "\u2028x", "a\nb", " x ", "=",
                           "<<"])
whole = st.integers(1, 10**6)
positive = st.floats(1e-12, 1e6)
fraction = st.floats(0, 0.99)
source = names | awkward | st.fixed_dictionaries(
    {"path": names | awkward}, optional={"split": words, "subset": words, "revision": awkward})
sections = {
    "model": st.fixed_dictionaries({"base": names | awkward}, optional={
        "revision": awkward | words, "dtype": st.sampled_from(["auto", "float32", "bfloat16"]),
        "quantization": st.sampled_from(["none", "nf4", "int8"]),
        "trust_remote_code": st.booleans(),
    }),
    "adapter": st.fixed_dictionaries({}, optional={
        "rank": whole, "alpha": positive | whole, "dropout": fraction,
        "target_modules": st.lists(words, min_size=1) | st.just("all-linear"),
        "layers": st.lists(st.integers(0, 99), min_size=1) | st.just("last:3"),
        "rank_pattern": st.dictionaries(st.sampled_from(["q_proj", "08", "1e5", "a.*b"]), whole),
        "alpha_pattern": st.dictionaries(st.sampled_from(["q_proj", "null", "on"]), positive),
        "modules_to_save": st.lists(words | awkward), "rslora": st.booleans(),
        "init": st.sampled_from(["default", "gaussian", "pissa_niter_4"]),
    }),
    "data": st.fixed_dictionaries({"train": source | st.lists(source, min_size=1)}, optional={
        "eval": source, "system": words | awkward, "max_length_tokens": st.integers(2, 10**6),
        "columns": st.fixed_dictionaries({}, optional={"prompt": words | awkward}),
        "on_long": st.sampled_from(["error", "drop", "truncate", "split"]),
        "eval_fraction": fraction, "chat_template": awkward | st.just("{% if a %}\n  {{ b }}"),
        "checks": st.fixed_dictionaries({}, optional={
            "duplicates": st.sampled_from(["drop", "allow"]), "unusable": st.just("drop")}),
    }),
    "training": st.fixed_dictionaries({}, optional={
        "epochs": positive, "batch_size": whole, "learning_rate": positive | st.just("auto"),
        "betas": st.lists(fraction, min_size=2, max_size=2), "weight_decay": st.floats(0, 1),
        "sample_prompts": st.lists(words | awkward), "seed": st.integers(0, 2**31 - 1),
        "max_grad_norm": st.none() | positive, "steps": whole, "warmup": fraction | whole,
    }),
    "output": st.fixed_dictionaries({"dir": names | awkward}),
}


def without_conflicts(values: dict[str, Any]) -> dict[str, Any]:
    """Leaves out one of two keys that exclude each other."""
    training, data, adapter = values["training"], values["data"], values["adapter"]
    if "steps" in training:
        training.pop("epochs", None)
    if "eval" in data:
        data.pop("eval_fraction", None)
    if values["model"].get("quantization", "none") != "none":
        adapter.pop("init", None)
    if training.get("warmup", 0) >= 1:
        training["warmup"] = int(training["warmup"])
    return values


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.fixed_dictionaries(sections).map(without_conflicts))
def test_a_dumped_recipe_loads_equal(write: Write, values: dict[str, Any]) -> None:
    recipe = Recipe.model_validate(values)
    assert load_recipe(write(dump_recipe(recipe))) == recipe


def test_a_dump_spells_out_every_key(write: Write) -> None:
    recipe = load_recipe(write(MINIMAL))
    dumped = load_recipe(write(dump_recipe(recipe)))
    for name, section in dumped:
        assert section.model_fields_set == set(type(section).model_fields), name


def test_replace_changes_some_keys_and_validates_again(write: Write) -> None:
    recipe = load_recipe(write(MINIMAL))
    assert replace(recipe, adapter={"rank": 3}).adapter.rank == 3
    assert replace(recipe, adapter={"rank": 3}).model == recipe.model
    with pytest.raises(ValidationError):
        replace(recipe, adapter={"rank": 0})
