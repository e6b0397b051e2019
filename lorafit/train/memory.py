"""Running out of memory: micro-batches are halved and the step is taken again.

Which rows a step trains on and what its gradient is do not depend on how they are laid out, so
nothing of the run changes but rounding (and dropout masks, which belong to micro-batches). Ranks
need not agree: they meet after all micro-batches of a step, however many each of them has.
"""

import gc
import os
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lorafit.data.packing import Layout, MicroBatch
from lorafit.errors import MachineError
from lorafit.run_dir import RunDir, read_json

# RuntimeErrors of allocators that have no class of their own, in lower case.
_SAID = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory",
         "cublas_status_alloc_failed", "failed to allocate")
_REMEDY = ("set training.activation_checkpointing=full, quantise the base "
           "(model.quantization=nf4), shorten the rows (data.max_length_tokens) or let several "
           "devices share one (--context-parallel)")


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator, of a device or of the host, had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error).lower() for said in _SAID)


def free_memory(device: torch.device) -> None:
    """Give back what tensors that are gone still hold."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type in ("xpu", "mps"):
        getattr(torch, device.type).empty_cache()


@dataclass
class Fit:
    """How often micro-batches had to be halved on this rank, so far. what: in messages."""

    what: str = "training"
    halvings: int = 0

    def pieces(self, parts: Sequence[MicroBatch]) -> list[MicroBatch]:
        """The micro-batches, each cut into 2^halvings pieces as far as it has examples."""
        pieces = list(parts)
        for _ in range(self.halvings):
            pieces = [half for piece in pieces for half in halves(piece)]
        return pieces

    def halve(self, parts: Sequence[MicroBatch], lengths: np.ndarray) -> None:
        """Make pieces half as large from now on. `parts` are those that did not fit.

        MachineError where each has a single example already.
        """
        if all(len(piece.examples) < 2 for piece in self.pieces(parts)):
            longest = max((int(lengths[i]) for part in parts for i in part.examples), default=0)
            raise MachineError(f"out of memory in {self.what} with one row of {longest:,} tokens "
                               f"at a time\n    {_REMEDY}; the last checkpoint is intact")
        self.halvings += 1

    def most_examples(self, parts: Sequence[MicroBatch]) -> int:
        """Examples of the largest piece."""
        return max((len(piece.examples) for piece in self.pieces(parts)), default=0)


def fit_of(run: RunDir, layout: Layout, device: torch.device) -> tuple[Fit, list[str]]:
    """What an earlier process of this run learnt about memory, where it still applies, and what is
    remarked of it."""
    try:
        learnt = read_json(run.memory)
        same = (learnt["micro_batch_size"], learnt["batching"], learnt["device"]) == (
            layout.micro_batch_size, layout.batching, device.type)
        halvings = int(learnt["halvings"]) if same else 0
    except (OSError, ValueError, KeyError, TypeError):
        return Fit(), []
    if not halvings:
        return Fit(), []
    return Fit(halvings=halvings), [
        f"micro-batches are cut {halvings} times by half, as the run learnt in step "
        f"{learnt['since_step']} when memory ran out ({run.memory.name}; remove it to try again)"]


def halves(part: MicroBatch) -> list[MicroBatch]:
    """A micro-batch as two of half as many rows, or its one row cut between examples."""
    if len(part.rows) > 1:
        middle = len(part.rows) // 2
        return [MicroBatch(part.rows[:middle]), MicroBatch(part.rows[middle:])]
    if len(part.examples) > 1:
        [row] = part.rows
        middle = len(row) // 2
        return [MicroBatch((row[:middle],)), MicroBatch((row[middle:],))]
    return [part]


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory used so far: of the device, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # getrusage counts what the parent had when it started this process, too
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(text.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, ValueError, IndexError):  # no Linux
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def held_memory_bytes(device: torch.device) -> int:
    """Memory in use at this moment: of the device, or of the process on a CPU, where Linux tells;
    elsewhere the most so far."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return peak_memory_bytes(device)
    return pages * os.sysconf("SC_PAGE_SIZE")
