"""Whether a run fits into a machine, what would make it fit, and the smallest that holds it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lorafit.plan.load import Load
from lorafit.plan.machine import GIB, SIZES, Machine
from lorafit.plan.memory import (
    Memory,
    base_bytes,
    largest_micro_batch,
    longest_sequence,
    predict_memory,
    recomputation_for,
)
from lorafit.plan.shapes import Shapes
from lorafit.plan.trained import Trained, trained_of
from lorafit.recipe import auto
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.auto import IN_RECIPE, Decision
from lorafit.recipe.schema import Recipe

# A GPU's driver and what an allocator cannot use of free pieces take their part.
_USABLE = {"cuda": 0.92}
_MOST_DEVICES = 8
MOST_ROWS = 4096  # that are looked for at once


@dataclass(frozen=True)
class Alternative:
    """Another way to train the same rows: what it takes of a device at its peak."""

    name: str
    peak_bytes: int
    fits: bool


@dataclass(frozen=True)
class Fitting:
    """memory: of a device, as the recipe has it. usable_bytes: what a device offers to it.
    recomputation and strategy: what will be chosen. largest_micro_batch: rows of the longest length
    that fit at once. longest_row_tokens: that fits one at a time. least_bytes: of the same run with
    one row at a time and everything computed again. smallest: the GPUs that hold that. Rows are not
    counted beyond MOST_ROWS, tokens not beyond the base's context."""

    memory: Memory
    usable_bytes: int
    recomputation: Decision
    strategy: Decision
    largest_micro_batch: int
    longest_row_tokens: int
    least_bytes: int
    alternatives: tuple[Alternative, ...]
    smallest: str

    @property
    def fits(self) -> bool:
        return self.memory.peak_bytes <= self.usable_bytes


def fit_into(machine: Machine, recipe: Recipe, shapes: Shapes, trained: Trained,
             load: Load) -> Fitting | None:
    """None for a method whose parameters are not counted from shapes. load: the largest
    micro-batch, with nothing computed again and the base whole."""
    if trained.parameters is None:
        return None
    section = recipe.adapter
    usable = int(machine.memory_bytes * _USABLE.get(machine.device.kind, 1.0))
    strategy = auto.strategy("auto", machine.devices, machine.devices, base_bytes(shapes, load),
                             machine.memory_bytes, section.row.why_not_sharded or None)
    if strategy.value != "ddp":
        load = replace(load, shards=machine.devices)
    recomputation = _recomputation(recipe, shapes, trained, load, machine)
    chosen = replace(load, recomputation=recomputation.value)

    def peak(load: Load) -> Memory:
        return predict_memory(shapes, trained, section, load)

    longest = max(1, load.longest_tokens)
    share = load.supervised_tokens / max(1, load.tokens)
    leanest = replace(load, recomputation="none" if section.row.why_not_recomputed else "full")

    def rows_at_once(rows: int, of: Load = chosen, tokens: int = longest) -> Load:
        return replace(of, rows=rows, longest_tokens=tokens, tokens=rows * tokens,
                       supervised_tokens=max(1, round(share * rows * tokens)))

    least = peak(rows_at_once(1, leanest))
    return Fitting(
        peak(chosen), usable, recomputation, strategy,
        largest_micro_batch(lambda rows: peak(rows_at_once(rows)), usable, MOST_ROWS),
        longest_sequence(lambda tokens: peak(rows_at_once(1, tokens=tokens)), usable,
                         shapes.sizes.context_tokens or 2**20),
        least.peak_bytes, tuple(_alternatives(recipe, shapes, trained, chosen, usable)),
        _smallest(shapes, trained, section, rows_at_once(1, leanest)))


def _recomputation(recipe: Recipe, shapes: Shapes, trained: Trained, load: Load,
                   machine: Machine) -> Decision:
    setting = recipe.training.activation_checkpointing
    if setting != "auto":
        return Decision("training.activation_checkpointing", setting, IN_RECIPE)
    return recomputation_for(shapes, trained, recipe.adapter, load, machine.memory_bytes)


def _alternatives(recipe: Recipe, shapes: Shapes, trained: Trained, load: Load,
                  usable: int) -> Iterator[Alternative]:
    """The base in other formats, and full fine-tuning, over the same micro-batch."""
    half = "bfloat16" if load.dtype == "float32" else load.dtype
    forms = [("float32", replace(load, dtype="float32", quantization="none")),
             (half, replace(load, dtype=half, quantization="none")),
             ("int8", replace(load, dtype=half, quantization="int8")),
             ("nf4", replace(load, dtype=half, quantization="nf4"))]
    section = recipe.adapter
    for name, form in forms:
        if form.quantization != "none" and form.quantization not in section.row.quantized:
            continue
        found = predict_memory(shapes, trained, section, form).peak_bytes
        yield Alternative(name, found, found <= usable)
    if section.method != "full":
        full = Adapter(method="full")
        found = predict_memory(shapes, trained_of(shapes, full), full, replace(
            load, dtype=half, quantization="none")).peak_bytes
        yield Alternative(f"full fine-tuning in {half}", found, found <= usable)


def _smallest(shapes: Shapes, trained: Trained, section: Adapter, load: Load) -> str:
    """The fewest and smallest GPUs that hold the leanest form of a run."""
    on_gpu = replace(load, device="cuda", shards=1,
                     dtype="bfloat16" if load.dtype == "float32" else load.dtype)
    devices = 1
    while devices <= _MOST_DEVICES:
        needed = predict_memory(shapes, trained, section,
                                replace(on_gpu, shards=devices)).peak_bytes
        for size, example in SIZES:
            if needed <= size * GIB * _USABLE["cuda"]:
                count = "a GPU" if devices == 1 else f"{devices} GPUs"
                return (f"{count} of {size} GB ({example}), in {on_gpu.dtype}, one row at a time, "
                        f"{'everything computed again' if load.recomputation == 'full' else ''}"
                        .rstrip(", ") + (", the base cut up among them" if devices > 1 else ""))
        if section.row.why_not_sharded:
            break
        devices *= 2
    return f"more than {_MOST_DEVICES} GPUs of {SIZES[-1][0]} GB"
