"""A measurement is of computations that agree, and has every number. Nothing here looks at how long
anything took."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorafit.bench import arithmetic, split
from lorafit.bench.request import EXTRA_SIDES, SIDES, Request, check_request, extra_sides
from lorafit.bench.run import Result, bench, refuse_disagreement, spread
from lorafit.bench.shapes import Shape
from lorafit.bench.sides import Side, build_floor, build_lorafit, build_peft
from lorafit.bench.workload import Workload, draw_rows, of_recipe, of_request
from lorafit.errors import MachineError, UserError
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.loading import dump_recipe

TINY = Request(shape="tiny", rank=4, batch_size=4, length=24, dtype="float32")


def floats(values: Any) -> Iterator[float]:
    """All numbers of nested lists and dictionaries."""
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list):
        for value in values:
            yield from floats(value)
    elif isinstance(values, float | int):
        yield float(values)


def check_numbers(result: Result) -> None:
    """All are there and finite, and JSON keeps them."""
    values = result.as_dict()
    assert all(math.isfinite(number) for number in floats(values))
    assert json.loads(json.dumps(values)) == values
    for side in result.sides:
        assert len(side.rounds) == result.setting["rounds"]
        assert 0 < side.gradients_s.low <= side.gradients_s.median <= side.gradients_s.high
        assert side.memory_bytes > 0
        assert side.tokens_per_s > 0
    whole = sum(part.seconds for part in result.parts)
    assert sum(part.share for part in result.parts) == pytest.approx(1)
    ours = result.side("lorafit")
    assert ours is not None
    assert whole == pytest.approx(ours.step_s.median)


@pytest.fixture(scope="module")
def tiny() -> tuple[Workload, dict[str, torch.Tensor], Result]:
    """A workload, its base's weights before anything was measured, and the result of all sides."""
    workload = of_request(TINY)
    before = {name: tensor.clone() for name, tensor in workload.base.state_dict().items()}
    return workload, before, bench(workload, 2, (*SIDES, *EXTRA_SIDES))


def test_sides_train_the_same_and_every_number_is_there(tiny: Any) -> None:
    workload, _, result = tiny
    check_numbers(result)
    assert [side.name for side in result.sides] == [*SIDES, *EXTRA_SIDES]
    assert result.left_out == {}
    losses = [side.first_loss for side in result.sides]
    assert max(losses) - min(losses) < 1e-4
    assert all(side.first_grad_norm > 0 for side in result.sides)
    names = [part.name.partition(":")[0] for part in result.parts]
    assert names == ["base", "adapter", "attention", "loss", "optimizer", "data", "waiting, other"]
    padded = {side.name: side.computed_tokens for side in result.sides}
    assert padded["floor"] == padded["lorafit"] == padded["full"] == workload.tokens
    assert padded["peft"] > workload.tokens


def test_no_side_changes_the_weights_that_all_share(tiny: Any) -> None:
    workload, before, _ = tiny
    after = workload.base.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(p.requires_grad for p in workload.base.parameters())


def test_adapters_have_the_base_weights_in_common_in_memory() -> None:
    workload = of_request(TINY)
    sides = [build_floor(workload), build_lorafit(workload), build_peft(workload)]
    own = {p.data_ptr() for p in workload.base.parameters()}
    for side in sides:
        frozen = {p.data_ptr() for p in side.model.parameters() if not p.requires_grad}
        assert frozen == own


def test_the_adapter_trained_matches_what_is_counted(tiny: Any) -> None:
    _, _, result = tiny
    trained = {side.name: side.trained_parameters for side in result.sides}
    layers = [(64, 64), (32, 64), (32, 64), (64, 64), (128, 64), (128, 64), (64, 128)]
    assert trained["floor"] == 0
    assert trained["lorafit"] == trained["peft"] == 2 * 4 * sum(map(sum, layers))
    assert trained["upper"] == trained["lorafit"] // 2
    assert trained["full"] == 2 * sum(out * into for out, into in layers)
    assert result.promise is not None
    lora = sum(4 * out * into + 6 * 4 * (out + into) for out, into in layers)
    full = sum(6 * out * into for out, into in layers)
    assert result.promise.linear == pytest.approx(lora / full)
    assert result.promise.linear < result.promise.whole < 1


def test_a_square_layer_promises_two_thirds_and_the_rank() -> None:
    shape = Shape(32, 1, 2, 2, 32, 64, True)
    workload = of_request(TINY, shape)
    side = build_lorafit(workload)
    counted = arithmetic.count(workload.base, side.model, workload.adapter)
    assert not isinstance(counted, str)
    assert counted.adapted / counted.full == pytest.approx(2 / 3 + 2 * 4 / 32)


