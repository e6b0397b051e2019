"""Activation offloading: what a layer keeps for the backward pass waits in the host's memory.

Copies run beside the computation, on a stream of their own, through pinned memory. On the way back
they start before they are needed, in the reverse order of the forward pass. With checkpoints
(`training.activation_checkpointing: full`) a layer keeps its input alone, and only that moves.

Memory is moved by storages, as it is held: views of one storage share a copy, whatever their
strides, and a view comes back with the strides it had. Nothing is computed, so results are the same
to the bit.
"""

import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from lorafit.errors import UserError
from lorafit.model.fast.form import take_form
from lorafit.model.inventory import decoder_layers
from lorafit.recipe.auto import IN_RECIPE, Decision

KEY = "training.activation_offloading"
# Copying so little takes no longer than starting the copy (some 10 µs at 25 GB/s).
SMALLEST_BYTES = 2**18
# Storages on their way at once, each way: one that is copied, one that waits for it.
ON_THE_WAY = 2

_weak: Any = StorageWeakRef


def refuse_offloading(wanted: bool, device: torch.device, shapes: nn.Module) -> None:
    """UserError where the recipe asks for offloading and nothing could move: no GPU, or a model
    (shapes: without weights) whose decoder layers are not found."""
    if not wanted:
        return
    if device.type != "cuda":
        why = ("activations are in the host's memory already" if device.type == "cpu"
               else f"{device.type} is no GPU with CUDA")
        raise UserError(f"there is no GPU here to move activations from: {why}", f"{KEY}: true",
                        f"leave it out (--set {KEY}=false), or train on a GPU")
    try:
        decoder_layers(shapes)
    except UserError as error:
        raise UserError(error.problems[0].what, f"{KEY}: true", f"--set {KEY}=false") from error


def settle_offloading(model: Any, wanted: bool, device: torch.device) -> list[Decision]:
    """Put offloading on a model's decoder layers: one decision, or none where it is not wanted."""
    if not wanted:
        return []
    offload_layers(model, decoder_layers(model), CudaLanes(device), SMALLEST_BYTES)
    return [Decision(KEY, True, IN_RECIPE)]


class Lanes(Protocol):
    """Copies of bytes (N,) uint8 between a device and its host, beside what is computed.

    `out` and `back` begin a copy and return its target with an event; the target holds anything,
    and the source has to be kept, until `wait` has put the event before all that is computed next.
    device: where activations are.
    """

    device: torch.device

    def out(self, data: Tensor) -> tuple[Tensor, Any]: ...

    def back(self, host: Tensor) -> tuple[Tensor, Any]: ...

    def wait(self, event: Any) -> None: ...


