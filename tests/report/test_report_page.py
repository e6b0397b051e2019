"""`lorafit report`: the page is well-formed, needs nothing, escapes all, and shows what was logged.
"""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lorafit.errors import UserError
from lorafit.report.writing import refuse_report, write_report
from tests.report.conftest import NASTY

_VOID = {"meta", "br", "img", "input", "link", "hr"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps what there is of each."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: dict[str, list[dict[str, str | None]]] = {}
        self.words: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        self.seen.setdefault(tag, []).append(dict(attrs))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.setdefault(tag, []).append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.words.setdefault(self.open[-1], []).append(data)


def write(tmp_path: Path, *runs: Path, tokens: int | None = None) -> str:
    output = tmp_path / "report.html"
    stories = refuse_report(runs, output, None, force=True)
    write_report(stories, output, tokens, None, lambda text: None)
    return output.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def both(two_runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("page"), *two_runs)


def test_it_is_well_formed_and_loads_nothing(both: str) -> None:
    page = Page(both)
    assert not {"link", "img", "iframe", "object", "base", "form"} & set(page.seen)
    assert all(not tag.get("src") for tags in page.seen.values() for tag in tags)
    assert all(str(tag.get("href")).startswith("#") for tag in page.seen["a"])
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", both)
    policy = next(tag["content"] for tag in page.seen["meta"] if tag.get("http-equiv"))
    assert str(policy).startswith("default-src 'none'")
    assert len(page.seen["script"]) == 1
    ids = [tag["id"] for tag in page.seen["section"]]
    assert [str(tag["href"])[1:] for tag in page.seen["a"]] == ids


def test_what_comes_from_data_is_escaped(both: str) -> None:
    assert NASTY not in both
    assert "<script>alert" not in both
    assert "\u202e" not in both
    assert "&lt;script&gt;alert" in both
    assert "⟨U+202E⟩" in both


def test_every_step_says_what_was_logged(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    page = Page(write(tmp_path, two_runs[0]))
    titles = page.words["title"]
    lines = [json.loads(line) for line in
             (two_runs[0] / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "loss" in line:
            wanted = f"training, each step {line['loss']:.4g}"
            assert any(t.startswith(f"step {line['step']}: ") and wanted in t for t in titles)
        if "held_out_loss" in line:
            wanted = f"held-out {line['held_out_loss']:.4g}"
            assert any(t.startswith(f"step {line['step']}: ") and t.endswith(wanted)
                       for t in titles)


def test_figures_are_those_of_the_result(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    text = write(tmp_path, two_runs[0])
    result = json.loads((two_runs[0] / "result.json").read_text())
    progress = result["progress"]
    for wanted in (f"{progress['first_eval_loss']:.4f}",
                   f"{progress['best_loss']:.4f} (step {progress['best_step']})", "6 of 6"):
        assert f"<td>{wanted}</td>" in text


def test_layers_are_those_of_inspect(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    from lorafit.export.delta.inspection import inspect_adapter
    from lorafit.model.trained import open_adapter
    from lorafit.report.scale import number

    text = write(tmp_path, two_runs[0])
    for layer in inspect_adapter(open_adapter(two_runs[0])).layers:
        assert layer.norm is not None
        assert f">{number(float(f'{layer.norm:.3g}'))}</td>" in text, layer.name


def test_several_runs_are_told_apart_and_their_recipes_compared(both: str) -> None:
    page = Page(both)
    assert "one" in page.words["li"][0] + page.words["li"][1]
    assert [tag["stroke-dasharray"] for tag in page.seen["path"] if tag.get("stroke-dasharray")]
    differences = both.split("id='differences'")[1].split("</section>")[0]
    assert re.findall(r"scope='row'>([^<]+)<", differences) == [
        "adapter.rank", "training.steps", "training.learning_rate"]


def test_what_was_predicted_stands_beside_what_was_measured(finished: Path, tmp_path: Path) -> None:
    record = json.loads((finished / "record.json").read_text())
    del record["predicted"]
    (finished / "record.json").write_text(json.dumps(record))
    assert "Predicted and measured" not in write(tmp_path, finished)
    peak = json.loads((finished / "result.json").read_text())["peak_memory_bytes"]
    record["predicted"] = {"memory_bytes": {"base": 2**20}, "peak_memory_bytes": peak * 2,
                           "step_s": None, "total_s": 10.0, "based_on": "rates <of> this device"}
    (finished / "record.json").write_text(json.dumps(record))
    text = write(tmp_path, finished).split("Predicted and measured</h2>")[1]
    assert "<td>0.50</td>" in text
    assert "a step, median" not in text  # nothing was said of it
    assert "Predicted from rates &lt;of&gt; this device." in text
    assert "memory for base</th><td>1.0 MiB</td>" in text


def test_values_that_are_not_finite_are_gaps_that_are_told(finished: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["step"] == 3 and "loss" in line:
            line["loss"] = float("nan")
    lines.append({"step": 6, "warning": "the loss <jumped>"})
    (finished / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = write(tmp_path, finished)
    Page(text)
    assert "1 value that is not finite is a gap" in text
    assert "the loss &lt;jumped&gt;" in text
    assert "nan" not in "".join(re.findall(r" d='([^']*)'", text)).lower()


def test_a_run_that_goes_on_has_a_page_too(stopped: Path, tmp_path: Path) -> None:
    shutil.rmtree(stopped / "checkpoints")
    (stopped / "samples.jsonl").unlink()
    text = write(tmp_path, stopped)
    Page(text)
    assert "no weights were saved yet" in text
    (stopped / "record.json").unlink()
    (stopped / "metrics.jsonl").write_text("")
    assert "No step was logged yet" in write(tmp_path, stopped)


def test_the_loss_of_every_token_is_kept_and_shown(finished: Path, tmp_path: Path) -> None:
    assert "--tokens" in write(tmp_path, finished)
    measured = write(tmp_path, finished, tokens=2)
    kept = json.loads((finished / "token_losses.json").read_text())
    from lorafit.evaluate.contenders import Contender, Loader
    from lorafit.evaluate.loss import row_losses
    from lorafit.model.trained import open_adapter
    from lorafit.report.token_losses import _rows
    from lorafit.run_dir import RunDir

    source = open_adapter(finished)
    rows = _rows(RunDir(finished))
    for side, adapter in (("base", None), ("tuned", source.directory)):
        wanted = row_losses(Loader().load(Contender(side, source.model, adapter)), rows, 0)
        sums = [sum(token[side] or 0.0 for token in row["tokens"]) for row in kept["rows"]]
        assert sums == pytest.approx(wanted.tolist(), rel=1e-5)
    assert "".join(token["text"] for token in kept["rows"][0]["tokens"]) == \
        source.tokenizer().decode(rows[0].ids)
    assert measured.count("class='tokens'") == 2
    assert write(tmp_path, finished).count("class='tokens'") == 3  # kept, all there are
    with (finished / "adapter" / "adapter_model.safetensors").open("ab") as file:
        file.write(b" ")
    from lorafit.report.story import read_stories
    from lorafit.report.token_losses import kept as still_kept

    assert still_kept(read_stories([finished])[0]) is None  # of other weights


@pytest.mark.parametrize(("arrange", "said"), [
    (lambda run, page: (run / "record.json").write_text("{"), "is damaged"),
    (lambda run, page: (run / "recipe.yaml").write_text("a: [1"), "is damaged"),
    (lambda run, page: page.write_text("mine"), "already exists"),
    (lambda run, page: page.mkdir(), "is a directory"),
])
def test_what_cannot_be_is_refused_before_anything_is_written(
        finished: Path, tmp_path: Path, arrange: Any, said: str) -> None:
    page = tmp_path / "page.html"
    arrange(finished, page)
    with pytest.raises(UserError, match=said):
        refuse_report([finished], page, None, force=False)
    assert not page.is_file() or page.read_text() == "mine"


def test_a_run_named_twice_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="named twice"):
        refuse_report([finished, finished / "."], tmp_path / "page.html", None, force=False)


def test_plots_are_pictures_or_a_clear_refusal(finished: Path, tmp_path: Path) -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        with pytest.raises(UserError, match="needs matplotlib"):
            refuse_report([finished], tmp_path / "page.html", tmp_path / "plots", force=False)
        return
    stories = refuse_report([finished], tmp_path / "page.html", tmp_path / "plots", force=False)
    made = write_report(stories, tmp_path / "page.html", None, tmp_path / "plots",
                        lambda text: None)
    names = {path.stem for path in made.plots}
    assert {"loss", "learning_rate", "memory", "layers_norm"} <= names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made.plots)
