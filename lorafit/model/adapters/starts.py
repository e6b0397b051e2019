"""LoRA's starts: what A and B are before the first step, computed from base, data or chance.

`default` and `gaussian` are peft's own and need nothing. The others are put here, on a model that
peft has built with the default start, so that one place decides four things: a layer's weight is
altered by one formula whatever computed A and B; a resumed run takes A and B from where they were
kept and computes nothing; random numbers outside are left alone; and what is saved says nothing of
the start that whoever loads it would have to repeat.
"""

import contextlib
import dataclasses
import difflib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lorafit.errors import Problem, UserError
from lorafit.model.adapters import loftq
from lorafit.model.adapters.quiet import no_advice
from lorafit.model.loss import summed_cross_entropy
from lorafit.recipe.adapter import Adapter

# Rows of the training data in padded batches of the given number of rows, as SummedLoss takes them.
Samples = Callable[[int], Iterable[dict[str, Any]]]

# Sub-configurations in adapter.options: their start, and peft's class.
CONFIGS = {"eva_config": ("eva", "EvaConfig"), "corda_config": ("corda", "CordaConfig"),
           "lora_ga_config": ("lora_ga", "LoraGAConfig")}
# Options that leave a layer computing W·x + s·B·A·x, which the starts' arithmetic is about.
_PLAIN_OPTIONS = {*CONFIGS, "lora_bias"}
_PICKLES = ("cache_file", "covariance_file")
_EVA_PASSES = 50  # over the batches, within which a start that can be found has settled


@dataclass(frozen=True)
class Start:
    """A and B at the start by the names in an adapter's file, float32, on the CPU.

    alters_base: the base in memory is W − s·B·A. only_on: the stored format of the one base on
    which the adapter is valid as it is (loftq), empty for any.
    """

    tensors: dict[str, Tensor]
    alters_base: bool = False
    only_on: str = ""


def start_of(adapted: Any) -> Start | None:
    """The start of a model's adapter, where it matters for what is saved."""
    start: Start | None = getattr(adapted, "lorafit_start", None)
    return start


def put(adapted: Any, section: Adapter, seed: int, samples: Samples | None = None,
        kept: Path | None = None) -> None:
    """Start A and B as the recipe says, and alter the base where the start does.

    `kept` is a directory with the adapter as it started, for a run that goes on; otherwise starts
    that look at data read it from `samples`. UserError when the start does not fit the model. On a
    model without weights that is all that is found out.
    """
    init = section.init
    if init in ("default", "gaussian"):
        return
    _refuse_unfit(adapted, section)
    if any(parameter.is_meta for parameter in adapted.parameters()):
        return
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices), no_advice():
        torch.manual_seed(seed)
        adapted.eval()
        if init == "eva":
            _put_eva(adapted, section, samples, kept)
        elif kept is not None:
            _copy(adapted, load_file(kept / "adapter_model.safetensors"))
        else:
            _compute(adapted, section, samples)
        tensors = {name: tensor.detach().cpu().clone()
                   for name, tensor in _matrices(adapted).items()}
        if section.alters_base:
            for name, layer in _layers(adapted):
                _take_out(layer, *(tensors[f"{name}.lora_{x}.weight"] for x in "AB"))
        adapted.train()
    if section.alters_base or init == "loftq":
        only_on = loftq.quant_type(adapted) if init == "loftq" else ""
        adapted.lorafit_start = Start(tensors, section.alters_base, only_on)


