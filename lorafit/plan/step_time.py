"""Seconds of an optimizer step, from FLOPs and bytes and a device's measured rates.

FLOPs a token of a linear weight with I inputs and O outputs: 2·I·O forward, 2·I·O back to its
inputs, 2·I·O more where the weight itself is trained; a LoRA adapter of rank R adds 6·R·(I + O).
So LoRA takes 2/3 + 2R/N of full fine-tuning's on a square layer of width N. Below the lowest
trained layer nothing goes back. Activations that are not kept are computed again. Attention, whose
scores are half masked, takes 2·Q·L a token forward over rows of length L and 2.5 times that back.
"""

import re
from dataclasses import dataclass

from lorafit.model.weights import LINEAR, Weight
from lorafit.plan.activations import kept
from lorafit.plan.calibration import Calibration
from lorafit.plan.load import Load
from lorafit.plan.shapes import Shapes
from lorafit.plan.trained import Trained
from lorafit.recipe.adapter import Adapter

_BACK = 2.5  # attention's backward pass over its forward pass
_TRAFFIC = 4  # kept activations are written, read again, and so are their gradients
_OPTIMIZER_BYTES = 40  # a parameter: weight, gradient and two states, read and written; its norm
_LAUNCHES = 130  # of a decoder layer in its fast form, forward and backward
_PLAIN_LAUNCHES = 320


@dataclass(frozen=True)
class Flops:
    """Of a micro-batch. linear: of frozen or fully trained matrices. thin: of A and B. attention:
    of scores. head: of the output head, for supervised tokens. again: of what is recomputed."""

    linear: float
    thin: float
    attention: float
    head: float
    again: float

    @property
    def total(self) -> float:
        return self.linear + self.thin + self.attention + self.head + self.again


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step by kind; they add up."""

    matrices_s: float
    adapters_s: float
    attention_s: float
    elementwise_s: float
    optimizer_s: float
    launches_s: float
    flops: float

    @property
    def total_s(self) -> float:
        return (self.matrices_s + self.adapters_s + self.attention_s + self.elementwise_s
                + self.optimizer_s + self.launches_s)


def count_flops(shapes: Shapes, trained: Trained, section: Adapter, load: Load) -> Flops:
    """Of the forward and backward pass of one micro-batch."""
    ranks = {weight.name: rank for weight, rank in trained.adapted}
    is_full = section.method == "full"
    linear = thin = head = again = 0.0
    for weight in shapes.weights:
        size = weight.shape[-1] * weight.shape[-2]
        adapted = weight.name in ranks
        if weight.part == "head":
            head += (6 if adapted or is_full else 4) * size * load.supervised_tokens
            continue
        if weight.part not in LINEAR and weight.part != "router":
            continue
        tokens = load.tokens * _share(shapes, weight)
        number = _number(weight.name)
        goes_back = number is None or number >= trained.lowest_layer
        passes = (6 if is_full and adapted else 4) if goes_back else 2
        linear += passes * size * tokens
        if adapted and not is_full:
            thin += 6 * ranks[weight.name] * sum(weight.shape[-2:]) * tokens
        if goes_back and _again(load, weight):
            again += 2 * size * tokens
    sizes = shapes.sizes
    back = 1 + _BACK * (sizes.layers - trained.lowest_layer) / sizes.layers
    length = load.longest_tokens or load.tokens // max(1, load.rows)
    one_way = 2 * sizes.heads * sizes.head_dim * length * load.tokens * sizes.layers
    attention = one_way * (back + (load.recomputation == "full"))
    return Flops(linear, thin, attention, head, again)


def predict_step(shapes: Shapes, trained: Trained, section: Adapter, load: Load,
                 micro_batches: float, rates: Calibration) -> StepTime:
    """Of an optimizer step of so many micro-batches like `load`."""
    flops = count_flops(shapes, trained, section, load)
    keeps = kept(shapes, trained, section, load)
    parameters = trained.parameters or 0
    rate = rates.matrix_rate(shapes.sizes.hidden_size, load.tokens)
    layers = shapes.sizes.layers
    each = _LAUNCHES if section.method == "lora" and not section.dora else _PLAIN_LAUNCHES
    experts = (shapes.sizes.experts or 1) if load.device == "cpu" else 1
    launches = layers * each * (1 + 0.2 * (experts - 1)) * rates.launch_s
    matrices = (flops.linear + flops.head + flops.again) / rate
    thin = flops.thin / rates.thin_flops_per_s
    attention = flops.attention / rates.attention_flops_per_s
    moved = _TRAFFIC * (keeps.total + keeps.passing) / rates.bytes_per_s
    if load.quantization in ("nf4", "fp4"):  # read once a pass in each direction
        linear = sum(w.shape[-1] * w.shape[-2] for w in shapes.weights if w.part in LINEAR)
        moved += 2 * linear / rates.dequantised_per_s
    if section.dora:  # the norm of W + BA, and B·A by a product with the unit matrix
        moved += sum(8 * w.shape[-1] * w.shape[-2] * 4 for w, _ in trained.adapted
                     ) / rates.bytes_per_s
        matrices += sum(2 * rank * w.shape[-1] * (w.shape[-1] + w.shape[-2])
                        for w, rank in trained.adapted) / rate
    optimizer = _OPTIMIZER_BYTES * parameters / rates.bytes_per_s
    if load.device == "cuda":  # launches run ahead of the device
        launches = max(0.0, launches - matrices - thin - attention - moved)
    return StepTime(matrices * micro_batches, thin * micro_batches, attention * micro_batches,
                    moved * micro_batches, optimizer, launches * micro_batches,
                    flops.total * micro_batches)


def predict_evaluation(shapes: Shapes, load: Load, passes: float, rates: Calibration) -> float:
    """Seconds of so many forward passes over micro-batches like `load`."""
    per_token = 2 * sum(w.shape[-1] * w.shape[-2] * _share(shapes, w) for w in shapes.weights
                        if w.part in LINEAR)
    head = 2 * shapes.sizes.vocabulary * shapes.sizes.hidden_size * load.supervised_tokens
    rate = rates.matrix_rate(shapes.sizes.hidden_size, load.tokens)
    return passes * (per_token * load.tokens + head) / rate


def _share(shapes: Shapes, weight: Weight) -> float:
    """Of tokens that a weight computes: each of a mixture's experts sees some; a stack has all."""
    if weight.part != "experts":
        return 1.0
    active = shapes.sizes.active_experts or shapes.sizes.experts or 1
    return float(active) if weight.is_fused else active / (shapes.sizes.experts or 1)


def _again(load: Load, weight: Weight) -> bool:
    """Whether the backward pass computes a product once more."""
    if load.recomputation == "full":
        return True
    widens = re.search(r"(gate_proj|up_proj|gate_up_proj)$", weight.label) is not None
    return load.recomputation == "selective" and widens


def _number(name: str) -> int | None:
    """3 of `model.layers.3.mlp.up_proj`."""
    return next((int(word) for word in name.split(".") if word.isdecimal()), None)
