"""One real step of training on the base that comes with lorafit."""

import math
import time
from collections.abc import Iterator
from importlib import import_module

from lorafit.doctor.finding import Finding, Section, first_line

_LIBRARIES = ("transformers", "peft", "accelerate", "datasets", "tokenizers", "safetensors",
              "huggingface_hub")


def libraries(section: Section) -> Iterator[Finding]:
    """Whether what training imports can be imported."""
    broken = []
    started = time.perf_counter()
    for name in _LIBRARIES:
        try:
            import_module(name)
        except Exception as error:
            broken.append(name)
            yield section.problem(name, f"cannot be imported: {first_line(error)}",
                                  f"pip install --force-reinstall --no-deps {name}")
    if broken:
        raise ImportError(f"{', '.join(broken)} cannot be imported")
    yield section.ok("imports", f"{', '.join(_LIBRARIES)} in {time.perf_counter() - started:.1f} s")


def train_once(section: Section) -> Iterator[Finding]:
    """Embedded base, default adapter, fast path, loss, gradient, AdamW; twice, to see it fall."""
    import torch

    from lorafit.model import base as bases
    from lorafit.model.adapters.add import add_adapter
    from lorafit.model.device import find_device
    from lorafit.model.fast.speed_up import speed_up
    from lorafit.model.loss import SummedLoss
    from lorafit.recipe import auto
    from lorafit.recipe.adapter import Adapter
    from lorafit.recipe.schema import Model

    device, facts = find_device()
    model = Model(base="tiny")
    dtype = auto.dtype(model.dtype, facts).value
    base = bases.load_base(model, dtype, "sdpa", device)
    adapted = add_adapter(base, Adapter(), 0, "tiny")
    text = "The doctor asks the model to learn this sentence, and nothing else."
    ids = bases.load_tokenizer(model)(text, return_tensors="pt")["input_ids"].to(device)
    plain = float(SummedLoss(adapted)(ids, torch.ones_like(ids), ids)) / (ids.numel() - 1)
    fast = speed_up(adapted)
    loss_of = SummedLoss(adapted, fast.head)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    losses, norm = [], 0.0
    for _ in range(2):
        started = time.perf_counter()
        loss = loss_of(ids, torch.ones_like(ids), ids) / (ids.numel() - 1)
        optimizer.zero_grad()
        loss.backward()
        norm = norm or float(torch.nn.utils.get_total_norm(
            [p.grad for p in trained if p.grad is not None]))
        optimizer.step()
        losses.append(float(loss))
        step_s = time.perf_counter() - started
    name = f"step on {device}"
    numbers = (f"loss {losses[0]:.4f}, {losses[1]:.4f} after an update; gradient norm {norm:.3g}; "
               f"{1000 * step_s:.0f} ms in {dtype}")
    if not all(map(math.isfinite, (*losses, norm))) or norm == 0:
        yield section.problem(name, f"{numbers}: not finite, or no gradient at all",
                              "see what is said of the device above")
    elif abs(losses[0] - plain) > (1e-3 if dtype == "float32" else 5e-2):
        yield section.problem(name, f"{numbers}: the model's own logits give {plain:.4f}",
                              "see what is said of the kernels above")
    elif losses[1] >= losses[0]:
        yield section.problem(name, f"{numbers}: it does not fall", "see the lines above")
    else:
        yield section.ok(name, numbers)
    slow = [decision for decision in fast.decisions if decision.value == "plain"]
    for decision in slow:
        yield section.warning(decision.key, f"computed the plain way: {decision.reason}",
                              "training is right, but slower than it could be")
