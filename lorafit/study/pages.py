"""Tables of a study: for the terminal, and as Markdown with a plot beside it."""

from collections.abc import Sequence
from pathlib import Path

from lorafit.study.draw import Point, Series, chart
from lorafit.study.noise import Spread
from lorafit.study.regret import ArmResult, Regret

REGRET_HEADINGS = ("arm", "best rate", "of full's", "held-out loss", "less full's",
                   "95 % interval", "trained parameters", "s a step", "peak memory", "")


def regret_rows(found: Regret) -> list[list[str]]:
    """The table of arms, a list of cells each."""
    full = next(arm for arm in found.arms if arm.rank is None)
    return [_regret_row(arm, full) for arm in found.arms]


def _regret_row(arm: ArmResult, full: ArmResult) -> list[str]:
    rate = arm.learning_rate
    ratio = f"{rate / full.learning_rate:.2g}×" if rate and full.learning_rate else ""
    loss, apart = arm.loss, arm.difference
    noise = f" ± {loss.deviation:.4f}" if loss and loss.deviation is not None else ""
    interval = (f"{apart.low:+.4f} to {apart.high:+.4f}"
                if apart and apart.low is not None and apart.high is not None else "")
    return [
        arm.name, f"{rate:.3g}" if rate else "", ratio, f"{loss.mean:.4f}{noise}" if loss else "",
        f"{apart.mean:+.4f}" if apart else "", interval,
        f"{arm.trained_parameters:,}" if arm.trained_parameters else "",
        f"{arm.step_s:.3f}" if arm.step_s else "",
        f"{arm.peak_memory_bytes / 1e9:.2f} GB" if arm.peak_memory_bytes else "", arm.missing]


def regret_plot(found: Regret) -> str:
    """Held-out loss against learning rate, a line an arm; a bar is the deviation over seeds."""
    def points(arm: ArmResult) -> list[Point]:
        noise = arm.loss.deviation if arm.loss and arm.loss.deviation else 0.0
        return [Point(each.learning_rate, each.loss,
                      noise if each.learning_rate == arm.learning_rate else 0.0)
                for each in arm.tried]

    return chart(f"{Path(found.base).name}: {found.steps} steps", "learning rate",
                 "held-out loss, nats a token",
                 [Series(arm.name, points(arm)) for arm in found.arms])


def regret_page(found: Regret, plot: str) -> str:
    """Markdown. plot: the file of the plot, as the page names it."""
    seeds = len(found.seeds)
    lines = [
        f"**{found.sentence}**", "",
        f"{found.runs} runs of {found.steps} steps each ({found.supervised_tokens:,} supervised "
        f"tokens), on the same rows in the same order for each seed; {seeds} "
        f"seed{'s' if seeds > 1 else ''} at each arm's best rate. Held-out loss in nats per "
        f"supervised token; before training {found.start_loss or float('nan'):.4f}.", "",
        *markdown_table(REGRET_HEADINGS, regret_rows(found)), "",
        f"![Held-out loss against learning rate, a line for each arm]({plot})", "",
        "Tried on the first seed (rate: loss):", "",
        *(f"- {arm.name}: " + ", ".join(
            f"{each.learning_rate:.3g}: "
            f"{'diverged' if each.loss is None else format(each.loss, '.4f')}"
            for each in arm.tried) for arm in found.arms),
    ]
    if seeds > 1:
        lines += ["", "Mean over seeds at the two best of these (± their standard deviation):", "",
                  *(f"- {arm.name}: " + ", ".join(map(_candidate, arm.candidates))
                    for arm in found.arms if arm.candidates)]
    if found.remarks:
        lines += ["", *(f"- Note: {remark}." for remark in found.remarks)]
    return "\n".join(lines) + "\n"


def _candidate(candidate: tuple[float, Spread]) -> str:
    rate, loss = candidate
    noise = "" if loss.deviation is None else f" ± {loss.deviation:.4f}"
    return f"{rate:.3g}: {loss.mean:.4f}{noise} ({loss.seeds})"


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns that no row fills are left out."""
    kept = [number for number in range(len(headings)) if any(row[number] for row in rows)]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells[number].replace("|", "\\|") for number in kept) + " |"

    return [line(headings), "|" + "---|" * len(kept), *map(line, rows)]
