"""Base beside adapter beside others on held-out rows, on a run that knows half of them."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from lorafit.errors import UserError
from lorafit.evaluate import answers as answering
from lorafit.evaluate import loss as losses
from lorafit.evaluate.contenders import Loader, beside, open_subject
from lorafit.evaluate.evaluation import evaluate
from lorafit.evaluate.kept import keep
from lorafit.evaluate.rows import read_rows
from lorafit.export.merge import merge
from lorafit.model.base import TINY
from lorafit.model.trained import open_adapter
from lorafit.recipe.loading import load_recipe
from lorafit.recipe.loading import replace as replaced
from lorafit.run_dir import RunDir
from lorafit.train.resume import refuse_changes
from tests.evaluate.conftest import CODES, train_on, write_rows


class Heard:
    """Remembers what an evaluation says of its progress."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.done = 0

    def begin(self, what: str, total: int) -> None:
        self.begun.append(what)

    def advance(self, done: int) -> None:
        self.done += done


def measured(path, *overrides, data=None, also=()):
    subject = open_subject(path, None, list(overrides), data)
    for other in also:
        subject = replace(subject, contenders=(*subject.contenders, beside(subject, other)))
    return evaluate(subject, Heard()), subject


def copied(run: Path, folder: Path) -> Path:
    """The run again, so that what a test writes into it is the test's own."""
    return Path(shutil.copytree(run, folder / "copy"))


@pytest.fixture(scope="module")
def known_result(known):
    """What is measured of the run that knows half of its rows."""
    return measured(known)[0]


def test_what_was_memorised_is_right_and_every_figure_follows_from_the_rows(known_result):
    result = known_result
    base, adapter = result.scores
    assert (base.correct, adapter.correct, adapter.rows) == (0, 2, 4)
    assert adapter.accuracy_interval.low < 0.5 < adapter.accuracy_interval.high
    right = {row.question: row.replies["adapter"].right for row in result.rows}
    assert right == {f"Code of {name}?": name in ("red", "blue") for name in CODES}
    [change] = result.differences
    assert (change.gained, change.lost, change.p_value) == (2, 0, 0.5)
    assert change.loss == pytest.approx(adapter.loss - base.loss)
    assert change.loss_interval.low < change.loss < change.loss_interval.high
    assert adapter.perplexity == pytest.approx(math.exp(adapter.loss))
    tokens = sum(row.tokens for row in result.rows)
    assert adapter.supervised_tokens == tokens
    assert adapter.loss == pytest.approx(
        sum(row.replies["adapter"].nats for row in result.rows) / tokens)


def test_the_loss_is_the_one_that_training_saw(known, known_result):
    result = known_result
    lines = [json.loads(line) for line in RunDir(known).metrics.read_text().splitlines()]
    seen = [line["held_out_loss"] for line in lines if "held_out_loss" in line]
    assert result.scores[0].loss == pytest.approx(seen[0], rel=1e-5)
    assert result.scores[1].loss == pytest.approx(min(seen), rel=1e-4)


def test_losses_of_rows_are_plain_cross_entropy(known):
    """By the head a chunk at a time, by the model's logits, and by transformers and torch alone."""
    subject = open_subject(known, None, [], None)
    held_out = read_rows(subject.recipe.data, subject.tokenizer, 0, None)
    rows = [tokens for row in held_out.rows for tokens in held_out.tokens(row)]
    model = Loader().load(subject.contenders[0])
    got = losses.row_losses(model, rows, 0)
    plain = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    for tokens, nats in zip(rows, got, strict=True):
        ids = torch.from_numpy(tokens.ids.astype(np.int64))[None]
        with torch.inference_mode():
            logits = plain(input_ids=ids).logits[0, :-1]
        each = F.cross_entropy(logits, ids[0, 1:], reduction="none")
        assert float(each[torch.from_numpy(tokens.supervised[1:])].sum()) == pytest.approx(
            nats, rel=1e-4)


@pytest.mark.parametrize("adapter", [
    {"method": "lora"},
    {"method": "prompt_tuning", "rank": None, "alpha": None, "options": {"num_virtual_tokens": 4}},
    {"method": "bottleneck", "alpha": None}], ids=lambda section: section["method"])
