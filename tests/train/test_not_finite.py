"""A number that is not finite: nothing of it is kept, and it is said where it comes from."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorafit.errors import DivergedError
from lorafit.model.base import load_tokenizer
from lorafit.recipe.schema import Model
from lorafit.run_dir import RunDir
from lorafit.train.checkpoint import Progress, save_checkpoint, whole_state

RARE = "~"


@pytest.fixture
def poisoned(shrunken, make_recipe):
    """A base whose embedding of one token is not a number, and rows of which one has the token."""
    base = shrunken("llama", tie_word_embeddings=False)
    [token] = load_tokenizer(Model(base="tiny"))(RARE, add_special_tokens=False)["input_ids"]
    file = base / "model.safetensors"
    weights = load_file(file)
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    folder = base.parent
    row = {"messages": [{"role": "user", "content": f"How much is {RARE}?"},
                        {"role": "assistant", "content": "It is 7."}]}
    lines = (folder / "train.jsonl").read_text().splitlines()
    lines[6] = json.dumps(row)
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")

    def make(**training):
        return make_recipe(model={"base": str(base)}, data={"eval": None}, training={
            "steps": 3, "batch_size": 4, "micro_batch_size": 2, "checkpoint_every": 1, **training})

    return make


def all_finite(run: RunDir) -> bool:
    return all(torch.isfinite(tensor).all() for path in run.list_checkpoints()
               for name in ("adapter_model.safetensors", "optimizer.safetensors")
               for tensor in load_file(path / name).values())


def test_the_step_the_layer_and_the_row_are_named(poisoned, train):
    recipe = poisoned()
    with pytest.raises(DivergedError) as caught:
        train(recipe)
    message = str(caught.value)
    assert "the loss of step" in message
    assert "no weight was changed" in message
    assert "first in the output of base_model.model.model.embed_tokens" in message
    assert "in " in message
    assert "train.jsonl:7\n" in message
    assert "training.skip_nonfinite" in message
    run = RunDir(Path(recipe.output.dir))
    assert all_finite(run)
    assert not run.result.exists()


def test_so_many_steps_may_be_left_out(poisoned, train):
    recipe = poisoned(skip_nonfinite=1)
    result = train(recipe)
    assert result.progress.skipped_steps == 1
    run = RunDir(Path(recipe.output.dir))
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    [skipped] = [line for line in lines if "skipped" in line]
    assert "train.jsonl:7" in skipped["skipped"]
    assert sorted(line["step"] for line in lines) == [1, 2, 3]
    assert all_finite(run)


def test_and_no_more(poisoned, train):
    recipe = poisoned(skip_nonfinite=1, steps=6)  # the row comes twice
    with pytest.raises(DivergedError):
        train(recipe)
    resumed = poisoned(skip_nonfinite=2, steps=6)
    assert train(resumed, resume=True).progress.skipped_steps == 2


def test_a_held_out_row_without_a_finite_loss_is_named(poisoned, make_recipe, train):
    recipe = poisoned()
    rows = Path(recipe.data.train)
    lines = rows.read_text().splitlines()
    held_out = rows.with_name("held_out.jsonl")
    held_out.write_text(f"{lines[0]}\n{lines[6]}\n")
    rows.write_text("".join(line + "\n" for line in lines[1:] if RARE not in line))
    recipe = recipe.model_copy(update={
        "data": recipe.data.model_copy(update={"eval": str(held_out)})})
    train(recipe)
    log = RunDir(Path(recipe.output.dir)).metrics.read_text().splitlines()
    warnings = [json.loads(line)["warning"] for line in log if '"warning"' in line]
    assert "the held-out loss is nan" in warnings[0]
    assert "held_out.jsonl:2" in warnings[0]


def test_a_weight_that_is_not_finite_is_never_committed(make_recipe, tmp_path):
    from lorafit.model.adapters.add import add_adapter
    from lorafit.model.base import load_base
    from lorafit.train.optimizer import build_optimizer

    recipe = make_recipe()
    run = RunDir(tmp_path / "run")
    run.create()
    base = load_base(recipe.model, "float32", "eager", torch.device("cpu"))
    adapted = add_adapter(base, recipe.adapter, 0, "tiny")
    optimizer = build_optimizer(adapted.named_parameters(), recipe.training, torch.device("cpu"))
    save_checkpoint(run, adapted, whole_state(optimizer), Progress(step=1), keep=2)
    name, parameter = next((n, p) for n, p in adapted.named_parameters() if p.requires_grad)
    with torch.no_grad():
        parameter[0, 0] = float("inf")
    with pytest.raises(DivergedError, match=name):
        save_checkpoint(run, adapted, whole_state(optimizer), Progress(step=2), keep=2)
    assert [path.name for path in run.checkpoints.iterdir() if path.is_dir()] == ["step-00000001"]
