"""A recipe's choices beside what is known of them: each remark with evidence and strength."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lorafit.plan.capacity import Capacity
from lorafit.plan.shapes import Shapes
from lorafit.plan.trained import Trained
from lorafit.recipe import auto
from lorafit.recipe.schema import Recipe

Strength = Literal["exact", "measured", "one study", "anecdotal"]

REGRET = "LoRA Without Regret, Schulman et al., Thinking Machines, 2025"


@dataclass(frozen=True)
class Remark:
    """key: of the recipe. is_warning: something is likely to go worse than it could. strength:
    `exact` follows from the arithmetic, `measured` was seen over several models and data sets,
    `one study` in one setting, `anecdotal` by somebody, once."""

    key: str
    text: str
    evidence: str
    strength: Strength
    is_warning: bool = False


@dataclass(frozen=True)
class Run:
    """What remarks are made of. steps: of the whole run. tokens_a_step: without padding. fits_16
    says that the base, unquantised, fits the device too; None where that is not known."""

    recipe: Recipe
    shapes: Shapes
    trained: Trained
    capacity: Capacity | None
    steps: int | None
    tokens_a_step: float | None
    fits_16: bool | None = None


def remarks_on(run: Run) -> list[Remark]:
    """In the order of the recipe's sections; warnings first."""
    rules = (_quantization, _capacity, _attention_only, _experts, _patterns, _scale, _dropout,
             _variants, _batch, _rate, _short, _small_steps)
    found = [remark for rule in rules for remark in rule(run)]
    return sorted(found, key=lambda remark: not remark.is_warning)


def _quantization(run: Run) -> Iterator[Remark]:
    setting = run.recipe.model.quantization
    if setting != "none" and run.fits_16:
        yield Remark("model.quantization", f"the base fits in 16 bits too: {setting} saves memory, "
                     "not time, and the merged model differs from the trained one more",
                     "QLoRA trains in 4 bits at 16-bit quality but dequantises each layer in each "
                     "pass (arXiv 2305.14314)", "measured")


def _capacity(run: Run) -> Iterator[Remark]:
    capacity = run.capacity
    if capacity is None or capacity.share is None or run.trained.method == "full":
        return
    if capacity.share > 1:
        rank = "" if capacity.smallest_rank is None else (
            f"; rank {capacity.smallest_rank:,} holds it")
        bound = "measured by the base's loss" if capacity.is_measured else (
            "an upper bound: --measure takes the base's own loss")
        yield Remark("adapter.rank", f"the data carries {capacity.share:.3g} times what the "
                     f"adapter holds ({bound}){rank}; past its capacity LoRA lags behind full "
                     "fine-tuning, the sooner the smaller the rank",
                     f"{REGRET}; 2 bits a parameter: arXiv 2404.05405", "one study",
                     is_warning=True)


def _attention_only(run: Run) -> Iterator[Remark]:
    parts = {weight.part for weight, _ in run.trained.adapted}
    if parts == {"attention"} and any(weight.part in ("mlp", "experts")
                                      for weight in run.shapes.weights):
        yield Remark("adapter.target_modules", "attention alone is adapted: at the same number of "
                     "parameters that learns less than the MLPs alone, and these about as much as "
                     "everything (Llama-3.1-8B: attention at rank 256 was below MLPs at 128)",
                     REGRET, "measured", is_warning=True)


def _experts(run: Run) -> Iterator[Remark]:
    adapter = run.recipe.adapter
    adapted = any(weight.part == "experts" for weight, _ in run.trained.adapted)
    if adapted and adapter.method == "lora" and adapter.experts != "shared" \
            and not adapter.rank_per_expert:
        yield Remark("adapter.rank_per_expert", "each expert has the whole rank: dividing it by "
                     "the experts that a token is sent to keeps the parameters a token trains as "
                     "in a dense model", REGRET, "one study")


def _patterns(run: Run) -> Iterator[Remark]:
    adapter = run.recipe.adapter
    alone = [pattern for pattern in adapter.rank_pattern if pattern not in adapter.alpha_pattern]
    if alone and not adapter.rslora:
        yield Remark("adapter.rank_pattern", f"{', '.join(alone)}: another rank at the same alpha "
                     "is another scale (alpha / rank), so these layers learn at another pace; an "
                     "alpha_pattern in proportion keeps it",
                     "the update is alpha / rank times B·A (Hu et al. 2021)", "exact",
                     is_warning=True)