class CudaLanes:
    """A stream beside the one that computes. It begins when what was asked for before is done, so
    memory that the allocator hands out again is never written early."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        stream: Any = torch.cuda.Stream
        self._side = stream(device)

    def out(self, data: Tensor) -> tuple[Tensor, Any]:
        host = torch.empty(data.shape, dtype=data.dtype, pin_memory=True)
        return host, self._copy(host, data)

    def back(self, host: Tensor) -> tuple[Tensor, Any]:
        data = torch.empty(host.shape, dtype=host.dtype, device=self.device)
        data.record_stream(self._side)  # it may be dropped before anybody waits for it
        return data, self._copy(data, host)

    def wait(self, event: Any) -> None:
        torch.cuda.current_stream(self.device).wait_event(event)

    def _copy(self, target: Tensor, source: Tensor) -> Any:
        self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._side):
            target.copy_(source, non_blocking=True)
            return self._side.record_event()


@dataclass(eq=False)
class _Moved:
    """A storage in the host's memory.

    uses: saved tensors that will ask for it. before: what left before it, and comes back after it.
    data, event: its copy on the device, once that has begun.
    """

    host: Tensor
    before: "weakref.ref[_Moved] | None"
    uses: int = 0
    data: Tensor | None = None
    event: Any = None


@dataclass(frozen=True)
class _View:
    """A saved tensor, by where it lies in its storage."""

    moved: _Moved
    dtype: torch.dtype
    offset: int
    size: Sequence[int]
    stride: Sequence[int]


@dataclass
class Offloading:
    """Sends away what autograd keeps, and fetches it back.

    own: addresses of the model's own storages, which stay. smallest_bytes: smaller ones stay too.
    """

    lanes: Lanes
    own: frozenset[int]
    smallest_bytes: int = SMALLEST_BYTES
    _leaving: deque[tuple[Tensor, Any]] = field(default_factory=deque)
    _sent: dict[tuple[int, int], tuple[StorageWeakRef, "weakref.ref[_Moved]"]] = field(
        default_factory=dict)
    _last: "weakref.ref[_Moved] | None" = None

    def pack(self, tensor: Tensor) -> Any:
        if not self._moves(tensor):
            return tensor
        storage = tensor.untyped_storage()
        # The weak reference keeps the number from being given to another storage. An operation in
        # place makes a version of its own, which is other bytes.
        key = storage._cdata, tensor._version
        known = self._sent.get(key)
        moved = None if known is None else known[1]()
        if moved is None:
            moved = self._send(storage)
            self._sent[key] = _weak(storage), weakref.ref(moved)
        moved.uses += 1
        return _View(moved, tensor.dtype, int(tensor.storage_offset()), tensor.shape,
                     tensor.stride())

    def unpack(self, packed: Any) -> Tensor:
        if not isinstance(packed, _View):
            kept: Tensor = packed
            return kept
        self._forward_is_over()
        moved = packed.moved
        self._fetch(moved)
        data, event = moved.data, moved.event
        assert data is not None
        self.lanes.wait(event)
        moved.uses -= 1
        if moved.uses <= 0:  # autograd holds it from here; asked once more, it is fetched again
            moved.data = moved.event = None
        return torch.empty(0, dtype=packed.dtype, device=data.device).set_(
            data.untyped_storage(), packed.offset, packed.size, packed.stride)

    def _moves(self, tensor: Tensor) -> bool:
        if (type(tensor) is not Tensor or tensor.layout != torch.strided
                or tensor.device != self.lanes.device or tensor.is_neg() or tensor.is_conj()):
            return False
        storage = tensor.untyped_storage()
        return storage.nbytes() >= self.smallest_bytes and storage.data_ptr() not in self.own

    def _send(self, storage: torch.UntypedStorage) -> _Moved:
        data = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        host, event = self.lanes.out(data)
        self._leaving.append((data, event))
        if len(self._leaving) > ON_THE_WAY:
            self._let_go()
        moved = _Moved(host, self._last)
        self._last = weakref.ref(moved)
        return moved

    def _let_go(self) -> None:
        """Give the oldest storage that leaves back to the allocator. The computation waits for its
        copy, or a host that runs ahead would have all of them wait at once."""
        data, event = self._leaving.popleft()
        self.lanes.wait(event)
        del data

    def _forward_is_over(self) -> None:
        while self._leaving:
            self._let_go()
        self._sent.clear()
        self._last = None

    def _fetch(self, moved: _Moved) -> None:
        """Begin its way back, and that of those which come next."""
        wanted: _Moved | None = moved
        for _ in range(1 + ON_THE_WAY):
            if wanted is None:
                return
            if wanted.data is None and (wanted is moved or wanted.uses > 0):
                wanted.data, wanted.event = self.lanes.back(wanted.host)
            wanted = None if wanted.before is None else wanted.before()


class OffloadedLayer:
    """Mixed into the class of a decoder layer. Around the call, not the forward pass, so that the
    inputs that checkpoints save are seen."""

    lorafit_offloading: Offloading

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        plain: Any = super()
        with saved_tensors_hooks(self.lorafit_offloading.pack, self.lorafit_offloading.unpack):
            return plain.__call__(*args, **kwargs)


def offload_layers(model: nn.Module, layers: Sequence[nn.Module] | nn.ModuleList, lanes: Lanes,
                   smallest_bytes: int = SMALLEST_BYTES) -> None:
    """Let layers keep what they keep in the host's memory."""
    own = [*model.parameters(), *model.buffers()]
    offloading = Offloading(lanes, frozenset(t.untyped_storage().data_ptr() for t in own),
                            smallest_bytes)
    for layer in layers:
        take_form(layer, OffloadedLayer, lorafit_offloading=offloading)