def settings(section: Adapter) -> Any:
    """peft's configuration of the start, from adapter.options; None for starts without one.

    UserError for fields that it does not have, and for one of another start.
    """
    problems, own = [], None
    for key, (init, class_name) in CONFIGS.items():
        values = section.options.get(key, {})
        where = f"adapter.options.{key}"
        if section.init != init:
            if key in section.options:
                problems.append(Problem(f"belongs to init {init}", where,
                                        f"leave it out, or set adapter.init to {init}"))
            continue
        if not isinstance(values, Mapping):
            raise UserError("is a mapping of settings", where, "write it as key: value")
        config_class = _peft_class(class_name, init)
        problems += _odd_fields(config_class, values, where)
        if not problems:
            try:
                own = config_class(**values)
            except (ValueError, TypeError) as error:
                problems.append(Problem(str(error).strip("."), where, "change it"))
    if problems:
        raise UserError(problems=problems)
    return own


def _peft_class(name: str, init: str) -> Any:
    import peft
    from peft.tuners import lora

    found = getattr(lora, name, None) or getattr(lora.config, name, None)
    if found is None:
        raise UserError(f"init {init} is not in the installed peft {peft.__version__}",
                        "adapter.init", "pip install --upgrade peft")
    return found


def _odd_fields(config_class: Any, values: Mapping[str, Any], where: str) -> list[Problem]:
    known = {field.name for field in dataclasses.fields(config_class)} - {*_PICKLES, "verbose"}
    problems = []
    for name in values:
        if name in _PICKLES:
            problems.append(Problem("is a pickle, which can run code on loading",
                                    f"{where}.{name}", "leave it out"))
        elif name not in known:
            close = difflib.get_close_matches(str(name), known, 1, 0.6)
            problems.append(Problem(
                f"there is no setting {name}", f"{where}.{name}",
                f"did you mean {close[0]}?" if close else f"use {', '.join(sorted(known))}"))
    return problems


def _refuse_unfit(adapted: Any, section: Adapter) -> None:
    """UserError unless the start can be put on every layer that is adapted."""
    init, own = section.init, settings(section)
    remedy = "use init: default"
    for key in section.options:
        if key not in _PLAIN_OPTIONS:
            raise UserError(f"changes what a layer computes, which init {init} does not know of",
                            f"adapter.options.{key}", f"leave it out, or {remedy}")
    shared = _shared_weights(adapted)
    for name, layer in _every_layer(adapted):
        kind = name.removeprefix("base_model.model.")
        if hasattr(layer, "parameter_name"):
            raise UserError(f"init {init} cannot start fused expert weights ({kind})",
                            "adapter.init", f"{remedy}, or adapter.experts: none")
        if not layer.lora_A:
            raise UserError(f"init {init} cannot start an embedding ({kind})", "adapter.init",
                            f"{remedy}, or leave the embedding out of target_modules")
        if init == "olora" and layer.fan_in_fan_out:
            # peft decomposes such a weight as if it lay the other way round.
            raise UserError(f"init olora cannot start the transposed layer {kind}",
                            "adapter.init", "use init: pissa")
        if section.alters_base and id(layer.get_base_layer().weight) in shared:
            raise UserError(f"init {init} would alter {kind} and the weight that it shares",
                            "adapter.init", f"{remedy}, or leave {kind} out of target_modules")
        _refuse_rank(layer, kind, section, own)


def _refuse_rank(layer: Any, kind: str, section: Adapter, own: Any) -> None:
    """EVA looks for more directions than the rank, and LoRA-GA needs two for each."""
    rank, sides = int(layer.r["default"]), (layer.in_features, layer.out_features)
    if section.init == "eva" and _components(rank, own) > layer.in_features:
        raise UserError(
            f"init eva looks for {_components(rank, own)} directions in {kind}, whose input has "
            f"{layer.in_features}", "adapter.rank",
            f"use at most {int(layer.in_features / own.rho)}, or lower options.eva_config.rho")
    if section.init == "lora_ga" and 2 * rank > min(sides):
        raise UserError(f"init lora_ga needs twice the rank in {kind}, whose smaller side is "
                        f"{min(sides)}", "adapter.rank", f"use at most {min(sides) // 2}")


def _components(rank: int, eva: Any) -> int:
    return round(rank * eva.rho)


