"""What the verbs that show runs do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorafit.cli.before import refuse_taken_json, settle_hub_for
from lorafit.cli.show_inspect import either
from lorafit.errors import MachineError, UserError
from lorafit.report.glance import Glance, State, find_runs, glance

# Rows without the figure come last.
_KEYS: dict[str, Callable[[Glance], tuple[Any, ...]]] = {
    "time": lambda each: (each.at is None, -(each.at or 0)),
    "name": lambda each: (each.path,),
    "state": lambda each: (list(State).index(each.state),),
    "step": lambda each: (-each.step,),
    "loss": lambda each: (each.loss is None, each.loss),
    "held-out": lambda each: (each.held_out_loss is None, each.held_out_loss),
    "speed": lambda each: (each.tokens_per_s is None, -(each.tokens_per_s or 0)),
}


class _Rows(list[Glance]):
    def as_dict(self) -> dict[str, Any]:
        return {"runs": [each.as_dict() for each in self]}


def runs(directory: Path, sort: str, json_to: Path | None) -> None:
    if sort not in _KEYS:
        raise UserError(f"nothing is sorted by {sort!r}", "--sort", f"use {', '.join(_KEYS)}")
    refuse_taken_json(json_to)
    from lorafit.cli import show_report

    seen = sorted(map(glance, find_runs(directory)), key=lambda each: each.path)
    rows = _Rows(sorted(seen, key=_KEYS[sort]))
    if not rows and json_to is None:
        print(f"no runs in {directory}")
        return
    either(json_to, rows, lambda made: show_report.runs(made, directory))


def follow(path: Path) -> None:
    from lorafit.cli import show_report
    from lorafit.json_files import read_object
    from lorafit.report.follow import follow as news_of
    from lorafit.report.glance import open_glance
    from lorafit.run_dir import RunDir
    from lorafit.train.display import make_display

    open_glance(path)
    record = RunDir(path).record
    processes = read_object(record).get("processes", 1) if record.exists() else 1
    ended = show_report.followed(news_of(path), make_display(True), int(processes))
    if ended.state is State.KILLED:
        raise MachineError(
            f"{path}: killed after step {ended.step:,}: {ended.remark}\n    go on with lorafit "
            f"train {path}/recipe.yaml --resume")
    show_report.over(ended)


def report(paths: list[Path], output: Path, *, force: bool, tokens: int | None,
           png: Path | None) -> None:
    from lorafit import libraries
    from lorafit.cli import show, show_report
    from lorafit.report.writing import refuse_report, write_report

    stories = refuse_report(paths, output, png, force=force)
    for story in stories:
        if tokens is not None:
            _refuse_without_result(story)
    if tokens is None:
        libraries.settle(needs_hub=False)
    else:
        settle_hub_for(paths[0], None, *paths[1:])
    made = write_report(stories, output, tokens, png, show.progress)
    show_report.written(made.page, made.plots)


def _refuse_without_result(story: Any) -> None:
    """Tokens are measured with the weights that the run came to."""
    if not story.result:
        raise UserError("the run has no result yet", str(story.run.path),
                        "leave out --tokens, or finish the run with --resume")
