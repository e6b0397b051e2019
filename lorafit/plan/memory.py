"""Memory of a run by kind, and the most that each of its phases takes.

Everything follows from shapes (`activations.py`) but one figure: what a process takes for its
libraries, its context on the device and its data, which is measured (`overhead_bytes`).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from lorafit.model.weights import LINEAR
from lorafit.plan.activations import kept
from lorafit.plan.load import BYTES, Load
from lorafit.plan.shapes import Shapes
from lorafit.plan.trained import Trained
from lorafit.recipe import auto
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.auto import Decision

_ADAPTER = 4  # adapters, their gradients and AdamW's states are float32
_LARGE = 4096  # parameters from which bitsandbytes holds states in 8 bits
# Bytes of a linear weight in 4 bits: codes, and a scale for each 64 numbers, in float32 or again in
# 8 bits with a scale for each 256.
_SCALES = {False: 4 / 64, True: 1 / 64 + 4 / (64 * 256)}

# What libraries and an allocator take once they compute, beside tensors; and a process with imports
# and rows before a model is there, where nobody has looked. Seen on Linux with torch 2.13. On a GPU
# measured memory is that of tensors: a workspace of cuBLAS is among them.
_LIBRARIES_BYTES = {"cpu": 30_000_000, "cuda": 32 << 20}
_PROCESS_BYTES = {"cpu": 479_000_000}


def libraries_bytes(device: str) -> int:
    """What a process takes on a device from loading a model to its first step, beside tensors."""
    return _LIBRARIES_BYTES.get(device, 0)


@dataclass(frozen=True)
class Memory:
    """Bytes by kind, of one device. activations: at most, with what passes through while they are
    there. logits: of a chunk. overhead: of the process, and of allocators. saving_copies: of what
    is written, in the host's memory. loaded_files: mapped while their numbers become others."""

    base: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    overhead: int
    evaluation_activations: int
    saving_copies: int
    loaded_files: int = 0

    @property
    def loading_bytes(self) -> int:
        return self.base + self.overhead + self.loaded_files

    @property
    def training_bytes(self) -> int:
        return self._held + max(self.activations, self.logits) + self.gradients + self.optimizer

    @property
    def evaluation_bytes(self) -> int:
        return self._held + self.optimizer + max(self.evaluation_activations, self.logits)

    @property
    def saving_bytes(self) -> int:
        return self._held + self.optimizer + self.saving_copies

    @property
    def peak_bytes(self) -> int:
        return max(self.loading_bytes, self.training_bytes, self.evaluation_bytes,
                   self.saving_bytes)

    @property
    def _held(self) -> int:
        return self.base + self.adapters + self.overhead

    def by_kind(self) -> dict[str, int]:
        """What training takes, as it stands in the record; the kinds add up to its peak."""
        kinds = ("base", "adapters", "gradients", "optimizer", "activations", "overhead")
        found = {kind: int(value) for kind, value in asdict(self).items() if kind in kinds}
        return found | {"logits": max(0, self.logits - self.activations)}


def predict_memory(shapes: Shapes, trained: Trained, section: Adapter, load: Load, *,
                   overhead_bytes: int | None = None) -> Memory:
    """Of one device of a run. overhead_bytes: of the process without a model, where it is known;
    else the figure that was measured once."""
    parameters = trained.parameters or 0
    keeps = kept(shapes, trained, section, load)
    base = (base_bytes(shapes, load) + _still_mapped(shapes, load)) // load.shards
    largest = max((layer_bytes for layer_bytes in _layer_bytes(shapes, load)), default=0)
    if load.shards > 1:  # one layer is whole, and the next on its way
        base += 2 * largest
    adapters = 0 if section.method == "full" else _ADAPTER * parameters // load.shards
    if section.method == "full" and load.dtype != "float32":
        base += (_ADAPTER - load.number_bytes) * parameters // load.shards
    gradients = _ADAPTER * parameters // load.shards
    states = 2 * (1.02 if load.optimizer == "adamw_8bit" and parameters > _LARGE else _ADAPTER)
    overhead = overhead_bytes
    if overhead is None:
        overhead = _PROCESS_BYTES.get(load.device, 0) + libraries_bytes(load.device)
    # The loss stands before the backward pass; both do not pass at the same time.
    passing = max(keeps.passing, keeps.logits)
    width = shapes.sizes.hidden_size * load.number_bytes * load.tokens
    return Memory(
        base=base, adapters=adapters, gradients=gradients,
        optimizer=int(states * parameters) // load.shards,
        activations=keeps.total + passing, logits=keeps.logits, overhead=overhead,
        evaluation_activations=4 * width + keeps.passing + keeps.logits,
        saving_copies=int((_ADAPTER + states) * parameters) if load.device == "cpu" else 0,
        loaded_files=_converted_files(shapes, load) - _still_mapped(shapes, load))


