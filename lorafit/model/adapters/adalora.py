"""AdaLoRA's penalty and its moving of ranks (arXiv 2303.10512), as peft computes them."""

from typing import Any

import torch
from torch import Tensor, nn

_SMOOTHED = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # as peft's allocator calls them


def is_adalora(adapted: Any) -> bool:
    return getattr(getattr(adapted, "peft_type", None), "value", "") == "ADALORA"


def freeze_counts(adapted: Any) -> None:
    """`ranknum` is a count, which peft trains by mistake over a 16-bit base."""
    for name, parameter in adapted.named_parameters():
        if ".ranknum." in name:
            parameter.requires_grad_(False)


class AdaLoraRule:
    """Keeps P and Q orthogonal, and takes ranks from where they matter least.

    Which ranks are kept is remembered here and not in peft's configuration, where peft would leave
    the others out of the file: a product over fewer ranks is summed in another order, so that the
    loaded adapter would not compute, to the bit, what was trained. The others are zeros.
    """

    def __init__(self, adapted: Any) -> None:
        self._tuner = adapted.base_model
        self._config = adapted.peft_config["default"]
        self._kept: dict[str, list[bool]] | None = None  # since the last allocation

    def add_gradients(self) -> None:
        """Equation 4: the mean over all P and Q of ‖PᵀP − I‖, times orth_reg_weight."""
        factors = [parameter for name, parameter in self._tuner.named_parameters()
                   if "lora_A.default" in name or "lora_B.default" in name]
        if self._config.orth_reg_weight <= 0 or not factors:
            return
        penalty = self._config.orth_reg_weight * torch.stack([_distance(p) for p in factors]).mean()
        for factor, gradient in zip(factors, torch.autograd.grad(penalty, factors), strict=True):
            factor.grad = gradient if factor.grad is None else factor.grad + gradient

    def after_update(self, step: int) -> None:
        self._config.rank_pattern = self._kept
        self._tuner.update_and_allocate(step)
        self._kept, self._config.rank_pattern = self._config.rank_pattern, None

    def state(self) -> dict[str, Tensor]:
        """The smoothed importance and uncertainty of each triplet, and which are kept."""
        allocator = self._tuner.rankallocator
        smoothed = {f"{kind}/{name}": tensor.detach().cpu().contiguous() for kind in _SMOOTHED
                    for name, tensor in getattr(allocator, kind).items()}
        return smoothed | {f"kept/{name}": torch.tensor(kept)
                           for name, kept in (self._kept or {}).items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        allocator = self._tuner.rankallocator
        allocator.reset_ipt()
        self._kept = None
        for key, tensor in state.items():
            kind, _, name = key.partition("/")
            if kind == "kept":
                self._kept = {**(self._kept or {}), name: tensor.tolist()}
            else:
                getattr(allocator, kind)[name] = tensor.to(self._device)

    @property
    def _device(self) -> torch.device:
        parameter: nn.Parameter = next(self._tuner.parameters())
        return parameter.device


def _distance(factor: Tensor) -> Tensor:
    """‖FFᵀ − I‖ for the shorter side of a factor."""
    gram = factor @ factor.T if factor.shape[0] < factor.shape[1] else factor.T @ factor
    return torch.linalg.norm(gram - torch.eye(len(gram), device=factor.device))
