"""Ranks that share the tokens of each row: the same losses, gradients and weights as one."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from lorafit.errors import UserError
from lorafit.model.base import TINY, load_tokenizer
from lorafit.model.context import refuse_heads, refuse_layout
from lorafit.recipe.auto import IN_RECIPE, Decision
from lorafit.recipe.schema import Model
from lorafit.train.strategy.wanted import Wanted, refuse_misfit, refuse_ranks
from tests.conftest import adapter_tensors, largest_difference
from tests.strategy.ranks import on_ranks
from tests.strategy.slices import Case, mixed_outside_attention, slices_beside_whole

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

from layouts.cases import FEATURES, Feature, Layout, Leg  # noqa: E402
from layouts.compare import Bench  # noqa: E402
from reliability import processes  # noqa: E402

WINDOW = {"sliding_window": 5}
NO_DROPOUT = {"attn_pdrop": 0, "resid_pdrop": 0, "embd_pdrop": 0, "n_embd": 64, "n_layer": 2,
              "n_head": 4}
CASES = (
    Case("llama"), Case("llama", is_fast=True), Case("llama", lengths=(31,)),
    Case("qwen3", is_fast=True),
    Case("qwen3_moe", adapter={"experts": "each"}, is_fast=True),
    Case("mistral", changes=WINDOW), Case("gemma3_text", changes=WINDOW),
    Case("deepseek_v3", is_fast=True), Case("gpt2", changes=NO_DROPOUT),
)


@pytest.fixture(scope="module", autouse=True)
def _server():
    yield
    processes.close()


def named(case: Case) -> str:
    return f"{case.model_type}{' fast' if case.is_fast else ''} {len(case.lengths)}"


def check(case: Case, ranks: int) -> None:
    limit = 1e-5 if case.is_fast else 1e-12
    for found in on_ranks(ranks, slices_beside_whole, case):
        assert found.loss < 1e-6  # of the logits in float32
        assert found.gradients < limit
        assert found.proof < limit
        assert found.counts == (0, 0, 0)


@pytest.mark.parametrize("case", CASES, ids=named)
def test_slices_have_the_gradients_of_the_whole(case):
    """Grouped heads, norms of heads, experts, windows, latent attention, learned positions."""
    check(case, 2)


def test_four_ranks_share_two_key_heads():
    check(Case("llama"), 4)


@pytest.mark.parametrize("is_fast", [False, True], ids=["plain", "fast"])
def test_a_slice_without_a_loss_takes_part_in_the_backward_pass(is_fast):
    """Its keys and values are seen by the tokens of others."""
    check(Case("llama", is_fast=is_fast, trained_from=24), 2)


def test_a_rank_keeps_its_share_of_what_the_backward_pass_needs():
    case = Case("llama", lengths=(200, 56), is_fast=True)
    for ranks in (2, 4):
        for found in on_ranks(ranks, slices_beside_whole, case):
            assert found.kept == pytest.approx(1 / ranks, rel=0.1)


def test_what_mixes_tokens_beside_attention_is_found():
    assert max(on_ranks(2, mixed_outside_attention)) > 1e-2


def sharing(ranks: int, each: int, *options: str, until: int | None = None) -> Leg:
    return Leg(ranks, ("--context-parallel", str(each), *options), until)


def check_run(folder: Path, feature: Feature, *legs: Leg) -> None:
    """Weights are compared by what AdamW makes of gradients: where one is zero but for rounding,
    it takes the sign of that. The gradients themselves are compared above."""
    cell = Bench(feature, folder).cell(Layout("shared", legs), limit=1e-6, losses_limit=5e-6)
    assert cell.moved > 1e-4, cell.problem
    assert cell.losses < 5e-6
    assert cell.weights < 2e-5


@pytest.fixture
def features() -> dict[str, Feature]:
    return {feature.name: feature for feature in FEATURES}


def test_a_run_on_two_ranks_a_row_goes_on_alone(features, tmp_path):
    """Through the command line: held-out loss, checkpoints and resume too."""
    check_run(tmp_path, features["padding-free"], sharing(2, 2, until=2), Leg(1))


@pytest.mark.long
@pytest.mark.parametrize("name", [
    "padding-free", "packed", "shares that do not divide", "weighted messages", "streamed rows",
    "activation checkpointing", "nf4 base", "Llama, shrunken", "Qwen3-MoE, LoRA on experts"])
@pytest.mark.parametrize("legs", [
    (sharing(2, 2),), (sharing(4, 4),), (sharing(4, 2),), (sharing(4, 2, "--strategy", "fsdp"),),
    (Leg(1, until=2), sharing(4, 2, until=4), sharing(2, 2, "--strategy", "fsdp"))],
    ids=["2", "4", "2x2", "fsdp 2x2", "1, then 2x2, then fsdp 2"])
def test_every_layout_trains_the_same(features, name, legs, tmp_path):
    check_run(tmp_path, features[name], *legs)


@pytest.mark.long
def test_groups_of_two_machines_train_the_same(make_recipe, train, tmp_path):
    """HSDP, started by hand as two machines of two devices would start it."""
    sections = {"training": {"batch_size": 8, "learning_rate": 1e-4}}
    spread, alone = make_recipe("spread", **sections), make_recipe("alone", **sections)
    (tmp_path / "spread.yaml").write_text(yaml.safe_dump(spread.model_dump()))
    command = ["lorafit", "train", str(tmp_path / "spread.yaml"),
               "--strategy", "hsdp", "--context-parallel", "2"]
    ranks = processes.ranks_by_hand(command, tmp_path, 4, a_machine=2)
    assert [rank.wait(200) for rank in ranks] == [0] * 4, [rank.said() for rank in ranks]
    assert "tried on this model" in ranks[0].output()
    train(alone)
    assert largest_difference(adapter_tensors(spread.output.dir),
                              adapter_tensors(alone.output.dir)) < 1e-5


def test_the_layer_and_the_row_of_what_is_not_finite_are_named(shrunken, make_recipe, tmp_path):
    """Only one rank's slice has the token."""
    base = shrunken("llama", tie_word_embeddings=False)
    [token] = load_tokenizer(Model(base="tiny"))("~", add_special_tokens=False)["input_ids"]
    weights = load_file(base / "model.safetensors")
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    recipe = make_recipe(model={"base": str(base)}, data={"eval": None}, training={
        "batch_size": 12, "micro_batch_size": 3})
    rows = (tmp_path / "train.jsonl").read_text().splitlines()
    rows[6] = rows[6].replace("How much", "~ How much")
    (tmp_path / "train.jsonl").write_text("\n".join(rows) + "\n")
    process = started(recipe, tmp_path, 2, 2)
    assert process.wait(240) == 4, process.said()
    assert "the loss of step 1 is nan" in process.errors()
    assert "first in the output of base_model.model.model.embed_tokens" in process.errors()
    assert "in " + str(tmp_path / "train.jsonl:7") + "\n" in process.errors()


