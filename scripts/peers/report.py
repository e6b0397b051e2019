"""What the runs are held to, and the table of what they measured."""

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

from peers.peer import Peer, Work
from peers.run import Run

SAME_LOSS = 1e-2
# A packing tool takes a step fewer or more over the same rows, while the loss falls by 0.8 in 20.
SAME_LOSS_PACKED = 5e-2
# Before its first step a tool may try the model on a few tokens, which the probe counts: lorafit
# runs two passes over seven.
START_UP_TOKENS = 32
# A model of random weights guesses: its loss is ln(vocabulary), and a little more.
NEAR_CHANCE = 0.5
WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Row:
    """A peer's runs, summed up.

    rates: tokens a second in each repeat that worked. first_norm: of the first step's gradient,
    before clipping if that was seen. padding: the part of the computed tokens that is padding.
    """

    peer: Peer
    version: str
    rates: list[float]
    peak_bytes: int
    first_step_s: float
    losses: list[float]
    first_norm: float
    padding: float
    recomputes: bool
    steps: int
    differs: list[str] = field(default_factory=list)
    failure: str | None = None

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


def rate(steps: list[dict[str, Any]]) -> float:
    """Tokens a second that are not padding, from the third step on."""
    steady = steps[WARM_UP_STEPS:]
    return (sum(step["tokens"] for step in steady)
            / (steps[-1]["time_s"] - steps[WARM_UP_STEPS - 1]["time_s"]))


def row(peer: Peer, version: str, runs: list[Run], work: Work, plain: Run | None,
        threads: int) -> Row:
    worked = [run for run in runs if run.failure is None]
    if not worked:
        why = runs[-1].failure if runs else "was not run"
        return Row(peer, version, [], 0, 0.0, [], 0.0, 0.0, False, 0, failure=why)
    steps = worked[0].steps
    differs = [found for run in worked
               for found in differences(peer, run.steps, work, plain, threads)]
    differs += [f"a repeat failed: {run.failure}" for run in runs if run.failure is not None]
    computed = sum(step["computed_tokens"] for step in steps)
    return Row(
        peer, version, [rate(run.steps) for run in worked],
        max(step["peak_bytes"] for run in worked for step in run.steps),
        statistics.median(run.steps[0]["since_start_s"] for run in worked),
        [step["loss"] for step in steps], steps[0]["norm_before_clip"] or steps[0]["grad_norm"],
        1 - sum(step["tokens"] for step in steps) / computed if computed else math.nan,
        any(step["recomputed"] for step in steps), len(steps), list(dict.fromkeys(differs)))


def differences(peer: Peer, steps: list[dict[str, Any]], work: Work, plain: Run | None,
                threads: int) -> list[str]:
    """In what a run's work is not the work that was asked for; empty if in nothing."""
    found = []
    tokens = sum(step["tokens"] for step in steps)
    # A packed step is a number of full rows; the last one may be left out or be a small one.
    allowed = work.tokens / work.steps if peer.packed else 0
    if not -allowed <= tokens - work.tokens <= allowed + START_UP_TOKENS:
        found.append(f"{tokens} tokens, not {work.tokens}")
    if not peer.packed and len(steps) != work.steps:
        found.append(f"{len(steps)} steps, not {work.steps}")
    supervised = sum(step["supervised"] for step in steps)
    if abs(supervised - work.supervised_tokens) > allowed:
        found.append(f"{supervised} supervised tokens, not {work.supervised_tokens}")
    norms = [step["grad_norm"] for step in steps]
    if not all(math.isfinite(norm) and norm > 0 for norm in norms):
        found.append(f"gradient norms from {min(norms)} to {max(norms)}")
    trained = {step["parameters"] for step in steps}
    if trained != {work.trained_parameters}:
        found.append(f"{trained} weights trained, not {work.trained_parameters}")
    for what, wanted in (("optimizer", "AdamW"), ("dtype", "float32"), ("threads", threads)):
        seen = {step[what] for step in steps}
        if seen != {wanted}:
            found.append(f"{what} {', '.join(map(str, seen))}, not {wanted}")
    losses = [step["loss"] for step in steps]
    chance = math.log(work.vocabulary)
    if not abs(losses[0] - chance) < NEAR_CHANCE:
        found.append(f"first loss {losses[0]:.3f}, chance is {chance:.3f}")
    if plain is not None and plain.failure is None:
        theirs = [step["loss"] for step in plain.steps]
        # Where the rows of a step are others, the mean over the run is what can be compared.
        ordered = peer.ordered and not peer.packed
        mine, other, name = ((losses[0], theirs[0], "first loss") if ordered else
                             (statistics.mean(losses), statistics.mean(theirs), "mean loss"))
        if not abs(mine - other) < (SAME_LOSS_PACKED if peer.packed else SAME_LOSS):
            found.append(f"{name} {mine:.4f}, the plain loop's is {other:.4f}")
    return found


