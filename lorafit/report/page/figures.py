"""What a run came to, in a table: result, time, tokens, device, data, and what was predicted."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from lorafit.report.glance import State
from lorafit.report.logs import best_evaluation, is_number
from lorafit.report.page.text import bytes_of, line, seconds, table
from lorafit.report.story import Story, mapping

_Figure = Callable[[Story], str]


def figures(stories: Sequence[Story]) -> str:
    return _of_each(stories, _FIGURES)


def data(stories: Sequence[Story]) -> str:
    """What was read, used and dropped, of the training and the held-out rows."""
    sides = [(name, mapping(story.record.get(key)), story) for story in stories
             for key, name in (("train", "training"), ("held_out", "held-out"))]
    sides = [side for side in sides if side[1]]
    if not sides:
        return "<p class='quiet'>Nothing was written down of the data yet.</p>"
    heads = ["", *(line(name if len(stories) == 1 else f"{story.name}: {name}")
                   for name, _, story in sides)]
    rows = [(title, *(_counted(report, key) for _, report, _ in sides)) for key, title in _COUNTS]
    rows = [row for row in rows if any(cell not in ("", "0") for cell in row[1:])]
    rows.append(("tokens of a row, mean", *(_mean(report) for _, report, _ in sides)))
    sources = "".join(
        f"<p class='quiet'>{line(name if len(stories) == 1 else f'{story.name}: {name}')}: "
        f"{line(report.get('source', ''))}, {line(report.get('format', ''))}</p>"
        for name, report, story in sides)
    return table(heads, rows) + sources


def predicted(stories: Sequence[Story]) -> str:
    """Memory and time beside what was said of them before the run; empty where nothing was."""
    told = [story for story in stories if story.predicted]
    if not told:
        return ""
    rows = [row for story in told for row in _beside(story, len(stories) > 1)]
    heads = ["", "predicted", "measured", "measured / predicted"]
    return table(heads, rows)


def _of_each(stories: Sequence[Story], wanted: Sequence[tuple[str, _Figure]]) -> str:
    rows = [(name, *(figure(story) for story in stories)) for name, figure in wanted]
    return table(["", *(line(story.name) for story in stories)],
                 [row for row in rows if any(row[1:])])


def _state(story: Story) -> str:
    said = str(story.standing.state)
    return said if story.standing.state is State.FINISHED else f"<b class='warn'>{line(said)}</b>"


def _steps(story: Story) -> str:
    total = story.standing.total_steps
    return f"{story.standing.step:,}" + (f" of {total:,}" if total else "")


def _kept(story: Story) -> str:
    step = story.result.get("kept_step")
    return f"of step {step:,}" if is_number(step) else ""


def _before(story: Story) -> str:
    first = next((each for each in story.evaluations if each["step"] == 0), None)
    return "" if first is None else f"{first['held_out_loss']:.4f}"


def _best(story: Story) -> str:
    best = best_evaluation(story.evaluations)
    return "" if best is None else f"{best[1]:.4f} (step {best[0]:,})"


def _last_evaluation(story: Story) -> str:
    return f"{story.evaluations[-1]['held_out_loss']:.4f}" if story.evaluations else ""


def _answers(story: Story) -> str:
    """What `lorafit eval` counted last."""
    said = []
    for name in ("base", "adapter"):
        score = mapping(story.evaluation.get(name))
        if is_number(score.get("correct")) and _number(score, "rows"):
            said.append(f"{score['correct']:,} of {score['rows']:,} ({line(name)})")
    return ", ".join(said)


def _last_loss(story: Story) -> str:
    last = [step["loss"] for step in story.steps[-20:]]
    return f"{sum(last) / len(last):.4f}" if last else ""


def _time(story: Story) -> str:
    """Of the whole process where it ended; of its steps otherwise."""
    whole = story.result.get("seconds")
    if is_number(whole) and whole:
        return seconds(whole)
    spent = _spent(story)
    return f"{seconds(sum(spent))} in steps" if spent else ""


def _a_step(story: Story) -> str:
    return seconds(median(_spent(story))) if _spent(story) else ""


def _first_step(story: Story) -> str:
    value = story.result.get("first_step_after_s")
    return seconds(value) if is_number(value) and value else ""


def _tokens(story: Story) -> str:
    counts = [(_number(each, "supervised_tokens"), _number(each, "tokens")) for each in story.steps]
    supervised, tokens = (sum(side) for side in zip(*counts, strict=True)) if counts else (0, 0)
    return f"{supervised:,.0f} supervised of {tokens:,.0f}" if tokens else ""


def _speed(story: Story) -> str:
    spent = sum(_spent(story))
    tokens = sum(_number(each, "supervised_tokens") for each in story.steps)
    return f"{tokens / spent:,.0f} supervised" if spent else ""


def _waited(story: Story) -> str:
    spent = sum(_spent(story))
    waited = sum(_number(each, "seconds_data") for each in story.steps)
    return f"{waited / spent:.1%}" if spent else ""


def _device(story: Story) -> str:
    processes = story.record.get("processes", 1)
    return line(story.record.get("device", "")) + (
        f", {processes} processes" if is_number(processes) and processes > 1 else "")


def _peak(story: Story) -> str:
    peak = peak_bytes(story)
    return bytes_of(peak) if peak else ""


def peak_bytes(story: Story) -> float:
    """The most memory that was used; 0 where nothing says so."""
    logged = max((_number(each, "memory_bytes") for each in story.steps), default=0.0)
    return max(logged, _number(story.result, "peak_memory_bytes"))


def _trained(story: Story) -> str:
    adapter = mapping(story.record.get("adapter"))
    count, total = adapter.get("trainable_parameters"), adapter.get("total_parameters")
    if not (is_number(count) and is_number(total) and total):
        return ""
    return f"{count:,} of {total:,} ({count / total:.3%})"


def _key(name: str) -> _Figure:
    def value(story: Story) -> str:
        found = story.keys.get(name)
        return "" if found is None else line(found)
    return value


def _version(story: Story) -> str:
    return line(mapping(story.record.get("versions")).get("lorafit", ""))


_FIGURES: tuple[tuple[str, _Figure], ...] = (
    ("state", _state), ("steps", _steps), ("weights kept", _kept),
    ("held-out loss before", _before), ("held-out loss at best", _best),
    ("held-out loss at the end", _last_evaluation), ("training loss, last 20 steps", _last_loss),
    ("right answers (lorafit eval)", _answers),
    ("time", _time), ("first step after", _first_step), ("a step, median", _a_step),
    ("tokens", _tokens), ("tokens per second", _speed), ("waiting for data", _waited),
    ("device", _device), ("peak memory", _peak), ("base", _key("model.base")),
    ("method", _key("adapter.method")), ("rank", _key("adapter.rank")), ("trained", _trained),
    ("lorafit", _version),
)
_COUNTS = (
    ("rows_read", "rows read"), ("rows_used", "rows used"),
    ("rows_not_wanted", "not wanted (data.max_…)"), ("rows_dropped_by_checks", "dropped by checks"),
    ("rows_dropped_long", "dropped: too long"), ("rows_truncated", "cut off"),
    ("rows_split", "split"), ("rows_dropped_unsupervised", "dropped: nothing to train"),
    ("tokens", "tokens"), ("supervised_tokens", "tokens supervised"),
    ("longest_tokens", "tokens of the longest row"),
)


def _counted(report: dict[str, Any], key: str) -> str:
    value = report.get(key)
    if not is_number(value):
        return ""
    share = f" ({value / report['tokens']:.1%})" if key == "supervised_tokens" \
        and _number(report, "tokens") else ""
    return f"{value:,}{share}"


def _mean(report: dict[str, Any]) -> str:
    rows, tokens = _number(report, "rows_used"), _number(report, "tokens")
    return f"{tokens / rows:,.1f}" if rows else ""


def _beside(story: Story, several: bool) -> list[tuple[str, ...]]:
    told, name = story.predicted, f"{line(story.name)}: " if several else ""
    spent = _spent(story)
    sides = [
        ("peak memory", told.get("peak_memory_bytes"), peak_bytes(story), bytes_of),
        ("a step, median", told.get("step_s"), median(spent) if spent else 0.0, seconds),
        ("the whole run", told.get("total_s"), _number(story.result, "seconds"), seconds),
    ]
    rows: list[tuple[str, ...]] = [
        (name + title, words(said), words(seen) if seen else "",
         f"{seen / said:.2f}" if seen and said else "")
        for title, said, seen, words in sides if is_number(said)]
    parts = mapping(told.get("memory_bytes"))
    rows += [(f"{name}memory for {line(kind.replace('_', ' '))}", bytes_of(value), "", "")
             for kind, value in parts.items() if is_number(value)]
    return rows


def _spent(story: Story) -> list[float]:
    return [each["seconds"] for each in story.steps if is_number(each.get("seconds"))]


def _number(values: dict[str, Any], key: str) -> float:
    value = values.get(key)
    return value if is_number(value) else 0.0