def test_the_loss_by_the_head_is_that_by_the_models_logits(
        make_recipe, train, monkeypatch, adapter):
    recipe = make_recipe(adapter=adapter, training={"steps": 2})
    train(recipe)
    subject = open_subject(Path(recipe.output.dir), None, [], None)
    held_out = read_rows(subject.recipe.data, subject.tokenizer, 0, None)
    rows = [tokens for row in held_out.rows for tokens in held_out.tokens(row)]
    loader = Loader()
    loader.load(subject.contenders[0])
    model = loader.load(subject.contenders[1])
    got = losses.row_losses(model, rows, 0)
    monkeypatch.setattr(losses, "find_head", lambda model: "not now")
    assert got == pytest.approx(losses.row_losses(model, rows, 0), rel=1e-4)


def test_a_pattern_compares_what_it_finds_and_rows_without_it_are_not_asked(known):
    result, _ = measured(known, r"evaluation.pattern='It is \w+ (\d+)'")
    found = {row.question: row.found for row in result.rows}
    assert result.measured_by == "match by pattern"
    assert list(found.values()) == ["41", "77", "12", "90"]
    assert result.scores[1].correct == 2
    result, _ = measured(known, r"evaluation.pattern='z\w (\d+)'", "evaluation.max_new_tokens=1")
    assert [score.rows for score in result.scores] == [1, 1]
    remarks = "\n".join(result.remarks)
    assert "in the own answer of 3 rows" in remarks
    assert [row.replies["base"].right for row in result.rows].count(None) == 3
    assert "1 of the rows' own answers are longer than max_new_tokens 1" in remarks
    assert "1 of 1 answers of adapter were cut at 1 tokens" in result.remarks


def test_a_pattern_that_no_row_has_is_refused_before_a_model_is_loaded(known, monkeypatch):
    monkeypatch.setattr(Loader, "load", lambda self, contender: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match="could ever be right"):
        measured(known, "evaluation.pattern='#### (.+)'")


def test_merged_and_other_models_stand_beside_base_and_adapter(known, tmp_path):
    merge(open_adapter(known), tmp_path / "merged", "float32")
    result, _ = measured(known, also=[tmp_path / "merged", TINY])
    by_name = {score.name: score for score in result.scores}
    assert list(by_name) == ["base", "adapter", "merged", "tiny"]
    assert by_name["merged"].correct == by_name["adapter"].correct == 2
    assert by_name["merged"].loss == pytest.approx(by_name["adapter"].loss, rel=1e-3)
    assert by_name["tiny"].loss == by_name["base"].loss
    pairs = {(each.name, each.against): each for each in result.differences}
    assert list(pairs) == [("adapter", "base"), ("merged", "base"), ("tiny", "base"),
                           ("merged", "adapter"), ("tiny", "adapter")]
    assert pairs["tiny", "base"].same_answers == 4
    assert pairs["tiny", "base"].loss == 0
    assert (pairs["tiny", "adapter"].lost, pairs["merged", "adapter"].lost) == (2, 0)


def test_a_model_of_another_vocabulary_is_refused(known, shrunken, tmp_path):
    other = shrunken("llama")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    with pytest.raises(UserError, match="vocabulary of 100 tokens"):
        beside(open_subject(known, None, [], None), other)
    (other / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    swapped = dict(tokenizer["model"]["vocab"])
    first, second = list(swapped)[300:302]
    swapped[first], swapped[second] = swapped[second], swapped[first]
    tokenizer["model"]["vocab"] = swapped
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="another tokenizer"):
        beside(open_subject(known, None, [], None), other)


def test_an_adapter_by_itself_a_checkpoint_and_a_model_are_measured_on_a_file(known, tmp_path):
    rows = write_rows(tmp_path / "one.jsonl", {"red": CODES["red"]})
    for path, names in ((known / "adapter", ["base", "adapter"]), (TINY, ["model"])):
        with pytest.raises(UserError, match="--data FILE"):
            open_subject(path, None, [], None)
        result, subject = measured(path, "evaluation.max_new_tokens=12", data=rows)
        assert [score.name for score in result.scores] == names
        assert keep(result, subject) is None
    [checkpoint] = RunDir(known).list_checkpoints()[-1:]
    result, subject = measured(checkpoint)
    assert result.scores[1].rows == 4
    assert subject.label == checkpoint.name


