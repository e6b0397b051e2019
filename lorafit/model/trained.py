"""A trained adapter wherever it lies: in a run directory, a checkpoint, or by itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorafit import pins
from lorafit.errors import UserError
from lorafit.json_files import read_object
from lorafit.model.adapters.files import check_adapter_files, only_on
from lorafit.model.base import load_config, load_tokenizer, sizes
from lorafit.model.foreign_code import refuse_unread_code
from lorafit.recipe.loading import load_recipe
from lorafit.recipe.schema import Data, Model, Recipe
from lorafit.run_dir import RunDir, read_jsonl

# Rows to compare on when an adapter comes without a run.
_PLAIN_PROMPTS = (
    "The capital of France is",
    "Anna went to the market and bought three red apples.",
    "To add two numbers, first write them one under the other.",
    "Once upon a time there was a small house by the sea.",
)


@dataclass(frozen=True)
class AdapterSource:
    """An adapter, the base it belongs to, and the recipe when it comes from a run."""

    directory: Path
    config: dict[str, Any]
    model: Model
    run: RunDir | None
    recipe: Recipe | None

    def tokenizer(self) -> Any:
        """The base's tokenizer, with the chat template that training used."""
        tokenizer = load_tokenizer(self.model)
        if self.run is not None and self.run.chat_template.exists():
            tokenizer.chat_template = self.run.chat_template.read_text(encoding="utf-8")
        return tokenizer

    @property
    def data(self) -> Data | None:
        """The run's data section, to go with `tokenizer()`, which has the template already."""
        if self.recipe is None:
            return None
        return self.recipe.data.model_copy(update={"chat_template": None})

    def rows(self) -> list[np.ndarray]:
        """Token ids to compare models on: held-out rows of the run, or plain sentences."""
        if self.run is not None and (kept := _held_out(self.run)):
            return kept
        tokenizer = self.tokenizer()
        return [np.array(tokenizer(text)["input_ids"]) for text in _PLAIN_PROMPTS]


def open_adapter(path: Path, base: str | None = None) -> AdapterSource:
    """The adapter at `path`, a run directory or an adapter directory.

    `base` replaces the base that the adapter names. UserError when something is missing.
    """
    run = RunDir(path)
    if run.recipe.exists():
        if not run.adapter.exists():
            raise UserError("the run has no result yet", str(path),
                            "finish it with --resume, or name one of its checkpoints")
        recipe = load_recipe(run.recipe)
        model = recipe.model.model_copy(update={"base": base}) if base else recipe.model
        record = _record(run)
        if not base and (commit := record.get("base_commit")):
            pins.restore({f"model {model.base}@{model.revision or 'main'}": commit})
        pins.restore(record.get("hub_commits"))
        if model.trust_remote_code:
            refuse_unread_code(model)
        _refuse_another_base(run, model, record)
        return AdapterSource(run.adapter, check_adapter_files(run.adapter), model, run, recipe)
    config = check_adapter_files(path)
    name = base or config.get("base_model_name_or_path")
    if not name:
        raise UserError("the adapter does not name its base", str(path), "give it with --base")
    model = Model.model_validate({"base": name, "revision": config.get("revision"),
                                  "quantization": only_on(path) or "none"})
    return AdapterSource(path, config, model, None, None)


def _held_out(run: RunDir) -> list[np.ndarray]:
    try:
        return [np.array(row["token_ids"], np.int64) for row in read_jsonl(run.held_out)]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        raise UserError("is damaged: a line holds no token ids", str(run.held_out),
                        "copy the run again") from None


def _record(run: RunDir) -> dict[str, Any]:
    return read_object(run.record, "copy the run again") if run.record.exists() else {}


def _refuse_another_base(run: RunDir, model: Model, record: dict[str, Any]) -> None:
    """UserError when the base has other sizes than the one that the run was trained on."""
    trained = record.get("base_sizes") or {}
    if not isinstance(trained, dict):
        raise UserError("is damaged: base_sizes is no mapping", str(run.record),
                        "copy the run again")
    if not trained:
        return
    found = sizes(load_config(model))
    other = [f"{key} is {found[key]} there and was {trained[key]} in training"
             for key in trained if key in found and found[key] != trained[key]]
    if other:
        raise UserError(f"is another base than {run.path} was trained on: {', '.join(other)}",
                        model.base, "name the base that it was trained on with --base")


def full_precision(model: Model) -> Model:
    """The same base without quantisation, in float32."""
    return model.model_copy(update={"quantization": "none", "dtype": "float32"})
