"""Times steps of small models, so that `lorafit plan` knows what a unit of work takes here.

Each model is trained as `lorafit train` does it. They differ in width, depth, length of rows, and
in how much of them is trained, so that the units of plan/work.py can be told apart.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median

from lorafit.bench import sides
from lorafit.bench.machine import now_s
from lorafit.bench.request import Request
from lorafit.bench.shapes import Shape
from lorafit.bench.workload import Workload, of_request
from lorafit.model.inventory import stack_of, weights_of
from lorafit.plan.calibration import Calibration, Key, Measured, fit, keep
from lorafit.plan.shapes import Shapes
from lorafit.plan.sizes import Sizes
from lorafit.plan.trained import trained_of
from lorafit.plan.work import Rows, work_of
from lorafit.recipe.adapter import Adapter

_WARM_UP, _STEPS = 2, 5
_MOST_S = 2.0  # for the steps of one model


@dataclass(frozen=True)
class _Case:
    shape: Shape
    request: Request


def _cases(quantization: str, dtype: str) -> Iterator[_Case]:
    """Widths, depths, lengths and ranks far enough from each other."""
    for shape, length, batch_size, rank in (
        (Shape(256, 4, 4, 2, 640, 4096, True), 64, 8, 16),
        (Shape(256, 12, 4, 4, 640, 4096, True), 32, 2, 8),
        (Shape(512, 4, 8, 4, 1408, 8192, True), 128, 8, 16),
        (Shape(512, 4, 8, 8, 1408, 32_000, True), 512, 2, 64),
        (Shape(1024, 3, 16, 4, 2816, 8192, True), 64, 2, 8),
        (Shape(1024, 3, 16, 4, 2816, 16_384, True), 256, 4, 16),
        (Shape(768, 2, 12, 12, 2048, 4096, True), 1024, 1, 16),
    ):
        yield _Case(shape, Request(rank=rank, batch_size=batch_size, length=length, dtype=dtype,
                                   quantization=quantization))


def calibrate(key: Key, watch: Callable[[str], None] = lambda text: None) -> Calibration:
    """Measure this device, and keep what was found. watch: is told what is measured."""
    measured = []
    for case in _cases(key.stored, key.dtype):
        watch(f"width {case.shape.hidden}, rows of about {case.request.length} tokens")
        workload = of_request(case.request, case.shape)
        measured.append(_measure(workload))
        if key.stored == "none":
            full = replace(workload, adapter=Adapter(method="full"))
            if case.shape.layers <= 4 and case.request.length <= 128:
                measured.append(_measure(full))
    found = fit(key.device, measured)
    keep(key, found)
    return found


def _measure(workload: Workload) -> Measured:
    """The median step of a workload."""
    side = sides.build_lorafit(workload)
    device = workload.device
    times: list[float] = []
    begun = now_s(device)
    while len(times) < _WARM_UP + _STEPS:
        started = now_s(device)
        side.step()
        times.append(now_s(device) - started)
        if len(times) > _WARM_UP and now_s(device) - begun > _MOST_S:
            break
    rows = rows_of(workload, side)
    trained = trained_of(shapes_in(workload), workload.adapter)
    return Measured(work_of(shapes_in(workload), trained, rows,
                            quantised=workload.quantization != "none"),
                    median(times[_WARM_UP:]))


def rows_of(workload: Workload, side: sides.Side) -> Rows:
    """What a step of a workload computes."""
    batches = side.micro_batches()
    return Rows(sum(batch.computed_tokens for batch in batches), workload.supervised_tokens,
                sum(len(row) ** 2 for row in workload.rows), len(batches))


def shapes_in(workload: Workload) -> Shapes:
    """Of a base that is built, as plan/shapes.py reads them from its files."""
    base = workload.base
    config = base.config.get_text_config()
    sizes = Sizes(config.model_type, config.hidden_size, config.num_hidden_layers,
                  config.num_attention_heads, config.num_key_value_heads,
                  config.head_dim or config.hidden_size // config.num_attention_heads,
                  config.intermediate_size, config.vocab_size, None, 0, 0, None)
    tensors = {name: tuple(p.shape) for name, p in base.named_parameters()}
    return Shapes(sizes, tuple(weights_of(base)), sum(p.numel() for p in base.parameters()),
                  config.tie_word_embeddings, stack_of(base), "", None, tensors)
