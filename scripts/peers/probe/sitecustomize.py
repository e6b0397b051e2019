"""The probe: Python runs this file at the start of every process that has its folder on PYTHONPATH.

It watches torch from outside, the same way in every tool, and writes a JSON line for each optimizer
step to the file named by PEERS_PROBE. Nothing of a tool is changed:

- a step's end is when torch's optimizer has stepped (torch's hooks for all optimizers);
- tokens are the ids that enter the embedding of the model's vocabulary, those that are not padding;
- the loss is what torch's cross entropy returns, weighted by the labels that count; tools that
  compute it otherwise are read from their own log (`losses` of their peer);
- whether activations are recomputed is seen from torch's checkpoint function;
- peak memory is the operating system's.

It runs in processes that train nothing too (pip, workers), where it does nothing but wait for
torch to be imported. PEERS_STUBS names modules that a tool imports for work that is not done
here, and which are not installed: they are replaced by empty ones.
"""

import contextlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
import types


class Probe:
    """Counts of the current step, which `stepped` writes and clears."""

    def __init__(self, torch, path):
        self.torch, self.path = torch, path
        self.vocabulary = int(os.environ["PEERS_VOCABULARY"])
        self.pad_id = int(os.environ["PEERS_PAD_ID"])
        self.started = float(os.environ["PEERS_STARTED"])
        self.step = 0
        self.dtype = None
        self.clear()

    def clear(self):
        self.tokens = self.computed = self.recomputed = 0
        self.losses = []
        self.norm = self.clipped = None

    def embedded(self, ids, weight):
        if ids.dtype.is_floating_point or weight.shape[0] != self.vocabulary:
            return
        if ids.numel() and self.torch.is_grad_enabled():
            self.tokens += int((ids != self.pad_id).sum())
            self.computed += ids.numel()
            self.dtype = str(weight.dtype).removeprefix("torch.")

    def lost(self, loss, target, ignored, reduction):
        count = int((target != ignored).sum())
        value = float(loss.detach())
        if count and reduction in ("mean", "sum"):
            self.losses.append((value * count if reduction == "mean" else value, count))

    def before_step(self, optimizer, args, kwargs):
        # Some tools hand their optimizer the frozen weights too; those have no gradient.
        parameters = [p for group in optimizer.param_groups for p in group["params"]
                      if p.grad is not None]
        norms = [p.grad.detach().float().norm() for p in parameters]
        self.norm = float(self.torch.stack(norms).norm()) if norms else 0.0
        self.parameters = sum(p.numel() for p in parameters)

    def stepped(self, optimizer, args, kwargs):
        now = time.time()
        self.step += 1
        weight = sum(count for _, count in self.losses)
        line = {
            "step": self.step, "time_s": time.perf_counter(), "since_start_s": now - self.started,
            "tokens": self.tokens, "computed_tokens": self.computed, "supervised": weight,
            "loss": sum(loss for loss, _ in self.losses) / weight if weight else None,
            "grad_norm": self.norm, "norm_before_clip": self.clipped,
            "parameters": self.parameters, "recomputed": self.recomputed,
            "cpu_s": time.process_time(), "peak_bytes": peak_bytes(),
            "threads": self.torch.get_num_threads(),
            "pid": os.getpid(), "optimizer": type(optimizer).__name__,
            "dtype": self.dtype,
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.clear()


def peak_bytes():
    """Most memory of this process and of any child that has ended."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(resource.getrusage(who).ru_maxrss
                      for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def watch(torch):
    import functools

    import torch.nn.functional as functional
    import torch.utils.checkpoint
    from torch.optim.optimizer import (
        register_optimizer_step_post_hook,
        register_optimizer_step_pre_hook,
    )

    probe = Probe(torch, os.environ["PEERS_PROBE"])
    embedding, cross_entropy = functional.embedding, functional.cross_entropy
    checkpoint, clip = torch.utils.checkpoint.checkpoint, torch.nn.utils.clip_grad_norm_

    @functools.wraps(embedding)
    def watched_embedding(input, weight, *args, **kwargs):
        if not torch.compiler.is_compiling():
            probe.embedded(input, weight)
        return embedding(input, weight, *args, **kwargs)

    @functools.wraps(cross_entropy)
    def watched_cross_entropy(input, target, weight=None, size_average=None, ignore_index=-100,
                              reduce=None, reduction="mean", label_smoothing=0.0):
        loss = cross_entropy(input, target, weight, size_average, ignore_index, reduce, reduction,
                             label_smoothing)
        if not torch.compiler.is_compiling():
            # Within a function transform a loss has no value yet.
            with contextlib.suppress(RuntimeError):
                probe.lost(loss, target, ignore_index, reduction)
        return loss

    @functools.wraps(checkpoint)
    def watched_checkpoint(*args, **kwargs):
        probe.recomputed += 1
        return checkpoint(*args, **kwargs)

    @functools.wraps(clip)
    def watched_clip(*args, **kwargs):
        norm = clip(*args, **kwargs)
        probe.clipped = float(norm)
        return norm

    functional.embedding = watched_embedding
    functional.cross_entropy = watched_cross_entropy
    torch.utils.checkpoint.checkpoint = watched_checkpoint
    torch.nn.utils.clip_grad_norm_ = watched_clip
    register_optimizer_step_pre_hook(probe.before_step)
    register_optimizer_step_post_hook(probe.stepped)


class AfterTorch(importlib.abc.MetaPathFinder):
    """Calls `watch` once torch has been imported, whoever imports it."""

    def find_spec(self, name, path=None, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_watch(module):
            execute(module)
            watch(module)

        spec.loader.exec_module = execute_and_watch
        return spec


def stub(name):
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__path__ = []
    sys.modules[name] = module


if "PEERS_PROBE" in os.environ:
    for stubbed in filter(None, os.environ.get("PEERS_STUBS", "").split(",")):
        stub(stubbed)
    sys.meta_path.insert(0, AfterTorch())
