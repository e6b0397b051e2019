"""The verb that measures: base beside adapter, beside other models, beside other runs."""

from pathlib import Path
from typing import Annotated

import typer

from lorafit.cli.app import Base, Json, Overrides, app


@app.command(name="eval")
def evaluate(
    trained: Annotated[list[Path], typer.Argument(
        metavar="RUN|ADAPTER|MODEL...", show_default=False,
        help="A finished run; one of its checkpoints; with --data or --tasks also an adapter or a "
        "model by itself. Several with --compare.")],
    data: Annotated[Path | None, typer.Option(
        metavar="FILE", show_default=False,
        help="Ask these rows in place of the run's held-out ones.")] = None,
    merged: Annotated[Path | None, typer.Option(
        metavar="DIR", show_default=False,
        help="Measure the merged model too, as `lorafit merge` wrote it.")] = None,
    also: Annotated[list[Path] | None, typer.Option(
        metavar="DIR", show_default=False,
        help="Measure another model, adapter or run of the same vocabulary too. Repeatable.",
    )] = None,
    base: Base = None,
    pattern: Annotated[str | None, typer.Option(
        metavar="REGEX", show_default=False,
        help="Compare what this pattern's one group finds in the answers, numbers as numbers: "
        "'#### (-?[\\d,.]+)' for GSM8K. '' compares whole answers.")] = None,
    rows: Annotated[int | None, typer.Option(
        min=1, help="Use only the first held-out rows (of each task, with --tasks).",
        show_default=False)] = None,
    max_new_tokens: Annotated[int | None, typer.Option(
        min=1, show_default=False,
        help="Longest answer, in tokens; the recipe's (128) if left out.")] = None,
    batch_size: Annotated[int | None, typer.Option(
        min=1, show_default=False,
        help="Rows answered at once; the recipe's (32) if left out.")] = None,
    overrides: Overrides = None,
    samples: Annotated[int, typer.Option(
        min=0, help="Sample answers to print, wrong and right ones.")] = 4,
    name: Annotated[str | None, typer.Option(
        show_default=False,
        help="Keep the result as evaluations/NAME.json in the run; made from its rows and settings "
        "if left out. With --compare: which one to compare.")] = None,
    compare: Annotated[bool, typer.Option(
        "--compare", help="Evaluate nothing: put kept evaluations of several runs side by side.",
    )] = False,
    tasks: Annotated[str | None, typer.Option(
        metavar="TASK,TASK,…", show_default=False,
        help="Run these tasks of the lm-eval package in place of held-out rows: names, or files of "
        "tasks of your own. With --compare: compare what was kept of them.")] = None,
    include_path: Annotated[Path | None, typer.Option(
        metavar="DIR", show_default=False,
        help="With --tasks: a directory with tasks of your own.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(
        min=0, show_default=False,
        help="With --tasks: examples before each question; each task's own number if left out.",
    )] = None,
    chat_template: Annotated[bool | None, typer.Option(
        "--chat-template/--no-chat-template", show_default=False,
        help="With --tasks: ask through the chat template, or not; as the run was trained if left "
        "out.")] = None,
    json_to: Json = None,
) -> None:
    """Measure base and adapter on held-out rows: right answers, loss, and what is chance.

    Every figure comes with its 95 % interval, and every difference is taken row by row. Results are
    kept in the run.
    """
    from lorafit.cli.verbs import evaluate as verbs

    if compare:
        verbs.compare(trained, name, tasks, json_to, given={
            "--data": data, "--merged": merged, "--also": also, "--pattern": pattern,
            "--rows": rows, "--set": overrides})
        return
    asked = verbs.Asked(
        trained, data, [*([merged] if merged else []), *(also or [])], merged, base, pattern, rows,
        max_new_tokens, batch_size, list(overrides or []), name)
    if tasks is not None:
        verbs.tasks(asked, tasks, include_path, num_fewshot, chat_template, json_to)
    else:
        verbs.held_out(asked, samples, json_to, given={
            "--include-path": include_path, "--num-fewshot": num_fewshot,
            "--chat-template": chat_template})
