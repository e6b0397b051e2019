"""Each remark where it applies, and not where it does not."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lorafit.plan.machine import this_machine
from lorafit.plan.plan import plan
from lorafit.recipe.schema import Recipe

RECIPES = Path(__file__).parents[2] / "recipes"


def keys(tmp_path: Path, **changes: Any) -> dict[str, bool]:
    """Of the remarks on the quickstart recipe with changes: whether each is a warning."""
    values = yaml.safe_load((RECIPES / "quickstart.yaml").read_text())
    values["data"] |= {"train": str(RECIPES / "quickstart/train.jsonl"), "eval": None}
    values["training"]["learning_rate"] = 2e-3  # as lorafit reads it, and PyYAML does not
    for section, words in changes.items():
        values[section] = values.get(section, {}) | words
    found = plan(Recipe.model_validate(values), this_machine())
    assert all(remark.evidence for remark in found.remarks)
    return {remark.key: remark.is_warning for remark in found.remarks}


AUTO = {"learning_rate": "auto"}


@pytest.mark.parametrize(("changes", "key", "is_warning"), [
    ({"adapter": {"target_modules": ["q_proj", "v_proj"]}}, "adapter.target_modules", True),
    ({"adapter": {"rank": 1, "target_modules": ["k_proj"]}}, "adapter.rank", True),
    ({"training": {"batch_size": 64}}, "training.batch_size", False),
    ({"training": {"batch_size": 256}}, "training.batch_size", True),
    ({"training": {"learning_rate": 1e-5}}, "training.learning_rate", True),
    ({"training": {"learning_rate": 0.1}}, "training.learning_rate", True),
    ({"adapter": {"method": "full", "rank": None, "alpha": None, "target_modules": None}},
     "training.learning_rate", True),
    ({"training": AUTO | {"steps": 40}}, "training.learning_rate", False),
    ({"adapter": {"alpha": 128}, "training": AUTO}, "adapter.alpha", False),
    ({"adapter": {"rank_pattern": {"q_proj": 4}}}, "adapter.rank_pattern", True),
    ({"adapter": {"dropout": 0.05}, "training": {"steps": None, "epochs": 1}},
     "adapter.dropout", False),
    ({"adapter": {"dora": True}}, "adapter.dora", False),
], ids=str)
def test_remarked_where_it_applies(changes, key, is_warning, tmp_path):
    assert keys(tmp_path, **changes)[key] is is_warning


def test_nothing_is_remarked_on_a_recipe_as_the_literature_has_it(tmp_path):
    found = keys(tmp_path, training=AUTO | {"steps": None, "epochs": 3, "batch_size": 32})
    assert found == {}
