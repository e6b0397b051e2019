"""The attention of a decoder layer on a row of documents: projections, rotation, attention.

transformers writes this block anew for each architecture, mostly the same. Those that are the same
get one forward pass, in which the rotation of queries and keys is one function each
(kernels/rotary.py); it takes ten times as long as plain operations. Which are the same is not read
from a list but measured: `speed_up` compares the block before and after, on arguments that the
model really gave it.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from lorafit.kernels.packed_attention import Documents
from lorafit.kernels.rotary import rotate
from lorafit.model.fast.attention import attention_function
from lorafit.model.fast.form import take_form

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


class FastAttention:
    """Mixed into the class of an attention block."""

    def forward(self, *args: Any, documents: Documents | None = None, **kwargs: Any) -> Any:
        angles = kwargs.get("position_embeddings")
        if args or documents is None or angles is None \
                or kwargs.get("past_key_values") is not None:
            plain: Any = super()
            if documents is not None:
                kwargs["documents"] = documents
            return plain.forward(*args, **kwargs)
        return attend(self, kwargs["hidden_states"], angles, documents), None


def attend(block: Any, x: Tensor, angles: tuple[Tensor, Tensor], documents: Documents) -> Tensor:
    """The block's output (1, T, H) for x (1, T, H)."""
    q, k = (_heads(block, projection(x), norm) for projection, norm in (
        (block.q_proj, getattr(block, "q_norm", None)),
        (block.k_proj, getattr(block, "k_norm", None))))
    v = _heads(block, block.v_proj(x), None)
    cos, sin = (part.unsqueeze(2) for part in angles)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    out, _ = attention_function()(
        block, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), None,
        dropout=block.attention_dropout if block.training else 0.0, scaling=block.scaling,
        sliding_window=getattr(block, "sliding_window", None), documents=documents)
    projected: Tensor = block.o_proj(out.flatten(2))
    return projected


def attention_blocks(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and module of every block that may be computed here."""
    for name, module in model.named_modules():
        if all(isinstance(getattr(module, part, None), nn.Module) for part in _PROJECTIONS) \
                and all(hasattr(module, key) for key in ("head_dim", "scaling",
                                                         "attention_dropout")) \
                and not module._forward_hooks and not module._forward_pre_hooks:
            yield name, module


def make_fast(block: Any) -> Callable[[], None]:
    """Give a block its fast forward pass, and return what takes it back."""
    return take_form(block, FastAttention)


def _heads(block: Any, projected: Tensor, norm: nn.Module | None) -> Tensor:
    """(1, T, heads, D), normed by the head or, where the norm is as wide as all, before."""
    width: int = block.head_dim
    weight = getattr(norm, "weight", None)
    if norm is not None and weight is not None and weight.shape[-1] != width:
        projected = norm(projected)
        norm = None
    heads = projected.view(*projected.shape[:-1], -1, width)
    return heads if norm is None else norm(heads)
