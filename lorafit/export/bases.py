"""The base that a run was trained on, and the full-precision one beside it, in words."""

from lorafit.errors import UserError
from lorafit.model.base import load_config
from lorafit.model.stored import stored_as
from lorafit.model.trained import AdapterSource
from lorafit.recipe.schema import Model

BASE = "the base"
FULL = "the full-precision base"


def stored_base(stored: str) -> str:
    return f"the base in {stored} that it was trained on"


def with_adapter(base: str) -> str:
    """What an artifact is compared with."""
    return f"{base} with the run's adapter"


def trained_model(source: AdapterSource) -> tuple[Model, str | None]:
    """The base as it was trained on, and what it was quantised to; None for full precision.

    With --base the adapter's source names another one than the recipe.
    """
    if source.model.quantization != "none":
        return source.model, source.model.quantization
    for model in (source.recipe.model if source.recipe else None, source.model):
        if model is None:
            continue
        try:
            stored = stored_as(load_config(model))
        except UserError:
            continue
        if stored is not None:
            return (source.model if model == source.model else model), stored.label
    return source.model, None
