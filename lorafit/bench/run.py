"""A measurement from its sides to its result."""

import gc
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lorafit.bench import arithmetic, machine, split
from lorafit.bench.request import SIDES
from lorafit.bench.sides import (
    First,
    Side,
    StepTimes,
    build_floor,
    build_lorafit,
    build_peft,
    full_adapter,
    paca_adapter,
    upper_adapter,
)
from lorafit.bench.workload import Workload, with_adapter
from lorafit.errors import DivergedError, MachineError, UserError
from lorafit.model.base import TORCH_DTYPES
from lorafit.model.named_modules import matched_names

WARM_UP_STEPS = 2  # on CUDA; elsewhere the passes that measure memory warm up as well
# How far the first losses of two sides may lie apart, relative. Rounding alone: 1e-6 in float32.
LOSS_LIMITS = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 2e-2}
INT8_LOSS_LIMIT = 2e-2  # which columns stay in 16 bits follows from all tokens, padding included


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class SideResult:
    """What was measured of a side; seconds and ratios over the rounds.

    ratio: its forward and backward passes over the floor's of the same round; None without a floor.
    tokens_per_s: without padding, of the whole step. memory_bytes: see Result.memory_is. rounds:
    the figures of each round.
    """

    name: str
    what: str
    step_s: Spread
    data_s: Spread
    gradients_s: Spread
    update_s: Spread
    ratio: Spread | None
    tokens_per_s: float
    memory_bytes: int
    held_bytes: int
    trained_parameters: int
    first_loss: float
    first_grad_norm: float
    computed_tokens: int
    rounds: list[StepTimes]


@dataclass(frozen=True)
class Part:
    """A part of lorafit's step. share: of the whole step."""

    name: str
    seconds: float
    share: float


@dataclass(frozen=True)
class Promise:
    """LoRA's time over that of full fine-tuning, and what counting multiplications promises.

    gradients: forward and backward passes. linear: promised for the linear layers alone. whole:
    with attention and the output head, which both compute alike. None where nothing is counted,
    and why_not says why.
    """

    gradients: Spread
    step: Spread
    linear: float | None
    whole: float | None
    why_not: str = ""


@dataclass(frozen=True)
class Rates:
    """How much of the device's speed a step of lorafit gets out of it.

    model_flops: of a step, padding and recomputation left out. measured_flops_per_s: of the fastest
    matrix product here. sheet_flops_per_s: by the data sheet; None for devices that are not listed.
    """

    model_flops: float
    flops_per_s: float
    measured_flops_per_s: float
    of_measured: float
    sheet_flops_per_s: float | None
    of_sheet: float | None


@dataclass(frozen=True)
class Result:
    """Everything that was measured. left_out: sides that were not, with the reason."""

    model: str
    setting: dict[str, Any]
    memory_is: str
    sides: list[SideResult]
    left_out: dict[str, str]
    parts: list[Part]
    promise: Promise | None
    rates: Rates | None
    why_no_rates: str
    decisions: list[dict[str, Any]]
    remarks: list[str]
    machine: dict[str, Any]

    def side(self, name: str) -> SideResult | None:
        return next((side for side in self.sides if side.name == name), None)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Ready:
    """A side that is warm, what it computed first, and its memory."""

    side: Side
    first: First
    memory_bytes: int


def bench(workload: Workload, rounds: int = 7, sides: Sequence[str] = SIDES,
          say: Callable[[str], None] = lambda text: None, *, with_parts: bool = True) -> Result:
    """Build the sides, check that they compute the same, and let them take turns.

    sides: names of lorafit/bench/request.py; `floor` and `lorafit` are always there. with_parts:
    say where lorafit's step goes. MachineError when the sides disagree: figures of different
    computations cannot be compared.
    """
    sides = list(dict.fromkeys(["floor", "lorafit", *sides]))
    ready: list[Ready] = []
    left_out: dict[str, str] = {}
    for name in sorted(sides, key=lambda name: name == "full"):  # last: it needs the most memory
        say(f"preparing {name}")
        try:
            ready.append(_prepare(name, workload, ready))
        except (UserError, DivergedError, torch.OutOfMemoryError) as error:
            if name in ("floor", "lorafit"):
                raise
            left_out[name] = _reason(error)
        if name in left_out:  # here, since the error held what was built so far
            _free_memory(workload.device)
    refuse_disagreement([one.side for one in ready], [one.first for one in ready])
    matrices = machine.MatrixRate(workload.device, TORCH_DTYPES[workload.dtype])
    times = _take_turns([one.side for one in ready], rounds, matrices, say)
    results = [_result(one, times) for one in ready]
    results.sort(key=lambda result: sides.index(result.name))
    ours = ready[1].side
    if with_parts:
        say("measuring attention and loss alone")
    calls = split.attention_calls(ours)
    counted = arithmetic.count(workload.base, ours.model, workload.adapter)
    attention_flops = split.attention_flops(calls, ours)
    return Result(
        workload.model, _setting(workload, ours, rounds), _memory_is(workload), results, left_out,
        _parts(ours, calls, times, rounds) if with_parts else [],
        _promise(workload, times, counted, attention_flops) if "full" in times else None,
        None if isinstance(counted, str) else _rates(workload, times["lorafit"], counted,
                                                      attention_flops, matrices.flops_per_s),
        counted if isinstance(counted, str) else "",
        [decision.as_dict() for decision in
         ({d.key: d for d in [*workload.decisions, *ours.decisions]}).values()],
        workload.remarks, machine.describe(workload.device),
    )