def _scale(run: Run) -> Iterator[Remark]:
    """By the invariance of Adam: alpha times k is B's learning rate times k."""
    adapter = run.recipe.adapter
    if adapter.method != "lora" or not adapter.alpha or adapter.rslora \
            or run.recipe.training.learning_rate != "auto":
        return
    ratio = adapter.alpha / auto.FITTED_ALPHA
    if not 0.5 <= ratio <= 2:
        change = "smaller" if ratio > 1 else "larger"
        yield Remark("adapter.alpha", f"alpha {adapter.alpha:g} acts like B's learning rate times "
                     f"{ratio:.3g}, and the rule behind `auto` was fitted at alpha "
                     f"{auto.FITTED_ALPHA}: a {change} learning_rate is nearer to it",
                     f"Adam does not see the size of a gradient ({REGRET}, on invariances)",
                     "exact")


def _dropout(run: Run) -> Iterator[Remark]:
    dropout, training = run.recipe.adapter.dropout, run.recipe.training
    epochs = training.epochs or (None if training.steps else 1.0)
    if dropout and epochs is not None and epochs <= 1:
        yield Remark("adapter.dropout", f"each row is seen once, so there is little for dropout "
                     f"{dropout:g} to prevent; it adds noise and time",
                     "QLoRA found 0.05 useful for 7B and 13B and not for larger ones, over several "
                     "epochs of small data (arXiv 2305.14314, appendix)", "one study")


def _variants(run: Run) -> Iterator[Remark]:
    adapter = run.recipe.adapter
    variant = "DoRA" if adapter.dora else "" if adapter.method in ("lora", "full", "paca") \
        else adapter.method
    if variant:
        key = "adapter.dora" if adapter.dora else "adapter.method"
        yield Remark(key, f"{variant} beside plain LoRA: compare them after a sweep "
                     "of the learning rate for each; nine variants ended within 1 to 2 % once "
                     "tuned", "arXiv 2602.04998", "measured")


def _batch(run: Run) -> Iterator[Remark]:
    size = run.recipe.training.batch_size
    if size > 32 and run.trained.method != "full":
        yield Remark("training.batch_size", f"batches of {size}: LoRA loses more to full "
                     "fine-tuning the larger the batch, and a larger rank does not mend it; the "
                     "gap was small at 32. Accumulated micro-batches count as one batch",
                     REGRET, "one study", is_warning=size >= 128)


def _rate(run: Run) -> Iterator[Remark]:
    setting = run.recipe.training.learning_rate
    sizes = run.shapes.sizes
    rule = auto.learning_rate("auto", sizes.model_type, sizes.hidden_size, run.trained.method)
    if not isinstance(setting, float):
        return
    ratio = setting / rule.value
    evidence = f"the rule is {rule.reason} (tinker-cookbook's, over 14 models)"
    if run.trained.method == "full" and ratio > 4:
        yield Remark("training.learning_rate", f"{setting:g} is {ratio:.3g} times the rule for "
                     "full fine-tuning: a rate for LoRA, about 10 times too high here?",
                     evidence, "measured", is_warning=True)
    elif run.trained.method != "full" and ratio < 0.25:
        yield Remark("training.learning_rate", f"{setting:g} is {ratio:.2g} times the rule's "
                     f"{rule.value:g}: LoRA's best rate is about 10 times full fine-tuning's, "
                     "whatever the rank", evidence, "measured", is_warning=True)
    elif run.trained.method != "full" and ratio > 5:
        yield Remark("training.learning_rate", f"{setting:g} is {ratio:.3g} times the rule's "
                     f"{rule.value:g}; on Llama-3.2-1B 1e-3 was best at every rank and 3e-3 "
                     "diverged", evidence, "one study", is_warning=True)


def _short(run: Run) -> Iterator[Remark]:
    if run.steps is not None and run.steps < 100 and run.trained.method != "full" \
            and run.recipe.training.learning_rate == "auto":
        yield Remark("training.learning_rate", f"{run.steps} steps: in runs below about 100 the "
                     "best rate was nearer to 15 times full fine-tuning's than to 10",
                     REGRET, "anecdotal")


_FEW_TOKENS = 1024
_SMALL = 3_000_000_000


def _small_steps(run: Run) -> Iterator[Remark]:
    if run.trained.method != "lora" or run.tokens_a_step is None:
        return
    if run.shapes.parameters < _SMALL and run.tokens_a_step < _FEW_TOKENS:
        yield Remark("adapter.method", f"{run.tokens_a_step:,.0f} tokens a step on a small model: "
                     "LoRA's thin products can make a step slower than full fine-tuning's; "
                     "`lorafit bench` measures it here, layers: last:N or paca save time",
                     "arXiv 2507.08833 (TinyLlama on an A100: 60/82 ms against 37/67); "
                     "arXiv 2503.01905", "one study")