def test_rows_of_a_file_replace_the_held_out_ones_and_are_all_asked(known, tmp_path):
    rows = write_rows(tmp_path / "two.jsonl", {name: CODES[name] for name in ("red", "grey")})
    result, subject = measured(known, data=rows)
    assert (result.scores[1].correct, result.scores[1].rows) == (1, 2)
    assert result.name.startswith("two-")
    run = copied(known, tmp_path)
    assert keep(result, replace(subject, run=RunDir(run))).parent == run / "evaluations"
    assert not (run / "evaluation.json").exists()  # that is of the run's own rows


def test_what_is_kept_holds_everything_and_a_short_form(known, known_result, tmp_path):
    run, result = copied(known, tmp_path), known_result
    path = keep(result, open_subject(run, None, [], None))
    stored = json.loads(path.read_text())
    assert path == run / "evaluations" / f"held-out-{result.key[:8]}.json"
    assert stored["versions"]["torch"] == torch.__version__
    assert stored["settings"]["max_new_tokens"] == 12
    assert len(stored["rows"]) == 4
    short = json.loads((run / "evaluation.json").read_text())
    assert (short["base"]["correct"], short["adapter"]["correct"], short["adapter"]["rows"]) \
        == (0, 2, 4)
    assert {answer["wanted"] for answer in short["answers"]} == {
        f"It is {code}" for code in CODES.values()}


def test_an_interrupted_evaluation_goes_on_with_the_answers_it_has(
        known, known_result, tmp_path, monkeypatch):
    run = copied(known, tmp_path)
    small = "evaluation.batch_size=1"
    asked: list[str] = []
    real = answering.answer_batch

    def counting(model, tokenizer, prompts, *rest, **options):
        if len(asked) == 6:
            raise KeyboardInterrupt
        asked.extend(prompts)
        return real(model, tokenizer, prompts, *rest, **options)

    monkeypatch.setattr(answering, "answer_batch", counting)
    with pytest.raises(KeyboardInterrupt):
        measured(run, small)
    [unfinished] = (run / "evaluations").iterdir()
    with unfinished.open("a") as file:
        file.write('{"model": "adapter", "ba')  # a line that the interruption cut off
    before, asked[:] = len(asked), []
    again, _ = measured(run, small)
    assert (before, len(asked)) == (6, 2)
    assert again.rows == known_result.rows
    assert not list((run / "evaluations").iterdir())


def test_other_weights_are_asked_anew(known, tmp_path):
    rows = list(read_rows(open_subject(known, None, [], None).recipe.data,
                          open_subject(known, None, [], None).tokenizer, 0, None).rows)
    subject = open_subject(known, None, [], None)
    run = copied(known, tmp_path)
    weights = run / "adapter" / "adapter_model.safetensors"
    other = open_subject(run, None, [], None)
    key = answering.key_of(rows, subject.contenders, 12, 32, "cpu")
    assert key == answering.key_of(rows, other.contenders, 12, 32, "cpu")
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert key != answering.key_of(rows, other.contenders, 12, 32, "cpu")


