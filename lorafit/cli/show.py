"""What the verbs print: short tables, and what to type next."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorafit.recipe.schema import Recipe

console = Console(highlight=False, soft_wrap=True)


def progress(text: str) -> None:
    console.print(text, markup=False)


def record(recipe: Recipe, record: Any) -> None:
    """What was decided and why, what is trained, and what the data holds."""
    facts = record.adapter
    base = recipe.model.base
    stored = "" if recipe.model.quantization == "none" else f" in {recipe.model.quantization}"
    console.print(f"base      {base}{stored}, on {record.device}"
                  f"{f', {record.processes} processes' if record.processes > 1 else ''}",
                  markup=False)
    share = 100 * facts.trainable_parameters / facts.total_parameters
    console.print(f"trained   {facts.trainable_parameters:,} of {facts.total_parameters:,} "
                  f"parameters ({share:.4g} %)")
    for name, report in (("rows", record.train), ("held out", record.held_out)):
        if report is not None:
            console.print(f"{name:<9} {_data_line(report)}", markup=False)
    plan = record.plan
    console.print(f"steps     {plan.total_steps:,} of {recipe.training.batch_size} sequences, "
                  f"{plan.micro_batch_size} at once")
    for problem in record.skipped_checkpoints:
        console.print(f"skipped   {problem}", markup=False)
    if record.resumed_from:
        console.print(f"resumed   from {record.resumed_from}")
    console.print()
    console.print(_kinds(facts))
    console.print(_decisions(record.decisions))


def finished(recipe: Recipe, result: Any) -> None:
    """How training ended, where everything is, and what to type next."""
    from lorafit.train.display import duration

    progress_ = result.progress
    run = recipe.output.dir
    ended = " (stopped early)" if progress_.stopped_early else ""
    console.print(f"\ndone      {progress_.step:,} steps in {duration(result.seconds)}{ended}; "
                  f"first step after {result.first_step_after_s:.1f} s; "
                  f"peak memory {result.peak_memory_bytes / 2**30:.2f} GiB")
    if progress_.first_eval_loss is not None:
        best = progress_.best_loss if progress_.best_loss is not None else float("nan")
        console.print(f"held out  loss {progress_.first_eval_loss:.4f} before, "
                      f"{best:.4f} at best (step {progress_.best_step}), "
                      f"{progress_.last_eval_loss:.4f} at the end")
    console.print(f"adapter   {run}/adapter (weights of step {result.kept_step})", markup=False)
    verbs = [f"lorafit generate {run} --prompt '…'"]
    if progress_.first_eval_loss is not None:
        verbs.append(f"lorafit eval {run}")
    next_commands([*verbs, f"lorafit merge {run}", f"lorafit export-adapter {run}"])


def next_commands(commands: list[str]) -> None:
    console.print("next      " + "\n          ".join(commands), markup=False)


def answers(answers: dict[str, str]) -> None:
    """Answers side by side, or the one alone as it is, for pipes."""
    if len(answers) == 1:
        print(next(iter(answers.values())))
        return
    table = Table(expand=True)
    for name in answers:
        table.add_column(name, ratio=1)
    table.add_row(*(Text(text) for text in answers.values()))
    Console().print(table)


def evaluation(result: Any, samples: int) -> None:
    """Before and after, with sample answers."""
    table = Table(title="held-out rows, base against adapter", title_justify="left")
    for heading in ("", "exact match", "loss (nats per token)"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, score in (("base", result.base), ("adapter", result.adapter)):
        table.add_row(name, f"{score.correct}/{score.rows} = {score.accuracy:.1%}",
                      f"{score.loss:.4f}")
    console.print(table)
    if not samples:
        return
    table = Table(title="sample answers", title_justify="left", show_lines=True)
    for heading in ("prompt", "wanted", "base", "adapter"):
        table.add_column(heading, overflow="fold")
    for row in result.answers[:samples]:
        table.add_row(*(Text(_clip(text)) for text in (row.prompt, row.wanted, row.base,
                                                       row.adapter)))
    Console(width=max(console.width, 120)).print(table)


def merged(result: Any) -> None:
    """What a merge did and how well it agrees."""
    how = (f"shard by shard; {result.updated} weights updated, {result.replaced} replaced"
           if not result.in_memory else "in memory, by peft")
    console.print(f"merged    {result.directory} ({how})", markup=False)
    console.print(f"checked   against base + adapter: {_agreement(result.agreement)}")
    if result.against_quantised is not None:
        console.print("          against the quantised base it was trained on: "
                      f"{_agreement(result.against_quantised)}")


def exported(result: Any) -> None:
    """Where the exported adapter is and what was checked."""
    console.print(f"exported  {result.directory} ({result.size_bytes / 1e6:.2f} MB)",
                  markup=False)
    console.print(f"checked   loaded by plain peft: logits of {result.agreement.positions} "
                  "positions are bit-equal")


def _agreement(agreement: Any) -> str:
    return (f"largest logit difference {agreement.max_difference:.2e}, relative "
            f"{agreement.relative_rms:.2e}, top-1 agreement {agreement.top1:.2%}, "
            f"KL {agreement.mean_kl:.2e} over {agreement.positions} positions")


def _data_line(report: dict[str, Any]) -> str:
    line = (f"{report['rows_used']:,} rows, {report['tokens']:,} tokens, "
            f"{report['supervised_tokens']:,} supervised, longest {report['longest_tokens']:,}; "
            f"{report['format']} ({report['format_reason']}) from {report['source']}")
    lost = [f"{report[key]:,} {what}" for key, what in (
        ("rows_dropped_long", "dropped as too long"), ("rows_truncated", "truncated"),
        ("rows_dropped_unsupervised", "dropped without a supervised token"),
    ) if report[key]]
    return line + (f"; {', '.join(lost)}" if lost else "")


def _kinds(facts: Any) -> Table:
    table = Table(title="adapted layers", title_justify="left")
    for heading in ("kind", "layers", "out × in", "rank", "alpha", "scale", "parameters"):
        table.add_column(heading, justify="left" if heading == "kind" else "right")
    for kind in facts.kinds:
        table.add_row(kind.kind, str(kind.layers), kind.shape, str(kind.rank), f"{kind.alpha:g}",
                      f"{kind.scale:.4g}", f"{kind.parameters:,}")
    for name, parameters in facts.fully_trained.items():
        table.add_row(f"{name} (in full)", "1", "", "", "", "", f"{parameters:,}")
    return table


def _decisions(decisions: list[Any]) -> Table:
    table = Table(title="decided", title_justify="left")
    for heading in ("key", "value", "because"):
        table.add_column(heading)
    for decision in decisions:
        table.add_row(decision.key, str(decision.value), decision.reason)
    return table


def _clip(text: str, width: int = 300) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