def started(recipe: Any, folder: Path, ranks: int, each: int) -> Any:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump()))
    return processes.forks().start(
        ["lorafit", "train", str(path), "--num-processes", str(ranks), "--context-parallel",
         str(each)], folder, "run", ranks=ranks)


def refusal(recipe: Any, folder: Path, ranks: int, each: int) -> str:
    """What the command line says of a recipe that it must refuse."""
    process = started(recipe, folder, ranks, each)
    assert process.wait(240) == 2, process.said()
    assert process.errors().count("error:") == 1, process.errors()
    assert "Traceback" not in process.errors()
    assert not Path(recipe.output.dir).exists()
    return process.errors()


def test_heads_that_cannot_be_shared_are_refused(make_recipe, tmp_path):
    said = refusal(make_recipe(), tmp_path, 3, 3)
    assert "--context-parallel 3: 4 attention heads cannot be shared by 3 ranks" in said
    assert "use 2 or 4" in said


def test_an_architecture_that_mixes_tokens_elsewhere_is_refused(make_recipe, shrunken, tmp_path):
    base = shrunken("lfm2", layer_types=["conv", "full_attention"])
    said = refusal(make_recipe(model={"base": str(base), "dtype": "float32"}), tmp_path, 2, 2)
    assert "influence each other in lfm2" in said
    assert "leave --context-parallel out" in said


def test_numbers_of_processes_that_do_not_divide_are_refused_before_they_start(make_recipe,
                                                                               tmp_path):
    said = refusal(make_recipe(), tmp_path, 3, 2)
    assert "3 processes cannot be divided into groups of 2" in said


@pytest.mark.parametrize(("sections", "said"), [
    ({"training": {"batching": "padded"}}, "--set training.batching=padding_free"),
    ({"model": {"attention": "eager"}}, "--set model.attention=sdpa"),
    ({"adapter": {"method": "prompt_tuning", "rank": None, "alpha": None}}, "leave --context-par"),
])
def test_recipes_that_cannot_be_computed_in_slices(make_recipe, sections, said):
    recipe = make_recipe(**sections)
    refuse_misfit(Wanted(), recipe)
    with pytest.raises(UserError, match=said):
        refuse_misfit(Wanted(context_parallel=2), recipe)


@pytest.mark.parametrize(("ranks", "each", "rows", "said"), [
    (1, 2, 8, "1 process cannot be divided"), (6, 4, 8, "use --num-processes 8"),
    (8, 2, 3, "4 groups of processes for a batch of 3")])
def test_ranks_that_cannot_share_rows(ranks, each, rows, said):
    with pytest.raises(UserError, match=said):
        refuse_ranks(Wanted(context_parallel=each), ranks, rows)


def layout(attention: str = "sdpa", batching: str = "padding_free", reason: str = IN_RECIPE
           ) -> tuple[Decision, Decision]:
    return (Decision("model.attention", attention, reason),
            Decision("training.batching", batching, reason))


@pytest.mark.parametrize(("decided", "said"), [
    (layout(attention="eager"), "--set model.attention=sdpa"),
    (layout(batching="padded"), "--set training.batching=padding_free"),
    (layout(batching="padded", reason="virtual tokens"), "virtual tokens"),
])
def test_layouts_that_cannot_be_cut_into_slices(decided, said):
    from transformers import AutoConfig

    with pytest.raises(UserError, match=said):
        refuse_layout(AutoConfig.from_pretrained(TINY), 2, *decided, 100)


@pytest.mark.parametrize("rope", [
    {"rope_type": "longrope", "original_max_position_embeddings": 64, "rope_theta": 1e4,
     "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
    {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4,
     "original_max_position_embeddings": 64}])
def test_a_rotation_that_depends_on_the_length_is_refused_where_it_would(rope):
    from transformers import LlamaConfig

    config = LlamaConfig(rope_parameters=rope, max_position_embeddings=128)
    refuse_layout(config, 2, *layout(), 64)
    with pytest.raises(UserError, match="beyond 64 tokens"):
        refuse_layout(config, 2, *layout(), 65)


def test_queries_that_are_scaled_by_places_are_refused():
    from transformers import Llama4TextConfig

    with pytest.raises(UserError, match="scales queries by places"):
        refuse_heads(Llama4TextConfig(num_attention_heads=4), 2)