def refuse_disagreement(sides: Sequence[Side], firsts: Sequence[First]) -> None:
    """MachineError when sides train different tokens, start from different losses, or not at all.
    """
    wanted, workload = firsts[0], sides[0].workload
    limit = LOSS_LIMITS[workload.dtype]
    if workload.quantization == "int8":
        limit = INT8_LOSS_LIMIT
    for side, first in zip(sides, firsts, strict=True):
        wrong = ""
        if (first.tokens, first.supervised_tokens) != (wanted.tokens, wanted.supervised_tokens):
            wrong = (f"trains {first.supervised_tokens} of {first.tokens} tokens, "
                     f"{sides[0].name} {wanted.supervised_tokens} of {wanted.tokens}")
        elif not abs(first.loss - wanted.loss) <= limit * abs(wanted.loss):
            wrong = (f"starts from a loss of {first.loss:.6g}, {sides[0].name} from "
                     f"{wanted.loss:.6g}; rounding makes {limit:.0e} of it at most")
        elif not (math.isfinite(first.grad_norm) and first.grad_norm > 0):
            wrong = f"has a gradient of norm {first.grad_norm:g}"
        if wrong:
            raise MachineError(
                f"{side.name}: {wrong}\n    the sides do not compute the same, so their times say "
                "nothing; try --dtype float32 (or --set model.dtype=float32), and report it if it "
                "stays")


def spread(values: Sequence[float]) -> Spread:
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def _build(name: str, workload: Workload) -> Side:
    """UserError when it cannot be had with this base."""
    adapter = workload.adapter
    if name == "floor":
        return build_floor(workload)
    if name == "lorafit":
        return build_lorafit(workload)
    if name == "peft":
        return build_peft(workload)
    if name == "full":
        if adapter.method == "full":
            raise UserError("it is what the recipe trains")
        return build_lorafit(with_adapter(workload, full_adapter(workload.base)), name,
                             "the linear layers trained in full")
    if name == "paca":
        return build_lorafit(with_adapter(workload, paca_adapter(adapter)), name,
                             "PaCA at the same rank")
    return build_lorafit(with_adapter(workload, upper_adapter(adapter, workload.base)), name,
                         "the adapter on the upper half of the layers")


def _prepare(name: str, workload: Workload, others: Sequence[Ready]) -> Ready:
    """Build a side and warm it up. UserError when it cannot be had."""
    if name == "full" and (reason := _why_no_full(workload, others[1])):
        raise UserError(reason)
    side = _build(name, workload)
    first = side.first()
    if workload.device.type == "cuda":  # the optimizer's state is there after a step
        for _ in range(WARM_UP_STEPS):
            side.step()
        return Ready(side, first, side.memory_bytes())
    return Ready(side, first, side.memory_bytes())


def _take_turns(sides: Sequence[Side], rounds: int, matrices: machine.MatrixRate,
                say: Callable[[str], None]) -> dict[str, list[StepTimes]]:
    """One step of each side in each round, beginning with another side each time."""
    times: dict[str, list[StepTimes]] = {side.name: [] for side in sides}
    for turn in range(-1, rounds):  # the one before the first is not counted
        say(f"round {turn + 1} of {rounds}" if turn >= 0 else "warming up")
        first = turn % len(sides)
        for side in [*sides[first:], *sides[:first]]:
            step = side.step()
            if turn >= 0:
                times[side.name].append(step)
        matrices.sample()
    return times


def _free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _why_no_full(workload: Workload, ours: Ready) -> str:
    """Why full fine-tuning is not tried; empty where it fits by estimate: weight, gradient and two
    moments in float32, a copy in the model's dtype, and what a step of lorafit takes."""
    if workload.quantization != "none" or any(
            not p.is_floating_point() for p in workload.base.parameters()):
        return "the base's weights are stored quantised, which cannot be trained"
    weights = _linear_weights(workload)
    each = 16 + (TORCH_DTYPES[workload.dtype].itemsize if workload.dtype != "float32" else 0)
    held = ours.side.held_bytes() if workload.device.type == "cuda" else 0
    needed = weights * each + max(0, ours.memory_bytes - held)
    free = machine.available_bytes(workload.device)
    if free is None or needed <= free:
        return ""
    return (f"needs about {needed / 1e9:.1f} GB ({weights / 1e9:.2f} billion weights of {each} "
            f"bytes, and a step), {free / 1e9:.1f} GB are free")


