"""Whether a model computes right where each rank holds a slice of every row's tokens.

Everything but attention must treat each token by itself, and attention must be lorafit's own, which
meets the other ranks (kernels/ulysses.py). What a configuration tells is refused before weights are
loaded; the rest is measured on the loaded model: a row that is computed in slices must have the
logits of the whole.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lorafit.errors import UserError
from lorafit.kernels.packed_attention import Documents
from lorafit.kernels.ulysses import Slice
from lorafit.model.fast.attention import NAME
from lorafit.model.fast.proof import stirred
from lorafit.model.isolation import Packing, error_limit
from lorafit.model.loss import model_inputs
from lorafit.recipe.auto import IN_RECIPE, Decision

KEY = "--context-parallel"
_LEFT_OUT = f"leave {KEY} out"
_ROWS = 3  # that are measured
_TOKENS = 6  # of a slice; few, so that what is lost at its bounds weighs much


def refuse_heads(config: Any, slices: int) -> None:
    """UserError where a model's attention heads cannot be shared, or need what a slice lacks."""
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    if isinstance(heads, int) and heads % slices:
        fitting = [str(n) for n in range(2, heads + 1) if heads % n == 0][:4]
        raise UserError(f"{heads} attention heads cannot be shared by {slices} ranks",
                        f"{KEY} {slices}",
                        f"use {' or '.join(fitting)}" if fitting else _LEFT_OUT)
    if getattr(text, "attn_temperature_tuning", False):
        raise UserError(f"{text.model_type} scales queries by places in a tensor, not by positions",
                        f"{KEY} {slices}", _LEFT_OUT)


def refuse_layout(config: Any, slices: int, attention: Decision, batching: Decision,
                  longest_tokens: int) -> None:
    """UserError where rows, laid out and attended to as decided, cannot be cut into slices.

    longest_tokens: of an example.
    """
    where = f"{KEY} {slices}"
    if attention.value != "sdpa":
        remedy = ("--set model.attention=sdpa" if attention.reason == IN_RECIPE else _LEFT_OUT)
        raise UserError(f"the ranks of a row meet in lorafit's attention, which takes the place of "
                        f"sdpa, not of {attention.value} ({attention.reason})", where, remedy)
    if batching.value == "padded":
        remedy = ("--set training.batching=padding_free" if batching.reason == IN_RECIPE
                  else _LEFT_OUT)
        raise UserError(f"micro-batches must be rows without padding, and training.batching is "
                        f"padded ({batching.reason})", where, remedy)
    if (reason := _why_length_matters(config.get_text_config(), longest_tokens)) is not None:
        raise UserError(reason, where, _LEFT_OUT)


def _why_length_matters(text: Any, longest_tokens: int) -> str | None:
    """Why a token is rotated by more than its position; None where it is not."""
    ropes = getattr(text, "rope_parameters", None) or {}
    for rope in [ropes, *(each for each in ropes.values() if isinstance(each, dict))]:
        kind = str(rope.get("rope_type", "default"))
        if "dynamic" not in kind and kind != "longrope":
            continue
        trained_on = rope.get("original_max_position_embeddings") or getattr(
            text, "original_max_position_embeddings", None) or text.max_position_embeddings
        if longest_tokens > trained_on:
            return (f"{text.model_type} rotates by how long a row is ({kind}, beyond "
                    f"{trained_on:,} tokens), which a slice does not show; rows have up to "
                    f"{longest_tokens:,}")
    return None


def prove_slices(adapted: Any, packing: Packing, own: Slice,
                 all_of: Callable[[list[Any]], list[Any]]) -> Decision:
    """The decision to cut rows into slices, with what was measured. All ranks together.

    `all_of` gives what each rank found to all. UserError where the model cannot be computed so.
    """
    where = f"{KEY} {own.parts}"
    kind = adapted.config.model_type
    if packing.batching.value == "padded":
        raise UserError(f"rows cannot be cut into slices: {packing.batching.reason}", where,
                        _LEFT_OUT)
    if adapted.config._attn_implementation != NAME or not packing.flat:
        raise UserError(
            f"the attention of {kind} is computed with masks over whole rows, which no rank has",
            where, _LEFT_OUT)
    with stirred(adapted):
        found = max(all_of([measure_slices(adapted, own)]))
    if found > error_limit(adapted.get_base_model()):
        changed = f"its logits change by {found:.1%}" if math.isfinite(found) else "it fails"
        raise UserError(f"{kind} computes something else where a row's tokens lie on several ranks "
                        f"({changed})", where, _LEFT_OUT)
    return Decision(KEY.removeprefix("--"), own.parts,
                    "ranks share the tokens of a row; tried on this model: its logits differ by "
                    f"{found:.0e} from those of whole rows")


@torch.no_grad()
def measure_slices(adapted: Any, own: Slice) -> float:
    """How much the logits of this rank's slice of a small row differ from those of the whole: the
    norm of the difference, relative, the median of a few rows. Infinite where it cannot be computed
    or is not finite. Draws nothing from torch's generators. All ranks together.

    A median, because rounding can send a token of one row to another expert of a mixture.
    """
    was_training = adapted.training
    adapted.eval()
    try:
        found = sorted(_difference(adapted, own, seed) for seed in range(_ROWS))
    except torch.OutOfMemoryError:
        raise
    except (NotImplementedError, RuntimeError, ValueError, TypeError, IndexError):
        return math.inf
    finally:
        adapted.train(was_training)
    return found[_ROWS // 2]


def _difference(adapted: Any, own: Slice, seed: int) -> float:
    """Of a row whose second document goes on over the bounds of all slices."""
    device = adapted.get_base_model().get_input_embeddings().weight.device
    tokens = own.parts * _TOKENS
    lengths = (2, tokens - 2)
    generator = torch.Generator().manual_seed(seed)
    vocabulary = adapted.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (1, tokens), generator=generator)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    bounds = torch.tensor([0, lengths[0], tokens], dtype=torch.int32, device=device)
    mine = slice(own.part * _TOKENS, (own.part + 1) * _TOKENS)

    def logits(held: slice, documents: Documents) -> Tensor:
        inputs = model_inputs(adapted, ids[:, held].to(device), None, positions[:, held].to(device),
                              documents)
        found: Tensor = adapted(**inputs, use_cache=False).logits[0].float()
        return found - found.mean(dim=-1, keepdim=True)

    wanted = logits(slice(None), Documents(lengths, bounds))[mine]
    difference = logits(mine, Documents(lengths, bounds, own)) - wanted
    relative = float(difference.norm() / wanted.norm())
    return relative if math.isfinite(relative) else math.inf
