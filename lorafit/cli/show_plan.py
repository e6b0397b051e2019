"""What `lorafit plan` prints."""

import json
from dataclasses import asdict
from typing import Any

from lorafit.cli.show import console
from lorafit.data.estimate import Amount
from lorafit.plan.capacity import FORMULA, MOST_BITS_PER_TOKEN
from lorafit.plan.fitting import MOST_ROWS, Fitting
from lorafit.plan.plan import Plan
from lorafit.plan.remarks import Remark


def plan(found: Plan, *, sources: bool, price_per_hour: float | None) -> None:
    """A line or a table for each question; with `sources`, where the answers are from."""
    _base(found)
    _trained(found)
    _data(found)
    _memory(found)
    _time(found, price_per_hour)
    _capacity(found)
    _remarks(found.remarks)
    if sources:
        console.print(f"\n{FORMULA}", markup=False)


def as_json(found: Plan, *, price_per_hour: float | None) -> None:
    values = as_dict(found)
    if values["time"] is not None and price_per_hour is not None:
        values["time"]["price"] = [total / 3600 * price_per_hour
                                   for total in values["time"]["total_s"]]
    print(json.dumps(values, indent=2, ensure_ascii=False))


def as_dict(found: Plan) -> dict[str, Any]:
    """The plan for scripts: sizes in bytes, times in seconds, rates in nats."""
    shapes, trained = found.shapes, found.trained
    return {
        "model": {
            "base": found.recipe.model.base, **asdict(shapes.sizes),
            "parameters": shapes.parameters, "tied": shapes.tied, "stored": shapes.stored,
            "file_bytes": shapes.file_bytes, "remarks": list(shapes.remarks)},
        "machine": {"device": found.machine.device.name, "kind": found.machine.device.kind,
                    "devices": found.machine.devices,
                    "memory_bytes": found.machine.memory_bytes},
        "trained": {"method": trained.method, "parameters": trained.parameters,
                    "adapted_weights": len(trained.adapted),
                    "lowest_layer": trained.lowest_layer},
        "train": None if found.train is None else _amount(found.train),
        "held_out": None if found.held_out is None else _amount(found.held_out),
        "tokens": None if found.tokens is None else asdict(found.tokens),
        "decisions": [decision.as_dict() for decision in found.decisions],
        "capacity": None if found.capacity is None else {
            **asdict(found.capacity), "share": found.capacity.share},
        "memory": None if found.memory is None else _fitting(found.memory),
        "time": None if found.time is None else asdict(found.time),
        "remarks": [asdict(remark) for remark in found.remarks],
    }


def _fitting(fitting: Fitting) -> dict[str, Any]:
    memory = fitting.memory
    return {
        "fits": fitting.fits, "usable_bytes": fitting.usable_bytes,
        "by_kind_bytes": memory.by_kind(),
        "loading_bytes": memory.loading_bytes, "training_bytes": memory.training_bytes,
        "evaluation_bytes": memory.evaluation_bytes, "saving_bytes": memory.saving_bytes,
        "peak_bytes": memory.peak_bytes, "least_bytes": fitting.least_bytes,
        "recomputation": fitting.recomputation.as_dict(), "strategy": fitting.strategy.as_dict(),
        "largest_micro_batch": fitting.largest_micro_batch,
        "longest_row_tokens": fitting.longest_row_tokens, "smallest_machine": fitting.smallest,
        "alternatives": [asdict(other) for other in fitting.alternatives]}


def _amount(amount: Amount) -> dict[str, Any]:
    return {"rows": amount.rows, "tokens": amount.tokens,
            "supervised_tokens": amount.supervised_tokens,
            "longest_tokens": int(amount.lengths.max(initial=0)), "is_exact": amount.is_exact,
            "relative_error": amount.relative_error, "how": amount.how}


def _line(name: str, text: str) -> None:
    console.print(f"{name:<9} {text}", markup=False)


def _base(found: Plan) -> None:
    shapes, sizes = found.shapes, found.shapes.sizes
    stored = f", stored in {shapes.stored}" if shapes.stored else ""
    experts = f", {sizes.experts} experts" if sizes.experts else ""
    _line("base", f"{found.recipe.model.base} ({sizes.model_type}): {shapes.parameters:,} "
          f"parameters, {sizes.layers} layers of width {sizes.hidden_size:,}{experts}{stored}")
    for remark in shapes.remarks:
        _line("", remark)
    _line("machine", str(found.machine))


def _trained(found: Plan) -> None:
    trained = found.trained
    if trained.parameters is None:
        _line("trained", f"by {trained.method}, whose parameters lorafit check counts")
        return
    share = 100 * trained.parameters / found.shapes.parameters
    rank = found.recipe.adapter.rank
    at = f" at rank {rank}" if rank and trained.method != "full" else ""
    _line("trained", f"{trained.parameters:,} parameters ({share:.4g} % of the base) by "
          f"{trained.method}{at}, on {len(trained.adapted)} weights")