def _shared_weights(adapted: Any) -> set[int]:
    """Parameters that belong to more than one module."""
    seen: dict[int, int] = {}
    for module in adapted.modules():
        for parameter in module.parameters(recurse=False):
            seen[id(parameter)] = seen.get(id(parameter), 0) + 1
    return {key for key, count in seen.items() if count > 1}


def _every_layer(adapted: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    for name, module in adapted.named_modules():
        if isinstance(module, LoraLayer) and "default" in module.scaling:
            yield name, module


def _layers(adapted: Any) -> list[tuple[str, Any]]:
    return [(name, layer) for name, layer in _every_layer(adapted) if layer.lora_A]


def _matrices(adapted: Any) -> dict[str, Tensor]:
    """A and B of every layer by their names in the file."""
    return {f"{name}.lora_{x}.weight": getattr(layer, f"lora_{x}")["default"].weight
            for name, layer in _layers(adapted) for x in "AB"}


def _copy(adapted: Any, saved: dict[str, Tensor]) -> None:
    """A and B as they were kept: the first rows and columns of what the file holds."""
    for name, parameter in _matrices(adapted).items():
        parameter.data.copy_(saved[name][tuple(slice(size) for size in parameter.shape)])


def _compute(adapted: Any, section: Adapter, samples: Samples | None) -> None:
    """A and B of every layer but EVA's, in float32. Leaves the base as it is."""
    init, own = section.init, settings(section)
    if init == "corda":
        seen = _covariances(adapted, _rows(samples, 1), own)
    elif init == "lora_ga":
        seen = _gradients(adapted, _rows(samples, 1))
    weights = loftq.StoredWeights(adapted) if init == "loftq" else None
    for name, layer in _layers(adapted):
        base = layer.get_base_layer()
        if init == "orthogonal":
            a, b = _orthogonal(layer)
        elif init == "corda":
            a, b = _main_parts(layer, seen.pop(name), own)
        elif weights is not None:
            a, b = loftq.quantisation_error(layer, weights, name)
        else:
            before = base.weight.data.clone()
            if init.startswith("pissa"):
                layer.pissa_init("default", init)
            elif init == "olora":
                layer.olora_init("default")
            else:
                base._peft_loraga_grad = seen.pop(name)
                layer.lora_ga_init("default", own)
            base.weight.data = before
            a, b = (getattr(layer, f"lora_{x}")["default"].weight.data for x in "AB")
        for x, value in (("A", a), ("B", b)):
            parameter = getattr(layer, f"lora_{x}")["default"].weight
            parameter.data = value.to(base.weight.device, torch.float32).contiguous()


def _take_out(layer: Any, a: Tensor, b: Tensor) -> None:
    """W − s·B·A in place of W, rounded once to W's type.

    The sum over the rank is made one product after the other, each rounded by itself, because a
    matrix product adds in an order that differs between machines: a run must be able to go on
    elsewhere with the same base, to the bit.
    """
    weight = layer.get_base_layer().weight
    wide = torch.float32 if weight.device.type == "mps" else torch.float64
    rest = weight.data.T if layer.fan_in_fan_out else weight.data
    rest = rest.to(wide, copy=True)
    b = b.to(rest) * layer.scaling["default"]
    for column, row in zip(b.T, a.to(rest), strict=True):
        rest -= torch.outer(column, row)
    rest = rest.T if layer.fan_in_fan_out else rest
    weight.data = rest.to(weight.dtype).contiguous()


def _orthogonal(layer: Any) -> tuple[Tensor, Tensor]:
    """A and B random, not zero, and orthogonal to each other, so that B·A is zero.

    Both project onto rows of one orthogonal matrix: A onto the even, B onto the odd. peft rounds
    them to the base's type, which leaves B·A well above zero in 16 bits and fails on stored ones.
    """
    rank = layer.r["default"]
    rows = torch.linalg.qr(torch.randn(rank, rank)).Q
    a = (torch.randn(layer.in_features, rank // 2) @ rows[0::2]).T / 10
    b = torch.randn(rank // 2, layer.out_features).T @ rows[1::2] / 10
    return a, b


def _rows(samples: Samples | None, together: int) -> list[dict[str, Any]]:
    if samples is None:
        raise ValueError("this start needs rows")
    return list(samples(together))


def _inputs(adapted: Any, batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value.to(adapted.device) if isinstance(value, Tensor) else value
            for key, value in batch.items()}


@torch.no_grad()
def _forward(adapted: Any, batch: dict[str, Any]) -> None:
    """Every layer's output on a batch; no logits are kept of it."""
    adapted(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)


def _covariances(adapted: Any, rows: list[dict[str, Any]], own: Any) -> dict[str, Tensor]:
    """C = XᵀX of each layer's inputs X (tokens, in), averaged over rows; by the layer's name.

    As peft's preprocess_corda has it, each row's inputs are first divided by their largest.
    """
    dtype = torch.float16 if own.use_float16_for_covariance else torch.float32
    sums: dict[str, Any] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            x = inputs[0].detach().flatten(0, -2).to(dtype)
            x = x / x.max().abs()
            sums[name] = sums.get(name, 0) + x.T @ x
        return hook

    handles = [layer.get_base_layer().register_forward_hook(watch(name))
               for name, layer in _layers(adapted)]
    with adapted.disable_adapter():
        for batch in rows:
            _forward(adapted, _inputs(adapted, batch))
    for handle in handles:
        handle.remove()
    found = {name: total / len(rows) for name, total in sums.items()}
    for name, covariance in found.items():
        if not torch.isfinite(covariance).all():
            raise UserError(f"the inputs of {name.removeprefix('base_model.model.')} are not "
                            "finite on the first rows", "adapter.init",
                            "set model.dtype to float32, or use init: pissa")
    return found


def _main_parts(layer: Any, covariance: Tensor, own: Any) -> tuple[Tensor, Tensor]:
    """CorDA (arXiv 2406.05223): A and B with s·B·A = U·S·Vᵀ·C⁻¹, where U·S·Vᵀ are the first (ipm)
    or last (kpm) singular directions of W·C.

    C is damped until it can be inverted, as in peft's collect_eigens_for_layer, whose module
    cannot be imported without the package attrs, which peft does not ask for.
    """
    weight = layer.get_base_layer().weight.data.float()
    weight = weight.T if layer.fan_in_fan_out else weight
    covariance, damping = covariance.float(), 0.01
    one = torch.eye(len(covariance), device=covariance.device)
    while True:
        damped = covariance + damping * covariance.diagonal().mean() * one
        inverse = torch.linalg.inv(damped)
        if torch.dist(damped @ inverse, one) < 0.05:
            break
        damping *= 2
    u, s, vh = torch.linalg.svd(weight @ damped, full_matrices=False)
    rank = layer.r["default"]
    part = slice(rank) if own.corda_method == "ipm" else slice(-rank, None)
    root = (s[part] / layer.scaling["default"]).sqrt()
    return root[:, None] * (vh[part] @ inverse), u[:, part] * root


def _gradients(adapted: Any, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Gradient of the mean loss per token for each adapted weight, float32; by the layer's name.

    Added up in float32: in bfloat16 a sum over many rows would lose the later ones.
    """
    sums: dict[str, Any] = {}

    def collect(name: str) -> Callable[[Tensor], None]:
        def hook(weight: Tensor) -> None:
            assert weight.grad is not None
            sums[name] = sums.get(name, 0) + weight.grad.float()
            weight.grad = None
        return hook

    layers = [(name, layer.get_base_layer().weight) for name, layer in _layers(adapted)]
    with adapted.disable_adapter(), torch.enable_grad():
        handles = [weight.requires_grad_(True).register_post_accumulate_grad_hook(collect(name))
                   for name, weight in layers]
        total = 0.0
        for batch in rows:
            inputs = _inputs(adapted, batch)
            weights = inputs["weights"]
            total += float((inputs["labels"][:, 1:] != -100).sum() if weights is None
                           else weights.sum())
            torch.autograd.backward(summed_cross_entropy(adapted, **inputs))
        for handle, (_, weight) in zip(handles, layers, strict=True):
            handle.remove()
            weight.requires_grad_(False)
    if not total:
        raise UserError("none of the first rows has a supervised token", "adapter.init_rows",
                        "raise it")
    return {name: gradient / total for name, gradient in sums.items()}


def _put_eva(adapted: Any, section: Adapter, samples: Samples | None, kept: Path | None) -> None:
    """A from the main directions of each layer's inputs; ranks move to where these say most.

    Layers that are left with rank 0 lose their adapter.
    """
    from peft import initialize_lora_eva_weights

    own, config = settings(section), adapted.peft_config["default"]
    names = {name: layer.in_features for name, layer in _layers(adapted)}
    if kept is not None:
        saved = load_file(kept / "adapter_model.safetensors")
        found = {name: saved.get(f"{name}.lora_A.weight", torch.zeros(0, size))
                 for name, size in names.items()}
    else:
        found = _main_directions(adapted, own, samples)
    config.init_lora_weights, config.eva_config = "eva", own
    initialize_lora_eva_weights(adapted, eva_state_dict={
        name: a.to(adapted.device) for name, a in found.items()})
    config.init_lora_weights, config.eva_config = True, None
    # Layers whose rank changed were made anew by peft, and in the base's type.
    for name, layer in _layers(adapted):
        layer.lora_A["default"].weight.data = found[name].to(adapted.device, torch.float32)
        layer.lora_B["default"].weight.data = layer.lora_B["default"].weight.data.float()
    for layer in adapted.modules():
        for magnitude in getattr(layer, "lora_magnitude_vector", {}).values():
            magnitude.weight.data = magnitude.weight.data.float()


def _main_directions(adapted: Any, own: Any, samples: Samples | None) -> dict[str, Tensor]:
    """peft's incremental decomposition of the layers' inputs; A (rank, in) by the layer's name."""
    from peft import get_eva_state_dict

    config = adapted.peft_config["default"]
    needed = max(_components(layer.r["default"], own) for _, layer in _layers(adapted))
    batches = _large_enough(samples, needed, own.use_label_mask)
    done = 0

    def forward(model: Any, batch: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        if done > _EVA_PASSES * len(batches) + 1:
            raise UserError(f"init eva did not settle within {_EVA_PASSES} passes over its rows",
                            "adapter.init_rows", "raise it, lower adapter.rank, or set "
                            "adapter.options.eva_config.tau below 0.99")
        _forward(model, batch)

    config.eva_config = own
    with contextlib.redirect_stdout(io.StringIO()):  # it prints which layers it passes over
        found: dict[str, Tensor] = get_eva_state_dict(
            adapted, batches, forward_fn=forward, gather_distributed_inputs=False,
            show_progress_bar=False)
    config.eva_config = None
    return {name: a.contiguous() for name, a in found.items()}


def _large_enough(samples: Samples | None, needed: int, supervised_only: bool) -> list[Any]:
    """Batches that hold more tokens than there are directions to find, or peft would never end."""
    for together in (8, 32, 128, 512):
        batches = [batch for batch in _rows(samples, together)
                   if int((batch["labels"] != -100).sum() if supervised_only
                          else batch["attention_mask"].sum()) >= needed]
        if batches:
            return [{key: value for key, value in batch.items() if value is not None}
                    for batch in batches]
    raise UserError(f"init eva needs more than {needed} supervised tokens in its rows",
                    "adapter.init_rows", "raise it, lower adapter.rank, or set "
                    "adapter.options.eva_config.use_label_mask to false")
