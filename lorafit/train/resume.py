"""What makes a resumed run the same run: what is compared, and what may change."""

from datetime import date
from pathlib import Path
from typing import Any

from lorafit.data.sources import Location
from lorafit.errors import UserError
from lorafit.recipe.loading import load_recipe, with_paths
from lorafit.recipe.schema import Recipe
from lorafit.run_dir import RunDir, read_json
from lorafit.train.checkpoint import Progress

# What a resumed run may change; everything else decides what the weights become.
MAY_CHANGE_ON_RESUME = {
    "training.steps", "training.epochs", "training.micro_batch_size", "training.eval_every",
    "training.early_stopping", "training.keep", "training.checkpoint_every",
    "training.keep_checkpoints", "training.sample_prompts", "training.sample_tokens",
    "training.batching", "training.skip_nonfinite", "data.max_eval_rows", "data.workers",
    "output.dir", "output.trackers", "output.project",
}
# Versions on which the bits of a result depend.
_DECIDE_BITS = ("torch", "transformers", "peft", "bitsandbytes")


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with local files named absolutely, so that a run directory can be used from
    anywhere."""

    def absolute(value: str) -> str:
        return value if Location(value).is_hub else str(Path(value).expanduser().absolute())

    base, template = recipe.model.base, recipe.data.chat_template
    if base != "tiny" and Path(base).exists():
        base = str(Path(base).absolute())
    if template is not None and "{" not in template and Path(template).is_file():
        template = str(Path(template).absolute())
    return recipe.model_copy(update={
        "model": recipe.model.model_copy(update={"base": base}),
        "data": recipe.data.model_copy(update={
            "train": with_paths(recipe.data.train, absolute),
            "eval": with_paths(recipe.data.eval, absolute),
            "chat_template": template}),
        "output": recipe.output.model_copy(
            update={"dir": str(Path(recipe.output.dir).absolute())}),
    })


def with_date(recipe: Recipe, run: RunDir, resume: bool) -> Recipe:
    """The recipe with the date that chat templates see: today's, or that of the run it resumes."""
    if recipe.data.date is not None:
        return recipe
    day = date.today().isoformat()
    if resume and run.recipe.exists():
        day = load_recipe(run.recipe).data.date or day
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"date": day})})


def refuse_changes(recipe: Recipe, run: RunDir) -> None:
    """UserError unless `run` holds a run of the same recipe, but for what may change."""
    if not run.recipe.exists():
        raise UserError("there is no run to resume", str(run.path), "leave out --resume")
    before = flat(with_absolute_paths(load_recipe(run.recipe)).model_dump())
    now = flat(with_absolute_paths(recipe).model_dump())
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key)
                     and key not in MAY_CHANGE_ON_RESUME
                     and not key.startswith("evaluation.")  # changes no weight
                     and not _relaxes_a_check(key, before.get(key)))
    if changed:
        shown = ", ".join(f"{key} (was {before.get(key)}, is {now.get(key)})" for key in changed)
        raise UserError(
            f"the recipe differs from the one that the run was started with: {shown}",
            str(run.path),
            "a resumed run must be the same run; start a new one in another output.dir",
        )


def _relaxes_a_check(key: str, before: Any) -> bool:
    """No row that was trained was objected to, or the run would have stopped at it."""
    return before == "error" and (key.startswith("data.checks.") or key == "data.on_long")


def refuse_other_data(progress: Progress, fingerprint: str, run: RunDir) -> None:
    """UserError unless the training rows are those that the run was started with."""
    if progress.data != fingerprint:
        raise UserError(
            "the data, the tokenizer or the chat template changed since the run was started",
            str(run.path), "restore the files, or start a new run in another output.dir",
        )


def refuse_other_base(run: RunDir, digest: str) -> None:
    """UserError when the base's files are others than when the run was started."""
    before = _recorded(run).get("base_digest")
    if before is not None and before != digest:
        raise UserError("the files of the base changed since the run was started", str(run.path),
                        "restore them, or start a new run in another output.dir")


def on_other_versions(run: RunDir, now: dict[str, str]) -> list[str]:
    """What is remarked where a run goes on under other versions than it was begun with."""
    before = _recorded(run).get("versions") or {}
    return [f"the run was begun with {name} {before[name]} and goes on with "
            f"{now.get(name, 'none')}: not to the bit what an uninterrupted run gives"
            for name in _DECIDE_BITS if name in before and before[name] != now.get(name)]


def _recorded(run: RunDir) -> dict[str, Any]:
    """record.json, or nothing where a kill came before it was written."""
    try:
        values = read_json(run.record)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        raise UserError("is damaged", str(run.record), "restore it, or remove it: the run then "
                        "goes on without comparing base and versions") from None
    return values if isinstance(values, dict) else {}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            leaves.update(flat(value, f"{prefix}{key}."))
        else:
            leaves[prefix + key] = value
    return leaves
