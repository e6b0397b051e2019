"""The recipe that `lorafit init` writes is a recipe, whatever it is given."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorafit.recipe.loading import load_recipe
from lorafit.recipe.starter import starter_recipe

names = st.text(st.characters(exclude_characters="\0~", exclude_categories=["Cs"]), min_size=1,
                max_size=30).filter(lambda name: bool(name.strip())) | st.sampled_from(
    ["a: b", "#x", "1e5", "{a, b}", "null", "a\nb", "my data.jsonl", "'", '"', "*x", "08",
     "a\x85b"])


def test_the_starter_loads_and_is_what_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(starter_recipe("tiny", "rows.jsonl", "held.jsonl", {"prompt": "question"},
                                   "nf4", "runs/rows"))
    recipe = load_recipe(path)
    assert recipe.model.base == "tiny"
    assert recipe.model.quantization == "nf4"
    assert (recipe.data.train, recipe.data.eval) == ("rows.jsonl", "held.jsonl")
    assert recipe.data.columns.prompt == "question"
    assert recipe.output.dir == "runs/rows"


def test_without_a_held_out_file_a_part_of_the_rows_is_held_out(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(starter_recipe("tiny", "rows.jsonl", None, {}, "none", "runs/rows"))
    recipe = load_recipe(path)
    assert recipe.data.eval is None
    assert recipe.data.eval_fraction == 0.05


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model=names, data=names, evaluation=st.none() | names,
       columns=st.dictionaries(st.sampled_from(["prompt", "completion", "system"]), names))
def test_any_names_survive_being_written_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, data: str,
    evaluation: str | None, columns: dict[str, str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("r.yaml")
    path.write_text(starter_recipe(model, data, evaluation, columns, "none", data),
                    encoding="utf-8")
    recipe = load_recipe(path)
    assert recipe.model.base == model
    assert (recipe.data.train, recipe.data.eval, recipe.output.dir) == (data, evaluation, data)
    assert {key: name for key, name in recipe.data.columns if name is not None} == columns
