"""What the verbs print: short tables, and what to type next."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorafit.recipe.schema import Checks, Recipe
from lorafit.run_dir import RunDir, read_json, read_jsonl

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
    if facts is None:
        console.print(f"trained   by {recipe.adapter.method}, whose size follows from the base's "
                      "weights: counted when they are loaded")
    else:
        share = 100 * facts.trainable_parameters / facts.total_parameters
        console.print(f"trained   {facts.trainable_parameters:,} of {facts.total_parameters:,} "
                      f"parameters ({share:.4g} %)")
    for remark in record.remarks:
        console.print(f"{'':<9} {remark}", markup=False)
    for name, report in (("rows", record.train), ("held out", record.held_out)):
        if report is not None:
            console.print(f"{name:<9} {_data_line(report)}", markup=False)
            for remark in _remarks(report):
                console.print(f"{'':<9} {remark}", markup=False)
    plan = record.plan
    console.print(f"steps     {plan.total_steps:,} of {recipe.training.batch_size} sequences, "
                  f"{plan.micro_batch_size} at once")
    for problem in record.skipped_checkpoints:
        console.print(f"skipped   {problem}", markup=False)
    if record.resumed_from:
        console.print(f"resumed   from {record.resumed_from}")
    console.print()
    if facts is not None:
        console.print(_kinds(facts))
    console.print(_decisions(record.decisions))


def foreign_code(source: str, files: list[str], digest: str) -> None:
    """What `model.trust_remote_code` lets run, before it does."""
    console.print(f"code      model.trust_remote_code is set: Python programs of {source} run as "
                  "you, with your files and your tokens:", markup=False)
    for file in files:
        console.print(f"{'':<9} {file}", markup=False)
    console.print(f"{'':<9} SHA-256 of them all: {digest[:16]}; other code is refused until you "
                  "allow it too", markup=False)


def finished(recipe: Recipe, result: Any) -> None:
    """How training ended, where everything is, and what to type next."""
    from lorafit.train.display import duration

    progress_ = result.progress
    run = recipe.output.dir
    ended = " (stopped early)" if progress_.stopped_early else ""
    console.print(f"\ndone      {progress_.step:,} steps in {duration(result.seconds)}{ended}; "
                  f"first step after {result.first_step_after_s:.1f} s; "
                  f"peak memory {result.peak_memory_bytes / 2**30:.2f} GiB")
    told = read_json(RunDir(Path(run)).record).get("predicted")
    if told is not None:
        from lorafit.train.predicted import beside

        console.print(f"predicted {beside(told, result.peak_memory_bytes, result.step_s)}",
                      markup=False)
    if progress_.first_eval_loss is not None:
        best = progress_.best_loss if progress_.best_loss is not None else float("nan")
        console.print(f"held out  loss {progress_.first_eval_loss:.4f} before, "
                      f"{best:.4f} at best (step {progress_.best_step}), "
                      f"{progress_.last_eval_loss:.4f} at the end")
    if result.read is not None:
        left_out = _left_out(result.read) + [
            f"{result.read[check]:,} found by {check}" for check in Checks.model_fields
            if check in result.read]
        console.print(f"read      {result.read['rows_read']:,} rows of the stream, "
                      f"{result.read['tokens']:,} tokens{_after(left_out)}")
    if (share := _efficiency(RunDir(Path(run)))) is not None:
        console.print(f"computed  {share.tokens:,} tokens and {share.padding:.1%} padding; "
                      f"{share.supervised:.1%} of what was computed carried a loss")
    console.print(f"adapter   {run}/adapter (weights of step {result.kept_step})", markup=False)
    verbs = [f"lorafit generate {run} --prompt '…'"]
    if progress_.first_eval_loss is not None:
        verbs.append(f"lorafit eval {run}")
    row = recipe.adapter.row
    if row.merges:
        verbs.append(f"lorafit merge {run}")
    if row.where != "weights":  # full fine-tuning leaves a model, no adapter
        verbs.append(f"lorafit export-adapter {run}")
    next_commands(verbs)


@dataclass(frozen=True)
class _Efficiency:
    """Tokens without padding; padding and supervised tokens as parts of all that was computed."""

    tokens: int
    padding: float
    supervised: float


def _efficiency(run: RunDir) -> _Efficiency | None:
    steps = [line for line in read_jsonl(run.metrics) if "computed_tokens" in line]
    computed = sum(line["computed_tokens"] for line in steps)
    if not computed:
        return None
    tokens = sum(line["tokens"] for line in steps)
    supervised = sum(line["supervised_tokens"] for line in steps)
    return _Efficiency(tokens, 1 - tokens / computed, supervised / computed)


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


def merged(result: Any) -> None:
    """What a merge did and how well it agrees."""
    how = (f"shard by shard; {result.updated} weights updated, {result.replaced} replaced"
           if not result.in_memory else "in memory, by peft")
    console.print(f"merged    {result.directory} ({how})", markup=False)
    if result.tensors is not None:
        found = result.tensors
        console.print(f"checked   {found.updated} updated tensors against W + ΔW in float64, "
                      f"{found.replaced} replaced ones and {found.unchanged} that stay; largest "
                      f"relative difference {found.largest_relative:.1e}. Logits were not "
                      "compared, which needs both models in memory (--check logits)")
    else:
        whose = "base" if result.onto == "full" else "the quantised base"
        console.print(f"checked   against {whose} + adapter: {_agreement(result.agreement)}")
    if result.against_quantised is not None:
        console.print("          against the quantised base it was trained on: "
                      f"{_agreement(result.against_quantised)}")


def exported(result: Any) -> None:
    """Where the exported adapter is and what was checked."""
    console.print(f"exported  {result.directory} ({result.size_bytes / 1e6:.2f} MB)",
                  markup=False)
    found = "are bit-equal"
    if not result.agreement.bit_equal:
        found = f"differ by rounding ({result.agreement.relative_rms:.0e} of their norm)"
    console.print(f"checked   loaded by {result.loaded_by}: logits of "
                  f"{result.agreement.positions} positions {found}")
    if result.remark:
        console.print(f"form      {result.remark}", markup=False)
    if result.cut is not None:
        _cut(result.cut)
    if result.command:
        next_commands([result.command])


def _cut(cut: Any) -> None:
    """What a limit of the rank cost."""
    before = max(layer.rank_before for layer in cut.layers)
    console.print(f"cut       from rank {before} to {max(layer.rank for layer in cut.layers)}: "
                  f"{cut.energy_kept:.4%} of ‖ΔW‖² kept")
    console.print(f"          loss {cut.loss_before:.4f} before, {cut.loss:.4f} after, nats per "
                  f"token on {cut.rows}; KL {cut.agreement.mean_kl:.2e}")
    for remark in cut.remarks:
        console.print(f"          {remark}", markup=False)


def cache(directory: str, entries: list[Any]) -> None:
    """What the cache holds, the most recently used first."""
    total = sum(entry.size_bytes for entry in entries)
    console.print(f"cache     {directory}: {_count(len(entries), 'entry', 'entries')}, "
                  f"{_megabytes(total)}", markup=False)
    if not entries:
        return
    table = Table()
    for heading in ("key", "last used", "rows", "tokens", "size", "source"):
        table.add_column(heading, justify="left" if heading in ("key", "source") else "right",
                         overflow="fold")
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used_s))
        table.add_row(entry.key[:12], used, f"{entry.rows:,}", f"{entry.tokens:,}",
                      _megabytes(entry.size_bytes), Text(entry.source))
    Console().print(table)


def cache_deleted(entries: list[Any]) -> None:
    total = sum(entry.size_bytes for entry in entries)
    console.print(f"deleted   {_count(len(entries), 'entry', 'entries')}, {_megabytes(total)}")


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"


def _agreement(agreement: Any) -> str:
    return (f"largest logit difference {agreement.max_difference:.2e}, relative "
            f"{agreement.relative_rms:.2e}, top-1 agreement {agreement.top1:.2%}, "
            f"KL {agreement.mean_kl:.2e} over {agreement.positions} positions")


def _data_line(report: dict[str, Any]) -> str:
    line = (f"{report['rows_used']:,} rows, {report['tokens']:,} tokens, "
            f"{report['supervised_tokens']:,} supervised, longest {report['longest_tokens']:,}; "
            f"{report['format']} ({report['format_reason']}) from {report['source']}")
    return line + _after(_left_out(report))


def _left_out(counts: dict[str, Any]) -> list[str]:
    """What did not come through as it was, each with its number of rows."""
    return [f"{counts[key]:,} {what}" for key, what in (
        ("rows_not_wanted", "judged unwanted"), ("rows_dropped_by_checks", "dropped by checks"),
        ("rows_dropped_long", "dropped as too long"), ("rows_truncated", "truncated"),
        ("rows_split", "split"),
        ("rows_dropped_unsupervised", "dropped without a supervised token"),
    ) if counts[key]]


def _after(remarks: list[str]) -> str:
    return f"; {', '.join(remarks)}" if remarks else ""


def _remarks(report: dict[str, Any]) -> list[str]:
    """What the reading of the data noticed, and what its checks found."""
    found = [
        f"{_count(finding['rows'], 'row', 'rows')} ({finding['check']}"
        f"{', dropped' if finding['verdict'] == 'drop' else ''}): {finding['places'][0]}: "
        f"{finding['example']}" for finding in report["findings"]
    ]
    return [*report["notices"], *found]


def _kinds(facts: Any) -> Table:
    table = Table(title="adapted layers", title_justify="left")
    settings = [key for key in ("rank", "alpha", "scale")  # what the method has
                if any(getattr(kind, key) is not None for kind in facts.kinds)]
    for heading in ("kind", "layers", "shape", *settings, "parameters"):
        table.add_column(heading, justify="left" if heading == "kind" else "right",
                         overflow="fold")
    for kind in facts.kinds:
        table.add_row(kind.kind, str(kind.layers), kind.shape,
                      *(_given(getattr(kind, key)) for key in settings), f"{kind.parameters:,}")
    for name, parameters in facts.fully_trained.items():
        table.add_row(f"{name} (in full)", "1", "", *("" for _ in settings), f"{parameters:,}")
    return table


def _given(value: float | None) -> str:
    """A number, or nothing for what the method does not have."""
    return "" if value is None else f"{value:.4g}"


def _decisions(decisions: list[Any]) -> Table:
    table = Table(title="decided", title_justify="left")
    for heading in ("key", "value", "because"):
        table.add_column(heading)
    for decision in decisions:
        table.add_row(decision.key, str(decision.value), decision.reason)
    return table
