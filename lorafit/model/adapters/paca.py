"""PaCA: r input columns of each weight are trained, the weight's own (arXiv 2503.01905).

    y = x·Wᵀ,  W[:, columns] = W₀[:, columns] + D

The forward pass is the plain product, and the backward pass needs r columns of the input instead of
the whole: dx = dy·W, dD = dyᵀ·x[:, columns]. D (out, r) is what is trained and saved, in float32
and from zero; the columns of W are written from it, so that rounding never adds up. Columns of a
quantised weight cannot be written, so there y = x·W₀ᵀ + x[:, columns]·Dᵀ, which is the same.

A PaCA adapter is a LoRA adapter whose A picks columns: ΔW = D·A with A[k, columns[k]] = 1.

Shapes: B rows, T tokens, I inputs, O outputs of a layer, R rank.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lorafit.errors import UserError
from lorafit.model.adapters.own import drawing
from lorafit.model.inventory import is_linear, linear_shape, module_words
from lorafit.model.named_modules import matched_names
from lorafit.recipe.adapter import Adapter


def configure(model: nn.Module, section: Adapter) -> dict[str, Any]:
    """Which layers, and of how many columns. Experts that are stored as one tensor are left out.

    UserError for layers that PaCA cannot train.
    """
    modules = []
    sharing = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for name in matched_names(model, section):
        module = model.get_submodule(name)
        if isinstance(module, nn.Embedding) and section.target_modules != "all-linear":
            raise UserError(f"{name} is an embedding, whose columns are no inputs",
                            "adapter.target_modules", "leave it out, or use method: lora")
        if not is_linear(module):
            continue
        _refuse(name, module, section.rank or 1, sharing)
        modules.append(name)
    if not modules:
        raise UserError("the recipe's words leave no linear layer to adapt",
                        "adapter.target_modules", "name linear layers")
    transposed = [name for name in modules
                  if not isinstance(model.get_submodule(name), nn.Linear)]
    return {"rank": section.rank, "modules": modules, "transposed": transposed}


def _refuse(name: str, module: nn.Module, rank: int, sharing: Counter[int]) -> None:
    inputs = linear_shape(module)[1]
    if rank > inputs:
        raise UserError(f"rank {rank} is above the {inputs} input columns of {name}",
                        "adapter.rank", f"use at most {inputs}")
    if any(sharing[id(parameter)] > 1 for parameter in module.parameters(recurse=False)):
        raise UserError(f"{name} shares its weight with another layer, which would change too",
                        "adapter.target_modules", "leave it out, or use method: lora")


def attach(model: nn.Module, config: dict[str, Any], seed: int) -> None:
    for name in config["modules"]:
        base = model.get_submodule(name)
        drawn = torch.randperm(linear_shape(base)[1], generator=drawing(seed, name))
        columns = drawn[: config["rank"]].sort().values
        _put(model, name, PacaLinear(base, columns))


def tensors(model: nn.Module, config: dict[str, Any]) -> dict[str, Tensor]:
    """D (O, R) as `<layer>.change` and the columns (R,) as `<layer>.columns`."""
    found: dict[str, Tensor] = {}
    for name in config["modules"]:
        layer: Any = model.get_submodule(name)
        found |= {f"{name}.change": layer.change, f"{name}.columns": layer.columns}
    return found


def settle(model: nn.Module, config: dict[str, Any]) -> None:
    for name in config["modules"]:
        layer: Any = model.get_submodule(name)
        layer.is_written = False


def merge(model: nn.Module, config: dict[str, Any]) -> nn.Module:
    for name in config["modules"]:
        layer: Any = model.get_submodule(name)
        layer.write_columns()
        _put(model, name, layer.base)
    return model


def as_lora(model: nn.Module, config: dict[str, Any],
            tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The same adapter in peft's format: tensors and configuration of plain LoRA at scale 1.

    `model` is the base, with or without weights.
    """
    from peft import LoraConfig

    converted = {}
    for name in config["modules"]:
        columns, change = tensors[f"{name}.columns"], tensors[f"{name}.change"]
        picks = F.one_hot(columns, linear_shape(model.get_submodule(name))[1]).to(change.dtype)
        converted[f"base_model.model.{name}.lora_A.weight"] = picks
        converted[f"base_model.model.{name}.lora_B.weight"] = change
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=config["rank"], lora_alpha=config["rank"],
        target_modules=module_words(model, config["modules"]), inference_mode=True,
        fan_in_fan_out=bool(config["transposed"]),
        base_model_name_or_path=config["base_model_name_or_path"],
    )
    return converted, lora.to_dict()


