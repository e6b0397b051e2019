"""Local files of a recipe, named so that they are found from anywhere."""

from pathlib import Path

from lorafit.data.sources import Location
from lorafit.recipe.loading import with_paths
from lorafit.recipe.schema import Recipe


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
