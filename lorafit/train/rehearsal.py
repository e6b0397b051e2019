"""What a run could fail at hours later is tried before its first step: the longest rows.

An evaluation and a checkpoint come before the first step of every new run anyway. The longest
micro-batch is computed only where an allocator says that memory is out: on GPUs, and under a limit
of address space. Elsewhere a process that takes too much is killed without a word, and trying would
only bring that forward.
"""

import resource
from collections.abc import Callable, Sequence

import torch
from torch import nn

from lorafit.data.batches import collate
from lorafit.data.feed import Feed
from lorafit.data.packing import Layout, split_rows
from lorafit.train.memory import Fit, free_memory
from lorafit.train.step import backward
from lorafit.train.strategy.strategy import Strategy


def may_run_out(device: torch.device) -> bool:
    """Whether running out of memory is an error that can be caught."""
    if device.type != "cpu":
        return True
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def rehearse(strategy: Strategy, module: nn.Module, parameters: Sequence[nn.Parameter], feed: Feed,
             layout: Layout, pad_id: int, fit: Fit, seed: int,
             again: Callable[[int], None] = lambda most: None) -> int:
    """Forward and backward over the largest micro-batch that the rows at hand can make, with room
    taken for the optimizer's state. Examples that it has after `fit` was cut to what fits.

    Changes nothing else: gradients are dropped, and random numbers come from the step. `again` is
    told what is tried after memory ran out, and raises where nothing can be.
    """
    tokens = layout.micro_batch_size * layout.row_tokens if layout.batching == "packed" else 0
    examples = feed.longest(layout.micro_batch_size, tokens)
    parts = split_rows(examples.lengths, layout, 1)
    largest = [max(parts, key=lambda part: part.computed_tokens(examples.lengths))]
    held = [torch.empty_like(p, dtype=torch.float32) for p in parameters for _ in range(2)]
    while True:
        [batch, *_] = [strategy.mine(collate(examples.tokens, part, layout, pad_id))
                       for part in fit.pieces(largest)]
        loss = backward(strategy, module, [batch], 0, seed, may_fail=True)
        for p in parameters:
            p.grad = None
        if loss is not None:
            break
        free_memory(strategy.device)
        fit.halve(largest, examples.lengths)
        again(fit.most_examples(largest))
    del held
    free_memory(strategy.device)
    return fit.most_examples(largest)