def test_a_batch_that_does_not_fit_is_halved(known, monkeypatch):
    subject = open_subject(known, None, [], None)
    model = Loader().load(subject.contenders[0])
    from lorafit.model.generate import Sampling, answer_batch

    prompts = [f"Code of {name}?" for name in CODES]
    alone = [answer_batch(model, subject.tokenizer, [prompt], Sampling(4), is_chat=False, seed=0)[0]
             for prompt in prompts]
    real, sizes = model.generate, []

    def small_memory(**inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError
        return real(**inputs)

    monkeypatch.setattr(model, "generate", small_memory)
    assert answer_batch(model, subject.tokenizer, prompts, Sampling(4), is_chat=False,
                        seed=0) == alone
    assert sizes == [4, 2, 1, 1, 2, 1, 1]


def test_a_run_without_held_out_rows_is_refused(make_recipe, train):
    recipe = make_recipe(data={"eval": None}, training={"steps": 1})
    train(recipe)
    with pytest.raises(UserError, match="no held-out rows") as caught:
        measured(Path(recipe.output.dir))
    assert "--data" in str(caught.value)


def test_a_row_that_was_split_is_asked_once_and_its_loss_is_of_all_pieces(make_recipe, train):
    recipe = make_recipe(data={"max_length_tokens": 12, "on_long": "split"},
                         training={"steps": 1, "keep": "last"})
    train(recipe)
    result, _ = measured(Path(recipe.output.dir), "evaluation.max_new_tokens=2")
    assert result.scores[0].rows == 5
    assert len({row.question for row in result.rows}) == 5
    lines = [json.loads(line)
             for line in RunDir(Path(recipe.output.dir)).metrics.read_text().splitlines()]
    seen = [line["held_out_loss"] for line in lines if "held_out_loss" in line]
    assert result.scores[1].loss == pytest.approx(seen[-1], rel=1e-4)
    assert not any("flatters" in remark for remark in result.remarks)


def test_weights_that_were_chosen_by_the_rows_asked_are_said_to_be(known, tmp_path):
    held = known.parent / "held.jsonl"
    run = train_on(tmp_path, held, held, training={
        "steps": 3, "batch_size": 2, "eval_every": 1, "checkpoint_every": 1})
    small = ["evaluation.max_new_tokens=1", "evaluation.rows=1"]
    assert "best of 3 evaluations on these rows" in measured(run, *small)[0].remarks[0]
    assert "flatters" not in "".join(measured(run, *small, data=held)[0].remarks)


def test_plain_text_has_a_loss_and_no_answers(tmp_path):
    rows = tmp_path / "text.jsonl"
    rows.write_text("".join(json.dumps({"text": f"Once there were {n} foxes in a wood."}) + "\n"
                            for n in range(6)))
    run = train_on(tmp_path, rows, rows, steps=2)
    result, _ = measured(run)
    assert [score.rows for score in result.scores] == [0, 0]
    assert result.scores[0].loss > 0
    assert "no answer in words" in result.remarks[0]
    assert result.differences[0].loss is not None


def test_the_last_turn_is_asked_of_a_conversation(tmp_path):
    turns = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "ein"},
             {"role": "user", "content": "Two?"}, {"role": "assistant", "content": "zwei"}]
    rows = tmp_path / "chat.jsonl"
    rows.write_text(json.dumps({"messages": turns}) + "\n" + json.dumps({"messages": [
        *turns[:3], {"role": "assistant", "content": " "}]}) + "\n")
    subject = open_subject(TINY, None, ["data.checks.empty_answer=allow"], rows)
    first, second = read_rows(subject.recipe.data, subject.tokenizer, 0, None).rows
    assert (first.question, first.wanted) == ("Two?", "zwei")
    assert "ein" in first.prompt
    assert "zwei" not in first.prompt
    assert second.prompt is None


@pytest.mark.parametrize(("override", "message"), [
    ("training.steps=5", "only evaluation"), ("evaluation.patern=x", "did you mean"),
    (r"evaluation.pattern=#### (\d+)", "put the pattern in quotes"),
    ("evaluation.pattern='('", "no regular expression"),
    ("evaluation.rows=0", "greater than 0")])
def test_an_override_that_cannot_be_is_refused(known, override, message):
    with pytest.raises(UserError, match=message) as caught:
        open_subject(known, None, [override], None)
    assert "--set" in str(caught.value)


def test_a_resumed_run_may_be_measured_in_another_way(known):
    recipe = load_recipe(RunDir(known).recipe)
    refuse_changes(replaced(recipe, evaluation={"pattern": "(.+)", "rows": 3}), RunDir(known))
    with pytest.raises(UserError, match="differs"):
        refuse_changes(replaced(recipe, training={"seed": 3}), RunDir(known))