def table(rows: list[Row]) -> str:
    head = ["tool", "version", "setting", "tokens/s", "min–max", "× plain", "padding", "recomputes",
            "peak GB", "1st step s", "loss", "1st gradient", "steps", "checks"]
    plain = next((row for row in rows if row.peer.name == "plain" and not row.failure), None)
    cells = [head]
    for row in rows:
        setting = row.peer.setting + (f": {row.peer.note}" if row.peer.note else "")
        if row.failure:
            cells.append([row.peer.tool, row.version, setting, f"failed: {row.failure}"])
            continue
        cells.append([
            row.peer.tool, row.version, setting, f"{row.rate:.1f}",
            f"{min(row.rates):.1f}–{max(row.rates):.1f}",
            f"{row.rate / plain.rate:.2f}" if plain else "", f"{row.padding:.0%}",
            "yes" if row.recomputes else "no", f"{row.peak_bytes / 1e9:.2f}",
            f"{row.first_step_s:.1f}", f"{row.losses[0]:.3f} → {row.losses[-1]:.3f}",
            f"{row.first_norm:.4f}", str(row.steps), "DIFFERS" if row.differs else "same work"])
    whole = [line for line in cells if len(line) == len(head)]
    widths = [max(len(line[column]) for line in whole) for column in range(len(head))]
    for column in range(3):  # rows of failures too
        widths[column] = max(len(line[column]) for line in cells)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False))
             .rstrip() for line in cells]
    lines += [f"{row.peer.name} DIFFERS: {'; '.join(row.differs)}" for row in rows if row.differs]
    return "\n".join(lines)


def conclusions(rows: list[Row]) -> list[str]:
    """lorafit beside the best and beside the middle of the peers. Only the same work counts."""
    good = [row for row in rows if not row.failure and not row.differs]
    own = next((row for row in good if row.peer.tool == "lorafit"), None)
    # The plain loop is no tool, but it is a peer.
    peers = [row for row in good if row.peer.tool != "lorafit"]
    defaults = [row.rate for row in peers if row.peer.setting == "default"]
    if own is None or not peers or not defaults:
        return ["No comparison: lorafit, or every peer, failed or did other work."]
    best = max(peers, key=lambda row: row.rate)
    lines = [
        f"lorafit against the best peer at its best setting ({best.peer.name}, "
        f"{best.rate:.1f} tokens/s): {own.rate / best.rate:.2f} ×",
        f"lorafit against the median peer's default ({statistics.median(defaults):.1f} tokens/s "
        f"of {len(defaults)} peers): {own.rate / statistics.median(defaults):.2f} ×",
    ]
    left_out = [row.peer.name for row in rows if row.failure or row.differs]
    if left_out:
        lines.append(f"Not compared, since they failed or did other work: {', '.join(left_out)}")
    return lines


def as_json(rows: list[Row]) -> list[dict[str, Any]]:
    return [{"peer": row.peer.name, "tool": row.peer.tool, "version": row.version,
             "setting": row.peer.setting, "note": row.peer.note, "failure": row.failure,
             "differs": row.differs, "tokens_per_s": row.rates, "peak_bytes": row.peak_bytes,
             "first_step_s": row.first_step_s, "losses": row.losses,
             "first_grad_norm": row.first_norm, "padding": row.padding,
             "recomputes": row.recomputes, "steps": row.steps} for row in rows]