class PacaLinear(nn.Module):
    """A linear layer of which some input columns are trained.

    columns: (R,), change: D (O, R) in float32, original: W₀[:, columns] once they were written
    over. is_written: whether the columns of the weight are, and stay, those of `change`.
    """

    columns: Tensor
    original: Tensor | None

    def __init__(self, base: Any, columns: Tensor) -> None:
        super().__init__()
        self.base = base
        device = base.weight.device
        self.register_buffer("columns", columns.to(device))
        self.register_buffer("original", None, persistent=False)
        self.change = nn.Parameter(torch.zeros(linear_shape(base)[0], len(columns), device=device))
        self.is_written = True  # W₀ + 0

    @property
    def is_quantised(self) -> bool:
        return not self.base.weight.is_floating_point()

    @property
    def weight(self) -> Tensor:
        """(O, I), also where it is stored the other way round."""
        weight: Tensor = self.base.weight
        return weight if isinstance(self.base, nn.Linear) else weight.T

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) → (…, O)."""
        if self.is_quantised:
            y: Tensor = self.base(x)
            return y + _column_product(x[..., self.columns], self.change).to(y.dtype)
        self.write_columns()
        return _product(x, self.change, self)

    @torch.no_grad()
    def write_columns(self) -> None:
        """Bring the weight up to date, where an update may have come since it was last written.

        Whichever optimizer makes an update, it needs a gradient: so from a backward pass until the
        gradient is dropped nothing counts as written for good.
        """
        if self.is_written:
            return
        weight = self.weight
        if self.original is None:
            self.original = weight[:, self.columns]
        new = (self.original.float() + self.change).to(weight.dtype)
        weight.index_copy_(1, self.columns, new)
        self.is_written = self.change.grad is None


class _Product(torch.autograd.Function):
    """x·Wᵀ + bias, which keeps R columns of x for the backward pass.

    The weight is reached through the layer and not saved: autograd would refuse the backward pass
    of a micro-batch after the columns were written again, with what they hold already.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Tensor, layer: PacaLinear) -> Tensor:
        ctx.layer = layer
        if change.requires_grad:
            ctx.save_for_backward(x[..., layer.columns])
        return F.linear(x, layer.weight, layer.base.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        dx = dy @ ctx.layer.weight if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return dx, None, None
        gradient = _weight_gradient(dy, *ctx.saved_tensors)  # may compute the forward pass again
        ctx.layer.is_written = False
        return dx, gradient, None


class _ColumnProduct(torch.autograd.Function):
    """x·Dᵀ for the R columns of x, (…, R) → (…, O), in the dtype of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Tensor) -> Tensor:
        ctx.save_for_backward(x, change)
        return F.linear(x, change.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, change = ctx.saved_tensors
        dx = dy @ change.to(dy.dtype) if ctx.needs_input_grad[0] else None
        return dx, _weight_gradient(dy, x) if ctx.needs_input_grad[1] else None


_product: Any = _Product.apply
_column_product: Any = _ColumnProduct.apply


def _weight_gradient(dy: Tensor, x: Tensor) -> Tensor:
    """dyᵀ·x over all tokens, (O, R) in float32; a sum over tokens could overflow float16."""
    if dy.dtype == torch.float16:
        dy, x = dy.float(), x.float()
    return (dy.flatten(0, -2).T @ x.flatten(0, -2)).float()


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
