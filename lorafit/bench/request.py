"""What is asked of a measurement. Nothing heavy is imported here."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from lorafit.bench.shapes import SHAPES
from lorafit.errors import Problem, UserError

DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZATIONS = ("none", "nf4")
SIDES = ("floor", "lorafit", "peft", "full")
EXTRA_SIDES = ("paca", "upper")


@dataclass(frozen=True)
class Request:
    """Random weights and random rows.

    shape: a name in SHAPES. length: tokens of a row, on average; half to one and a half times as
    many, unless `even`. supervised: share of a row's tokens that are trained, at its end.
    micro_tokens: most tokens that are computed at once, as many as `auto` takes if None.
    checkpointing: compute activations again in the backward pass.
    """

    shape: str = "llama-100m"
    rank: int = 16
    batch_size: int = 8
    length: int = 256
    even: bool = False
    supervised: float = 0.6
    dtype: str = "auto"
    quantization: str = "none"
    micro_tokens: int | None = None
    checkpointing: bool = False


def check_request(request: Request) -> None:
    """UserError with everything that is wrong."""
    problems = [
        *_unknown("--shape", request.shape, tuple(SHAPES)),
        *_unknown("--dtype", request.dtype, DTYPES),
        *_unknown("--quantization", request.quantization, QUANTIZATIONS),
    ]
    for option, value, least in (("--rank", request.rank, 1), ("--batch-size", request.batch_size,
                                 1), ("--length", request.length, 2),
                                 ("--micro-tokens", request.micro_tokens, 1)):
        if value is not None and value < least:
            problems.append(Problem(f"must be at least {least}, not {value}", option,
                                    f"use {least} or more"))
    if not 0 < request.supervised <= 1:
        problems.append(Problem(f"must be above 0 and at most 1, not {request.supervised:g}",
                                "--supervised", "for example --supervised 0.6"))
    if problems:
        raise UserError(problems=problems)


def extra_sides(text: str | None) -> tuple[str, ...]:
    """The sides of `--also`. UserError for an unknown one."""
    names = [word.strip() for word in (text or "").split(",") if word.strip()]
    problems = [problem for name in names for problem in _unknown("--also", name, EXTRA_SIDES)]
    if problems:
        raise UserError(problems=problems)
    return tuple(dict.fromkeys(names))


def _unknown(option: str, value: str, known: Sequence[str]) -> list[Problem]:
    if value in known:
        return []
    near = difflib.get_close_matches(value, known, 1)
    remedy = f"did you mean {near[0]}?" if near else f"use {', '.join(known[:-1])} or {known[-1]}"
    return [Problem(f"{value!r} is not known", option, remedy)]
