"""The recipe's section on what is trained."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from lorafit.recipe.methods import METHODS, Method, method_named
from lorafit.recipe.section import Section, compile_pattern

PositiveInt = Annotated[int, Field(gt=0)]

# Starts that move part of the base weights into the adapter, or replace them.
_ALTERS_BASE = ("pissa", "olora", "corda", "lora_ga")
_INITS = ("default", "gaussian", "orthogonal", "pissa", "pissa_niter_N", "olora", "eva", "corda",
          "lora_ga", "loftq")


class Adapter(Section):
    """What is trained on top of the frozen base."""

    method: Annotated[str, Field(json_schema_extra={"enum": list(METHODS)})] = "lora"
    """Kind of adapter; docs/methods.md lists them. A key that a method does not have is refused."""
    rank: PositiveInt | None = None
    """Inner dimension r of the update; 16 for lora, docs/methods.md for the others. Parameters grow
    in proportion."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """The update is scaled by alpha / rank (alpha / √rank with rslora). 32 for lora."""
    target_modules: str | list[str] | None = None
    """Layers that get an adapter: `all-linear` (every linear layer but the output head and a
    mixture's router), a list of name endings such as `[q_proj, v_proj]`, or one regular
    expression on full names. `lorafit targets MODEL` lists what there is. Also `all-norms`
    (ln_tuning), `embeddings` (trainable_tokens) and `all-weights` (full), each the default of its
    method."""
    exclude_modules: str | list[str] | None = None
    """Layers left out again: a list of name endings or one regular expression."""
    layers: list[Annotated[int, Field(ge=0)]] | str | None = None
    """Which decoder layers: a list of numbers from 0, or `last:8` for the top eight. All if left
    out. Below the lowest of them nothing is computed backwards and nothing is kept for it."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Probability with which an input of the adapter is zeroed during training; 0 if left out."""
    bias: str = "none"
    """Train the base model's own biases too: `none`, `all`, or `<method>_only` (`lora_only`) for
    those of the adapted layers."""
    rslora: bool = False
    """Scale by alpha / √rank, so that large ranks keep learning (arXiv 2312.03732)."""
    dora: bool = False
    """Train magnitude and direction separately (arXiv 2402.09353). Slower; helps at small ranks."""
    freeze_a: bool = False
    """Train B alone (LoRA-FA, arXiv 2308.03303): half the trained weights, and less memory for
    activations."""
    init: str = "default"
    """Start of A and B: `default` (A uniform, B zero), `gaussian`, `orthogonal`; from the base
    weights: `pissa`, `pissa_niter_N`, `olora`; from the base weights and the first rows of the
    data: `eva`, `corda`, `lora_ga`; from what quantisation loses: `loftq`. Those that alter the
    base during training are converted on saving, so that they are valid on the original base."""
    init_rows: PositiveInt = 64
    """Training rows that `eva`, `corda` and `lora_ga` start from."""
    modules_to_save: list[str] = Field(default=[])
    """Layers trained in full and saved with the adapter, e.g. `[lm_head, embed_tokens]`."""
    rank_pattern: dict[str, PositiveInt] = Field(default={})
    """Other ranks for some layers: name ending or regular expression to rank."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(default={})
    """Other alphas for some layers. A rank without its alpha changes that layer's scale."""
    experts: Literal["auto", "each", "shared", "none"] = "auto"
    """In a mixture of experts: an adapter for `each` expert, one that all experts of a layer share
    (`shared`), or `none` on the experts; attention, shared experts and dense layers are adapted
    in any case. `auto` is `each`. docs/mixture-of-experts.md."""
    rank_per_expert: bool = False
    """Divide the rank of the experts' adapters by the number of experts that a token is sent to,
    rounded up, at the same scale (LoRA Without Regret)."""
    router: bool = False
    """Adapt a mixture's router too, at a rank of at most its number of experts. Off, because a
    router that moves sends tokens elsewhere."""
    options: dict[str, Any] = Field(default={})
    """Further settings of the method, in peft's names; docs/methods.md lists them."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        """The method's own defaults in place of what is left out."""
        if not isinstance(values, dict):
            return values
        row = METHODS.get(str(values.get("method", "lora")))
        defaults = dict(row.defaults) if row else {}
        if row and "dropout" in row.fields:
            defaults.setdefault("dropout", 0.0)
        return values | {key: default for key, default in defaults.items()
                         if values.get(key) is None}

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        method_named(value)
        return value

    @field_validator("*")
    @classmethod
    def _belongs_to_method(cls, value: Any, info: ValidationInfo) -> Any:
        """A key of another method would do nothing, silently."""
        name, key = info.data.get("method"), str(info.field_name)
        if name is None or key == "method" or value == cls.model_fields[key].default:
            return value
        if key in METHODS[name].keys:
            return value
        others = [other for other, row in METHODS.items() if key in row.keys]
        shown = ", ".join(others[:4]) + (" and others do" if len(others) > 4 else
                                         " do" if len(others) > 1 else " does")
        raise ValueError(f"method {name} has no {key} ({shown}); leave it out")

    @field_validator("bias")
    @classmethod
    def _known_bias(cls, value: str, info: ValidationInfo) -> str:
        only = f"{info.data.get('method', 'lora')}_only"
        if value not in ("none", "all", only):
            raise ValueError(f"{value!r} is none of none, all, {only}")
        return value

    @field_validator("init")
    @classmethod
    def _known_init(cls, value: str) -> str:
        if (value in _INITS and not value.endswith("_N")) \
                or re.fullmatch(r"pissa_niter_[1-9]\d*", value):
            return value
        raise ValueError(f"unknown init {value!r}; use one of {', '.join(_INITS)}")

    @field_validator("layers")
    @classmethod
    def _known_layers(cls, value: list[int] | str | None) -> list[int] | str | None:
        if isinstance(value, str) and not re.fullmatch(r"last:[1-9]\d*", value):
            raise ValueError(f"{value!r} is neither a list of layer numbers nor last:N")
        if isinstance(value, list) and not value:
            raise ValueError("an empty list adapts nothing; leave the key out for all layers")
        return value

    @field_validator("target_modules", "exclude_modules")
    @classmethod
    def _usable_pattern(cls, value: str | list[str] | None) -> str | list[str] | None:
        if value == "" or value == []:
            raise ValueError("is empty and adapts nothing")
        if isinstance(value, str) and value not in TARGET_WORDS:
            compile_pattern(value)
        return value

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _usable_keys(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            compile_pattern(key)
        return value

    @property
    def alters_base(self) -> bool:
        """Whether the initialisation moves part of the base weights into A and B."""
        return self.init.startswith(_ALTERS_BASE)

    @property
    def starts_from_data(self) -> bool:
        """Whether the initialisation needs rows of the training data."""
        return self.init in ("eva", "corda", "lora_ga")

    @property
    def keeps_start(self) -> bool:
        """Whether the start is computed from base or data, and kept for a run that goes on."""
        return self.alters_base or self.init in ("eva", "loftq")

    @property
    def row(self) -> Method:
        """What is known of the method."""
        return METHODS[self.method]

    @model_validator(mode="after")
    def _check(self) -> "Adapter":
        if self.dora and (self.alters_base or self.init == "loftq"):
            raise ValueError(
                f"dora with init {self.init} cannot be converted back to the original base; "
                "use init: default"
            )
        if self.bias != "none" and self.alters_base:
            raise ValueError(f"bias: {self.bias} is not supported with init {self.init}")
        if self.init_rows != type(self).model_fields["init_rows"].default \
                and not self.starts_from_data:
            raise ValueError(f"init_rows is for init eva, corda and lora_ga; init {self.init} "
                             "looks at no rows; leave it out")
        odd = [rank for rank in (self.rank, *self.rank_pattern.values()) if rank and rank % 2]
        if self.init == "orthogonal" and odd:
            raise ValueError(f"init orthogonal needs an even rank, not {odd[0]}; use "
                             f"{odd[0] + 1}, or init: gaussian")
        if self.rank_per_expert and self.experts in ("none", "shared"):
            raise ValueError(f"rank_per_expert divides the rank of each expert's own adapter, and "
                             f"with experts: {self.experts} there is none; leave one of them out")
        if self.freeze_a and self.dora:
            raise ValueError("freeze_a trains B alone, which dora cannot; leave one of them out")
        return self


# What target_modules may say in place of names.
TARGET_WORDS = ("all-linear", "all-norms", "embeddings", "all-weights")
