"""Regret on the embedded base: real runs, in this process."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorafit.errors import UserError
from lorafit.recipe.loading import dump_recipe
from lorafit.run_dir import read_json, read_jsonl
from lorafit.study import pages, regret
from lorafit.study.folder import StudyDir, Trial
from lorafit.study.noise import Difference, Spread
from lorafit.study.outcome import Outcome, outcome_of
from lorafit.study.verdict import sentence

RULE = {"model_type": "llama", "hidden_size": 256}


class Here:
    """Trains in this process, which spares each run the start of another. most: runs until time is
    over."""

    def __init__(self, folder: StudyDir, train: Callable[..., Any], most: int = 1000) -> None:
        self.folder, self.train, self.left = folder, train, most
        self.is_out_of_time = False
        self.trained: list[str] = []

    def run(self, trials: Sequence[Trial]) -> dict[str, Outcome]:
        outcomes: dict[str, Outcome] = {}
        for trial in trials:
            if outcome_of(self.folder, trial) is None:
                if self.left == 0:
                    self.is_out_of_time = True
                    break
                self.left -= 1
                self.train(trial.recipe)
                self.trained.append(trial.name)
            outcome = outcome_of(self.folder, trial)
            assert outcome is not None
            outcomes[trial.name] = outcome
        return outcomes


@pytest.fixture
def asked(make_recipe: Callable[..., Any], tmp_path: Path) -> regret.Asked:
    recipe = make_recipe(data={"date": "2026-01-31"}, training={
        "steps": 3, "learning_rate": 2e-2, "eval_every": None, "checkpoint_every": None})
    folder = StudyDir(tmp_path / "study")
    return regret.Asked(folder, recipe, regret.arms_of(recipe, "recipe.yaml", [4], RULE), 2)


def comparable(found: regret.Regret) -> dict[str, Any]:
    """Without times and memory."""
    arms = [replace(arm, step_s=None, peak_memory_bytes=None) for arm in found.arms]
    return {"arms": arms, "runs": found.runs, "remarks": found.remarks,
            "sentence": found.sentence.rpartition(";")[0]}


def test_equal_runs_each_at_its_own_rate_and_none_twice(
        asked: regret.Asked, train: Callable[..., Any]) -> None:
    first = Here(asked.folder, train, most=5)
    partly = regret.run(asked, first, prune=True)
    assert not partly.is_complete
    assert partly.runs == 5
    assert pages.regret_page(partly, "x.svg")
    second = Here(asked.folder, train)
    found = regret.run(asked, second, prune=True)
    assert not set(first.trained) & set(second.trained)
    assert found.runs == len(first.trained) + len(second.trained)

    for seed in (0, 1):  # equal: the same rows in the same order, to the token
        runs = list(asked.folder.path.glob(f"runs/*-seed-{seed}"))
        assert len(runs) >= 3
        assert len({json.dumps([(line["step"], line["tokens"], line["supervised_tokens"])
                                for line in read_jsonl(run / "metrics.jsonl") if "loss" in line])
                    for run in runs}) == 1
        assert not any((run / "adapter").exists() for run in runs), "weights are not kept"
    assert found.remarks == []
    assert found.is_complete
    full, four = found.arms
    assert full.difference is None
    assert full.trained_parameters > four.trained_parameters > 0
    for arm in (full, four):
        losses = {each.learning_rate: each.loss for each in arm.tried}
        means = dict(arm.candidates)
        assert list(means) == sorted(losses, key=lambda rate: losses[rate])[:2]
        assert means[arm.learning_rate].mean == min(each.mean for each in means.values())
        assert arm.losses[0] == losses[arm.learning_rate]
        assert min(losses) < next(iter(means)) < max(losses)
        last = read_json(asked.folder.run(
            f"{arm.name.replace(' ', '-')}-lr-{arm.learning_rate:.2e}-seed-1").result)
        assert arm.losses[1] == last["progress"]["last_eval_loss"]
    assert four.difference.mean == pytest.approx(
        sum(four.losses[seed] - full.losses[seed] for seed in (0, 1)) / 2)



@pytest.mark.long
def test_an_interrupted_study_tells_what_an_uninterrupted_one_does(
        asked: regret.Asked, train: Callable[..., Any], tmp_path: Path) -> None:
    for most in (1, 4, 3, 1000):  # within a search, between two, and within the seeds
        found = regret.run(asked, Here(asked.folder, train, most), prune=True)
    whole = replace(asked, folder=StudyDir(tmp_path / "uninterrupted"))
    assert comparable(regret.run(whole, Here(whole.folder, train), prune=False)) == comparable(
        found)


def test_arms_start_a_factor_of_ten_apart(make_recipe: Callable[..., Any]) -> None:
    given = regret.arms_of(make_recipe(), "r", [4, 8], RULE)
    assert [arm.name for arm in given] == ["full", "rank 4", "rank 8"]
    assert [arm.centre for arm in given] == pytest.approx([1e-4, 1e-3, 1e-3])
    assert [arm.recipe.adapter.rank for arm in given[1:]] == [4, 8]
    assert {arm.recipe.adapter.alpha for arm in given[1:]} == {8}
    ruled = regret.arms_of(make_recipe(training={"learning_rate": "auto"}), "r", [4], RULE)
    assert ruled[1].centre == pytest.approx(10 * ruled[0].centre, rel=0.05)
    full = regret.arms_of(make_recipe(adapter={"method": "full", "rank": None, "alpha": None}),
                          "r", [4], RULE)
    assert [arm.centre for arm in full] == pytest.approx([1e-3, 1e-2])
    assert full[1].recipe.adapter.alpha == 32


def test_what_cannot_be_compared_is_refused(make_recipe: Callable[..., Any]) -> None:
    quantised = make_recipe(model={"quantization": "nf4"})
    with pytest.raises(UserError, match="quantization=none"):
        regret.arms_of(quantised, "r", [4], RULE)
    with pytest.raises(UserError, match="has no rank to compare at"):
        regret.arms_of(make_recipe(adapter={"method": "ia3", "rank": None, "alpha": None}),
                       "r", [4], RULE)
    with pytest.raises(UserError, match="rank_pattern"):
        regret.arms_of(make_recipe(adapter={"rank_pattern": {"q_proj": 8}}), "r", [4], RULE)


@pytest.mark.parametrize(("difference", "told"), [
    (Difference(0.01, -0.01, 0.03, 3), "Rank 4 is within noise of full fine-tuning, which would "
     "gain 0.0100 ± 0.0200 nats a token (3 seeds)"),
    (Difference(0.05, 0.03, 0.07, 3), "Full fine-tuning gains 0.0500 ± 0.0200 nats a token over "
     "rank 4 (3 seeds): 5.0% of what full fine-tuning gained over the base"),
    (Difference(-0.05, -0.07, -0.03, 3), "Rank 4 is better than full fine-tuning by 0.0500"),
    (Difference(0.1, -0.2, 0.4, 2), "2 seeds are too few to tell rank 4 from full fine-tuning"),
    (Difference(0.1, None, None, 1), "on one seed, which says nothing of noise"),
])
def test_the_sentence_says_no_more_than_the_interval(difference: Difference, told: str) -> None:
    full = regret.ArmResult("full", None, [], 1e-4, True, [], {}, Spread(1.0, 0.01, 3), step_s=2.0)
    rank = regret.ArmResult("rank 4", 4, [], 1e-3, True, [], {}, Spread(1.0, 0.01, 3), difference,
                            step_s=1.5)
    said = sentence([full, rank], 4, start_loss=2.0)
    assert told in said
    assert said.endswith("; the best learning rate of rank 4 is 0.001 (10× full's); a step of it "
                         "takes 0.75× the time of a full one here.")


@pytest.mark.parametrize(("arguments", "told"), [
    (["--ranks", "4,x"], "no list of ranks"), (["--ranks", "0"], "no list of ranks"),
    (["--set", "data.eval=null"], "holds none out"),
    (["--set", "model.quantization=nf4"], "compare on the unquantised base"),
])
def test_the_verb_refuses_before_any_run(make_recipe: Callable[..., Any], tmp_path: Path,
                                         arguments: list[str], told: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(make_recipe()), encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run([sys.executable, "-m", "lorafit", "regret", str(path), *arguments],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.long
def test_the_verb_from_recipe_to_page(make_recipe: Callable[..., Any], tmp_path: Path) -> None:
    path, directory = tmp_path / "recipe.yaml", tmp_path / "study"
    path.write_text(dump_recipe(make_recipe(training={"learning_rate": 2e-2})), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "lorafit", "regret", str(path), "--ranks", "2", "--seeds", "2",
         "--steps", "3", "--jobs", "2", "-o", str(directory)],
        capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found = read_json(directory / "regret.json")
    assert found["is_complete"]
    assert found["steps"] == 3
    assert found["sentence"] in done.stdout
    page = (directory / "regret.md").read_text()
    assert found["sentence"] in page
    assert "| rank 2 |" in page
    assert (directory / "regret.svg").read_text().count("<polyline") == 2