def _linear_weights(workload: Workload) -> int:
    """Weights that full fine-tuning of the linear layers trains."""
    ids = {id(p): p.numel() for name in matched_names(workload.base, full_adapter(workload.base))
           for p in workload.base.get_submodule(name).parameters(recurse=False)}
    return sum(ids.values())


def _reason(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "does not fit into memory"
    return str(error).splitlines()[0]


def _result(ready: Ready, times: dict[str, list[StepTimes]]) -> SideResult:
    side, first = ready.side, ready.first
    own = times[side.name]
    step = spread([t.whole_s for t in own])
    ratios = [a.gradients_s / b.gradients_s for a, b in zip(own, times["floor"], strict=True)]
    return SideResult(
        side.name, side.what, step, spread([t.data_s for t in own]),
        spread([t.gradients_s for t in own]), spread([t.update_s for t in own]), spread(ratios),
        first.tokens / step.median, ready.memory_bytes, side.held_bytes(),
        sum(p.numel() for p in side.trained), first.loss, first.grad_norm, first.computed_tokens,
        own,
    )


def _parts(ours: Side, calls: list[split.AttentionCall], times: dict[str, list[StepTimes]],
           rounds: int) -> list[Part]:
    """lorafit's step by what takes it. Attention, loss, data and optimizer are measured; the
    adapter is what lorafit's forward and backward passes take above the floor's; the base is the
    rest of these passes, so the parts add up."""
    device = ours.workload.device
    own = times["lorafit"]
    whole = statistics.median(t.whole_s for t in own)
    gradients = statistics.median(t.gradients_s for t in own)
    adapter = statistics.median(a.gradients_s - b.gradients_s
                                for a, b in zip(own, times["floor"], strict=True))
    loss = split.loss_s(ours, device, rounds)
    attention = split.attention_s(calls, device, rounds) if calls else None
    data = statistics.median(t.data_s for t in own)
    update = statistics.median(t.update_s for t in own)
    inside = [name for name, part in (("attention", attention), ("loss", loss)) if part is None]
    base = "base: linear layers, element-wise operations" \
        + "".join(f", {name}" for name in inside)
    seconds = {base: gradients - adapter - (attention or 0) - (loss or 0), "adapter": adapter}
    if attention is not None:
        seconds["attention"] = attention
    if loss is not None:
        seconds["loss"] = loss
    seconds |= {"optimizer": update, "data": data,
                "waiting, other": whole - gradients - update - data}
    return [Part(name, value, value / whole) for name, value in seconds.items()]


def _promise(workload: Workload, times: dict[str, list[StepTimes]],
             counted: arithmetic.Count | str, attention_flops: float) -> Promise:
    pairs = list(zip(times["lorafit"], times["full"], strict=True))
    gradients = spread([a.gradients_s / b.gradients_s for a, b in pairs])
    step = spread([a.whole_s / b.whole_s for a, b in pairs])
    if isinstance(counted, str):
        return Promise(gradients, step, None, None, counted)
    alike = attention_flops + counted.head * workload.supervised_tokens
    whole = (counted.adapted * workload.tokens + alike) / (counted.full * workload.tokens + alike)
    return Promise(gradients, step, counted.adapted / counted.full, whole)


def _rates(workload: Workload, own: list[StepTimes], counted: arithmetic.Count,
           attention_flops: float, measured: float) -> Rates:
    flops = (counted.adapted * workload.tokens + counted.head * workload.supervised_tokens
             + attention_flops)
    rate = flops / statistics.median(t.whole_s for t in own)
    sheet = machine.sheet_flops(workload.device, workload.dtype)
    return Rates(flops, rate, measured, rate / measured, sheet,
                 None if sheet is None else rate / sheet)


def _setting(workload: Workload, ours: Side, rounds: int) -> dict[str, Any]:
    lengths = workload.lengths
    adapter = workload.adapter
    return {
        "method": adapter.method, "rank": adapter.rank, "dtype": workload.dtype,
        "quantization": workload.quantization, "rows": len(lengths), "tokens": workload.tokens,
        "supervised_tokens": workload.supervised_tokens, "shortest_tokens": int(lengths.min()),
        "longest_tokens": int(lengths.max()), "batching": ours.layout.batching,
        "micro_batches": len(ours.micro_batches()), "rounds": rounds,
    }


def _memory_is(workload: Workload) -> str:
    if workload.device.type == "cuda":
        return ("the most that a step allocates, with the weights, adapter and optimizer state of "
                "this side")
    return "what autograd keeps between a forward pass and its backward pass, parameters left out"