def _data(found: Plan) -> None:
    if found.train is None or found.tokens is None:
        _line("tokens", "not counted: the base has no tokenizer.json; lorafit check counts them")
        return
    for name, amount in (("rows", found.train), ("held out", found.held_out)):
        if amount is not None:
            _line(name, _amount_words(amount))
    tokens = found.tokens
    batch = found.recipe.training.batch_size
    _line("steps", f"{tokens.steps:,} of {batch} sequences, {tokens.epochs:.3g} epoch"
          f"{'' if tokens.epochs == 1 else 's'}: "
          f"{tokens.tokens_a_step:,.0f} tokens a step, {tokens.supervised_a_step:,.0f} supervised")


def _amount_words(amount: Amount) -> str:
    about = "" if amount.is_exact else "about "
    error = f" ± {100 * amount.relative_error:.2g} %" if amount.relative_error else ""
    return (f"{about}{amount.rows:,} rows, {amount.tokens:,} tokens{error}, "
            f"{amount.supervised_tokens:,} supervised, longest "
            f"{int(amount.lengths.max(initial=0)):,} (from {amount.how})")


def _memory(found: Plan) -> None:
    fitting = found.memory
    if fitting is None:
        _line("memory", f"not told: the parameters of {found.trained.method} are not counted from "
              "shapes")
        return
    memory = fitting.memory
    kinds = ", ".join(f"{kind} {_size(size)}" for kind, size in memory.by_kind().items() if size)
    verdict = "fits" if fitting.fits else "DOES NOT FIT"
    _line("memory", f"{_size(memory.peak_bytes)} of a device's {_size(fitting.usable_bytes)}: "
          f"{verdict}")
    _line("", f"training {_size(memory.training_bytes)} ({kinds})")
    _line("", f"loading {_size(memory.loading_bytes)}, evaluation "
          f"{_size(memory.evaluation_bytes)}, saving {_size(memory.saving_bytes)}")
    if found.machine.devices > 1:
        _line("", f"{fitting.strategy.value}: {fitting.strategy.reason}")
    _line("", f"activations: recomputation {fitting.recomputation.value} "
          f"({fitting.recomputation.reason})")
    more = " or more" if fitting.largest_micro_batch == MOST_ROWS else ""
    _line("", f"up to {fitting.largest_micro_batch:,}{more} rows of the longest at once, or one "
          f"row of {fitting.longest_row_tokens:,} tokens; with one row at a time and full "
          f"recomputation {_size(fitting.least_bytes)}")
    others = ", ".join(f"{other.name} {_size(other.peak_bytes)}"
                       f"{'' if other.fits else ' (too much)'}" for other in fitting.alternatives)
    _line("", f"the same in {others}")
    _line("", f"smallest machine: {fitting.smallest}")


def _size(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:,.3g} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:,.3g} MB"


def _time(found: Plan, price_per_hour: float | None) -> None:
    time = found.time
    if time is None:
        if found.tokens is not None:
            _line("time", "this device was not measured yet: --calibrate does it, in some seconds"
                  if found.machine.is_here else "not told: --gpu names one with a data sheet")
        return
    error = "" if time.error is None else f", within {time.error:.0%} of the steps it rests on"
    _line("time", f"{_seconds(time.step_s)} a step, {_seconds(time.total_s)} in all, of which "
          f"{_seconds(time.evaluation_s)} evaluations ({time.source}{error})")
    if price_per_hour is not None:
        low, high = (total / 3600 * price_per_hour for total in time.total_s)
        _line("", f"at {price_per_hour:g} an hour: "
              + (f"{low:,.2f}" if low == high else f"{low:,.2f} to {high:,.2f}"))
    if found.trained.method != "full":
        by_time = "" if time.time_ratio is None else f", {time.time_ratio:.2f} of its time here"
        _line("", f"a step has {time.flops / 1e12:,.3g} TFLOP, {time.flops_ratio:.2f} of full "
              f"fine-tuning's{by_time}")


def _seconds(range_s: tuple[float, float]) -> str:
    low, high = range_s
    return _duration(low) if low == high else f"{_duration(low)} to {_duration(high)}"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s"


def _capacity(found: Plan) -> None:
    capacity = found.capacity
    if capacity is None:
        return
    bound = (f"{capacity.bits_per_token:.3g} a supervised token, the base's own loss"
             if capacity.is_measured else f"at most {MOST_BITS_PER_TOKEN:g} a supervised token")
    text = f"the data carries {_bits(capacity.data_bits)} ({bound})"
    if capacity.adapter_bits is not None and capacity.share is not None:
        text += (f", the adapter holds about {_bits(capacity.adapter_bits)}: "
                 f"{100 * capacity.share:.3g} % full")
    if capacity.smallest_rank is not None:
        text += f"; the smallest rank that holds it is {capacity.smallest_rank:,}"
    _line("capacity", text)


def _bits(bits: float) -> str:
    for unit, size in (("Gbit", 1e9), ("Mbit", 1e6), ("kbit", 1e3)):
        if bits >= size:
            return f"{bits / size:,.3g} {unit}"
    return f"{bits:,.0f} bit"


def _remarks(remarks: tuple[Remark, ...]) -> None:
    for remark in remarks:
        _line("warning" if remark.is_warning else "note", f"{remark.key}: {remark.text}")
        _line("", f"[{remark.strength}] {remark.evidence}")
