"""From hidden states to the loss, past the model's own logits."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorafit.kernels.cross_entropy import Shaping, chunked_cross_entropy, cross_entropy_through

# By model type, what happens to logits between the head and the loss.
_FACTORS = {"cohere": "logit_scale", "cohere2": "logit_scale"}
_DIVISORS = ("logits_scaling",)  # Granite and its kin


@dataclass(frozen=True)
class OutputHead:
    """The parts of a causal language model around its logits.

    backbone: gives the last hidden states. layer: (n, H) to (n, V). shaping: what the architecture
    does to logits afterwards. last_mlp: the last layer's MLP, where it can be told to compute the
    tokens alone whose states are wanted: nothing mixes tokens after it.
    """

    backbone: Any
    layer: Any
    shaping: Shaping
    last_mlp: Any = None

    def loss(self, hidden: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Summed loss of hidden states (N, H) for targets (N,), factors (N,) or None for 1."""
        trained = self.trained
        if not trained and type(self.layer) is nn.Linear \
                and self.layer.weight.dtype == hidden.dtype:
            return chunked_cross_entropy(hidden, self.layer.weight, targets,
                                         bias=self.layer.bias, weights=weights,
                                         shaping=self.shaping)
        return cross_entropy_through(self.layer, trained, hidden, targets, weights=weights,
                                     vocabulary=self.vocabulary, shaping=self.shaping)

    @contextmanager
    def only(self, places: Tensor) -> Iterator[None]:
        """Compute no more than what the states of these tokens (N,) need. Other states are wrong
        then."""
        if self.last_mlp is None:
            yield
            return
        self.last_mlp.lorafit_places = places
        try:
            yield
        finally:
            self.last_mlp.lorafit_places = None

    @property
    def trained(self) -> Sequence[nn.Parameter]:
        return [p for p in self.layer.parameters() if p.requires_grad]

    @property
    def vocabulary(self) -> int:
        return int(self.backbone.config.get_text_config().vocab_size)


def find_head(adapted: Any) -> OutputHead | str:
    """The head of a model, with or without an adapter, or why the loss needs the model's logits.

    Whether these parts are all there is shows when losses are compared (`speed_up`).
    """
    config = getattr(adapted, "active_peft_config", None)
    if config is not None and config.is_prompt_learning:
        return "virtual tokens stand before each row"
    if config is not None and config.peft_type.value == "SHADOW":
        return "the adapter takes part beside the layers, in the whole model's pass"
    inner = adapted.get_base_model() if hasattr(adapted, "get_base_model") else adapted
    backbone = getattr(inner, getattr(inner, "base_model_prefix", ""), None)
    layer = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if not isinstance(backbone, nn.Module) or layer is None or backbone is inner:
        return f"{type(inner).__name__} has no backbone and head of its own"
    return OutputHead(backbone, layer, _shaping(inner.config.get_text_config()))


def _shaping(config: Any) -> Shaping:
    factor = 1.0
    name = _FACTORS.get(config.model_type)
    if name is not None:
        factor = float(getattr(config, name))
    for name in _DIVISORS:
        if (divisor := getattr(config, name, None)) is not None:
            factor /= float(divisor)
    cap = getattr(config, "final_logit_softcapping", None)
    return Shaping(factor, None if cap is None else float(cap))


def hidden_states(head: OutputHead, inputs: dict[str, Any]) -> Tensor:
    """(B·T, H), the states that logits are made of."""
    states: Any = head.backbone(**inputs, use_cache=False).last_hidden_state
    return torch.flatten(states, 0, 1)