def test_attention_is_counted_as_autograd_would() -> None:
    """Rows of one length: 2 products of 2·L²/2·D FLOPs a head forward, twice as many backwards,
    but for the diagonal."""
    workload = of_request(dataclasses.replace(TINY, even=True))
    side = build_lorafit(workload)
    calls = split.attention_calls(side)
    assert sum(call.times for call in calls) == 2  # layers
    pairs = 4 * 24 * 25 / 2
    assert split.attention_flops(calls, side) == 2 * pairs * 4 * (4 * 16) * 3


def test_the_upper_half_counts_no_backward_pass_below_it() -> None:
    workload = of_request(TINY)
    upper = dataclasses.replace(workload, adapter=Adapter(rank=4, layers="last:1"))
    side = build_lorafit(upper)
    whole = arithmetic.count(workload.base, build_lorafit(workload).model, workload.adapter)
    half = arithmetic.count(upper.base, side.model, upper.adapter)
    assert not isinstance(whole, str)
    assert not isinstance(half, str)
    assert half.adapted == pytest.approx(whole.adapted / 2 + whole.full / 6)
    backward = [call.backward for call in split.attention_calls(side)]
    assert sorted(backward) == [False, True]


def test_a_base_in_four_bits(tiny: Any) -> None:
    workload = of_request(dataclasses.replace(TINY, quantization="nf4"))
    names = {type(module).__name__ for module in workload.base.modules()}
    assert "Linear4bit" in names
    result = bench(workload, 2)
    check_numbers(result)
    assert [side.name for side in result.sides] == ["floor", "lorafit", "peft"]
    assert "quantised" in result.left_out["full"]
    assert result.promise is None
    assert result.sides[0].held_bytes < tiny[2].sides[0].held_bytes


def test_a_recipe_gives_model_adapter_layout_and_rows(
    make_recipe: Callable[..., Any], tmp_path: Path,
) -> None:
    recipe = make_recipe(adapter={"rank": 4, "dropout": 0.1, "init": "pissa"})
    workload = of_recipe(recipe, "r.yaml")
    result = bench(workload, 2)
    check_numbers(result)
    assert result.setting["rows"] == 4
    assert result.setting["micro_batches"] == 2
    assert 0 < result.setting["supervised_tokens"] < result.setting["tokens"]
    assert [side.name for side in result.sides] == list(SIDES)
    assert any("pissa" in remark for remark in result.remarks)
    assert not Path(recipe.output.dir).exists()


def test_a_method_of_lorafits_own_has_no_side_in_peft(make_recipe: Callable[..., Any]) -> None:
    recipe = make_recipe(adapter={"method": "full", "rank": None, "alpha": None})
    result = bench(of_recipe(recipe, "r.yaml"), 1)
    check_numbers(result)
    assert set(result.left_out) == {"peft", "full"}
    assert "full" in result.why_no_rates


@pytest.mark.parametrize("sections", [
    {"model": {"quantization": "int8"}},  # an int8 parameter gives its numbers away when first used
    {"adapter": {"method": "adalora", "rank": None, "alpha": None}},  # has a schedule of its own
    {"training": {"activation_checkpointing": "full", "batching": "packed"}},
    {"training": {"activation_checkpointing": "selective"}},
], ids=["int8", "adalora", "checkpoints", "selective"])
def test_recipes_of_other_kinds(make_recipe: Callable[..., Any], sections: dict[str, Any]) -> None:
    result = bench(of_recipe(make_recipe(**sections), "r.yaml"), 1, ("peft",))
    check_numbers(result)
    assert [side.name for side in result.sides] == ["floor", "lorafit", "peft"]


def test_a_method_that_starts_elsewhere_is_refused(make_recipe: Callable[..., Any]) -> None:
    recipe = make_recipe(adapter={"method": "prompt_tuning", "rank": None, "alpha": None})
    with pytest.raises(UserError, match="does not start as the base"):
        of_recipe(recipe, "r.yaml")


