"""Real tasks of lm-eval on local rows, offline, beside what is measured here."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lorafit.data.pipeline import make_renderer
from lorafit.data.tokens import Tokens
from lorafit.errors import UserError
from lorafit.evaluate.contenders import Loader, open_subject
from lorafit.evaluate.loss import row_losses
from lorafit.evaluate.rows import read_rows
from tests.evaluate.conftest import CODES, train_on
from tests.evaluate.test_evaluation import Heard, measured

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'lorafit[lm-eval]'")
pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

GENERATE = """\
task: codes
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: "Code of {{{{name}}}}?"
doc_to_target: "It is {{{{code}}}}"
generation_kwargs: {{until: ["\\n"], do_sample: false, max_gen_toks: 12}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
CHOOSE = """\
task: chosen
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Code of {{{{name}}}}?"
doc_to_choice: ["It is {first}", "It is {second}"]
doc_to_target: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"name": name, "code": code}) + "\n"
                            for name, code in CODES.items()))
    (folder / "codes.yaml").write_text(GENERATE.format(rows=rows))
    (folder / "chosen.yaml").write_text(CHOOSE.format(
        rows=rows, first=CODES["red"], second=CODES["grey"]))
    return folder


def wanted(**changes):
    from lorafit.evaluate.harness import Wanted

    return replace(Wanted(["codes"], None, None, None, None, None), **changes)


def test_tasks_count_what_is_counted_here(known, tasks):
    """The harness sees the adapter, and the prompts that it was trained on."""
    from lorafit.evaluate.harness import run_tasks

    ours, _ = measured(known)
    subject = open_subject(known, None, [], None, needs_rows=False)
    result = run_tasks(subject, wanted(include_path=tasks), Heard())
    [measure] = result.measures
    assert measure.task == "codes"
    base, adapter = measure.values
    assert (base.value, adapter.value) == (0, 0.5)
    assert adapter.stderr > 0
    assert measure.answers["adapter"] == [
        float(row.replies["adapter"].right) for row in ours.rows]
    [change] = ours.differences
    assert (adapter.difference, adapter.p_value) == (change.accuracy, change.p_value)
    assert adapter.interval == change.accuracy_interval
    assert "chat template" in result.asked


def test_the_harness_scores_the_losses_that_are_measured_here(known):
    """Its log-likelihood of a row's answer is less our nats. It counts the line break after the
    prompt as part of the answer."""
    from lm_eval.api.instance import Instance

    from lorafit.evaluate.harness import _language_model

    subject = open_subject(known, None, [], None)
    held_out = read_rows(subject.recipe.data, subject.tokenizer, 0, None)
    encode = partial(subject.tokenizer.encode, add_special_tokens=False)
    rows = []
    for row in held_out.rows:
        ids = np.array(encode(row.prompt + row.wanted), np.int32)
        rows.append(Tokens(ids, np.arange(len(ids)) >= len(encode(row.prompt.rstrip()))))
    loader = Loader()
    loader.load(subject.contenders[0])
    model = loader.load(subject.contenders[1])
    harness = _language_model(model, "adapter", subject.tokenizer,
                              make_renderer(subject.recipe.data, subject.tokenizer), 2, Heard())
    requests = [Instance("loglikelihood", {}, (row.prompt, row.wanted), i)
                for i, row in enumerate(held_out.rows)]
    got = [-value for value, _ in harness.loglikelihood(requests)]
    assert got == pytest.approx(list(row_losses(model, rows, 0)), rel=1e-3)


def test_a_multiple_choice_task_and_a_limit(known, tasks, tmp_path):
    from lorafit.evaluate.harness import run_tasks
    from lorafit.evaluate.task_results import keep_tasks

    subject = open_subject(known, None, [], None, needs_rows=False)
    result = run_tasks(subject, wanted(tasks=[str(tasks / "chosen.yaml")], limit=2,
                                       chat_template=False), Heard())
    [measure] = [each for each in result.measures if each.name == "acc"]
    assert measure.rows == 2
    assert result.asked == "as plain text"
    stored = json.loads(keep_tasks(result, subject, "chosen").read_text())
    assert stored["kind"] == "tasks"
    assert stored["versions"]["lm-eval"]


def test_a_group_is_shown_with_its_tasks(known, tasks, tmp_path):
    from lorafit.evaluate.harness import run_tasks

    text = (tasks / "chosen.yaml").read_text()
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "b.yaml").write_text(text.replace("task: chosen", "task: chosen_too"))
    (tmp_path / "group.yaml").write_text(
        "group: pair\ntask: [chosen, chosen_too]\n"
        "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]\n")
    subject = open_subject(known, None, [], None, needs_rows=False)
    result = run_tasks(subject, wanted(tasks=["pair"], include_path=tmp_path), Heard())
    rows = {measure.task: measure.rows for measure in result.measures if measure.name == "acc"}
    assert rows == {"chosen": 4, "chosen_too": 4, "pair": 8}
    [pair] = [measure for measure in result.measures if measure.task == "pair"]
    assert pair.values[1].difference is None


def test_runs_are_compared_task_by_task(known, tasks, tmp_path):
    from lorafit.evaluate.harness import run_tasks
    from lorafit.evaluate.kept import evaluations
    from lorafit.evaluate.task_results import compare_tasks, keep_tasks

    other = train_on(tmp_path, known.parent / "rows.jsonl", known.parent / "held.jsonl", steps=1)
    first = Path(shutil.copytree(known, tmp_path / "first"))
    for run, limit in ((first, None), (other, None)):
        subject = open_subject(run, None, [], None, needs_rows=False)
        keep_tasks(run_tasks(subject, wanted(include_path=tasks, limit=limit), Heard()), subject,
                   None)

    def compared():
        return compare_tasks([first, other],
                             [evaluations(run, "tasks", None) for run in (first, other)], ["codes"])

    [measure] = compared().measures
    assert [value.value for value in measure.values] == [0.5, 0]
    assert (measure.values[1].difference, measure.values[1].p_value) == (-0.5, 0.5)
    keep_tasks(run_tasks(subject, wanted(include_path=tasks, limit=2), Heard()), subject, None)
    [file] = [file for file in (other / "evaluations").glob("*.json")
              if json.loads(file.read_text())["settings"]["limit"] is None]
    file.unlink()
    result = compared()
    assert result.measures[0].values[1].difference is None
    assert "other questions (2, not 4)" in result.remarks[0]
    with pytest.raises(UserError, match="has no evaluation of gsm8k"):
        compare_tasks([first], [evaluations(first, "tasks", None)], ["gsm8k"])


def test_an_own_method_is_measured_too(tmp_path, tasks):
    from lorafit.evaluate.harness import run_tasks
    from tests.evaluate.conftest import write_rows

    rows = write_rows(tmp_path / "rows.jsonl", CODES)
    run = train_on(tmp_path, rows, rows, steps=40, adapter={"method": "bottleneck", "rank": 16})
    subject = open_subject(run, None, [], None, needs_rows=False)
    [measure] = run_tasks(subject, wanted(include_path=tasks), Heard()).measures
    ours, _ = measured(run)
    assert measure.answers["adapter"] == [
        float(row.replies["adapter"].right) for row in ours.rows]


@pytest.mark.parametrize(("changes", "message"), [
    ({"tasks": ["cods"]}, "did you mean codes"), ({"tasks": ["nowhere.yaml"]}, "no such file"),
    ({"tasks": []}, "names no task"), ({"include_path": Path("nowhere")}, "no such directory")])
def test_a_task_that_is_not_there_is_refused(known, tasks, changes, message):
    from lorafit.evaluate.harness import run_tasks

    subject = open_subject(known, None, [], None, needs_rows=False)
    with pytest.raises(UserError, match=message) as caught:
        run_tasks(subject, wanted(**{"include_path": tasks, **changes}), Heard())
    assert caught.value.exit_code == 2


def test_a_task_whose_data_is_missing_is_refused(known, tmp_path):
    from lorafit.evaluate.harness import run_tasks

    (tmp_path / "codes.yaml").write_text(GENERATE.format(rows=tmp_path / "gone.jsonl"))
    subject = open_subject(known, None, [], None, needs_rows=False)
    with pytest.raises(UserError, match="cannot be loaded"):
        run_tasks(subject, wanted(include_path=tmp_path), Heard())


def test_a_task_that_runs_what_the_model_writes_is_refused(known, tasks, tmp_path):
    from lorafit.evaluate.harness import run_tasks

    (tmp_path / "codes.yaml").write_text((tasks / "codes.yaml").read_text() + "unsafe_code: true\n")
    subject = open_subject(known, None, [], None, needs_rows=False)
    with pytest.raises(UserError, match="runs programs that the model writes"):
        run_tasks(subject, wanted(include_path=tmp_path), Heard())
