"""Which modules of a model the recipe's words choose, whatever the method puts its weights on."""

from torch import nn

from lorafit.model.choice import (
    chosen_weights,
    is_excluded,
    is_named,
    layer_test,
    nothing_left,
)
from lorafit.model.inventory import is_norm, stack_of, weights_of
from lorafit.recipe.adapter import TARGET_WORDS, Adapter


def matched_names(model: nn.Module, section: Adapter) -> list[str]:
    """Full names of the modules that the recipe's words choose, in the model's order.

    UserError when that is none.
    """
    if section.row.where == "linear":
        return [weight.name for weight in chosen_weights(stack_of(model), section,
                                                      weights_of(model))]
    wanted = section.target_modules
    embeddings = model.get_input_embeddings()  # type: ignore[operator]  # as transformers has it
    eligible = is_norm if section.row.where == "norms" else has_weights
    in_layers = layer_test(stack_of(model), section)
    names = []
    for name, module in model.named_modules():
        if not name or not in_layers(name) or is_excluded(name, section):
            continue
        if wanted == "embeddings":
            chosen = module is embeddings
        elif isinstance(wanted, str) and wanted in TARGET_WORDS:
            chosen = eligible(module)
        else:
            chosen = eligible(module) and is_named(name, wanted)
        if chosen:
            names.append(name)
    if not names:
        raise nothing_left()
    return names


def has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))