def test_sides_that_disagree_are_an_error_that_says_how() -> None:
    workload = of_request(TINY)
    other = of_request(dataclasses.replace(TINY, supervised=0.9))
    sides = [build_floor(workload), build_peft(workload)]
    with torch.no_grad():
        sides[1].model.get_input_embeddings().weight.data = \
            2 * workload.base.get_input_embeddings().weight
    firsts = [side.first() for side in sides]
    with pytest.raises(MachineError, match=r"peft: starts from a loss of 5\.6\S+, floor"):
        refuse_disagreement(sides, firsts)
    longer = build_peft(other)
    with pytest.raises(MachineError, match=r"peft: trains \d+ of \d+ tokens, floor "):
        refuse_disagreement([sides[0], longer], [firsts[0], longer.first()])
    still = dataclasses.replace(firsts[0], grad_norm=0.0)
    with pytest.raises(MachineError, match="floor: has a gradient of norm 0"):
        refuse_disagreement(sides[:1], [still])


def test_a_side_keeps_computing_the_same_until_it_is_updated() -> None:
    side: Side = build_lorafit(of_request(TINY))
    assert side.first() == side.first()
    assert side.memory_bytes() == side.memory_bytes()
    before = side.first()
    side.step()
    assert side.first().loss < before.loss


def test_rows_are_ragged_or_even_and_trained_at_their_end() -> None:
    request = Request(length=100, batch_size=64, supervised=0.25)
    rows = draw_rows(request, 32)
    lengths = [len(row) for row in rows]
    assert 50 <= min(lengths) < 70
    assert 130 < max(lengths) <= 150
    assert all(np.all(np.diff(row.supervised.astype(int)) >= 0) for row in rows)
    share = sum(row.supervised_tokens for row in rows) / sum(lengths)
    assert share == pytest.approx(0.25, abs=0.01)
    assert [row.ids.tolist() for row in rows] == [r.ids.tolist() for r in draw_rows(request, 32)]
    even = draw_rows(dataclasses.replace(request, even=True, supervised=1), 32)
    assert {len(row) for row in even} == {100}
    assert {row.supervised_tokens for row in even} == {99}  # the first is never predicted


def test_quartiles() -> None:
    assert dataclasses.astuple(spread([4.0, 1.0, 3.0, 2.0, 5.0])) == (3.0, 2.0, 4.0)
    assert dataclasses.astuple(spread([2.0])) == (2.0, 2.0, 2.0)


def test_every_wrong_option_is_named_at_once() -> None:
    wrong = Request(shape="llama-100", dtype="int7", quantization="nf3", rank=0, length=1,
                    supervised=1.5, micro_tokens=0)
    with pytest.raises(UserError) as caught:
        check_request(wrong)
    said = str(caught.value)
    for words in ("--shape: 'llama-100' is not known\n    did you mean llama-100m?", "--dtype",
                  "--quantization", "--rank: must be at least 1", "--length: must be at least 2",
                  "--supervised", "--micro-tokens"):
        assert words in said
    with pytest.raises(UserError, match="--also: 'pacca' is not known\n    did you mean paca"):
        extra_sides("upper,pacca")


def lorafit(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "lorafit", "bench", *arguments], text=True,
                          capture_output=True, timeout=240, cwd=cwd, env=os.environ.copy())


def test_the_verb_prints_tables_and_writes_json(tmp_path: Path) -> None:
    options = ["--shape", "tiny", "--length", "24", "--batch-size", "4", "--rounds", "2"]
    done = lorafit(*options, "--json", "figures.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in ("floor", "lorafit", "peft", "full", "attention", "of the measured matrix rate",
                  "lora/full", "promised", "versions"):
        assert words in done.stdout
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert [side["name"] for side in figures["sides"]] == list(SIDES)
    assert figures["machine"]["threads"] >= 1
    refused = lorafit(*options, "--json", "figures.json", cwd=tmp_path)
    assert refused.returncode == 2
    assert "already exists" in refused.stderr


@pytest.mark.parametrize(("arguments", "words"), [
    (["--shape", "lama-100m"], "did you mean llama-100m?"),
    (["r.yaml", "--rank", "4", "--even"], "--set adapter.rank"),
    (["r.yaml", "--activation-checkpointing"], "--activation-checkpointing: the recipe says"),
    (["--set", "adapter.rank=4"], "no recipe to override"),
    (["missing.yaml"], "missing.yaml"),
    (["--json", "nowhere/f.json"], "no such directory"),
    (["--also", "floor"], "use paca or upper"),
])
def test_wrong_input_has_a_place_a_remedy_and_code_2(
    arguments: list[str], words: str, tmp_path: Path, make_recipe: Callable[..., Any],
) -> None:
    (tmp_path / "r.yaml").write_text(dump_recipe(make_recipe()), encoding="utf-8")
    done = lorafit(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
