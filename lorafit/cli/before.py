"""What comes before a verb's work: cheap checks, and the hub made ready or left alone."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lorafit import libraries, pins
from lorafit.cli import show
from lorafit.data.first_look import look_at
from lorafit.data.given import Given, sources_of
from lorafit.errors import Problem, UserError
from lorafit.json_files import read_object
from lorafit.launch.rank import is_main_rank
from lorafit.model.intake import (
    check_adapter_files,
    check_model_files,
    check_run_directory,
)
from lorafit.recipe.loading import load_recipe
from lorafit.recipe.schema import Data, Model, Recipe
from lorafit.run_dir import RunDir, refuse_target


def check_cheaply(recipe: Recipe, run: RunDir, resume: bool, *, checks: bool = True,
                  weights: bool = True) -> None:
    """What can be known to be wrong in milliseconds, before anything heavy is imported.

    checks: refuse what the recipe's checks of rows object to; `preview` shows that instead,
    and `bench` needs rows of any kind. weights: whether the base's are needed.
    UserError with everything that was found.
    """
    problems: list[Problem] = []
    if not resume:
        try:
            run.refuse_taken()
        except UserError as error:
            problems += error.problems
    problems += _base_problems(recipe.model, weights)
    if problem := _template_problem(recipe.data.chat_template):
        problems.append(problem)
    problems += look_at(recipe.data, checks=checks)
    if problems:
        raise UserError(problems=problems)


def _base_problems(model: Model, weights: bool) -> list[Problem]:
    """What is wrong with a base that is a directory, or can only be one."""
    base = model.base
    where, remedy = f"model.base: {base}", "name a model directory, a hub id, or tiny"
    path = Path(os.path.expanduser(base))
    if base == "tiny" or not path.exists():
        missing = base.startswith((".", "/", "~"))
        return [Problem("no such base model", where, remedy)] if missing else []
    if not path.is_dir():
        return [Problem("is a file, not a model directory", where, remedy)]
    if not (path / "config.json").exists():
        if (path / "adapter_config.json").exists():
            return [Problem("is an adapter, not a base model", where,
                            "name the base it was trained on, or merge it first")]
        return [Problem("is a directory without a config.json", where, remedy)]
    try:
        look_at_base(model, weights=weights)
    except UserError as error:
        return error.problems
    return []


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


def keep_commits(recipe: Recipe, run: RunDir) -> None:
    """Take the commits of the hub that a run was started with, now that it goes on.

    UserError when something in its directory leads out of it.
    """
    if not run.path.is_dir():
        return
    check_run_directory(run.path)
    if run.record.exists():
        record = read_object(run.record, "copy the run again")
        model = recipe.model
        pins.restore({f"model {model.base}@{model.revision or 'main'}": record.get("base_commit")})
        pins.restore(record.get("hub_commits"))


def look_at_base(model: Model, *, weights: bool = True) -> None:
    """UserError when files of a base on this machine are refused (`lorafit.model.intake`)."""
    folder = Path(model.base)
    if model.base != "tiny" and (folder / "config.json").is_file():
        check_model_files(folder, may_run_code=model.trust_remote_code,
                          where=f"model.base: {model.base}", weights=weights)


def settle_hub(recipe: Recipe) -> bool:
    """Prepare the hub libraries for what a recipe needs; whether the hub can be reached.

    Where the recipe says that code of the base runs, that code is named first.
    """
    is_reachable = libraries.settle(needs_hub(recipe))
    if recipe.model.trust_remote_code:
        _say_what_runs(recipe.model)
    return is_reachable


def settle_hub_for(trained: Path, base: str | None, *others: Path,
                   overrides: Sequence[str] = (), also: bool = False) -> None:
    """The same for runs or adapters. overrides: of the run's recipe. also: whether something else
    is needed of the hub.

    UserError when the files of an adapter, or of its base, are refused.
    """
    libraries.settle(also or any(_needs_hub(path, base, overrides)
                                 for path in (trained, *others)))


def _needs_hub(trained: Path, base: str | None, overrides: Sequence[str]) -> bool:
    run = RunDir(trained)
    if run.recipe.exists():
        check_run_directory(run.path)
        recipe = load_recipe(run.recipe, overrides)
        if run.adapter.is_dir():
            check_adapter_files(run.adapter)
        look_at_base(recipe.model)
        return (on_hub(Model(base=base)) if base else on_hub(recipe.model)) \
            or _data_on_hub(recipe.data)
    name: object = base
    config = trained / "adapter_config.json"
    if config.is_file():
        values = check_adapter_files(trained)
        name = base or values.get("base_model_name_or_path")
    if not isinstance(name, str) or not name.strip():
        return False
    model = Model.model_construct(base=name, trust_remote_code=False)
    look_at_base(model)
    return on_hub(model)


def _say_what_runs(model: Model) -> None:
    """Name the code of a base that the user has allowed, and remember it."""
    if is_main_rank():
        from lorafit.model.foreign_code import foreign_code, keep_permission

        code = foreign_code(model)
        if code.files:
            show.foreign_code(code.source, code.files, code.digest)
            keep_permission(code)


def needs_hub(recipe: Recipe) -> bool:
    return on_hub(recipe.model) or _data_on_hub(recipe.data)


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
