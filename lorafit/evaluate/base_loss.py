"""What a base itself loses on the rows of a recipe: how much news is in them."""

import numpy as np

from lorafit.data.dataset import read_data
from lorafit.evaluate.loss import row_losses, weight_of
from lorafit.model.base import load_for_inference, load_tokenizer
from lorafit.recipe.schema import Recipe

ROWS = 128


def base_loss(recipe: Recipe, rows: int = ROWS) -> float:
    """The base's mean loss on training rows, in nats a supervised token: `rows` of them, evenly
    through the data. UserError for what is wrong with data or base."""
    tokenizer = load_tokenizer(recipe.model)
    data, _ = read_data(recipe.data, tokenizer, recipe.training.seed)
    chosen = np.unique(np.linspace(0, len(data) - 1, min(rows, len(data))).astype(int))
    tokens = [data.tokens(int(i)) for i in chosen]
    losses = row_losses(load_for_inference(recipe.model), tokens, tokenizer.pad_token_id or 0)
    return float(losses.sum() / sum(weight_of(each) for each in tokens))
