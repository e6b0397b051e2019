"""One base in memory and any number of adapters on it, each by its name.

Plain LoRA adapters sit side by side in one model, and rows of one batch may use different ones:
peft adds to each row what its own adapter computes. Other adapters get a copy of the base's modules
that shares its weights, or has its own where the adapter writes into them.
"""

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorafit.errors import UserError
from lorafit.model.adapters.files import check_adapter_files, load_adapter
from lorafit.model.adapters.lora import NOT_A_PRODUCT
from lorafit.model.adapters.own import METHOD_KEY
from lorafit.model.adapters.quiet import no_advice
from lorafit.model.stepwise import Choosing, answer_rows

TOGETHER = ""  # the group of the base and of plain LoRA adapters

# Keys of peft's LoRA configuration that peft's mixed batches do not know, or that change modules
# which rows would share; set to anything, the adapter has a model of its own.
_NOT_TOGETHER = (
    *NOT_A_PRODUCT, "use_dora", "modules_to_save", "trainable_token_indices", "target_parameters",
    "lora_bias", "alora_invocation_tokens", "mica", "megatron_config",
)
# Starts that leave the base as it is when peft makes room for an adapter that is loaded.
_HARMLESS_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


class SeveralAdapters:
    """A base and adapters by name. Not for several threads at once."""

    def __init__(self, base: Any) -> None:
        self._base = base
        self._shared: Any = None  # peft's model with all plain LoRA adapters
        self._inner: dict[str, str] = {}  # their names in there: peft allows no dots, for one
        self._alone: dict[str, Any] = {}
        self._count = 0

    def names(self) -> list[str]:
        return [*self._inner, *self._alone]

    def group(self, name: str | None) -> str:
        """Rows of one group may stand in one batch. None is the base."""
        return name if name in self._alone else TOGETHER

    def rows_at_once(self, group: str) -> int | None:
        """How many rows a batch of the group may have, None for any number.

        peft gives rows behind virtual tokens no positions of their own, so that padding would
        move them.
        """
        config = getattr(self._alone.get(group), "active_peft_config", None)
        return 1 if config is not None and config.is_prompt_learning else None

    def load(self, name: str, directory: Path) -> None:
        """Add an adapter under a name that is free. UserError when it does not fit the base, and
        the others are as they were."""
        config = check_adapter_files(directory)
        if goes_together(config):
            self._load_together(name, directory)
        else:
            self._alone[name] = load_adapter(_copy(self._base, writes_into_base(config)), directory)

    def unload(self, name: str) -> None:
        if name in self._alone:
            del self._alone[name]
            return
        inner = self._inner.pop(name)
        if not self._inner:
            self._shared = None
            return
        self._remove(inner)

    def answer(self, names: Sequence[str | None], rows: Sequence[Sequence[int]],
               choosing: Choosing, *, pad_id: int, longest: int) -> None:
        """Go on with prompts, each with its own adapter of one group, or None for the base."""
        group = self.group(names[0])
        if group != TOGETHER:
            answer_rows(self._alone[group], rows, choosing, pad_id=pad_id, longest=longest)
        elif self._shared is None:
            answer_rows(self._base, rows, choosing, pad_id=pad_id, longest=longest)
        else:
            inner = ["__base__" if name is None else self._inner[name] for name in names]
            answer_rows(self._shared, rows, choosing, pad_id=pad_id, longest=longest,
                        adapter_names=inner)

    def _load_together(self, name: str, directory: Path) -> None:
        self._count += 1
        inner = f"adapter_{self._count}"
        if self._shared is None:
            self._shared = load_adapter(_copy(self._base, False), directory, adapter_name=inner)
        else:
            self._add(inner, directory)
        self._inner[name] = inner

    def _add(self, inner: str, directory: Path) -> None:
        problem = ""
        try:
            with no_advice(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = self._shared.load_adapter(str(directory), adapter_name=inner)
            if result.missing_keys:
                problem = "the adapter is incomplete for this base: some layers have no weights"
        except Exception as error:
            message = (str(error).strip() or type(error).__name__).splitlines()
            problem = f"the adapter does not fit the base: {message[min(1, len(message) - 1)]}"
        self._shared.eval()
        if problem:
            self._remove(inner)
            raise UserError(problem, str(directory), "use the base that it was trained on")

    def _remove(self, inner: str) -> None:
        """Also one that was loaded in part."""
        remaining = next(iter(self._inner.values()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._shared.set_adapter(remaining)
            if inner in self._shared.peft_config:
                self._shared.delete_adapter(inner)


def goes_together(config: dict[str, Any]) -> bool:
    """Whether an adapter can share a batch with others: peft's plain LoRA."""
    return (config.get("peft_type") == "LORA" and METHOD_KEY not in config
            and config.get("bias", "none") == "none"
            and config.get("init_lora_weights", True) in _HARMLESS_STARTS
            and not any(config.get(key) for key in _NOT_TOGETHER))


def writes_into_base(config: dict[str, Any]) -> bool:
    """Whether loading the adapter changes weights of the base it is put on."""
    if METHOD_KEY in config:
        return config[METHOD_KEY] != "bottleneck"
    return (config.get("bias", "none") != "none"
            or config.get("peft_type") not in ("LORA", "IA3", "PROMPT_TUNING", "P_TUNING",
                                               "PREFIX_TUNING")
            or config.get("init_lora_weights", True) not in _HARMLESS_STARTS)


def _copy(base: Any, with_weights: bool) -> Any:
    """A base of its own modules, and of the same weights unless it is to have its own."""
    if with_weights:
        return copy.deepcopy(base)
    shared = [*base.parameters(), *base.buffers()]
    return copy.deepcopy(base, {id(tensor): tensor for tensor in shared})
