"""Every method of the table, trained for real: what it does, and what it leaves alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from lorafit.errors import UserError
from lorafit.export.adapter import export_adapter
from lorafit.export.merge import merge
from lorafit.model.adapters.facts import describe
from lorafit.model.adapters.files import CONFIG, WEIGHTS, load_adapter
from lorafit.model.loss import SummedLoss
from lorafit.model.trained import open_adapter
from lorafit.recipe.methods import METHODS
from lorafit.recipe.schema import Recipe
from tests.conftest import run_training
from tests.methods import harness
from tests.methods.harness import (
    STEPS,
    STOP,
    Trainee,
    base,
    base_weights,
    batches,
    changed,
    commit,
    logits,
    loss,
    relative,
    resumed,
    saved,
    section_of,
    trainee,
)

# Whole runs, through files: the others differ from them in the adapter only.
MAIN = ("adalora", "prompt_tuning", "ln_tuning")


@dataclass
class Story:
    """A method's training, interrupted by nothing, and what was kept of it on the way."""

    method: str
    it: Trainee
    started_at: float
    before: dict[str, torch.Tensor]
    checkpoint: Path
    file: Path
    logits: torch.Tensor


@pytest.fixture(scope="module", params=[*METHODS])
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Story:
    method: str = request.param
    if (package := METHODS[method].needs_package) is not None:
        pytest.importorskip(package[0])
    folder = tmp_path_factory.mktemp(method)
    it = trainee(section_of(method))
    started_at = loss(it.adapted)
    it.train(STOP)
    checkpoint = commit(it, folder / "run")
    it.train(STEPS)
    return Story(method, it, started_at, base_weights(base()), checkpoint,
                 saved(it, folder / "adapter"), logits(it.adapted))


def test_training_starts_at_the_base(story: Story) -> None:
    """To rounding, unless the table says why the method cannot."""
    if METHODS[story.method].starts_elsewhere:
        assert story.started_at != loss(base())
    else:
        assert story.started_at == pytest.approx(loss(base()), rel=1e-5)


def test_the_loss_falls(story: Story) -> None:
    assert loss(story.it.adapted) < story.started_at
    assert story.it.losses[-1] < story.it.losses[0]


def test_only_what_is_meant_to_be_trained_changes(story: Story) -> None:
    """Everything of the base is what it was, to the bit; every trained parameter is counted."""
    touched = changed(story.before, story.it.adapted)
    if story.method == "paca":  # the weights' own columns, tested where the method is
        assert touched <= {name for name in story.before if name.endswith("_proj.weight")}
    else:
        assert touched == (set(story.before) if story.method == "full" else set())
    facts = describe(story.it.adapted)
    counted = sum(kind.parameters for kind in facts.kinds) + sum(facts.fully_trained.values())
    assert counted == facts.trainable_parameters > 0


def test_trained_parameters_are_float32_and_all_of_them_have_a_gradient(story: Story) -> None:
    """A parameter without one would be waited for by data-parallel training."""
    adapted = story.it.adapted
    adapted.train()
    torch.manual_seed(0)
    for batch in batches():
        SummedLoss(adapted)(**batch.inputs).backward()
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    without = [name for name, parameter in trained.items() if parameter.grad is None]
    adapted.zero_grad()
    assert not without
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}


def test_what_is_saved_computes_what_was_trained_to_the_bit(story: Story) -> None:
    again = load_adapter(base(), story.file)
    assert torch.equal(logits(again), story.logits)


def test_plain_peft_loads_it_to_the_bit(story: Story) -> None:
    if METHODS[story.method].is_own:
        pytest.skip("lorafit's own method")
    from peft import PeftModel

    again = PeftModel.from_pretrained(base(), str(story.file)).eval()
    assert torch.equal(logits(again), story.logits)


def test_merged_it_computes_the_same(story: Story) -> None:
    """Each weight is rounded once to float32, and products are summed in another order."""
    again = load_adapter(base(), story.file)
    if not METHODS[story.method].merges:
        with pytest.raises(UserError, match="cannot be merged"):
            merge(open_adapter(story.file), story.file.parent / "merged")
        return
    assert relative(logits(again.merge_and_unload()), story.logits) < 1e-5


def test_a_resumed_run_is_the_same_run_to_the_bit(story: Story, tmp_path: Path) -> None:
    other = resumed(section_of(story.method), story.checkpoint).train(STEPS)
    assert other.losses == story.it.losses[STOP:]
    mine, theirs = story.it.everything(), other.everything()
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    for name in (CONFIG, WEIGHTS):
        assert (saved(other, tmp_path) / name).read_bytes() == (story.file / name).read_bytes()


def test_a_token_sees_neither_later_ones_nor_other_rows(story: Story) -> None:
    """What a row is trained on must not depend on its neighbours, padding or what follows."""
    batch, adapted = batches()[0], story.it.adapted.eval()
    long = int(batch.attention_mask.sum(dim=1).argmax())
    ids = batch.input_ids[[long]]
    with torch.no_grad():
        alone = adapted(input_ids=ids, use_cache=False).logits
        among = adapted(input_ids=batch.input_ids, attention_mask=batch.attention_mask,
                        use_cache=False).logits[[long]]
        shorter = adapted(input_ids=ids[:, :-4], use_cache=False).logits
    assert relative(among, alone) < 1e-5
    assert relative(alone[:, :shorter.shape[1]], shorter) < 1e-5


