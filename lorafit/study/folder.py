"""A study's directory: what was asked, and the recipes, runs and logs of its trials.

    study.json      what was asked for; a study that goes on must ask for the same
    recipes/        a recipe a trial, which `lorafit train` takes
    runs/           a run directory a trial
    logs/           what each trial printed
    failures/       how trials ended that have no result
"""

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from lorafit.errors import UserError
from lorafit.json_files import read_object
from lorafit.recipe.loading import flat
from lorafit.recipe.schema import Recipe
from lorafit.run_dir import RunDir, refuse_target, write_json


@dataclass(frozen=True)
class Trial:
    """One run of a study. name: its directory's too. The recipe's output.dir is that directory."""

    name: str
    recipe: Recipe

    @property
    def seed(self) -> int:
        return self.recipe.training.seed


@dataclass(frozen=True)
class StudyDir:
    """Paths of one study."""

    path: Path

    @property
    def asked(self) -> Path:
        return self.path / "study.json"

    def recipe(self, name: str) -> Path:
        return self.path / "recipes" / f"{name}.yaml"

    def run(self, name: str) -> RunDir:
        return RunDir(self.path.absolute() / "runs" / name)

    def log(self, name: str) -> Path:
        return self.path / "logs" / f"{name}.log"

    def failure(self, name: str) -> Path:
        return self.path / "failures" / f"{name}.json"

    def trial(self, name: str, recipe: Recipe) -> Trial:
        """A trial of this recipe, in a run directory of its own."""
        output = recipe.output.model_copy(update={"dir": str(self.run(name).path)})
        return Trial(name, recipe.model_copy(update={"output": output}))


def asked_of(kind: str, recipe: Recipe, **settings: Any) -> dict[str, Any]:
    """What decides a study's trials, as it is kept and compared. The recipe's date is today's where
    it has none, so that templates which print one print the same in every run."""
    values = recipe.model_dump(mode="json", exclude={"output", "evaluation"})
    values["data"]["date"] = values["data"]["date"] or date.today().isoformat()
    return {"kind": kind, "settings": settings, "recipe": values}


def refuse_other(folder: StudyDir, asked: dict[str, Any], dated: bool) -> None:
    """UserError unless the directory is free, or holds the study that is asked for.

    dated: whether the recipe itself names a date; if not, a study that goes on keeps its own.
    """
    if not folder.asked.exists():
        refuse_target(folder.path, "choose another with --output DIR")
        return
    before = read_object(folder.asked, "start a new study in another directory with --output DIR")
    known, now = flat(before), flat(asked)
    free = set() if dated else {"recipe.data.date"}
    differ = [key for key in sorted(known.keys() | now.keys())
              if known.get(key) != now.get(key) and key not in free]
    if differ:
        shown = "; ".join(f"{key.removeprefix('settings.')}: was {known.get(key, 'left out')}, is "
                          f"{now.get(key, 'left out')}" for key in differ[:8])
        more = f"; and {len(differ) - 8} more" if len(differ) > 8 else ""
        raise UserError(f"holds a study that was asked differently: {shown}{more}",
                        str(folder.path),
                        "ask as before to go on with it, or start a new one with --output DIR")


def begin(folder: StudyDir, asked: dict[str, Any]) -> str:
    """Make the directory, or go on in it; the date that the study's runs see."""
    if not folder.asked.exists():
        folder.path.mkdir(parents=True, exist_ok=True)
        write_json(folder.asked, asked)
    kept = read_object(folder.asked, "start a new study in another directory with --output DIR")
    return str(kept["recipe"]["data"]["date"])
