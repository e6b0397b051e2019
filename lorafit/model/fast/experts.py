"""The experts of a mixture as one function (kernels/experts.py), with adapters or without.

transformers gives all experts modules the same forward pass by a decorator, which notes on the
module how its weights are stored; those are the modules that are looked for here. (It also lets
functions be registered that compute them, by a name in the model's configuration. peft adds A and B
to the weights before any of them is called, so that is of no use.) peft wraps the module once for
each weight that it adapts, the wrappers around each other; the outermost, or the module where
nothing is adapted, gets the form.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from lorafit.kernels.experts import ExpertWeight, Gate, grouped_experts
from lorafit.model.adapters.shared_experts import expert_factors
from lorafit.model.fast.form import take_form
from lorafit.model.fast.linear import ADAPTER, FastLinear
from lorafit.model.fast.mlp import activation_of


class FastExperts:
    """Mixed into a class of experts, or of peft's wrapper around them.

    lorafit_keeps_inner: whether what the gate is given is kept for the backward pass.
    """

    lorafit_gate: Gate
    lorafit_keeps_inner: bool = True

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        experts, wrappers = parts_of(self)
        if kwargs or len(args) != 3 or not _is_ordinary(experts, wrappers, args[0]):
            plain: Any = super()
            output: Tensor = plain.forward(*args, **kwargs)
            return output
        x, index, weights = args
        first, second = (_weight(experts, name, wrappers.get(name)) for name in _names(experts))
        return grouped_experts(x, index, weights, self.lorafit_gate, first, second,
                               keeps_inner=self.lorafit_keeps_inner)


def expert_modules(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and module of the experts of each layer: peft's outermost wrapper if there is one."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        experts, wrappers = parts_of(module)
        if id(experts) in seen:
            continue
        seen.add(id(experts))
        if is_on_experts(module) or (not wrappers and hasattr(module, "_apply_gate")):
            yield name, module


def is_on_experts(layer: Any) -> bool:
    """Whether this is peft's wrapper around a fused weight of experts."""
    return _is_wrapper(layer) and layer.num_experts > 1


def parts_of(module: Any) -> tuple[Any, dict[str, Any]]:
    """The experts, and peft's wrappers around them by the name of the weight each adapts."""
    wrappers = {}
    while _is_wrapper(module):
        wrappers[module.parameter_name] = module
        module = module.base_layer
    return module, wrappers


def why_not_fast(module: Any) -> str | None:
    """Why experts stay plain; None when they can be fast."""
    experts, wrappers = parts_of(module)
    if not hasattr(experts, "_apply_gate"):
        return f"{type(experts).__name__} computes them in a way of its own"
    if experts.has_post_expert_norm:
        return "each expert's output is normed"
    names = _names(experts)
    if others := wrappers.keys() - set(names):
        return f"{', '.join(sorted(others))} has an adapter"
    if any(list(wrapper.lora_A.keys()) != [ADAPTER] for wrapper in wrappers.values()):
        return "they have several adapters"
    if parametrize.is_parametrized(experts):
        return "their weights are computed from others"
    own = dict(experts.named_parameters())
    if own.keys() - {*names, *(f"{name}_bias" for name in names)}:
        return f"{type(experts).__name__} has more weights than two and their biases"
    for name in names:
        weight = getattr(experts, name)
        if weight.ndim != 3 or not weight.is_floating_point() or weight.element_size() == 1:
            return f"their weights are stored as {str(weight.dtype).removeprefix('torch.')}"
    if any(p.requires_grad for p in own.values()):
        return "their weights are trained too"
    if any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks
           for part in (experts, *wrappers.values()) if part is not module):
        return "something listens to its parts (a hook)"
    return None


def gates(module: Any) -> Sequence[Gate]:
    """What experts may compute between their products, the fastest first.

    transformers' default, where the class has none of its own, is act(gate)·up of two halves.
    """
    from transformers.integrations.moe import _default_apply_gate

    experts, _ = parts_of(module)
    if not experts.has_gate:
        return [Gate(experts.act_fn)]
    differentiated = Gate(experts._apply_gate)
    activation = activation_of(experts)
    if activation is None or type(experts)._apply_gate is not _default_apply_gate:
        return [differentiated]
    return [Gate(experts._apply_gate, activation), differentiated]


def make_fast(module: Any, gate: Gate) -> Callable[[], None]:
    """Give experts their fast forward pass, and return what takes it back."""
    return take_form(module, FastExperts, lorafit_gate=gate)


def width_of(module: Any) -> int:
    """Of a token that experts are given."""
    experts, _ = parts_of(module)
    weight = getattr(experts, _names(experts)[0])
    return int(weight.shape[1 if experts.is_transposed else 2])


def shape_of(module: Any) -> str:
    """What matters about how experts compute: their class, their sizes, their adapters."""
    experts, wrappers = parts_of(module)
    parts = [type(experts).__name__]
    for name in _names(experts):
        wrapper = wrappers.get(name)
        ranks = "" if wrapper is None else f" r{wrapper.r[ADAPTER]} s{wrapper.scaling[ADAPTER]}"
        parts.append(f"{tuple(getattr(experts, name).shape)}{ranks}")
    return " ".join(parts)


def copied_weights(model: nn.Module) -> int:
    """How many numbers of the base peft computes anew in each step, W + scale·B·A: those that it
    reaches as parameters and that have no fast form."""
    modules: list[Any] = list(model.modules())
    fast = {id(wrapper) for module in modules if isinstance(module, FastExperts)
            for wrapper in parts_of(module)[1].values()}
    fast |= {id(module) for module in modules if isinstance(module, FastLinear)}
    return sum(module.get_param().numel() for module in modules
               if _is_wrapper(module) and id(module) not in fast)


def _is_wrapper(module: Any) -> bool:
    """Whether it is peft's layer for a weight that is reached as a parameter."""
    from peft.tuners.lora import ParamWrapper

    return isinstance(module, ParamWrapper)


def _names(experts: Any) -> tuple[str, str]:
    return ("gate_up_proj" if experts.has_gate else "up_proj"), "down_proj"


def _weight(experts: Any, name: str, wrapper: Any) -> ExpertWeight:
    """As the kernel takes it: (E, in, out)."""
    weight = getattr(experts, name)
    stored = weight if experts.is_transposed else weight.mT
    bias = getattr(experts, f"{name}_bias") if experts.has_bias else None
    if wrapper is None:
        return ExpertWeight(stored, bias)
    return ExpertWeight(stored, bias, *expert_factors(wrapper), float(wrapper.scaling[ADAPTER]))


def _is_ordinary(experts: Any, wrappers: dict[str, Any], x: Tensor) -> bool:
    """Whether this call is a training or evaluation step with the one adapter on, here alone."""
    return (x.ndim == 2 and x.dtype == experts.down_proj.dtype
            and not experts._is_expert_parallel
            and all(not wrapper.disable_adapters and not wrapper.merged_adapters
                    and wrapper.active_adapters == [ADAPTER] for wrapper in wrappers.values()))