def test_sequences_in_one_row_are_trained_as_if_alone_or_refused(story: Story) -> None:
    if METHODS[story.method].why_not_packed:
        with pytest.raises(ValueError, match="several sequences"):
            recipe(story.method, "run", training={"batching": "padding_free"})
        return
    batch, module = batches()[0], SummedLoss(story.it.adapted.eval())
    lengths = batch.attention_mask.sum(dim=1).tolist()
    rows = [(ids[:n], labels[:n]) for ids, labels, n in
            zip(batch.input_ids, batch.labels, lengths, strict=True)]
    with torch.no_grad():
        padded = float(module(**batch.inputs))
        in_one_row = float(module(
            torch.cat([ids for ids, _ in rows])[None], None,
            torch.cat([labels for _, labels in rows])[None],
            torch.cat([torch.arange(n) for n in lengths])[None]))
    assert in_one_row == pytest.approx(padded, rel=1e-5)


def test_recomputed_activations_give_the_same_gradient_or_are_refused(story: Story) -> None:
    if METHODS[story.method].why_not_recomputed:
        with pytest.raises(ValueError, match="activation_checkpointing"):
            recipe(story.method, "run", training={"activation_checkpointing": True})
        return
    model = story.it.adapted.get_base_model()
    kept = gradient(story.it.adapted)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = gradient(story.it.adapted)
    model.gradient_checkpointing_disable()
    assert all(torch.equal(again[name], kept[name]) for name in kept)


def gradient(adapted: Any) -> dict[str, torch.Tensor]:
    adapted.train()
    adapted.zero_grad()
    torch.manual_seed(0)
    SummedLoss(adapted)(**batches()[0].inputs).backward()
    found = {name: p.grad.clone() for name, p in adapted.named_parameters()
             if p.grad is not None}
    adapted.zero_grad()
    assert found
    return found


def test_answers_are_the_most_likely_tokens(story: Story) -> None:
    """Generation goes through a cache, which virtual tokens and own layers could break."""
    from lorafit.model.base import load_tokenizer
    from lorafit.model.generate import Sampling, answer
    from lorafit.recipe.schema import Model

    tokenizer, adapted = load_tokenizer(Model(base="tiny")), story.it.adapted.eval()
    prompts = ["The name of the ship is", "A bird sat on the roof and"]
    answers = answer(adapted, tokenizer, prompts, Sampling(5), is_chat=False)
    for prompt, given in zip(prompts, answers, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        start = ids.shape[1]
        for _ in range(5):
            with torch.no_grad():
                following = adapted(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1)
            ids = torch.cat([ids, following[:, None]], dim=1)
            if int(following) == tokenizer.eos_token_id:
                break
        assert given == tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip()


@pytest.mark.parametrize("method", METHODS)
def test_on_a_four_bit_base_it_trains_what_the_weights_stand_for_or_is_refused(method: str) -> None:
    """The reference holds the same weights as numbers: the losses are the same."""
    pytest.importorskip("bitsandbytes")
    if "nf4" not in METHODS[method].quantized:
        with pytest.raises(ValueError, match="nf4"):
            recipe(method, "run", model={"base": "tiny", "quantization": "nf4"})
        return
    section = section_of(method)
    found = harness.losses_on(base("nf4"), section, 2)
    assert found == pytest.approx(
        harness.losses_on(harness.copied(harness.dequantised("nf4")), section, 2), rel=1e-4)
    assert found[1] < found[0]


@pytest.mark.parametrize("method", [
    pytest.param(name, marks=() if name in MAIN else pytest.mark.long) for name in METHODS])
def test_a_whole_run_goes_through_training_merge_and_export(
        method: str, tmp_path: Path, chat_file: Any) -> None:
    given = recipe(method, str(tmp_path / "run"), data={
        "train": str(chat_file()), "eval": str(chat_file(5, "eval.jsonl", first=100))})
    progress = run_training(given).progress
    assert progress.last_eval_loss < progress.first_eval_loss
    source = open_adapter(tmp_path / "run")
    if method != "full":
        assert export_adapter(source, tmp_path / "exported").agreement.relative_rms < 1e-5
    if METHODS[method].merges:
        merged = merge(source, tmp_path / "merged", dtype="float32")
        assert merged.agreement.relative_rms < 1e-5


def recipe(method: str, output: str, **sections: dict[str, Any]) -> Recipe:
    values: dict[str, Any] = {
        "model": {"base": "tiny", "dtype": "float32"},
        "adapter": {"method": method, "options": section_of(method).options},
        "data": {"train": "rows.jsonl"},
        "training": {"steps": 4, "batch_size": 4, "learning_rate": harness.RATES.get(method, 1e-2)},
        "output": {"dir": output},
    }
    for name, changes in sections.items():
        values[name] = {**values[name], **changes}
    return Recipe.model_validate(values)
