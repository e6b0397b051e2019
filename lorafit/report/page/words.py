"""What the model says and what became of rows: sample answers, tokens, warnings, recipes."""

from collections.abc import Sequence
from typing import Any

from lorafit.report.page.text import block, folded, line, table
from lorafit.report.story import Story
from lorafit.report.token_losses import Row, Token, TokenLosses

_FULL_NATS = 3.0  # a change that is shown in full colour
_NOTES = 50
_ABSENT = "—"


def samples(story: Story) -> str:
    """The answers to each prompt over time, the first and the last in sight."""
    by_prompt: dict[str, list[tuple[int, str]]] = {}
    for each in story.samples:
        prompt, answer = each.get("prompt"), each.get("answer")
        if isinstance(prompt, str) and isinstance(answer, str):
            by_prompt.setdefault(prompt, []).append((each["step"], answer))
    if not by_prompt:
        return ("<p class='quiet'>None: training.sample_prompts of the recipe are answered at each "
                "evaluation.</p>")
    return "".join(f"<h3>{line(prompt)}</h3>{_answers(answers)}"
                   for prompt, answers in by_prompt.items())


def _answers(answers: Sequence[tuple[int, str]]) -> str:
    def shown(some: Sequence[tuple[int, str]]) -> str:
        return table(["step", "answer"], [(f"{step:,}", block(text)) for step, text in some],
                     words=True)

    if len(answers) <= 3:
        return shown(answers)
    return shown([answers[0], answers[-1]]) + folded(
        f"all {len(answers)} answers", shown(answers))


def tokens(story: Story, found: TokenLosses | None, rows: int) -> str:
    """The rows that changed most, each token by what happened to its loss."""
    if found is None:
        return ("<p class='quiet'>Not measured of these weights: it needs the model. "
                f"<code>lorafit report {line(story.run.path)} --tokens 8</code> measures it once "
                "and keeps it in the run.</p>")
    shown = found.most_changed(rows)
    rose = sum(row.change > 0 for row in found.rows)
    said = (f"<p>{len(shown)} of {len(found.rows)} {line(found.of)}: those whose loss rose most "
            f"(or fell least), then those whose fell most. It rose in {rose}. Tokens whose loss "
            f"<b class='d'>fell</b>, <b class='u'>rose</b> (underlined too), in full colour "
            f"from {_FULL_NATS:g} nats; grey: not trained. Each token says its loss when pointed "
            "at.</p>")
    return said + "".join(map(_row, shown))


def _row(row: Row) -> str:
    change = f"{row.base:.3f} → {row.tuned:.3f} ({row.change:+.3f} nats a token)"
    return (f"<details open><summary>row {row.number} <span class='quiet'>{change}</span></summary>"
            f"<pre class='tokens'>{''.join(map(_token, row.tokens))}</pre><output></output>"
            "</details>")


def _token(token: Token) -> str:
    text = block(token.text)
    if token.base is None or token.tuned is None:
        return f"<span class='x'>{text}</span>"
    change = token.tuned - token.base
    share = min(1.0, abs(change) / _FULL_NATS)
    return (f"<span class='{'u' if change > 0.05 else 'd'}' style='--share:{share:.0%}' "
            f"title='loss {token.base:.3f} → {token.tuned:.3f} nats'>{text}</span>")


def notes(story: Story) -> str:
    """Warnings and steps that were left out."""
    found = story.notes
    more = f"<p class='quiet'>and {len(found) - _NOTES:,} more</p>" if len(found) > _NOTES else ""
    return table(["step", ""], [(f"{step:,}", line(text)) for step, text in found[:_NOTES]],
                 words=True) + more


def decisions(story: Story) -> str:
    """What was decided, and why; remarks before it."""
    remarks = story.record.get("remarks")
    said = "".join(f"<p>{line(each)}</p>" for each in remarks if isinstance(each, str)) \
        if isinstance(remarks, list) else ""
    found = story.record.get("decisions")
    rows = [(line(each.get("key", "")), line(each.get("value", "")), line(each.get("reason", "")))
            for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    return said + table(["", "", "why"], rows, words=True)


def recipe(story: Story) -> str:
    return f"<pre>{block(story.recipe)}</pre>"


def differences(stories: Sequence[Story]) -> str:
    """The keys of the recipes that are not the same in all runs."""
    keys = list(dict.fromkeys(key for story in stories for key in story.keys))
    rows = []
    for key in keys:
        values = [story.keys.get(key, _ABSENT) for story in stories]
        if key != "output.dir" and any(value != values[0] for value in values):
            rows.append((line(key), *(_value(value, values[0]) for value in values)))
    if not rows:
        return "<p>The recipes are the same but for output.dir.</p>"
    return table(["key", *(line(story.name) for story in stories)], rows, words=True)


def _value(value: Any, first: Any) -> str:
    text = line("null" if value is None else value)
    return text if value == first else f"<b class='differs'>{text}</b>"
