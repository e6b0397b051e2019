"""The trainer's own model: the run's adapter on the base as it was trained, and on the full one."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from lorafit.errors import UserError
from lorafit.export.bases import BASE, FULL, stored_base, trained_model
from lorafit.export.full_base import on_full_base
from lorafit.model.adapters.files import load_adapter
from lorafit.model.base import load_base, load_tokenizer
from lorafit.model.device import find_device
from lorafit.model.trained import AdapterSource, full_precision
from lorafit.recipe.schema import Model


@dataclass(frozen=True)
class Reference:
    """label: which base, in words. base: loads it alone. adapt: puts the run's adapter on it.
    Both compute in float32. tokenizer: the base's."""

    label: str
    base: Callable[[], Any]
    adapt: Callable[[Any], Any]
    tokenizer: Any

    def adapted(self) -> Any:
        return self.adapt(self.base())


def references_of(source: AdapterSource, stack: ExitStack) -> tuple[list[Reference], list[str]]:
    """The base as it was trained on first; then, where that was quantised, the full-precision one.

    Also remarks on what is not at hand. `stack` keeps temporary files as long as they are needed.
    """
    tokenizer = load_tokenizer(source.model)
    trained, stored = trained_model(source)
    if stored is None:
        return [_reference(BASE, source, full_precision(source.model), tokenizer)], []
    found = [_reference(stored_base(stored), source, trained, tokenizer)]
    if trained is source.model and source.model.quantization == "none":
        return found, [f"{FULL} is not at hand, since the base comes in {stored}: "
                       "name it with --base to compare with it too"]
    try:
        converted = stack.enter_context(on_full_base(source))
    except UserError as error:
        return found, [f"{FULL} is left out: {error.problems[0].what}"]
    found.append(_reference(FULL, converted, full_precision(source.model), tokenizer))
    return found, []


def _reference(label: str, source: AdapterSource, model: Model, tokenizer: Any) -> Reference:
    def base() -> Any:
        return load_base(model, "float32", "eager", find_device()[0])

    return Reference(label, base, lambda loaded: load_adapter(loaded, source.directory), tokenizer)
