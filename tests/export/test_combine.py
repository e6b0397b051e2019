"""Combined adapters: plain peft computes the sum that was asked for, and losses are measured."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils import merge_utils

from lorafit.export.delta.combine import PRUNED, CombineResult, combination, combine
from lorafit.model.base import TINY
from lorafit.model.trained import open_adapter
from lorafit.run_dir import RunDir

RunOf = Callable[[str], Path]


def combined(runs: Sequence[Path], output: Path, how: str, *, weights: list[float] | None = None,
             density: float | None = None, rank: int | None = None,
             seed: int = 0) -> CombineResult:
    wanted = combination(how, weights, density, rank, seed, len(runs))
    return combine([open_adapter(run) for run in runs], output, wanted)


def weighted_sum(plain: Any, base: str | Path, runs: Sequence[Path],
                 weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """By hand, from the dense ΔW of each adapter; a layer that one lacks is zero there."""
    total: dict[str, torch.Tensor] = {}
    for run, weight in zip(runs, weights, strict=True):
        for name, delta in plain.deltas(base, run / "adapter").items():
            total[name] = total.get(name, torch.zeros_like(delta)) + weight * delta
    return total


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("how", ["linear", "cat"])
@pytest.mark.parametrize("names", [
    ("plain", "other"), ("plain", "rslora"), ("plain", "rslora", "layers"), ("patterns", "pissa"),
], ids=" ".join)
def test_linear_and_cat_are_the_weighted_sum(run_of: RunOf, plain: Any, tmp_path: Path,
                                             how: str, names: tuple[str, ...]) -> None:
    runs = [run_of(name) for name in names]
    weights = [0.7, -0.4, 0.5][:len(names)]
    result = combined(runs, tmp_path / "sum", how, weights=weights)
    expected = weighted_sum(plain, TINY, runs, weights)
    assert largest_difference(plain.deltas(TINY, tmp_path / "sum"), expected) < 1e-5
    assert all(layer.energy_kept == pytest.approx(1) for layer in result.layers)


def test_svd_is_the_nearest_of_its_rank_as_in_peft(run_of: RunOf, plain: Any,
                                                   tmp_path: Path) -> None:
    """Against peft's own combination, which decomposes the dense matrix."""
    runs = [run_of("plain"), run_of("other")]
    combined(runs, tmp_path / "near", "svd", weights=[0.5, 0.5])
    model = plain.model(TINY, runs[0] / "adapter")
    model.load_adapter(str(runs[1] / "adapter"), "second")
    model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "both", combination_type="svd")
    found = plain.layers(TINY, tmp_path / "near")
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and "both" in module.lora_A:
            mine = found[name.removeprefix("base_model.model.")]
            assert mine.r["default"] == 4
            torch.testing.assert_close(mine.get_delta_weight("default"),
                                       module.get_delta_weight("both"), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("how", ["ties", "magnitude_prune"])
def test_what_prunes_works_on_the_whole_update(run_of: RunOf, plain: Any, tmp_path: Path,
                                               how: str) -> None:
    runs = [run_of("plain"), run_of("rslora")]
    result = combined(runs, tmp_path / "made", how, weights=[0.6, 0.8], density=0.3, rank=6)
    dense = [plain.deltas(TINY, run / "adapter") for run in runs]
    made = plain.deltas(TINY, tmp_path / "made")
    for layer in result.layers:
        whole = getattr(merge_utils, how)([deltas[layer.name] for deltas in dense],
                                          torch.tensor([0.6, 0.8]), 0.3)
        best = torch.linalg.svdvals(whole.double()).square()
        missed = float((whole - made[layer.name]).double().square().sum())
        assert layer.rank == 6
        assert missed == pytest.approx(float(best[6:].sum()), rel=1e-2)
        assert layer.energy_kept == pytest.approx(1 - missed / float(best.sum()), abs=1e-4)


def test_what_is_dropped_at_random_follows_from_the_seed(run_of: RunOf, tmp_path: Path) -> None:
    runs = [run_of("plain"), run_of("other")]
    for number, (name, seed) in enumerate((("one", 3), ("same", 3), ("else", 4))):
        torch.manual_seed(number)  # of which nothing depends
        combined(runs, tmp_path / name, "dare_linear", density=0.5, seed=seed)
    one, same, another = ((tmp_path / name / "adapter_model.safetensors").read_bytes()
                          for name in ("one", "same", "else"))
    assert one == same
    assert one != another


def test_every_way_makes_an_adapter_that_plain_peft_loads(run_of: RunOf, plain: Any,
                                                          tmp_path: Path) -> None:
    base = plain.logits(TINY)
    for how in PRUNED:
        combined([run_of("plain"), run_of("layers")], tmp_path / how, how, rank=3)
        assert float((plain.logits(TINY, tmp_path / how) - base).abs().max()) > 1e-3
        assert {layer.r["default"] for layer in plain.layers(TINY, tmp_path / how).values()} == {3}


def test_fused_experts_are_combined_one_by_one(
    make_recipe: Any, train: Any, shrunken: Any, plain: Any, tmp_path: Path,
) -> None:
    base = shrunken("mixtral")
    runs = []
    for name, rank in (("one", 2), ("two", 3)):
        recipe = make_recipe(name, model={"base": str(base)}, adapter={"rank": rank},
                             training={"learning_rate": 1e-2, "seed": rank})
        train(recipe)
        runs.append(Path(recipe.output.dir))
    combined(runs, tmp_path / "sum", "linear", weights=[1, 2])
    expected = weighted_sum(plain, base, runs, [1, 2])
    assert largest_difference(plain.deltas(base, tmp_path / "sum"), expected) < 1e-5
    combined(runs, tmp_path / "ties", "ties")
    assert plain.deltas(base, tmp_path / "ties").keys() == expected.keys()


def test_each_model_is_measured_on_the_rows_of_each_run(run_of: RunOf, tmp_path: Path) -> None:
    runs = [run_of("plain"), run_of("other")]
    result = combined(runs, tmp_path / "sum", "linear")
    assert result.models == ["base", *map(str, runs), "combination"]
    assert len(result.rows) == 1, "both runs hold out the same rows, which are measured once"
    base, one, other, together = result.losses[0]
    for run, loss in zip(runs, (one, other), strict=True):
        progress = json.loads(RunDir(run).result.read_text())["progress"]
        assert loss == pytest.approx(progress["last_eval_loss"], abs=1e-4)
        assert base == pytest.approx(progress["first_eval_loss"], abs=1e-4)
    assert together not in (base, one, other)


def test_the_command_combines_and_shows_a_table(run_of: RunOf, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lorafit", "combine", str(run_of("plain")),
         str(run_of("other") / "adapter"), "--how", "ties", "--weights", "0.5,0.5", "--density",
         "0.5", "-o", str(tmp_path / "made")],
        capture_output=True, text=True, timeout=240, env=os.environ.copy())
    assert done.returncode == 0, done.stderr
    assert "combination" in done.stdout
    assert "ties with weights 0.5, 0.5, density 0.5" in done.stdout
    assert (tmp_path / "made" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["{plain}"], "one adapter has nothing to be combined with"),
    (["{plain}", "{other}", "--how", "tyes"], "did you mean ties?"),
    (["{plain}", "{other}", "--weights", "1"], "1 weights for 2 adapters"),
    (["{plain}", "{other}", "--weights", "1,x"], "'1,x' is no list of numbers"),
    (["{plain}", "{other}", "--density", "0.5"], "linear drops no entries"),
    (["{plain}", "{other}", "--how", "ties", "--density", "0"], "0 is no share of entries"),
    (["{plain}", "{other}", "--how", "cat", "--rank", "4"], "cat keeps every rank"),
    (["{plain}", "{dora}"], "DoRA cannot be combined"),
    (["{plain}", "{saved}"], "holds more than A and B"),
    (["{plain}", "{ia3}"], "ia3 cannot be combined"),
    (["{plain}", "{tmp}/elsewhere"], "of different bases"),
    (["{plain}", "{tmp}/none"], "no such run or adapter"),
    (["{plain}", "{other}", "-o", "{plain}"], "already exists"),
])
def test_bad_input_is_one_message_and_nothing_is_written(
    run_of: RunOf, tmp_path: Path, arguments: list[str], message: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lorafit.cli import main as cli

    shutil.copytree(run_of("plain") / "adapter", tmp_path / "elsewhere")
    path = tmp_path / "elsewhere" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text())
                               | {"base_model_name_or_path": str(tmp_path / "another")}))
    places = {"tmp": tmp_path, **{name: run_of(name) for name in
                                  ("plain", "other", "dora", "saved", "ia3")}}
    words = [word.format(**places) for word in arguments]
    output = [] if "-o" in words else ["-o", str(tmp_path / "made")]
    monkeypatch.setattr(sys, "argv", ["lorafit", "combine", *words, *output])
    assert cli._run() == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "made").exists()
