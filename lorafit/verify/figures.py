"""Each figure of a comparison beside its limit, and where the limits come from."""

from dataclasses import asdict, dataclass, field
from typing import Any

from lorafit.export.verify import Agreement
from lorafit.verify.measure import Difference


@dataclass(frozen=True)
class Limits:
    """What may differ at most; None for no limit.

    relative: ‖Δlogits‖ / ‖logits‖. logit: |Δ| of a single logit. kl: mean KL divergence, nats a
    position. logprob: mean |Δ log-probability| of the held-out answers' tokens, nats. tie: another
    most likely token is allowed where the trainer's model has its own at most so much likelier,
    nats.
    """

    relative: float
    logit: float | None
    kl: float | None
    logprob: float | None
    tie: float | None


# The same numbers on the same base must give the same bits.
EXACT = Limits(0.0, 0.0, 0.0, 0.0, 0.0)
# By the type that weights were rounded to once; `relative` as in export/merge.py. The others leave
# a factor of three or more to what was seen of sound merges.
ROUNDED = {
    "float32": Limits(1e-4, None, 1e-6, 1e-3, 1e-2),
    "float16": Limits(1e-2, None, 1e-3, 2e-2, 1e-1),
    "bfloat16": Limits(3e-2, None, 1e-2, 5e-2, 3e-1),
    "q8_0": Limits(1e-1, None, 1e-2, 5e-2, 1.0),
}
CONVERTED = ROUNDED["float32"]  # the same numbers in another form: sums in another order

NO_EFFECT = "NO EFFECT"  # how a remark begins that says that the base alone would do the same


def tolerating(relative: float) -> Limits:
    """The limit of somebody who expects a difference and says how large it may be."""
    return Limits(relative, None, None, None, None)


@dataclass(frozen=True)
class Figure:
    """One measured value in words, and its limit. passed: None where there is no limit."""

    name: str
    value: str
    limit: str = ""
    passed: bool | None = None


@dataclass(frozen=True)
class Compared:
    """What something was compared with, and every figure. facts: the same as plain numbers."""

    against: str
    figures: list[Figure]
    facts: dict[str, Any]

    @property
    def passed(self) -> bool:
        return all(figure.passed is not False for figure in self.figures)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed}


@dataclass(frozen=True)
class Verification:
    """What was compared, on what rows, and how it came out.

    agrees, differs: what it means that all is within its limits, or something is not. remedy: what
    to do then.
    """

    subject: str
    rows: str
    compared: list[Compared]
    remarks: list[str] = field(default_factory=list)
    remedy: str = ""
    agrees: str = "computes what was trained"
    differs: str = "differs from what was trained"

    @property
    def passed(self) -> bool:
        return all(each.passed for each in self.compared)

    def as_dict(self) -> dict[str, Any]:
        return {"subject": self.subject, "rows": self.rows, "passed": self.passed,
                "compared": [each.as_dict() for each in self.compared], "remarks": self.remarks}


def agreement_figures(found: Agreement, limits: Limits | None) -> list[Figure]:
    """Of the logits alone. Without limits figures are told and judge nothing."""
    relative, logit, kl = (None, None, None) if limits is None else (
        limits.relative, limits.logit, limits.kl)
    return [
        _up_to("relative difference of the logits", found.relative_rms, relative),
        _up_to("largest difference of a logit", found.max_difference, logit),
        _up_to("mean KL divergence, nats", found.mean_kl, kl),
    ]


def difference_figures(found: Difference, limits: Limits | None) -> list[Figure]:
    """Of logits, most likely tokens, held-out answers and greedy answers."""
    tie = None if limits is None else limits.tie
    logprob = None if limits is None else limits.logprob
    figures = agreement_figures(found.agreement, limits)
    positions = found.agreement.positions
    figures.append(Figure(
        "most likely token (top-1)",
        f"{found.agreement.top1:.2%} of {positions:,} equal"
        + (f"; where not, at most {found.top_margin_nats:.1e} nats apart" if found.other_top
           else ""),
        *_tied(tie, found.top_margin_nats)))
    figures.append(Figure(
        "log-probabilities of held-out answers",
        f"{found.logprob_mean:.2e} nats apart on average, {found.logprob_largest:.2e} at most, "
        f"over {found.answer_tokens:,} tokens",
        *_limited("on average", found.logprob_mean, logprob)))
    figures.append(Figure(
        "held-out loss, nats a token",
        f"{found.loss:.6f}, the trainer's {found.reference_loss:.6f}",
        *_limited("apart", abs(found.loss - found.reference_loss), logprob)))
    if found.answers:
        figures.append(answers_figure(found, tie))
    return figures


def answers_figure(found: Difference, tie: float | None) -> Figure:
    """Greedy answers by their token ids."""
    same = found.answers - len(found.diverged)
    value = f"{same} of {found.answers} equal, of up to {found.longest_answer_tokens} tokens"
    if found.diverged:
        worst = max(found.diverged, key=lambda each: each.margin_nats)
        value += (f"; prompt {worst.prompt + 1} leaves after {worst.token} tokens, where they are "
                  f"{worst.margin_nats:.1e} nats apart")
    return Figure("greedy answers, token ids", value,
                  *_tied(tie, max((each.margin_nats for each in found.diverged), default=0.0)))


def facts_of(found: Difference | Agreement) -> dict[str, Any]:
    """The same figures as plain numbers, for scripts and the proof."""
    if isinstance(found, Agreement):
        return found.as_dict()
    return found.agreement.as_dict() | {
        "held_out_loss": found.loss, "trained_held_out_loss": found.reference_loss,
        "held_out_answer_tokens": found.answer_tokens,
        "mean_logprob_difference": found.logprob_mean,
        "largest_logprob_difference": found.logprob_largest,
        "greedy_answers": found.answers,
        "greedy_answers_equal": found.answers - len(found.diverged),
    }


def _up_to(name: str, value: float, limit: float | None) -> Figure:
    return Figure(name, "0 (bit-equal)" if value == 0 else f"{value:.2e}",
                  *_limited("", value, limit))


def _limited(what: str, value: float, limit: float | None) -> tuple[str, bool | None]:
    if limit is None:
        return "", None
    return (f"at most {limit:.0e} {what}".rstrip() if limit else "equal"), value <= limit


def _tied(tie: float | None, margin: float) -> tuple[str, bool | None]:
    if tie is None:
        return "", None
    return (f"equal, or at most {tie:.0e} nats apart" if tie else "equal"), margin <= tie
