"""What comes before a verb's work: cheap checks, and the hub made ready or left alone."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from lorafit import libraries
from lorafit.data.first_look import look_at
from lorafit.data.given import Given, sources_of
from lorafit.errors import Problem, UserError
from lorafit.recipe.loading import load_recipe
from lorafit.recipe.schema import Data, Model, Recipe
from lorafit.run_dir import RunDir, refuse_target


def check_cheaply(recipe: Recipe, run: RunDir, resume: bool, *, checks: bool = True) -> None:
    """What can be known to be wrong in milliseconds, before anything heavy is imported.

    checks: refuse what the recipe's checks of rows object to; `preview` shows that instead,
    and `bench` needs rows of any kind.
    UserError with everything that was found.
    """
    problems: list[Problem] = []
    if not resume:
        try:
            run.refuse_taken()
        except UserError as error:
            problems += error.problems
    problems += [problem for problem in (_base_problem(recipe.model.base),
                                         _template_problem(recipe.data.chat_template)) if problem]
    problems += look_at(recipe.data, checks=checks)
    if problems:
        raise UserError(problems=problems)


def _base_problem(base: str) -> Problem | None:
    """What is wrong with a base that can only be a directory."""
    where, remedy = f"model.base: {base}", "name a model directory, a hub id, or tiny"
    path = Path(os.path.expanduser(base))
    if base == "tiny" or not path.exists():
        if base.startswith((".", "/", "~")):
            return Problem("no such base model", where, remedy)
        return None
    if not path.is_dir():
        return Problem("is a file, not a model directory", where, remedy)
    config = path / "config.json"
    if not config.exists():
        if (path / "adapter_config.json").exists():
            return Problem("is an adapter, not a base model", where,
                           "name the base it was trained on, or merge it first")
        return Problem("is a directory without a config.json", where, remedy)
    try:
        if isinstance(json.loads(config.read_text(encoding="utf-8")), dict):
            return None
        why = "holds no object"
    except (OSError, ValueError, RecursionError) as error:
        why = str(error)
    return Problem(f"its config.json cannot be read: {why}", where, "fetch the model again")


def _template_problem(template: str | None) -> Problem | None:
    """What is wrong with a template that does not need the tokenizer to be found.

    A bare word may be the name of one of the tokenizer's templates.
    """
    if template is None or not ("{" in template or "/" in template or os.path.exists(template)
                                or template.endswith((".jinja", ".jinja2", ".j2"))):
        return None
    from lorafit.data.chat import check_template, resolve_template

    try:
        check_template(resolve_template(template, None))
    except UserError as error:
        return error.problems[0]
    return None


def settle_hub(recipe: Recipe) -> bool:
    """Prepare the hub libraries for what a recipe needs; whether the hub can be reached."""
    return libraries.settle(on_hub(recipe.model) or _data_on_hub(recipe.data))


def settle_hub_for(trained: Path, base: str | None) -> None:
    """The same for a run or an adapter."""
    if RunDir(trained).recipe.exists():
        settle_hub(load_recipe(RunDir(trained).recipe))
        return
    config = trained / "adapter_config.json"
    name = base
    if name is None and config.is_file():
        try:
            name = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
        except (ValueError, AttributeError):
            name = None
    libraries.settle(name is not None and on_hub(Model(base=name)))


def on_hub(model: Model) -> bool:
    return model.base != "tiny" and not Path(model.base).exists()


def _data_on_hub(data: Data) -> bool:
    return any(given.location.is_hub for given in sources(data))


def sources(data: Data) -> list[Given]:
    return [*sources_of(data, "train"), *sources_of(data, "eval")]


def refuse_beside(option: str, because: str, others: Mapping[str, bool]) -> None:
    """UserError when an option is given together with others that it leaves no use for.

    option: empty where it was not given. others: by name, whether they were.
    """
    if given := [name for name, is_given in others.items() if option and is_given]:
        raise UserError(f"{option} {because}, so it leaves no use for {', '.join(given)}",
                        given[0], f"leave it out, or leave out {option}")


def refuse_taken_json(target: Path | None) -> None:
    if target is None or str(target) == "-":
        return
    refuse_target(target, "choose another file with --json")
    if not target.absolute().parent.is_dir():
        raise UserError("no such directory", str(target.parent),
                        "make it, or choose another file with --json")