def _converted_files(shapes: Shapes, load: Load) -> int:
    """Bytes of the base's files where its weights are held in another form than they are stored."""
    size = shapes.file_bytes
    if load.device != "cpu" or size is None:
        return 0
    is_as_stored = load.quantization == "none" and \
        abs(size / (shapes.parameters * load.number_bytes) - 1) < 0.05
    return 0 if is_as_stored else size


def base_bytes(shapes: Shapes, load: Load) -> int:
    """Of the base's weights as they are held: linear layers quantised, the rest in the dtype."""
    linear = sum(_numbers(weight.shape) for weight in shapes.weights
                 if weight.part in LINEAR and not weight.is_parameter)
    rest = (shapes.parameters - linear) * load.number_bytes
    return int(rest + linear * _bytes_a_number(load))


def _still_mapped(shapes: Shapes, load: Load) -> int:
    """On a CPU weights are pages of their file. Those that were read to be quantised, or joined
    with other experts', stay resident as long as others of the file, which need no conversion, are
    in use."""
    if load.device != "cpu" or shapes.file_bytes is None:
        return 0
    stored = shapes.file_bytes / shapes.parameters
    if round(stored) != load.number_bytes:
        return 0
    joins = shapes.sizes.model_type != "gpt_oss"  # whose files hold experts in one piece
    read = sum(_numbers(weight.shape) for weight in shapes.weights
               if (joins and weight.is_fused) or (
                   load.quantization != "none" and weight.part in LINEAR
                   and not weight.is_parameter))
    return int(stored * read)


def _bytes_a_number(load: Load) -> float:
    if load.quantization in ("nf4", "fp4"):
        return 0.5 + _SCALES[load.double_quantization]
    return 1.0 if load.quantization == "int8" else BYTES[load.dtype]


def _layer_bytes(shapes: Shapes, load: Load) -> Sequence[int]:
    """Of each decoder layer's matrices."""
    sizes: dict[str, int] = {}
    for weight in shapes.weights:
        if weight.name.startswith(f"{shapes.stack.prefix}."):
            number = weight.name[len(shapes.stack.prefix) + 1:].partition(".")[0]
            sizes[number] = sizes.get(number, 0) + _numbers(weight.shape)
    return [int(numbers * _bytes_a_number(load)) for numbers in sizes.values()]


def _numbers(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def recomputation_for(shapes: Shapes, trained: Trained, section: Adapter, load: Load,
                      memory_bytes: int) -> Decision:
    """What `activation_checkpointing: auto` will choose: the run's own rule, on predicted bytes."""
    ways = {}
    for way in ("none", "selective", "full"):
        if way == "full" and section.row.why_not_recomputed:
            continue
        if way == "selective" and not _has_gates(shapes):
            continue
        found = kept(shapes, trained, section, replace(load, recomputation=way))
        ways[way] = float(found.total + (found.passing if way == "full" else 0))
    memory = predict_memory(shapes, trained, section, load, overhead_bytes=0)
    held = memory.base + memory.adapters + memory.gradients + memory.optimizer + memory.logits
    return auto.activation_checkpointing(ways, held, memory_bytes)


def _has_gates(shapes: Shapes) -> bool:
    return any(weight.label.endswith(("gate_proj", "experts.gate_up_proj"))
               for weight in shapes.weights)


def largest_micro_batch(predict: Callable[[int], Memory], memory_bytes: int,
                        most: int = 4096) -> int:
    """The most rows at once whose peak stays within so much memory; 0 where one does not fit."""
    return _largest(lambda rows: predict(rows).peak_bytes <= memory_bytes, most)


def longest_sequence(predict: Callable[[int], Memory], memory_bytes: int,
                     most: int = 2**20) -> int:
    """The longest row, in tokens, that fits one at a time; 0 where none does."""
    return _largest(lambda tokens: predict(tokens).peak_bytes <= memory_bytes, most)


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, where smaller ones fit whenever it does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
